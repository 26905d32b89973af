"""What the planner reads, byte for byte and token for token, and what is understood of what it writes."""

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

import vocabulary
from acestep_pack.acestep_core.constants import INSTRUMENTAL_LYRICS, KEYS, LANGUAGES, TIME_SIGNATURES
from acestep_pack.acestep_core.planner.prompts import (
    codes_prompt,
    codes_prompt_without,
    format_prompt,
    idea_prompt,
    metadata_prompt,
    metadata_prompt_without,
    parse_lyrics,
    parse_think,
    think_fields,
    think_text,
    understand_prompt,
)
from acestep_pack.acestep_core.types import SongSpec

ROWS = json.loads((Path(__file__).parent.parent / "golden" / "prompts.json").read_text(encoding="utf-8"))["songs"]
GOLDEN = {row["example"]: row for row in ROWS}

# The system turn, and the tokens around the user's turn; the prompts below are these and what differs.
SYSTEM_IDS = "151644 8948 198 2 29051 198 31115 7699 41733 11211 3118 389 279 2661 4682 1447 151645 198 151644 872 198"
ASSISTANT_IDS = "151645 198 151644 77091 198"
CALM_PIANO_IDS = f"{SYSTEM_IDS} 2 37600 198 5416 76 26278 271 2 15953 2216 198 58 56324 278 921 {ASSISTANT_IDS}"
NO_INPUT_IDS = f"{SYSTEM_IDS} 8996 13872 26149 {ASSISTANT_IDS} 151667 271 151668 271"

# YAML reads U+0085 back as a space; lone surrogates are no text.
captions = st.text(st.characters(exclude_characters="\x85\0", exclude_categories=("Cs",)), max_size=512) | st.text(
    "a Z:#'\"-\n\t?![]{}&*%@|>,`\\é♭歌\u2028", max_size=512
)
thoughts = st.builds(
    SongSpec,
    caption=captions,
    language=st.none() | st.sampled_from(LANGUAGES),
    bpm=st.none() | st.integers(30, 300),
    key=st.none() | st.sampled_from(KEYS),
    time_signature=st.none() | st.sampled_from(TIME_SIGNATURES),
    duration_s=st.none() | st.integers(10, 600),
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary.tokenizer()


def written_song(row: dict) -> SongSpec:
    return SongSpec(caption=row["caption"], lyrics=row["lyrics"])


def thought(row: dict) -> SongSpec:
    fields = row["cot_metadata"]
    return SongSpec(
        caption=fields["caption"],
        language=fields["language"],
        bpm=fields.get("bpm"),
        key=fields.get("keyscale"),
        time_signature=fields.get("timesignature"),
        duration_s=fields["duration"],
    )


# Prompts.


@pytest.mark.parametrize("name", GOLDEN)
def test_the_prompts_of_a_plan_are_the_official_ones(name: str) -> None:
    row = GOLDEN[name]
    song = written_song(row)
    assert metadata_prompt(song) == row["lm_cot"]
    assert metadata_prompt_without(song) == row["lm_cot_uncond"]
    assert codes_prompt(song, thought(row)) == row["lm_codes"]
    assert codes_prompt_without() == row["lm_codes_uncond"]
    assert codes_prompt_without("muddy, off-key") == row["lm_codes_uncond_negative"]


@pytest.mark.parametrize("name", GOLDEN)
def test_the_prompts_of_the_other_modes_are_the_official_ones(name: str) -> None:
    row = GOLDEN[name]
    # The official code fills in missing lyrics before it builds the prompt; the golden string is the bare prompt.
    format_golden = row["format"].replace("# Lyric\n<|im_end|>", f"# Lyric\n{INSTRUMENTAL_LYRICS}<|im_end|>")
    is_instrumental = "instrumental: true" in row["inspire"]
    assert understand_prompt((1, 63_999)) == row["understand"]
    assert idea_prompt("a soft love song for a quiet evening", is_instrumental) == row["inspire"]
    assert format_prompt(written_song(row)) == format_golden


def test_prompts_have_the_reference_token_ids(tokenizer: Tokenizer) -> None:
    calm_piano = metadata_prompt(SongSpec(caption="calm piano", lyrics="[Instrumental]"))
    assert tokenizer.encode(calm_piano).ids == [int(token) for token in CALM_PIANO_IDS.split()]
    assert tokenizer.encode(codes_prompt_without()).ids == [int(token) for token in NO_INPUT_IDS.split()]


def test_codes_begin_on_a_token_of_their_own(tokenizer: Tokenizer) -> None:
    prompt = codes_prompt(SongSpec(caption="calm piano"), SongSpec(bpm=90))
    assert tokenizer.encode(prompt).ids[-3:] == [198, 151_668, 271]


@pytest.mark.parametrize("negative", ["", "  \n", "NO USER INPUT", " NO USER INPUT "])
def test_a_negative_prompt_that_says_nothing_counts_as_none(negative: str) -> None:
    song = SongSpec(caption="calm piano", lyrics="la")
    assert codes_prompt_without(negative) == codes_prompt_without()
    assert metadata_prompt_without(song, negative) == metadata_prompt_without(song)


def test_a_negative_caption_takes_the_place_of_the_caption() -> None:
    song = SongSpec(caption="calm piano", lyrics="la")
    assert metadata_prompt_without(song, "noise") == metadata_prompt(song).replace("calm piano", "noise")


def test_missing_input_is_named_as_in_training() -> None:
    assert "user\nNO USER INPUT\n\ninstrumental: true<|im_end|>" in idea_prompt("", instrumental=True)
    assert "user\nNO USER INPUT<|im_end|>" in understand_prompt(())
    assert "# Caption\nNO USER INPUT\n\n# Lyric\n[Instrumental]<|im_end|>" in format_prompt(SongSpec())


def test_braces_in_a_prompt_are_only_text() -> None:
    assert "# Caption\n{lyrics}\n\n# Lyric\n{caption}\n" in metadata_prompt(SongSpec("{lyrics}", "{caption}"))


# The think block.


@pytest.mark.parametrize("name", GOLDEN)
def test_a_think_block_is_the_official_one_and_reads_back(name: str) -> None:
    row = GOLDEN[name]
    assert think_text(thought(row)) == row["cot_text"]
    assert parse_think(row["cot_text"]) == thought(row)


@given(thoughts)
@example(SongSpec(caption="ends with a no-break space\u00a0"))
@example(SongSpec(caption="two lines\n\nand a blank one\n"))
def test_a_think_block_reads_back_as_it_was(song: SongSpec) -> None:
    assert parse_think(think_text(song)) == song
    assert parse_think(codes_prompt(SongSpec(), song).partition("assistant\n")[2]) == song


@given(thoughts)
def test_a_think_block_is_what_pyyaml_writes(song: SongSpec) -> None:
    fields = think_fields(song)
    dumped = yaml.dump(fields, allow_unicode=True, sort_keys=True).strip("\n") if fields else ""
    assert think_text(song) == f"<think>\n{dumped}\n</think>"


def test_a_long_caption_folds_behind_column_80() -> None:
    head, tail = "x" * 71, "y" * 30  # "caption: " and 71 letters end in column 80, and one more word still fits
    assert think_text(SongSpec(caption=f"{head} z {tail}")) == f"<think>\ncaption: {head} z\n  {tail}\n</think>"


def test_norwegian_is_quoted_or_yaml_would_deny_it() -> None:
    assert think_text(SongSpec(language="no")) == "<think>\nlanguage: 'no'\n</think>"


def test_seconds_are_written_whole() -> None:
    assert think_text(SongSpec(duration_s=95.7)) == "<think>\nduration: 95\n</think>"


def test_a_block_without_its_closing_tag_is_read() -> None:
    text = "<think>\nbpm: 168\nduration: 122\nkeyscale: E♭ major\nlanguage: unknown\ntimesignature: 4\n<|im_end|>"
    assert parse_think(text) == SongSpec(
        bpm=168, duration_s=122, key="E♭ major", language="unknown", time_signature="4"
    )


@pytest.mark.parametrize(
    ("written", "caption"),
    [
        ("warm pads", "warm pads"),
        ("Mood: dark, bpm: 9 # slow", "Mood: dark, bpm: 9 # slow"),
        ("yes", "yes"),
        ("'it''s late'", "it's late"),
        ('"two\\nlines"', "two\nlines"),
        ("'never closed", "'never closed"),
        ('"midnight" drive', '"midnight" drive'),
        ('"\\UFFFFFFFF"', '"\\UFFFFFFFF"'),
        ("one\n  two\n\tthree", "one two three"),
        ("one\n  bpm: 7", "one bpm: 7"),
        ("", ""),
    ],
)
def test_a_caption_is_understood_as_the_planner_meant_it(written: str, caption: str) -> None:
    assert parse_think(f"<think>\nbpm: 90\ncaption: {written}\nlanguage: no\n") == SongSpec(
        caption=caption, bpm=90, language="no"
    )


def test_genres_and_lyrics_are_not_metadata() -> None:
    text = "<think>\nbpm: 90\ngenres: jazz\n</think>\n\n# Lyric\nkeyscale: none of it\nbpm: 999"
    assert parse_think(text) == SongSpec(bpm=90)


@pytest.mark.parametrize(("line", "message"), [("bpm: fast", 'whole number, got "fast"'), ("bpm: 900", "got 900")])
def test_a_value_out_of_range_is_named(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_think(f"<think>\n{line}\n</think>")


@pytest.mark.parametrize(
    ("after", "lyrics"),
    [
        ("\n\n[Verse]\nla la<|im_end|>", "[Verse]\nla la"),
        ("\n# Lyric\n[Verse]\nla la\n", "[Verse]\nla la"),
        ("\n\n# LYRICS\n[Verse]\nla la", "[Verse]\nla la"),
        ("\n# Languages\nen\n\n# Lyric\n[Verse]\nla la", "[Verse]\nla la"),
        ("\n# Lyrical is no heading", "# Lyrical is no heading"),
        ("\n# Lyric", ""),
        ("<|im_end|>", ""),
    ],
)
def test_lyrics_are_what_follows_the_think_block(after: str, lyrics: str) -> None:
    assert parse_lyrics(f"<think>\nbpm: 90\n</think>{after}") == lyrics
