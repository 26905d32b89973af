"""Music to put into nodes, in torch's terms."""

import torch
from torch import Tensor

from acestep_pack.acestep_core.constants import SAMPLE_RATE


def music(n_samples: int, n_channels: int = 2, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """Return two tones a channel [1, C, S]; the right side differs from the left."""
    t = torch.arange(n_samples) / sample_rate
    sides = [torch.sin(2 * torch.pi * f * t) + 0.5 * torch.sin(2 * torch.pi * 3.1 * f * t) for f in (220, 331)]
    return 0.4 * torch.stack(sides[:n_channels])[None]
