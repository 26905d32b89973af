"""The nodes through which sound comes in: recordings to latents, to codes and back, and references."""

import json
from pathlib import Path

import comfy.sd
import comfy.utils
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

import golden_models
from acestep_pack.acestep_core.constants import N_CODES, SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep_pack.acestep_core.models import tokenizer
from acestep_pack.acestep_core.pipeline.reference import Reference, excerpt
from acestep_pack.acestep_core.types import AudioCodes, Take
from acestep_pack.nodes.audio import AceStepDetokenize, AceStepEncodeAudio, AceStepReference, AceStepTokenize
from acestep_pack.nodes.host import model as models
from acestep_pack.nodes.host.latents import latent, latent_source, latent_takes, recording_of
from golden_models import assert_close, z
from sounds import music

CHANNELS = 64
SILENCE = z("gen.silence", 1, 800, CHANNELS)


@pytest.fixture(scope="module", params=["2b", "xl"])
def size(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(size: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A golden model in the official layout."""
    folder = tmp_path_factory.mktemp(size)
    (folder / "config.json").write_text(json.dumps({"is_turbo": True}))
    save_file(golden_models.weights(size), folder / "model.safetensors")
    torch.save(SILENCE.transpose(1, 2).contiguous(), folder / "silence_latent.pt")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path):
    """The golden model as our loader gives it to the nodes, in float32."""
    with torch.inference_mode():
        return models.load_model(folder, "auto", "fp32")


def audio(waveform: Tensor, sample_rate: int = SAMPLE_RATE) -> dict:
    return {"waveform": waveform, "sample_rate": sample_rate}


def encode(vae, given: dict | None) -> dict:
    return AceStepEncodeAudio.execute(vae, given).result[0]


def tokenize(model, frames: Tensor) -> AudioCodes:
    return AceStepTokenize.execute(model, latent(frames, ())).result[0]


def detokenize(model, codes: AudioCodes) -> dict:
    return AceStepDetokenize.execute(model, codes).result[0]


def hints(model, *sequences: tuple[int, ...]) -> Tensor:
    """Return hints [B, 5K, 64]."""
    return detokenize(model, AudioCodes(sequences))["samples"].transpose(1, 2)


def some_codes(n_codes: int, start: int = 0) -> tuple[int, ...]:
    return tuple((start + i * 7919) % N_CODES for i in range(n_codes))


# Recordings to latents.


@pytest.mark.parametrize(("n_samples", "n_frames"), [(1_920, 1), (1_921, 2), (47_999, 25), (48_000, 25), (48_001, 26)])
def test_no_tail_of_a_recording_is_lost(vae, n_samples: int, n_frames: int) -> None:
    encoded = encode(vae, audio(music(n_samples)))
    assert encoded["samples"].shape == (1, CHANNELS, n_frames)
    assert torch.isfinite(encoded["samples"]).all()
    assert encoded["type"] == "audio"
    assert latent_takes(encoded) == (None,)


def test_a_latent_remembers_its_recording_bit_by_bit(vae) -> None:
    given = music(48_001)
    encoded = encode(vae, audio(given.clone()))
    assert torch.equal(recording_of(encoded), given)
    source = latent_source(encoded)
    assert source.duration_s == 48_001 / SAMPLE_RATE
    assert (source.n_frames, source.full_frames) == (26, 25)


@pytest.mark.parametrize("sample_rate", [22_050, 44_100, 96_000])
def test_another_rate_is_remembered_at_48_khz(vae, sample_rate: int) -> None:
    encoded = encode(vae, audio(music(2 * sample_rate, 1, sample_rate), sample_rate))
    assert recording_of(encoded).shape == (1, 2, 2 * SAMPLE_RATE)
    assert encoded["samples"].shape == (1, CHANNELS, 50)


def test_mono_is_heard_on_both_sides(vae) -> None:
    mono = music(20_000, n_channels=1)
    one, two = encode(vae, audio(mono)), encode(vae, audio(mono.repeat(1, 2, 1)))
    assert torch.equal(one["samples"], two["samples"])
    assert torch.equal(recording_of(one), recording_of(two))


def test_each_recording_of_a_batch_is_encoded_by_itself(vae) -> None:
    both = torch.cat((music(30_000), music(30_000).flip(1)))
    encoded = encode(vae, audio(both))["samples"]
    for item, alone in zip(encoded, both, strict=True):
        assert torch.equal(item, encode(vae, audio(alone[None]))["samples"][0])


@pytest.mark.parametrize("tile_frames", [1, 7, 20, 100])
def test_a_recording_encoded_in_tiles_is_the_recording_encoded_whole(vae, tile_frames: int) -> None:
    given = music(61 * SAMPLES_PER_FRAME)
    assert_close(vae.latents(given, tile_frames), vae.first_stage_model.encode(given), 1e-5)


def test_only_a_tile_at_a_time_is_taken_to_the_vaes_device_and_precision(vae) -> None:
    class Moves(TorchFunctionMode):
        def __init__(self) -> None:
            super().__init__()
            self.n_samples: list[int] = []

        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is Tensor.to and args[0].dtype == torch.float64:
                self.n_samples.append(args[0].shape[-1])
            return func(*args, **(kwargs or {}))

    given, tile_frames = music(100 * SAMPLES_PER_FRAME).double(), 10
    with Moves() as moves:
        encoded = vae.latents(given, tile_frames)
    margin = vae.first_stage_model.config.encode_margin
    assert len(moves.n_samples) == 10
    assert max(moves.n_samples) == (tile_frames + 2 * margin) * SAMPLES_PER_FRAME
    assert torch.equal(encoded, vae.latents(given.float(), tile_frames))


def test_a_recording_encodes_to_the_same_latents_every_time_and_stays_as_it_was(vae) -> None:
    given = music(30_000)
    first = encode(vae, audio(given))
    assert torch.equal(first["samples"], encode(vae, audio(given))["samples"])
    assert torch.equal(given, music(30_000))


def test_a_vae_that_core_loaded_encodes_about_the_same(vae, core_vae) -> None:
    ours, theirs = (encode(which, audio(music(48_001)))["samples"] for which in (vae, core_vae))
    posterior = vae.first_stage_model.posterior(torch.nn.functional.pad(music(48_001), (0, 1_919)))
    drawn = (theirs - ours) / posterior.std  # core's encoder draws where ours takes the mean
    assert ours.shape == theirs.shape
    assert abs(drawn.mean()) < 0.1
    assert drawn.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("node", [AceStepEncodeAudio, AceStepReference])
def test_a_vae_of_another_model_is_refused(node) -> None:
    pixels = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    with pytest.raises(ValueError, match=r"this VAE is not ACE-Step 1\.5's"):
        node.execute(pixels, audio(music(48_000)))


def test_a_film_without_sound_is_no_recording(vae) -> None:
    with pytest.raises(
        ValueError, match=r'"audio" takes an AUDIO, got nothing; .* \(a film without sound gives no AUDIO\)'
    ):
        encode(vae, None)


def test_eight_channels_are_left_to_the_user(vae) -> None:
    with pytest.raises(ValueError, match="this audio has 8 channels; mix it down to stereo first"):
        encode(vae, audio(music(48_000)[:, :1].expand(1, 8, -1)))


@pytest.mark.parametrize(
    ("n_items", "text"),
    [(1, "1.50 s, 38 frames, from 44100 Hz"), (3, "3 recordings of 1.50 s, 38 frames, from 44100 Hz")],
)
def test_the_node_tells_length_frames_and_rate(vae, n_items: int, text: str) -> None:
    given = music(66_150, sample_rate=44_100).repeat(n_items, 1, 1)
    assert AceStepEncodeAudio.execute(vae, audio(given, 44_100)).ui == {"text": (text,)}


def test_latents_that_were_sampled_again_are_no_longer_the_recording(vae) -> None:
    encoded = encode(vae, audio(music(48_000)))
    assert torch.equal(latent_source(encoded).waveform, music(48_000))
    sampled = {**encoded, "samples": encoded["samples"] + 1}  # as core's samplers do: every other key is handed on
    assert latent_source(sampled).waveform is None


# Latents to codes.


@pytest.mark.parametrize("n_frames", [1, 4, 5, 23, 504])
def test_codes_of_a_latent_are_the_tokenizers_of_each_item(model, size: str, n_frames: int) -> None:
    frames = z("audio.latents", 2, n_frames, CHANNELS)
    expected = golden_models.model(size).tokenize(frames, SILENCE)
    assert tokenize(model, frames).sequences == tuple(map(tuple, expected.tolist()))


@pytest.mark.parametrize("groups", [1, 3, 7])
def test_a_long_latent_in_parts_has_the_codes_of_the_whole(model, monkeypatch, groups: int) -> None:
    frames = z("audio.latents", 1, 63, CHANNELS)
    whole = tokenize(model, frames)
    monkeypatch.setattr(tokenizer, "GROUPS_AT_ONCE", groups)
    assert tokenize(model, frames) == whole


def test_codes_of_a_batch_are_the_codes_of_each_item_alone(model) -> None:
    frames = z("audio.latents", 3, 37, CHANNELS)
    alone = [tokenize(model, item[None]).sequences[0] for item in frames]
    assert tokenize(model, frames).sequences == tuple(alone)


def test_a_recording_can_be_read_as_codes(vae, model) -> None:
    (codes,) = AceStepTokenize.execute(model, encode(vae, audio(music(48_001)))).result
    assert [len(sequence) for sequence in codes.sequences] == [6]


def test_a_broken_latent_has_no_codes(model) -> None:
    with pytest.raises(ValueError, match="this latent holds NaN or infinity"):
        tokenize(model, torch.full((1, 10, CHANNELS), float("nan")))


# Codes to latents.


def test_hints_are_the_detokenizers(model, size: str) -> None:
    expected = golden_models.model(size).detokenize(torch.tensor([some_codes(40)]), torch.float32)
    assert_close(hints(model, some_codes(40)), expected, 1e-5)


@pytest.mark.parametrize(("weight_dtype", "cosine"), [("bf16", 0.999), ("fp8_e4m3fn", 0.9)])
def test_narrow_weights_write_nearly_the_same_hints_and_read_codes(model, folder, weight_dtype, cosine) -> None:
    narrow, codes = models.load_model(folder, "auto", weight_dtype), some_codes(21)
    ours, exact = hints(narrow, codes), hints(model, codes)
    assert ours.dtype == torch.float32
    assert torch.cosine_similarity(ours.flatten(), exact.flatten(), dim=0) > cosine
    assert [len(sequence) for sequence in tokenize(narrow, ours).sequences] == [21]


@pytest.mark.parametrize("groups", [1, 3, 7])
def test_long_codes_in_parts_have_the_hints_of_the_whole(model, monkeypatch, groups: int) -> None:
    whole = hints(model, some_codes(13))
    monkeypatch.setattr(tokenizer, "GROUPS_AT_ONCE", groups)
    assert_close(hints(model, some_codes(13)), whole, 1e-5)


def test_the_same_codes_have_the_same_hints_and_those_the_same_codes(model) -> None:
    one, other = hints(model, some_codes(20)), hints(model, some_codes(20))
    assert torch.equal(one, other)
    assert tokenize(model, one) == tokenize(model, other)


def test_shorter_sequences_go_on_with_silence_up_to_the_longest(model) -> None:
    made = hints(model, some_codes(4), some_codes(9, start=5), ())
    assert made.shape == (3, 45, CHANNELS)
    assert_close(made[:1, :20], hints(model, some_codes(4)), 1e-5)
    assert_close(made[1:2], hints(model, some_codes(9, start=5)), 1e-5)
    assert torch.equal(made[0, 20:], SILENCE[0, :25])
    assert torch.equal(made[2], SILENCE[0, :45])


def test_hints_know_which_plan_they_are(model) -> None:
    made = detokenize(model, AudioCodes((some_codes(2), some_codes(3))))
    assert latent_takes(made) == (Take(plan=0), Take(plan=1))


@pytest.mark.parametrize("codes", [AudioCodes(), AudioCodes(((), ()))])
def test_no_codes_have_no_hints(model, codes: AudioCodes) -> None:
    with pytest.raises(ValueError, match="there are no audio codes; connect some"):
        detokenize(model, codes)


def test_a_model_of_another_loader_is_refused() -> None:
    foreign = ModelPatcher(torch.nn.Identity(), torch.device("cpu"), torch.device("cpu"))
    with pytest.raises(ValueError, match="this MODEL is a Identity from another loader"):
        tokenize(foreign, z("audio.latents", 1, 10, CHANNELS))
    with pytest.raises(ValueError, match="this MODEL is a Identity from another loader"):
        detokenize(foreign, AudioCodes((some_codes(2),)))


# References.


@pytest.mark.parametrize("n_items", [1, 2])
def test_a_reference_is_the_latents_of_30_s_of_each_recording(vae, n_items: int) -> None:
    given = torch.cat([music(2 * SAMPLE_RATE), music(2 * SAMPLE_RATE).flip(1)][:n_items])
    (made,) = AceStepReference.execute(vae, audio(given)).result
    assert made.latents.shape == (n_items, 750, CHANNELS)
    assert torch.equal(made.latents, vae.latents(excerpt(given)).transpose(1, 2))


def test_more_references_are_kept_beside_the_new_one(vae) -> None:
    given = Reference(z("audio.reference", 2, 750, CHANNELS))
    made = AceStepReference.execute(vae, audio(music(SAMPLE_RATE)), given)
    (both,) = made.result
    assert both.n_recordings == 3
    assert torch.equal(both.latents[:2], given.latents)
    assert given.n_recordings == 2
    assert made.ui == {"text": ("3 recordings to sound like; this one has 1.00 s, repeated up to 30 s",)}


def test_a_long_reference_tells_that_30_s_of_it_are_heard(vae) -> None:
    made = AceStepReference.execute(vae, audio(music(31 * SAMPLE_RATE)))
    assert made.ui == {"text": ("1 recording to sound like; this one has 31.00 s, of which 30 s are heard",)}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (audio(torch.zeros(1, 2, SAMPLE_RATE)), "the reference is silent; use a recording that can be heard"),
        (None, r'"audio" takes an AUDIO, got nothing; .* \(a film without sound gives no AUDIO\)'),
    ],
)
def test_a_reference_that_cannot_be_heard_is_refused(vae, given: dict | None, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AceStepReference.execute(vae, given)


# Every node's face.


@pytest.mark.parametrize("node", [AceStepEncodeAudio, AceStepTokenize, AceStepDetokenize, AceStepReference])
def test_every_socket_has_a_tooltip_and_every_input_a_line_in_the_help(node, pack_root: Path) -> None:
    schema = node.GET_SCHEMA()
    page = (pack_root / "web" / "docs" / f"{schema.node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {schema.display_name}\n")
    assert [given.id for given in schema.inputs if f"`{given.id}`" not in page] == []
    assert all(socket.tooltip for socket in (*schema.inputs, *schema.outputs))
