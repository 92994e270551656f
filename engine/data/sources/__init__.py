"""Sources of images: one file for each dataset, or kind of dataset, in engine.data.DATASETS."""
