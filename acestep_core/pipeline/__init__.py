"""From a song to latents, and what is done with them."""
