"""Configurations: YAML files read strictly, and their values checked against types."""
