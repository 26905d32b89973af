"""Codes as files: names that every system takes, and never another file than the one that was chosen."""

from __future__ import annotations

from pathlib import Path

import folder_paths
import pytest

from acestep_pack.acestep_core.bundle import clean_prefix
from acestep_pack.acestep_core.codes.files import save
from acestep_pack.acestep_core.types import AudioCodes
from acestep_pack.nodes.codes import AceStepLoadCodes, AceStepSaveCodes

CODES, OTHERS = AudioCodes(((1, 2, 3),)), AudioCodes(((4,),))


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("input", "output"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(folder_paths, f"{name}_directory", str(tmp_path / name))
    return tmp_path


@pytest.mark.parametrize("prefix", ["codes/a", "aux.flac", "<|audio_code_1|>x", "a\\b", "con", "\u65e5\u672c"])
def test_codes_are_saved_under_a_name_that_every_system_takes(folders: Path, prefix: str) -> None:
    (file,) = AceStepSaveCodes.execute(CODES, prefix).result
    assert file == f"{clean_prefix(prefix)}_00001_.codes.json"
    assert AceStepLoadCodes.execute(file).result == (CODES,)


@pytest.mark.parametrize("prefix", ["../a", "..\\a", "/tmp/a", "C:a", "", "n" * 161, "\u65e5" * 60])
def test_a_prefix_that_no_file_can_have_is_refused_as_saves_is(folders: Path, prefix: str) -> None:
    with pytest.raises(ValueError, match=r"^filename_prefix "):
        AceStepSaveCodes.execute(CODES, prefix)
    assert [path for path in folders.rglob("*") if path.is_file()] == []


def test_a_codes_file_that_is_gone_is_told_and_no_other_of_its_name_is_taken(folders: Path) -> None:
    (file,) = AceStepSaveCodes.execute(CODES, "codes/a").result
    (folders / "output" / file).unlink()
    save(OTHERS, folders / "input" / Path(file).name)
    sentence = f'"{file}" is gone; choose another codes file'
    assert AceStepLoadCodes.validate_inputs(file) == sentence
    with pytest.raises(FileNotFoundError, match=sentence):
        AceStepLoadCodes.execute(file)


@pytest.mark.parametrize("name", ["n" * 5_000, "../x.codes.json", "/etc/passwd", "a\ud800.codes.json", "a\x00"])
def test_a_name_that_no_codes_file_can_have_is_one_sentence(name: str) -> None:
    said = AceStepLoadCodes.validate_inputs(name)
    assert isinstance(said, str)
    assert "\n" not in said
    with pytest.raises((FileNotFoundError, ValueError, RuntimeError)) as caught:
        AceStepLoadCodes.execute(name)
    assert "Errno" not in str(caught.value)
