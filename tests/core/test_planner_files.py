"""The planner is the same in every file layout, and whatever is no planner is refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import tiny_models as tiny
from acestep_pack.acestep_core.checkpoints import read as files
from acestep_pack.acestep_core.models.layers import AttentionShape
from acestep_pack.acestep_core.models.qwen3 import Qwen3, Qwen3Config

ALL_IN_ONE = "checkpoints/ace_step_1.5_turbo_aio.safetensors"
LAYOUTS = [
    "text_encoders/acestep-5Hz-lm-0.6B",
    "text_encoders/qwen_1.7b_ace15.safetensors",
    ALL_IN_ONE,
    "sharded",
    "aio_4b.safetensors",
    "bare.safetensors",
]
NO_PLANNER = r"is not an ACE-Step 1.5 planner \(5 Hz LM\), it looks like {}: choose a file such as qwen_1.7b_ace15"


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    """A ComfyUI models folder with every tiny model, and the layouts that are rarer than those."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_comfyui_folders(folder)
    shutil.copytree(folder / LAYOUTS[0], folder / "sharded")
    (folder / "sharded/model.safetensors").unlink()
    tiny._write_shards(folder / "sharded", "model", tiny._prefixed("model.", tiny.planner()))
    aio = tiny._prefixed("text_encoders.qwen3_4b.transformer.model.", tiny.planner())
    save_file(aio | tiny._prefixed("model.diffusion_model.", tiny.dit("turbo")), folder / "aio_4b.safetensors")
    save_file(tiny.planner(), folder / "bare.safetensors")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("path", LAYOUTS)
def test_planner_is_the_same_in_every_layout(models_dir, path):
    file = files.read_planner(models_dir / path)
    assert file.config == tiny.PLANNER
    assert file.name == Path(path).name
    assert not file.quantized
    assert file.state.keys() == tiny.planner().keys()
    assert all(torch.equal(file.state[name], tensor) for name, tensor in tiny.planner().items())
    Qwen3(file.config, files.SHAPES_ONLY).load_state_dict(file.state, strict=True, assign=True)


def test_planner_brings_the_tokenizer_of_its_folder(models_dir, tmp_path):
    folder = shutil.copytree(models_dir / LAYOUTS[0], tmp_path / "planner")
    assert files.read_planner(folder).tokenizer_folder is None
    (folder / "tokenizer.json").write_text("{}")
    assert files.read_planner(folder).tokenizer_folder == folder


# A head beside the embedding.


@pytest.mark.parametrize("name", ["lm_head.weight", "model.lm_head.weight"])
def test_own_head_is_found_beside_the_body_and_in_it(tmp_path, name):
    head = torch.ones(tiny.N_PLANNER_TOKENS, tiny.TEXT_SHAPE.width, dtype=torch.bfloat16)
    save_file(tiny._prefixed("model.", tiny.planner()) | {name: head}, tmp_path / "x.safetensors")
    file = files.read_planner(tmp_path / "x.safetensors")
    assert file.config.own_head
    assert torch.equal(file.state["lm_head.weight"], head)
    Qwen3(file.config, files.SHAPES_ONLY).load_state_dict(file.state, strict=True, assign=True)


def test_head_that_config_json_calls_the_embedding_is_left_out(models_dir, tmp_path):
    folder = shutil.copytree(models_dir / LAYOUTS[0], tmp_path / "planner")
    state = tiny._prefixed("model.", tiny.planner())
    save_file(state | {"lm_head.weight": state["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    file = files.read_planner(folder)
    assert not file.config.own_head
    assert "lm_head.weight" not in file.state
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert files.read_planner(folder).config.own_head


# Released sizes.


@pytest.mark.parametrize(
    ("shape", "n_layers", "n_bytes"),
    [
        (AttentionShape(1_024, 3_072, 16, 8, 128, window=None), 28, 1_325_804_024),
        (AttentionShape(2_048, 6_144, 16, 8, 128, window=None), 28, 3_708_523_360),
        (AttentionShape(2_560, 9_728, 32, 8, 128, window=None), 36, 8_379_154_232),
    ],
)
def test_released_planners_have_their_published_size_and_no_head_of_their_own(shape, n_layers, n_bytes):
    state = Qwen3(Qwen3Config(shape, n_layers, tiny.N_PLANNER_TOKENS), files.SHAPES_ONLY).state_dict()
    header = n_bytes - 2 * sum(tensor.numel() for tensor in state.values())
    assert 0 < header < 100_000


# What is no planner.


def written(path: Path, state: dict[str, torch.Tensor]) -> Path:
    save_file(state, path)
    return path


def test_text_encoder_is_refused_as_planner(models_dir):
    refused = NO_PLANNER.format("the ACE-Step 1.5 text encoder")
    for path in ("qwen_0.6b_ace15.safetensors", "Qwen3-Embedding-0.6B"):
        with pytest.raises(ValueError, match=f"^{path} {refused}"):
            files.read_planner(models_dir / "text_encoders" / path)


def test_diffusion_model_is_refused_as_planner(models_dir):
    refused = NO_PLANNER.format("an ACE-Step 1.5 diffusion model")
    for path in ("acestep_v1.5_turbo.safetensors", "acestep-v15-turbo"):
        with pytest.raises(ValueError, match=f"^{path} {refused}"):
            files.read_planner(models_dir / "diffusion_models" / path)


def test_pipeline_is_refused_as_planner(models_dir):
    with pytest.raises(ValueError, match="turbo-diffusers is a diffusers pipeline, which has no planner: choose"):
        files.read_planner(models_dir / "diffusion_models/acestep-v15-turbo-diffusers")


def test_planner_lora_is_refused_as_planner(tmp_path):
    lora = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=NO_PLANNER.format("a LoRA adapter")):
        files.read_planner(written(tmp_path / "x.safetensors", lora))


def test_other_vocabulary_is_refused_by_its_size(tmp_path):
    other = {"model.embed_tokens.weight": torch.zeros(151_936, 1)}
    with pytest.raises(ValueError, match=NO_PLANNER.format("another language model, of 151,936 tokens")):
        files.read_planner(written(tmp_path / "x.safetensors", other))


def test_planner_with_a_missing_layer_is_incomplete(tmp_path):
    state = {name: tensor for name, tensor in tiny.planner().items() if "layers.0.mlp" not in name}
    with pytest.raises(ValueError, match=r"x.safetensors lacks layers.0.mlp.gate_proj.weight: it looks incomplete"):
        files.read_planner(written(tmp_path / "x.safetensors", state))


def test_planner_folder_without_a_shard_says_which(models_dir, tmp_path):
    folder = shutil.copytree(models_dir / "sharded", tmp_path / "planner")
    (folder / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"planner lacks model-00003-of-00004\.safetensors, 1 of its 4 shards"):
        files.read_planner(folder)
