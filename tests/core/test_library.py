"""The library of example songs: what each one must be, and how they are found."""

import json
import re
from pathlib import Path

import pytest

from acestep_pack.acestep_core.constants import MAX_LYRIC_TOKENS, MAX_SEED, UNKNOWN_LANGUAGE
from acestep_pack.acestep_core.song.library import ANY_STYLE, SONGS_DIR, ExampleSong, load_library, pick, styles
from acestep_pack.acestep_core.song.prompts import lyric_text

LIBRARY = load_library()
SONGS = [
    pytest.param(example, id=path.stem) for path, example in zip(sorted(SONGS_DIR.glob("*.json")), LIBRARY, strict=True)
]

MAX_CAPTION_CHARACTERS = 512  # what the planner's grammar allows
MAX_WORDS_PER_SECOND = 3  # faster than this nobody sings, and few rap
TAG = re.compile(r"\[[^\[\]]+\]")
METADATA = re.compile(r"\b(bpm|\d+ ?s|\d/\d|[A-G][#b]? (major|minor))\b", re.IGNORECASE)
KANA_HAN_HANGUL = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")


def sung_lines(example: ExampleSong) -> list[str]:
    return [line for line in example.song.lyrics.splitlines() if line and not TAG.fullmatch(line)]


def n_words(lines: list[str]) -> float:
    """Count the words; of scripts that put no spaces between them, two characters make one."""
    text = " ".join(lines)
    return max(len(text.split()), len(KANA_HAN_HANGUL.findall(text)) / 2)


def test_the_library_is_large_and_varied() -> None:
    assert len(LIBRARY) >= 24
    assert len({example.song.language for example in LIBRARY} - {UNKNOWN_LANGUAGE}) >= 8
    assert sum(not sung_lines(example) for example in LIBRARY) >= 4
    assert len({example.song.key for example in LIBRARY}) >= 8
    assert {example.song.time_signature for example in LIBRARY} == {"2", "3", "4", "6"}


def test_titles_captions_and_lyrics_are_never_repeated() -> None:
    assert len({example.title for example in LIBRARY}) == len(LIBRARY)
    assert len({example.song.caption for example in LIBRARY}) == len(LIBRARY)
    sung = [example.song.lyrics for example in LIBRARY if sung_lines(example)]
    assert len(set(sung)) == len(sung)


# Each song.


@pytest.mark.parametrize("example", SONGS)
def test_no_field_is_left_to_the_model(example: ExampleSong) -> None:
    song = example.song
    assert all((song.caption, song.lyrics, song.language, song.bpm, song.key, song.time_signature, song.duration_s))


@pytest.mark.parametrize("example", SONGS)
def test_the_caption_fits_and_leaves_metadata_to_its_fields(example: ExampleSong) -> None:
    assert len(example.song.caption) <= MAX_CAPTION_CHARACTERS
    assert not METADATA.search(example.song.caption)


@pytest.mark.parametrize("example", SONGS)
def test_the_lyrics_fit_what_the_model_reads(example: ExampleSong) -> None:
    # In characters: the tokenizer makes 0.77 tokens of one in Hindi and fewer in every other language here.
    assert len(lyric_text(example.song)) <= MAX_LYRIC_TOKENS


@pytest.mark.parametrize("example", SONGS)
def test_the_words_can_be_sung_in_the_time(example: ExampleSong) -> None:
    assert n_words(sung_lines(example)) <= MAX_WORDS_PER_SECOND * example.song.duration_s


@pytest.mark.parametrize("example", SONGS)
def test_the_lyrics_are_parts_that_begin_with_a_tag(example: ExampleSong) -> None:
    parts = [part.splitlines() for part in example.song.lyrics.split("\n\n")]
    assert all(TAG.fullmatch(lines[0]) for lines in parts)
    assert not [line for lines in parts for line in lines if not line or line != line.strip()]
    assert not [line for lines in parts for line in lines[1:] if "[" in line]


@pytest.mark.parametrize("example", SONGS)
def test_a_song_without_words_is_called_instrumental_and_has_no_language(example: ExampleSong) -> None:
    has_words = bool(sung_lines(example))
    assert ("instrumental" not in example.styles) is has_words
    assert (example.song.language != UNKNOWN_LANGUAGE) is has_words


# Picking.


@pytest.mark.parametrize("style", [ANY_STYLE, *styles()])
def test_a_style_picks_songs_of_that_style_and_reaches_them_all(style: str) -> None:
    fitting = {example for example in LIBRARY if style in (ANY_STYLE, *example.styles)}
    assert {pick(style, seed) for seed in range(len(fitting))} == fitting


@pytest.mark.parametrize("seed", [0, 1, 12_345, MAX_SEED])
def test_the_same_seed_picks_the_same_song(seed: int) -> None:
    first = pick(ANY_STYLE, seed)
    load_library.cache_clear()
    assert pick(ANY_STYLE, seed) == first


def test_styles_are_listed_once_and_any_is_none_of_them() -> None:
    assert list(styles()) == sorted(set(styles()))
    assert ANY_STYLE not in styles()


def test_an_unknown_style_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r'no example song has the style "polka"; use any or one of acoustic, .*waltz'):
        pick("polka", 0)


# Adding a song, and what is said of a wrong one.

FIELDS = {
    "title": "A",
    "styles": ["folk"],
    "caption": "A plain folk song.",
    "language": "en",
    "bpm": 90,
    "key": "C major",
    "time_signature": "3",
    "duration": 30,
    "lyrics": ["[Verse]", "one line", "", "[Outro]"],
}


def write(folder: Path, name: str, **changes: object) -> None:
    (folder / name).write_text(json.dumps({**FIELDS, **changes}), encoding="utf-8")


def test_songs_are_files_in_the_order_of_their_names(tmp_path: Path) -> None:
    write(tmp_path, "b.json", title="first written")
    write(tmp_path, "a.json", title="second written")
    assert [example.title for example in load_library(tmp_path)] == ["second written", "first written"]


def test_lines_become_lyrics(tmp_path: Path) -> None:
    write(tmp_path, "a.json")
    assert load_library(tmp_path)[0].song.lyrics == "[Verse]\none line\n\n[Outro]"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"key": "H major"}, 'key "H major" is unknown'),
        ({"bpm": 20}, "bpm must be 30 to 300, got 20"),
        ({"bpm": "90"}, "bpm must be a whole number, got '90'"),
        ({"lyrics": "la la"}, "lyrics must be a list of strings, got 'la la'"),
        ({"styles": ["folk", 3]}, r"styles must be a list of strings, got \['folk', 3\]"),
        ({"styles": []}, "there are no styles"),
        ({"styles": ["Folk"]}, 'style "Folk" cannot be used'),
        ({"styles": [ANY_STYLE]}, 'style "any" cannot be used'),
        ({"title": " "}, "the title is empty"),
        ({"tempo": 90}, "it must have exactly the fields title, styles, caption"),
    ],
)
def test_a_wrong_song_is_refused_by_the_name_of_its_file(tmp_path: Path, changes: dict, sentence: str) -> None:
    write(tmp_path, "wrong.json", **changes)
    with pytest.raises(ValueError, match=f"^example song wrong.json: {sentence}"):
        load_library(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b'{"title": "\xff"}'])
def test_a_file_that_is_no_song_at_all_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wrong.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^example song wrong\.json: "):
        load_library(tmp_path)


def test_a_folder_without_songs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no example songs; install the pack again"):
        load_library(tmp_path)
