"""Executes a study: processes, progress, signals, sweeps, and jobs of a cluster."""
