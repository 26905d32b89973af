"""What is kept of a take beside its sound."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import tomllib
from hypothesis import given
from hypothesis import strategies as st

from acestep_pack.acestep_core.bundle import (
    FORBIDDEN,
    KEY,
    MAX_NAME_BYTES,
    PACK_VERSION,
    RESERVED,
    Origin,
    Sound,
    clean_prefix,
    codes_of,
    document,
    save,
    save_next,
    stem,
)
from acestep_pack.acestep_core.codes import files as codes_file
from acestep_pack.acestep_core.scoring.score import NamedScore, Score
from acestep_pack.acestep_core.types import AudioCodes, SongSpec, Take

SOUND = Sound("v1.5_00003_seed42.flac", "flac", 48_000, 2, 12.5)
SONG = SongSpec(caption="drone", lyrics="[Verse]\n歌う", bpm=97)
TAKE = Take(seed=42, plan=1, n_steps=8, track="drums")
CODES = AudioCodes(((1, 2), (3, 4, 5)))
PROMPT = {"7": {"class_type": "AceStepSave", "inputs": {}}}
WORKFLOW = {"id": "a", "nodes": [{"id": 7}], "links": [], "version": 0.4}
SCORE = Score((NamedScore("lyrics", 0.75), NamedScore("plan", 0.5)))
EVERYTHING = Origin(SONG, TAKE, CODES, "[00:01.00] 歌う", PROMPT, WORKFLOW, SCORE)


def test_the_version_is_that_of_the_project(pack_root: Path) -> None:
    project = tomllib.loads((pack_root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == PACK_VERSION


# Names.


@pytest.mark.parametrize(
    ("prefix", "clean"),
    [
        ("audio/acestep", "audio/acestep"),
        ("song", "song"),
        ("audio\\mine\\song", "audio/mine/song"),
        ("./audio//song/", "audio/song"),
        ('what? a "song" <1>|*', "what_ a _song_ _1___"),
        ("2026-01-02 10:30/song", "2026-01-02 10_30/song"),
        ("trailing. /dots...", "trailing/dots"),
        ("con/Aux.old/song", "_con/_Aux.old/song"),
        ("tab\tand\nline", "tab_and_line"),
        (" ", "_"),
        ("歌/♪", "歌/♪"),
    ],
)
def test_a_prefix_becomes_one_that_every_system_takes(prefix: str, clean: str) -> None:
    assert clean_prefix(prefix) == clean


@given(st.text())
def test_no_prefix_leaves_its_folder_or_keeps_what_windows_forbids(prefix: str) -> None:
    try:
        parts = clean_prefix(prefix).split("/")
    except ValueError:
        return
    for part in parts:
        assert part.strip(" ").rstrip(".")
        assert not FORBIDDEN.search(part)
        assert part.split(".")[0].lower() not in RESERVED


@pytest.mark.parametrize(
    "prefix", ["../song", "a/../../song", "a\\..\\song", "/etc/song", "\\song", "C:/song", "c:song"]
)
def test_a_prefix_that_leads_out_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="leads out of ComfyUI's output folder; use a folder and a name inside it"):
        clean_prefix(prefix)


@pytest.mark.parametrize("letter", ["n", "\u65e5", "\U0001f600"])
def test_the_longest_prefix_leaves_room_for_all_that_is_added(letter: str) -> None:
    prefix = letter * (MAX_NAME_BYTES // len(letter.encode()))
    added = stem(clean_prefix(prefix), 99_999, Take(2**53 - 1, track="backing_vocals"))
    assert len(f"{added}.words.lrc.part".encode()) <= 255
    for too_long in (prefix + letter, f"{prefix}{letter}/song", f"songs/{prefix}{letter}"):
        with pytest.raises(ValueError, match=r"portable_copy has a name of .* bytes, which is too long for a file"):
            clean_prefix(too_long, "portable_copy")


@pytest.mark.parametrize("prefix", ["", ".", "./"])
def test_a_prefix_without_a_name_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="filename_prefix is empty"):
        clean_prefix(prefix)


@pytest.mark.parametrize(
    ("take", "name"),
    [
        (None, "song_00007"),
        (Take(0), "song_00007_seed0"),
        (Take(plan=1), "song_00007"),
        (Take(track="drums"), "song_00007_drums"),
        (Take(42, track="drums"), "song_00007_seed42_drums"),
        (Take(2**53 - 1, track="a/b:c"), "song_00007_seed9007199254740991_a_b_c"),
    ],
)
def test_a_name_tells_the_number_the_seed_and_the_track(take: Take | None, name: str) -> None:
    assert stem("song", 7, take) == name


# Codes.


def test_a_take_has_the_codes_of_its_own_plan() -> None:
    assert codes_of(CODES, 0, 1).sequences == ((3, 4, 5),)


def test_a_take_of_an_unknown_plan_has_codes_where_there_is_a_single_plan() -> None:
    with pytest.raises(ValueError, match="nobody knows from which of 2 plans take 1 was sung; connect the latent"):
        codes_of(CODES, 0, None)


def test_a_single_plan_is_every_takes() -> None:
    one = AudioCodes(((1, 2),))
    assert codes_of(one, 3, 5) == codes_of(one, 3, None) == one
    assert codes_of(AudioCodes(), 3, 5) == AudioCodes()


def test_a_take_of_a_plan_without_codes_is_refused() -> None:
    with pytest.raises(ValueError, match="take 4 was sung from plan 3, but there are codes for 2 plans"):
        codes_of(CODES, 3, 2)


# The document.


def test_a_document_is_the_workflow_with_the_take_before_it() -> None:
    content = json.loads(document(SOUND, EVERYTHING))
    assert next(iter(content)) == KEY
    ours = content.pop(KEY)
    assert content == WORKFLOW
    assert ours == {
        "format": "acestep-take",
        "version": 1,
        "pack_version": PACK_VERSION,
        "audio": asdict(SOUND),
        "song": asdict(SONG),
        "take": asdict(TAKE),
        "scores": {"lyrics": 0.75, "plan": 0.5},
        "sidecars": ["v1.5_00003_seed42.codes.json", "v1.5_00003_seed42.lrc"],
        "prompt": PROMPT,
    }
    assert SongSpec(**ours["song"]) == SONG
    assert Take(**ours["take"]) == TAKE


def test_a_document_says_null_where_nobody_knows() -> None:
    (ours,) = json.loads(document(SOUND, Origin())).values()
    assert [ours[key] for key in ("song", "take", "scores", "prompt", "sidecars")] == [None, None, None, None, []]


def test_a_document_can_be_read_by_people() -> None:
    assert "歌う" in document(SOUND, EVERYTHING)


# Files.


def test_a_bundle_is_its_files_and_nothing_else(tmp_path: Path) -> None:
    save(tmp_path, SOUND, b"sound", EVERYTHING)
    assert sorted(os.listdir(tmp_path)) == [
        "v1.5_00003_seed42.codes.json",
        "v1.5_00003_seed42.flac",
        "v1.5_00003_seed42.json",
        "v1.5_00003_seed42.lrc",
    ]
    assert (tmp_path / SOUND.file).read_bytes() == b"sound"
    assert codes_file.load(tmp_path / "v1.5_00003_seed42.codes.json") == CODES
    assert (tmp_path / "v1.5_00003_seed42.lrc").read_text(encoding="utf-8") == EVERYTHING.lrc
    assert (tmp_path / "v1.5_00003_seed42.json").read_text(encoding="utf-8") == document(SOUND, EVERYTHING)


def test_what_is_not_known_has_no_file(tmp_path: Path) -> None:
    save(tmp_path, SOUND, b"sound", Origin(codes=AudioCodes(((),)), lrc=" \n"))
    assert sorted(os.listdir(tmp_path)) == ["v1.5_00003_seed42.flac", "v1.5_00003_seed42.json"]


def test_half_a_character_does_not_keep_a_song_from_being_saved(tmp_path: Path) -> None:
    save(tmp_path, SOUND, b"sound", Origin(lrc="\ud83c", workflow={"note": "a\ud83cb"}))
    assert json.loads((tmp_path / "v1.5_00003_seed42.json").read_text(encoding="utf-8"))["note"] == "a?b"


def test_a_file_that_cannot_be_finished_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / SOUND.file).mkdir()  # in the way
    with pytest.raises(FileExistsError):
        save(tmp_path, SOUND, b"sound", Origin())
    assert os.listdir(tmp_path) == ["v1.5_00003_seed42.flac"]
    assert not any((tmp_path / SOUND.file).iterdir())


def test_the_next_bundle_has_the_next_number_and_tells_of_the_take_it_is_named_for(tmp_path: Path) -> None:
    files = [save_next(tmp_path / "new", "v1.5", SOUND, b"sound", EVERYTHING, take) for take in (None, TAKE, TAKE)]
    assert files == ["v1.5_00001.flac", "v1.5_00002_seed42_drums.flac", "v1.5_00003_seed42_drums.flac"]
    assert len(os.listdir(tmp_path / "new")) == 12
    assert json.loads((tmp_path / "new" / "v1.5_00001.json").read_text(encoding="utf-8"))[KEY]["audio"] == {
        **asdict(SOUND),
        "file": "v1.5_00001.flac",
    }


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=f"song cannot be written to {tmp_path / 'file'}: File exists; make room"):
        save_next(tmp_path / "file", "song", SOUND, b"sound", Origin())
