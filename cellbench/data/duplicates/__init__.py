"""Images that show the same: copies, near copies, originals."""
