"""What a model costs: multiply-adds, budgets, speed."""
