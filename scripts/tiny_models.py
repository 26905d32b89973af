"""Writes small random models in every file layout that people have, for tests and the demo.

Same names, same layouts, same vocabularies as the real ones; widths of 8 to 96 and a handful of layers. A model
has the same numbers in each of its layouts, every time: a tensor's seed is its name. Weights are scaled so that
activations stay near 1 and decoded latents are audible. They make noise, not music.

    uv run scripts/tiny_models.py ~/ComfyUI/models
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from pack import load_pack

layers = load_pack("acestep_core.models.layers")
acestep = load_pack("acestep_core.models.acestep")
files = load_pack("acestep_core.checkpoints.read")
qwen3 = load_pack("acestep_core.models.qwen3")
vae_models = load_pack("acestep_core.models.vae")

State = dict[str, Tensor]

# Two layers and 32 channels: the vocabulary is real, and its table must stay small.
N_TEXT_ENCODER_TOKENS = 151_669
N_PLANNER_TOKENS = 217_204
TEXT_SHAPE = layers.AttentionShape(width=32, mlp_width=96, n_heads=16, n_kv_heads=8, head_dim=16, window=None)
TEXT_ENCODER = qwen3.Qwen3Config(TEXT_SHAPE, n_layers=2, n_tokens=N_TEXT_ENCODER_TOKENS)
PLANNER = qwen3.Qwen3Config(TEXT_SHAPE, n_layers=2, n_tokens=N_PLANNER_TOKENS)

SMALL_SHAPE = layers.AttentionShape(width=64, mlp_width=192, n_heads=16, n_kv_heads=8, head_dim=16)
LARGE_SHAPE = layers.AttentionShape(width=96, mlp_width=256, n_heads=32, n_kv_heads=8, head_dim=16)
DIT_2B = acestep.AceStepConfig(
    decoder=SMALL_SHAPE,
    encoder=SMALL_SHAPE,
    windowed_layers=layers.alternating(8),
    text_width=TEXT_SHAPE.width,
    n_lyric_layers=4,
    n_timbre_layers=4,
    n_pooler_layers=2,
)
DIT_XL = acestep.AceStepConfig(
    decoder=LARGE_SHAPE,
    encoder=SMALL_SHAPE,
    windowed_layers=layers.alternating(8),
    text_width=TEXT_SHAPE.width,
    n_lyric_layers=4,
    n_timbre_layers=4,
    n_pooler_layers=2,
)
DITS = {"turbo": DIT_2B, "base": DIT_2B, "xl-turbo": DIT_XL}
VAE = vae_models.VaeConfig(encoder_width=8, decoder_width=8)

# Heads that follow the lyrics: the released ones, which these smaller decoders have, too. XL's config.json says them,
# 2B's are built into the official code, and no 2B folder says them.
ALIGNMENT = {"2": [6], "3": [10, 11], "4": [3], "5": [8, 9], "6": [8]}
XL_ALIGNMENT = {"3": [18, 27], "4": [22], "5": [5, 6, 7], "6": [2, 12, 13], "7": [20, 21]}
N_SILENCE_FRAMES = 256
N_RELEASED_SILENCE_FRAMES = 15_000  # diffusers loads no other number

METADATA = {"format": "pt"}
# Fifteen residual units in a row each add to their input; at this gain the level stays near 1.
RESIDUAL_GAIN = 0.5
LOUDNESS = 0.1  # of decoded latents, as a part of full scale
PIPELINE_CLASSES = {
    "transformer": "AceStepTransformer1DModel",
    "condition_encoder": "AceStepConditionEncoder",
    "audio_tokenizer": "AceStepAudioTokenizer",
    "audio_token_detokenizer": "AceStepAudioTokenDetokenizer",
}
PIPELINE_PARTS = dict(zip(("decoder", "encoder", "tokenizer", "detokenizer"), PIPELINE_CLASSES, strict=True))
DIFFUSERS_NAMES = {
    ".q_proj.": ".to_q.",
    ".k_proj.": ".to_k.",
    ".v_proj.": ".to_v.",
    ".o_proj.": ".to_out.0.",
    ".q_norm.": ".norm_q.",
    ".k_norm.": ".norm_k.",
    ".proj_in.1.": ".proj_in_conv.",
    ".proj_out.1.": ".proj_out_conv.",
}
# Positions in stable-audio-tools' blocks and residual units.
ENCODER_BLOCK = {"res_unit1": 0, "res_unit2": 1, "res_unit3": 2, "snake1": 3, "conv1": 4}
DECODER_BLOCK = {"snake1": 0, "conv_t1": 1, "res_unit1": 2, "res_unit2": 3, "res_unit3": 4}
UNIT = {"snake1": 0, "conv1": 1, "snake2": 2, "conv2": 3}
OUTSIDE_BLOCKS = {"conv1": 0, "snake1": 6, "conv2": 7}


def write_comfyui_folders(models_dir: Path, tokenizer: Path | None = None) -> None:
    """Fill a ComfyUI models folder with every model in every layout and two LoRAs, 144 MB in all.

    tokenizer: a folder whose files go beside the text encoders; without it a host uses its own.
    """
    dits, encoders = models_dir / "diffusion_models", models_dir / "text_encoders"
    write_dit_comfy(dits / "acestep_v1.5_turbo.safetensors", "turbo")
    write_dit_comfy(dits / "acestep_v1.5_base.safetensors", "base")
    write_dit_comfy(dits / "acestep_v1.5_xl_turbo_bf16.safetensors", "xl-turbo")
    write_dit_official(dits / "acestep-v15-turbo", "turbo")
    write_dit_official(dits / "acestep-v15-base", "base")
    write_dit_official(dits / "acestep-v15-xl-turbo", "xl-turbo")
    write_pipeline(dits / "acestep-v15-turbo-diffusers", "turbo", tokenizer)
    write_text_encoder_comfy(encoders / "qwen_0.6b_ace15.safetensors")
    write_text_encoder_official(encoders / "Qwen3-Embedding-0.6B", tokenizer)
    write_planner_comfy(encoders / "qwen_1.7b_ace15.safetensors")
    write_planner_official(encoders / "acestep-5Hz-lm-0.6B", tokenizer)
    write_vae_comfy(models_dir / "vae" / "ace_1.5_vae.safetensors")
    write_vae_official(models_dir / "vae" / "acestep-v15-vae")
    write_all_in_one(models_dir / "checkpoints" / "ace_step_1.5_turbo_aio.safetensors", "turbo")
    for name in ("voice", "style"):
        write_lora(models_dir / "loras" / f"{name}.safetensors", "turbo", name)


# What the models hold, under the official names.


@functools.cache
def dit(variant: str) -> State:
    """Return the weights of a key of DITS, bfloat16."""
    return _random(f"dit.{variant}", acestep.AceStep, DITS[variant], _transformer_scale)


@functools.cache
def text_encoder() -> State:
    """Return the text encoder's weights, bfloat16."""
    return _random("text_encoder", qwen3.Qwen3, TEXT_ENCODER, _transformer_scale)


@functools.cache
def planner() -> State:
    """Return the planner's weights, bfloat16; its head is its embedding table."""
    return _random("planner", qwen3.Qwen3, PLANNER, _transformer_scale)


@functools.cache
def vae() -> State:
    """Return the VAE's weights under diffusers names, bfloat16, convolutions as weight norm has them."""
    state = {}
    for name, tensor in _random("vae", vae_models.Vae, VAE, _vae_scale).items():
        if name.endswith(".weight"):
            state[f"{name}_g"] = tensor.float().flatten(1).norm(dim=1).view(-1, 1, 1).bfloat16()
            state[f"{name}_v"] = 2 * tensor  # direction only: its length must not matter
        else:
            state[name] = tensor
    return state


def silence() -> Tensor:
    """Return the silence latent [1, 64, n], float32."""
    return _normal("silence", (1, 64, N_SILENCE_FRAMES))


# DiT.


def write_dit_official(folder: Path, variant: str) -> None:
    """Write an official folder: XL in four float32 shards, 2B in one bfloat16 file."""
    _write_json(folder / "config.json", official_config(variant))
    if DITS[variant] is DIT_XL:
        _write_shards(folder, "model", {name: tensor.float() for name, tensor in dit(variant).items()})
    else:
        _write(folder / "model.safetensors", dit(variant))
    torch.save(silence(), folder / "silence_latent.pt")


def write_dit_comfy(file: Path, variant: str) -> None:
    """Write one of ComfyUI's split files. Nobody knows the heads of its size, so its metadata must say them."""
    said = {} if DITS[variant] is DIT_XL else {"lyric_alignment_layers_config": ALIGNMENT}
    _write(file, dit(variant), {"config": json.dumps(said)} if said else {})


def write_lora(file: Path, variant: str, salt: str, rank: int = 4) -> None:
    """Write a LoRA that is heard, on queries and values of every attention, in the naming of the official trainer."""
    state: State = {}
    for name, weight in dit(variant).items():
        if name.startswith("decoder.layers.") and name.endswith(("q_proj.weight", "v_proj.weight")):
            stem = "base_model.model." + name.removeprefix("decoder.").removesuffix(".weight")
            n_out, n_in = weight.shape
            state[f"{stem}.lora_A.weight"] = 0.3 * _normal(f"{salt}.{name}.A", (rank, n_in))
            state[f"{stem}.lora_B.weight"] = 0.3 * _normal(f"{salt}.{name}.B", (n_out, rank))
    _write(file, state)


def write_all_in_one(file: Path, variant: str) -> None:
    """Write ComfyUI's checkpoint of everything."""
    _write(
        file,
        _prefixed("model.diffusion_model.", dit(variant))
        | _prefixed("text_encoders.qwen3_06b.transformer.model.", text_encoder())
        | _prefixed("text_encoders.qwen3_2b.transformer.model.", planner())
        | _prefixed("vae.", stable_audio_names(vae())),
    )


def write_pipeline(folder: Path, variant: str, tokenizer: Path | None = None, n_shards: int = 1) -> None:
    """Write a diffusers pipeline, the transformer in n_shards."""
    parts: dict[str, State] = {part: {} for part in PIPELINE_CLASSES}
    for name, tensor in dit(variant).items():
        part, key = _diffusers_key(name)
        parts[part][key] = tensor
    times = -(-N_RELEASED_SILENCE_FRAMES // N_SILENCE_FRAMES)
    long_silence = silence().transpose(1, 2).repeat(1, times, 1)[:, :N_RELEASED_SILENCE_FRAMES]
    parts["condition_encoder"]["silence_latent"] = long_silence.contiguous()
    for part, state in parts.items():
        _write_json(folder / part / "config.json", _pipeline_config(part, variant))
        if part == "transformer" and n_shards > 1:
            _write_shards(folder / part, "diffusion_pytorch_model", state, n_shards)
        else:
            _write(folder / part / "diffusion_pytorch_model.safetensors", state)
    write_text_encoder_official(folder / "text_encoder")
    _copy_tokenizer(tokenizer, folder / "tokenizer")
    write_vae_official(folder / "vae")
    _write_json(folder / "model_index.json", {"_class_name": "AceStepPipeline"})


def official_config(variant: str) -> dict[str, Any]:
    """Return the config.json of an official folder."""
    config = DITS[variant]
    said = {
        "architectures": ["AceStepConditionGenerationModel"],
        "model_type": "acestep",
        "is_turbo": "turbo" in variant,
        "model_version": variant.removeprefix("xl-"),
        **_layer_sizes(config.decoder),
        **_depths(config),
        "num_hidden_layers": len(config.windowed_layers),
        "layer_types": ["sliding_attention" if flag else "full_attention" for flag in config.windowed_layers],
        "use_sliding_window": True,
        "fsq_dim": config.encoder.width,
        "in_channels": 192,
        "patch_size": 2,
        "audio_acoustic_hidden_dim": 64,
        "timbre_hidden_dim": 64,
        "timbre_fix_frame": 750,
    }
    if config is DIT_XL:
        sizes = _layer_sizes(config.encoder)
        said |= {f"encoder_{key}": sizes[key] for key in sizes if key.startswith(("hidden", "inter", "num"))}
        said["lyric_alignment_layers_config"] = XL_ALIGNMENT
    return said


# Text encoder and planner.


def write_text_encoder_official(folder: Path, tokenizer: Path | None = None) -> None:
    """Write the official folder, which is Qwen's own: names without prefix."""
    _write_qwen3(folder, text_encoder(), TEXT_ENCODER, "Qwen3Model", tokenizer)


def write_text_encoder_comfy(file: Path) -> None:
    """Write ComfyUI's split file."""
    _write(file, _prefixed("model.", text_encoder()))


def write_planner_official(folder: Path, tokenizer: Path | None = None) -> None:
    """Write an official 5 Hz LM folder."""
    _write_qwen3(folder, _prefixed("model.", planner()), PLANNER, "Qwen3ForCausalLM", tokenizer)


def write_planner_comfy(file: Path) -> None:
    """Write ComfyUI's split file."""
    _write(file, _prefixed("model.", planner()))


# VAE.


def write_vae_official(folder: Path) -> None:
    """Write the official folder, which is diffusers' own."""
    config = {
        "_class_name": "AutoencoderOobleck",
        "encoder_hidden_size": VAE.encoder_width,
        "downsampling_ratios": VAE.strides,
        "channel_multiples": VAE.multiples,
        "decoder_channels": VAE.decoder_width,
        "decoder_input_channels": VAE.latent_channels,
        "audio_channels": VAE.audio_channels,
        "sampling_rate": 48_000,
    }
    _write_json(folder / "config.json", config)
    _write(folder / "diffusion_pytorch_model.safetensors", vae())


def write_vae_comfy(file: Path, parametrized: bool = False) -> None:
    """Write ComfyUI's file; parametrized: with the names of torch's newer weight norm."""
    state = stable_audio_names(vae())
    if parametrized:
        ends = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
        state = {re.sub(r"weight_[gv]$", lambda m: ends[m[0]], name): tensor for name, tensor in state.items()}
    _write(file, state)


def stable_audio_names(state: Mapping[str, Tensor]) -> State:
    """Return VAE weights under stable-audio-tools' names, which are positions; alpha and beta lose two axes."""
    return {
        _stable_audio_key(name): tensor.flatten() if name.endswith((".alpha", ".beta")) else tensor
        for name, tensor in state.items()
    }


def _stable_audio_key(name: str) -> str:
    side, *path, leaf = name.split(".")
    if path[0] != "block":
        return f"{side}.layers.{OUTSIDE_BLOCKS[path[0]]}.{leaf}"
    positions = [int(path[1]) + 1, (ENCODER_BLOCK if side == "encoder" else DECODER_BLOCK)[path[2]]]
    positions += [UNIT[part] for part in path[3:]]
    return f"{side}." + "".join(f"layers.{position}." for position in positions) + leaf


# Numbers.


def _random(salt: str, model: Callable[..., Any], config: Any, scale: Callable[[str, torch.Size], float]) -> State:
    """Return bfloat16 weights of every tensor of a model: norms near 1, all else around 0."""
    expected = model(config, files.SHAPES_ONLY).state_dict()
    state = {}
    for name, like in expected.items():
        mean = 1.0 if "norm" in name.split(".")[-2:][0] else 0.0
        state[name] = (mean + scale(name, like.shape) * _normal(f"{salt}.{name}", like.shape)).bfloat16()
    return state


def _transformer_scale(name: str, shape: torch.Size) -> float:
    module, _, leaf = name.rpartition(".")
    if "norm" in module.rpartition(".")[2] or leaf == "scale_shift_table":
        return 0.1
    if leaf == "bias":
        return 0.02
    if leaf in ("special_token", "special_tokens", "null_condition_emb") or name == "embed_tokens.weight":
        return 1.0
    return 1 / math.sqrt(math.prod(shape[1:]))


def _vae_scale(name: str, shape: torch.Size) -> float:
    if name.endswith((".alpha", ".beta")):
        return 0.1
    if name.endswith(".bias"):
        return 0.02
    if ".conv_t1." in name:  # [in, out, kernel]; a sample is reached by kernel / stride = 2 taps
        return 1 / math.sqrt(2 * shape[0])
    gain = RESIDUAL_GAIN if ".res_unit" in name else LOUDNESS if name.startswith("decoder.conv2") else 1.0
    return gain / math.sqrt(math.prod(shape[1:]))


def _normal(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


# Files.


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def _diffusers_key(name: str) -> tuple[str, str]:
    """Return the pipeline's folder and its name for one of the official names."""
    if name == "null_condition_emb":
        return "condition_encoder", name
    for ours, theirs in DIFFUSERS_NAMES.items():
        name = name.replace(ours, theirs)
    root, _, key = name.partition(".")
    return PIPELINE_PARTS[root], key


def _pipeline_config(part: str, variant: str) -> dict[str, Any]:
    config, official = DITS[variant], official_config(variant)
    said: dict[str, Any] = {"_class_name": PIPELINE_CLASSES[part]}
    if part == "transformer":
        keys = ("num_hidden_layers", "layer_types", "is_turbo", "model_version")
        said |= _layer_sizes(config.decoder) | {key: official[key] for key in keys}
        return said | {"encoder_hidden_size": config.encoder.width}
    said |= _layer_sizes(config.encoder)
    wanted = ("text", "num_lyric", "num_timbre") if part == "condition_encoder" else ("num_attention_pooler",)
    said |= {key: depth for key, depth in _depths(config).items() if key.startswith(wanted)}
    return said | ({"fsq_dim": config.encoder.width} if part == "audio_tokenizer" else {})


def _layer_sizes(shape: Any) -> dict[str, Any]:
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "sliding_window": shape.window,
    }


def _depths(config: Any) -> dict[str, int]:
    return {
        "text_hidden_dim": config.text_width,
        "num_lyric_encoder_hidden_layers": config.n_lyric_layers,
        "num_timbre_encoder_hidden_layers": config.n_timbre_layers,
        "num_attention_pooler_hidden_layers": config.n_pooler_layers,
    }


def _write_qwen3(folder: Path, state: State, config: Any, architecture: str, tokenizer: Path | None) -> None:
    said = _layer_sizes(config.shape) | {
        "architectures": [architecture],
        "model_type": "qwen3",
        "num_hidden_layers": config.n_layers,
        "vocab_size": config.n_tokens,
        "tie_word_embeddings": True,
    }
    _write_json(folder / "config.json", said)
    _write(folder / "model.safetensors", state)
    _copy_tokenizer(tokenizer, folder)


def _copy_tokenizer(source: Path | None, folder: Path) -> None:
    if source is not None:
        shutil.copytree(source, folder, dirs_exist_ok=True)


def _write(file: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(state), file, metadata={**METADATA, **(metadata or {})})


def _write_shards(folder: Path, stem: str, state: State, n_shards: int = 4) -> None:
    """Write a state dict in shards of about equally many tensors, and their index."""
    names = list(state)
    size = -(-len(names) // n_shards)
    weight_map = {}
    for shard in range(n_shards):
        file = f"{stem}-{shard + 1:05d}-of-{n_shards:05d}.safetensors"
        inside = names[shard * size : (shard + 1) * size]
        _write(folder / file, {name: state[name] for name in inside})
        weight_map |= dict.fromkeys(inside, file)
    total = sum(tensor.nbytes for tensor in state.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / f"{stem}.safetensors.index.json", index)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write tiny random models into a ComfyUI models folder.")
    parser.add_argument("models_dir", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder of a Qwen tokenizer to put beside text encoders")
    arguments = parser.parse_args()
    write_comfyui_folders(arguments.models_dir, arguments.tokenizer)


if __name__ == "__main__":
    main()
