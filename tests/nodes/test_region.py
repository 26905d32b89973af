"""The nodes that count in seconds and bars: regions, their picture, core's mask nodes on them, and edited codes."""

from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from comfy_extras.nodes_mask import GrowMask, InvertMask, MaskComposite
from PIL import Image
from torch import Tensor

from acestep_pack.acestep_core.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from acestep_pack.acestep_core.types import AudioCodes, SongSpec
from acestep_pack.nodes.edit_codes import OPERATIONS, AceStepEditCodes
from acestep_pack.nodes.host.latents import frame_mask, latent, recorded_latent
from acestep_pack.nodes.pictures import lanes as picture
from acestep_pack.nodes.region import AceStepRegion

WALTZ = SongSpec(bpm=90, time_signature="3")  # a bar lasts 2 s
N_FRAMES = 250


@pytest.fixture(autouse=True)
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where previews are written."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


def song(n_items: int = 1, n_frames: int = N_FRAMES) -> dict:
    generator = torch.Generator().manual_seed(n_frames)
    return latent(torch.randn(n_items, n_frames, 64, generator=generator), ())


def mark(value: dict, start: float, end: float, unit: str = "seconds", **more) -> Tensor:
    return AceStepRegion.execute(value, start, end, unit, **{"feather": 0.0, "invert": False, **more}).result[0]


def edited(codes: AudioCodes, operation: str, **more) -> tuple[AudioCodes, str]:
    """Return the edited codes and the text on the node."""
    inputs = {"start": 0.0, "end": 0.0, "times": 2, "overlap": 2.0, "unit": "seconds", **more}
    output = AceStepEditCodes.execute(codes, operation, **inputs)
    return output.result[0], output.ui["text"][0]


# The mask.


@pytest.mark.parametrize("n_items", [1, 3])
def test_a_region_is_one_mask_of_the_latents_length_for_all_takes(n_items: int) -> None:
    mask = mark(song(n_items), 2, 4)
    assert mask.shape == (1, 1, N_FRAMES)
    assert mask.sum() == 50
    assert bool((mask[..., 50:100] == 1).all())


def test_bars_are_the_seconds_they_last() -> None:
    assert torch.equal(mark(song(), 1, 2.5, "bars", song=WALTZ), mark(song(), 2, 5))
    assert torch.equal(mark(song(), 1, 0, "bars", song=WALTZ), mark(song(), 2, 0))


def test_feather_is_in_seconds_also_where_the_rest_is_in_bars() -> None:
    assert torch.equal(mark(song(), 1, 2, "bars", song=WALTZ, feather=0.4), mark(song(), 2, 4, feather=0.4))


def test_the_tasks_read_the_mask_as_it_is() -> None:
    mask = mark(song(), 2, 4, feather=0.5)
    assert torch.equal(frame_mask(mask, N_FRAMES), mask[0])


def test_bars_without_a_song_are_refused() -> None:
    with pytest.raises(ValueError, match=r'bars need the tempo of a song: connect one to "song" or use seconds'):
        mark(song(), 1, 2, "bars")


# Core's mask nodes.


def test_core_joins_and_cuts_regions() -> None:
    first, second = mark(song(), 1, 3), mark(song(), 2, 5)
    for operation, expected in (
        ("or", mark(song(), 1, 5)),
        ("and", mark(song(), 2, 3)),
        ("add", mark(song(), 1, 5)),
        ("subtract", mark(song(), 1, 2)),
    ):
        assert torch.equal(MaskComposite.execute(first, second, 0, 0, operation).result[0], expected), operation


@pytest.mark.parametrize("tapered", [True, False])
def test_core_grows_and_shrinks_a_region_by_frames(tapered: bool) -> None:
    mask = mark(song(), 2, 4)
    grown = GrowMask.execute(mask, 25, tapered).result[0]
    assert torch.equal(grown, mark(song(), 1, 5))
    assert torch.equal(GrowMask.execute(grown, -25, tapered).result[0], mask)


def test_core_inverts_as_the_node_does() -> None:
    mask = mark(song(), 2, 4, feather=0.3)
    assert torch.equal(InvertMask.execute(mask).result[0], mark(song(), 2, 4, feather=0.3, invert=True))


# The picture.


def shown(value: dict, start: float = 2.0, end: float = 4.0, **more) -> np.ndarray:
    """Return the picture on the node as [H, W, 3] from 0 to 1."""
    inputs = {"unit": "seconds", "feather": 0.0, "invert": False, **more}
    (file,) = AceStepRegion.execute(value, start, end, **inputs).ui.as_dict()["images"]
    assert file["type"] == "temp"
    return np.asarray(Image.open(Path(folder_paths.get_temp_directory()) / file["filename"])) / 255


def lane(image: np.ndarray) -> np.ndarray:
    top = picture.GAP
    return image[top : top + picture.WAVE_HEIGHT, picture.MARGIN : -picture.MARGIN]


def height_of_wave(image: np.ndarray) -> np.ndarray:
    """Return how many pixels of each column stand out from what is behind the wave."""
    columns = lane(image)
    behind = columns[-1]  # no wave reaches it, and the mask's line leaves the lane where nothing is marked
    return (np.abs(columns - behind).max(-1) > 0.1).sum(0)


def tone(duration_s: float, level: float = 0.5) -> Tensor:
    """Silence, then a tone in the second half; stereo."""
    t = torch.arange(int(duration_s * SAMPLE_RATE)) / SAMPLE_RATE
    return (level * torch.sin(2 * torch.pi * 220 * t) * (t >= duration_s / 2)).expand(1, 2, -1)


def test_the_region_is_lit_where_it_lies() -> None:
    reds = lane(shown(song()))[20].argmax(-1) == 0  # the canvas and kept music are blue
    lit = reds.nonzero()[0] / picture.LANE_WIDTH * 10
    assert lit.min() == pytest.approx(2, abs=0.02)
    assert lit.max() == pytest.approx(4, abs=0.02)


def test_one_frame_of_ten_minutes_can_be_seen() -> None:
    columns = lane(shown(latent(torch.zeros(1, 15_000, 64), ()), 300, 300.04))
    assert (columns[20].argmax(-1) == 0).sum() in range(1, 5)


def test_an_empty_latent_is_a_flat_line() -> None:
    wave = height_of_wave(shown(latent(torch.zeros(1, N_FRAMES, 64), ()), 2, 4))
    assert set(np.delete(wave, np.s_[185:390])) == {2}  # the region itself has the mask's line, too


@pytest.mark.parametrize("kind", ["audio", "recording"])
def test_the_wave_is_the_sound_at_its_own_time(kind: str) -> None:
    value, more = song(), {}
    if kind == "audio":
        more["audio"] = {"waveform": tone(10)[:, :1, ::3], "sample_rate": SAMPLE_RATE // 3}
    else:
        value = recorded_latent(value["samples"].mT, tone(10))
    wave = height_of_wave(shown(value, 0, 0.04, **more))
    half = picture.LANE_WIDTH // 2
    assert wave[10 : half - 1].max() <= 2
    assert wave[half + 1 :].min() > 0.8 * picture.WAVE_HEIGHT


def test_audio_comes_before_the_recording_and_the_recording_before_the_latent() -> None:
    silence = {"waveform": torch.zeros(1, 2, 10 * SAMPLE_RATE), "sample_rate": SAMPLE_RATE}
    recorded = recorded_latent(song()["samples"].mT, tone(10))
    assert height_of_wave(shown(recorded, 0, 0.04, audio=silence))[10:].max() <= 2
    assert height_of_wave(shown(recorded, 0, 0.04))[10:450].max() <= 2
    assert height_of_wave(shown(song(), 0, 0.04))[10:].min() > 2


def test_sound_shorter_than_the_latent_ends_early_and_longer_is_cut() -> None:
    for duration_s, last in ((5, picture.LANE_WIDTH // 2), (30, picture.LANE_WIDTH)):
        buzz = torch.tensor((1.0, -1.0)).repeat(1, 1, duration_s * SAMPLE_RATE // 2)
        audio = {"waveform": buzz, "sample_rate": SAMPLE_RATE}
        wave = height_of_wave(shown(song(), 0, 0.04, audio=audio))
        assert wave[10 : last - 1].min() > 50
        assert (wave[last + 1 :] <= 2).all()


def test_sound_without_a_sample_is_none() -> None:
    audio = {"waveform": torch.ones(1, 2, 0), "sample_rate": SAMPLE_RATE}
    assert np.array_equal(shown(song(), audio=audio), shown(song()))


@pytest.mark.parametrize("n_samples", [1, 7, SAMPLES_PER_FRAME - 1])
def test_sound_of_hardly_a_sample_leaves_the_rest_a_flat_line(n_samples: int) -> None:
    audio = {"waveform": torch.ones(1, 2, n_samples), "sample_rate": SAMPLE_RATE}
    assert height_of_wave(shown(song(), 0, 0.04, audio=audio))[10:].max() <= 2


@pytest.mark.parametrize("n_frames", [1, 7, 128, 961, 15_000])
def test_a_picture_has_one_size_whatever_the_length(n_frames: int) -> None:
    image = shown(song(n_frames=n_frames), 0, 0)
    assert image.shape == (picture.GAP + picture.WAVE_HEIGHT + picture.AXIS_HEIGHT, 1_000, 3)


def test_lanes_stand_below_each_other_over_one_axis() -> None:
    lanes = [np.full((20, picture.LANE_WIDTH, 3), level) for level in (0.25, 0.75)]
    image = picture.draw(lanes, 10)[0]
    first, second = (picture.GAP + 10, 2 * picture.GAP + 30)
    assert image.shape[0] == 2 * (picture.GAP + 20) + picture.AXIS_HEIGHT
    torch.testing.assert_close(image[(first, second), 500, 0], torch.tensor([0.25, 0.75]), atol=0.01, rtol=0)


# Codes.

FIRST, SECOND = AudioCodes((tuple(range(60)),)), AudioCodes((tuple(range(100, 130)),))


@pytest.mark.parametrize(
    ("operation", "more", "n_codes", "text"),
    [
        ("slice", {"start": 2, "end": 4}, 10, "12 s → 2 s, 10 codes"),
        ("slice", {"start": 2}, 50, "12 s → 10 s, 50 codes"),
        ("slice", {"start": 1, "end": 2, "unit": "bars", "song": WALTZ}, 10, "12 s → 2 s, 10 codes"),
        ("join", {"codes_2": SECOND}, 90, "12 s → 18 s, 90 codes"),
        ("repeat", {}, 120, "12 s → 24 s, 120 codes"),
        ("repeat", {"start": 2, "end": 4, "times": 3}, 80, "12 s → 16 s, 80 codes"),
        ("replace", {"start": 2, "end": 4, "codes_2": SECOND}, 60, "12 s → 12 s, 60 codes"),
        ("crossfade", {"codes_2": SECOND}, 80, "12 s → 16 s, 80 codes"),
        ("crossfade", {"overlap": 1.5, "unit": "bars", "song": WALTZ, "codes_2": SECOND}, 75, "12 s → 15 s, 75 codes"),
    ],
)
def test_codes_are_edited_in_seconds_or_bars_and_the_node_says_so(
    operation: str, more: dict, n_codes: int, text: str
) -> None:
    codes, said = edited(FIRST, operation, **more)
    assert (len(codes.sequences[0]), said) == (n_codes, text)


def test_a_line_is_said_for_each_plan() -> None:
    _, said = edited(AudioCodes((tuple(range(10)), tuple(range(5)))), "repeat")
    assert said == "plan 1: 2 s → 4 s, 20 codes\nplan 2: 1 s → 2 s, 10 codes"
    _, said = edited(SECOND, "join", codes_2=AudioCodes(((1,), (2, 3))))
    assert said == "plan 1: 6 s → 6.2 s, 31 codes\nplan 2: 6 s → 6.4 s, 32 codes"


def test_an_end_before_the_first_code_is_not_taken_for_the_end_of_the_codes() -> None:
    with pytest.raises(ValueError, match=r"plan 1: no code lies between 0 s and 0 s; end the span later"):
        edited(FIRST, "slice", end=0.05)


@pytest.mark.parametrize("operation", ["join", "replace", "crossfade"])
def test_second_codes_that_are_missing_are_asked_for(operation: str) -> None:
    with pytest.raises(ValueError, match=r'there are no second codes: connect some to "codes_2"'):
        edited(FIRST, operation)


def test_every_operation_on_offer_is_an_edit() -> None:
    for operation in OPERATIONS:
        codes, _ = edited(FIRST, operation, codes_2=FIRST)
        assert codes.n_plans == 1
