"""Execution of the commands that train: runs, sweeps, processes, results and exit codes."""
