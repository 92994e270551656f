"""Studies of many runs: tables, sweeps and curves."""
