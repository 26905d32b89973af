"""Every file layout gives the same model, and every bad file one clear sentence."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import golden_models
import tiny_models as tiny
from acestep_pack.acestep_core.checkpoints import read as files
from acestep_pack.acestep_core.checkpoints.detect import VARIANTS, detect_variant
from acestep_pack.acestep_core.checkpoints.presets import PRESETS
from acestep_pack.acestep_core.checkpoints.vae_keys import fold_weight_norm
from acestep_pack.acestep_core.checkpoints.weights import read_safetensors
from acestep_pack.acestep_core.models.acestep import AceStep, AceStepConfig
from acestep_pack.acestep_core.models.layers import AttentionShape, alternating
from acestep_pack.acestep_core.models.qwen3 import Qwen3, Qwen3Config
from acestep_pack.acestep_core.models.silence import published_silence
from acestep_pack.acestep_core.models.vae import Vae, VaeConfig

ALL_IN_ONE = "checkpoints/ace_step_1.5_turbo_aio.safetensors"
PIPELINE = "diffusion_models/acestep-v15-turbo-diffusers"
DIT_LAYOUTS = [
    ("turbo", "diffusion_models/acestep-v15-turbo"),
    ("turbo", "diffusion_models/acestep_v1.5_turbo.safetensors"),
    ("turbo", ALL_IN_ONE),
    ("turbo", PIPELINE),
    ("base", "diffusion_models/acestep-v15-base"),
    ("base", "diffusion_models/acestep_v1.5_base.safetensors"),
    ("xl-turbo", "diffusion_models/acestep-v15-xl-turbo"),
    ("xl-turbo", "diffusion_models/acestep_v1.5_xl_turbo_bf16.safetensors"),
    ("xl-turbo", "sharded-pipeline"),
]
TEXT_ENCODER_LAYOUTS = [
    "text_encoders/Qwen3-Embedding-0.6B",
    "text_encoders/qwen_0.6b_ace15.safetensors",
    ALL_IN_ONE,
    PIPELINE,
    f"{PIPELINE}/text_encoder",
]
VAE_LAYOUTS = [
    "vae/acestep-v15-vae",
    "vae/ace_1.5_vae.safetensors",
    "vae/parametrized.safetensors",
    ALL_IN_ONE,
    PIPELINE,
]
WITH_SILENCE = ("diffusion_models/acestep-v15-", "sharded-pipeline")

RELEASED_ENCODER = AttentionShape(width=2048, mlp_width=6144, n_heads=16, n_kv_heads=8, head_dim=128)
RELEASED_2B = AceStepConfig(RELEASED_ENCODER, RELEASED_ENCODER, alternating(24))
RELEASED_XL = AceStepConfig(
    AttentionShape(width=2560, mlp_width=9728, n_heads=32, n_kv_heads=8, head_dim=128),
    RELEASED_ENCODER,
    alternating(32),
)
RELEASED_TEXT_ENCODER = Qwen3Config(
    AttentionShape(width=1024, mlp_width=3072, n_heads=16, n_kv_heads=8, head_dim=128, window=None),
    n_layers=28,
    n_tokens=151_669,
)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    """A ComfyUI models folder with every tiny model, and the layouts that are rarer than those."""
    folder = tmp_path_factory.mktemp("models")
    tiny.write_comfyui_folders(folder)
    tiny.write_vae_comfy(folder / "vae" / "parametrized.safetensors", parametrized=True)
    tiny.write_pipeline(folder / "sharded-pipeline", "xl-turbo", n_shards=3)
    yield folder
    shutil.rmtree(folder)


def assert_same(state, expected):
    assert state.keys() == expected.keys()
    assert [key for key in expected if not torch.equal(state[key].float(), expected[key].float())] == []


# Every layout.


@pytest.mark.parametrize(("variant", "path"), DIT_LAYOUTS)
def test_dit_is_the_same_in_every_layout(models_dir, variant, path):
    file = files.read_dit(models_dir / path)
    assert file.config == tiny.DITS[variant]
    assert_same(file.state, tiny.dit(variant))
    AceStep(file.config, files.SHAPES_ONLY).load_state_dict(file.state, strict=True, assign=True)
    assert file.name == Path(path).name
    assert not file.quantized
    assert not file.is_released_size


@pytest.mark.parametrize("path", TEXT_ENCODER_LAYOUTS)
def test_text_encoder_is_the_same_in_every_layout(models_dir, path):
    file = files.read_text_encoder(models_dir / path)
    assert file.config == tiny.TEXT_ENCODER
    assert_same(file.state, tiny.text_encoder())
    Qwen3(file.config, files.SHAPES_ONLY).load_state_dict(file.state, strict=True, assign=True)


@pytest.mark.parametrize("path", VAE_LAYOUTS)
def test_vae_is_the_same_in_every_layout(models_dir, path):
    file = files.read_vae(models_dir / path)
    assert file.config == tiny.VAE
    assert_same(file.state, fold_weight_norm(tiny.vae()))
    Vae(file.config, files.SHAPES_ONLY).load_state_dict(file.state, strict=True, assign=True)


@pytest.mark.parametrize(("variant", "path"), DIT_LAYOUTS)
def test_variant_is_known_in_every_layout(models_dir, variant, path):
    file = files.read_dit(models_dir / path)
    assert (file.variant, file.variant_known) == (variant.removeprefix("xl-"), True)


@pytest.mark.parametrize("path", [path for _, path in DIT_LAYOUTS])
def test_silence_comes_with_official_and_diffusers_folders_only(models_dir, path):
    silence = files.read_dit(models_dir / path).silence
    if path.startswith(WITH_SILENCE):
        assert silence.shape[0] == 1
        assert torch.equal(silence[:, : tiny.N_SILENCE_FRAMES], tiny.silence().transpose(1, 2))
    else:
        assert silence is None


def test_alignment_heads_come_as_config_json_has_them(models_dir):
    xl = files.read_dit(models_dir / "diffusion_models/acestep-v15-xl-turbo")
    assert xl.alignment_heads == tiny.XL_ALIGNMENT
    assert files.read_dit(models_dir / "diffusion_models/acestep-v15-turbo").alignment_heads is None


def test_alignment_heads_of_a_single_file_come_from_its_metadata(models_dir):
    turbo = files.read_dit(models_dir / "diffusion_models/acestep_v1.5_turbo.safetensors")
    assert turbo.alignment_heads == tiny.ALIGNMENT


def test_tiny_models_stay_under_150_megabytes(models_dir):
    extra = [models_dir / "vae/parametrized.safetensors", *(models_dir / "sharded-pipeline").rglob("*")]
    everything = set(models_dir.rglob("*")) - set(extra)
    assert sum(path.stat().st_size for path in everything if path.is_file()) < 150e6


def test_tiny_vae_decodes_noise_to_an_audible_level(models_dir):
    file = files.read_vae(models_dir / "vae/ace_1.5_vae.safetensors")
    vae = Vae(file.config)
    vae.load_state_dict(file.state)
    peaks = vae.decode(torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0))).abs().amax((1, 2))
    assert 0.05 < peaks.min() <= peaks.max() < 5


# Names with something in front.

WRAPPERS = ("net.", "module.", "_orig_mod.", "model.")
NESTED = (
    *WRAPPERS,
    *map("".join, itertools.product(WRAPPERS, WRAPPERS)),
    "module._orig_mod.model.",
    "model.net.module.",
)
LM_HEAD = torch.ones(tiny.N_PLANNER_TOKENS, tiny.TEXT_SHAPE.width, dtype=torch.bfloat16)
PARTS = {
    "official DiT": (files.read_dit, lambda: tiny.dit("turbo")),
    "DiT as ComfyUI saves it": (files.read_dit, lambda: _behind("model.diffusion_model.", tiny.dit("turbo"))),
    "DiT with its silence": (files.read_dit, lambda: tiny.dit("turbo") | {"silence_latent": torch.ones(1, 5, 64)}),
    "text encoder": (files.read_text_encoder, tiny.text_encoder),
    "text encoder of transformers": (files.read_text_encoder, lambda: _behind("model.", tiny.text_encoder())),
    "planner": (files.read_planner, tiny.planner),
    "planner with a head": (
        files.read_planner,
        lambda: _behind("model.", tiny.planner()) | {"lm_head.weight": LM_HEAD},
    ),
    "VAE": (files.read_vae, tiny.vae),
    "VAE as ComfyUI saves it": (files.read_vae, lambda: tiny.stable_audio_names(tiny.vae())),
}


def _behind(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def _read_state(tmp_path, read, state):
    save_file({"stand-in": torch.zeros(1)}, tmp_path / "x.safetensors")
    return read(tmp_path / "x.safetensors", read=lambda path: state)


@pytest.mark.parametrize("part", PARTS)
def test_a_model_is_the_same_with_any_wrappers_in_front_of_its_names(tmp_path, part):
    read, state = PARTS[part]
    expected = _read_state(tmp_path, read, state())
    assert expected.state
    for wrapper in NESTED:
        file = _read_state(tmp_path, read, _behind(wrapper, state()))
        assert file.config == expected.config, wrapper
        assert_same(file.state, expected.state)
        silences = [each.silence for each in (file, expected) if getattr(each, "silence", None) is not None]
        assert len(silences) == 2 * (part == "DiT with its silence"), wrapper
        assert all(torch.equal(silence, torch.ones(1, 5, 64)) for silence in silences)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_part_of_an_all_in_one_checkpoint_is_found_behind_a_wrapper(tmp_path, models_dir, wrapper):
    state = read_safetensors(models_dir / ALL_IN_ONE)
    for read in (files.read_dit, files.read_text_encoder, files.read_planner, files.read_vae):
        expected = _read_state(tmp_path, read, state).state
        assert_same(_read_state(tmp_path, read, _behind(wrapper, state)).state, expected)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("prefix", ["other.", "module.other.", "other.module.", "net"])
def test_a_model_under_unknown_names_is_not_said_to_look_like_what_it_is_not(tmp_path, part, prefix):
    read, state = PARTS[part]
    with pytest.raises(ValueError, match="looks like") as caught:
        _read_state(tmp_path, read, _behind(prefix, state()))
    sentence = (
        r"x\.safetensors looks like (an?|the) .*, but with tensors missing or under names unknown here, such as "
        + prefix
    )
    assert re.match(sentence, str(caught.value))


# Names and sizes of the real ones.


@pytest.mark.parametrize("size", ["2b", "xl"])
def test_our_names_and_shapes_are_the_official_ones(size):
    official = json.loads((golden_models.GOLDEN / f"keys_{size}.json").read_text())
    ours = AceStep(golden_models.config(size), files.SHAPES_ONLY).state_dict()
    assert {key: list(tensor.shape) for key, tensor in ours.items()} == official


@pytest.mark.parametrize(
    ("model", "config", "n_tensors", "n_numbers"),
    [
        (AceStep, RELEASED_2B, 677, 2_393_872_518),
        (AceStep, RELEASED_XL, 829, 4_987_310_726),
        (Qwen3, RELEASED_TEXT_ENCODER, 310, 595_776_512),
        # The file's 365 tensors of 168,695,426 numbers, less 74 magnitudes that are folded into their weights.
        (Vae, VaeConfig(), 365 - 74, 168_695_426 - 34_818),
    ],
)
def test_released_sizes_have_the_published_number_of_parameters(model, config, n_tensors, n_numbers):
    state = model(config, files.SHAPES_ONLY).state_dict()
    assert len(state) == n_tensors
    assert sum(tensor.numel() for tensor in state.values()) == n_numbers


def test_released_sizes_are_detected_from_shapes(tmp_path):
    state = AceStep(RELEASED_XL, files.SHAPES_ONLY).state_dict()
    save_file({"stand-in": torch.zeros(1)}, tmp_path / "acestep_v1.5_xl_sft_bf16.safetensors")
    file = files.read_dit(tmp_path / "acestep_v1.5_xl_sft_bf16.safetensors", read=lambda path: state)
    assert file.config == RELEASED_XL
    assert file.is_released_size
    assert file.variant == "sft"


# What shapes do not tell.


def test_settings_come_from_config_json(tmp_path):
    types = ["full_attention"] * 8
    folder = _official(tmp_path, rms_norm_eps=1e-5, rope_theta=5e5, sliding_window=64, layer_types=types)
    config = files.read_dit(folder).config
    expected = {"eps": 1e-5, "rope_theta": 5e5, "window": 64}
    assert config.decoder == replace(tiny.DIT_2B.decoder, **expected)
    assert config.encoder == replace(tiny.DIT_2B.encoder, **expected)
    assert config.windowed_layers == (False,) * 8


def test_a_window_that_is_switched_off_is_none(tmp_path):
    config = files.read_dit(_official(tmp_path, use_sliding_window=False)).config
    assert (config.decoder.window, config.encoder.window) == (None, None)


def test_settings_come_from_metadata_of_a_single_file(tmp_path):
    declared = json.dumps({"rms_norm_eps": 1e-5, "is_turbo": False})
    save_file(tiny.dit("turbo"), tmp_path / "mine.safetensors", metadata={"config": declared})
    file = files.read_dit(tmp_path / "mine.safetensors")
    assert file.config.decoder.eps == 1e-5
    assert (file.variant, file.variant_known) == ("base", True)


@pytest.mark.parametrize("config", ["no JSON", "[1]"])
def test_metadata_of_other_tools_is_ignored(tmp_path, config):
    save_file(tiny.dit("turbo"), tmp_path / "mine.safetensors", metadata={"config": config})
    assert files.read_dit(tmp_path / "mine.safetensors").config == tiny.DIT_2B


def test_a_file_that_tells_no_variant_is_taken_for_turbo_and_says_so(tmp_path):
    tiny.write_dit_comfy(tmp_path / "mine.safetensors", "base")
    file = files.read_dit(tmp_path / "mine.safetensors")
    assert (file.variant, file.variant_known) == ("turbo", False)
    chosen = files.read_dit(tmp_path / "mine.safetensors", variant="base")
    assert (chosen.variant, chosen.variant_known) == ("base", True)


@pytest.mark.parametrize(
    ("name", "declared", "variant"),
    [
        ("acestep-v15-turbo", {}, "turbo"),
        ("acestep-v15-turbo-shift1", {}, "turbo-shift1"),
        ("acestep-v15-turbo-shift3", {}, "turbo-shift3"),
        ("acestep-v15-turbo-continuous", {}, "turbo-continuous"),
        ("acestep-v15-xl-sft", {}, "sft"),
        ("acestep_v1.5_xl_base_bf16.safetensors", {}, "base"),
        ("ACE_STEP_1.5_Turbo_AIO.safetensors", {}, "turbo"),
        ("mine.safetensors", {}, None),
        ("database_softer.safetensors", {}, None),  # words, not pieces of words
        ("acestep_v1.5_merge_sft_turbo_xl.safetensors", {}, None),  # a merge of both kinds
        ("mine", {"model_version": "turbo"}, "turbo"),
        ("mine", {"model_version": "sft"}, "sft"),
        ("mine", {"is_turbo": True}, "turbo"),
        ("mine", {"is_turbo": False}, "base"),
        ("mine-sft", {"is_turbo": False}, "sft"),
        ("mine-shift1", {"is_turbo": True}, "turbo-shift1"),
        ("mine", {"is_turbo": False, "model_version": "turbo"}, "base"),  # the config class's default version
        ("my-base-of-things", {"is_turbo": True, "model_version": "turbo"}, "turbo"),
        ("acestep-v15-turbo-shift3", {"is_turbo": True, "model_version": "turbo"}, "turbo-shift3"),
        ("merge_sft_turbo", {"is_turbo": True}, "turbo"),
    ],
)
def test_variant_is_detected_from_config_and_name(name, declared, variant):
    assert detect_variant(name, "auto", tiny.DIT_2B, declared) == variant


@pytest.mark.parametrize("choice", [choice for choice in VARIANTS if choice != "auto"])
def test_a_chosen_variant_wins_over_name_and_config(choice):
    config = tiny.DIT_XL if choice.startswith("xl-") else tiny.DIT_2B
    variant = detect_variant("acestep-v15-turbo", choice, config, {"is_turbo": True})
    assert variant == choice.removeprefix("xl-")
    assert variant in PRESETS


def test_silence_beside_a_single_file_is_found(tmp_path):
    tiny.write_dit_comfy(tmp_path / "acestep_v1.5_turbo.safetensors", "turbo")
    torch.save(tiny.silence(), tmp_path / "silence_latent.pt")
    silence = files.read_dit(tmp_path / "acestep_v1.5_turbo.safetensors").silence
    assert silence.shape == (1, tiny.N_SILENCE_FRAMES, 64)


def test_the_zeros_that_stand_for_silence_in_an_unfinished_pipeline_are_not_taken(models_dir):
    def read(path):
        state = read_safetensors(path)
        return {key: t * 0 if key == "silence_latent" else t for key, t in state.items()}

    assert files.read_dit(models_dir / PIPELINE, read=read).silence is None


@pytest.mark.parametrize("names", [["tokenizer.json"], ["vocab.json", "merges.txt"]])
def test_tokenizer_is_found_in_its_folder_and_beside_it_in_a_pipeline(tmp_path, names):
    tokenizer = tmp_path / "source"
    tokenizer.mkdir()
    for name in names:
        (tokenizer / name).touch()
    tiny.write_text_encoder_official(tmp_path / "official", tokenizer)
    tiny.write_pipeline(tmp_path / "pipeline", "turbo", tokenizer)
    assert files.read_text_encoder(tmp_path / "official").tokenizer_folder == tmp_path / "official"
    assert files.read_text_encoder(tmp_path / "pipeline").tokenizer_folder == tmp_path / "pipeline/tokenizer"


@pytest.mark.parametrize("path", TEXT_ENCODER_LAYOUTS)
def test_without_a_tokenizer_there_is_no_tokenizer_folder(models_dir, path):
    assert files.read_text_encoder(models_dir / path).tokenizer_folder is None


@pytest.mark.parametrize("n_frames", [0, 1, 4, 5, 750])
def test_published_silence_is_steady_after_four_frames(n_frames):
    silence = published_silence(n_frames)
    assert silence.shape == (1, n_frames, 64)
    assert torch.equal(silence[:, 5:], silence[:, 4:-1])
    assert torch.equal(silence, published_silence(1_000)[:, :n_frames])


def test_published_silence_has_the_numbers_that_tell_it():
    steady = published_silence(10)[0, -1]
    expected = {0: -0.13672, 1: -0.1582, 14: -2.6719, 19: -5.0938, 56: -2.9219, 63: 1.0}
    assert {channel: steady[channel].item() for channel in expected} == pytest.approx(expected)


# Weights stay where the host's reader leaves them.


class Untouched(dict):
    """A state dict that notes which tensors are looked at."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = set()

    def __getitem__(self, key):
        self.seen.add(key)
        return super().__getitem__(key)


@pytest.mark.parametrize(
    ("read", "prefix"),
    [
        (files.read_dit, "model.diffusion_model."),
        (files.read_text_encoder, "text_encoders.qwen3_06b."),
        (files.read_vae, "vae."),
    ],
)
def test_only_its_own_part_of_an_all_in_one_checkpoint_is_touched(models_dir, read, prefix):
    state = Untouched(read_safetensors(models_dir / ALL_IN_ONE))
    read(models_dir / ALL_IN_ONE, read=lambda path: state)
    assert state.seen == {key for key in state if key.startswith(prefix)}


@pytest.mark.parametrize("path", [path for _, path in DIT_LAYOUTS])
def test_tensors_are_passed_on_and_not_copied(models_dir, path):
    given = []

    def read(file):
        state = read_safetensors(file)
        given.extend(state.values())
        return state

    state = files.read_dit(models_dir / path, read=read).state
    assert {id(tensor) for tensor in state.values()} <= set(map(id, given))


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_quantised_weights_pass_through_with_their_scales(tmp_path, prefix):
    layer = "decoder.layers.0.mlp.up_proj"
    extras = {
        "scaled_fp8": torch.zeros(2),
        f"{layer}.weight_scale": torch.ones(1),
        f"{layer}.input_scale": torch.ones(1),
        f"{layer}.comfy_quant": torch.zeros(30, dtype=torch.uint8),
        "decoder.layers.1.mlp.up_proj.scale_weight": torch.ones(1),
    }
    packed = {f"{layer}.weight": torch.zeros(192, 32, dtype=torch.uint8)}  # two 4-bit columns in each
    given = tiny.dit("turbo") | packed | extras
    save_file({"stand-in": torch.zeros(1)}, tmp_path / "acestep_v1.5_turbo_fp8.safetensors")
    file = files.read_dit(
        tmp_path / "acestep_v1.5_turbo_fp8.safetensors",
        read=lambda path: {prefix + key: tensor for key, tensor in given.items()},
    )
    assert file.quantized
    assert file.config == tiny.DIT_2B
    assert {key: id(tensor) for key, tensor in file.state.items()} == {key: id(tensor) for key, tensor in given.items()}


# Folders.


def test_model_folders_are_listed_with_forward_slashes(models_dir):
    assert files.list_model_folders(models_dir / "diffusion_models") == [
        "acestep-v15-base/",
        "acestep-v15-turbo-diffusers/",
        "acestep-v15-turbo/",
        "acestep-v15-xl-turbo/",
    ]
    assert "diffusion_models/acestep-v15-turbo/" in files.list_model_folders(models_dir)


def test_unfinished_hidden_and_inner_folders_are_not_listed(tmp_path):
    for folder in ("no-config", ".download/acestep-v15-base", "pipeline/transformer", "a/b"):
        (tmp_path / folder).mkdir(parents=True)
    for config in (".download/acestep-v15-base/config.json", "pipeline/transformer/config.json"):
        (tmp_path / config).touch()
    (tmp_path / "pipeline/model_index.json").touch()
    (tmp_path / "a/b/config.json").touch()
    (tmp_path / "config.json").touch()
    assert files.list_model_folders(tmp_path) == ["a/b/", "pipeline/"]
    assert files.list_model_folders(tmp_path / "nowhere") == []


# Bad files.


def _official(tmp_path, **changes):
    """Return an official folder whose config.json has these changes."""
    folder = tmp_path / "acestep-v15-turbo"
    tiny.write_dit_official(folder, "turbo")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    return folder


def _bytes(name, content):
    def make(tmp_path):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return make


def _tensors(state, name="x.safetensors"):
    """state: tensors, or a function that returns them; a list means that names are all that matters."""

    def make(tmp_path):
        tensors = state() if callable(state) else state
        if isinstance(tensors, list):
            tensors = {key: torch.zeros(1) for key in tensors}
        save_file(tensors, tmp_path / name)
        return tmp_path / name

    return make


def _folder(**contents):
    """A folder "m" of files; "__" in a keyword is the dot of a file's name, a dict is JSON."""

    def make(tmp_path):
        (tmp_path / "m").mkdir()
        for name, content in contents.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (tmp_path / "m" / name.replace("__", ".")).write_text(text)
        return tmp_path / "m"

    return make


def _cut(n_bytes):
    def make(tmp_path):
        tiny.write_dit_comfy(tmp_path / "x.safetensors", "turbo")
        whole = (tmp_path / "x.safetensors").read_bytes()
        (tmp_path / "x.safetensors").write_bytes(whole[:n_bytes])
        return tmp_path / "x.safetensors"

    return make


def _missing_shard(tmp_path):
    tiny.write_dit_official(tmp_path / "xl", "xl-turbo")
    (tmp_path / "xl" / "model-00002-of-00004.safetensors").unlink()
    return tmp_path / "xl"


def _cut_shard(tmp_path):
    tiny.write_dit_official(tmp_path / "xl", "xl-turbo")
    shard = tmp_path / "xl" / "model-00003-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    return tmp_path / "xl"


def _pipeline_without(folder):
    def make(tmp_path):
        tiny.write_pipeline(tmp_path / "pipeline", "turbo")
        shutil.rmtree(tmp_path / "pipeline" / folder)
        return tmp_path / "pipeline"

    return make


def _silence(content):
    def make(tmp_path):
        folder = _official(tmp_path)
        if isinstance(content, bytes):
            (folder / "silence_latent.pt").write_bytes(content)
        else:
            torch.save(content, folder / "silence_latent.pt")
        return folder

    return make


def _dit(variant="turbo", without=(), **changes):
    """DiT tensors without those whose names have one of some pieces, with changes; "__" is a dot in a name."""

    def make():
        kept = {k: t for k, t in tiny.dit(variant).items() if not any(piece in k for piece in without)}
        return kept | {key.replace("__", "."): tensor for key, tensor in changes.items()}

    return make


def _wide_vae():
    return tiny.vae() | {"encoder.extra.weight": torch.zeros(1)}


def _stable_audio_vae():
    config = VaeConfig(encoder_width=8, decoder_width=8, strides=(2, 4, 4, 8, 8))
    state = Vae(config, files.SHAPES_ONLY).state_dict()
    return {key: torch.zeros(tensor.shape) for key, tensor in state.items()}


def _header(content):
    raw = json.dumps(content).encode()
    return len(raw).to_bytes(8, "little") + raw + bytes(8)


PLANNER = {"model.embed_tokens.weight": torch.zeros(217_204, 1, dtype=torch.uint8)}
OTHER_LM = {"model.embed_tokens.weight": torch.zeros(151_936, 1, dtype=torch.uint8)}
NOT_A_DIT = (
    "x.safetensors is not an ACE-Step 1.5 diffusion model, it looks like {}: "
    "choose a file such as acestep_v1.5_turbo.safetensors"
)
NOT_A_TEXT_ENCODER = (
    "x.safetensors is not an ACE-Step 1.5 text encoder, it looks like {}: "
    "choose a file such as qwen_0.6b_ace15.safetensors"
)
NOT_A_VAE = "x.safetensors is not an ACE-Step 1.5 VAE, it looks like {}: choose a file such as ace_1.5_vae.safetensors"
NO_SAFETENSORS = "x.safetensors is not what its name says, a .safetensors file: download it again"
A_DIT = "an ACE-Step 1.5 diffusion model"

BAD_ON_DISK = [
    (lambda path: path / "gone.safetensors", r"gone.safetensors is not in .*: download it or choose another"),
    (_bytes("x.safetensors", b""), "x.safetensors is empty: download it again"),
    (_bytes("x.safetensors", b"abc"), NO_SAFETENSORS),
    (_bytes("x.safetensors", b"<!doctype html><title>404</title>"), NO_SAFETENSORS),
    (_bytes("x.safetensors", bytes(64)), NO_SAFETENSORS),
    (_bytes("x.safetensors", _header([])), NO_SAFETENSORS),
    (_bytes("x.safetensors", _header({"a": {"shape": [1]}})), NO_SAFETENSORS),
    (
        _bytes("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"),
        "x.safetensors is a Git LFS pointer, not the weights it points to: download those",
    ),
    (
        _bytes("x.safetensors", _header({"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}})),
        r"x.safetensors is damaged \(.*\): download it again",
    ),
    (_cut(100), "x.safetensors ends in its header: it looks truncated, download it again"),
    (
        _cut(1_000_000),
        "x.safetensors has 1,000,000 of 4,[0-9]{3},[0-9]{3} bytes: it looks truncated, download it again",
    ),
    (
        _bytes("x.ckpt", b"PK"),
        "x.ckpt is no .safetensors file: nothing else is read, because a pickle can run code; "
        "get the .safetensors version",
    ),
    (
        _folder(config__json={}),
        "m has no weights: model.safetensors, or shards with model.safetensors.index.json, belong in it; "
        "download it again",
    ),
    (
        _folder(config__json={}, silence_latent__pt="PK"),
        "m has no weights: .*",
    ),
    (
        _folder(config__json={}, pytorch_model__bin="PK"),
        "m has its weights in pytorch_model.bin: only .safetensors is read, because a pickle can run code; "
        "get the .safetensors version",
    ),
    (
        _folder(model__safetensors__index__json={"weight_map": {}}),
        "m/model.safetensors.index.json names no shards: download it again",
    ),
    (
        _folder(model__safetensors__index__json="{"),
        "m/model.safetensors.index.json is not a JSON object: download it again",
    ),
    (
        _missing_shard,
        "xl lacks model-00002-of-00004.safetensors, 1 of its 4 shards in all: download it again",
    ),
    (
        _cut_shard,
        "model-00003-of-00004.safetensors has .* bytes: it looks truncated, download it again",
    ),
    (
        _pipeline_without("condition_encoder"),
        "pipeline lacks its folder condition_encoder: download it again",
    ),
    (_silence(b"junk"), "acestep-v15-turbo/silence_latent.pt cannot be read: download it again"),
    (_silence(Path("x")), "acestep-v15-turbo/silence_latent.pt cannot be read: download it again"),
    (_silence(b""), "acestep-v15-turbo/silence_latent.pt cannot be read: download it again"),
    (
        _silence(torch.zeros(1, 9, 64)),
        r"acestep-v15-turbo/silence_latent.pt must hold a tensor \[1, 64, frames\], it has \[1, 9, 64\]: "
        r"download it again",
    ),
    (
        _silence({"silence": 1}),
        r"acestep-v15-turbo/silence_latent.pt must hold a tensor \[1, 64, frames\], it has dict: download it again",
    ),
]
BAD_DITS = [
    (_tensors(PLANNER), NOT_A_DIT.format(r"an ACE-Step 1.5 planner \(5 Hz LM\)")),
    (_tensors(OTHER_LM), NOT_A_DIT.format("another language model, of 151,936 tokens")),
    (_tensors(tiny.vae), NOT_A_DIT.format("an audio VAE")),
    (_tensors(["genre_embedder.weight"]), NOT_A_DIT.format("ACE-Step 1.0, an older model")),
    (_tensors(["base_model.model.layers.0.q_proj.lora_A.weight"]), NOT_A_DIT.format("a LoRA adapter")),
    (_tensors(["lycoris_layers_0_q_proj.lokr_w1"]), NOT_A_DIT.format("a LoKr adapter")),
    (
        _tensors(["model.diffusion_model.input_blocks.0.0.weight"]),
        NOT_A_DIT.format("a Stable Diffusion checkpoint"),
    ),
    (
        _tensors(["proj_in_conv.weight"]),
        NOT_A_DIT.format("one part of a diffusers pipeline, whose folder is to be chosen as a whole"),
    ),
    (_tensors(["a"]), NOT_A_DIT.format("a model unknown here")),
    (
        _tensors(_dit(without=["decoder.layers.5.mlp.up", "norm_out", "special", "time_embed_r.linear_1"])),
        r"x.safetensors lacks 7 of 329 tensors \(decoder.time_embed_r.linear_1.weight, .*, .*, \.\.\.\): "
        r"it looks incomplete, download it again",
    ),
    (
        _tensors(_dit(without=["decoder.layers.0.self_attn.q_norm"])),
        "x.safetensors lacks decoder.layers.0.self_attn.q_norm.weight: it looks incomplete, download it again",
    ),
    (
        _tensors(_dit(without=["detokenizer"])),
        "x.safetensors lacks detokenizer.layers.0: it looks incomplete, download it again",
    ),
    (
        _tensors(_dit(decoder__norm_in__weight=torch.zeros(1))),
        r"x.safetensors has tensors that an ACE-Step 1.5 diffusion model has not \(decoder.norm_in.weight\): "
        r"it is another model, or one newer than this pack",
    ),
    (
        _tensors(_dit(null_condition_emb=torch.zeros(1, 1, 96))),
        r"x.safetensors has null_condition_emb as \[1, 1, 96\] where its other tensors ask for \[1, 1, 64\]: "
        r"it mixes two models, download it again",
    ),
    (
        lambda path: _official(path, num_hidden_layers=9),
        "acestep-v15-turbo has 8 of 9 decoder layers: it looks incomplete, download it again",
    ),
    (
        lambda path: _official(path, num_lyric_encoder_hidden_layers=8),
        "acestep-v15-turbo has 4 of 8 lyric encoder layers: it looks incomplete, download it again",
    ),
    (
        lambda path: _official(path, hidden_size=96),
        "acestep-v15-turbo contradicts itself: config.json says hidden_size is 96, the weights have 64; "
        "download it again",
    ),
    (
        lambda path: _official(path, num_hidden_layers=7),
        "acestep-v15-turbo contradicts itself: config.json says num_hidden_layers is 7, the weights have 8; "
        "download it again",
    ),
]
BAD_TEXT_ENCODERS = [
    (_tensors(PLANNER), NOT_A_TEXT_ENCODER.format(r"an ACE-Step 1.5 planner \(5 Hz LM\)")),
    (_tensors(OTHER_LM), NOT_A_TEXT_ENCODER.format("another language model, of 151,936 tokens")),
    (_tensors(_dit()), NOT_A_TEXT_ENCODER.format(A_DIT)),
    (
        _tensors(["text_model.encoder.layers.0.mlp.fc1.weight"]),
        NOT_A_TEXT_ENCODER.format("a CLIP text encoder"),
    ),
    (
        _tensors(lambda: {k: t for k, t in tiny.text_encoder().items() if "layers.1.mlp" not in k}),
        r"x.safetensors lacks 3 of 24 tensors \(layers.1.mlp.gate_proj.weight, .*, .*\): "
        r"it looks incomplete, download it again",
    ),
    (
        _tensors(lambda: {k: t for k, t in tiny.text_encoder().items() if "layers" not in k}),
        "x.safetensors lacks layers.0.self_attn.q_norm.weight: it looks incomplete, download it again",
    ),
]
BAD_VAES = [
    (_tensors(_dit()), NOT_A_VAE.format(A_DIT)),
    (_tensors(["decoder.up.0.block.0.conv1.weight"]), NOT_A_VAE.format("an image VAE")),
    (
        _tensors(lambda: {k: t for k, t in tiny.vae().items() if k != "encoder.conv1.weight_g"}),
        'x.safetensors: the VAE has only half of the weight "encoder.conv1.weight": .*',
    ),
    (_tensors(_stable_audio_vae), "x.safetensors: this VAE has 2048 samples a frame, ACE-Step's has 1920"),
    (
        _tensors(_wide_vae),
        r"x.safetensors has tensors that an ACE-Step 1.5 VAE has not \(encoder.extra.weight\): .*",
    ),
]


@pytest.mark.parametrize(
    ("make", "read", "sentence"),
    [
        *((make, files.read_dit, sentence) for make, sentence in BAD_ON_DISK + BAD_DITS),
        *((make, files.read_text_encoder, sentence) for make, sentence in BAD_TEXT_ENCODERS),
        *((make, files.read_vae, sentence) for make, sentence in BAD_VAES),
    ],
)
def test_a_bad_file_gives_one_clear_sentence(tmp_path, make, read, sentence):
    path = make(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError)) as raised:
        read(path)
    assert re.fullmatch(sentence, str(raised.value)), f"{raised.value}\nis not\n{sentence}"


@pytest.mark.parametrize(
    ("weights", "choice", "found", "expected"), [("turbo", "xl-turbo", "2B", "XL"), ("xl-turbo", "turbo", "XL", "2B")]
)
def test_weights_of_the_other_size_than_the_variant_are_refused(tmp_path, weights, choice, found, expected):
    tiny.write_dit_comfy(tmp_path / "x.safetensors", weights)
    sentence = (
        f"x.safetensors holds {found} weights where variant '{choice}' expects {expected}: "
        "choose a file of that size, or variant auto"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        files.read_dit(tmp_path / "x.safetensors", choice)


def test_an_unknown_variant_is_refused_with_the_list(tmp_path):
    tiny.write_dit_comfy(tmp_path / "x.safetensors", "turbo")
    with pytest.raises(ValueError, match=r"variant 'fast' is unknown: choose one of auto, turbo, .*xl-base$"):
        files.read_dit(tmp_path / "x.safetensors", "fast")
