"""What a song, its codes and its takes may be, and the sentence for what they may not."""

import pytest

from acestep_pack.acestep_core.constants import (
    KEYS,
    LANGUAGES,
    MAX_SEED,
    MIN_FRAMES,
    N_CODES,
    TIME_SIGNATURES,
    frames_for,
)
from acestep_pack.acestep_core.types import AudioCodes, SongSpec, take_seeds


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("bpm", 29, r"bpm must be 30 to 300, got 29; 0 lets the model decide"),
        ("bpm", 301, r"bpm must be 30 to 300, got 301"),
        ("duration_s", 9.9, r"duration must be 10 to 600 s, got 9.9 s; 0 is auto"),
        ("duration_s", 600.1, r"duration must be 10 to 600 s, got 600.1 s"),
        ("duration_s", float("nan"), r"duration must be 10 to 600 s, got nan s"),
        ("key", "H major", r'key "H major" is unknown; write it like "C major"'),
        ("key", "c major", r'key "c major" is unknown'),
        ("time_signature", "5", r'time signature "5" is unknown; use 2, 3, 4, 6 beats a bar'),
        ("language", "tlh", r'language "tlh" is unknown; use one of ar, az, .* or "unknown"'),
        ("language", "", r'language "" is unknown'),
    ],
)
def test_a_song_out_of_range_is_refused_in_one_sentence(field: str, value: object, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        SongSpec(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bpm", [30, 300, None])
@pytest.mark.parametrize("duration_s", [10, 600, None])
def test_the_limits_themselves_are_allowed(bpm: int | None, duration_s: float | None) -> None:
    song = SongSpec(bpm=bpm, duration_s=duration_s)
    assert (song.bpm, song.duration_s) == (bpm, duration_s)


@pytest.mark.parametrize(
    ("field", "values"), [("key", KEYS), ("language", LANGUAGES), ("time_signature", TIME_SIGNATURES)]
)
def test_every_word_of_a_vocabulary_is_allowed(field: str, values: tuple[str, ...]) -> None:
    assert [getattr(SongSpec(**{field: value}), field) for value in values] == list(values)


def test_keys_are_every_note_with_every_accidental_in_both_modes() -> None:
    assert len(KEYS) == len(set(KEYS)) == 7 * 5 * 2
    assert {"C major", "F# minor", "Eb major", "B♭ minor"} <= set(KEYS)


@pytest.mark.parametrize(
    ("lyrics", "is_instrumental"),
    [("[Instrumental]", True), ("  [instrumental]\n", True), ("", False), ("[Instrumental]\nla la", False)],
)
def test_only_the_bare_tag_makes_a_song_instrumental(lyrics: str, is_instrumental: bool) -> None:
    assert SongSpec(lyrics=lyrics).is_instrumental is is_instrumental


@pytest.mark.parametrize(
    ("duration_s", "n_frames"),
    [(10, 250), (10.04, 250), (10.06, 252), (10.1, 252), (10.3, 257), (120, 3000), (600, 15000)],
)
def test_frames_are_floored_after_the_duration_is_rounded_to_a_tenth(duration_s: float, n_frames: int) -> None:
    assert frames_for(duration_s) == n_frames


@pytest.mark.parametrize("duration_s", [0, 0.1, 5.1])
def test_no_latent_is_shorter_than_the_model_ever_saw(duration_s: float) -> None:
    assert frames_for(duration_s) == MIN_FRAMES


@pytest.mark.parametrize("code", [-1, N_CODES, 10**9])
def test_a_code_outside_the_codebook_is_named_with_its_place(code: int) -> None:
    with pytest.raises(ValueError, match=rf"audio code {code} at position 2 is outside 0..63999"):
        AudioCodes(((0, N_CODES - 1), (5, 6, code)))


@pytest.mark.parametrize(
    ("sequences", "n_plans", "duration_s"), [((), 0, 0), (((1,) * 5,), 1, 1), (((1,) * 5, (2,) * 12), 2, 2.4)]
)
def test_codes_last_a_fifth_of_a_second_each(sequences: tuple, n_plans: int, duration_s: float) -> None:
    codes = AudioCodes(sequences)
    assert (codes.n_plans, codes.duration_s) == (n_plans, duration_s)


@pytest.mark.parametrize("n_takes", range(1, 9))
def test_a_take_has_the_seed_it_would_have_alone(n_takes: int) -> None:
    seeds = take_seeds(40, n_takes)
    assert [take_seeds(40 + i, 1) for i in range(n_takes)] == [(seed,) for seed in seeds]


def test_seeds_go_on_at_zero_past_the_last_one_a_browser_keeps() -> None:
    assert take_seeds(MAX_SEED - 1, 4) == (2**53 - 2, 2**53 - 1, 0, 1)


def test_listed_seeds_win() -> None:
    assert take_seeds(7, 3, (5, 0, 5)) == (5, 0, 5)


@pytest.mark.parametrize(
    ("seed", "n_takes", "seeds", "sentence"),
    [
        (0, 0, (), "there must be at least one take, got 0"),
        (0, 2, (1,), "1 seeds are listed for 2 takes; list one for each or none"),
        (0, 2, (1, 2, 3), "3 seeds are listed for 2 takes"),
        (-1, 1, (), r"seed -1 is outside 0..2\^53-1"),
        (2**53, 1, (), "seed 9007199254740992 is outside"),
        (0, 2, (1, -5), "seed -5 is outside"),
    ],
)
def test_impossible_takes_are_refused(seed: int, n_takes: int, seeds: tuple[int, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        take_seeds(seed, n_takes, seeds)


@pytest.mark.parametrize("name", ["caption", "lyrics"])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\udfffb", r"has '\\udfff' at character 2, which is no character of a text"),
        ("a\x00", r"has '\\x00' at character 2"),
        (" " * 11_000_000, "has 11,000,000 characters; at most 100,000 are read, shorten it"),
    ],
    ids=["half a pair", "null", "long"],
)
def test_a_text_that_no_tokenizer_should_see_is_refused(name: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=f'^"{name}" {words}'):
        SongSpec(**{name: text})
