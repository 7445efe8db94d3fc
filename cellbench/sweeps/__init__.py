"""Many runs of one experiment: a search for good values, or a comparison of conditions."""
