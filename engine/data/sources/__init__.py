"""Sources of images: one file for each dataset, or kind of dataset, that engine.data.DATASETS lists."""
