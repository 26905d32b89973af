"""How well takes sing their lyrics, and when."""
