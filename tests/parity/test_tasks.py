"""What every task tells the DiT, row by row, against the official code's table of effective values.

`Z` are the source's latents, `SIL` silence from frame 0, `H` what codes sketch, `FSQ(Z)` the source through the
tokenizer. The tokenizer here is diffusers', the silence is laid out by hand.
Source: ace-step/ACE-Step-1.5, `acestep/core/generation/handler/` (main of 2026-06-26), mask mode `explicit`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import vocabulary
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding, condition
from acestep_pack.acestep_core.pipeline.encode import encode
from acestep_pack.acestep_core.pipeline.tasks import (
    RULES,
    TEXT2MUSIC,
    Source,
    Task,
    complete,
    cover,
    extend,
    extract,
    lego,
    repaint,
    stitch,
    text2music,
)
from acestep_pack.acestep_core.song.tokens import Ids
from acestep_pack.acestep_core.types import AudioCodes, SongSpec
from golden_models import assert_close, model, z
from parity import peers
from parity.peers import ONE_PART

pytestmark = pytest.mark.parity

FRAMES, CHANNELS = 150, 64
SILENCE = z("peer.silence", 1, 900, CHANNELS)
SOURCE = Source(z("peer.recording", 1, FRAMES, CHANNELS))
SECOND = Source(z("peer.recording2", 1, FRAMES, CHANNELS))
REGION = (torch.arange(FRAMES) >= 50) & (torch.arange(FRAMES) < 100)
MASK = REGION[None].float()
CODES = AudioCodes((tuple(i * 7919 % 64_000 for i in range(FRAMES // 5)),))
NONE = AudioCodes()


# The values of the table, made without our tokenizer, tasks or condition.


def latents() -> Tensor:
    return SOURCE.latents


def silence() -> Tensor:
    return SILENCE[:, :FRAMES]


def hints(codes: AudioCodes = CODES) -> Tensor:
    vectors = peers.diffusers_tokenizer("2b").quantizer.get_output_from_indices(torch.tensor(codes.sequences))
    return peers.diffusers_detokenizer("2b")(vectors)


def through_codes() -> Tensor:
    quantized, _ = peers.diffusers_tokenizer("2b").tokenize(SOURCE.latents, SILENCE)
    return peers.diffusers_detokenizer("2b")(quantized)


def silenced() -> Tensor:
    return torch.where(REGION[:, None], silence(), SOURCE.latents)


def sketched() -> Tensor:
    return torch.where(REGION[:, None], hints(), SOURCE.latents)


def ahead_of_silence() -> Tensor:
    """The first 100 frames of a source, which goes on for 50."""
    return torch.cat((SOURCE.latents[:, :100], silence()[:, 100:]), dim=1)


def behind_silence() -> Tensor:
    return torch.cat((silence()[:, :50], SOURCE.latents[:, :100]), dim=1)


def on_both_sides_of_silence() -> Tensor:
    return torch.cat((SOURCE.latents[:, :50], silence()[:, 50:100], SECOND.latents[:, :50]), dim=1)


def ones() -> Tensor:
    return torch.ones(FRAMES)


def region() -> Tensor:
    return MASK[0]


def last_third() -> Tensor:
    return (torch.arange(FRAMES) >= 100).float()


def first_third() -> Tensor:
    return (torch.arange(FRAMES) < 50).float()


@dataclass(frozen=True)
class Row:
    """A line of the table. kept: whether the source outside the mask is put back while sampling, and after."""

    task: Task | None
    codes: AudioCodes
    instruction: str
    source: Callable[[], Tensor]
    mask: Callable[[], Tensor] = ones
    kept: bool = False


TEXT = "Fill the audio semantic mask based on the given conditions:"
COVER = "Generate audio semantic tokens based on the given conditions:"
REPAINT = "Repaint the mask area based on the given conditions:"
SHORT, OTHER = Source(SOURCE.latents[:, :100]), Source(SECOND.latents[:, :50])
TABLE = {
    "text2music": Row(None, NONE, TEXT, silence),
    "text2music, codes": Row(None, CODES, COVER, hints),
    "cover": Row(cover(SOURCE), NONE, COVER, through_codes),
    "cover, codes": Row(cover(SOURCE), CODES, COVER, hints),
    "cover-nofsq": Row(cover(SOURCE, hints=False), NONE, COVER, latents),
    "cover-nofsq, codes": Row(cover(SOURCE, hints=False), CODES, COVER, hints),
    "repaint": Row(repaint(SOURCE, MASK), NONE, REPAINT, silenced, region, kept=True),
    "repaint, feathered": Row(repaint(SOURCE, 0.3 * MASK), NONE, REPAINT, silenced, region, kept=True),
    "repaint, aggressive": Row(repaint(SOURCE, MASK, None), NONE, REPAINT, silenced, region),
    # Ours: the official code drops the source as soon as there are codes.
    "repaint, codes": Row(repaint(SOURCE, MASK), CODES, REPAINT, sketched, region, kept=True),
    # The official code repaints what it has padded with silence; it knows no task of these names.
    "extend": Row(extend(SHORT, 0, 2), NONE, REPAINT, ahead_of_silence, last_third, kept=True),
    "extend to the left": Row(extend(SHORT, 2, 0), NONE, REPAINT, behind_silence, first_third, kept=True),
    "stitch": Row(
        stitch(Source(SOURCE.latents[:, :50]), OTHER, 2), NONE, REPAINT, on_both_sides_of_silence, region, kept=True
    ),
    "lego": Row(lego(SOURCE, "guitar"), NONE, "Generate the GUITAR track based on the audio context:", latents),
    "lego, region": Row(
        lego(SOURCE, "backing_vocals", MASK),
        NONE,
        "Generate the BACKING_VOCALS track based on the audio context:",
        latents,
        region,
        kept=True,
    ),
    "extract": Row(extract(SOURCE, ("vocals",)), NONE, "Extract the VOCALS track from the audio:", latents),
    "complete": Row(complete(SOURCE), NONE, "Complete the input track:", latents),
    "complete, tracks": Row(
        complete(SOURCE, ("drums", "bass")), NONE, "Complete the input track with DRUMS | BASS:", latents
    ),
}
# is_cover of the official code: the source the model sees has come through the tokenizer, or is a plan's.
IS_COVER = {"text2music, codes", "cover", "cover, codes", "cover-nofsq, codes"}


def tokens(name: str, n_items: int = 1) -> Tokens:
    return Tokens(z(name, n_items, 7, 48), torch.ones(n_items, 7, dtype=torch.bool))


def encoding(task: Task | None, codes: AudioCodes = NONE, **fields: object) -> Encoding:
    return Encoding(
        tokens("peer.text"),
        tokens("peer.text_t2m"),
        tokens("peer.lyric"),
        codes=codes,
        task=task or TEXT2MUSIC,
        **fields,
    )


def context(task: Task | None, codes: AudioCodes = NONE, n_frames: int = FRAMES, plain: bool = False) -> Tensor:
    return condition(model("2b"), encoding(task, codes), SILENCE, n_frames, plain).context


def told(task: Task | None, codes: AudioCodes = NONE) -> list[str]:
    """Return every caption the text encoder reads for a song, in order: the task's, then that of the text alone."""
    tokenizer = vocabulary.tokenizer()
    read = []

    def states(text: Ids) -> Tokens:
        for ids, attention_mask in zip(text.ids, text.attention_mask, strict=True):
            read.append(tokenizer.decode(ids[attention_mask].tolist()[:-1], skip_special_tokens=False))
        return Tokens(torch.zeros(*text.ids.shape, 1), text.attention_mask)

    reader = SimpleNamespace(tokenizer=tokenizer, states=states, embeddings=lambda text: tokens("peer.lyric"))
    encode(reader, SongSpec(caption="a song"), codes, task or text2music(n_frames=FRAMES))
    return read


def caption(instruction: str, seconds: int = 6) -> str:
    metas = f"- bpm: N/A\n- timesignature: N/A\n- keyscale: N/A\n- duration: {seconds} seconds\n"
    return f"# Instruction\n{instruction}\n\n# Caption\na song\n\n# Metas\n{metas}<|endoftext|>\n"


@pytest.mark.parametrize("name", TABLE)
def test_source_and_mask_that_reach_the_dit_are_those_of_the_table(name):
    row = TABLE[name]
    found = context(row.task, row.codes)
    assert_close(found[..., :64], row.source(), ONE_PART)
    assert torch.equal(found[..., 64:], row.mask()[None, :, None].expand(1, -1, 64))


@pytest.mark.parametrize("name", TABLE)
def test_instruction_is_that_of_the_table_byte_by_byte(name):
    row = TABLE[name]
    assert told(row.task, row.codes)[0] == caption(row.instruction)


@pytest.mark.parametrize("name", TABLE)
def test_only_a_cover_hears_its_source_through_the_tokenizer(name):
    row = TABLE[name]
    found = context(row.task, row.codes)
    raw = any(torch.equal(found[0, i, :64], SOURCE.latents[0, i]) for i in range(50))
    from_silence = row.source in (silence, behind_silence)
    assert (name in IS_COVER) == (not raw and not from_silence)


@pytest.mark.parametrize("name", TABLE)
def test_what_is_kept_while_sampling_is_what_lies_outside_a_mask(name):
    row = TABLE[name]
    keeps = row.task is not None and row.task.keep is not None and row.task.mask is not None
    assert keeps == row.kept


@pytest.mark.parametrize("name", TABLE)
def test_a_switch_to_text_alone_takes_instruction_and_source_and_leaves_the_mask(name):
    """It never comes in tasks without a strength; the official code has it in all of them."""
    row = TABLE[name]
    assert told(row.task, row.codes)[-1] == caption(TEXT)
    found = context(row.task, row.codes, plain=True)
    assert torch.equal(found[..., :64], silence())
    assert torch.equal(found[..., 64:], row.mask()[None, :, None].expand(1, -1, 64))
    made, plain = (
        condition(model("2b"), encoding(row.task, row.codes), SILENCE, FRAMES, plain) for plain in (False, True)
    )
    n_text, n_others = 7, 7 + 1  # lyric and timbre stand before the text
    assert torch.equal(made.tokens.states[:, :n_others], plain.tokens.states[:, :n_others])
    assert (made.tokens.states[:, -n_text:] - plain.tokens.states[:, -n_text:]).abs().max() > 0.1


@pytest.mark.parametrize(("n_steps", "strength", "step"), [(8, 1.0, 8), (8, 0.5, 4), (8, 0.99, 7), (50, 0.33, 16)])
def test_a_cover_goes_on_by_the_text_alone_from_step_n_times_strength(n_steps, strength, step):
    assert encoding(cover(SOURCE, strength)).turns_plain_at(n_steps) == step
    assert encoding(cover(SOURCE, strength), CODES).turns_plain_at(n_steps) == step


@pytest.mark.parametrize("name", [name for name in TABLE if "cover" not in name and name != "text2music, codes"])
def test_every_other_task_follows_its_source_to_the_end(name):
    row = TABLE[name]
    assert encoding(row.task, row.codes).turns_plain_at(50) == 50


def test_every_task_we_know_is_in_the_table():
    assert {row.task.name for row in TABLE.values() if row.task is not None} == {*RULES} - {"text2music"}
    taking = {row.task.name for row in TABLE.values() if row.task is not None and row.codes.n_plans}
    assert taking <= {name for name, rule in RULES.items() if rule.codes != "refused"}


# Rows of a batch.


def test_each_track_of_each_item_is_told_its_own_instruction():
    two = Source(z("peer.two", 2, FRAMES, CHANNELS))
    captions = told(extract(two, ("vocals", "fx")))
    assert captions == [
        *[caption("Extract the VOCALS track from the audio:")] * 2,
        *[caption("Extract the FX track from the audio:")] * 2,
        caption(TEXT),
    ]
    task = extract(two, ("vocals", "fx"))
    found = context(task)
    assert torch.equal(found[..., :64], two.latents[[0, 1, 0, 1]])


def test_plans_and_items_of_a_repaint_pair_up_in_turn():
    """Four plans of two items: outside the region the item's latents, inside the plan's hints."""
    plans = AudioCodes(tuple(tuple((p + 1) * 613 * i % 64_000 for i in range(FRAMES // 5)) for p in range(4)))
    two = Source(z("peer.two", 2, FRAMES, CHANNELS))
    masks = torch.stack((REGION, ~REGION)).float()
    found = context(repaint(two, masks), plans)
    sketches = hints(plans)
    for plan in range(4):
        inside = masks[plan % 2, :, None] > 0
        expected = torch.where(inside, sketches[plan], two.latents[plan % 2])
        assert_close(found[plan, :, :64], expected, ONE_PART)
        assert torch.equal(found[plan, :, 64:], inside.float().expand(-1, 64))


# Sources of other lengths.


@pytest.mark.parametrize("name", ["cover", "cover-nofsq", "repaint", "extract"])
def test_a_source_shorter_than_a_model_makes_is_filled_up_with_silence_from_its_start(name):
    """As the official code collates a batch. diffusers makes as few frames as there are."""
    short = Source(SOURCE.latents[:, :100])
    filled = torch.cat((short.latents, SILENCE[:, :28]), dim=1)
    quantized, _ = peers.diffusers_tokenizer("2b").tokenize(filled, SILENCE)
    inside = (torch.arange(128) < 30)[:, None]
    task, source, mask = {
        "cover": (cover(short), peers.diffusers_detokenizer("2b")(quantized)[:, :128], ones),
        "cover-nofsq": (cover(short, hints=False), filled, ones),
        "extract": (extract(short, ("bass",)), filled, ones),
        "repaint": (
            repaint(short, inside[None, :100, 0].float()),
            torch.where(inside, SILENCE[:, :128], filled),
            inside,
        ),
    }[name]
    found = context(task, n_frames=128)
    assert_close(found[..., :64], source, ONE_PART)
    expected = torch.ones(128, 64) if mask is ones else inside.float().expand(-1, 64)
    assert torch.equal(found[0, :, 64:], expected)


@pytest.mark.parametrize("n_frames", [131, 132, 133, 134])
def test_a_cover_of_any_length_is_cut_back_from_whole_codes(n_frames):
    recording = Source(SOURCE.latents[:, :n_frames])
    quantized, _ = peers.diffusers_tokenizer("2b").tokenize(recording.latents, SILENCE)
    expected = peers.diffusers_detokenizer("2b")(quantized)[:, :n_frames]
    assert_close(context(cover(recording), n_frames=n_frames)[..., :64], expected, ONE_PART)


def test_a_window_of_a_long_song_holds_what_lies_in_it():
    long = Source(z("peer.long", 1, 1_000, CHANNELS))
    task = extend(long, 0, 4, context_s=6)
    assert task.window == (850, 1_100)
    found = context(task, n_frames=250)
    assert torch.equal(found[..., :64], torch.cat((long.latents[:, 850:], SILENCE[:, 150:250]), dim=1))
    assert torch.equal(found[0, :, 64], (torch.arange(250) >= 150).float())


# Where a task does nothing of its own.


def test_a_repaint_of_everything_is_text_to_music_but_for_its_sentence():
    everything = encoding(repaint(SOURCE, torch.ones(1, FRAMES)))
    ours, plain = (condition(model("2b"), each, SILENCE, FRAMES) for each in (everything, encoding(None)))
    assert torch.equal(ours.context, plain.context)
    assert torch.equal(ours.tokens.states, plain.tokens.states)


def test_a_repaint_of_everything_after_codes_is_text_to_music_after_codes():
    assert torch.equal(context(repaint(SOURCE, torch.ones(1, FRAMES)), CODES), context(None, CODES))


def test_prompts_of_extensions_and_bridges_tell_the_length_of_the_whole():
    """The official code tells the length of the source before it is padded."""
    assert told(extend(SHORT, 2, 6))[0] == caption(REPAINT, seconds=12)
    assert told(stitch(SHORT, SHORT, 4))[0] == caption(REPAINT, seconds=12)
