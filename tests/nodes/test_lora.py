"""Adapters on our MODEL in ComfyUI: what they do to the weights, that all of it is undone, and what is said."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import comfy.model_patcher
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import golden_models
import lora_files
import nodes as core_nodes  # ComfyUI's own, not ours
from acestep_pack.acestep_core.lora.files import read_adapter
from acestep_pack.acestep_core.lora.portable import save_portable
from acestep_pack.nodes.host import model as models
from acestep_pack.nodes.host.lora_patch import NETWORK, ChangesPatch, shapes_of
from acestep_pack.nodes.lora import AceStepLoadLora
from golden_models import AceStep, z
from lora_files import FORMATS, Made, modules, name_of, write

CPU = torch.device("cpu")
N_FRAMES, N_STATES = 37, 9
SAME = 1e-5  # of what the DiT puts out, which is around 1


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., object]:
    """Return a loader of the golden 2B model, in a number format."""
    folder = tmp_path_factory.mktemp("golden")
    (folder / "config.json").write_text(json.dumps({"is_turbo": True}))
    save_file(golden_models.weights("2b"), folder / "model.safetensors")
    torch.save(z("gen.silence", 1, 64, 800), folder / "silence_latent.pt")

    @functools.cache
    def loaded(weight_dtype: str = "fp32") -> object:
        with torch.inference_mode():
            return models.load_model(folder, "auto", weight_dtype)

    return loaded


@pytest.fixture
def model(load):
    return load()


@pytest.fixture
def loras(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty models/loras."""
    folder = tmp_path / "loras"
    folder.mkdir()
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(folder)], {".safetensors", ".pt", ".bin"}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


def apply(model, name: str | Path, strength: float = 1.0, *by_part: float):
    """Return what the node makes of a model: by_part is self-attention, cross-attention, MLP, condition encoder."""
    name = name.name + "/" * name.is_dir() if isinstance(name, Path) else name
    return AceStepLoadLora.execute(model, name, strength, *(by_part or (1.0,) * 4))


def patched(model, *names: str | Path, strengths: tuple[float, ...] = (1.0,) * 9):
    for name, strength in zip(names, strengths, strict=False):
        model = apply(model, name, strength).result[0]
    return model


def weights_of(patcher) -> dict[str, Tensor]:
    """Return copies of the network's weights as a run would find them, patches in place."""
    patcher.patch_model(device_to=CPU)
    try:
        state = patcher.model.diffusion_model.state_dict()
        return {name: tensor.detach().clone() for name, tensor in state.items()}
    finally:
        patcher.unpatch_model()


def velocity(network: AceStep, dtype: torch.dtype = torch.float32) -> Tensor:
    x, context = z("x", 1, N_FRAMES, 64).to(dtype), z("context", 1, N_FRAMES, 128).to(dtype)
    return network.velocity(x, torch.tensor([0.7]), context, z("states", 1, N_STATES, 64).to(dtype)).float()


def velocity_of(patcher, dtype: torch.dtype = torch.float32) -> Tensor:
    patcher.patch_model(device_to=CPU)
    try:
        return velocity(patcher.model.diffusion_model, dtype)
    finally:
        patcher.unpatch_model()


def merged_by_hand(*made: Made) -> AceStep:
    """Return a network of the core's own with the sum of what adapters must do to its weights."""
    base = golden_models.weights("2b")
    state = {
        name: weight + sum(each.weights[name] - weight for each in made if name in each.weights)
        for name, weight in base.items()
    }
    network = AceStep(golden_models.config("2b")).eval()
    network.load_state_dict(state)
    return network


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = SAME) -> None:
    error = (ours - theirs).abs().max().item()
    assert error <= tolerance, f"max error {error:.1e} of values up to {theirs.abs().max():.2f}"


def assert_same_weights(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# What it does.


@pytest.mark.parametrize("row", FORMATS)
def test_a_format_makes_what_its_factors_merged_into_the_weights_make(model, loras: Path, row: str) -> None:
    made = write(loras, row, golden_models.weights("2b"))
    ours = velocity_of(patched(model, made.path))
    assert_close(ours, velocity(merged_by_hand(made)))
    assert (ours - velocity_of(model)).abs().max() > 0.05


def test_a_stack_is_the_sum_of_its_adapters_in_any_order(model, loras: Path) -> None:
    rows = ("PEFT folder", "LyCORIS DoKr", "LyCORIS LoHa", "PEFT folder, DoRA")
    made = [write(loras, row, golden_models.weights("2b")) for row in rows]
    paths = [each.path for each in made]
    expected = velocity(merged_by_hand(*made))
    assert_close(velocity_of(patched(model, *paths)), expected)
    assert_close(velocity_of(patched(model, *reversed(paths))), expected)


def test_an_adapter_twice_at_half_is_the_adapter_once(model, loras: Path) -> None:
    path = write(loras, "PEFT folder, DoRA", golden_models.weights("2b")).path
    twice = patched(model, path, path, strengths=(0.5, 0.5))
    assert_close(velocity_of(twice), velocity_of(patched(model, path)))


def test_opposite_strengths_of_one_adapter_cancel(model, loras: Path) -> None:
    path = write(loras, "LyCORIS LoKr", golden_models.weights("2b")).path
    assert_close(velocity_of(patched(model, path, path, strengths=(0.8, -0.8))), velocity_of(model))


def test_a_stack_takes_one_patch_a_weight(model, loras: Path) -> None:
    path = write(loras, "PEFT folder", golden_models.weights("2b")).path
    stack = patched(model, path, path, path)
    assert {len(patches) for patches in stack.patches.values()} == {1}


@pytest.mark.parametrize("row", ["PEFT folder", "PEFT folder, DoRA", "ComfyUI trainer"])
def test_strength_0_is_the_model_bit_for_bit(model, loras: Path, row: str) -> None:
    path = write(loras, row, golden_models.weights("2b")).path
    off = patched(model, path, strengths=(0.0,))
    assert off.patches == {}
    assert torch.equal(velocity_of(off), velocity_of(model))


@pytest.mark.parametrize("part", range(4))
def test_a_part_at_strength_0_is_not_patched_and_the_others_are(model, loras: Path, part: int) -> None:
    path = write(loras, "ComfyUI trainer", golden_models.weights("2b")).path
    words = ((".self_attn",), (".cross_attn",), (".mlp",), (".condition_embedder.", ".encoder."))
    on, off = weights_of(patched(model, path)), apply(model, path, 1.0, *(float(i != part) for i in range(4)))
    off = weights_of(off.result[0])
    base = weights_of(model)
    for name in base:
        mine = any(word in f".{name}" for word in words[part])
        assert torch.equal(off[name], base[name] if mine else on[name]), name


def test_strengths_of_parts_are_times_the_strength(model, loras: Path) -> None:
    path = write(loras, "PEFT folder", golden_models.weights("2b")).path
    base, full = weights_of(model), weights_of(patched(model, path))
    found = weights_of(apply(model, path, 0.5, 3.0, 1.0, -1.0, 1.0).result[0])
    for module, times in (("self_attn.q_proj", 1.5), ("cross_attn.v_proj", 0.5), ("mlp.up_proj", -0.5)):
        name = name_of(f"layers.0.{module}")
        assert_close(found[name], base[name] + times * (full[name] - base[name]))


# Undone.


@pytest.mark.parametrize("row", ["PEFT folder", "PEFT folder, DoRA", "LyCORIS LoKr", "ComfyUI trainer"])
def test_taking_it_off_restores_the_weights_bit_for_bit(model, loras: Path, row: str) -> None:
    path = write(loras, row, golden_models.weights("2b")).path
    before = weights_of(model)
    weights_of(patched(model, path))
    assert_same_weights(weights_of(model), before)


def test_the_model_that_came_in_is_not_touched(model, loras: Path) -> None:
    path = write(loras, "PEFT folder", golden_models.weights("2b")).path
    once = patched(model, path)
    kept = once.patches[NETWORK + name_of(modules()[0])][0][1].weights
    uuid = once.patches_uuid
    twice = patched(once, path)
    assert model.patches == {}
    assert once.patches[NETWORK + name_of(modules()[0])][0][1].weights is kept
    assert (once.patches_uuid, len(kept)) == (uuid, 1)
    assert twice.patches_uuid != uuid


# Under ComfyUI's ways of keeping weights.


@pytest.mark.parametrize("row", ["PEFT folder", "PEFT folder, DoRA", "LyCORIS DoKr, input axis", "LyCORIS LoHa"])
@pytest.mark.parametrize("n_bytes", [1, 200_000])
def test_partly_loaded_weights_are_changed_at_their_use(model, loras: Path, row: str, n_bytes: int) -> None:
    made = write(loras, row, golden_models.weights("2b"))
    before = velocity_of(model)
    patcher = patched(model, made.path)
    patcher.patch_model(device_to=CPU, lowvram_model_memory=n_bytes)
    try:
        late = [m for m in patcher.model.modules() if getattr(m, "weight_function", None)]
        assert late, "everything was loaded"
        ours = velocity(patcher.model.diffusion_model)
    finally:
        patcher.unpatch_model()
    assert_close(ours, velocity(merged_by_hand(made)))
    assert torch.equal(velocity_of(model), before)


@pytest.mark.parametrize(("weight_dtype", "step"), [("bf16", 2**-8), ("fp8_e4m3fn", 2**-3), ("fp8_e5m2", 2**-2)])
@pytest.mark.parametrize("row", ["PEFT folder", "PEFT folder, DoRA", "LyCORIS LoKr"])
def test_narrow_weights_take_an_adapter_to_within_one_step(
    load, loras: Path, row: str, weight_dtype: str, step: float
) -> None:
    narrow = load(weight_dtype)
    before = {name: weight.float() for name, weight in weights_of(narrow).items()}
    made = write(loras, row, before)
    found = weights_of(patched(narrow, made.path))
    smallest = torch.finfo(narrow.model.get_dtype()).smallest_normal  # below it steps no longer shrink
    for name, expected in made.weights.items():
        assert found[name].dtype == narrow.model.get_dtype()
        error = (found[name].float() - expected).abs()
        assert (error <= step * expected.abs().clamp_min(smallest) + 1e-6).all(), name
    assert_same_weights({name: weight.float() for name, weight in weights_of(narrow).items()}, before)


@pytest.mark.parametrize("row", ["PEFT folder", "PEFT folder, DoRA", "LyCORIS LoKr", "LyCORIS LoHa"])
def test_a_patch_that_comfyui_has_moved_ahead_is_the_same(model, loras: Path, row: str) -> None:
    path = write(loras, row, golden_models.weights("2b")).path
    key = NETWORK + name_of(modules()[0])
    late = comfy.model_patcher.LowVramPatch(key, patched(model, path, path).patches)
    weight = golden_models.weights("2b")[name_of(modules()[0])]
    expected = late(weight.clone())
    destination = torch.empty(late.memory_required(), dtype=torch.uint8)
    late.prepare(destination, None)
    (moved,) = [patch[1] for patch in late.prepared_patches]
    assert isinstance(moved, ChangesPatch)
    assert torch.equal(late(weight.clone()), expected)


def test_a_change_that_comfyui_would_pass_over_in_silence_is_left_over_and_said(model, loras: Path) -> None:
    path = write(loras, "ComfyUI trainer", golden_models.weights("2b")).path
    table = "decoder.layers.0.scale_shift_table"
    save_file(load_file(path) | {f"diffusion_model.{table}.diff": torch.ones(1, 6, 64)}, loras / "more.safetensors")
    patcher, report, _ = apply(model, "more.safetensors").result
    assert report.endswith(f"warning: 1 of 26 modules are not used: {table}")
    assert NETWORK + table not in patcher.patches


def test_everything_that_fits_is_patched(model, loras: Path) -> None:
    shapes = shapes_of(model)
    roles = {".weight": ".diff", ".bias": ".diff_b"}
    changes = {
        f"{NETWORK}{name.removesuffix(end)}{role}": 0.1 * z(name, *shape)
        for name, shape in shapes.items()
        for end, role in roles.items()
        if name.endswith(end)
    }
    save_file(changes, loras / "all.safetensors")
    base, found = weights_of(model), weights_of(patched(model, "all.safetensors"))
    assert {name for name in base if not torch.equal(base[name], found[name])} == shapes.keys()


# Beside core's nodes.


def test_core_lora_loader_and_ours_add_up_either_way(model, loras: Path) -> None:
    core = write(loras, "ComfyUI, PEFT names", golden_models.weights("2b"))
    own = write(loras, "LyCORIS LoKr", golden_models.weights("2b"))
    loader = core_nodes.LoraLoaderModelOnly()
    first = patched(loader.load_lora_model_only(model, core.path.name, 1.0)[0], own.path)
    last = loader.load_lora_model_only(patched(model, own.path), core.path.name, 1.0)[0]
    expected = velocity(merged_by_hand(core, own))
    for patcher in (first, last):
        assert_close(velocity_of(patcher), expected)


@pytest.mark.parametrize(
    "row",
    [
        "ComfyUI, PEFT names",
        "ComfyUI, full names",
        "ComfyUI trainer",
        "kohya, full names",
        "LyCORIS LoRA",
        "LyCORIS LoKr",
        "LyCORIS LoHa",
    ],
)
def test_core_lora_loader_agrees_where_it_understands_the_file(model, loras: Path, row: str) -> None:
    path = write(loras, row, golden_models.weights("2b")).path
    core = core_nodes.LoraLoaderModelOnly().load_lora_model_only(model, path.name, 0.7)[0]
    assert_close(velocity_of(patched(model, path, strengths=(0.7,))), velocity_of(core))


@pytest.mark.parametrize("row", [row for row in FORMATS if "Do" not in FORMATS[row][0] and row != "fused projections"])
def test_core_lora_loader_takes_any_format_once_it_is_written_anew(model, loras: Path, row: str) -> None:
    made = write(loras, row, golden_models.weights("2b"))
    save_portable(read_adapter(made.path), loras / "portable.safetensors")
    core = core_nodes.LoraLoaderModelOnly().load_lora_model_only(model, "portable.safetensors", 1.0)[0]
    assert_close(velocity_of(core), velocity(merged_by_hand(made)))


def test_an_adapter_on_a_merge_is_added_in_full(model, loras: Path) -> None:
    path = write(loras, "PEFT folder", golden_models.weights("2b")).path
    merge = model.clone()
    merge.add_patches(model.get_key_patches(NETWORK), 0.5, 0.5)  # a model merged with itself
    assert_close(velocity_of(patched(merge, path)), velocity_of(patched(model, path)))


def test_a_patched_model_can_be_saved_with_the_adapter_in_it(model, loras: Path) -> None:
    made = write(loras, "PEFT folder, DoRA", golden_models.weights("2b"))
    patcher = patched(model, made.path)
    for name, expected in made.weights.items():
        assert_close(patcher.patch_weight_to_device(NETWORK + name, return_weight=True), expected)


# What it says.


def test_the_node_reports_on_its_output_on_itself_and_in_the_log(model, loras: Path, caplog) -> None:
    path = write(loras, "PEFT folder", golden_models.weights("2b")).path
    with caplog.at_level("INFO", "acestep"):
        output = apply(model, path)
    report = output.result[1]
    assert report.splitlines() == [
        "run: PEFT LoRA, rank 4, alpha 8, scale 2",
        "matched 22 of 22 modules: self-attention 8 at 1, cross-attention 8 at 1, mlp 6 at 1",
        "trained on ACE-Step 1.5 of width 64",
    ]
    assert output.ui == {"text": (report,)}
    assert report in caplog.text


@pytest.fixture
def offered(loras: Path) -> list[str]:
    base = golden_models.weights("2b")
    for row in ("PEFT folder", "LyCORIS LoKr", "PEFT, raw dump (.pt)"):
        write(loras, row, base)
    (adapter,) = [given for given in AceStepLoadLora.GET_SCHEMA().inputs if given.id == "adapter"]
    return adapter.options


def test_the_combo_offers_folders_and_files_but_not_the_files_of_folders(offered: list[str]) -> None:
    assert offered == ["run/", "lokrFalseNoneFalse.safetensors", "lora_weights.pt"]


def test_everything_on_offer_loads(model, offered: list[str]) -> None:
    for name in offered:
        assert "matched 22 of 22" in apply(model, name).result[1]


def test_a_file_that_was_saved_over_is_read_again(loras: Path) -> None:
    path = write(loras, "PEFT folder", golden_models.weights("2b")).path
    before = AceStepLoadLora.fingerprint_inputs(adapter="run/", model=None, strength=1.0)
    lora_files.write_config(path, lora_alpha=1.0)
    assert AceStepLoadLora.fingerprint_inputs(adapter="run/", model=None, strength=1.0) != before


def test_a_model_of_another_loader_is_refused(loras: Path) -> None:
    foreign = comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), CPU, CPU)
    with pytest.raises(ValueError, match=r"this MODEL is a Linear from another loader; .*\(AceStepLoadModel\)"):
        apply(foreign, "anything.safetensors")


def test_an_adapter_that_is_gone_says_where_it_belongs(model, loras: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r'"gone\.safetensors" is not in models/loras'):
        apply(model, "gone.safetensors")


def test_a_name_that_leads_out_of_the_folder_is_refused(model, loras: Path) -> None:
    with pytest.raises(ValueError, match="leads outside the models folder"):
        apply(model, "../voice.safetensors")


def test_a_refused_adapter_leaves_the_model_as_it_was(model, loras: Path) -> None:
    save_file({"double_blocks.0.lora_A.weight": torch.ones(4, 4)}, loras / "flux.safetensors")
    with pytest.raises(ValueError, match="an image model"):
        apply(model, "flux.safetensors")
    assert model.patches == {}


def test_a_portable_copy_is_the_same_adapter_and_stays_where_it_is(model, loras: Path, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    made = write(loras, "PEFT folder", golden_models.weights("2b"))
    strengths = (1.0, 1.0, 1.0, 1.0, 1.0)
    patcher, report, file = AceStepLoadLora.execute(model, "run/", *strengths, portable_copy="mine/voice").result
    path = tmp_path / "output" / file
    assert file == "loras/mine/voice.safetensors"
    assert report.endswith(f"portable copy: {file}")
    shutil.copy(path, loras / "voice.safetensors")
    one, other = weights_of(patcher), weights_of(apply(model, "voice.safetensors").result[0])
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=1e-6, rtol=0)
    before = path.stat().st_mtime_ns
    AceStepLoadLora.execute(model, "run/", *strengths, portable_copy="mine/voice.safetensors")
    assert path.stat().st_mtime_ns == before
    assert made.path.exists()


def test_the_portable_file_told_is_this_adapter_whatever_had_its_name(
    model, loras: Path, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    base, strengths = golden_models.weights("2b"), (1.0, 1.0, 1.0, 1.0, 1.0)
    names = {row: write(loras, row, base).path.relative_to(loras).as_posix() for row in ("bare names", "LyCORIS LoKr")}
    copy = "loras/voice{}.safetensors"
    notes = {
        ("bare names", 0): copy.format(""),
        ("LyCORIS LoKr", 1): f"{copy.format('_2')} ({copy.format('')} holds something else and stays)",
        ("bare names", 2): f"{copy.format('')} (kept: it holds this adapter already)",
    }
    for (row, _), note in notes.items():
        _, report, file = AceStepLoadLora.execute(model, names[row], *strengths, portable_copy="voice").result
        assert report.endswith(f"portable copy: {note}")
        again, given = read_adapter(tmp_path / "output" / file), read_adapter(loras / names[row])
        assert again.changes.keys() == given.changes.keys()
        for name, change in given.changes.items():
            torch.testing.assert_close(
                change.scale * change.factors.matrix(), again.changes[name].scale * again.changes[name].factors.matrix()
            )


def test_a_portable_copy_never_leaves_the_output_folder(model, loras: Path) -> None:
    write(loras, "PEFT folder", golden_models.weights("2b"))
    with pytest.raises(ValueError, match="leads out of ComfyUI's output folder"):
        AceStepLoadLora.execute(model, "run/", 1.0, 1.0, 1.0, 1.0, 1.0, portable_copy="../voice")


def test_a_portable_copy_goes_through_no_link_out_of_the_output_folder(
    model, loras: Path, tmp_path, tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    write(loras, "PEFT folder", golden_models.weights("2b"))
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    away = tmp_path_factory.mktemp("elsewhere")
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "loras").symlink_to(away)
    with pytest.raises(
        ValueError, match=r'portable_copy "voice" leads out of ComfyUI\'s output folder, through a link'
    ):
        AceStepLoadLora.execute(model, "run/", 1.0, 1.0, 1.0, 1.0, 1.0, portable_copy="voice")
    assert list(away.iterdir()) == []
