"""The Oobleck VAE: 48 kHz stereo audio to 25 Hz latents and back.

The core's layout is [B, T, C]; this file has the VAE's own, which is ComfyUI's too: audio [B, 2, S], latents
[B, 64, T]. Long inputs are worked on in windows that overlap by the network's reach and lose their margins
afterwards, so a tiled result equals the whole. Module names equal the diffusers checkpoint's keys, with
weight norm folded into plain weights.
Source: huggingface/diffusers, `models/autoencoders/autoencoder_oobleck.py`; Stability-AI/stable-audio-tools.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..constants import AUDIO_CHANNELS, LATENT_CHANNELS, SAMPLES_PER_FRAME
from .layers import Build, cast

StateDict = Mapping[str, Tensor]
OnTile = Callable[[int, int], None]  # (tiles done, tiles in all); raising from it ends the work

DILATIONS = (1, 3, 9)
KERNEL = 7  # of every plain convolution except the encoder's last
RESIDUAL_REACH = sum(KERNEL // 2 * dilation for dilation in DILATIONS)  # 39 steps a side
LAST_ENCODER_KERNEL = 3
MIN_STD = 1e-4
SNAKE_EPS = 1e-9

TILE_FRAMES = 512  # 20 s. The margins of 9 frames a side cost 4 % here; larger tiles gain little.
# A CPU takes each stage in pieces that its caches hold (4 MB in float32): 2 to 3 times faster than at once.
CPU_PIECE_ELEMENTS = 1 << 20
# Tensors as wide as the widest layer alive at once: a residual unit's input, snake and output, and workspace.
LIVE_ACTIVATIONS = 5


@dataclass(frozen=True)
class VaeConfig:
    """Sizes of an Oobleck VAE, stages listed from audio to latents. The defaults are the released one."""

    encoder_width: int = 128
    decoder_width: int = 128
    multiples: tuple[int, ...] = (1, 2, 4, 8, 16)
    strides: tuple[int, ...] = (2, 4, 4, 6, 10)
    latent_channels: int = LATENT_CHANNELS
    audio_channels: int = AUDIO_CHANNELS

    def __post_init__(self) -> None:
        if len(self.multiples) != len(self.strides):
            raise ValueError(f"each VAE stage has a multiple and a stride, got {self.multiples} and {self.strides}")
        if any(stride % 2 for stride in self.strides):
            raise ValueError(f"VAE strides must be even, or lengths do not come out, got {self.strides}")

    @property
    def hop(self) -> int:
        """Samples in a latent frame."""
        return math.prod(self.strides)

    @property
    def decode_margin(self) -> int:
        """How many frames away a frame still changes a decoded sample: 9 (8.34 rounded up) as released."""
        reach = KERNEL // 2
        for stride in self.strides:
            reach = _coarse_steps(reach + RESIDUAL_REACH, stride)
        return reach + KERNEL // 2

    @property
    def encode_margin(self) -> int:
        """How many frames away a sample still changes an encoded frame: 7 (6.34 rounded up) as released."""
        reach = LAST_ENCODER_KERNEL // 2
        for stride in reversed(self.strides):
            reach = reach * stride + stride // 2 + RESIDUAL_REACH
        return -(-(reach + KERNEL // 2) // self.hop)

    @classmethod
    def from_state_dict(cls, state_dict: StateDict) -> VaeConfig:
        """Return the sizes that a state dict's shapes tell: diffusers names, weight norm folded.

        Raises: ValueError for another model's weights, or where some are missing.
        """
        kernels = {key: t.shape for key, t in state_dict.items() if key.endswith(".weight") and t.ndim == 3}
        stages: list[torch.Size] = []
        while shape := kernels.get(f"encoder.block.{len(stages)}.conv1.weight"):
            stages.append(shape)
        try:
            encoder_width, audio_channels, _ = kernels["encoder.conv1.weight"]
            _, latent_channels, _ = kernels["decoder.conv1.weight"]
            _, decoder_width, _ = kernels["decoder.conv2.weight"]
        except KeyError as missing:
            raise ValueError(f"this is not an ACE-Step VAE, or only part of one: it has no {missing}") from None
        config = cls(
            encoder_width=encoder_width,
            decoder_width=decoder_width,
            multiples=tuple(n_out // encoder_width for n_out, _, _ in stages),
            strides=tuple(kernel // 2 for _, _, kernel in stages),  # a resampling kernel spans two strides
            latent_channels=latent_channels,
            audio_channels=audio_channels,
        )
        _check_complete(state_dict, config)
        if config.hop != SAMPLES_PER_FRAME:
            raise ValueError(f"this VAE has {config.hop} samples a frame, ACE-Step's has {SAMPLES_PER_FRAME}")
        return config


@dataclass(frozen=True, eq=False)
class Posterior:
    """What the encoder believes of each latent: mean and standard deviation, both [B, 64, T]."""

    mean: Tensor
    std: Tensor


class Snake(nn.Module):
    """x + sin²(e^α x) / (e^β + 1e-9), with an α and a β for each channel."""

    def __init__(self, n_channels: int, build: Build) -> None:
        super().__init__()
        self.alpha = build.parameter(1, n_channels, 1)
        self.beta = build.parameter(1, n_channels, 1)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """Return the activation of x [B, C, S], written over x where the caller allows it."""
        frequency = cast(self.alpha.float().exp(), x)
        height = cast((self.beta.float().exp() + SNAKE_EPS).reciprocal(), x)
        sine_squared = (x * frequency).sin_().square_()
        return x.addcmul_(sine_squared, height) if overwrite else torch.addcmul(x, sine_squared, height)


class ResidualUnit(nn.Module):
    """Snake, dilated convolution, snake, mixing of channels; added to the input."""

    def __init__(self, width: int, dilation: int, build: Build) -> None:
        super().__init__()
        self.snake1 = Snake(width, build)
        self.conv1 = _conv(width, width, KERNEL, build, dilation)
        self.snake2 = Snake(width, build)
        self.conv2 = _conv(width, width, 1, build)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.snake2(self.conv1(self.snake1(x)), overwrite=True)
        return self.conv2(inner).add_(x)


class EncoderBlock(nn.Module):
    """Three residual units, then stride times fewer steps."""

    def __init__(self, n_in: int, n_out: int, stride: int, build: Build) -> None:
        super().__init__()
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(n_in, d, build) for d in DILATIONS)
        self.snake1 = Snake(n_in, build)
        self.conv1 = build.ops.Conv1d(n_in, n_out, **_resampling(stride, build))

    def forward(self, x: Tensor) -> Tensor:
        x = self.res_unit3(self.res_unit2(self.res_unit1(x)))
        return self.conv1(self.snake1(x, overwrite=True))


class DecoderBlock(nn.Module):
    """stride times more steps, then three residual units."""

    def __init__(self, n_in: int, n_out: int, stride: int, build: Build) -> None:
        super().__init__()
        self.snake1 = Snake(n_in, build)
        self.conv_t1 = build.ops.ConvTranspose1d(n_in, n_out, **_resampling(stride, build))
        self.res_unit1, self.res_unit2, self.res_unit3 = (ResidualUnit(n_out, d, build) for d in DILATIONS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_t1(self.snake1(x))
        return self.res_unit3(self.res_unit2(self.res_unit1(x)))


class Encoder(nn.Module):
    """Audio [B, 2, S] to mean and scale on one channel axis, [B, 2·64, T]."""

    def __init__(self, config: VaeConfig, build: Build) -> None:
        super().__init__()
        self.strides = config.strides
        self.widths = _widths(config.encoder_width, config)
        self.conv1 = _conv(config.audio_channels, self.widths[0], KERNEL, build)
        pairs = zip(itertools.pairwise(self.widths), self.strides, strict=True)
        self.block = nn.ModuleList(EncoderBlock(n_in, n_out, stride, build) for (n_in, n_out), stride in pairs)
        self.snake1 = Snake(self.widths[-1], build)
        self.conv2 = _conv(self.widths[-1], 2 * config.latent_channels, LAST_ENCODER_KERNEL, build)

    def forward(self, x: Tensor) -> Tensor:
        stages = [nn.Sequential(self.conv1, self.block[0]), *self.block[1:]]
        for stage, width, stride in zip(stages, self.widths, self.strides, strict=False):
            windows = _cpu_pieces(x, x.shape[-1] // stride, width, stride)
            x = _over_windows(stage, x, windows, read=stride, write=1)
        return self.conv2(self.snake1(x, overwrite=True))


class Decoder(nn.Module):
    """Latents [B, 64, T] to audio [B, 2, hop·T], not limited to ±1."""

    def __init__(self, config: VaeConfig, build: Build) -> None:
        super().__init__()
        self.strides = config.strides[::-1]
        self.widths = _widths(config.decoder_width, config)[::-1]
        self.conv1 = _conv(config.latent_channels, self.widths[0], KERNEL, build)
        pairs = zip(itertools.pairwise(self.widths), self.strides, strict=True)
        self.block = nn.ModuleList(DecoderBlock(n_in, n_out, stride, build) for (n_in, n_out), stride in pairs)
        self.snake1 = Snake(self.widths[-1], build)
        self.conv2 = _conv(self.widths[-1], config.audio_channels, KERNEL, build, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        # The last block's output is the widest tensor of all; in pieces it never exists as a whole.
        stages = [*self.block[:-1], nn.Sequential(self.block[-1], self.snake1, self.conv2)]
        for stage, width, stride in zip(stages, self.widths[1:], self.strides, strict=True):
            windows = _cpu_pieces(x, x.shape[-1], width, stride)
            x = _over_windows(stage, x, windows, read=1, write=stride)
        return x


class Vae(nn.Module):
    """One VAE, ready for weights. It runs without autograd: activations are overwritten."""

    def __init__(self, config: VaeConfig, build: Build | None = None) -> None:
        super().__init__()
        build = build or Build()
        self.config = config
        self.encoder = Encoder(config, build)
        self.decoder = Decoder(config, build)

    @torch.no_grad()  # not inference_mode: latents are training data for adapters
    def posterior(
        self,
        audio: Tensor,
        tile_frames: int | None = None,
        on_tile: OnTile | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Posterior:
        """Return the posterior of audio [B, 2, S] in ⌊S / hop⌋ frames.

        Samples past the last whole frame make no frame of their own but colour the last ones, as in the official code.
        tile_frames: frames worked out at a time; None is all of them. device, dtype: where and in which precision,
        None is the audio's own; each tile is taken there by itself.

        Raises: ValueError where the audio has other channels or is shorter than a frame.
        """
        _check_input("audio", audio, self.config.audio_channels, self.config.hop)
        windows = Windows(audio.shape[-1] // self.config.hop, tile_frames, self.config.encode_margin)

        def encoder(tile: Tensor) -> Tensor:
            return self.encoder(tile.to(device=device, dtype=dtype))

        stacked = _over_windows(encoder, audio, windows, read=self.config.hop, write=1, on_tile=on_tile)
        mean, scale = stacked.chunk(2, dim=1)
        return Posterior(mean, F.softplus(scale) + MIN_STD)

    def encode(self, audio: Tensor) -> Tensor:
        """Return latents [B, 64, ⌊S / hop⌋] of audio [B, 2, S]: the posterior's mean, the same every time."""
        return self.posterior(audio).mean

    def encode_tiled(
        self,
        audio: Tensor,
        tile_frames: int = TILE_FRAMES,
        on_tile: OnTile | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Return what encode returns, in memory that does not grow with length or batch.

        The audio may lie elsewhere than the weights: it is taken to device and dtype a tile at a time.
        """
        return self.posterior(audio, tile_frames, on_tile, device, dtype).mean

    def decode(self, latents: Tensor) -> Tensor:
        """Return audio [B, 2, hop·T] of latents [B, 64, T]."""
        return self.decode_tiled(latents, tile_frames=max(1, latents.shape[-1]))

    @torch.no_grad()
    def decode_tiled(
        self,
        latents: Tensor,
        tile_frames: int = TILE_FRAMES,
        on_tile: OnTile | None = None,
        out_device: torch.device | str | None = None,
    ) -> Tensor:
        """Return what decode returns, in memory that does not grow with length or batch.

        The audio is put together on out_device, or where the latents are.

        Raises: ValueError where the latents have other channels or no frame.
        """
        _check_input("latents", latents, self.config.latent_channels, 1)
        windows = Windows(latents.shape[-1], tile_frames, self.config.decode_margin)
        write = self.config.hop
        return _over_windows(self.decoder, latents, windows, 1, write, on_tile, out_device)

    def decode_memory_bytes(self, n_frames: int, dtype: torch.dtype, tile_frames: int = TILE_FRAMES) -> int:
        """Return about how much memory decode_tiled works in, beside weights, latents and audio."""
        window = min(n_frames, tile_frames + 2 * self.config.decode_margin)
        return LIVE_ACTIVATIONS * self.config.decoder_width * self.config.hop * window * dtype.itemsize

    def encode_memory_bytes(self, n_frames: int, dtype: torch.dtype, tile_frames: int = TILE_FRAMES) -> int:
        """Return about how much memory encode_tiled works in, beside weights, audio and latents."""
        window = min(n_frames, tile_frames + 2 * self.config.encode_margin)
        return LIVE_ACTIVATIONS * self.config.encoder_width * self.config.hop * window * dtype.itemsize


@dataclass(frozen=True)
class Windows:
    """Cuts n_units into windows of `size` (None: into one), which see `margin` units more on either side."""

    n_units: int
    size: int | None
    margin: int

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise ValueError(f"a VAE tile must hold at least one frame, got {self.size}")

    def __len__(self) -> int:
        return -(-self.n_units // (self.size or self.n_units))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Yield the units a window is for, and the units it sees."""
        size = self.size or self.n_units
        for start in range(0, self.n_units, size):
            stop = min(start + size, self.n_units)
            yield (
                slice(start, stop),
                slice(max(0, start - self.margin), min(stop + self.margin, self.n_units)),
            )


def _over_windows(
    stage: Callable[[Tensor], Tensor],
    x: Tensor,
    windows: Windows,
    read: int,
    write: int,
    on_tile: OnTile | None = None,
    out_device: torch.device | str | None = None,
) -> Tensor:
    """Return stage(x [B, C, S]), one item and one window at a time.

    A unit of windows is `read` steps of x and `write` steps of the result. Steps of x past the last unit
    belong to the last window.
    """
    n_tiles = x.shape[0] * len(windows)
    result: Tensor | None = None
    for done, (item, (tile, padded)) in enumerate(itertools.product(range(x.shape[0]), windows), start=1):
        end = padded.stop * read if padded.stop < windows.n_units else x.shape[-1]
        y = stage(x[item : item + 1, :, padded.start * read : end])
        y = y[..., (tile.start - padded.start) * write : (tile.stop - padded.start) * write]
        if n_tiles == 1:
            result = y.to(out_device or y.device)
        else:
            if result is None:
                shape = (x.shape[0], y.shape[1], windows.n_units * write)
                result = torch.empty(shape, dtype=y.dtype, device=out_device or y.device)
            result[item, :, tile.start * write : tile.stop * write] = y[0]
        if on_tile is not None:
            on_tile(done, n_tiles)
    assert result is not None  # inputs have at least one item and one unit
    return result


def _cpu_pieces(x: Tensor, n_units: int, width: int, stride: int) -> Windows:
    """Return the windows in which a stage works: on a CPU as large as its caches like, elsewhere one.

    A unit is one step on the coarse side of the stage, `stride` steps of `width` channels on the fine side.
    """
    size = max(1, CPU_PIECE_ELEMENTS // (width * stride)) if x.device.type == "cpu" else None
    return Windows(n_units, size, _coarse_steps(RESIDUAL_REACH + KERNEL // 2, stride))


def _coarse_steps(reach: int, stride: int) -> int:
    """Return how many steps on the coarse side of a resampling lie within `reach` steps of the fine side."""
    return -(-(reach + stride // 2) // stride)


def _widths(width: int, config: VaeConfig) -> list[int]:
    return [width, *(width * multiple for multiple in config.multiples)]


def _conv(n_in: int, n_out: int, kernel: int, build: Build, dilation: int = 1, bias: bool = True) -> Any:
    """Return a convolution that keeps the length."""
    padding = dilation * (kernel // 2)
    where = {"dtype": build.dtype, "device": build.device}
    return build.ops.Conv1d(n_in, n_out, kernel, padding=padding, dilation=dilation, bias=bias, **where)


def _resampling(stride: int, build: Build) -> dict[str, Any]:
    """Return the arguments of a convolution, plain or transposed, that resamples by exactly stride."""
    where = {"dtype": build.dtype, "device": build.device}
    return {"kernel_size": 2 * stride, "stride": stride, "padding": stride // 2, **where}


def _check_input(name: str, x: Tensor, n_channels: int, min_steps: int) -> None:
    if x.ndim != 3 or x.shape[0] == 0 or x.shape[1] != n_channels or x.shape[2] < min_steps:
        raise ValueError(
            f"the VAE takes {name} as [items, {n_channels}, steps] with at least {min_steps} steps, got {list(x.shape)}"
        )


def _check_complete(state_dict: StateDict, config: VaeConfig) -> None:
    expected = Vae(config, Build(device="meta")).state_dict()
    wrong = [k for k, t in expected.items() if k not in state_dict or state_dict[k].shape != t.shape]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the VAE's {len(expected)} tensors are missing or have another shape, "
            f'first "{wrong[0]}": the file looks truncated, download it again'
        )
