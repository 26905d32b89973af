"""Scaled fp8 is multiplied out to the weights it stands for, and no other quantisation passes without a word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny_models as tiny
from acestep_pack.acestep_core.checkpoints import read as files
from acestep_pack.acestep_core.checkpoints.scaled import dequantized
from scaled_models import COMFY_QUANT, FORMS, State, scaled

READERS = {
    "text encoder": (files.read_text_encoder, tiny.text_encoder),
    "planner": (files.read_planner, tiny.planner),
    "planner with a head": (
        files.read_planner,
        lambda: tiny.planner() | {"lm_head.weight": tiny.planner()["embed_tokens.weight"]},
    ),
    "DiT": (files.read_dit, lambda: tiny.dit("turbo")),
}


def read(tmp_path: Path, reader: Callable, state: State):
    save_file({"stand-in": torch.zeros(1)}, tmp_path / "x.safetensors")
    return reader(tmp_path / "x.safetensors", read=lambda path: state)


def behind_body(state: State) -> State:
    """Return names as transformers has them: the body behind "model.", the head beside it."""
    return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize("part", READERS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scales_are_multiplied_in_to_the_bit(tmp_path: Path, part: str, form: str, dtype: torch.dtype) -> None:
    reader, state = READERS[part]
    stored, plain = scaled(state(), form)
    file = read(tmp_path, reader, behind_body(stored) if part.startswith("planner") else stored)
    assert file.quantized
    found = dequantized(file.name, file.state, dtype)
    assert found.keys() == plain.keys()
    assert [name for name in plain if not torch.equal(found[name].to(dtype), plain[name].to(dtype))] == []


@pytest.mark.parametrize("part", READERS)
def test_a_model_without_scales_is_passed_on_and_not_copied(tmp_path: Path, part: str) -> None:
    reader, state = READERS[part]
    for given in (state(), {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state().items()}):
        file = read(tmp_path, reader, given)
        found = dequantized(file.name, file.state, torch.float32)
        assert {name: id(tensor) for name, tensor in found.items()} == {name: id(given[name]) for name in given}


@pytest.mark.parametrize("form", FORMS)
def test_a_vae_in_scaled_fp8_is_read_as_the_weights_it_stands_for(tmp_path: Path, form: str) -> None:
    folded = read(tmp_path, files.read_vae, tiny.vae()).state
    stored, plain = scaled(folded, form)
    found = read(tmp_path, files.read_vae, stored).state
    assert found.keys() == plain.keys()
    assert [name for name in plain if not torch.equal(found[name].float(), plain[name])] == []


OTHER_FORMS = {
    "int8": {"weight": torch.zeros(8, 8, dtype=torch.int8), "weight_scale": torch.ones(())},
    "mxfp8": {
        "weight": torch.zeros(8, 32).to(torch.float8_e4m3fn),
        "weight_scale": torch.zeros(8, 1, dtype=torch.uint8),
    },
    "mxfp8, its scales named": {
        "weight": torch.zeros(8, 32).to(torch.float8_e4m3fn),
        "weight_scale": torch.ones(8, 1).to(torch.float8_e8m0fnu),
    },
    "nvfp4": {
        "weight": torch.zeros(8, 8, dtype=torch.uint8),
        "weight_scale": torch.ones(8, 1).to(torch.float8_e4m3fn),
        "weight_scale_2": torch.ones(()),
    },
    "fp8 in blocks": {"weight": torch.zeros(8, 32).to(torch.float8_e4m3fn), "weight_scale": torch.ones(8, 2)},
    "fp8 with scaled inputs": {
        "weight": torch.zeros(8, 8).to(torch.float8_e4m3fn),
        "weight_scale": torch.ones(()),
        "pre_quant_scale": torch.ones(8),
    },
    "a scale that is missing": {"weight": torch.zeros(8, 8).to(torch.float8_e4m3fn), "comfy_quant": COMFY_QUANT},
    "a weight that is missing": {"weight_scale": torch.ones(())},
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_any_other_quantisation_is_refused_by_name(form: str) -> None:
    state = {f"layers.0.up.{kind}": tensor for kind, tensor in OTHER_FORMS[form].items()}
    with pytest.raises(
        ValueError, match=r"^x has layers\.0\.up\.weight quantised in a form .*: choose the bf16 file, or"
    ):
        dequantized("x", state, torch.float32)


def test_the_scales_of_a_head_that_config_json_calls_the_embedding_are_left_out_with_it(tmp_path: Path) -> None:
    tiny.write_planner_official(tmp_path)
    stored, _ = scaled(READERS["planner with a head"][1](), "old")
    save_file(behind_body(stored), tmp_path / "model.safetensors")
    state = files.read_planner(tmp_path).state
    assert [name for name in state if name.startswith("lm_head.")] == []
