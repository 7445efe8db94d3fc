"""Helpers for files, terminals and messages that are not specific to cellbench."""
