"""The maths of ACE-Step 1.5 in plain PyTorch: no ComfyUI import, no global state.

Everything the host owns (operations, device, dtype, progress) is passed in.
"""
