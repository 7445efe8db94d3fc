"""Audit of a dataset: duplicates, leaks, shortcuts, masks, doubtful labels."""
