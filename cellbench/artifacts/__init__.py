"""Files of a run: written here, and read back here."""
