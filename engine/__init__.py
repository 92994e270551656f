"""Everything that happens to a model: settings, data, training, evaluation, counting, tracking."""
