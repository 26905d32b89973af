"""The condition side against diffusers' and ComfyUI's: lyric, timbre and text tokens, packed, and the context."""

import pytest
import torch
from torch import Tensor

from acestep_pack.acestep_core.models.conditioner import Tokens, pack
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.run import Branch, Run
from acestep_pack.acestep_core.types import AudioCodes
from golden_models import assert_close, model, z
from parity import peers
from parity.peers import ONE_PART, SIZES

pytestmark = pytest.mark.parity

# ComfyUI leaves the window out, which cannot be seen in sequences this long.
WITHIN_REACH = 129


def tokens(name: str, lengths: tuple[int, ...]) -> Tokens:
    """Return random states for items of these lengths, padding too."""
    longest = max(lengths)
    return Tokens(z(name, len(lengths), longest, 48), torch.arange(longest) < torch.tensor(lengths)[:, None])


def assert_real_tokens_close(ours: Tokens, states: Tensor, attention_mask: Tensor) -> None:
    assert torch.equal(ours.attention_mask, attention_mask)
    assert_close(ours.states[ours.attention_mask], states[attention_mask], ONE_PART)


@pytest.mark.parametrize("build", [model, peers.ours_on_comfyui_ops])
@pytest.mark.parametrize("owner", [(0, 1), (0, 0, 1), (1, 0, 1, 1)])
@pytest.mark.parametrize("size", SIZES)
def test_packed_condition_of_a_padded_batch_equals_diffusers(size, owner, build):
    """On XL against diffusers with the learned token put in front of the timbre."""
    text, lyric = tokens("peer.text", (7, 5)), tokens("peer.lyric", (200, 301))
    reference, owner = z("peer.reference", len(owner), 260, 64), torch.tensor(owner)
    theirs = peers.official_condition_encoder(size)(
        text.states, text.attention_mask, lyric.states, lyric.attention_mask, reference, owner
    )
    assert_real_tokens_close(build(size).encoder(text, lyric, reference, owner), *theirs)


def test_diffusers_reads_xl_timbre_without_the_class_token():
    """Only the timbre token differs. Fails on the day diffusers follows the official code."""
    given = z("peer.reference", 1, 260, 64), torch.tensor([0])
    theirs, _ = peers.diffusers_condition_encoder("xl").timbre_encoder(*given)
    ours = model("xl").encoder.timbre_encoder(given[0])
    assert (ours - theirs[:, 0]).abs().max() > 0.1 * theirs.abs().max()


def test_2b_timbre_without_the_class_token_equals_comfyui():
    reference = z("peer.reference", 1, WITHIN_REACH, 64)
    theirs, _ = peers.comfyui_model("2b").encoder.timbre_encoder(reference, torch.tensor([0]))
    assert_close(model("2b").encoder.timbre_encoder(reference), theirs[:, 0], ONE_PART)


@pytest.mark.parametrize("n_lyric", [1, 64, WITHIN_REACH])
def test_packed_condition_of_one_short_song_equals_comfyui(n_lyric):
    text, lyric = tokens("peer.text", (7,)), tokens("peer.lyric", (n_lyric,))
    given = z("peer.reference", 1, WITHIN_REACH, 64), torch.tensor([0])
    theirs, _ = peers.comfyui_model("2b").encoder(text.states, None, lyric.states, None, *given)
    ours = model("2b").encoder(text, lyric, *given)
    assert ours.attention_mask.all()
    assert_close(ours.states, theirs, ONE_PART)


def test_real_tokens_stand_in_the_order_lyric_timbre_text_with_padding_last():
    def numbered(first: int, attention_mask: list[list[int]]) -> Tokens:
        mask = torch.tensor(attention_mask).bool()
        return Tokens(first + torch.arange(mask.shape[1]).expand(mask.shape)[..., None].float(), mask)

    lyric = numbered(10, [[1, 1, 1], [1, 0, 0]])
    timbre = numbered(20, [[1, 0], [1, 1]])
    text = numbered(30, [[1, 1], [1, 0]])
    packed = pack(pack(lyric, timbre), text)
    kept = [states[mask, 0].tolist() for states, mask in zip(packed.states, packed.attention_mask, strict=True)]
    assert kept == [[10, 11, 12, 20, 30, 31], [10, 20, 21, 30]]
    assert packed.attention_mask.int().tolist() == [[1, 1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("with_codes", [False, True])
def test_condition_and_velocity_of_one_short_song_equal_comfyuis_whole_model(with_codes, null):
    n_frames = 101
    silence, x = z("peer.silence", 1, n_frames, 64), z("peer.x", 1, n_frames, 64)
    text, lyric = tokens("peer.text", (7,)), tokens("peer.lyric", (64,))
    # Enough of them: ComfyUI fills up with codes where the official code fills up with silence.
    codes = [(i * 7919) % 64_000 for i in range(21)] if with_codes else []
    theirs = peers.comfyui_model("2b")(
        x.mT,
        torch.tensor([0.5]),
        text.states,
        lyric.states,
        refer_audio=silence.mT,  # as long as the song, because that is what ComfyUI takes
        audio_codes=torch.tensor([codes]) if codes else None,
        is_covers=bool(codes),
        replace_with_null_embeds=null,
    )
    planned = AudioCodes((tuple(codes),) if codes else ())
    encoding = Encoding(text, text, lyric, codes=planned, timbre=silence)
    v = Run(model("2b"), silence).velocity(x, 0.5, [Branch(encoding, (0,), null)])
    assert_close(v, theirs.mT, ONE_PART)
