"""Reports: comparisons of conditions, from the folders of finished runs alone."""
