"""Every adapter format as one form."""
