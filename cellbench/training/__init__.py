"""One run: its trainer, its processes, its record."""
