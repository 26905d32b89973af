"""Sampler settings that belong to no task, as one value between nodes. Every default changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from .guidance import Guidance
from .sample import SamplerSettings
from .schedule import custom_schedule
from .wavelet import Dcw


@dataclass(frozen=True)
class Options:
    """Guidance method and interval (in noise level, 1 = start), solver settings, custom noise levels."""

    guidance_method: str = "apg"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    settings: SamplerSettings = field(default_factory=SamplerSettings)
    timesteps: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        self.guidance(1.0)  # checks method and interval
        if self.timesteps:
            custom_schedule(self.timesteps)  # checks that they fall

    def guidance(self, scale: float) -> Guidance:
        """Return the guidance of a generation at this scale."""
        return Guidance(self.guidance_method, scale, self.guidance_interval)


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
