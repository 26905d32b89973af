"""Audio codes as files and text, and edits of them."""
