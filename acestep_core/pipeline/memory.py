"""How much memory a forward of the music model needs beyond its weights, from shapes alone.

Hosts ask before they load: too little and the step fails, too much and weights are moved out needlessly.
"""

from __future__ import annotations

from ..models.acestep import AceStepConfig
from ..models.dit import PATCH_FRAMES

# Of one layer, at the widest moment: residual stream, normed and modulated copies; queries, keys, values
# and the heads' output; gate, up and their product.
RESIDUAL_COPIES = 4
MLP_COPIES = 3


def activation_bytes(config: AceStepConfig, n_items: int, n_frames: int, n_condition_tokens: int, itemsize: int) -> int:
    """Return the bytes one DiT forward over n_items holds at its widest, with its cross-attention K/V.

    Linear in n_frames: no attention here materialises its scores.
    """
    shape = config.decoder
    n_tokens = -(-n_frames // PATCH_FRAMES)
    heads, kv_heads = shape.n_heads * shape.head_dim, shape.n_kv_heads * shape.head_dim
    window = shape.window or 0
    # A windowed layer copies each key and value once for every block that sees it.
    halo = (window // 2 + 2 * window) / (window // 2) if window else 1
    attention = 2 * heads + (2 + 2 * halo) * kv_heads
    per_token = RESIDUAL_COPIES * shape.width + max(attention, MLP_COPIES * shape.mlp_width)
    cross = 2 * len(config.windowed_layers) * n_condition_tokens * kv_heads
    return int(n_items * (n_tokens * per_token + cross) * itemsize)
