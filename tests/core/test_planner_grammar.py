"""The planner's grammar: whatever a model prefers, what it writes parses, and every legal value can be written."""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

import vocabulary
from acestep_pack.acestep_core.constants import KEYS, LANGUAGES, TIME_SIGNATURES
from acestep_pack.acestep_core.planner import grammar
from acestep_pack.acestep_core.planner.grammar import (
    END_OF_TURN_ID,
    FIELDS,
    N_TEXT_TOKENS,
    Choice,
    Done,
    Forced,
    Grammar,
    Lexicon,
    Text,
    left_to_infer,
    plan_fields,
    plan_grammar,
    song_grammar,
)
from acestep_pack.acestep_core.planner.prompts import parse_lyrics, parse_think, think_text
from acestep_pack.acestep_core.types import SongSpec

ROWS = json.loads((Path(__file__).parent.parent / "golden" / "prompts.json").read_text(encoding="utf-8"))["songs"]
FULL_SONG = SongSpec(language="en", bpm=120, key="C# minor", time_signature="4", duration_s=95.7)
N_SEEDS = 1_000
MAX_LYRIC_TOKENS = 40
COLON_ID = 25


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary.tokenizer()


@pytest.fixture(scope="module")
def lexicon(tokenizer: Tokenizer) -> Lexicon:
    return Lexicon.of(tokenizer)


class FakeModel:
    """Prefers at random; some seeds have a taste for new lines, colons, names of fields and endings."""

    def __init__(self, lexicon: Lexicon, seed: int) -> None:
        self.random = random.Random(seed)
        self.newlines = sorted(lexicon.newlines)
        self.words = [COLON_ID, END_OF_TURN_ID, *(name[0] for name in lexicon.names.values())]
        self.taste = self.random.choice((0, 0.1, 0.5, 0.9))

    def choose(self, step: Choice | Text, banned: set[int]) -> int:
        if isinstance(step, Choice):
            return self.random.choice(step.ids)
        while True:
            token = self.random.randrange(N_TEXT_TOKENS)
            if self.random.random() < self.taste:
                token = self.random.choice(self.random.choice((self.newlines, self.words)))
            if token not in banned:
                return token


class Writer:
    """Drives grammars as a decoder does, keeping one mask for each Text."""

    def __init__(self, lexicon: Lexicon) -> None:
        self.lexicon = lexicon
        self.banned: dict[Text, set[int]] = {}

    def write(self, written_by: Grammar, seed: int) -> list[int]:
        model = FakeModel(self.lexicon, seed)
        ids: list[int] = []
        while not isinstance(step := written_by.step(), Done):
            if isinstance(step, Forced):
                ids += step.ids
                continue
            if isinstance(step, Text) and step not in self.banned:
                self.banned[step] = set(step.banned)
            ids.append(model.choose(step, self.banned.get(step, set())))
            written_by.accept(ids[-1])
        return ids


@pytest.fixture(scope="module")
def writer(lexicon: Lexicon) -> Writer:
    return Writer(lexicon)


def follow(driven: Grammar, wanted: Iterable[int]) -> list[int]:
    """Return what is written by a model that wants these tokens, and fail where it may not write them."""
    wants = iter(wanted)
    ids: list[int] = []
    while not isinstance(step := driven.step(), Done):
        if isinstance(step, Forced):
            assert list(step.ids) == [next(wants) for _ in step.ids]
            ids += step.ids
            continue
        token = next(wants)
        assert token in step.ids if isinstance(step, Choice) else token not in step.banned, (ids, token)
        ids.append(token)
        driven.accept(token)
    return ids


def random_song(seed: int) -> SongSpec:
    """Return a song with some of its fields given."""
    pick = random.Random(seed)

    def maybe(value: object) -> object:
        return value if pick.random() < 0.5 else None

    return SongSpec(
        language=maybe(pick.choice(LANGUAGES)),
        bpm=maybe(pick.randint(30, 300)),
        key=maybe(pick.choice(KEYS)),
        time_signature=maybe(pick.choice(TIME_SIGNATURES)),
        duration_s=maybe(pick.randint(10, 600)),
    )


def assert_respects(song: SongSpec, given: SongSpec) -> None:
    for name in ("bpm", "key", "time_signature", "duration_s"):
        assert getattr(given, name) in (None, getattr(song, name))
        assert getattr(song, name) is not None
    assert given.language in (None, "unknown", song.language)


# Whatever the model prefers.


def test_every_plan_a_random_model_writes_parses_and_respects_what_was_given(
    tokenizer: Tokenizer, lexicon: Lexicon, writer: Writer
) -> None:
    for seed in range(N_SEEDS):
        given = random_song(seed)
        fields = plan_fields(caption=seed % 2 == 0, language=True)
        text = tokenizer.decode(writer.write(plan_grammar(lexicon, given, fields), seed), skip_special_tokens=False)
        song = parse_think(text)
        assert_respects(song, given)
        assert text.startswith(f"<think>\nbpm: {song.bpm}\n")
        assert text.endswith(f"\nlanguage: {song.language}\ntimesignature: {song.time_signature}\n")


def test_every_song_a_random_model_writes_parses_and_respects_what_was_given(
    tokenizer: Tokenizer, lexicon: Lexicon, writer: Writer
) -> None:
    for seed in range(N_SEEDS):
        given = random_song(seed)
        ids = writer.write(song_grammar(lexicon, given, MAX_LYRIC_TOKENS), seed)
        text = tokenizer.decode(ids, skip_special_tokens=False)
        block, tag, lyrics = text.partition("\n</think>")
        assert_respects(parse_think(text), given)
        assert tag
        assert "\ngenres:" in block
        assert parse_lyrics(text) in lyrics.replace("\0", "")
        assert max(ids) < N_TEXT_TOKENS


def test_free_text_ends_at_its_limit(lexicon: Lexicon) -> None:
    word, driven = 8205, song_grammar(lexicon, FULL_SONG, max_lyric_tokens=7)
    lengths: list[int] = []
    while not isinstance(step := driven.step(), Done):
        if isinstance(step, Forced):
            lengths.append(0)
            continue
        driven.accept(word)
        lengths[-1] += 1
    assert lengths == [512, 64, 7]


def test_lyrics_end_with_the_turn(lexicon: Lexicon) -> None:
    steps = list(steps_of(song_grammar(lexicon, FULL_SONG, MAX_LYRIC_TOKENS), text_token=END_OF_TURN_ID))
    assert steps.index(lexicon.lyrics) == len(steps) - 1


def steps_of(driven: Grammar, text_token: int) -> Iterator[Choice | Text | Forced]:
    while not isinstance(step := driven.step(), Done):
        yield step
        if not isinstance(step, Forced):
            driven.accept(step.ids[0] if isinstance(step, Choice) else text_token)


# Every legal value.


@pytest.mark.parametrize("field", grammar.VALUES)
def test_every_legal_value_can_be_written(field: str, tokenizer: Tokenizer, lexicon: Lexicon) -> None:
    def leaves(trie: grammar.Trie, before: tuple[int, ...] = ()) -> Iterator[tuple[int, ...]]:
        if not trie:
            yield before
        for token, below in trie.items():
            yield from leaves(below, (*before, token))

    written = {tokenizer.decode(list(ids)) for ids in leaves(lexicon.tries[field])}
    assert written == {f" {value}\n" for value in grammar.VALUES[field]}


@pytest.mark.parametrize(
    ("field", "n_values", "n_nodes", "root"),
    [
        ("bpm", 271, 302, {220}),
        ("duration", 591, 602, {220}),
        ("timesignature", 4, 6, {220}),
        ("keyscale", 70, 106, {362, 425, 356, 422, 468, 434, 479, 3680, 11988, 25570}),
    ],
)
def test_tries_have_the_known_shape(field: str, n_values: int, n_nodes: int, root: set[int], lexicon: Lexicon) -> None:
    def count(trie: grammar.Trie) -> int:
        return 1 + sum(count(below) for below in trie.values() if below)  # without the final newlines

    assert len(lexicon.values[field]) == n_values
    assert count(lexicon.tries[field]) == n_nodes
    assert set(lexicon.tries[field]) == root


def test_every_language_starts_with_a_token_of_its_own(lexicon: Lexicon) -> None:
    assert len(lexicon.tries["language"]) == len(LANGUAGES) == 51
    assert lexicon.values["language"]["yue"] == (379, 361, 198)


@pytest.mark.parametrize(
    ("field", "ids"),
    [
        ("bpm", (65, 5187, 25)),
        ("caption", (23347, 25)),
        ("duration", (17021, 25)),
        ("genres", (63911, 25)),
        ("keyscale", (10563, 2246, 25)),
        ("language", (11528, 25)),
        ("timesignature", (15136, 622, 1568, 25)),
    ],
)
def test_names_are_spelt_as_in_running_text(field: str, ids: tuple[int, ...], lexicon: Lexicon) -> None:
    assert lexicon.names[field] == ids


@pytest.mark.parametrize(
    "caption",
    [
        *(row["caption"] for row in ROWS),
        "Mood: dark\nbpm: 7\nduration: long",
        "ends with a stop.",
        "word " * 60,
        'says "no" # twice',
    ],
)
def test_every_caption_can_be_written_as_in_training(caption: str, tokenizer: Tokenizer, lexicon: Lexicon) -> None:
    song = SongSpec(caption, "", "en", 120, "C# minor", "4", 95)
    trained = tokenizer.encode(think_text(song).removesuffix("</think>")).ids
    written = follow(plan_grammar(lexicon, SongSpec(), plan_fields(caption=True, language=True)), trained)
    assert parse_think(tokenizer.decode(written, skip_special_tokens=False)) == song


def test_a_line_that_is_not_indented_is_the_next_field(tokenizer: Tokenizer, lexicon: Lexicon) -> None:
    vocabulary = {token: tokenizer.decode([token]) for token in range(N_TEXT_TOKENS)}
    assert set(lexicon.line_start) == {"duration", "keyscale"}  # what follows a caption, and genres
    for name, start in lexicon.line_start.items():
        allowed = set(range(N_TEXT_TOKENS)) - set(start.banned)
        assert {token for token in allowed if vocabulary[token][0] not in " \t"} == {lexicon.names[name][0]}


def test_no_token_hides_the_beginning_of_a_line(tokenizer: Tokenizer, lexicon: Lexicon) -> None:
    texts = {token: tokenizer.decode([token]) for token in range(N_TEXT_TOKENS)}
    assert {token for token, text in texts.items() if "\n" in text} == lexicon.newlines
    assert all(texts[token].endswith("\n") for token in lexicon.newlines)
    assert all(line[:1].strip() == "" for token in lexicon.newlines for line in texts[token].split("\n")[1:])


# What is given is not sampled.


def test_nothing_is_sampled_when_all_is_given(tokenizer: Tokenizer, lexicon: Lexicon) -> None:
    fields = plan_fields(caption=False, language=False)
    driven = plan_grammar(lexicon, FULL_SONG, fields)
    step = driven.step()
    assert left_to_infer(FULL_SONG, fields) == ()
    assert isinstance(step, Forced)
    assert tokenizer.decode(list(step.ids), skip_special_tokens=False) == (
        "<think>\nbpm: 120\nduration: 95\nkeyscale: C# minor\ntimesignature: 4\n"
    )
    assert driven.step() == Done()


@pytest.mark.parametrize(
    ("given", "caption", "language", "left"),
    [
        (FULL_SONG, True, True, ("caption",)),
        (SongSpec(bpm=90, language="unknown"), False, True, ("duration", "keyscale", "language", "timesignature")),
        (SongSpec(caption="calm", language="en"), False, False, ("bpm", "duration", "keyscale", "timesignature")),
    ],
)
def test_what_is_left_to_infer_is_what_was_not_given(
    given: SongSpec, caption: bool, language: bool, left: tuple[str, ...]
) -> None:
    assert left_to_infer(given, plan_fields(caption, language)) == left


def test_forced_spans_are_handed_out_as_one(lexicon: Lexicon) -> None:
    fields = plan_fields(caption=False, language=True)
    steps = list(steps_of(plan_grammar(lexicon, SongSpec(bpm=120, duration_s=60), fields), text_token=0))
    forced = [isinstance(step, Forced) for step in steps]
    assert not any(first and second for first, second in pairwise(forced))
    assert steps[0] == Forced(
        (151667, 198, 65, 5187, 25, 220, 16, 17, 15, 198, 17021, 25, 220, 21, 15, 198, 10563, 2246, 25)
    )


def test_a_choice_has_an_alternative_and_only_the_language_is_greedy(lexicon: Lexicon) -> None:
    steps = list(steps_of(song_grammar(lexicon, SongSpec(), MAX_LYRIC_TOKENS), text_token=END_OF_TURN_ID))
    choices = [step for step in steps if isinstance(step, Choice)]
    assert all(len(step.ids) > 1 for step in choices)
    assert [step.ids for step in choices if step.greedy] == [tuple(lexicon.tries["language"])]


def test_fields_stand_in_the_order_of_training() -> None:
    assert list(FIELDS) == sorted(FIELDS)


def test_another_tokenizer_is_refused() -> None:
    with pytest.raises(ValueError, match="token 198"):
        Lexicon.of(Tokenizer(models.BPE()))
