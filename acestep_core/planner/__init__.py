"""The 5 Hz language model: what it reads, what it may write, how it decodes, what it thinks of a plan."""
