"""WebDataset shards: tar files that hold images and labels, read at any member and written through webdataset."""
