"""The texts the model was trained on, byte for byte, and how tokens become what it reads."""

import json
from pathlib import Path

import pytest

from acestep_pack.acestep_core.song.prompts import (
    INSTRUCTIONS,
    TRACKS,
    caption_text,
    instruction,
    lyric_header,
    lyric_text,
)
from acestep_pack.acestep_core.types import SongSpec

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "prompts.json").read_text(encoding="utf-8"))
SONGS = {song["example"]: song for song in GOLDEN["songs"]}


@pytest.mark.parametrize("name", GOLDEN["instructions"])
def test_an_instruction_is_the_official_one(name: str) -> None:
    task, _, tracks = name.partition(":")
    assert instruction(task, tracks.split(",") if tracks else ()) == GOLDEN["instructions"][name]


@pytest.mark.parametrize("name", SONGS)
def test_the_texts_of_a_song_are_the_official_ones(name: str) -> None:
    known = SONGS[name]
    metas = {name: value for name, value in known["metas"].items() if value != "N/A"}
    song = SongSpec(
        caption=known["caption"],
        lyrics=known["lyrics"],
        language=known["language"],
        bpm=metas.get("bpm"),
        key=metas.get("keyscale"),
        time_signature=metas.get("timesignature"),
    )
    task, _, tracks = known["task"].partition(":")
    told = instruction(task, tracks.split(",") if tracks else ())
    assert caption_text(song, told, metas.get("duration")) == known["dit_text"]
    assert lyric_text(song) == known["lyric_text"]


def test_what_is_auto_is_said_to_be_unknown() -> None:
    text = caption_text(SongSpec(), instruction("text2music"), None)
    assert text.count("N/A") == 3
    assert "- duration: 30 seconds\n" in text
    assert lyric_header(SongSpec()) == "# Languages\nunknown\n\n# Lyric\n"


def test_lyrics_begin_with_their_header() -> None:
    song = SongSpec(lyrics="[Verse]\nla", language="ja")
    assert lyric_text(song) == lyric_header(song) + "[Verse]\nla<|endoftext|>"


@pytest.mark.parametrize("seconds", [10, 10.9, 95.7, 600])
def test_seconds_are_cut_to_whole_ones(seconds: float) -> None:
    assert f"- duration: {int(seconds)} seconds\n" in caption_text(SongSpec(), "", seconds)


@pytest.mark.parametrize("task", ["extract", "lego", "complete"])
def test_several_tracks_are_named_in_capitals(task: str) -> None:
    assert "VOCALS | DRUMS" in instruction(task, ("vocals", "drums"))


@pytest.mark.parametrize(
    ("task", "tracks", "sentence"),
    [
        ("remix", (), f'task "remix" is unknown; it must be one of {", ".join(INSTRUCTIONS)}'),
        ("lego", ("kazoo",), f'track "kazoo" is unknown; choose from {", ".join(TRACKS)}'),
    ],
)
def test_what_the_model_never_learned_is_refused(task: str, tracks: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        instruction(task, tracks)
