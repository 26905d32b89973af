"""One denoising step, and a whole 8-step run, against ComfyUI's native model and diffusers.

uv run benchmarks/dit.py                               # mid-size, 2 CPU threads
uv run benchmarks/dit.py --device cuda --dtype bf16 --size 2b xl

All three share the DiT's weights and inputs, and are checked to agree. A step is what the implementation does
for one step in its own pipeline: ComfyUI's model encodes the condition inside every forward, diffusers and we
before the first. A run is that, eight times, plus what is done once.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass

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
from diffusers import AceStepTransformer1DModel
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from torch import Tensor, nn

load_pack()

from acestep_pack.acestep_core.constants import FRAME_RATE, REFERENCE_FRAMES  # noqa: E402
from acestep_pack.acestep_core.models.acestep import AceStep, AceStepConfig  # noqa: E402
from acestep_pack.acestep_core.models.conditioner import Tokens  # noqa: E402
from acestep_pack.acestep_core.models.layers import AttentionShape, Build, alternating  # noqa: E402
from acestep_pack.acestep_core.pipeline.condition import Encoding  # noqa: E402
from acestep_pack.acestep_core.pipeline.run import Branch, Run  # noqa: E402
from acestep_pack.acestep_core.pipeline.sample import SamplerSettings, sample  # noqa: E402
from acestep_pack.acestep_core.pipeline.schedule import schedule  # noqa: E402

MB = 1 << 20
N_TEXT, N_LYRIC = 49, 250  # with one timbre token: 300 condition tokens
LEVELS = schedule(8, 3.0)
SAME = 1e-4  # of the maximum, in float32
SIZES = {
    "mid": AceStepConfig(
        decoder=AttentionShape(512, 1536, 4, 2, 128),
        encoder=AttentionShape(512, 1536, 4, 2, 128),
        windowed_layers=alternating(8),
        text_width=512,
    ),
    "2b": AceStepConfig(
        decoder=AttentionShape(2048, 6144, 16, 8, 128),
        encoder=AttentionShape(2048, 6144, 16, 8, 128),
        windowed_layers=alternating(24),
    ),
    "xl": AceStepConfig(
        decoder=AttentionShape(2560, 9728, 32, 8, 128),
        encoder=AttentionShape(2048, 6144, 16, 8, 128),
        windowed_layers=alternating(32),
    ),
}


@dataclass
class Inputs:
    """What every implementation is given, batch 1."""

    noise: Tensor
    silence: Tensor
    text: Tensor
    lyric: Tensor


@dataclass
class Contender:
    """One implementation: `prepare` does what it does once, `step` one velocity [1, T, 64] after that."""

    prepare: Callable[[Inputs], object]
    step: Callable[[Inputs, object, Tensor, float], Tensor]

    def run(self, inputs: Inputs) -> Tensor:
        """Return the latents of eight Euler steps, everything included."""
        prepared = self.prepare(inputs)
        return sample(lambda x, at: self.step(inputs, prepared, x, at.t), inputs.noise, LEVELS, SamplerSettings())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["mid"])
    parser.add_argument("--seconds", type=int, nargs="*", default=[30, 60, 120, 240, 600])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--run-seconds", type=int, nargs="*", default=[30, 60, 120, 240], help="lengths of whole runs")
    parser.add_argument("--contenders", nargs="+", help="whom to run, of ours, diffusers and ComfyUI (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    load_comfyui(options.device)
    dtype = DTYPES[options.dtype]
    print(f"{hardware(options.device)}; {options.dtype}; best of {options.rounds}, in turns")
    for size in options.size:
        contenders = build(SIZES[size], dtype, options.device)
        contenders = {name: contenders[name] for name in options.contenders or contenders}
        if options.seconds:
            print(f"\n### {size}: one step\n\n{steps(contenders, size, options, dtype)}")
        if options.run_seconds:
            print(f"\n### {size}: a run of 8 steps, once, with peak memory\n\n{runs(contenders, size, options, dtype)}")


def steps(contenders: dict[str, Contender], size: str, options: argparse.Namespace, dtype: torch.dtype) -> str:
    """Return the table of one step's milliseconds and our ratios."""
    rows = []
    for duration_s in options.seconds:
        inputs = make_inputs(SIZES[size], duration_s, dtype, options.device)
        prepared = {name: contender.prepare(inputs) for name, contender in contenders.items()}
        calls = {
            name: lambda c=contender, p=prepared[name], i=inputs: c.step(i, p, i.noise, LEVELS[1])
            for name, contender in contenders.items()
        }
        ours = calls["ours"]()
        error = (ours - calls["diffusers"]()).abs().max() / ours.abs().max()
        if dtype == torch.float32 and not error < SAME:
            raise AssertionError(f"velocities differ by {error:.1e} of the maximum")
        rows.append([f"{duration_s} s", *_times(compare(calls, options.rounds))])
    return markdown_table(_header(contenders), rows)


def runs(contenders: dict[str, Contender], size: str, options: argparse.Namespace, dtype: torch.dtype) -> str:
    """Return the table of whole runs: milliseconds, ratios, and megabytes above weights and inputs."""
    rows = []
    for duration_s in options.run_seconds:
        inputs = make_inputs(SIZES[size], duration_s, dtype, options.device)
        seconds, memory = {}, []
        for name, contender in contenders.items():
            start = time.perf_counter()
            memory.append(peak_memory(lambda c=contender, i=inputs: c.run(i), options.device) / MB)
            seconds[name] = time.perf_counter() - start
        rows.append([f"{duration_s} s", *_times(seconds), *(f"{megabytes:.0f}" for megabytes in memory)])
    return markdown_table([*_header(contenders), *(f"{name} MB" for name in contenders)], rows)


def make_inputs(config: AceStepConfig, duration_s: int, dtype: torch.dtype, device: str) -> Inputs:
    """Return random inputs of a length."""
    generator = torch.Generator().manual_seed(duration_s)
    n_frames = duration_s * FRAME_RATE

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    return Inputs(
        noise=draw(1, n_frames, 64),
        silence=draw(1, max(n_frames, REFERENCE_FRAMES), 64),
        text=draw(1, N_TEXT, config.text_width),
        lyric=draw(1, N_LYRIC, config.text_width),
    )


def build(config: AceStepConfig, dtype: torch.dtype, device: str) -> dict[str, Contender]:
    """Return the three implementations around one set of random weights."""
    ours = AceStep(config, Build(dtype=dtype, device=device)).eval()
    randomize(ours)
    state = ours.state_dict()
    return {
        "ours": _ours(ours),
        "diffusers": _diffusers(config, state, dtype, device),
        "ComfyUI": _comfyui(config, state, dtype, device),
    }


def randomize(model: nn.Module) -> None:
    """Fill the parameters with numbers that keep activations in a normal range."""
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.1 if "norm" in name else fan_in**-0.5)


def _ours(model: AceStep) -> Contender:
    def prepare(inputs: Inputs) -> object:
        text, lyric = _whole(inputs.text), _whole(inputs.lyric)
        run = Run(model, inputs.silence)
        encoding = Encoding(text, text, lyric)
        run.expect(LEVELS[:-1])
        branches = [Branch(encoding, (0,))]
        run.velocity(inputs.noise, LEVELS[0], branches)  # computes what every step reuses
        return run, branches

    def step(inputs: Inputs, prepared, x: Tensor, t: float) -> Tensor:
        run, branches = prepared
        return run.velocity(x, t, branches)

    return Contender(prepare, step)


def _whole(states: Tensor) -> Tokens:
    return Tokens(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))


def _diffusers(config: AceStepConfig, state: dict[str, Tensor], dtype: torch.dtype, device: str) -> Contender:
    shape, inner = config.decoder, config.encoder
    transformer = AceStepTransformer1DModel(
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=len(config.windowed_layers),
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        encoder_hidden_size=inner.width,
    )
    encoder = AceStepConditionEncoder(
        hidden_size=inner.width,
        intermediate_size=inner.mlp_width,
        text_hidden_dim=config.text_width,
        num_attention_heads=inner.n_heads,
        num_key_value_heads=inner.n_kv_heads,
        head_dim=inner.head_dim,
    )
    _load(transformer, _diffusers_names(state, "decoder."))
    _load(encoder, _diffusers_names(state, "encoder."))
    transformer, encoder = (module.to(device, dtype).eval() for module in (transformer, encoder))

    def prepare(inputs: Inputs) -> object:
        masks = [torch.ones(s.shape[:2], dtype=torch.long, device=s.device) for s in (inputs.text, inputs.lyric)]
        owner = torch.zeros(1, dtype=torch.long, device=inputs.text.device)
        reference = inputs.silence[:, :REFERENCE_FRAMES]
        states, _ = encoder(inputs.text, masks[0], inputs.lyric, masks[1], reference, owner)
        source = inputs.silence[:, : inputs.noise.shape[1]]
        return states, torch.cat((source, torch.ones_like(source)), dim=-1)

    def step(inputs: Inputs, prepared, x: Tensor, t: float) -> Tensor:
        states, context = prepared
        level = torch.full((1,), t, device=x.device, dtype=x.dtype)
        return transformer(x, level, level, states, context, return_dict=False)[0]

    return Contender(prepare, step)


def _comfyui(config: AceStepConfig, state: dict[str, Tensor], dtype: torch.dtype, device: str) -> Contender:
    ops = importlib.import_module("comfy.ops").disable_weight_init
    native = importlib.import_module("comfy.ldm.ace.ace_step15").AceStepConditionGenerationModel
    shape, inner = config.decoder, config.encoder
    model = native(
        hidden_size=shape.width,
        text_hidden_dim=config.text_width,
        num_dit_layers=len(config.windowed_layers),
        num_heads=shape.n_heads,
        num_kv_heads=shape.n_kv_heads,
        intermediate_size=shape.mlp_width,
        fsq_dim=inner.width,
        encoder_hidden_size=inner.width,
        encoder_intermediate_size=inner.mlp_width,
        encoder_num_heads=inner.n_heads,
        dtype=dtype,
        device=device,
        operations=ops,
    )
    # Its tokenizer has sizes of its own, whatever the configuration: random numbers do for a stopwatch.
    randomize(model)
    fits = {key: tensor for key, tensor in state.items() if _shape(model, key) == tensor.shape}
    model.load_state_dict(fits, strict=False)
    model = model.to(device).eval()

    def step(inputs: Inputs, prepared: object, x: Tensor, t: float) -> Tensor:
        reference = inputs.silence[:, : x.shape[1]].transpose(1, 2)
        level = torch.full((1,), t, device=x.device)
        v = model(
            x.transpose(1, 2), level, inputs.text, lyric_embed=inputs.lyric, refer_audio=reference, is_covers=False
        )
        return v.transpose(1, 2)

    return Contender(lambda inputs: None, step)


def _diffusers_names(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    renames = {
        "proj_in.1.": "proj_in_conv.",
        "proj_out.1.": "proj_out_conv.",
        "q_norm.": "norm_q.",
        "k_norm.": "norm_k.",
    }
    renames |= {f"{letter}_proj.": f"to_{letter}." for letter in "qkv"} | {"o_proj.": "to_out.0."}
    renamed = {}
    for key, tensor in state.items():
        if key.startswith(part):
            name = key.removeprefix(part)
            for ours, theirs in renames.items():
                name = name.replace(ours, theirs)
            renamed[name] = tensor
    return renamed


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    unexpected = model.load_state_dict(state, strict=False).unexpected_keys
    assert not unexpected, unexpected


def _shape(model: nn.Module, key: str) -> torch.Size | None:
    parameters = dict(model.named_parameters())
    return parameters[key].shape if key in parameters else None


def _times(seconds: dict[str, float]) -> list[str]:
    """Return the cells of a row: everyone's milliseconds, then how many times faster we are than each peer."""
    ours = seconds["ours"]
    ratios = [f"{peer / ours:.2f}x" for name, peer in seconds.items() if name != "ours"]
    return [f"{1000 * s:.1f}" for s in seconds.values()] + ratios


def _header(contenders: dict[str, Contender]) -> list[str]:
    return ["duration", *(f"{name} ms" for name in contenders), *(f"vs {n}" for n in contenders if n != "ours")]


if __name__ == "__main__":
    main()
