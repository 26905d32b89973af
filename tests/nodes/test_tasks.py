"""The task nodes through ComfyUI's guider, from a source to its latents and sound, on the tiny golden model."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import nodes as core_nodes  # ComfyUI's own, not ours
from acestep_pack.acestep_core.constants import FRAME_RATE, SAMPLES_PER_FRAME
from acestep_pack.acestep_core.pipeline.region import region
from acestep_pack.acestep_core.pipeline.schedule import schedule
from acestep_pack.acestep_core.pipeline.tasks import Task
from acestep_pack.acestep_core.song.prompts import TRACKS
from acestep_pack.acestep_core.types import AudioCodes, SongSpec
from acestep_pack.nodes.decode import AceStepDecode
from acestep_pack.nodes.encode import AceStepEncode
from acestep_pack.nodes.host import generate as generating
from acestep_pack.nodes.host.latents import frame_mask, latent, latent_takes, recorded_latent, recording_of
from acestep_pack.nodes.sample import AceStepSample
from acestep_pack.nodes.tasks import (
    AceStepComplete,
    AceStepCover,
    AceStepExtend,
    AceStepExtract,
    AceStepLego,
    AceStepRepaint,
    AceStepStitch,
)
from golden_models import z
from reader import Reader

CHANNELS, HOP = 64, SAMPLES_PER_FRAME
BLEND = 12  # frames over which a balanced repaint fades into the source
FADE = 1_200  # samples of its crossfade


@pytest.fixture
def turbo(golden_model):
    return golden_model("turbo")


@pytest.fixture
def base(golden_model):
    return golden_model("base")


# What goes in, and how it is run.


class Unread:
    """A text encoder that nobody may ask."""

    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the text encoder was asked for {name}")

    tokenizer = None

    def states(self, text: object) -> object:
        raise AssertionError("the text encoder was asked for states")

    embeddings = states


def song(n_frames: int, n_items: int = 1, n_samples: int | None = None, name: str = "song") -> dict:
    """A LATENT as ACE-Step Encode Audio makes it; with a recording where n_samples tells its length."""
    made = latent(z(name, n_items, n_frames, CHANNELS), ())
    if n_samples is not None:
        generator = torch.Generator().manual_seed(1)
        made = recorded_latent(made["samples"].mT, 0.1 * torch.randn(n_items, 2, n_samples, generator=generator))
    return made


def frames(value: dict) -> Tensor:
    """Return the samples [B, T, 64] of a LATENT."""
    return value["samples"].mT


def mask(n_frames: int, *spans: tuple[int, int]) -> Tensor:
    """A MASK as ACE-Step Region makes it."""
    made = torch.zeros(1, 1, n_frames)
    for first, last in spans:
        made[..., first:last] = 1
    return made


def repaint(source: dict, where: Tensor, mode: str = "balanced", strength: float = 0.5) -> Task:
    return AceStepRepaint.execute(source, where, mode, strength).result[0]


def extend(source: dict, left: float, right: float, context: float = 0.0) -> Task:
    return AceStepExtend.execute(source, left, right, context).result[0]


def stitch(first: dict, second: dict, bridge: float, overlap: float = 0.0, context: float = 0.0) -> Task:
    return AceStepStitch.execute(first, second, bridge, overlap, context).result[0]


def cover(
    source: dict, strength: float = 1.0, noise: float = 0.0, through_codes: bool = True, preset: str = "custom"
) -> Task:
    return AceStepCover.execute(source, strength, noise, through_codes, preset).result[0]


def wanted(*tracks: str) -> dict[str, bool]:
    return {track: track in tracks for track in reversed(TRACKS)}


def extract(source: dict, *tracks: str) -> Task:
    return AceStepExtract.execute(source, **wanted(*tracks)).result[0]


def complete(source: dict, *tracks: str) -> Task:
    return AceStepComplete.execute(source, **wanted(*tracks)).result[0]


def lego(source: dict, track: str = "guitar", *where: object) -> Task:
    return AceStepLego.execute(source, track, *where).result[0]


def planned(n_codes: int, n_plans: int = 1) -> AudioCodes:
    return AudioCodes(tuple(tuple((plan + 1) * 613 * i % 64_000 for i in range(n_codes)) for plan in range(n_plans)))


def encode(task: Task | None, codes: AudioCodes | None = None, reader: object = None) -> tuple[list, dict]:
    """Return CONDITIONING and LATENT of ACE-Step Encode Song."""
    given = SongSpec(caption="a song", duration_s=10)
    return AceStepEncode.execute(reader or Reader(), given, 1.0, codes, task).result


def make(
    model,
    task: Task | None,
    codes: AudioCodes | None = None,
    reader: object = None,
    seed: int = 7,
    takes: int = 1,
    steps: int = 2,
    guidance: float = 1.0,
) -> dict:
    """Return the LATENT of a whole run of ours."""
    positive, empty = encode(task, codes, reader)
    return AceStepSample.execute(model, positive, empty, seed, takes, steps, 0.0, guidance).result[0]


def decode(vae, value: dict, task: Task | None, normalize: bool = True) -> Tensor:
    return AceStepDecode.execute(vae, value, normalize, -1.0, 0.0, 0.0, task).result[0]["waveform"]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    """Fail unless two results are one up to the order of sums, which kernels choose by the batch size."""
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def assert_different(ours: Tensor, theirs: Tensor) -> None:
    assert torch.isfinite(ours).all()
    assert (ours - theirs).abs().max() > 1e-2


def beyond(n_frames: int, margin: int, *spans: tuple[int, int]) -> Tensor:
    """Return which frames lie more than a margin outside of all spans."""
    far = torch.ones(n_frames, dtype=torch.bool)
    for first, last in spans:
        far[max(0, first - margin) : last + margin] = False
    return far


# Nothing, everything, and what lies between.


@pytest.mark.parametrize("mode", ["balanced", "conservative", "aggressive"])
@pytest.mark.parametrize("n_frames", [50, 150])
def test_a_repaint_of_nothing_is_the_source_without_a_run(turbo, monkeypatch, mode: str, n_frames: int) -> None:
    monkeypatch.setattr(generating, "run", Unread())
    source = song(n_frames, n_items=2)
    made = make(turbo, repaint(source, mask(n_frames), mode), takes=2)
    assert torch.equal(frames(made), frames(source)[[0, 0, 1, 1]])


def test_a_lego_in_an_empty_region_is_the_source_without_a_run(base, monkeypatch) -> None:
    monkeypatch.setattr(generating, "run", Unread())
    source = song(150)
    for keep_outside in (True, False):
        assert torch.equal(frames(make(base, lego(source, "drums", mask(150), keep_outside))), frames(source))


@pytest.mark.parametrize("mode", ["balanced", "conservative", "aggressive"])
def test_a_repaint_of_nothing_sounds_as_its_recording_sample_for_sample(turbo, vae, mode: str) -> None:
    source = song(60, n_samples=60 * HOP - 700)
    task = repaint(source, mask(60), mode)
    assert torch.equal(decode(vae, make(turbo, task), task), recording_of(source))


@pytest.mark.parametrize("mode", ["balanced", "conservative", "aggressive"])
def test_a_repaint_of_everything_is_text_to_music_from_the_same_noise(turbo, mode: str) -> None:
    """A deaf reader cannot tell their instructions apart, which are all the difference."""
    everything = repaint(song(250), mask(250, (0, 250)), mode)
    assert torch.equal(
        frames(make(turbo, everything, reader=Reader(deaf=True))), frames(make(turbo, None, reader=Reader(deaf=True)))
    )
    assert_different(frames(make(turbo, everything)), frames(make(turbo, None)))


@pytest.mark.parametrize("n_frames", [40, 100, 127, 150, 201])
@pytest.mark.parametrize("spans", [((10, 20),), ((0, 9),), ((31, 40),), ((3, 6), (7, 9), (30, 34)), ((39, 40),)])
def test_frames_outside_a_region_stay_bit_by_bit(turbo, n_frames: int, spans: tuple[tuple[int, int], ...]) -> None:
    source = song(n_frames)
    made = frames(make(turbo, repaint(source, mask(n_frames, *spans))))
    far, inside = beyond(n_frames, BLEND, *spans), ~beyond(n_frames, 0, *spans)
    assert made.shape == (1, n_frames, CHANNELS)
    assert torch.equal(made[:, far], frames(source)[:, far])
    assert_different(made[:, inside], frames(source)[:, inside])


@pytest.mark.parametrize(("mode", "margin"), [("conservative", 25), ("balanced", BLEND)])
def test_a_mode_says_over_how_many_frames_a_region_fades(turbo, mode: str, margin: int) -> None:
    source = song(150)
    made = frames(make(turbo, repaint(source, mask(150, (60, 90)), mode)))
    changed = (made - frames(source)).abs().amax((0, 2)) > 0
    assert changed.nonzero().flatten().tolist() == list(range(60 - margin, 90 + margin))


def test_an_aggressive_repaint_lets_the_rest_drift(turbo) -> None:
    source = song(150)
    made = frames(make(turbo, repaint(source, mask(150, (60, 90)), "aggressive")))
    assert_different(made[:, :40], frames(source)[:, :40])


def test_a_feathered_region_fades_over_its_feather(turbo) -> None:
    source, feathered = song(150), region(150, 2.4, 3.6, feather_s=1.2)
    made = frames(make(turbo, repaint(source, feathered[None], "balanced", 1.0)))
    far = feathered[0] == 0
    assert torch.equal(made[:, far], frames(source)[:, far])
    assert int(far.sum()) == 150 - 30 - 2 * 30


@pytest.mark.parametrize("shape", [(150,), (1, 150), (1, 1, 150), (1, 7, 150)])
def test_a_mask_of_any_shape_counts_by_its_last_axis(shape: tuple[int, ...]) -> None:
    given = mask(150, (20, 40))[0, 0].expand(shape)
    assert torch.equal(frame_mask(given, 150), mask(150, (20, 40))[:, 0])
    task = repaint(song(150), given)
    assert task.mask is not None
    assert torch.equal(task.mask, mask(150, (20, 40))[:, 0])


# The same in sound.


@pytest.mark.parametrize("tail", [0, 1, 700])
@pytest.mark.parametrize("spans", [((10, 20),), ((0, 9),), ((50, 60),), ((3, 6), (7, 9), (50, 54))])
def test_samples_outside_a_region_are_the_recording_s(
    turbo, vae, tail: int, spans: tuple[tuple[int, int], ...]
) -> None:
    source = song(60, n_samples=60 * HOP - tail)
    task = repaint(source, mask(60, *spans))
    made = make(turbo, task, takes=2)
    audio = decode(vae, made, task)
    assert audio.shape == (2, 2, 60 * HOP - tail)
    far = beyond(60 * HOP, FADE, *((first * HOP, last * HOP) for first, last in spans))[: 60 * HOP - tail]
    assert torch.equal(audio[..., far], recording_of(source).expand(2, -1, -1)[..., far])
    inside = ~beyond(60 * HOP, 0, *((first * HOP, last * HOP) for first, last in spans))[: 60 * HOP - tail]
    whole = vae.audio(made["samples"])[..., : 60 * HOP - tail]
    torch.testing.assert_close(audio[..., inside], whole[..., inside], atol=1e-5, rtol=0)


def test_without_a_recording_a_repaint_is_decoded_and_its_level_is_left(turbo, vae) -> None:
    task = repaint(song(60), mask(60, (10, 20)))
    made = make(turbo, task)
    assert torch.equal(decode(vae, made, task), decode(vae, made, None, normalize=False))
    assert not torch.equal(decode(vae, made, task), decode(vae, made, None))


# Longer, and joined.


@pytest.mark.parametrize(("left", "right"), [(0.0, 2.0), (2.0, 0.0), (1.0, 3.0)])
@pytest.mark.parametrize("tail", [0, 700])
def test_an_extension_keeps_the_song_in_latents_and_sound(turbo, vae, left: float, right: float, tail: int) -> None:
    source = song(60, n_samples=60 * HOP - tail)
    task = extend(source, left, right)
    made = make(turbo, task)
    # Behind its last full frame a song has no music to keep while there is more to come.
    n_kept, n_left = (59 if right and tail else 60), int(left * FRAME_RATE)
    assert made["samples"].shape == (1, CHANNELS, n_left + n_kept + int(right * FRAME_RATE))
    first, last = (BLEND if left else 0), n_kept - (BLEND if right else 0)
    assert torch.equal(frames(made)[:, n_left + first : n_left + last], frames(source)[:, first:last])
    audio = decode(vae, made, task)
    n_samples = n_kept * HOP if right else 60 * HOP - tail
    first, last = (FADE if left else 0), n_samples - (FADE if right else 0)
    start = n_left * HOP
    assert torch.equal(audio[..., start + first : start + last], recording_of(source)[..., first:last])
    assert audio.shape[-1] == start + n_samples + int(right * FRAME_RATE) * HOP


def test_a_stitch_keeps_both_songs_in_latents_and_sound(turbo, vae) -> None:
    one, two = song(70, n_samples=70 * HOP), song(80, n_samples=80 * HOP - 9, name="other")
    task = stitch(one, two, bridge=1.0, overlap=0.4)
    made = make(turbo, task)
    assert torch.equal(frames(made)[:, : 60 - BLEND], frames(one)[:, : 60 - BLEND])
    assert torch.equal(frames(made)[:, 105 + BLEND :], frames(two)[:, 10 + BLEND :])
    audio = decode(vae, made, task)
    assert torch.equal(audio[..., : 60 * HOP - FADE], recording_of(one)[..., : 60 * HOP - FADE])
    assert torch.equal(audio[..., 105 * HOP + FADE :], recording_of(two)[..., 10 * HOP + FADE :])


def test_only_the_context_of_a_long_song_goes_through_the_model(turbo, vae) -> None:
    source = song(16_000, n_samples=16_000 * HOP)
    task = extend(source, 0.0, 4.0, context=4.0)
    _, empty = encode(task)
    assert empty["samples"].shape[-1] == 200
    made = make(turbo, task)
    assert made["samples"].shape[-1] == 16_100
    assert torch.equal(frames(made)[:, : 16_000 - BLEND], frames(source)[:, :-BLEND])
    audio = decode(vae, made, task)
    kept = 16_000 * HOP - FADE
    assert torch.equal(audio[..., :kept], recording_of(source)[..., :kept])


def test_a_canvas_may_be_longer_than_the_ten_minutes_a_model_hears_of_it(turbo) -> None:
    source = song(15_100)
    task = repaint(source, mask(15_100, (15_000, 15_005)))
    _, empty = encode(task)
    assert empty["samples"].shape[-1] == 15_000
    made = make(turbo, task, steps=1)
    far = beyond(15_100, BLEND, (15_000, 15_005))
    assert torch.equal(frames(made)[:, far], frames(source)[:, far])
    assert_different(frames(made)[:, 15_000:15_005], frames(source)[:, 15_000:15_005])


# Covers.


def test_more_strength_follows_the_source_for_longer(turbo) -> None:
    plain = frames(make(turbo, cover(song(150), strength=0.0), steps=4))
    distances = [
        (frames(make(turbo, cover(song(150), strength=s), steps=4)) - plain).norm().item() for s in (0, 0.24, 0.25, 1)
    ]
    assert distances[:2] == [0, 0]
    assert distances[2] > 0
    assert distances[3] > 0


def test_a_cover_without_strength_is_text_to_music(turbo) -> None:
    """Whose prompt tells ten seconds either way."""
    assert_same(frames(make(turbo, cover(song(250), strength=0.0))), frames(make(turbo, None)))


def test_more_noise_strength_keeps_more_of_the_source(turbo) -> None:
    source = song(150)
    steps, distances = [], []
    for noise in (0.0, 0.3, 0.6, 1.0):
        made = make(turbo, cover(source, noise=noise), steps=8)
        steps.append(latent_takes(made)[0].n_steps)
        distances.append((frames(made) - frames(source)).norm().item())
    levels = schedule(8, 3.0)
    nearest = [min(levels[:-1], key=lambda t, n=n: abs(t - (1 - n))) for n in (0.0, 0.3, 0.6, 1.0)]
    assert steps == [8 - levels.index(t) for t in nearest]
    assert distances == sorted(distances, reverse=True)


def test_the_codes_of_a_cover_win_and_its_source_still_seeds_the_noise(turbo) -> None:
    one, two = song(150), song(150, name="other")
    codes = planned(30)
    assert torch.equal(frames(make(turbo, cover(one), codes)), frames(make(turbo, cover(two), codes)))
    seeded = [frames(make(turbo, cover(source, noise=0.5), codes)) for source in (one, two)]
    assert_different(*seeded)


def test_remix_is_the_official_setting_whatever_the_sliders_say(turbo) -> None:
    task = cover(song(150), strength=0.9, noise=0.9, preset="remix")
    assert (task.strength, task.noise_strength) == (0.0, 0.2)


def test_codes_sketch_the_region_of_a_repaint_and_leave_the_rest(turbo) -> None:
    source, where = song(150), mask(150, (60, 90))
    sketched = frames(make(turbo, repaint(source, where), planned(30)))
    far = beyond(150, BLEND, (60, 90))
    assert torch.equal(sketched[:, far], frames(source)[:, far])
    assert_different(sketched[:, 60:90], frames(make(turbo, repaint(source, where)))[:, 60:90])


# Rows of a batch.


def test_tracks_come_as_takes_of_their_own_track_by_track(base) -> None:
    source = song(130, n_items=2)
    made = make(base, extract(source, "vocals", "drums"), takes=2)
    assert [(take.track, take.plan, take.seed) for take in latent_takes(made)] == [
        (track, 2 * group + item, 7 + 4 * group + 2 * item + take)
        for group, track in enumerate(("vocals", "drums"))
        for item in range(2)
        for take in range(2)
    ]
    second = {**source, "samples": source["samples"][1:]}
    alone = make(base, extract(second, "drums"), seed=7 + 4 + 2 + 1)
    assert_same(frames(made)[7], frames(alone)[0])


def test_all_twelve_tracks_of_a_mix_come_in_eight_takes(base) -> None:
    made = make(base, extract(song(128), *TRACKS), takes=8, steps=1)
    assert made["samples"].shape == (96, CHANNELS, 128)
    assert [take.track for take in latent_takes(made)] == [track for track in reversed(TRACKS) for _ in range(8)]
    assert len({take.seed for take in latent_takes(made)}) == 96


def test_each_source_of_a_batch_is_repainted_as_alone(turbo) -> None:
    both = song(150, n_items=2)
    where = torch.cat((mask(150, (10, 30)), mask(150, (100, 130))))
    made = make(turbo, repaint(both, where))
    for item in range(2):
        one = {**both, "samples": both["samples"][item : item + 1]}
        alone = make(turbo, repaint(one, where[item : item + 1]), seed=7 + item)
        assert_same(frames(made)[item], frames(alone)[0])


def test_plans_and_sources_of_a_batch_pair_up(turbo) -> None:
    made = make(turbo, repaint(song(150, n_items=2), mask(150, (10, 30))), planned(30, n_plans=4))
    assert [take.plan for take in latent_takes(made)] == [0, 1, 2, 3]
    far = beyond(150, BLEND, (10, 30))
    assert torch.equal(frames(made)[:, far], frames(song(150, n_items=2))[[0, 1, 0, 1]][:, far])


def test_a_guided_repaint_keeps_the_rest_as_well(base) -> None:
    source = song(150)
    made = frames(make(base, repaint(source, mask(150, (60, 90))), guidance=7.0))
    far = beyond(150, BLEND, (60, 90))
    assert torch.equal(made[:, far], frames(source)[:, far])


def test_a_source_is_left_as_it_was(turbo, vae) -> None:
    source = song(60, n_samples=60 * HOP)
    kept = source["samples"].clone(), recording_of(source).clone()
    task = repaint(source, mask(60, (10, 20)))
    decode(vae, make(turbo, task), task)
    assert torch.equal(source["samples"], kept[0])
    assert torch.equal(recording_of(source), kept[1])


# Under core's sampler.


@pytest.mark.parametrize("n_frames", [100, 150, 1_000])
def test_what_core_samples_of_a_window_is_set_into_the_song_when_it_is_decoded(turbo, vae, n_frames: int) -> None:
    source = song(n_frames, n_samples=n_frames * HOP)
    task = extend(source, 0.0, 1.0, context=4.0)
    positive, empty = encode(task)
    (sampled,) = core_nodes.common_ksampler(
        turbo, 0, 2, 1.0, "euler", "simple", positive, core_nodes.ConditioningZeroOut().zero_out(positive)[0], empty
    )
    assert sampled["samples"].shape[-1] == task.window_frames
    audio = decode(vae, sampled, task)
    assert audio.shape[-1] == (n_frames + 25) * HOP
    kept = n_frames * HOP - FADE
    assert torch.equal(audio[..., :kept], recording_of(source)[..., :kept])


# What the nodes say.


@pytest.mark.parametrize(
    ("output", "text"),
    [
        (lambda: AceStepCover.execute(song(250), 1.0, 0.0, True, "custom"), "cover: 10 s"),
        (lambda: AceStepCover.execute(song(250), 1.0, 0.0, False, "custom"), "cover-nofsq: 10 s"),
        (
            lambda: AceStepRepaint.execute(song(250), mask(250, (25, 50), (100, 150)), "balanced", 0.5),
            "repaint: 1–2 s, 4–6 s of 10 s",
        ),
        (lambda: AceStepRepaint.execute(song(250), mask(250), "balanced", 0.5), "repaint: nothing of 10 s"),
        (lambda: AceStepExtend.execute(song(250), 0.0, 5.0, 2.0), "extend: 10–15 s of 15 s, hearing 7 s"),
        (lambda: AceStepStitch.execute(song(250), song(250), 2.0, 1.0, 0.0), "stitch: 9–13 s of 22 s"),
        (lambda: AceStepLego.execute(song(250), "bass"), "lego bass: 10 s"),
        (lambda: AceStepExtract.execute(song(250), **wanted("vocals", "fx")), "extract vocals, fx: 10 s"),
        (lambda: AceStepComplete.execute(song(250), **wanted()), "complete: 10 s"),
    ],
)
def test_a_task_tells_where_it_generates(output: Callable, text: str) -> None:
    assert output().ui == {"text": (text,)}


# What is refused, in one sentence, before anything is sampled.


@pytest.mark.parametrize("make_task", [lego, lambda s: extract(s, "drums"), complete])
def test_a_task_of_base_models_is_refused_on_turbo(turbo, make_task: Callable[[dict], Task]) -> None:
    with pytest.raises(ValueError, match=r"(lego|extract|complete) needs a base model, this is turbo; load"):
        make(turbo, make_task(song(130)))


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (lambda: repaint(song(150), mask(149)), "the mask has 149 frames, the latent 150; make it with"),
        (lambda: repaint(song(150), torch.zeros(1, 64, 64)), "the mask has 64 frames, the latent 150"),
        (lambda: repaint(song(150), torch.ones(3, 1, 150)), r"the mask covers \[3, 150\] items and frames, the source"),
        (lambda: repaint(song(150), 2 * mask(150, (0, 9))), "the mask must hold numbers from 0"),
        (lambda: repaint(song(150), mask(150) * float("nan")), "the mask must hold numbers from 0"),
        (lambda: lego(song(150), "drums", mask(151)), "the mask has 151 frames, the latent 150"),
        (lambda: cover({"samples": torch.full((1, 64, 9), float("nan"))}), "this latent holds NaN or infinity"),
        (lambda: extend({"samples": torch.full((1, 64, 9), float("inf"))}, 0, 1), "this latent holds NaN or infinity"),
        (
            lambda: cover({"samples": torch.zeros(1, 4, 64, 64)}),
            r"this latent is \(1, 4, 64, 64\), ACE-Step 1\.5 needs",
        ),
        (lambda: cover({"samples": torch.zeros(1, 64, 0)}), "this latent is empty"),
        (lambda: cover(song(150), 1.5), r'"strength" takes 0 to 1, got 1\.5'),
        (lambda: cover(song(150), 1.0, -0.5), r'"noise_strength" takes 0 to 1, got -0\.5'),
        (lambda: repaint(song(150), mask(150), "balanced", 2.0), '"strength" takes 0 to 1, got 2'),
        (lambda: repaint(song(150), mask(150), "gentle"), '"mode" takes one of .*, got the text .gentle.'),
        (lambda: extend(song(150), 0, 0), "there is nothing to extend"),
        (lambda: extend(song(150), 0, -1), '"right" takes 0 to 600, got -1'),
        (lambda: stitch(song(150), song(150), 0), "there is nothing to stitch with"),
        (lambda: stitch(song(150), song(25), 1.0, 1.0), "an overlap of 1 s leaves nothing of a source"),
        (lambda: stitch(song(150, 2), song(150, 3), 1.0), "the sources have 2 and 3 items"),
        (lambda: lego(song(150), "kazoo"), '"track" takes one of .*, got the text .kazoo.'),
        (lambda: extract(song(150)), "choose at least one track to extract"),
        (lambda: cover(song(15_001)), r"cover would generate over 600\.04 s at once, at most 600 s fit"),
        (lambda: encode(extract(song(150), "fx"), planned(30), Unread()), "extract takes no audio codes"),
        (lambda: encode(lego(song(150)), planned(99), Unread()), "lego takes no audio codes"),
        (lambda: encode(complete(song(150)), planned(30), Unread()), "complete takes no audio codes"),
        (lambda: encode(cover(song(150)), planned(99), Unread()), r"the codes last 19\.8 s, the cover 6 s; make them"),
        (
            lambda: encode(repaint(song(150), mask(150)), planned(9), Unread()),
            r"the codes last 1\.8 s, the repaint 6 s",
        ),
        (
            lambda: encode(cover(song(150, 2)), planned(30, n_plans=3), Unread()),
            "3 plans do not go with 2 sources or tracks; use one of either, or as many",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(run: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as refused:
        run()
    assert "\n" not in str(refused.value)


def test_a_latent_of_another_length_than_the_task_is_not_sampled(turbo) -> None:
    positive, _ = encode(cover(song(150)))
    other = latent(torch.zeros(1, 149, CHANNELS), ())
    with pytest.raises(
        ValueError, match='the latent has 149 frames, the cover generates 150; connect the latent of "ACE'
    ):
        AceStepSample.execute(turbo, positive, other, 0, 1, 2, 0.0, 1.0)


def test_a_latent_of_another_task_is_not_decoded_with_it(vae) -> None:
    task = repaint(song(150), mask(150, (10, 30)))
    with pytest.raises(ValueError, match="the latent has 149 frames, the repaint generates 150; connect what was"):
        decode(vae, song(149), task)


def test_a_node_that_has_nothing_to_say_says_so(turbo, vae) -> None:
    """Else the canvas would go on showing what it said in an earlier run."""
    made = make(turbo, repaint(song(60), mask(60, (10, 20))))
    assert AceStepDecode.execute(vae, made, True, -1.0, 0.0, 0.0, None).ui == {"text": ("",)}
    full = SongSpec("drone", "[Verse]\nla")
    assert AceStepEncode.execute(Reader(48), full, 1.0).ui == {"text": ("",)}
    idle = AceStepEncode.execute(Reader(48), full, 0.5)
    assert idle.ui == {"text": ("codes_strength has no effect without codes",)}


@pytest.mark.parametrize(
    ("song", "remarks"),
    [
        (SongSpec("", ""), ["no caption: the model chooses the style", "no lyrics: the model may sing anything"]),
        (SongSpec("drone", " \n"), ["no lyrics: the model may sing anything"]),
        (SongSpec("drone", "[Instrumental]"), []),
        (SongSpec("", "la"), ["no caption: the model chooses the style"]),
    ],
)
def test_words_that_are_missing_are_told_before_anything_is_sung(song: SongSpec, remarks: list[str]) -> None:
    (text,) = AceStepEncode.execute(Reader(48), song, 1.0).ui["text"]
    lines = text.splitlines()
    assert len(lines) == len(remarks)
    assert all(line.startswith(remark) for line, remark in zip(lines, remarks, strict=True))
