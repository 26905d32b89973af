"""VAE decoding against diffusers and ComfyUI: speed, and the memory and exactness of tiles.

uv run benchmarks/vae.py                             # 2 CPU threads, half the released width
uv run benchmarks/vae.py --width 128 --seconds 10    # the released size
uv run benchmarks/vae.py --device cuda --dtype bf16 --width 128 --seconds 10 30 60 240
"""

from __future__ import annotations

import importlib

import torch
from common import (
    DTYPES,
    arguments,
    compare,
    hardware,
    load_comfyui,
    load_pack,
    markdown_table,
    peak_memory,
)
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

load_pack()

from acestep_pack.acestep_core.checkpoints.vae_keys import fold_weight_norm, from_comfyui_keys  # noqa: E402
from acestep_pack.acestep_core.constants import FRAME_RATE  # noqa: E402
from acestep_pack.acestep_core.models import vae  # noqa: E402

MB = 1 << 20


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=64, help="128 is the released size")
    parser.add_argument("--seconds", type=int, nargs="*", default=[10, 30, 60])
    parser.add_argument("--memory-seconds", type=int, nargs="*", default=[30, 60, 120])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    load_comfyui(options.device)
    models = build(options.width, DTYPES[options.dtype], options.device)

    print(f"{hardware(options.device)}; {options.dtype}, width {options.width}; best of several, in turns\n")
    if options.seconds:
        print(speed(models, options.seconds))
    if options.memory_seconds:
        print(memory(models, options.memory_seconds, options.device))
        print(f"\nTiled and whole differ by {tiling_error(models['ours'], 30):.1e} of the maximum at 30 s.")


def build(width: int, dtype: torch.dtype, device: str) -> dict[str, nn.Module]:
    """Return the three implementations with the same random decoder."""
    config = vae.VaeConfig(encoder_width=width, decoder_width=width)
    comfy_class = importlib.import_module("comfy.ldm.audio.autoencoder").AudioOobleckVAE
    theirs = comfy_class(channels=width, strides=list(config.strides))
    randomize(theirs)
    renamed = from_comfyui_keys(theirs.state_dict())
    ours = vae.Vae(config)
    ours.load_state_dict(fold_weight_norm(renamed))
    diffusers = AutoencoderOobleck(
        encoder_hidden_size=width, decoder_channels=width, downsampling_ratios=list(config.strides)
    )
    # Its encoder has another width than ours unless that is 128; only decoders run here.
    new_g, new_v = vae.WEIGHT_NORM_PARAMETRIZATION
    decoder = {
        key.replace(new_g, "weight_g").replace(new_v, "weight_v"): tensor
        for key, tensor in renamed.items()
        if key.startswith("decoder.")
    }
    assert not diffusers.load_state_dict(decoder, strict=False).unexpected_keys
    models = {"ours": ours, "diffusers": diffusers, "ComfyUI": theirs}
    return {name: model.to(device, dtype).eval() for name, model in models.items()}


def randomize(model: nn.Module) -> None:
    """Fill the parameters with numbers that keep activations in a normal range."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.5 + 0.1 * noise if name.endswith("original0") else 0.3 * noise


def latents_for(model: nn.Module, seconds: int) -> Tensor:
    like = next(model.parameters())
    noise = torch.randn(1, 64, seconds * FRAME_RATE, generator=torch.Generator().manual_seed(seconds))
    return noise.to(like)


def speed(models: dict[str, nn.Module], durations: list[int]) -> str:
    rows = []
    for seconds in durations:
        latents = latents_for(models["ours"], seconds)
        contenders = {
            "ours": lambda z=latents: models["ours"].decode(z),
            "ours, tiled": lambda z=latents: models["ours"].decode_tiled(z),
            "diffusers": lambda z=latents: models["diffusers"].decode(z).sample,
            "ComfyUI": lambda z=latents: models["ComfyUI"].decode(z),
        }
        if not rows:
            report_agreement(contenders)  # warms up as well
        times = compare(contenders, rounds=max(3, 50 // seconds), warm_up=False)
        faster_peer = min(times["diffusers"], times["ComfyUI"])
        rows.append((f"{seconds} s", *times.values(), f"{faster_peer / times['ours']:.2f}x"))
    columns = ("ours, s", "ours tiled, s", "diffusers, s", "ComfyUI, s", "faster peer ÷ ours")
    return markdown_table(("decode", *columns), rows)


def report_agreement(contenders: dict) -> None:
    ours = contenders["ours"]().float()
    for peer in ("diffusers", "ComfyUI"):
        error = (contenders[peer]().float() - ours).abs().max() / ours.abs().max()
        print(f"Largest difference from {peer}: {error:.1e} of the maximum.")
    print()


def memory(models: dict[str, nn.Module], durations: list[int], device: str) -> str:
    rows = []
    models["ours"].decode_tiled(latents_for(models["ours"], durations[0]))  # what stays allocated is no peak
    for seconds in durations:
        latents = latents_for(models["ours"], seconds)
        n_output = latents.shape[-1] * vae.SAMPLES_PER_FRAME * 2 * latents.element_size()
        runs = (
            lambda z=latents: models["ours"].decode_tiled(z),
            lambda z=latents: models["ours"].decode(z),
            lambda z=latents: models["diffusers"].decode(z).sample,
        )
        peaks = (f"{(peak_memory(run, device) - n_output) / MB:.0f}" for run in runs)
        estimate = models["ours"].decode_memory_bytes(latents.shape[-1], latents.dtype) / MB
        rows.append((f"{seconds} s", *peaks, f"{estimate:.0f}"))
    columns = ("tiled, MB", "whole, MB", "diffusers whole, MB", "our estimate for tiled, MB")
    return "\n" + markdown_table(("peak beyond input and output", *columns), rows)


def tiling_error(model: nn.Module, seconds: int) -> float:
    latents = latents_for(model, seconds)
    whole = model.decode(latents).float()
    error = (model.decode_tiled(latents, tile_frames=100).float() - whole).abs().max() / whole.abs().max()
    return error.item()


if __name__ == "__main__":
    main()
