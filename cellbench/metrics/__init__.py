"""Metrics with their intervals, and statistical tests."""
