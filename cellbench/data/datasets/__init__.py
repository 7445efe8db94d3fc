"""Data modules, one file per dataset: the only folder that is searched for them."""
