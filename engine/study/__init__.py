"""Many runs: tables, sweeps, curves."""
