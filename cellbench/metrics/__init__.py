"""Metrics with confidence intervals, and statistical tests."""
