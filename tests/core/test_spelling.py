"""Every spelling whose meaning is certain gives the model's word, and every other is refused with those that do."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acestep_pack.acestep_core.constants import KEYS, LANGUAGES, NOTES, TIME_SIGNATURES
from acestep_pack.acestep_core.song.files import read_song
from acestep_pack.acestep_core.song.spelling import LANGUAGE_NAMES, METERS, key_of, language_of, time_signature_of

SEMITONES = dict(zip(NOTES, (9, 11, 0, 2, 4, 5, 7), strict=True))
ACCIDENTALS = {"": "", "#": "#", "b": "b", "♯": "♯", "♭": "♭", " sharp": "#", "-flat": "b", "Sharp": "#", " Flat": "b"}
MODES = {"major": (" major", " Maj", "maj.", "-Major", "MAJOR"), "minor": (" minor", "min", "m", " Min.", "-minor")}
KEY_SPELLINGS = [
    (note + written + mode, f"{note}{accidental} {name}")
    for note, (written, accidental), (name, modes) in product(NOTES, ACCIDENTALS.items(), MODES.items())
    for mode in modes
]
CASES: dict[str, Callable[[str], str]] = {"as written": str, "lower": str.lower, "upper": str.upper}
LANGUAGE_CODES = LANGUAGES[:-1]


def respaced(text: str) -> str:
    return f"  {text} \n"


@pytest.mark.parametrize(
    ("parse", "values"), [(key_of, KEYS), (language_of, LANGUAGES), (time_signature_of, TIME_SIGNATURES)]
)
def test_the_models_own_words_stay_as_they_are(parse: Callable, values: tuple[str, ...]) -> None:
    assert [parse(value) for value in values] == list(values)
    assert [parse(respaced(value)) for value in values] == list(values)


@pytest.mark.parametrize("case", CASES)
def test_a_key_with_its_mode_may_be_written_in_any_case_and_form(case: str) -> None:
    wrong = {
        spelling: key_of(CASES[case](spelling))
        for spelling, key in KEY_SPELLINGS
        # An M alone is minor to one who shouts, and major in a lead sheet: see below.
        if not (case == "upper" and spelling.endswith("m")) and key_of(CASES[case](spelling)) != key
    }
    assert wrong == {}


@pytest.mark.parametrize(("written", "accidental"), ACCIDENTALS.items())
@pytest.mark.parametrize("note", NOTES)
def test_a_key_without_its_mode_is_major_in_upper_case_and_refused_in_lower_case(
    note: str, written: str, accidental: str
) -> None:
    assert key_of(note + written) == f"{note}{accidental} major"
    with pytest.raises(ValueError, match=rf'key "{note.lower()}{written}" may be major or minor; write ".* minor"'):
        key_of(note.lower() + written)


@pytest.mark.parametrize("sign", ["#", "b", "♯", "♭"])
@pytest.mark.parametrize("note", NOTES)
@pytest.mark.parametrize("mode", ["major", "minor"])
def test_a_double_accidental_is_its_pitch_where_that_has_one_name_only(note: str, sign: str, mode: str) -> None:
    pitch = (SEMITONES[note] + (2 if sign in "#♯" else -2)) % 12
    names = [name for name, semitone in SEMITONES.items() if semitone == pitch]
    if names:
        assert key_of(f"{note}{sign}{sign} {mode}") == f"{names[0]} {mode}"
    else:
        with pytest.raises(ValueError, match="is unknown; write it with a single sharp or flat"):
            key_of(f"{note}{sign}{sign} {mode}")


@given(st.text(max_size=12) | st.text("abcfg#♭ majorin-", max_size=12))
def test_whatever_is_typed_is_a_key_or_refused_by_name(text: str) -> None:
    assert found_or_refused(text) in KEYS or found_or_refused(text).startswith('key "')


def found_or_refused(text: str) -> str:
    try:
        return key_of(text)
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize(
    "text", ["CM", "F#M", "H major", "C dorian", "C#b", "C major minor", "major", "m", "", 4, None]
)
def test_what_is_no_key_or_may_be_two_is_refused_with_the_forms_that_work(text: object) -> None:
    with pytest.raises(ValueError, match=rf'^key "{text}" is unknown; write it like "C major", "F# minor"'):
        key_of(text)


@pytest.mark.parametrize(("beats", "meter"), [*zip(TIME_SIGNATURES, METERS, strict=True)])
def test_a_time_signature_may_be_a_number_or_in_full(beats: str, meter: str) -> None:
    assert meter.startswith(f"{beats}/")
    spellings = (beats, int(beats), float(beats), meter, meter.replace("/", " / "), respaced(meter))
    assert {time_signature_of(spelling) for spelling in spellings} == {beats}


OTHER_METERS = {f"{beats}/{unit}" for beats, unit in product(range(13), (1, 2, 4, 8, 16))} - {*METERS}


@pytest.mark.parametrize("text", [*sorted(OTHER_METERS), 0, 1, 5, 7, 4.5, True, "four"])
def test_any_other_time_signature_is_refused_with_those_that_work(text: object) -> None:
    with pytest.raises(
        ValueError, match=rf'^time signature "{text}" is unknown; use 2, 3, 4, 6 or 2/4, 3/4, 4/4, 6/8$'
    ):
        time_signature_of(text)


@pytest.mark.parametrize("code", LANGUAGE_CODES)
@pytest.mark.parametrize("rest", ["", "-US", "_BR", "-Latn", "-Hant-TW", "-419"])
def test_a_language_is_its_code_in_any_case_with_or_without_script_and_region(code: str, rest: str) -> None:
    assert {language_of(case(code + rest)) for case in CASES.values()} == {code}


@pytest.mark.parametrize("name", LANGUAGE_NAMES)
def test_a_language_may_be_named_in_english(name: str) -> None:
    assert {language_of(case(name.title())) for case in CASES.values()} == {LANGUAGE_NAMES[name]}


def test_every_language_has_a_name() -> None:
    assert set(LANGUAGE_NAMES.values()) == set(LANGUAGE_CODES)


@pytest.mark.parametrize(
    "text", ["tlh", "tlh-US", "Klingon", "unknown-US", "en-", "zh-yue", "zh-nan", "e", "", 4, None]
)
def test_any_other_language_is_refused_with_those_that_work(text: object) -> None:
    with pytest.raises(ValueError, match=rf'^language "{text}" is unknown; use one of ar, az, .* or "unknown"'):
        language_of(text)


@pytest.mark.parametrize("tag", ["zh-HK", "zh_hk", "zh-Hant-HK", "zh-MO"])
def test_chinese_of_a_region_that_sings_cantonese_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match=rf'language "{tag}" may be Cantonese or Mandarin; write "yue" or "zh"'):
        language_of(tag)


@pytest.mark.parametrize(
    "names", [("key", "time_signature", "language"), ("keyscale", "timesignature", "vocal_language")]
)
def test_a_song_file_takes_every_spelling(tmp_path: Path, names: tuple[str, ...]) -> None:
    (tmp_path / "song.json").write_text(json.dumps(dict(zip(names, ("f# min", "3/4", "English"), strict=True))))
    song = read_song(tmp_path / "song.json")
    assert (song.key, song.time_signature, song.language) == ("F# minor", "3", "en")
    for name, wrong in zip(names, ("c", "7/8", "tlh"), strict=True):
        (tmp_path / "song.json").write_text(json.dumps({name: wrong}))
        with pytest.raises(ValueError, match=rf'^song file song\.json: .* "{wrong}"'):
            read_song(tmp_path / "song.json")
