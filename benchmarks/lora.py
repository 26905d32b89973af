"""What an adapter costs: reading it, putting it on the weights, taking it off, and a denoising step before and after.

uv run benchmarks/lora.py                               # mid-size, 2 CPU threads, rank 64 on every projection
uv run benchmarks/lora.py --device cuda --dtype bf16 --size 2b

The peer is ComfyUI's own LoRA loader on the same MODEL and file. The weights of both are checked to agree.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import DTYPES, arguments, best_of, compare, hardware, load_comfyui, load_pack, markdown_table
from dit import LEVELS, SIZES, Inputs, _ours, make_inputs, randomize
from safetensors.torch import save_file
from torch import Tensor

load_pack()

from acestep_pack.acestep_core.models.acestep import AceStep, AceStepConfig  # noqa: E402
from acestep_pack.acestep_core.models.layers import Build  # noqa: E402

SAME = 1e-4  # of a weight's largest number, in float32
STEP_S = 30  # length of the step that the adapter is held against


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", choices=SIZES, default="mid")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    load_comfyui(options.device)
    print(f"{hardware(options.device)}; {options.dtype}; rank {options.rank}; best of {options.rounds}, in turns\n")
    config, dtype = SIZES[options.size], DTYPES[options.dtype]
    with tempfile.TemporaryDirectory() as folder:
        model = make_model(Path(folder), config, options.dtype)
        adapter = Path(folder) / "adapter.safetensors"
        save_file(rank_r(model.model.diffusion_model, options.rank), adapter)
        loaders = {"ours": lambda: with_ours(model, adapter), "ComfyUI": lambda: with_comfyui(model, adapter)}
        check_same(*(load() for load in loaders.values()))
        print(costs(loaders, options.rounds))
        print(
            f"\n{steps(model, loaders['ours'](), make_inputs(config, STEP_S, dtype, options.device), options.rounds)}"
        )


def costs(loaders: dict[str, Callable[[], Any]], rounds: int) -> str:
    """Return the table of milliseconds for reading, putting on and taking off, and for all of it."""
    read = compare(loaders, rounds)
    patchers = {name: load() for name, load in loaders.items()}
    times: dict[str, dict[str, float]] = {"put on the weights": {}, "take off": {}}
    both = compare({name: lambda p=p: (put_on(p), p.unpatch_model()) for name, p in patchers.items()}, rounds)
    for name, patcher in patchers.items():
        off = min(_time_off(patcher) for _ in range(rounds))
        times["put on the weights"][name], times["take off"][name] = both[name] - off, off
    rows = [("read and fit", read), *times.items()]
    whole = {name: sum(row[name] for _, row in rows) for name in loaders}
    rows.append(("all", whole))
    return markdown_table(
        ["", *(f"{name} ms" for name in loaders)],
        [[what, *(f"{1000 * row[name]:.1f}" for name in loaders)] for what, row in rows],
    )


def steps(bare: Any, patched: Any, inputs: Inputs, rounds: int) -> str:
    """Return the table of a step's milliseconds without the adapter and with it."""
    contender = _ours(bare.model.diffusion_model)
    times = {"without": float("inf"), "with": float("inf")}
    for _ in range(2):  # in turns, as far as one set of weights allows
        for name, patcher in {"without": bare, "with": patched}.items():
            put_on(patcher)
            prepared = contender.prepare(inputs)
            step = best_of(lambda p=prepared: contender.step(inputs, p, inputs.noise, LEVELS[1]), rounds)
            times[name] = min(times[name], step)
            patcher.unpatch_model()
    return markdown_table([f"a step of {STEP_S} s", *times], [["ms", *(f"{1000 * t:.1f}" for t in times.values())]])


def make_model(folder: Path, config: AceStepConfig, dtype: str) -> Any:
    """Return a MODEL of random weights."""
    from acestep_pack.nodes.host import model as models

    network = AceStep(config, Build(dtype=DTYPES[dtype]))
    randomize(network)
    (folder / "config.json").write_text(json.dumps({"is_turbo": True}))
    save_file(network.state_dict(), folder / "model.safetensors")
    torch.save(torch.randn(1, 64, 1_000), folder / "silence_latent.pt")
    return models.load_model(folder, "auto", dtype)


def rank_r(network: AceStep, rank: int) -> dict[str, Tensor]:
    """Return a LoRA on every projection of the decoder, under names that ComfyUI's loader knows too."""
    tensors = {}
    for name, weight in network.decoder.state_dict().items():
        if name.startswith("layers.") and name.endswith("_proj.weight"):
            key = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{key}.lora_up.weight"] = 0.01 * torch.randn(weight.shape[0], rank)
            tensors[f"{key}.lora_down.weight"] = 0.01 * torch.randn(rank, weight.shape[1])
            tensors[f"{key}.alpha"] = torch.tensor(2.0 * rank)
    return tensors


def with_ours(model: Any, path: Path) -> Any:
    """Return the MODEL with the adapter, as AceStepLoadLora makes it."""
    from acestep_pack.acestep_core.lora.files import read_adapter
    from acestep_pack.acestep_core.lora.fit import Strengths, fit
    from acestep_pack.nodes.host.lora_patch import patched, shapes_of

    return patched(model, fit(read_adapter(path), shapes_of(model)), Strengths())


def with_comfyui(model: Any, path: Path) -> Any:
    """Return the MODEL with the adapter, as LoraLoaderModelOnly makes it."""
    import comfy.sd
    import comfy.utils

    return comfy.sd.load_lora_for_models(model, None, comfy.utils.load_torch_file(str(path), safe_load=True), 1.0, 0)[0]


def put_on(patcher: Any) -> None:
    patcher.patch_model(device_to=patcher.load_device)


def check_same(ours: Any, theirs: Any) -> None:
    for key in ours.patches.keys() | theirs.patches.keys():
        one, other = (patcher.patch_weight_to_device(key, return_weight=True).float() for patcher in (ours, theirs))
        if not (one - other).abs().max() <= SAME * other.abs().max():
            raise AssertionError(f"{key} differs by {(one - other).abs().max():.1e}")


def _time_off(patcher: Any) -> float:
    put_on(patcher)
    return compare({"": patcher.unpatch_model}, rounds=1, warm_up=False)[""]


if __name__ == "__main__":
    main()
