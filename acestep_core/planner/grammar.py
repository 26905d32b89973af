"""What the planner may write next: constrained decoding of one sequence, in plain Python over token ids.

A rule is a generator: it yields a step, receives the token chosen there, and ends when its part is written.
`Grammar` strings rules together for a decoder. What the texts around it say is `prompts`'; how a token is
chosen is `decode`'s. In the codes phase every row but the codes is dead, so it needs no grammar.
Source: ace-step/ACE-Step-1.5, `acestep/constrained_logits_processor.py`. Its fields, ranges and order are kept;
where it can write a block that does not parse (a caption that runs into the next field), the rule is stricter.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeAlias

from ..constants import (
    END_OF_TEXT_ID,
    KEYS,
    LANGUAGES,
    MAX_BPM,
    MAX_DURATION_S,
    MAX_LYRIC_TOKENS,
    MIN_BPM,
    MIN_DURATION_S,
    TIME_SIGNATURES,
    UNKNOWN_LANGUAGE,
)
from ..types import SongSpec
from .prompts import think_fields

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Rows of the vocabulary. Source: Qwen/Qwen3-0.6B, `tokenizer_config.json`; the audio codes follow the text.
NEWLINE_ID = 198
END_OF_TURN_ID = 151_645
THINK_ID = 151_667
END_OF_THINK_ID = 151_668
N_TEXT_TOKENS = 151_669
KNOWN_IDS = {"\n": NEWLINE_ID, "<|im_end|>": END_OF_TURN_ID, "<think>": THINK_ID, "</think>": END_OF_THINK_ID}

# Fields of the think block in the order they are written, and those that hold one of a list of values.
FIELDS = ("bpm", "caption", "duration", "genres", "keyscale", "language", "timesignature")
VALUES: Mapping[str, Iterable[str | int]] = {
    "bpm": range(MIN_BPM, MAX_BPM + 1),
    "duration": range(MIN_DURATION_S, MAX_DURATION_S + 1),
    "keyscale": KEYS,
    "language": LANGUAGES,
    "timesignature": TIME_SIGNATURES,
}
# The others are free text of at most so many tokens. The caption's limit is official, the genres' is ours: the
# official code picks them from a list that is not published.
MAX_TOKENS = {"caption": 512, "genres": 64}


# 128 below the text encoder's limit: room for its header, and for text that re-tokenises longer.
MAX_WRITTEN_LYRIC_TOKENS = MAX_LYRIC_TOKENS - 128


@dataclass(frozen=True)
class Forced:
    """Append these tokens: nothing is sampled, one forward takes them all."""

    ids: tuple[int, ...]


@dataclass(frozen=True)
class Choice:
    """Sample among these rows alone; greedy: take the likeliest."""

    ids: tuple[int, ...]
    greedy: bool = False


@dataclass(frozen=True, eq=False)
class Text:
    """Sample among the text rows 0..N_TEXT_TOKENS−1 without the banned ones; audio codes are never live.

    A lexicon makes each once and they compare by identity, so that a decoder can keep a mask for each.
    """

    banned: tuple[int, ...]


@dataclass(frozen=True)
class Done:
    """Nothing more to write."""


Step: TypeAlias = Forced | Choice | Text | Done
Rule: TypeAlias = Generator[Step, int, None]
Trie: TypeAlias = "dict[int, Trie]"


class Grammar:
    """What may come next in one sequence.

    A decoder asks for a step, and gives `accept` the token it sampled for a Choice or a Text. A Forced is
    handed out once, as long as it can be, and needs no accept; before Done it needs no forward either.
    """

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._next = next(rule, Done())

    def step(self) -> Step:
        """Return what to do next."""
        forced: list[int] = []
        while isinstance(self._next, Forced):
            forced += self._next.ids
            self._next = next(self._rule, Done())
        return Forced(tuple(forced)) if forced else self._next

    def accept(self, token: int) -> None:
        """Go on behind a token sampled for the last step."""
        try:
            self._next = self._rule.send(token)
        except StopIteration:
            self._next = Done()


@dataclass(frozen=True, eq=False)
class Lexicon:
    """How a tokenizer spells what the planner writes. Made once per tokenizer, shared by its grammars."""

    names: Mapping[str, tuple[int, ...]]  # the ids of "bpm:" and so on
    values: Mapping[str, Mapping[str, tuple[int, ...]]]  # of every legal value, the space before and newline behind it
    tries: Mapping[str, Trie]  # the same by prefix
    newlines: frozenset[int]  # the tokens that end a line
    line: Text  # free text on one line
    line_start: Mapping[str, Text]  # a continuation, or the name that follows, by that name
    lyrics: Text  # free text that may end

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Lexicon:
        """Return the lexicon of a Qwen3 tokenizer.

        Raises ValueError when its ids are not the ones the planner was trained with.
        """

        def ids(text: str) -> tuple[int, ...]:
            return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

        for text, known in KNOWN_IDS.items():
            if ids(text) != (known,):
                raise ValueError(
                    f"the planner's {text!r} is token {known}, this tokenizer has {ids(text)}; use Qwen3's"
                )
        names = {field: ids(f"{field}:") for field in FIELDS}
        values = {field: {str(value): ids(f" {value}\n") for value in values} for field, values in VALUES.items()}
        # Byte-level spelling: Ċ is a newline, Ġ a space, ĉ a tab. A newline within a token is always its last
        # character or followed by white space, so a line never starts unseen.
        vocabulary = tokenizer.get_vocab(with_added_tokens=False)
        indented = {token for spelling, token in vocabulary.items() if spelling[0] in "Ġĉ"}
        special = tuple(range(END_OF_TEXT_ID, N_TEXT_TOKENS))
        return cls(
            names=names,
            values=values,
            tries={field: prefix_tree(values.values()) for field, values in values.items()},
            newlines=frozenset(token for spelling, token in vocabulary.items() if "Ċ" in spelling),
            line=Text((*ids("`"), *special)),  # no backtick, as in the official code
            line_start={
                name: Text(tuple(sorted(set(range(N_TEXT_TOKENS)) - indented - {names[name][0]})))
                for field, name in pairwise(FIELDS)
                if field in MAX_TOKENS
            },
            lyrics=Text(tuple(token for token in special if token != END_OF_TURN_ID)),
        )


def prefix_tree(sequences: Iterable[Sequence[int]]) -> Trie:
    """Return the prefix tree of token sequences; none may be the beginning of another."""
    root: Trie = {}
    for sequence in sequences:
        node = root
        for token in sequence:
            node = node.setdefault(token, {})
    return root


# Which fields a think block has, and what is left to find out.


def plan_fields(caption: bool, language: bool) -> tuple[str, ...]:
    """Return the fields of a plan: the musical ones always, a rewritten caption and a language if wanted."""
    optional = {"caption": caption, "genres": False, "language": language}
    return tuple(field for field in FIELDS if optional.get(field, True))


def fixed_fields(song: SongSpec) -> dict[str, str]:
    """Return the fields a song fixes. Its caption is there to be rewritten, an unknown language to be found."""
    fields = {name: str(value) for name, value in think_fields(song).items() if name in VALUES}
    return {name: value for name, value in fields.items() if value != UNKNOWN_LANGUAGE}


def left_to_infer(song: SongSpec, fields: Sequence[str]) -> tuple[str, ...]:
    """Return the fields the planner would have to find; without any, writing the think block is no use."""
    fixed = fixed_fields(song)
    return tuple(field for field in fields if field not in fixed)


# Grammars of the two kinds of text.


def plan_grammar(lexicon: Lexicon, song: SongSpec, fields: Sequence[str]) -> Grammar:
    """Return the grammar of a plan's metadata. It ends with the last field: the closing tag tells nothing new."""
    return Grammar(think_block(lexicon, fields, fixed_fields(song)))


def song_grammar(lexicon: Lexicon, song: SongSpec, max_lyric_tokens: int) -> Grammar:
    """Return the grammar of a whole song, for idea, format and understand: every field, then lyrics."""
    return Grammar(_whole_song(lexicon, fixed_fields(song), max_lyric_tokens))


# Rules.


def think_block(lexicon: Lexicon, fields: Sequence[str], fixed: Mapping[str, str]) -> Rule:
    """Write fields in their order, the fixed ones as told; the last must not be free text."""
    yield Forced((THINK_ID, NEWLINE_ID, *lexicon.names[fields[0]]))
    for field, following in zip(fields, (*fields[1:], ""), strict=True):
        if field in MAX_TOKENS:
            yield from lines(lexicon, following, MAX_TOKENS[field])
            continue
        if field in fixed:
            yield Forced(lexicon.values[field][fixed[field]])
        else:
            # The official code takes the likeliest language, whatever the temperature.
            yield from one_of(lexicon.tries[field], greedy=field == "language")
        yield Forced(lexicon.names.get(following, ()))


def one_of(trie: Trie, greedy: bool = False) -> Rule:
    """Write one of the sequences of a trie; a token without an alternative is not sampled."""
    while trie:
        if len(trie) == 1:
            (token,) = trie
            yield Forced((token,))
        else:
            token = yield Choice(tuple(trie), greedy)
        trie = trie[token]


def lines(lexicon: Lexicon, following: str, max_tokens: int) -> Rule:
    """Write free text and the name of the field that follows it.

    A line that is not indented can only be the next field, so there the planner chooses between the two:
    white space, or the first token of that field's name.
    """
    name = lexicon.names[following]
    starts_line = False
    for _ in range(max_tokens):
        token = yield lexicon.line_start[following] if starts_line else lexicon.line
        if starts_line and token == name[0]:
            yield Forced(name[1:])
            return
        starts_line = token in lexicon.newlines
    yield Forced(name if starts_line else (NEWLINE_ID, *name))


def until_end_of_turn(text: Text, max_tokens: int) -> Rule:
    """Write free text until the planner ends its turn."""
    for _ in range(max_tokens):
        if (yield text) == END_OF_TURN_ID:
            return


def _whole_song(lexicon: Lexicon, fixed: Mapping[str, str], max_lyric_tokens: int) -> Rule:
    yield from think_block(lexicon, FIELDS, fixed)
    yield Forced((END_OF_THINK_ID,))
    yield from until_end_of_turn(lexicon.lyrics, max_lyric_tokens)
