"""Plans of studies: the file, the runs that it means, which of them are done, and what they cost."""
