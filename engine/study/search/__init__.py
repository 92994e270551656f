"""Search over settings by their score on the validation images, through optuna."""
