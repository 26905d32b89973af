"""Audio codes as values that people keep: files, text, and edits."""
