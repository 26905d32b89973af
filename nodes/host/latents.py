"""Core's LATENT, AUDIO and MASK: layouts, and what is known of each item beside its samples.

ComfyUI's LATENT and MASK run [B, C, T], the core runs [B, T, C]; only here, in `guider` and in `model` is anything
transposed. Core's nodes copy whatever lies beside the samples, whatever they do to these. So all that is said of an
item is looked up by what the item holds: a node that picks, repeats or reorders items changes nothing, and of an
item that is another now, nothing is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ...acestep_core.constants import LATENT_CHANNELS
from ...acestep_core.pipeline.tasks import Source, Task
from ...acestep_core.types import Take

# Our entry in core's LATENT dict: the Origins of its items.
ACESTEP_KEY = "acestep"
# In core's LATENT dict: by an item's fingerprint the recording [2, S] at 48 kHz that it was encoded from.
RECORDINGS_KEY = "acestep_recordings"
# In core's AUDIO dict: by an item's fingerprint what was decoded to it.
DECODED_KEY = "acestep_decoded"
# A fingerprint reads this many values of an item at most, evenly spread: all of ten minutes of latents.
FINGERPRINT_VALUES = 2**20


class Origins:
    """Where latents came from, by what they hold.

    All samplings of one encoded song share one, in its CONDITIONING and in every LATENT: joined takes are all known.
    It is only ever added to, and an entry stays true for as long as its content exists.
    """

    def __init__(self) -> None:
        self._takes: dict[str, list[Take]] = {}

    def add(self, samples: torch.Tensor, takes: Sequence[Take | None]) -> None:
        """Remember the take that each item of samples [B, C, T] is, but for those of None."""
        added: dict[str, list[Take]] = {}
        for item, take in zip(samples, takes, strict=True):
            if take is not None:
                added.setdefault(fingerprint(item), []).append(take)
        self._takes.update(added)

    def of(self, keys: Sequence[str]) -> tuple[Take | None, ...]:
        """Return the take that each item is, by the fingerprints of a batch, None where that is not known.

        Items that hold the same are matched with the takes that do, in their order.
        """
        n_seen: dict[str, int] = {}
        takes = []
        for key in keys:
            known = self._takes.get(key)
            place = n_seen[key] = n_seen.get(key, -1) + 1
            takes.append(known[min(place, len(known) - 1)] if known else None)
        return tuple(takes)


@dataclass(frozen=True)
class Item:
    """An item of a LATENT: what it holds, and which take that is."""

    key: str  # fingerprint
    take: Take | None  # None where that is not known


def fingerprint(item: torch.Tensor) -> str:
    """Return what tells an item [C, T] from every other: a hash of its shape and float32 values."""
    values = item.detach().flatten()[:: max(1, item.numel() // FINGERPRINT_VALUES)]
    content = values.to("cpu", torch.float32).contiguous().numpy()
    return hashlib.blake2b(content, digest_size=16, key=str(tuple(item.shape)).encode()).hexdigest()


def keys_of(value: Mapping) -> tuple[str, ...]:
    """Return the fingerprint of each item of core's LATENT."""
    return tuple(map(fingerprint, value["samples"]))


def items_of(value: Mapping) -> list[Item]:
    """Return the items of core's LATENT."""
    keys, origins = keys_of(value), value.get(ACESTEP_KEY)
    takes = [None] * len(keys) if origins is None else origins.of(keys)
    return list(map(Item, keys, takes))


def latent(samples: torch.Tensor, takes: Sequence[Take | None] = (), origins: Origins | None = None) -> dict:
    """Return core's LATENT of samples [B, T, 64], and remember which take each item is, if takes are given."""
    held, origins = samples.transpose(1, 2).contiguous(), origins or Origins()
    if takes:
        origins.add(held, takes)
    return {"samples": held, "type": "audio", ACESTEP_KEY: origins}


def recorded_latent(samples: torch.Tensor, waveform: torch.Tensor) -> dict:
    """Return core's LATENT of samples [B, T, 64] that remembers the recording [B, 2, S] they were encoded from."""
    made, recordings = latent(samples), waveform.cpu()
    return {**made, RECORDINGS_KEY: dict(zip(map(fingerprint, made["samples"]), recordings, strict=True))}


def recording_of(value: Mapping) -> torch.Tensor | None:
    """Return the recordings [B, 2, S] that the items of core's LATENT were encoded from, None where one is not known.

    A node that joins latents keeps what lies beside the first only, so the items of the second are not known.
    """
    recordings = value.get(RECORDINGS_KEY)
    if not recordings:
        return None
    own = [recordings.get(fingerprint(item)) for item in value["samples"]]
    known = [each for each in own if each is not None]
    if len(known) < len(own) or len({each.shape for each in known}) != 1:
        return None
    return known[0][None] if len(known) == 1 else torch.stack(known)


def latent_samples(value: Mapping) -> torch.Tensor:
    """Return the samples [B, T, 64] of core's LATENT.

    Raises ValueError for a latent of another model, an empty one, or one that holds NaN.
    """
    samples = value["samples"]
    # A film's latent with its sound (LTXVConcatAVLatent) is several tensors in one object.
    shape = list(samples.shape) if isinstance(samples, torch.Tensor) else []
    if len(shape) != 3 or shape[1] != LATENT_CHANNELS:
        raise ValueError(
            f"this latent is {tuple(shape) or 'a film with its sound'}, ACE-Step 1.5 needs "
            f'[takes, {LATENT_CHANNELS}, frames]; make it with "ACE-Step Encode Song"'
        )
    if not samples.numel():
        raise ValueError("this latent is empty: it has no takes or no frames")
    if not torch.isfinite(samples).all():
        raise ValueError("this latent holds NaN or infinity; run the step that made it again in another precision")
    return samples.transpose(1, 2)


def latent_takes(value: Mapping) -> tuple[Take | None, ...]:
    """Return which take each item of core's LATENT is, None where that is not known."""
    return tuple(item.take for item in items_of(value))


def latent_plans(value: Mapping, n_plans: int, what: str = "plans") -> list[int]:
    """Return which of n_plans each item of core's LATENT follows; of a single one there is nothing to choose.

    what: names them in the error. Raises ValueError for an item that is not known, where there are several.
    """
    takes = latent_takes(value)
    if n_plans == 1:
        return [0] * len(takes)
    if None in takes:
        raise ValueError(
            f"nobody knows which of {n_plans} {what} item {takes.index(None) + 1} of this latent belongs to: a node "
            "in between has changed or joined it; connect the sampler's latent itself, or picks of it"
        )
    return [take.plan % n_plans for take in takes if take is not None]


def decoded_audio(waveform: torch.Tensor, sample_rate: int, value: Mapping) -> dict:
    """Return core's AUDIO of a waveform [B, C, S] that remembers the items of the LATENT it was decoded from."""
    decoded = dict(zip(map(fingerprint, waveform), items_of(value), strict=True))
    return {"waveform": waveform, "sample_rate": sample_rate, DECODED_KEY: decoded}


def decoded_from(audio: Mapping) -> tuple[Item | None, ...]:
    """Return what each item of core's AUDIO was decoded from, None where that is not known."""
    decoded = audio.get(DECODED_KEY) or {}
    return tuple(decoded.get(fingerprint(item)) if decoded else None for item in audio["waveform"])


def latent_canvases(value: Mapping, task: Task) -> torch.Tensor:
    """Return the whole takes [B, T, 64] of core's LATENT; a foreign sampler gives back the window of a task only.

    Raises ValueError as latent_plans does, where the window of an unknown item belongs into one of several sources.
    """
    samples = latent_samples(value)
    if samples.shape[1] == task.n_frames or not task.sources:
        return samples
    return task.assemble(samples, torch.tensor(latent_plans(value, task.n_items, "sources")))


def latent_source(value: Mapping) -> Source:
    """Return core's LATENT as a source for a task, with its recording where it came from one.

    Raises ValueError as latent_samples does.
    """
    return Source(latent_samples(value), waveform=recording_of(value))


def time_rows(mask: torch.Tensor) -> torch.Tensor:
    """Return core's MASK of any shape as rows [B, n] over time, its last axis.

    Raises ValueError for a picture, whose height means nothing here.
    """
    rows = mask.float()
    if rows.ndim == 1:
        return rows[None]
    if rows.ndim > 2:
        rows = rows.flatten(1, -2)
        if rows.shape[1] > 1 and not torch.equal(rows, rows[:, :1].expand_as(rows)):
            raise ValueError(
                f"this mask is a picture of {mask.shape[-1]}x{mask.shape[-2]}; for sound it is one row over time: "
                'make it with "ACE-Step Region"'
            )
        rows = rows[:, 0]
    return rows


def frame_mask(mask: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Return core's MASK as [B, n_frames].

    Raises ValueError for a mask of another length, or a picture.
    """
    rows = time_rows(mask)
    if rows.shape[-1] != n_frames:
        raise ValueError(
            f"the mask has {rows.shape[-1]} frames, the latent {n_frames}; "
            'make it with "ACE-Step Region" from this latent'
        )
    return rows.cpu()


def fitted_mask(mask: torch.Tensor, n_frames: int) -> torch.Tensor:
    """Return core's MASK stretched to [B, n_frames], 0 to 1, as core's samplers stretch theirs.

    Raises ValueError for a picture.
    """
    rows = time_rows(mask)
    if rows.shape[-1] != n_frames:
        rows = torch.nn.functional.interpolate(rows[:, None], size=n_frames, mode="nearest-exact")[:, 0]
    return rows.clamp(0, 1)


def latent_mask(value: Mapping, n_frames: int) -> torch.Tensor | None:
    """Return core's noise mask as [B, n_frames], above 0 where to generate, or None without one.

    Raises ValueError for a picture.
    """
    mask = value.get("noise_mask")
    return None if mask is None else fitted_mask(mask, n_frames)
