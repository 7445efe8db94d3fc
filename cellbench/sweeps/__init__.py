"""Sweeps: many runs of one experiment, as a search or a comparison of conditions."""
