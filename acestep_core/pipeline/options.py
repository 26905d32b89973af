"""Sampler settings that belong to no task, as one value between nodes. Every default changes nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from ..constants import MAX_SEED
from .guidance import Guidance
from .morph import Morph
from .sample import SamplerSettings
from .schedule import custom_schedule
from .wavelet import Dcw


@dataclass(frozen=True)
class Retake:
    """A take's noise mixed with that of another seed.

    Source: ace-step/ACE-Step-1.5, `acestep/models/*/modeling_*.py`, `generate_audio` (main of 2026-06-26).
    """

    seed: int = 0
    variance: float = 0.0  # 0 = the take's own noise, 1 = the other seed's

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"retake seed {self.seed} is outside 0..2^53-1")
        if not 0 <= self.variance <= 1:
            raise ValueError(f"retake variance must be 0 (off) to 1, got {self.variance:g}")

    def mix(self, noise: Tensor, other: Tensor) -> Tensor:
        """Return the spherical mean of two noises, which keeps their variance."""
        angle = self.variance * math.pi / 2
        return math.cos(angle) * noise + math.sin(angle) * other


@dataclass(frozen=True)
class Options:
    """How takes are sampled, beyond steps, shift and guidance scale."""

    guidance_method: str = "apg"  # a key of METHODS
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # noise levels, 1 = the start
    settings: SamplerSettings = field(default_factory=SamplerSettings)
    timesteps: tuple[float, ...] = ()  # noise levels of one's own in place of the schedule
    retake: Retake = field(default_factory=Retake)
    morph: Morph | None = None  # from another prompt, which the host has beside these options

    def __post_init__(self) -> None:
        self.guidance(1.0)  # checks method and interval
        if self.timesteps:
            custom_schedule(self.timesteps)  # checks that they fall
        if self.morph is not None and (unknown := self._unknown_to_morph()):
            raise ValueError(
                f"a morph works with euler, apg or cfg, and no wavelet correction, not with {', '.join(unknown)}; "
                "change that or disconnect the morph"
            )

    def guidance(self, scale: float) -> Guidance:
        """Return the guidance of a generation at this scale."""
        return Guidance(self.guidance_method, scale, self.guidance_interval)

    def summary(self, guided: bool) -> str:
        """Return the solver and what else is on, such as "euler, retake 0.2 of seed 9"."""
        settings, (start, end) = self.settings, self.guidance_interval
        parts = {
            self.guidance_method: guided and self.guidance_method != "apg",
            f"guidance at noise {start:g} to {end:g}": guided and (start, end) != (0, 1),
            settings.solver: True,
            f"wavelet correction {settings.dcw.mode}": settings.dcw.mode != "off",
            f"velocity limit {settings.norm_limit:g}": settings.norm_limit,
            f"velocity EMA {settings.ema:g}": settings.ema,
            f"retake {self.retake.variance:g} of seed {self.retake.seed}": self.retake.variance,
            f"latents × {settings.latent_rescale:g}": settings.latent_rescale != 1,
            f"latents {settings.latent_shift:+g}": settings.latent_shift,
        }
        if self.morph is not None:
            parts[f"morph {self.morph.start:g} to {self.morph.end:g}"] = True
            parts[f"{self.morph.n_draws} samples a step"] = self.morph.n_draws > 1
        return ", ".join(text for text, is_on in parts.items() if is_on)

    def _unknown_to_morph(self) -> list[str]:
        """Return which of the settings the official morph leaves out, and so have no meaning in one."""
        parts = {
            self.settings.solver: self.settings.solver != "euler",
            self.guidance_method: self.guidance_method == "adg",
            f"wavelet correction {self.settings.dcw.mode}": self.settings.dcw.mode != "off",
        }
        return [text for text, is_on in parts.items() if is_on]


def official(is_turbo: bool) -> Options:
    """Return what the newest official interface turns on: the wavelet correction, on turbo checkpoints.

    Source: ace-step/ACE-Step-1.5, `acestep/ui` (main of 2026-06-26).
    """
    return Options(settings=SamplerSettings(dcw=Dcw("double", 0.05, 0.02))) if is_turbo else Options()
