"""What a model costs: multiply-adds, merging budgets and speed."""
