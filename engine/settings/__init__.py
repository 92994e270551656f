"""Settings: YAML files, what they inherit and command-line overrides, checked."""
