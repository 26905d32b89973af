"""Every task from prompt to latents against diffusers' whole pipeline, same weights, noise and source.

Held where the rules agree: strength 1, a region of one piece that lies on tenths of a second, nothing put back
outside it. The differences, each a test at the end or elsewhere in this folder:
- a cover's strength mixes two velocities in every step and keeps the source, ours switches once;
- a repaint puts nothing back outside its region, neither latents nor samples;
- a source shorter than 128 frames stays as short, ours is filled up with silence and cut back;
- lengths in seconds are rounded up to frames, ours down;
- codes replace the source of lego, extract and complete, ours refuse them, and fill all of a repaint, not its region;
- any word is a track;
- a region that begins before the source or ends behind it is cut off, there is no extending or stitching.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from diffusers import AceStepPipeline
from torch import Tensor

from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.encode import encode
from acestep_pack.acestep_core.pipeline.generate import Job, generate
from acestep_pack.acestep_core.pipeline.guidance import Guidance
from acestep_pack.acestep_core.pipeline.preserve import BALANCED, Preserve
from acestep_pack.acestep_core.pipeline.region import region
from acestep_pack.acestep_core.pipeline.run import Branch, Run
from acestep_pack.acestep_core.pipeline.sample import Evaluation, SamplerSettings, sample
from acestep_pack.acestep_core.pipeline.schedule import schedule
from acestep_pack.acestep_core.pipeline.tasks import Source, Task, complete, cover, extract, lego, repaint, text2music
from acestep_pack.acestep_core.types import SongSpec
from golden_models import WHOLE_GENERATION, assert_close, model, z
from parity import peers
from parity.peers import SIZES

pytestmark = pytest.mark.parity

SILENCE = z("peer.silence", 1, 800, 64)
SONG = SongSpec(
    caption="hurdy-gurdy over a slow drum machine",
    lyrics="[Verse]\nÜber die Brücke\n\n[Chorus]\nand over again",
    language="de",
    bpm=96,
    key="D minor",
    time_signature="4",
)
N_FRAMES = 161  # no multiple of five
DURATION_S = N_FRAMES / 25  # 6.44 s
SOURCE = Source(z("peer.recording", 1, N_FRAMES, 64))
NOISE = z("peer.noise", 1, N_FRAMES, 64)
START_S, END_S = 2.0, 4.4
REGION = region(N_FRAMES, START_S, END_S)
INSIDE = slice(50, 110)
N_STEPS = 3

# Our task, and what to call it in diffusers.
TASKS: dict[str, tuple[Task | None, dict[str, object]]] = {
    "text2music": (None, {}),
    "cover": (cover(SOURCE), {"task_type": "cover"}),
    "repaint": (
        repaint(SOURCE, REGION, keep=None),
        {"task_type": "repaint", "repainting_start": START_S, "repainting_end": END_S},
    ),
    "repaint to the end": (
        repaint(SOURCE, region(N_FRAMES, START_S), keep=None),
        {"task_type": "repaint", "repainting_start": START_S, "repainting_end": -1},
    ),
    "extract": (extract(SOURCE, ("backing_vocals",)), {"task_type": "extract", "track_name": "backing_vocals"}),
    "lego": (lego(SOURCE, "guitar"), {"task_type": "lego", "track_name": "guitar"}),
    "lego in a region": (
        lego(SOURCE, "guitar", REGION, keep=None),
        {"task_type": "lego", "track_name": "guitar", "repainting_start": START_S, "repainting_end": END_S},
    ),
    "complete": (complete(SOURCE), {"task_type": "complete"}),
    "complete with tracks": (
        complete(SOURCE, ("drums", "bass")),
        {"task_type": "complete", "complete_track_classes": ["drums", "bass"]},
    ),
}


def pipeline(size: str, source: Tensor = SOURCE.latents) -> AceStepPipeline:
    """Return diffusers' pipeline with a VAE that makes these latents of whatever it hears."""
    made = peers.diffusers_pipeline(size, SILENCE)
    encoded = SimpleNamespace(latent_dist=SimpleNamespace(sample=lambda: source.mT))
    made.vae = SimpleNamespace(dtype=torch.float32, encode=lambda audio: encoded)
    return made


def diffusers_latents(made: AceStepPipeline, noise: Tensor = NOISE, **settings: object) -> Tensor:
    if "task_type" in settings:
        settings = {"src_audio": torch.zeros(2, noise.shape[1] * 1920), **settings}
    return made(
        prompt=[SONG.caption],
        lyrics=[SONG.lyrics],
        vocal_language=SONG.language,
        bpm=SONG.bpm,
        keyscale=SONG.key,
        timesignature=SONG.time_signature,
        audio_duration=noise.shape[1] / 25,
        latents=noise,
        output_type="latent",
        num_inference_steps=N_STEPS,
        **settings,
    ).audios


def our_latents(
    size: str, task: Task | None, shift: float = 3.0, guidance: float = 1.0, preserve: Preserve | None = None
) -> Tensor:
    encoding = encode(peers.Reader(), SONG, task=task or text2music(n_frames=N_FRAMES))
    rows = tuple(range(encoding.n_plans))
    noise = NOISE.expand(len(rows), -1, -1)
    levels = schedule(N_STEPS, shift)
    return generate(
        model(size), encoding, SILENCE, Job(rows, noise, levels, Guidance("apg", guidance), preserve=preserve)
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", TASKS)
def test_task_on_turbo_equals_diffusers(name, size):
    task, called = TASKS[name]
    assert_close(our_latents(size, task), diffusers_latents(pipeline(size), **called), WHOLE_GENERATION)


@pytest.mark.parametrize("name", TASKS)
def test_guided_task_equals_diffusers(name):
    task, called = TASKS[name]
    theirs = pipeline("2b")
    theirs.is_turbo = False
    expected = diffusers_latents(theirs, shift=1.0, guidance_scale=7.0, **called)
    assert_close(our_latents("2b", task, shift=1.0, guidance=7.0), expected, WHOLE_GENERATION)


def test_several_tracks_in_one_batch_equal_diffusers_one_by_one():
    tracks = ("vocals", "drums", "backing_vocals")
    ours = our_latents("2b", extract(SOURCE, tracks))
    for track, latents in zip(tracks, ours, strict=True):
        theirs = diffusers_latents(pipeline("2b"), task_type="extract", track_name=track)
        assert_close(latents[None], theirs, WHOLE_GENERATION)


# Where we differ.


def test_diffusers_cover_strength_mixes_velocities_and_never_lets_go_of_the_source():
    theirs = diffusers_latents(pipeline("2b"), task_type="cover", audio_cover_strength=0.5)
    task, net = cover(SOURCE, 0.5), model("2b")
    encoding, run = encode(peers.Reader(), SONG, task=task), Run(net, SILENCE)
    by_text = Encoding(encoding.text_to_music, encoding.text_to_music, encoding.lyric, task=task)

    def mixed(x: Tensor, at: Evaluation) -> Tensor:
        return sum(0.5 * run.velocity(x, at.t, [Branch(each, (0,))]) for each in (encoding, by_text))

    rebuilt = sample(mixed, NOISE, schedule(N_STEPS, 3.0), SamplerSettings())
    assert_close(rebuilt, theirs, WHOLE_GENERATION)
    assert_far(our_latents("2b", task), theirs)


def test_diffusers_repaint_puts_nothing_back_outside_its_region():
    theirs = diffusers_latents(pipeline("2b"), task_type="repaint", repainting_start=START_S, repainting_end=END_S)
    ours = our_latents("2b", repaint(SOURCE, REGION), preserve=Preserve(SOURCE.latents, REGION, BALANCED))
    far = torch.ones(N_FRAMES, dtype=torch.bool)
    far[INSIDE.start - BALANCED.crossfade_frames : INSIDE.stop + BALANCED.crossfade_frames] = False
    assert torch.equal(ours[:, far], SOURCE.latents[:, far])
    assert_far(theirs[:, far], SOURCE.latents[:, far])


def test_diffusers_generates_as_few_frames_as_a_short_source_has():
    short = Source(SOURCE.latents[:, :50])
    noise = NOISE[:, :50]
    assert diffusers_latents(pipeline("2b", short.latents), noise, task_type="complete").shape == (1, 50, 64)
    assert complete(short).window_frames == 128


def test_diffusers_cuts_a_region_off_at_the_ends_of_the_source():
    """Ours is another task, `extend`: a region behind a source is refused."""
    mask = chunk_mask("repaint", repainting_start=-5.0, repainting_end=99.0)
    assert (mask.shape, mask.min()) == ((1, N_FRAMES, 64), 1)
    with pytest.raises(ValueError, match=r"is past the end of the latent at 6\.44 s"):
        region(N_FRAMES, 2.0, 99.0)


def test_diffusers_puts_codes_in_the_place_of_any_source():
    written = "".join(f"<|audio_code_{code}|>" for code in range(33))
    for task_type in ("extract", "lego", "complete", "repaint"):
        found, _ = pipeline("2b").prepare_src_latents(
            torch.device("cpu"), torch.float32, 1, torch.zeros(2, 9), written, N_FRAMES, task_type
        )
        assert found.shape == (1, 165, 64)
        assert_far(found[:, :N_FRAMES], SOURCE.latents)


@pytest.mark.parametrize(
    "make", [lambda track: extract(SOURCE, (track,)), lambda track: lego(SOURCE, track)], ids=["extract", "lego"]
)
def test_diffusers_takes_any_word_for_a_track(make: Callable[[str], Task]):
    assert AceStepPipeline._get_task_instruction("extract", "kazoo") == "Extract the KAZOO track from the audio:"
    with pytest.raises(ValueError, match='track "kazoo" is unknown'):
        make("kazoo")


def chunk_mask(task_type: str, **where: float) -> Tensor:
    given = SimpleNamespace(latents_per_second=25.0)
    return AceStepPipeline._build_chunk_mask(
        given, task_type, N_FRAMES, 1, "cpu", torch.float32, 64, has_src_audio=True, **where
    )


def assert_far(ours: Tensor, theirs: Tensor) -> None:
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() > 1e-2 * theirs.abs().max()
