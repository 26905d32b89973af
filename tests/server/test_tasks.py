"""Every task in a live ComfyUI: the shipped workflows on real audio files, what they keep, and bad input."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from acestep_pack.acestep_core.constants import SAMPLE_RATE, SAMPLES_PER_FRAME
from api_prompts import Prompt, add, assert_fails, link, node, saved, shipped
from client import Client
from comfyui import Server

pytestmark = pytest.mark.server

SONG_S, SECOND_S, VOICE_S = 20.01, 12.3, 11.0
QUICK = {"steps": 1, "seed": 5}
FADE = round(0.025 * SAMPLE_RATE)
# A folder of recordings made by people, where the tests' own synthesiser is not enough.
REAL_MUSIC = sorted(Path(os.environ["ACESTEP_TEST_MUSIC"]).iterdir()) if "ACESTEP_TEST_MUSIC" in os.environ else []


def quick(workflow: str, **changes: dict) -> Prompt:
    """Return a shipped workflow of one sampling step; changes maps node classes to inputs."""
    sampler = "KSampler" if workflow == "16_native_ksampler" else "AceStepSample"
    changes[sampler] = QUICK | changes.get(sampler, {})
    return shipped(workflow, **changes)


def samples_of(path: Path) -> np.ndarray:
    """Return the samples [S, 2] of a file as whole numbers: those of 24-bit files are exact."""
    samples, sample_rate = soundfile.read(path, always_2d=True, dtype="int32")
    assert sample_rate == SAMPLE_RATE
    return samples


def made(server: Server, client: Client, prompt: Prompt) -> np.ndarray:
    """Return the samples of the only file that a prompt saves."""
    (path,) = saved(server, client.run(prompt))
    return samples_of(path)


def given(server: Server, name: str = "song.flac") -> np.ndarray:
    return samples_of(server.base_dir / "input" / name)


def at(seconds: float) -> int:
    """Return the sample at which the frame of a moment begins."""
    return int(seconds * SAMPLE_RATE) // SAMPLES_PER_FRAME * SAMPLES_PER_FRAME


def whole_frames(seconds: float) -> int:
    """Return the samples of a recording filled up to whole frames."""
    return -(-round(seconds * SAMPLE_RATE) // SAMPLES_PER_FRAME) * SAMPLES_PER_FRAME


# The workflows as shipped.


@pytest.mark.parametrize(
    ("workflow", "n_samples"),
    [
        ("05_cover", [whole_frames(SONG_S)]),
        ("11_lego", [whole_frames(SONG_S)]),
        ("12_extract_stems", 5 * [whole_frames(SONG_S)]),
        ("13_vocal_to_backing_track", [whole_frames(VOICE_S)]),
        ("16_native_ksampler", [whole_frames(SONG_S)]),
        # Both songs in whole codes, four seconds of them at once.
        ("15_codes_dj_mix", [round((20.2 + 12.4 - 4) * SAMPLE_RATE)]),
    ],
)
def test_a_workflow_makes_what_it_says(server: Server, client: Client, workflow: str, n_samples: list[int]) -> None:
    files = saved(server, client.run(quick(workflow)))
    assert [len(samples_of(path)) for path in files] == n_samples
    assert all(samples_of(path).std() > 0 for path in files)


def test_a_song_can_sound_like_a_recording(server: Server, client: Client) -> None:
    prompt = quick("14_reference_timbre", AceStepSong={"duration": 10})
    without = quick("14_reference_timbre", AceStepSong={"duration": 10})
    del without[node(without, "AceStepEncode")]["inputs"]["reference"]
    one, other = made(server, client, prompt), made(server, client, without)
    assert len(one) == len(other) == 10 * SAMPLE_RATE
    assert not np.array_equal(one, other)


def test_stems_are_named_after_their_tracks(server: Server, client: Client) -> None:
    files = saved(server, client.run(quick("12_extract_stems")))
    assert [path.stem.split("_")[-1] for path in files] == ["vocals", "drums", "bass", "guitar", "keyboard"]


# What is kept is the recording itself.


@pytest.mark.parametrize(
    ("workflow", "regions"), [("06_repaint", [(10, 18)]), ("07_repaint_regions", [(3.8, 7.2), (11.8, 16.2)])]
)
def test_a_repaint_leaves_every_sample_outside_its_regions(
    server: Server, client: Client, workflow: str, regions: list[tuple[float, float]]
) -> None:
    source, result = given(server), made(server, client, quick(workflow))
    assert len(result) == len(source)
    outside = np.ones(len(source), dtype=bool)
    for start, stop in regions:
        outside[at(start) - FADE : at(stop) + FADE] = False
        middle = slice(at(start) + SAMPLE_RATE, at(stop) - SAMPLE_RATE)
        assert not np.array_equal(result[middle], source[middle])
    assert np.array_equal(result[outside], source[outside])


def test_repainting_nothing_gives_the_song_back_without_a_run(server: Server, client: Client) -> None:
    prompt = quick("06_repaint")
    nothing = add(prompt, "SolidMask", value=0.0, width=501, height=1)
    prompt[node(prompt, "AceStepRepaint")]["inputs"]["mask"] = [nothing, 0]
    run = client.run(prompt)
    (path,) = saved(server, run)
    assert np.array_equal(samples_of(path), given(server))
    assert run.outputs[node(prompt, "AceStepSample")]["text"] == ["nothing to generate: the source as it is"]


def test_an_extension_keeps_the_song_in_front_of_it(server: Server, client: Client) -> None:
    prompt = quick("08_extend", AceStepExtend={"right": 6, "context": 8})
    source, result = given(server), made(server, client, prompt)
    assert len(result) == at(SONG_S) + 6 * SAMPLE_RATE
    kept = at(SONG_S) - FADE
    assert np.array_equal(result[:kept], source[:kept])
    assert result[at(SONG_S) :].std() > 0


def test_an_extension_to_the_left_keeps_the_song_behind_it(server: Server, client: Client) -> None:
    prompt = quick("08_extend", AceStepExtend={"right": 0, "left": 4, "context": 8})
    source, result = given(server), made(server, client, prompt)
    begin = 4 * SAMPLE_RATE
    assert np.array_equal(result[begin + FADE :], source[FADE : len(result) - begin])


def test_a_song_grows_stage_by_stage_and_keeps_what_it_had(server: Server, client: Client) -> None:
    prompt = quick("10_endless", AceStepExtend={"right": 6, "context": 8})
    source, result = given(server), made(server, client, prompt)
    assert len(result) == at(SONG_S) + 12 * SAMPLE_RATE
    kept = at(SONG_S) - FADE
    assert np.array_equal(result[:kept], source[:kept])


def test_stitched_songs_stay_on_both_sides_of_the_bridge(server: Server, client: Client) -> None:
    first, second, result = given(server), given(server, "second.flac"), made(server, client, quick("09_stitch"))
    begin = at(SONG_S) + 8 * SAMPLE_RATE
    kept = at(SONG_S) - 2 * SAMPLE_RATE - FADE
    assert len(result) == begin + len(second)
    assert np.array_equal(result[:kept], first[:kept])
    later = 2 * SAMPLE_RATE + FADE
    assert np.array_equal(result[begin + later :], second[later:])


# What is not done twice.


def test_another_seed_does_not_encode_the_recording_again(client: Client) -> None:
    first, second = (quick("12_extract_stems", AceStepSample={"seed": seed}) for seed in (61, 62))
    client.run(first)
    after = client.run(second)
    assert after.executed == tuple(node(second, name) for name in ("AceStepSample", "AceStepDecode", "AceStepSave"))
    assert node(second, "AceStepEncodeAudio") in after.cached


# Music made by people.


if REAL_MUSIC:  # without any there is nothing to collect
    EVERY_TASK = (
        "05_cover",
        "06_repaint",
        "08_extend",
        "09_stitch",
        "11_lego",
        "12_extract_stems",
        "13_vocal_to_backing_track",
    )

    @pytest.mark.parametrize("recording", REAL_MUSIC, ids=lambda path: path.stem)
    @pytest.mark.parametrize("workflow", EVERY_TASK)
    def test_a_task_works_on_real_music(server: Server, client: Client, workflow: str, recording: Path) -> None:
        shutil.copy(recording, server.base_dir / "input" / recording.name)
        prompt = quick(workflow, LoadAudio={"audio": recording.name})
        for encode in [each for each in prompt.values() if each["class_type"] == "AceStepEncodeAudio"]:
            loaded = encode["inputs"]["audio"]
            encode["inputs"]["audio"] = [
                add(prompt, "TrimAudioDuration", audio=loaded, start_index=5.0, duration=20.0),
                0,
            ]
        for path in saved(server, client.run(prompt)):
            samples = samples_of(path)
            assert len(samples) >= 20 * SAMPLE_RATE
            assert samples.std() > 0


# Bad input: one clear sentence at the node.


@pytest.fixture(scope="module", autouse=True)
def bad_recordings(server: Server) -> Iterator[None]:
    """Recordings that no task can use, in the input folder."""
    folder = server.base_dir / "input"
    second = np.zeros(SAMPLE_RATE)
    contents = {
        "silent": second[:, None],
        "one sample": np.ones((1, 2)),
        "eight": np.random.default_rng(0).standard_normal((SAMPLE_RATE, 8)) / 10,
        "nan": np.full((SAMPLE_RATE, 2), np.nan),
    }
    paths = [folder / f"{name}.wav" for name in contents]
    for path, samples in zip(paths, contents.values(), strict=True):
        soundfile.write(path, samples, SAMPLE_RATE, subtype="FLOAT")
    yield
    for path in paths:
        path.unlink()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("silent.wav", ("silent",)),
        ("one sample.wav", ("less than one latent frame",)),
        ("eight.wav", ("8 channels", "stereo")),
        ("nan.wav", ("NaN",)),
    ],
)
def test_a_recording_nobody_can_use_is_refused(client: Client, name: str, words: tuple[str, ...]) -> None:
    assert_fails(client, quick("05_cover", LoadAudio={"audio": name}), "AceStepEncodeAudio", *words)
    assert_fails(client, quick("14_reference_timbre", LoadAudio={"audio": name}), "AceStepReference", *words)


@pytest.mark.parametrize(
    ("workflow", "changes", "at", "words"),
    [
        ("06_repaint", {"AceStepRegion": {"start": 19, "end": 25}}, "AceStepRegion", ("past the end", "25 s")),
        ("06_repaint", {"AceStepRegion": {"start": 12, "end": 8}}, "AceStepRegion", ("12 s", "8 s")),
        ("08_extend", {"AceStepExtend": {"right": 0}}, "AceStepExtend", ("nothing to extend",)),
        ("08_extend", {"AceStepExtend": {"right": 600, "left": 300}}, "AceStepExtend", ("600 s",)),
        ("09_stitch", {"AceStepStitch": {"bridge": 0, "overlap": 0}}, "AceStepStitch", ("nothing to stitch",)),
        ("09_stitch", {"AceStepStitch": {"overlap": 30}}, "AceStepStitch", ("overlap of 30 s",)),
        (
            "11_lego",
            {"AceStepLoadModel": {"model": "acestep_v1.5_turbo.safetensors"}},
            "AceStepSample",
            ("lego needs a base model, this is turbo",),
        ),
        (
            "12_extract_stems",
            {"AceStepExtract": dict.fromkeys(("vocals", "drums", "bass", "guitar", "keyboard"), False)},
            "AceStepExtract",
            ("at least one track",),
        ),
    ],
)
def test_a_task_that_cannot_be_done_says_why(
    client: Client, workflow: str, changes: dict, at: str, words: tuple[str, ...]
) -> None:
    assert_fails(client, quick(workflow, **changes), at, *words)


def test_a_mask_of_another_song_is_refused(client: Client) -> None:
    prompt = quick("06_repaint")
    other = add(prompt, "LoadAudio", audio="second.flac")
    latent = add(prompt, "AceStepEncodeAudio", vae=link(prompt, "AceStepLoadVAE"), audio=[other, 0])
    prompt[node(prompt, "AceStepRegion")]["inputs"] |= {"latent": [latent, 0], "start": 2, "end": 6}
    assert_fails(client, prompt, "AceStepRepaint", "the mask has 308 frames, the latent 501", "ACE-Step Region")


@pytest.mark.parametrize(
    ("workflow", "words"),
    [
        ("05_cover", ("the codes last 0.4 s, the cover 20.04 s",)),
        ("12_extract_stems", ("extract takes no audio codes",)),
    ],
)
def test_codes_that_do_not_go_with_a_task_are_refused(client: Client, workflow: str, words: tuple[str, ...]) -> None:
    prompt = quick(workflow)
    codes = add(prompt, "AceStepCodesFromText", text="<|audio_code_1|><|audio_code_2|>")
    prompt[node(prompt, "AceStepEncode")]["inputs"]["codes"] = [codes, 0]
    assert_fails(client, prompt, "AceStepEncode", *words)
