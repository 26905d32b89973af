"""From prompt to latents: our whole path against diffusers' whole pipeline, same weights and same noise."""

import pytest
from diffusers import AceStepPipeline
from torch import Tensor

from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.encode import encode
from acestep_pack.acestep_core.pipeline.generate import Job, generate
from acestep_pack.acestep_core.pipeline.guidance import Guidance
from acestep_pack.acestep_core.pipeline.schedule import schedule
from acestep_pack.acestep_core.pipeline.tasks import text2music
from acestep_pack.acestep_core.types import AudioCodes, SongSpec
from golden_models import WHOLE_GENERATION, assert_close, model, z
from parity import peers
from parity.peers import SIZES

pytestmark = pytest.mark.parity

SILENCE = z("peer.silence", 1, 800, 64)
# A length both sides round to the same 305 frames, and codes that fill it.
SONG = SongSpec(
    caption="slow waltz for music box, rain on the window",
    lyrics="[Verse]\nRegen auf dem Dach\n雨が降る\n\n[Chorus]\nstay, stay a while",
    language="de",
    bpm=84,
    key="F# minor",
    time_signature="3",
    duration_s=12.2,
)
N_FRAMES = 305
CODES = tuple(i * 7919 % 64_000 for i in range(N_FRAMES // 5))
TAKES = (0, 0)  # two takes of the one plan


@pytest.fixture(params=SIZES)
def size(request) -> str:
    return request.param


@pytest.fixture
def pipeline(size) -> AceStepPipeline:
    return peers.diffusers_pipeline(size, SILENCE)


def diffusers_latents(pipeline: AceStepPipeline, noise: Tensor, **settings: object) -> Tensor:
    return pipeline(
        prompt=[SONG.caption] * len(TAKES),
        lyrics=[SONG.lyrics] * len(TAKES),
        vocal_language=SONG.language,
        bpm=SONG.bpm,
        keyscale=SONG.key,
        timesignature=SONG.time_signature,
        audio_duration=SONG.duration_s,
        latents=noise,
        output_type="latent",
        **settings,
    ).audios


def our_latents(size: str, encoding: Encoding, noise: Tensor, levels: tuple[float, ...], guidance: float) -> Tensor:
    return generate(model(size), encoding, SILENCE, Job(TAKES, noise, levels, Guidance("apg", guidance)))


def test_turbo_song_equals_diffusers(pipeline, size):
    noise = z("peer.noise", 2, N_FRAMES, 64)
    theirs = diffusers_latents(pipeline, noise, num_inference_steps=8, shift=3.0)
    encoding = encode(peers.Reader(), SONG)
    assert_close(our_latents(size, encoding, noise, schedule(8, 3.0), 1.0), theirs, WHOLE_GENERATION)


def test_turbo_song_after_codes_equals_diffusers(pipeline, size):
    noise = z("peer.noise", 2, N_FRAMES, 64)
    written = "".join(f"<|audio_code_{code}|>" for code in CODES)
    theirs = diffusers_latents(pipeline, noise, num_inference_steps=4, shift=3.0, audio_codes=written)
    encoding = encode(peers.Reader(), SONG, AudioCodes((CODES,)), text2music(n_frames=N_FRAMES))
    assert_close(our_latents(size, encoding, noise, schedule(4, 3.0), 1.0), theirs, WHOLE_GENERATION)


def test_guided_song_equals_diffusers(pipeline, size):
    noise = z("peer.noise", 2, N_FRAMES, 64)
    pipeline.is_turbo = False
    theirs = diffusers_latents(pipeline, noise, num_inference_steps=4, shift=1.0, guidance_scale=7.0)
    encoding = encode(peers.Reader(), SONG, task=text2music(n_frames=N_FRAMES))
    assert_close(our_latents(size, encoding, noise, schedule(4, 1.0), 7.0), theirs, WHOLE_GENERATION)
