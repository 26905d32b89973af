"""ComfyUI's side of the pack, without node classes."""
