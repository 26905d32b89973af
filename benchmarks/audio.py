"""Whole songs through the VAE, in and out: seconds and peak memory against duration, diffusers' whole for scale.

Memory is what lies beside input and output; ours should not grow with the duration. Each number is of one run.

uv run benchmarks/audio.py                                  # 2 CPU threads, a narrow VAE
uv run benchmarks/audio.py --device cuda --dtype bf16 --width 128 --peer-minutes 1
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from common import DTYPES, arguments, hardware, load_pack, markdown_table, peak_memory
from diffusers import AutoencoderOobleck
from torch import Tensor, nn

load_pack()

from acestep_pack.acestep_core.checkpoints.vae_keys import fold_weight_norm  # noqa: E402
from acestep_pack.acestep_core.constants import AUDIO_CHANNELS, SAMPLE_RATE, SAMPLES_PER_FRAME  # noqa: E402
from acestep_pack.acestep_core.models.vae import Vae, VaeConfig  # noqa: E402

MB = 1 << 20
MINUTE_FRAMES = 60 * SAMPLE_RATE // SAMPLES_PER_FRAME


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--width", type=int, default=8, help="128 is the released size")
    parser.add_argument("--minutes", type=int, nargs="*", default=[1, 2, 5, 10])
    parser.add_argument("--peer-minutes", type=int, nargs="*", default=[1], help="of these, diffusers runs too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    ours, theirs = build(options.width, DTYPES[options.dtype], options.device)

    print(f"{hardware(options.device)}; {options.dtype}, width {options.width}\n")
    print(f"Largest difference from diffusers: encoding {agreement(ours, theirs):.1e} of the maximum.\n")
    rows = []
    for minutes in options.minutes:
        latents = latents_of(ours, minutes * MINUTE_FRAMES)
        audio = 0.1 * torch.randn(1, AUDIO_CHANNELS, minutes * 60 * SAMPLE_RATE)  # on the CPU, as it lies in a graph
        whole = minutes in options.peer_minutes
        contenders = {
            "encode": (
                lambda x=audio, z=latents: ours.encode_tiled(x, device=z.device, dtype=z.dtype),
                (lambda x=audio, z=latents: theirs.encode(x.to(z)).latent_dist.mean) if whole else None,
            ),
            "decode": (
                lambda z=latents: ours.decode_tiled(z, out_device="cpu"),
                (lambda z=latents: theirs.decode(z).sample.cpu()) if whole else None,
            ),
        }
        for name, runs in contenders.items():
            measured = [cell for run in runs for cell in measure(run, options.device)]
            rows.append((f"{name} {minutes} min", *measured))
    print(markdown_table(("", "ours, s", "ours, MB", "diffusers whole, s", "diffusers whole, MB"), rows))


def build(width: int, dtype: torch.dtype, device: str) -> tuple[Vae, nn.Module]:
    """Return both VAEs with the same random weights; the latents are as wide as diffusers' encoder allows."""
    config = VaeConfig(width, width, latent_channels=width // 2)
    theirs = AutoencoderOobleck(
        encoder_hidden_size=width,
        decoder_channels=width,
        decoder_input_channels=config.latent_channels,
        downsampling_ratios=list(config.strides),
        channel_multiples=list(config.multiples),
    )
    generator = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = 0.5 + 0.1 * noise if name.endswith(("weight_g", "original0")) else 0.3 * noise
    ours = Vae(config)
    ours.load_state_dict(fold_weight_norm(theirs.state_dict()))
    return ours.to(device, dtype).eval(), theirs.to(device, dtype).eval()


def latents_of(model: Vae, n_frames: int) -> Tensor:
    noise = torch.randn(1, model.config.latent_channels, n_frames, generator=torch.Generator().manual_seed(n_frames))
    return noise.to(next(model.parameters()))


def agreement(ours: Vae, theirs: nn.Module) -> float:
    """Return by how much the encodings of five seconds differ. Warms both up, so that no table counts that."""
    latents = latents_of(ours, 125)
    audio = ours.decode(latents)
    theirs.decode(latents)
    mean, expected = ours.encode(audio).float(), theirs.encode(audio).latent_dist.mean.float()
    return ((mean - expected).abs().max() / expected.abs().max()).item()


def measure(run: Callable[[], Tensor] | None, device: str) -> tuple[str, str]:
    """Return the seconds and the peak MB of a run, its result left out; dashes for no run."""
    if run is None:
        return "–", "–"
    seen: dict[str, float] = {}

    def timed() -> None:
        start = time.perf_counter()
        made = run().cpu()
        seen["seconds"] = time.perf_counter() - start
        seen["result"] = made.numel() * made.element_size() if device == "cpu" else 0  # a graph's, not the device's

    peak = peak_memory(timed, device)
    return f"{seen['seconds']:.2f}", f"{(peak - seen['result']) / MB:.0f}"


if __name__ == "__main__":
    main()
