"""A text encoder or planner in scaled fp8 reads a text as the weights do that it stands for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors.torch import save_file

import tiny_models
from acestep_pack.acestep_core.song.tokens import Ids
from acestep_pack.nodes.host.model import load_model
from acestep_pack.nodes.host.planner import load_planner
from acestep_pack.nodes.host.text_encoder import load_text_encoder
from scaled_models import FORMS, State, scaled

IDS = torch.arange(12).reshape(1, -1)
PREFIXES = ("", "model.", "module.")


def saved(path: Path, state: State, prefix: str = "", metadata: dict | None = None) -> Path:
    save_file({prefix + name: tensor.contiguous() for name, tensor in state.items()}, path, metadata=metadata)
    return path


def by_metadata(stored: State) -> tuple[State, dict[str, str]]:
    """Return a model with its layers' formats in the file's metadata, as ComfyUI's newest tools write them."""
    layers = [name.removesuffix(".comfy_quant") for name in stored if name.endswith(".comfy_quant")]
    formats = {"layers": {layer: {"format": "float8_e4m3fn"} for layer in layers}}
    kept = {name: tensor for name, tensor in stored.items() if not name.endswith(".comfy_quant")}
    return kept, {"_quantization_metadata": json.dumps(formats)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_text_states_and_embeddings_are_those_of_the_plain_weights(tmp_path: Path, form: str, prefix: str) -> None:
    stored, plain = scaled(tiny_models.text_encoder(), form)
    text = Ids(IDS, torch.ones_like(IDS))
    expected = load_text_encoder(saved(tmp_path / "plain.safetensors", plain))
    found = load_text_encoder(saved(tmp_path / "scaled.safetensors", stored, prefix))
    assert torch.equal(found.states(text).states, expected.states(text).states)
    assert torch.equal(found.embeddings(text).states, expected.embeddings(text).states)
    assert found.states(text).states.std() > 0.01


def test_formats_in_the_metadata_are_read_too(tmp_path: Path) -> None:
    stored, plain = scaled(tiny_models.text_encoder(), "new")
    kept, metadata = by_metadata(stored)
    text = Ids(IDS, torch.ones_like(IDS))
    expected = load_text_encoder(saved(tmp_path / "plain.safetensors", plain))
    found = load_text_encoder(saved(tmp_path / "scaled.safetensors", kept, metadata=metadata))
    assert torch.equal(found.states(text).states, expected.states(text).states)


@pytest.mark.parametrize("form", FORMS)
def test_a_planner_has_the_states_of_the_plain_weights(tmp_path: Path, form: str) -> None:
    stored, plain = scaled(tiny_models.planner(), form)
    expected = load_planner(saved(tmp_path / "plain.safetensors", plain)).core
    found = load_planner(saved(tmp_path / "scaled.safetensors", stored, "model.")).core
    assert torch.equal(found.model(IDS, found.dtype), expected.model(IDS, expected.dtype))


# The music model, of which ComfyUI computes with the scales where its layers take them.


def without_marks(stored: State) -> State:
    return {name: each for name, each in stored.items() if name != "scaled_fp8" and not name.endswith(".comfy_quant")}


def weights_of(path: Path, weight_dtype: str = "auto") -> State:
    """Return the weights a DiT computes with, as float32."""
    network = load_model(path, "turbo", weight_dtype).model.diffusion_model
    weights = {name: weight for name, weight in network.named_parameters() if not name.endswith(".input_scale")}
    return {name: (w.dequantize() if isinstance(w, QuantizedTensor) else w).float() for name, w in weights.items()}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("is_marked", [True, False])
@pytest.mark.parametrize("weight_dtype", ["auto", "bf16", "fp32"])
def test_a_music_model_has_the_weights_that_its_scales_make(
    tmp_path: Path, form: str, is_marked: bool, weight_dtype: str
) -> None:
    stored, plain = scaled(tiny_models.dit("turbo"), form)
    stored = (stored if is_marked else without_marks(stored)) | {"silence_latent": torch.zeros(1, 750, 64) + 0.1}
    found = weights_of(saved(tmp_path / "x.safetensors", stored), weight_dtype)
    assert found.keys() == plain.keys()
    for name, expected in plain.items():
        assert (found[name] - expected).abs().max() <= 2**-8 * expected.abs().max(), name  # one rounding to bf16


@pytest.mark.parametrize("form", FORMS)
def test_scales_without_marks_are_not_lost_in_fp8_layers(tmp_path: Path, form: str) -> None:
    stored = without_marks(scaled(tiny_models.dit("turbo"), form)[0]) | {"silence_latent": torch.ones(1, 750, 64)}
    with pytest.raises(
        ValueError, match=r'fp8 weights with scales, but lacks the marks .*; choose "bf16" as weight_dtype'
    ):
        weights_of(saved(tmp_path / "x.safetensors", stored), "fp8_e4m3fn")
