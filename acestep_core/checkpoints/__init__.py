"""From published files to a network with weights: what exists, downloads, names, sizes, variants."""
