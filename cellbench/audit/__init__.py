"""Whether a dataset can be believed: duplicates, leaks, shortcuts, masks, doubtful labels."""
