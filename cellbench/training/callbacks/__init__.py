"""Callbacks of every training."""
