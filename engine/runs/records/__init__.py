"""What a run and all folds measured, as typed records with a version: `Results`, `FoldsReport`, `metrics.jsonl`."""
