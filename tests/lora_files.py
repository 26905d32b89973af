"""One small adapter in the file format of every trainer, and the weights it must lead to by the plain formulas.

All formats of one method hold the same numbers, so that they must lead to the same weights up to the scale that a
format can say. Nothing here uses the pack's own adapter code.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from golden_models import z

RANK, ALPHA = 4, 8.0
LAYERS = (0, 5)
ATTENTION = [f"{which}_attn.{one}_proj" for which in ("self", "cross") for one in "qkvo"]
MLP = [f"mlp.{one}_proj" for one in ("gate", "up", "down")]
DIFFUSERS = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out.0"}
PEFT = "base_model.model."

Weights = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Made:
    """A written adapter: where it is, and each weight it changes as it must be afterwards, by official name."""

    path: Path
    weights: Weights


def modules() -> list[str]:
    """Return the modules that change, below the decoder."""
    return [f"layers.{layer}.{module}" for layer in LAYERS for module in (*ATTENTION, *MLP)]


def name_of(module: str) -> str:
    return f"decoder.{module}.weight"


def low_rank(module: str, weight: Tensor, rank: int = RANK, size: float = 0.15) -> tuple[Tensor, Tensor]:
    """Return up [out, r] and down [r, in], of which the product is about as large as the weights."""
    up = size * z(f"{module}.up", weight.shape[0], rank)
    return up, size * z(f"{module}.down", rank, weight[0].numel())


# LoRA.


def peft_lora(base: Weights, scale: float = ALPHA / RANK) -> Iterator[tuple[str, Tensor, Tensor, Tensor]]:
    """Yield module, up, down and the weight as it must be, for every module."""
    for module in modules():
        weight = base[name_of(module)].float()
        up, down = low_rank(module, weight)
        yield module, up, down, weight + (scale * up.double() @ down.double()).float()


def write_config(folder: Path, **said: object) -> None:
    targets = sorted({module.rpartition(".")[2] for module in modules()})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": targets, **said}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")


def _lora(
    key: Callable[[str], tuple[str, str]],
    file: str,
    scale: float = ALPHA / RANK,
    alpha_key: Callable[[str], str] | None = None,
    config: dict | None = None,
    metadata: dict | None = None,
) -> Callable[[Path, Weights], Made]:
    """Return a writer of a format: key gives the names of down and up, alpha_key that of alpha where it is stored."""

    def write(folder: Path, base: Weights) -> Made:
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors, weights = {}, {}
        for module, up, down, weight in peft_lora(base, scale):
            down_key, up_key = key(module)
            tensors |= {down_key: down, up_key: up}
            weights[name_of(module)] = weight
            if alpha_key is not None:
                tensors[alpha_key(module)] = torch.tensor(ALPHA)
        _save(tensors, path, metadata)
        if config is not None:
            write_config(path.parent, **config)
        return Made(path.parent if config is not None else path, weights)

    return write


def _save(tensors: Weights, path: Path, metadata: dict | None = None) -> None:
    if path.suffix == ".safetensors":
        save_file(tensors, path, metadata=metadata)
    else:
        torch.save(tensors, path)


def _peft(prefix: str = PEFT, name: str = "") -> Callable[[str], tuple[str, str]]:
    return lambda module: (f"{prefix}{module}.lora_A{name}.weight", f"{prefix}{module}.lora_B{name}.weight")


def _kohya(naming: Callable[[str], str]) -> Callable[[str], tuple[str, str]]:
    return lambda module: (f"{naming(module)}.lora_down.weight", f"{naming(module)}.lora_up.weight")


def _flat(root: str) -> Callable[[str], str]:
    return lambda module: root + module.replace(".", "_")


def _dotted(root: str) -> Callable[[str], str]:
    return lambda module: root + module


def _diffusers(module: str) -> str:
    parent, _, last = module.rpartition(".")
    return f"transformer.{parent}.{DIFFUSERS.get(last, last)}"


def _with_alpha(naming: Callable[[str], str], file: str) -> Callable[[Path, Weights], Made]:
    return _lora(_kohya(naming), file, alpha_key=lambda module: f"{naming(module)}.alpha")


def _diffusers_keys(module: str) -> tuple[str, str]:
    return f"{_diffusers(module)}.lora_A.weight", f"{_diffusers(module)}.lora_B.weight"


_DIFFUSERS_SAID = {"transformer.r": RANK, "transformer.lora_alpha": ALPHA, "transformer.peft_type": "LORA"}
ADAPTER = "run/adapter_model.safetensors"


# Other methods.


def _rank_pattern(folder: Path, base: Weights) -> Made:
    """A PEFT folder of which some modules have a rank and an alpha of their own."""
    (folder / "patterns").mkdir()
    tensors, weights = {}, {}
    for module in modules():
        weight = base[name_of(module)].float()
        rank = 2 if module.endswith("self_attn.q_proj") else RANK
        alpha = 6.0 if module.endswith("v_proj") else ALPHA
        up, down = low_rank(module, weight, rank)
        tensors |= {f"{PEFT}{module}.lora_A.weight": down, f"{PEFT}{module}.lora_B.weight": up}
        weights[name_of(module)] = weight + alpha / rank * (up @ down)
    save_file(tensors, folder / "patterns" / "adapter_model.safetensors")
    write_config(folder / "patterns", rank_pattern={"self_attn.q_proj": 2}, alpha_pattern={r".*\.v_proj": 6.0})
    return Made(folder / "patterns", weights)


def decomposed(weight: Tensor, summed: Tensor, magnitude: Tensor, dim: int) -> Tensor:
    """Return the rows (dim 1) or columns (dim 0) of a sum at the lengths of DoRA."""
    summed = summed.double()
    return (magnitude.double() * summed / summed.norm(dim=dim, keepdim=True)).to(weight.dtype)


def _dora(folder: Path, base: Weights) -> Made:
    path = folder / "dora" / "adapter_model.safetensors"
    path.parent.mkdir()
    tensors, weights = {}, {}
    for module, up, down, summed in peft_lora(base):
        weight = base[name_of(module)].float()
        magnitude = weight.norm(dim=1) * (1 + 0.2 * z(f"{module}.magnitude", weight.shape[0]))
        tensors |= {f"{PEFT}{module}.lora_A.weight": down, f"{PEFT}{module}.lora_B.weight": up}
        tensors[f"{PEFT}{module}.lora_magnitude_vector"] = magnitude
        weights[name_of(module)] = decomposed(weight, summed, magnitude[:, None], 1)
    save_file(tensors, path)
    write_config(path.parent, use_dora=True)
    return Made(path.parent, weights)


def kronecker(module: str, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return outer [4, 4], and the factors a [out/4, r], b [r, in/4] of inner."""
    rows, columns = weight.shape[0] // 4, weight.shape[1] // 4
    outer = 0.5 * z(f"{module}.outer", 4, 4)
    return outer, 0.2 * z(f"{module}.a", rows, RANK), 0.2 * z(f"{module}.b", RANK, columns)


def _lokr(whole: bool = False, axis: int | None = None, metadata: dict | None = None, scale: float = ALPHA / RANK):
    def write(folder: Path, base: Weights) -> Made:
        path = folder / f"lokr{whole}{axis}{bool(metadata)}.safetensors"
        tensors, weights = {}, {}
        for module in modules():
            weight = base[name_of(module)].float()
            outer, a, b = kronecker(module, weight)
            key = f"lycoris_{module.replace('.', '_')}"
            inner = {"lokr_w2": a @ b} if whole else {"lokr_w2_a": a, "lokr_w2_b": b}
            parts = {"lokr_w1": outer, **inner, "alpha": torch.tensor(ALPHA)}
            merged = weight + scale * torch.kron(outer, a @ b)
            if axis is not None:
                lengths = weight.norm(dim=axis, keepdim=True)
                parts["dora_scale"] = lengths * (1 + 0.2 * z(f"{module}.m{axis}", *lengths.shape))
                merged = decomposed(weight, merged, parts["dora_scale"], axis)
            tensors |= {f"{key}.{part}": tensor for part, tensor in parts.items()}
            weights[name_of(module)] = merged
        save_file(tensors, path, metadata=metadata)
        return Made(path, weights)

    return write


def _loha(folder: Path, base: Weights) -> Made:
    tensors, weights = {}, {}
    for module in modules():
        weight = base[name_of(module)].float()
        key = f"lycoris_{module.replace('.', '_')}"
        (up_1, down_1), (up_2, down_2) = (low_rank(f"{module}.{one}", weight, size=0.3) for one in (1, 2))
        parts = {"hada_w1_a": up_1, "hada_w1_b": down_1, "hada_w2_a": up_2, "hada_w2_b": down_2}
        tensors |= {f"{key}.{part}": tensor for part, tensor in parts.items()} | {f"{key}.alpha": torch.tensor(ALPHA)}
        weights[name_of(module)] = weight + ALPHA / RANK * (up_1 @ down_1) * (up_2 @ down_2)
    save_file(tensors, folder / "loha.safetensors")
    return Made(folder / "loha.safetensors", weights)


def _comfyui_trainer(folder: Path, base: Weights) -> Made:
    """LoRA with alpha 1 on decoder and encoder, and whole differences of norms and of a bias."""
    names = [name_of(module) for module in modules()] + ["encoder.text_projector.weight"]
    tensors, weights = {}, {}
    for name in names:
        key, weight = f"diffusion_model.{name.removesuffix('.weight')}", base[name].float()
        up, down = low_rank(name, weight)
        tensors |= {f"{key}.lora_up.weight": up, f"{key}.lora_down.weight": down, f"{key}.alpha": torch.tensor(1.0)}
        weights[name] = weight + up @ down / RANK
    for name, role in (
        ("decoder.layers.0.self_attn.q_norm.weight", "diff"),
        ("decoder.condition_embedder.bias", "diff_b"),
    ):
        difference = 0.2 * z(f"{name}.diff", *base[name].shape)
        tensors[f"diffusion_model.{name.removesuffix('.weight').removesuffix('.bias')}.{role}"] = difference
        weights[name] = base[name].float() + difference
    save_file(tensors, folder / "trained.safetensors")
    return Made(folder / "trained.safetensors", weights)


def _fused(folder: Path, base: Weights) -> Made:
    """LoRA with query, key and value of self-attention in one, key and value of cross-attention in one."""
    tensors, weights = {}, {}
    for layer in LAYERS:
        for which, fused, parts in (("self_attn", "to_qkv", "qkv"), ("cross_attn", "kv", "kv")):
            module = f"layers.{layer}.{which}"
            names = [name_of(f"{module}.{part}_proj") for part in parts]
            whole = torch.cat([base[name].float() for name in names])
            up, down = low_rank(f"{module}.fused", whole)
            tensors |= {f"{module}.{fused}.lora_up.weight": up, f"{module}.{fused}.lora_down.weight": down}
            tensors[f"{module}.{fused}.alpha"] = torch.tensor(ALPHA)
            sizes = [base[name].shape[0] for name in names]
            weights |= dict(zip(names, (whole + ALPHA / RANK * up @ down).split(sizes), strict=True))
    save_file(tensors, folder / "fused.safetensors")
    return Made(folder / "fused.safetensors", weights)


_SQRT = ALPHA / math.sqrt(RANK)
_LINEAR_DIM = {"lokr_config": json.dumps({"linear_dim": RANK})}
# What the file is, the format it must be taken for, and its writer: the rows of the table in docs/lora.md.
FORMATS: dict[str, tuple[str, Callable[[Path, Weights], Made]]] = {
    "PEFT folder": ("PEFT LoRA", _lora(_peft(), ADAPTER, config={})),
    "PEFT folder, .bin": ("PEFT LoRA", _lora(_peft(), "bin/adapter_model.bin", config={})),
    "PEFT folder, rsLoRA": (
        "PEFT LoRA",
        _lora(_peft(), "rs/adapter_model.safetensors", _SQRT, config={"use_rslora": True}),
    ),
    "PEFT folder, rank and alpha patterns": ("PEFT LoRA", _rank_pattern),
    "PEFT folder, DoRA": ("PEFT DoRA", _dora),
    "PEFT, adapter name in the keys": (
        "PEFT LoRA",
        _lora(_peft(name=".voice"), "named/adapter_model.safetensors", config={}),
    ),
    "PEFT, raw dump (.pt)": ("PEFT LoRA", _lora(_peft("decoder." + PEFT, ".default"), "lora_weights.pt", 1.0)),
    "PEFT, wrapped twice": ("PEFT LoRA, wrapped twice", _lora(_peft(PEFT + PEFT), "twice.safetensors", 1.0)),
    "ComfyUI, PEFT names": ("ComfyUI LoRA", _with_alpha(_dotted(PEFT), "native.safetensors")),
    "ComfyUI, full names": ("ComfyUI LoRA", _with_alpha(_dotted("diffusion_model.decoder."), "generic.safetensors")),
    "ComfyUI, short names": ("ComfyUI LoRA", _with_alpha(_dotted("diffusion_model."), "short.safetensors")),
    "ComfyUI trainer": ("ComfyUI LoRA", _comfyui_trainer),
    "bare names": ("LoRA", _with_alpha(_dotted(""), "bare.safetensors")),
    "kohya, full names": ("kohya LoRA", _with_alpha(_flat("lora_unet_decoder_"), "kohya.safetensors")),
    "kohya, short names": ("kohya LoRA", _with_alpha(_flat("lora_unet_"), "kohya_short.safetensors")),
    "OneTrainer": ("OneTrainer LoRA", _with_alpha(_flat("lora_transformer_"), "onetrainer.safetensors")),
    "LyCORIS LoRA": ("LyCORIS LoRA", _with_alpha(_flat("lycoris_"), "lycoris.safetensors")),
    "diffusers": ("diffusers LoRA", _lora(_diffusers_keys, "pytorch_lora_weights.safetensors", 1.0)),
    "diffusers with metadata": (
        "diffusers LoRA",
        _lora(_diffusers_keys, "said.safetensors", metadata={"lora_adapter_metadata": json.dumps(_DIFFUSERS_SAID)}),
    ),
    "DiffSynth": ("DiffSynth LoRA", _lora(_peft("", ".default"), "epoch-3.safetensors", 1.0)),
    "LyCORIS LoKr": ("LyCORIS LoKr", _lokr()),
    "LyCORIS LoKr, whole factors": ("LyCORIS LoKr", _lokr(whole=True, scale=1.0)),
    "LyCORIS LoKr, whole factors with metadata": ("LyCORIS LoKr", _lokr(whole=True, metadata=_LINEAR_DIM)),
    "LyCORIS DoKr": ("LyCORIS DoKr", _lokr(axis=1)),
    "LyCORIS DoKr, input axis": ("LyCORIS DoKr", _lokr(axis=0)),
    "LyCORIS LoHa": ("LyCORIS LoHa", _loha),
    "fused projections": ("LoRA", _fused),
}


def write(folder: Path, row: str, base: Weights) -> Made:
    """Write the adapter of a row of FORMATS for a model's weights."""
    return FORMATS[row][1](folder, base)
