"""Where implementations disagree and ours follows the official one: each rule against a formula of a few lines.

README.md in this folder lists them all. Those that belong to one part are tested beside it, in the other files here.
"""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import pywt
import torch
from comfy.ldm.ace.ace_step15 import get_silence_latent
from diffusers import AceStepPipeline
from torch import Tensor

import vocabulary
from acestep_pack.acestep_core.audio.level import normalize_peak
from acestep_pack.acestep_core.constants import frames_for
from acestep_pack.acestep_core.models.acestep import chunk_context
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.models.silence import published_silence
from acestep_pack.acestep_core.pipeline import tasks
from acestep_pack.acestep_core.pipeline.condition import Encoding, condition
from acestep_pack.acestep_core.pipeline.encode import encode
from acestep_pack.acestep_core.pipeline.options import Options, official
from acestep_pack.acestep_core.pipeline.sample import SamplerSettings
from acestep_pack.acestep_core.pipeline.schedule import custom_schedule, schedule
from acestep_pack.acestep_core.pipeline.wavelet import Dcw, correct
from acestep_pack.acestep_core.song.prompts import INSTRUCTIONS
from acestep_pack.acestep_core.song.tokens import Ids, lyric_ids
from acestep_pack.acestep_core.types import AudioCodes, SongSpec
from golden_models import assert_close, model, z
from parity import peers
from parity.peers import ONE_PART

pytestmark = pytest.mark.parity

SILENCE = z("peer.silence", 1, 900, 64)


def tokens(name: str, n_tokens: int) -> Tokens:
    return Tokens(z(name, 1, n_tokens, 48), torch.ones(1, n_tokens, dtype=torch.bool))


def encoding(**fields: object) -> Encoding:
    texts = tokens("peer.text", 7), tokens("peer.text_t2m", 7)
    return Encoding(*texts, tokens("peer.lyric", 20), **fields)


def diffusers_hints(codes: tuple[int, ...]) -> Tensor:
    """Return the latents [5K, 64] that diffusers makes of K codes."""
    vectors = peers.diffusers_tokenizer("2b").quantizer.get_output_from_indices(torch.tensor([codes]))
    return peers.diffusers_detokenizer("2b")(vectors)[0]


def test_lyric_and_timbre_encoders_keep_their_window():
    """ComfyUI's have none; they equal ours once their even layers get one."""
    peer = copy.deepcopy(peers.comfyui_model("2b").encoder)
    for layer in (*peer.lyric_encoder.layers[::2], *peer.timbre_encoder.layers[::2]):
        layer.self_attn.sliding_window = 128
    text, lyric = tokens("peer.text", 7), tokens("peer.lyric", 300)
    given = z("peer.reference", 1, 260, 64), torch.tensor([0])
    ours = model("2b").encoder(text, lyric, *given).states
    windowed, _ = peer(text.states, None, lyric.states, None, *given)
    unwindowed, _ = peers.comfyui_model("2b").encoder(text.states, None, lyric.states, None, *given)
    assert_close(ours, windowed, ONE_PART)
    assert (ours - unwindowed).abs().max() > 1e-2 * windowed.abs().max()


@pytest.mark.parametrize("n_frames", [128, 850])
@pytest.mark.parametrize("n_silence", [900, 256])
def test_timbre_without_a_reference_is_that_of_750_silence_frames(n_frames, n_silence):
    silence = SILENCE[:, :n_silence]
    made = condition(model("2b"), encoding(), silence, n_frames)
    thirty_seconds = torch.cat([silence] * 3, dim=1)[:, :750]
    timbre, _ = peers.diffusers_condition_encoder("2b").timbre_encoder(thirty_seconds, torch.tensor([0]))
    assert_close(made.tokens.states[:, 20], timbre[:, 0], ONE_PART)  # behind the 20 tokens of lyrics


def test_each_item_of_a_batch_gets_the_timbre_of_its_own_reference():
    """ComfyUI gives all of them to the first item."""
    both = [
        Tokens(part.states.repeat(2, 1, 1), part.attention_mask.repeat(2, 1))
        for part in (encoding().text, encoding().lyric)
    ]
    reference = z("peer.reference", 2, 260, 64)
    packed = model("2b").encoder(*both, reference, torch.arange(2))
    for item in range(2):
        timbre, _ = peers.diffusers_condition_encoder("2b").timbre_encoder(
            reference[item : item + 1], torch.tensor([0])
        )
        assert_close(packed.states[item : item + 1, 20], timbre[:, 0], ONE_PART)


def test_mask_of_a_region_is_one_inside_and_zero_outside():
    source = z("peer.source", 2, 50, 64)
    mask = AceStepPipeline._build_chunk_mask(
        SimpleNamespace(latents_per_second=25.0), "repaint", 50, 2, "cpu", torch.float32, 64, 0.8, 1.6, True
    )
    inside = (torch.arange(50) >= 20) & (torch.arange(50) < 40)
    assert torch.equal(chunk_context(source, inside.expand(2, -1)), torch.cat((source, mask), dim=-1))


def test_mask_is_one_everywhere_when_a_whole_song_is_made():
    made = condition(model("2b"), encoding(), SILENCE, 128)
    assert torch.equal(made.context, torch.cat((SILENCE[:, :128], torch.ones(1, 128, 64)), dim=-1))


def test_codes_that_end_early_go_on_with_silence_from_its_start():
    """ComfyUI goes on with a code, diffusers with code 0."""
    codes = AudioCodes(((5, 40_775, 63_999), (11_527,)))
    made = condition(model("2b"), encoding(codes=codes), SILENCE, 20)
    for row, sequence in zip(made.context, codes.sequences, strict=True):
        hints = diffusers_hints(sequence)
        by_hand = torch.cat((hints, SILENCE[0, : 20 - len(hints)]))
        assert_close(row[:, :64], by_hand, ONE_PART)


def test_codes_that_last_too_long_are_cut():
    made = condition(model("2b"), encoding(codes=AudioCodes(((7, 8, 9),))), SILENCE, 12)
    assert_close(made.context[0, :, :64], diffusers_hints((7, 8, 9))[:12], ONE_PART)


@pytest.mark.parametrize(
    ("duration_s", "n_frames"),
    # The duration is rounded to a tenth of a second, which is 2.5 frames.
    [(0, 128), (5, 128), (5.2, 130), (10, 250), (10.04, 250), (10.06, 252), (10.1, 252), (59.99, 1500), (600, 15_000)],
)
def test_frames_are_rounded_down_and_at_least_128(duration_s, n_frames):
    assert frames_for(duration_s) == n_frames


@pytest.mark.parametrize("gain", [0.01, 0.9, 30.0])
def test_level_is_minus_one_decibel_up_and_down(gain):
    """diffusers first divides by a peak above 1, which the second step makes up for."""
    audio = gain * z("peer.audio", 2, 2, 500)
    peak = torch.tensor([take.abs().max() for take in audio])[:, None, None]
    assert_close(normalize_peak(audio, -1.0), audio / peak * 10 ** (-1 / 20), ONE_PART)


def test_silence_is_not_made_louder():
    audio = torch.full((1, 2, 100), 1e-7)
    assert torch.equal(normalize_peak(audio, -1.0), audio)


def test_published_silence_equals_comfyuis():
    """For files without one. Where the checkpoint brings its own 15,000 frames, those are used."""
    assert torch.equal(published_silence(2_000), get_silence_latent(2_000, "cpu").mT)


def test_lyrics_the_model_cannot_read_to_their_end_are_refused():
    """The official code cuts them in silence, ComfyUI reads on past what the model was trained with."""
    tokenizer = vocabulary.tokenizer()
    around = lyric_ids(tokenizer, SongSpec()).tokens.ids.shape[1]
    longest = SongSpec(lyrics=" la" * (2048 - around))
    assert lyric_ids(tokenizer, longest).tokens.ids.shape == (1, 2048)
    with pytest.raises(ValueError, match="2049 tokens long and the model reads 2048"):
        lyric_ids(tokenizer, SongSpec(lyrics=longest.lyrics + " la"))


RECORDING = tasks.Source(z("peer.recording", 1, 250, 64))


@pytest.mark.parametrize(
    ("task", "codes", "expected"),
    [
        (None, AudioCodes(), "text2music"),
        (None, AudioCodes(((1, 2),)), "cover"),
        (tasks.repaint(RECORDING, torch.ones(1, 250)), AudioCodes(), "repaint"),
        (tasks.cover(RECORDING, hints=False), AudioCodes(), "cover-nofsq"),
        (tasks.complete(RECORDING), AudioCodes(), "complete"),
    ],
)
def test_caption_carries_the_instruction_of_its_task(task, codes, expected):
    """ComfyUI writes the cover instruction always; it is right only where codes are given."""
    tokenizer = vocabulary.tokenizer()
    read = []

    def states(text: Ids) -> Tokens:
        read.append(tokenizer.decode(text.ids[0].tolist()))
        return Tokens(torch.zeros(*text.ids.shape, 1), text.attention_mask)

    reader = SimpleNamespace(tokenizer=tokenizer, states=states, embeddings=lambda text: tokens("peer.lyric", 20))
    made = encode(reader, SongSpec(caption="a song"), codes, task or tasks.text2music(n_frames=250))
    line = INSTRUCTIONS[expected].format(tracks="")
    assert read[0].startswith(f"# Instruction\n{line}\n\n# Caption\na song\n")
    # What takes over when a strength below 1 drops the codes.
    assert read[-1].startswith(f"# Instruction\n{INSTRUCTIONS['text2music']}\n")
    assert (made.text is made.text_to_music) == (expected == "text2music")


def test_turbo_snaps_custom_levels_to_those_it_was_distilled_at_and_leaves_shift_free():
    distilled = np.unique([s * t / (1 + (s - 1) * t) for s in (1, 2, 3) for t in np.arange(1, 9) / 8])
    asked = (0.97, 0.76, 0.615, 0.5, 0.395, 0.28, 0.18, 0.085)
    nearest = [distilled[np.abs(distilled - level).argmin()] for level in asked]
    assert custom_schedule((*asked, 0), turbo=True) == pytest.approx((*nearest, 0), abs=1e-12)
    assert custom_schedule((*asked, 0)) == (*asked, 0)
    assert schedule(2, 2.4)[1] == pytest.approx(2.4 * 0.5 / (1 + 1.4 * 0.5))


def test_wavelet_correction_is_off_unless_asked_for():
    for settings in (SamplerSettings(), Options().settings, official(is_turbo=False).settings):
        assert settings.dcw.mode == "off"
    assert official(is_turbo=True).settings.dcw == Dcw("double", 0.05, 0.02)


@pytest.mark.parametrize("n_frames", [1, 2, 37, 64])
@pytest.mark.parametrize("mode", ["low", "high", "double", "pix"])
def test_wavelet_correction_equals_pywavelets(mode, n_frames):
    x, data, t = z("peer.x", 2, n_frames, 64), z("peer.data", 2, n_frames, 64), 0.7
    gains = {"low": (0.7 * 0.05, 0), "high": (0, 0.3 * 0.05), "double": (0.7 * 0.05, 0.3 * 0.02)}
    if mode == "pix":
        expected = x + 0.05 * (x - data)
    else:
        (low, high), (low_gain, high_gain) = pywt.dwt((x - data).numpy(), "haar", "zero", axis=1), gains[mode]
        push = pywt.idwt(low_gain * low, high_gain * high, "haar", "zero", axis=1)[:, :n_frames]
        expected = x + torch.from_numpy(push)
    assert_close(correct(x, data, t, Dcw(mode, 0.05, 0.02)), expected, ONE_PART)


@pytest.mark.parametrize(
    ("n_steps", "strength", "step"), [(8, 1.0, 8), (8, 0.5, 4), (8, 0.99, 7), (50, 0.33, 16), (8, 0, 0)]
)
def test_codes_are_dropped_at_once_from_step_n_times_strength(n_steps, strength, step):
    """diffusers mixes two velocities in every step instead."""
    assert encoding(task=tasks.text2music(strength)).turns_plain_at(n_steps) == step


def test_without_its_codes_a_song_is_conditioned_as_text_to_music():
    with_codes = encoding(codes=AudioCodes(((5, 40_775, 63_999),)), task=tasks.text2music(0.5))
    without = Encoding(with_codes.text_to_music, with_codes.text_to_music, with_codes.lyric)
    dropped = condition(model("2b"), with_codes, SILENCE, 128, plain=True)
    expected = condition(model("2b"), without, SILENCE, 128)
    assert torch.equal(dropped.tokens.states, expected.tokens.states)
    assert torch.equal(dropped.context, expected.context)
