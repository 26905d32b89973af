"""The text side: hidden states against transformers' Qwen3, token ids against its tokenizer, prompts byte for byte."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import vocabulary
from acestep_pack.acestep_core.constants import MAX_CAPTION_TOKENS
from acestep_pack.acestep_core.song.prompts import caption_text, instruction, lyric_text
from acestep_pack.acestep_core.song.tokens import Ids, caption_ids, lyric_ids
from acestep_pack.acestep_core.types import SongSpec
from golden_models import GOLDEN, assert_close
from parity import peers
from parity.peers import ONE_PART

pytestmark = pytest.mark.parity

PROMPTS = json.loads((GOLDEN / "prompts.json").read_text(encoding="utf-8"))
SONGS = {row["example"].removesuffix(".json"): row for row in PROMPTS["songs"]}
CAPTIONS = [row["dit_text"] for row in PROMPTS["songs"]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return vocabulary.tokenizer()


def song_of(row: dict) -> SongSpec:
    """Return the song of a row; its duration, which may be out of our range, is passed beside it."""
    known = {name: value for name, value in row["metas"].items() if value != "N/A"}
    return SongSpec(
        caption=row["caption"],
        lyrics=row["lyrics"],
        language=row["language"],
        bpm=known.get("bpm"),
        key=known.get("keyscale"),
        time_signature=known.get("timesignature"),
    )


def instruction_of(task_and_tracks: str) -> str:
    task, _, tracks = task_and_tracks.partition(":")
    return instruction(task, tracks.split(",") if tracks else ())


def transformers_ids(texts: list[str], max_length: int) -> Ids:
    batch = peers.transformers_tokenizer()(
        texts, padding="longest", truncation=True, max_length=max_length, return_tensors="pt"
    )
    return Ids(batch.input_ids, batch.attention_mask.bool())


def assert_same_ids(ours: Ids, theirs: Ids) -> None:
    assert ours.ids.tolist() == theirs.ids.tolist()
    assert ours.attention_mask.tolist() == theirs.attention_mask.tolist()


# Prompts.


@pytest.mark.parametrize("task", PROMPTS["instructions"])
def test_instruction_equals_official(task):
    assert instruction_of(task) == PROMPTS["instructions"][task]


@pytest.mark.parametrize("name", SONGS)
def test_prompts_of_a_song_equal_official(name):
    row = SONGS[name]
    song = song_of(row)
    assert caption_text(song, instruction_of(row["task"]), row["metas"]["duration"]) == row["dit_text"]
    assert lyric_text(song) == row["lyric_text"]


# Token ids.


def test_caption_ids_of_a_padded_batch_equal_transformers(tokenizer):
    assert_same_ids(caption_ids(tokenizer, CAPTIONS), transformers_ids(CAPTIONS, MAX_CAPTION_TOKENS))


@pytest.mark.parametrize("name", SONGS)
def test_lyric_ids_of_a_song_equal_transformers(tokenizer, name):
    ours = lyric_ids(tokenizer, song_of(SONGS[name])).tokens
    assert_same_ids(ours, transformers_ids([SONGS[name]["lyric_text"]], 2048))


@pytest.mark.parametrize("n_words", [254, 255, 256, 400])
def test_long_caption_is_cut_to_256_tokens_with_one_end_of_text_as_in_transformers(tokenizer, n_words):
    """ComfyUI does not cut."""
    texts = [" la" * n_words]
    ours = caption_ids(tokenizer, texts)
    assert_same_ids(ours, transformers_ids(texts, 256))
    assert ours.ids.shape[1] == min(n_words + 1, 256)


special = st.sampled_from(("<|endoftext|>", "<|im_start|>", "<think>", "<|audio_code_7|>", "\r\n", " \n ", "e\u0301"))


@given(text=st.lists(st.text() | special, max_size=6).map("".join))
@settings(max_examples=300, deadline=None)
def test_ids_of_any_text_equal_transformers(tokenizer, text):
    ours = tokenizer.encode(text, add_special_tokens=False).ids
    assert ours == peers.transformers_tokenizer()(text, add_special_tokens=False).input_ids


# Hidden states.


def test_caption_states_equal_transformers_wherever_a_token_is_real(tokenizer):
    ids = caption_ids(tokenizer, CAPTIONS)
    states = peers.our_qwen3()(ids.ids, torch.float32)
    theirs = peers.transformers_qwen3()(ids.ids, attention_mask=ids.attention_mask.long()).last_hidden_state
    assert not ids.attention_mask.all()
    assert_close(states[ids.attention_mask], theirs[ids.attention_mask], ONE_PART)


@pytest.mark.parametrize("n_tokens", [1, 2, 300])
def test_states_of_any_length_equal_transformers(n_tokens):
    """Past the 128 tokens that the other stacks see: this one has no window."""
    ids = torch.arange(2 * n_tokens).view(2, n_tokens) * 71 % peers.N_TOKENS
    theirs = peers.transformers_qwen3()(ids).last_hidden_state
    assert_close(peers.our_qwen3()(ids, torch.float32), theirs, ONE_PART)


def test_lyric_embeddings_are_the_rows_of_transformers_table():
    ids = torch.arange(0, peers.N_TOKENS, 97).view(2, -1)
    theirs = peers.transformers_qwen3().get_input_embeddings()(ids)
    assert torch.equal(peers.our_qwen3().embed(ids, torch.float32), theirs)
