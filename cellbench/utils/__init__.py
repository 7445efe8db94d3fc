"""Files, terminals and messages: what is not specific to cellbench."""
