"""Every trainer's adapter file comes to the same changes, and what is no adapter of the model is refused by name."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import golden_models
import lora_files
import tiny_models as tiny
from acestep_pack.acestep_core.lora.change import merged
from acestep_pack.acestep_core.lora.files import FORMATS, read_adapter
from acestep_pack.acestep_core.lora.fit import Strengths, describe, fit, part_of
from acestep_pack.acestep_core.lora.names import FLAT_PREFIXES, exists, flattened, path_of
from acestep_pack.acestep_core.lora.source import files_of, list_adapter_folders
from lora_files import ALPHA, PEFT, RANK, modules, write, write_config

SHAPES = {size: {name: t.shape for name, t in golden_models.weights(size).items()} for size in ("2b", "xl")}
BASE = golden_models.weights("2b")
N_MODULES = len(modules())


def lora(names: dict[str, list[int]], rank: int = RANK, down: str = ".lora_A.weight", up: str = ".lora_B.weight"):
    """Return a LoRA's tensors for modules of these shapes, as the file calls them."""
    made = {}
    for name, (rows, columns) in names.items():
        made |= {name + down: torch.ones(rank, columns), name + up: torch.ones(rows, rank)}
    return made


def attention(prefix: str, width: int, layers: range, which: tuple[str, ...] = ("self_attn", "cross_attn")) -> dict:
    """Return the shapes of query projections: 16 heads of 16 in a model of width 64."""
    return {f"{prefix}layers.{i}.{each}.q_proj": [4 * width, width] for i in layers for each in which}


def saved(folder: Path, tensors: dict, name: str = "voice.safetensors", **metadata: str) -> Path:
    save_file(tensors, folder / name, metadata=metadata or None)
    return folder / name


def refusal(path: Path, size: str = "2b") -> str:
    """Return the one sentence that a file is refused with."""
    with pytest.raises(ValueError, match=r"^[^\n]+$") as caught:
        fit(read_adapter(path), SHAPES[size])
    return str(caught.value)


# Every format.


@pytest.mark.parametrize("row", lora_files.FORMATS)
def test_a_format_comes_to_the_weights_of_the_plain_formula(tmp_path: Path, row: str) -> None:
    made = write(tmp_path, row, BASE)
    adapter = read_adapter(made.path)
    found = fit(adapter, SHAPES["2b"])
    assert adapter.format == lora_files.FORMATS[row][0]
    assert found.changes.keys() == made.weights.keys()
    assert found.left_over == ()
    for name, expected in made.weights.items():
        ours = merged(BASE[name], [(1.0, found.changes[name])])
        assert ours.shape == expected.shape
        assert (ours - expected).abs().max() <= 1e-5, name


def test_every_known_format_has_a_row() -> None:
    without_peers = {"PEFT LoKr", "PEFT LoHa", "LyCORIS DoRA"}  # in tests/parity/test_lora_peers.py
    assert {title for title, _ in FORMATS} - without_peers == {title for title, _ in lora_files.FORMATS.values()}


def test_a_format_is_told_by_content_and_not_by_the_file_name(tmp_path: Path) -> None:
    made = write(tmp_path, "LyCORIS LoKr", BASE)
    renamed = made.path.rename(tmp_path / "pytorch_lora_weights.safetensors")
    assert read_adapter(renamed).format == "LyCORIS LoKr"


@pytest.mark.parametrize("inner", ["adapter", "final/adapter", "final", "best"])
def test_an_adapter_is_found_where_trainers_put_it(tmp_path: Path, inner: str) -> None:
    made = write(tmp_path, "PEFT folder", BASE)
    target = tmp_path / "whole run" / inner
    target.parent.mkdir(parents=True)
    made.path.rename(target)
    adapter = read_adapter(tmp_path / "whole run")
    assert len(adapter.changes) == N_MODULES
    assert {change.scale for change in adapter.changes.values()} == {ALPHA / RANK}
    assert [file.name for file in files_of(tmp_path / "whole run")] == [
        "adapter_model.safetensors",
        "adapter_config.json",
    ]


def test_peft_folders_are_listed_and_hidden_ones_are_not(tmp_path: Path) -> None:
    for name in ("b/final/adapter", "a", ".cache/c"):
        (tmp_path / name).mkdir(parents=True)
        write_config(tmp_path / name)
    write_config(tmp_path)
    assert list_adapter_folders(tmp_path) == ["a/", "b/final/adapter/"]


def test_a_stray_config_does_not_scale_a_flat_file_beside_it(tmp_path: Path) -> None:
    made = write(tmp_path, "PEFT, wrapped twice", BASE)
    write_config(tmp_path, lora_alpha=64)
    assert {change.scale for change in read_adapter(made.path).changes.values()} == {1.0}


def test_the_file_of_a_peft_folder_reads_the_config_beside_it(tmp_path: Path) -> None:
    made = write(tmp_path, "PEFT folder", BASE)
    adapter = read_adapter(made.path / "adapter_model.safetensors")
    assert {change.scale for change in adapter.changes.values()} == {ALPHA / RANK}


def test_rank_64_with_alpha_128_is_twice_its_factors(tmp_path: Path) -> None:
    saved(tmp_path, lora(attention(PEFT, 64, range(2)), rank=64), "adapter_model.safetensors")
    write_config(tmp_path, r=64, lora_alpha=128)
    assert {change.scale for change in read_adapter(tmp_path).changes.values()} == {2.0}


def test_every_module_of_the_model_survives_being_flattened() -> None:
    for size in SHAPES:
        for name in SHAPES[size]:
            path = name.removesuffix(".weight").removesuffix(".bias")
            assert exists(path)
            for prefix in FLAT_PREFIXES:
                assert path_of(prefix + flattened(path)) == path
                assert path_of(prefix + flattened(path.removeprefix("decoder."))) == path


# What is said of it.


def test_the_report_says_format_rank_alpha_matches_size_and_trigger(tmp_path: Path) -> None:
    path = saved(tmp_path, lora(attention(PEFT, 64, range(8))), trigger_word="xylophonia", alpha_baked="true")
    adapter = read_adapter(path)
    assert describe(adapter, fit(adapter, SHAPES["2b"]), Strengths(0.5, cross_attention=0.4)).splitlines() == [
        "voice.safetensors: PEFT LoRA, rank 4, alpha 4, scale 1",
        "matched 16 of 16 modules: self-attention 8 at 0.5, cross-attention 8 at 0.2",
        "trained on ACE-Step 1.5 of width 64",
        "trigger word: xylophonia",
    ]


@pytest.mark.parametrize(("width", "size"), [(2048, "2B (width 2048)"), (2560, "XL (width 2560)")])
def test_the_released_sizes_are_called_by_their_names(tmp_path: Path, width: int, size: str) -> None:
    path = saved(tmp_path, lora(attention(PEFT, width, range(1))))
    assert refusal(path) == (
        f"voice.safetensors is for ACE-Step 1.5 {size}, and this model is of width 64: choose an adapter of its size, "
        "or load the other model"
    )


def test_a_partial_match_lists_what_was_left_over(tmp_path: Path) -> None:
    names = {**attention(PEFT, 64, range(9)), "lora_te1_text_model_encoder_layers_0_mlp_fc1": [64, 64]}
    adapter = read_adapter(saved(tmp_path, {**lora(names), "epoch": torch.ones(1)}, alpha_baked="true"))
    found = fit(adapter, SHAPES["2b"])
    assert (len(found.changes), found.n_modules) == (16, 20)
    assert describe(adapter, found, Strengths()).splitlines()[-1] == (
        "warning: 4 of 20 modules are not used: lora_te1_text_model_encoder_layers_0_mlp_fc1, epoch, "
        "decoder.layers.8.cross_attn.q_proj, decoder.layers.8.self_attn.q_proj"
    )


@pytest.mark.parametrize("row", ["PEFT, raw dump (.pt)", "PEFT, wrapped twice"])
def test_a_file_that_does_not_say_alpha_is_taken_times_one_and_it_is_said(tmp_path: Path, row: str) -> None:
    adapter = read_adapter(write(tmp_path, row, BASE).path)
    (note,) = adapter.notes
    assert describe(adapter, fit(adapter, SHAPES["2b"]), Strengths()).splitlines()[0].endswith(", rank 4, scale 1")
    assert note.startswith("alpha is unknown")
    assert "strength 2 would match" in note


@pytest.mark.parametrize("row", [row for row in lora_files.FORMATS if "raw" not in row and "twice" not in row])
def test_a_whole_adapter_gives_nothing_to_worry_about(tmp_path: Path, row: str) -> None:
    assert read_adapter(write(tmp_path, row, BASE).path).notes == ()


def test_an_adapter_that_was_never_trained_is_told(tmp_path: Path) -> None:
    tensors = {key: t * ("lora_A" in key) for key, t in lora(attention(PEFT, 64, range(2))).items()}
    adapter = read_adapter(saved(tmp_path, tensors, alpha_baked="true"))
    assert adapter.notes == ("every change is zero: this adapter was never trained",)


def test_strength_0_is_told(tmp_path: Path) -> None:
    adapter = read_adapter(saved(tmp_path, lora(attention(PEFT, 64, range(2))), alpha_baked="true"))
    report = describe(adapter, fit(adapter, SHAPES["2b"]), Strengths(0.0))
    assert report.endswith("warning: the strength of every part that this adapter changes is 0, so nothing is changed")


@pytest.mark.parametrize(
    ("weight", "part"),
    [
        ("decoder.layers.3.self_attn.q_proj.weight", "self_attention"),
        ("decoder.layers.3.self_attn_norm.weight", "self_attention"),
        ("decoder.layers.3.cross_attn.o_proj.weight", "cross_attention"),
        ("decoder.layers.3.cross_attn_norm.weight", "cross_attention"),
        ("decoder.layers.3.mlp.down_proj.weight", "mlp"),
        ("decoder.layers.3.mlp_norm.weight", "mlp"),
        ("decoder.condition_embedder.weight", "condition_encoder"),
        ("encoder.lyric_encoder.layers.0.self_attn.q_proj.weight", "condition_encoder"),
        ("decoder.layers.3.scale_shift_table", "other"),
        ("decoder.time_embed.time_proj.weight", "other"),
        ("tokenizer.audio_acoustic_proj.weight", "other"),
    ],
)
def test_a_weight_belongs_to_a_part(weight: str, part: str) -> None:
    assert part_of(weight) == part
    strengths = Strengths(2.0, 3.0, 5.0, 7.0, 11.0)
    factors = {"self_attention": 3.0, "cross_attention": 5.0, "mlp": 7.0, "condition_encoder": 11.0, "other": 1.0}
    assert strengths.of(weight) == 2.0 * factors[part]


# Refused by name.

FITTING = "choose one that was trained on ACE-Step 1.5's music model"
IMAGE = {
    "transformer.single_transformer_blocks.0.attn.to_q": "an image model (Flux)",
    "lora_unet_double_blocks_0_img_attn_qkv": "an image model (Flux)",
    "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": "an image model (Stable Diffusion)",
    "diffusion_model.joint_blocks.0.x_block.attn.qkv": "an image model (Stable Diffusion 3)",
    "lora_te1_text_model_encoder_layers_0_mlp_fc1": "the text encoder of an image model",
    "transformer_blocks.0.attn.to_q": "ACE-Step 1.0, an older model",
    "lora_unet_something_else": "another model",
}


@pytest.mark.parametrize(("module", "kind"), IMAGE.items())
def test_an_adapter_of_another_model_is_refused_by_its_name(tmp_path: Path, module: str, kind: str) -> None:
    path = saved(tmp_path, lora({module: [64, 64]}))
    assert refusal(path) == (
        f"voice.safetensors is an adapter for {kind} (its first tensor is {module}.lora_A.weight): {FITTING}"
    )


PLANNER = [
    attention(PEFT + "model.", 64, range(2), ("self_attn",)),
    attention(PEFT, 64, range(28), ("self_attn",)),  # as wide as 2B, with 28 layers for its 24
    attention("lora_unet_", 64, range(36), ("self_attn",)),
    {PEFT + "lm_head": [64, 64]},
]


@pytest.mark.parametrize("names", PLANNER, ids=["causal", "bare", "36 layers", "head"])
def test_an_adapter_of_the_planner_is_refused(tmp_path: Path, names: dict) -> None:
    names = {key.replace(".", "_") if key.startswith("lora_unet_") else key: shape for key, shape in names.items()}
    assert refusal(saved(tmp_path, lora(names))) == (
        "voice.safetensors is an adapter for a language model such as the planner (5 Hz LM), not for the music model: "
        + FITTING
    )


def test_peft_config_tells_the_planner_too(tmp_path: Path) -> None:
    saved(tmp_path, lora(attention(PEFT, 64, range(2), ("self_attn",))), "adapter_model.safetensors")
    write_config(tmp_path, task_type="CAUSAL_LM")
    assert "is an adapter for a language model such as the planner" in refusal(tmp_path)


def test_an_adapter_of_self_attention_alone_is_no_planner(tmp_path: Path) -> None:
    path = saved(tmp_path, lora(attention(PEFT, 64, range(8), ("self_attn",))))
    assert len(fit(read_adapter(path), SHAPES["2b"]).changes) == 8


@pytest.mark.parametrize(("size", "other"), [("2b", "xl"), ("xl", "2b")])
@pytest.mark.parametrize("row", ["PEFT folder", "LyCORIS LoKr", "LyCORIS LoHa", "diffusers"])
def test_an_adapter_of_the_other_size_is_refused(tmp_path: Path, row: str, size: str, other: str) -> None:
    made = write(tmp_path, row, golden_models.weights(size))
    width = {"2b": 64, "xl": 96}
    assert refusal(made.path, other) == (
        f"{made.path.name} is for ACE-Step 1.5 of width {width[size]}, and this model is of width {width[other]}: "
        "choose an adapter of its size, or load the other model"
    )


def test_a_whole_model_is_refused(tmp_path: Path) -> None:
    tiny.write_dit_comfy(tmp_path / "acestep_v1.5_turbo.safetensors", "turbo")
    assert refusal(tmp_path / "acestep_v1.5_turbo.safetensors") == (
        "acestep_v1.5_turbo.safetensors is not an adapter, it looks like an ACE-Step 1.5 diffusion model: an adapter "
        "has names such as lora_A or lokr_w1; load whole models with Load ACE-Step Model"
    )


def test_an_empty_set_of_tensors_is_refused(tmp_path: Path) -> None:
    assert "it looks like an empty file" in refusal(saved(tmp_path, {}))


@pytest.mark.parametrize(
    ("key", "kind"), [("oft_R.weight", "OFT"), ("oft_blocks", "OFT"), ("vera_lambda_b", "VERA"), ("ia3_l", "IA3")]
)
def test_a_method_that_is_not_supported_is_refused(tmp_path: Path, key: str, kind: str) -> None:
    path = saved(tmp_path, {f"{PEFT}layers.0.self_attn.q_proj.{key}": torch.ones(4, 4)})
    assert refusal(path) == (
        f"voice.safetensors is an adapter of kind {kind}, which is not supported: use LoRA, DoRA, LoKr or LoHa"
    )


def test_a_method_is_told_by_the_config_too(tmp_path: Path) -> None:
    saved(tmp_path, lora(attention(PEFT, 64, range(1))), "adapter_model.safetensors")
    write_config(tmp_path, peft_type="RANDLORA")
    assert "is an adapter of kind RANDLORA, which is not supported" in refusal(tmp_path)


@pytest.mark.parametrize("ending", [0.3, 0.95])
@pytest.mark.parametrize("row", ["kohya, full names", "PEFT, raw dump (.pt)"])
def test_a_truncated_file_is_refused(tmp_path: Path, row: str, ending: float) -> None:
    path = write(tmp_path, row, BASE).path
    content = path.read_bytes()
    path.write_bytes(content[: int(ending * len(content))])
    assert path.name in refusal(path)


class Trap:
    """What a malicious file holds: unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["voice.pt", "adapter_model.bin", "voice.safetensors"])
def test_a_file_with_code_in_it_is_refused_and_the_code_does_not_run(tmp_path: Path, name: str) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"layers.0.self_attn.q_proj.lora_A.weight": Trap(sprung)}, tmp_path / name)
    assert refusal(tmp_path / name) == (
        f"{name} holds more than tensors, which could run code: nothing was loaded from it; get the .safetensors "
        "version"
    )
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["voice.pt", "voice.bin", "voice.safetensors"])
def test_a_plain_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path, name: str) -> None:
    sprung = tmp_path / "sprung"
    (tmp_path / name).write_bytes(pickle.dumps({"layers.0.self_attn.q_proj.lora_A.weight": Trap(sprung)}))
    assert refusal(tmp_path / name).startswith(name)
    assert not sprung.exists()


def test_magnitudes_of_another_shape_are_refused(tmp_path: Path) -> None:
    key = PEFT + "layers.0.mlp.up_proj"
    path = saved(tmp_path, lora({key: [192, 64]}) | {f"{key}.dora_scale": torch.ones(3, 1)})
    assert refusal(path) == (
        "voice.safetensors has magnitudes [3, 1] for decoder.layers.0.mlp.up_proj.weight, which is [192, 64]: the "
        "file is damaged, or of a kind that is not supported"
    )


def test_lengths_of_columns_are_not_divided_over_fused_projections(tmp_path: Path) -> None:
    key = "layers.0.self_attn.to_qkv"
    path = saved(tmp_path, lora({key: [512, 64]}) | {f"{key}.dora_scale": torch.ones(1, 64)})
    assert "has magnitudes [1, 64] for decoder.layers.0.self_attn.qkv_proj.weight" in refusal(path)


def test_a_pickle_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "voice.pt")
    assert refusal(tmp_path / "voice.pt").startswith("voice.pt is not an adapter: it must hold tensors by name")


def test_a_folder_without_weights_says_what_belongs_in_it(tmp_path: Path) -> None:
    write_config(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no adapter weights: one of adapter_model\.safetensors, "):
        read_adapter(tmp_path)


CONTRADICTIONS = {
    "rank": ({"r": 8}, "says rank 8 for decoder.layers.0.cross_attn.k_proj, the tensors have 4"),
    "rank pattern": ({"rank_pattern": {"5.mlp.up_proj": 2}}, "says rank 2 for decoder.layers.5.mlp.up_proj"),
    "dora": ({"use_dora": True}, "says use_dora true, the tensors have no magnitudes"),
    "method": ({"peft_type": "LOKR"}, "says peft_type LOKR, the tensors are those of a LowRank adapter"),
    "modules": ({"target_modules": ["q_proj", "k_proj"]}, "says target_modules k_proj, q_proj, the tensors change "),
}


@pytest.mark.parametrize("said", CONTRADICTIONS)
def test_a_config_that_contradicts_the_tensors_is_refused(tmp_path: Path, said: str) -> None:
    path = write(tmp_path, "PEFT folder", BASE).path
    given, sentence = CONTRADICTIONS[said]
    write_config(path, **given)
    message = refusal(path)
    assert message.startswith(f"run contradicts itself: adapter_config.json {sentence}")
    assert message.endswith("copy both files from the same save")


def test_magnitudes_that_the_config_does_not_know_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "PEFT folder, DoRA", BASE).path
    write_config(path)
    assert "says use_dora false, the tensors have magnitudes" in refusal(path)


def test_a_broken_config_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, "PEFT folder", BASE).path
    (path / "adapter_config.json").write_text("{")
    assert refusal(path) == "run/adapter_config.json is not a JSON object: download it again"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_diverged_are_refused(tmp_path: Path, value: float) -> None:
    tensors = lora(attention(PEFT, 64, range(2)))
    tensors[f"{PEFT}layers.1.self_attn.q_proj.lora_B.weight"][3, 1] = value
    assert refusal(saved(tmp_path, tensors)) == (
        f"voice.safetensors holds NaN or infinity in {PEFT}layers.1.self_attn.q_proj: its training diverged, use an "
        "earlier save"
    )


def test_factors_of_two_ranks_are_refused(tmp_path: Path) -> None:
    tensors = lora({PEFT + "layers.0.mlp.up_proj": [192, 64]})
    tensors[PEFT + "layers.0.mlp.up_proj.lora_B.weight"] = torch.ones(192, 5)
    assert refusal(saved(tmp_path, tensors)) == (
        "voice.safetensors is damaged at decoder.layers.0.mlp.up_proj, its two factors [192, 5] and [4, 64] do not "
        "belong together: download it again"
    )


def test_a_change_of_another_shape_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, lora({PEFT + "layers.0.self_attn.q_proj": [320, 64]}))
    assert refusal(path) == (
        "voice.safetensors changes decoder.layers.0.self_attn.q_proj.weight as [320, 64], and this model has it as "
        "[256, 64]: choose an adapter that was trained on it"
    )


def test_an_adapter_of_which_nothing_fits_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, lora(attention(PEFT, 64, range(40, 41))))
    assert refusal(path) == (
        "none of the 2 modules of voice.safetensors are in this model (the first is "
        "decoder.layers.40.cross_attn.q_proj): choose an adapter that was trained on it"
    )


def test_one_weight_under_two_names_is_refused(tmp_path: Path) -> None:
    one, two = ({prefix + "layers.0.mlp.up_proj": [192, 64]} for prefix in (PEFT, "transformer."))
    message = refusal(saved(tmp_path, lora(one | two)))
    assert "changes decoder.layers.0.mlp.up_proj.weight under two names" in message


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    names = {PEFT + "layers.0.mlp.up_proj": [192, 64]}
    one, two = (lora(names, down=f".lora_A.{n}.weight", up=f".lora_B.{n}.weight") for n in ("a", "b"))
    assert "has two tensors for down of base_model.model.layers.0.mlp.up_proj" in refusal(saved(tmp_path, one | two))


@pytest.mark.parametrize("role", ["lora_mid.weight", "lokr_t2"])
def test_a_module_with_a_part_that_is_not_understood_is_left_out_whole(tmp_path: Path, role: str) -> None:
    names = {PEFT + "layers.0.mlp.up_proj": [192, 64], PEFT + "layers.1.mlp.up_proj": [192, 64]}
    path = saved(tmp_path, {**lora(names), f"{PEFT}layers.1.mlp.up_proj.{role}": torch.ones(4, 4)})
    found = fit(read_adapter(path), SHAPES["2b"])
    assert list(found.changes) == ["decoder.layers.0.mlp.up_proj.weight"]
    assert found.left_over == (PEFT + "layers.1.mlp.up_proj",)


def test_the_lora_page_lists_exactly_the_formats_that_are_tested() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lora.md").read_text(encoding="utf-8")
    table = page.split("| file | the node says |\n|---|---|\n")[1].split("\n\n")[0]
    assert table.splitlines() == [f"| {row} | {title} |" for row, (title, _) in lora_files.FORMATS.items()]
