"""Options of the commands: their parser, and the checks of names, types and combinations."""
