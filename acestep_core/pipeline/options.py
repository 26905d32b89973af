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
    """How far a take's noise is turned towards that of another seed: variance 0 = not at all, 1 = all the way.

    Source: ace-step/ACE-Step-1.5, `acestep/models/*/modeling_*.py`, `generate_audio` (main of 2026-06-26).
    """

    seed: int = 0
    variance: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MAX_SEED:
            raise ValueError(f"retake seed {self.seed} is outside 0..2^53−1")
        if not 0 <= self.variance <= 1:
            raise ValueError(f"retake variance must be 0 (off) to 1, got {self.variance:g}")

    def turn(self, noise: Tensor, other: Tensor) -> Tensor:
        """Return noise turned towards the other; on a circle, so that it stays as loud."""
        angle = self.variance * math.pi / 2
        return math.cos(angle) * noise + math.sin(angle) * other


@dataclass(frozen=True)
class Options:
    """Guidance method and interval (in noise level, 1 = start), solver settings, custom noise levels, a second
    seed, and the prompt to morph from."""

    guidance_method: str = "apg"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    settings: SamplerSettings = field(default_factory=SamplerSettings)
    timesteps: tuple[float, ...] = ()
    retake: Retake = field(default_factory=Retake)
    morph: Morph | None = None

    def __post_init__(self) -> None:
        self.guidance(1.0)  # checks method and interval
        if self.timesteps:
            custom_schedule(self.timesteps)  # checks that they fall
        if self.morph is not None and (unknown := self._unknown_to_morph()):
            raise ValueError(
                f"a morph works with euler, apg or cfg, and no wavelet correction, not with {', '.join(unknown)}; "
                'change that or disconnect "morph_from"'
            )

    def guidance(self, scale: float) -> Guidance:
        """Return the guidance of a generation at this scale."""
        return Guidance(self.guidance_method, scale, self.guidance_interval)

    def summary(self, guided: bool) -> str:
        """Return the solver and what else is on, such as "euler, retake 0.2 of seed 9"."""
        settings, (start, end) = self.settings, self.guidance_interval
        said = {
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
            said[f"morph {self.morph.start:g} to {self.morph.end:g}"] = True
            said[f"{self.morph.n_draws} samples a step"] = self.morph.n_draws > 1
        return ", ".join(text for text, is_on in said.items() if is_on)

    def _unknown_to_morph(self) -> list[str]:
        """Return which of the settings the official morph leaves out, and so have no meaning in one."""
        said = {
            self.settings.solver: self.settings.solver != "euler",
            self.guidance_method: self.guidance_method == "adg",
            f"wavelet correction {self.settings.dcw.mode}": self.settings.dcw.mode != "off",
        }
        return [text for text, is_on in said.items() if is_on]


def official(is_turbo: bool) -> Options:
    """Return what the newest official interface turns on: the wavelet correction, on turbo checkpoints.

    Source: ace-step/ACE-Step-1.5, `acestep/ui` (main of 2026-06-26).
    """
    return Options(settings=SamplerSettings(dcw=Dcw("double", 0.05, 0.02))) if is_turbo else Options()


def parse_timesteps(text: str) -> tuple[float, ...]:
    """Return the numbers of a text such as "1.0, 0.8, 0.5"; nothing for an empty one.

    Raises ValueError for what is not a number.
    """
    return tuple(_number(word, "timestep", float) for word in _words(text))


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return the seeds of a text such as "7, 8, 42"; nothing for an empty one.

    Raises ValueError for what is not a whole number.
    """
    return tuple(_number(word, "seed", int) for word in _words(text))


def _words(text: str) -> list[str]:
    return text.replace(",", " ").split()


def _number(word, name, kind):  # type: ignore[no-untyped-def]
    try:
        return kind(word)
    except ValueError:
        raise ValueError(f'"{word}" is not a {name}; write numbers separated by commas') from None
