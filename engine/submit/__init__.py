"""From images to predictions to a submission file."""
