"""An adapter written anew is the adapter that was read, alpha in its factors, and says what others cannot read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import convert_lora
import golden_models
import lora_files
from acestep_pack.acestep_core.lora.change import merged
from acestep_pack.acestep_core.lora.files import Adapter, read_adapter
from acestep_pack.acestep_core.lora.fit import fit
from acestep_pack.acestep_core.lora.portable import keep_portable, save_portable
from lora_files import write

BASE = golden_models.weights("2b")
SHAPES = {name: weight.shape for name, weight in BASE.items()}
OF_PEFT = [
    row
    for row, (title, _) in lora_files.FORMATS.items()
    if not title.startswith(("LyCORIS Lo", "LyCORIS Do")) or title == "LyCORIS LoRA"
]
OF_PEFT.remove("ComfyUI trainer")


def assert_same(found: Adapter, expected: dict) -> None:
    changes = fit(found, SHAPES).changes
    assert changes.keys() == expected.keys()
    for name in expected:
        assert (merged(BASE[name], [(1.0, changes[name])]) - expected[name]).abs().max() <= 1e-5, name


def new_folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("row", lora_files.FORMATS)
def test_a_file_of_any_format_is_the_same_after_it_was_written_anew(tmp_path: Path, row: str) -> None:
    made = write(tmp_path, row, BASE)
    save_portable(read_adapter(made.path), tmp_path / "out.safetensors")
    again = read_adapter(tmp_path / "out.safetensors")
    assert again.notes == ()
    assert_same(again, made.weights)


@pytest.mark.parametrize("row", OF_PEFT)
def test_a_lora_of_any_format_can_be_a_peft_folder(tmp_path: Path, row: str) -> None:
    made = write(tmp_path, row, BASE)
    save_portable(read_adapter(made.path), tmp_path / "out")
    assert_same(read_adapter(tmp_path / "out"), made.weights)
    assert_same(read_adapter(tmp_path / "out" / "adapter_model.safetensors"), made.weights)


@pytest.mark.parametrize("row", ["LyCORIS LoKr", "LyCORIS LoHa", "ComfyUI trainer"])
def test_what_is_no_lora_is_not_written_as_a_peft_folder(tmp_path: Path, row: str) -> None:
    adapter = read_adapter(write(tmp_path, row, BASE).path)
    with pytest.raises(ValueError, match=r"holds more than PEFT's folders can: write a single file, out\.safetensors"):
        save_portable(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_lora_is_written_without_an_alpha_under_names_that_diffusers_takes_too(tmp_path: Path) -> None:
    save_portable(read_adapter(write(tmp_path, "kohya, short names", BASE).path), tmp_path / "out.safetensors")
    assert all("lora" in key for key in load_file(tmp_path / "out.safetensors"))


def test_the_trigger_word_and_where_it_came_from_are_kept(tmp_path: Path) -> None:
    made = write(tmp_path, "bare names", BASE)
    save_file(load_file(made.path), made.path, metadata={"tag": "xylophonia"})
    save_portable(read_adapter(made.path), tmp_path / "out.safetensors")
    assert read_adapter(tmp_path / "out.safetensors").trigger == "xylophonia"
    with safe_open(tmp_path / "out.safetensors", framework="pt") as opened:
        assert opened.metadata()["source_format"] == "LoRA"


def test_what_other_programs_will_not_read_is_said(tmp_path: Path) -> None:
    (lokr,) = save_portable(read_adapter(write(tmp_path, "LyCORIS LoKr", BASE).path), tmp_path / "a.safetensors")
    (dora,) = save_portable(read_adapter(write(tmp_path, "PEFT folder, DoRA", BASE).path), tmp_path / "b.safetensors")
    assert lokr == "22 of 22 changes are not LoRA: PEFT and diffusers will not read those"
    assert dora.startswith("it has DoRA magnitudes")
    assert save_portable(read_adapter(write(tmp_path, "diffusers", BASE).path), tmp_path / "c.safetensors") == []


KINDS = ["bare names", "LyCORIS LoHa", "LyCORIS LoKr", "PEFT folder, DoRA"]


@pytest.mark.parametrize("order", [(0, 0), (0, 1, 0, 1), (2, 0, 1, 2, 3, 0), (3, 2, 1, 0, 0, 1, 2, 3)])
def test_adapters_kept_under_one_name_are_each_in_the_file_told_and_once(tmp_path: Path, order: tuple) -> None:
    made = [write(new_folder(tmp_path / str(n)), kind, BASE) for n, kind in enumerate(KINDS)]
    told: dict[int, Path] = {}
    for each in order:
        file, was_there = keep_portable(read_adapter(made[each].path), tmp_path / "kept" / "v1.5.safetensors")
        assert was_there == (each in told)
        assert told.setdefault(each, file) == file
        for one, kept in told.items():
            assert_same(read_adapter(kept), made[one].weights)
    names = ["v1.5.safetensors", *(f"v1.5_{number}.safetensors" for number in range(2, len(told) + 1))]
    assert [file.name for file in told.values()] == names
    assert {file.name for file in (tmp_path / "kept").iterdir()} == {*names}


def test_the_same_adapter_of_another_trainer_is_kept_once(tmp_path: Path) -> None:
    told = [
        keep_portable(read_adapter(write(tmp_path, kind, BASE).path), tmp_path / "kept.safetensors")
        for kind in ("bare names", "PEFT folder")
    ]
    assert told == [(tmp_path / "kept.safetensors", False), (tmp_path / "kept.safetensors", True)]


@pytest.mark.parametrize("content", [b"", b"not an adapter", None])
def test_whatever_else_has_the_name_stays(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "voice.safetensors"
    path.mkdir() if content is None else path.write_bytes(content)
    made = write(new_folder(tmp_path / "made"), "bare names", BASE)
    file, was_there = keep_portable(read_adapter(made.path), path)
    assert (file.name, was_there) == ("voice_2.safetensors", False)
    assert_same(read_adapter(file), made.weights)
    assert path.is_dir() if content is None else path.read_bytes() == content


@pytest.mark.parametrize("change", ["one bit", "the number format", "a tensor less", "the trigger word"])
def test_a_file_with_almost_the_same_adapter_is_another(tmp_path: Path, change: str) -> None:
    made = write(tmp_path, "bare names", BASE)
    first, _ = keep_portable(read_adapter(made.path), tmp_path / "kept.safetensors")
    tensors = load_file(made.path)
    name = next(iter(tensors))
    if change == "one bit":
        tensors[name].view(-1)[0] = tensors[name].view(-1)[0].nextafter(torch.tensor(9.0))
    elif change == "the number format":
        tensors = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    elif change == "a tensor less":
        module = name.rpartition(".")[0]
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{module}.")}
    save_file(tensors, made.path, metadata={"tag": "xylophonia"} if change == "the trigger word" else None)
    second, was_there = keep_portable(read_adapter(made.path), tmp_path / "kept.safetensors")
    assert (first.name, second.name, was_there) == ("kept.safetensors", "kept_2.safetensors", False)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    made = write(tmp_path, "bare names", BASE)
    with pytest.raises(FileExistsError, match=r"bare\.safetensors exists already"):
        save_portable(read_adapter(made.path), made.path)


def test_a_disk_that_refuses_a_copy_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    made, kept = write(new_folder(tmp_path / "made"), "bare names", BASE), tmp_path / "kept"
    for name in ("link", "replace", "rename"):
        monkeypatch.setattr(os, name, full)
    with pytest.raises(ValueError, match=f"^voice.safetensors cannot be written to {kept}: No space left on device"):
        keep_portable(read_adapter(made.path), kept / "voice.safetensors")
    assert list(kept.iterdir()) == []


def test_the_script_converts(tmp_path: Path, pack_root: Path) -> None:
    made = write(tmp_path, "LyCORIS LoRA", BASE)
    command = [sys.executable, str(pack_root / "scripts/convert_lora.py"), str(made.path), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"{tmp_path / 'out'}: 22 changes from LyCORIS LoRA\n", 0), done.stderr
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["lora_alpha"] == lora_files.RANK


def test_the_script_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["convert_lora.py", str(tmp_path / "gone.safetensors"), str(tmp_path / "out")])
    with pytest.raises(SystemExit, match=r"^gone\.safetensors is not in "):
        convert_lora.main()
    assert list(tmp_path.iterdir()) == []
