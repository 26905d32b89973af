"""The DiT's velocity against diffusers' and ComfyUI's, from scratch and with everything kept between steps."""

import peers_placeholder
