"""Reading of other people's folders and tables: classes, parts, groups, masks, and doubts."""
