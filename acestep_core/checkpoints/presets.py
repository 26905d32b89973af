"""Steps, shift and guidance for each published variant of the DiT: what "auto" means on the sampler.

Source: ace-step/ACE-Step-1.5, `docs/en/Tutorial.md`, `acestep/inference.py` (guidance 7.0) and the training
registry (shift 1 for sft and base, 3 for turbo).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Steps, shift and guidance a checkpoint was trained or distilled for."""

    n_steps: int
    shift: float
    guidance: float
    is_turbo: bool


_DISTILLED = Preset(n_steps=8, shift=3.0, guidance=1.0, is_turbo=True)
_UNDISTILLED = Preset(n_steps=50, shift=1.0, guidance=7.0, is_turbo=False)

# Variants are the same for 2B and XL; the size is read from the file.
PRESETS = {
    "turbo": _DISTILLED,
    "turbo-shift1": Preset(n_steps=8, shift=1.0, guidance=1.0, is_turbo=True),
    "turbo-shift3": _DISTILLED,
    "turbo-continuous": _DISTILLED,
    "sft": _UNDISTILLED,
    "base": _UNDISTILLED,
}
MAX_TURBO_STEPS = 20


@dataclass(frozen=True)
class Resolved:
    """Steps, shift and guidance with every auto filled in, and warnings about them for the user."""

    n_steps: int
    shift: float
    guidance: float
    warnings: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """Return one line such as "8 steps, shift 3, no guidance"."""
        guidance = f"guidance {self.guidance:g}" if self.guidance > 1 else "no guidance"
        return f"{self.n_steps} steps, shift {self.shift:g}, {guidance}"


def resolve(variant: str, n_steps: int = 0, shift: float = 0.0, guidance: float = 0.0) -> Resolved:
    """Return the settings for a variant; 0 takes the preset's value.

    Other values are kept, with a warning for each that is known to spoil the sound.
    """
    preset = PRESETS[variant]
    chosen = (n_steps or preset.n_steps, shift or preset.shift, guidance or preset.guidance)
    return Resolved(*chosen, warnings=tuple(_warnings(variant, preset, *chosen)))


def _warnings(variant: str, preset: Preset, n_steps: int, shift: float, guidance: float) -> list[str]:
    warnings = []
    if preset.is_turbo and guidance > 1:
        warnings.append(f"{variant} has guidance distilled in: guidance {guidance:g} will distort, use 1")
    if preset.is_turbo and n_steps > MAX_TURBO_STEPS:
        warnings.append(f"{variant} gains nothing from {n_steps} steps, it was made for {preset.n_steps}")
    if not preset.is_turbo and n_steps < 20:
        warnings.append(f"{variant} needs more than {n_steps} steps, it was made for {preset.n_steps}")
    if not preset.is_turbo and guidance <= 1:
        warnings.append(f"{variant} without guidance ignores much of the prompt, it was made for {preset.guidance:g}")
    if variant == "turbo-shift1" and shift != preset.shift:
        warnings.append(f"{variant} was distilled at shift 1, shift {shift:g} is untested")
    return warnings
