"""Takes as files, by the node itself: what is in them, and what it refuses."""

import json
import os
from pathlib import Path

import av
import folder_paths
import numpy as np
import pytest
import soundfile
import torch
from comfy.cli_args import args
from comfy_extras.nodes_audio import load as load_as_core_does
from torch import Tensor

from acestep_pack.acestep_core.audio import file as write_audio
from acestep_pack.acestep_core.audio.file import FORMATS
from acestep_pack.acestep_core.bundle import KEY
from acestep_pack.acestep_core.codes import files as codes_file
from acestep_pack.acestep_core.scoring.lyrics import TimedLine
from acestep_pack.acestep_core.scoring.score import NamedScore, Score, Scores
from acestep_pack.acestep_core.scoring.subtitles import lrc, srt, word_lrc
from acestep_pack.acestep_core.types import AudioCodes, SongSpec, Take
from acestep_pack.nodes.host.latents import latent
from acestep_pack.nodes.save import AceStepSave

RATE = 48_000
LOSSLESS = {"flac": "PCM_24", "wav 16-bit": "PCM_16", "wav 24-bit": "PCM_24", "wav 32-bit float": "FLOAT"}
LOSSY = [name for name in FORMATS if name not in LOSSLESS]
BITS = {"PCM_16": 16, "PCM_24": 24, "FLOAT": 25}
PROMPT = {"1": {"class_type": "AceStepSave", "inputs": {"filename_prefix": "ä歌\x00"}}}
WORKFLOW = {"nodes": [{"title": 'a "quoted" }{ title'}], "links": []}


@pytest.fixture(autouse=True)
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's output folder for one test."""
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    return tmp_path


class Hidden:
    """What ComfyUI tells a node of the prompt it is in."""

    prompt = PROMPT
    extra_pnginfo = {"workflow": WORKFLOW}  # noqa: RUF012


@pytest.fixture
def in_a_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AceStepSave, "hidden", Hidden())


def music(n_items: int = 1, n_channels: int = 2, seconds: float = 1.5, sample_rate: int = RATE) -> dict:
    """Two tones and some noise, another in each item and channel."""
    t = torch.arange(round(seconds * sample_rate)) / sample_rate
    noise = torch.randn(n_items, n_channels, len(t), generator=torch.Generator().manual_seed(1))
    tones = torch.linspace(220, 660, n_items * n_channels).reshape(n_items, n_channels, 1)
    return {"waveform": 0.5 * torch.sin(2 * torch.pi * tones * t) + 0.02 * noise, "sample_rate": sample_rate}


def save(audio: dict, format: str = "flac", prefix: str = "audio/song", **inputs) -> tuple[list[str], list[str]]:
    """Run the node and return the files it names and the lines it shows."""
    result = AceStepSave.execute(audio, prefix, format, **inputs)
    assert result.result[0] is audio
    files = ["/".join(filter(None, (each["subfolder"], each["filename"]))) for each in result.ui["audio"]]
    assert result.result[1] == files[0]
    (text,) = result.ui["text"]
    return files, text.splitlines()


def takes_of(*takes: Take) -> dict:
    return latent(torch.zeros(len(takes), 128, 64), takes)


def correlation(one: Tensor, two: np.ndarray) -> float:
    return np.corrcoef(one.numpy().ravel(), two.ravel())[0, 1]


# The sound.


@pytest.mark.parametrize("n_channels", [1, 2])
@pytest.mark.parametrize("sample_rate", [44_100, 48_000, 96_000])
@pytest.mark.parametrize("format", LOSSLESS)
def test_a_lossless_file_is_the_sound_to_half_its_last_bit(
    output: Path, format: str, sample_rate: int, n_channels: int
) -> None:
    audio = music(n_channels=n_channels, sample_rate=sample_rate)
    ((file,), _) = save(audio, format)
    samples, rate = soundfile.read(output / file, always_2d=True)
    assert rate == sample_rate
    assert soundfile.info(output / file).subtype == LOSSLESS[format]
    bits = BITS[LOSSLESS[format]]
    np.testing.assert_allclose(samples.T, audio["waveform"][0].double(), atol=2.0**-bits + 1e-9)

    heard, rate = load_as_core_does(str(output / file))
    assert rate == sample_rate
    np.testing.assert_allclose(heard, samples.T, atol=1e-9)


@pytest.mark.parametrize("sample_rate", [44_100, 48_000])
@pytest.mark.parametrize("format", LOSSY)
def test_a_lossy_file_sounds_like_the_sound_and_lasts_as_long(output: Path, format: str, sample_rate: int) -> None:
    audio = music(sample_rate=sample_rate)
    ((file,), _) = save(audio, format)
    samples, rate = soundfile.read(output / file, always_2d=True)
    assert rate == (RATE if "opus" in format else sample_rate)
    assert abs(len(samples) - 1.5 * rate) <= 1
    expected = audio["waveform"][0] if rate == sample_rate else music(sample_rate=RATE)["waveform"][0]
    n_samples = min(len(samples), expected.shape[-1])
    assert correlation(expected[:, :n_samples], samples[:n_samples].T) > 0.99


def test_the_formats_of_one_codec_differ_in_size(output: Path) -> None:
    sizes = {name: (output / save(music(), name)[0][0]).stat().st_size for name in FORMATS}
    assert sizes["wav 16-bit"] < sizes["wav 24-bit"] < sizes["wav 32-bit float"]
    assert sizes["mp3 128k"] < sizes["mp3 V0"] < sizes["mp3 320k"]
    assert sizes["opus 128k"] < sizes["opus 192k"] < sizes["flac"] < sizes["wav 24-bit"]


@pytest.mark.parametrize("sample_rate", [22_050, 44_101, 96_000])
@pytest.mark.parametrize("format", ["mp3 V0", "opus 128k"])
def test_a_rate_that_a_lossy_format_lacks_is_brought_to_one_it_has(output: Path, format: str, sample_rate: int) -> None:
    ((file,), _) = save(music(sample_rate=sample_rate), format)
    info = soundfile.info(output / file)
    assert info.samplerate == (22_050 if (format, sample_rate) == ("mp3 V0", 22_050) else RATE)
    assert info.duration == pytest.approx(1.5, abs=0.002)
    ours = json.loads((output / file).with_suffix(".json").read_text(encoding="utf-8"))[KEY]
    assert ours["audio"]["sample_rate"] == info.samplerate


@pytest.mark.parametrize("format", FORMATS)
def test_a_single_sample_can_be_saved(output: Path, format: str) -> None:
    ((file,), _) = save({"waveform": torch.full((1, 2, 1), 0.5), "sample_rate": RATE}, format)
    assert (output / file).stat().st_size > 0


def test_the_loudest_samples_of_whole_numbers_do_not_wrap(output: Path) -> None:
    audio = {"waveform": torch.tensor([[[1.0, -1.0, 1.5, -1.5] * 100]]), "sample_rate": RATE}
    for format in ("flac", "wav 16-bit", "wav 24-bit"):
        ((file,), lines) = save(audio, format)
        samples, _ = soundfile.read(output / file)
        np.testing.assert_allclose(samples, [1, -1, 1, -1] * 100, atol=1e-4)
        assert lines[1].endswith("the peak was 3.5 dB above full scale and is cut off")


def test_float_keeps_what_is_above_full_scale_and_has_nothing_to_warn_of(output: Path) -> None:
    audio = {"waveform": 3 * music()["waveform"], "sample_rate": RATE}
    ((file,), lines) = save(audio, "wav 32-bit float")
    np.testing.assert_array_equal(soundfile.read(output / file)[0].T, audio["waveform"][0].double())
    assert lines == [file]


def test_the_audio_is_left_as_it_was() -> None:
    audio = music()
    kept = audio["waveform"].clone()
    for format in FORMATS:
        save(audio, format)
    assert torch.equal(audio["waveform"], kept)


def test_half_precision_is_saved_too(output: Path) -> None:
    audio = music()
    ((file,), _) = save({**audio, "waveform": audio["waveform"].bfloat16()})
    assert correlation(audio["waveform"][0], soundfile.read(output / file)[0].T) > 0.999


# What is beside it, and in it.


@pytest.mark.parametrize("format", FORMATS)
def test_prompt_and_workflow_are_in_the_file(output: Path, in_a_prompt: None, format: str) -> None:
    ((file,), _) = save(music(), format)
    with av.open(str(output / file)) as container:
        found = {**container.metadata, **container.streams.audio[0].metadata}
    if format.startswith("wav"):
        assert json.loads(found["comment"]) == {"prompt": PROMPT, "workflow": WORKFLOW}
    else:
        assert [json.loads(found[key]) for key in ("prompt", "workflow")] == [PROMPT, WORKFLOW]
        assert found["prompt"].isascii()


def test_the_json_has_all_that_makes_the_take_again(output: Path, in_a_prompt: None) -> None:
    song = SongSpec("drone", "[Verse]\n歌う", "ja", 97, "Eb major", "6", 12.5)
    takes = Take(42, 0, 8, "drums"), Take(43, 1, 8, "bass")
    codes = AudioCodes(((1, 2), (3, 4)))
    inputs = {"song": song, "codes": codes, "latent": takes_of(*takes), "lrc": "[00:01.00] 歌う"}
    files, lines = save(music(2), "wav 24-bit", **inputs)
    assert files == lines == ["audio/song_00001_seed42_drums.wav", "audio/song_00002_seed43_bass.wav"]
    for i, file in enumerate(files):
        path = output / file
        content = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        ours = content.pop(KEY)
        assert content == WORKFLOW
        assert ours["prompt"] == PROMPT
        assert SongSpec(**ours["song"]) == song
        assert Take(**ours["take"]) == takes[i]
        assert ours["audio"] == {
            "file": path.name,
            "format": "wav 24-bit",
            "sample_rate": RATE,
            "n_channels": 2,
            "duration_s": 1.5,
        }
        beside = [path.with_suffix(suffix) for suffix in (".codes.json", ".lrc")]
        assert ours["sidecars"] == [each.name for each in beside]
        assert codes_file.load(beside[0]).sequences == codes.sequences[i : i + 1]
        assert beside[1].read_text(encoding="utf-8") == inputs["lrc"]
    assert len(os.listdir(output / "audio")) == 8


def sung(start_s: float, **named: float) -> Score:
    lines = (TimedLine("[Verse]", 0.0, start_s, 0.5, is_tag=True), TimedLine("歌う", start_s, start_s + 1, 0.5))
    return Score(tuple(NamedScore(name, value) for name, value in named.items()), lines)


def scores_in(path: Path) -> dict | None:
    return json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))[KEY]["scores"]


def test_each_take_keeps_its_own_scores_and_timed_lyrics(output: Path) -> None:
    score = Scores((sung(0.2, lyrics=0.75, plan=0.5), sung(0.4, lyrics=0.25)), (0, 0), 37)
    files, _ = save(music(2), score=score)
    assert [scores_in(output / file) for file in files] == [{"lyrics": 0.75, "plan": 0.5}, {"lyrics": 0.25}]
    for file, take in zip(files, score.takes, strict=True):
        assert (output / file).with_suffix(".lrc").read_text(encoding="utf-8") == lrc(take.lines)
        assert (output / file).with_suffix(".srt").read_text(encoding="utf-8") == srt(take.lines)
        assert (output / file).with_suffix(".words.lrc").read_text(encoding="utf-8") == word_lrc(take.lines)
    assert lrc(score.takes[0].lines) != lrc(score.takes[1].lines)
    sidecars = json.loads((output / files[1]).with_suffix(".json").read_text(encoding="utf-8"))[KEY]["sidecars"]
    assert sidecars == ["song_00002.lrc", "song_00002.words.lrc", "song_00002.srt"]


def test_given_lyrics_come_before_those_of_a_score(output: Path) -> None:
    ((file,), _) = save(music(), score=Scores((sung(0.2, lyrics=0.75),), (0,), 37), lrc="[00:01.00] mine")
    assert (output / file).with_suffix(".lrc").read_text(encoding="utf-8") == "[00:01.00] mine"
    assert not (output / file).with_suffix(".srt").exists()
    assert scores_in(output / file) == {"lyrics": 0.75}


def test_a_take_without_words_has_no_lyric_files(output: Path) -> None:
    ((file,), _) = save(music(), score=Scores((Score(),), (0,), 37))
    assert sorted(path.suffix for path in (output / file).parent.iterdir()) == [".flac", ".json"]
    assert scores_in(output / file) == {}


def test_scores_of_plans_go_to_the_takes_sung_from_them(output: Path) -> None:
    plans = Scores(tuple(Score((NamedScore("plan", value),)) for value in (0.25, 0.75)), (0, 1))
    files, _ = save(music(3), score=plans, latent=takes_of(Take(1, 1), Take(2, 0), Take(3, 0)))
    assert [scores_in(output / file) for file in files] == [{"plan": value} for value in (0.75, 0.25, 0.25)]
    # Without a latent as many items as plans are those plans, and of other numbers nobody knows.
    files, _ = save(music(2), score=plans)
    assert [scores_in(output / file) for file in files] == [{"plan": value} for value in (0.25, 0.75)]
    with pytest.raises(ValueError, match="nobody knows from which of the 2 plans of this score take 1 was sung"):
        save(music(3), score=plans)


def test_a_user_who_wants_no_metadata_gets_none(
    output: Path, in_a_prompt: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(args, "disable_metadata", True)
    for format in ("flac", "wav 16-bit"):
        ((file,), _) = save(music(), format, song=SongSpec(caption="drone"))
        assert b"class_type" not in (output / file).read_bytes()
        (ours,) = json.loads((output / file).with_suffix(".json").read_text(encoding="utf-8")).values()
        assert ours["prompt"] is None
        assert ours["song"]["caption"] == "drone"


def test_files_are_numbered_on_and_none_is_written_over(output: Path) -> None:
    seen = set()
    for format in ("flac", "mp3 V0", "flac"):
        for inputs in ({}, {"latent": takes_of(Take(1, track="x"), Take(2))}):
            seen.update(save(music(2, seconds=0.1), format, **inputs)[0])
    numbers = sorted(int(file.split("_")[1].split(".")[0]) for file in seen)
    assert numbers == list(range(1, 13))
    assert len(os.listdir(output / "audio")) == 24


def test_a_core_latent_says_nothing_of_seeds(output: Path) -> None:
    plain = {"samples": torch.zeros(2, 64, 128)}
    assert save(music(2), latent=plain)[0] == ["audio/song_00001.flac", "audio/song_00002.flac"]


def test_names_are_made_safe(output: Path) -> None:
    ((file,), _) = save(music(), prefix='mine\\10:30/a "song"?', latent=takes_of(Take(1, track="a/b")))
    assert file == "mine/10_30/a _song___00001_seed1_a_b.flac"
    assert (output / file).is_file()


# What it refuses, before it writes anything.


@pytest.mark.parametrize(
    ("waveform", "sentence"),
    [
        (torch.zeros(1, 8, 100), "the audio has 8 channels; mix it down to stereo first"),
        (torch.zeros(1, 2, 0), r"the audio is \[1, 2, 0\], it must be \[items, channels, samples\] and not empty"),
        (torch.zeros(0, 2, 100), "and not empty"),
        (torch.zeros(2, 100), "it must be"),
        (torch.tensor([[[0.0, float("nan")]]]), "the audio holds NaN or infinity"),
        (torch.tensor([[[0.0, float("-inf")]]]), "the audio holds NaN or infinity"),
    ],
)
def test_audio_that_no_file_can_hold_is_refused(output: Path, waveform: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        save({"waveform": waveform, "sample_rate": RATE})
    assert os.listdir(output) == []


@pytest.mark.parametrize(
    ("format", "sample_rate", "sentence"),
    [
        ("wav 16-bit", 0, "the audio has a sample rate of 0; it must be above 0, usually 44100 or 48000"),
        ("flac", 10_000_000, "flac cannot hold audio of 10000000 samples a second"),
        ("mp3 V0", 10_000_000, "the audio lasts 1e-05 s, too short for mp3; save it as wav"),
        ("opus 128k", 10_000_000, "the audio lasts 1e-05 s, too short for opus; save it as wav"),
    ],
)
def test_a_rate_that_a_format_cannot_be_brought_to_is_refused(
    output: Path, format: str, sample_rate: int, sentence: str
) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        save({"waveform": torch.zeros(1, 2, 100), "sample_rate": sample_rate}, format)
    assert not any(path.is_file() for path in output.rglob("*"))


def test_a_latent_of_other_takes_is_refused(output: Path) -> None:
    with pytest.raises(ValueError, match="the latent has 2 takes, the audio 3 items; connect the latent that was dec"):
        save(music(3), latent=takes_of(Take(1), Take(2)))
    assert os.listdir(output) == []


def test_codes_of_other_plans_are_refused(output: Path) -> None:
    with pytest.raises(ValueError, match="take 1 was sung from plan 5, but there are codes for 2 plans"):
        save(music(), codes=AudioCodes(((1,), (2,))), latent=takes_of(Take(1, plan=4)))
    assert os.listdir(output) == []


def test_a_score_of_other_takes_is_refused(output: Path) -> None:
    with pytest.raises(ValueError, match=r"the score is of 1 take of 1\.48 s, not of 3; connect the one made of them"):
        save(music(3), score=Scores((Score(),), (0,), 37))
    assert os.listdir(output) == []


@pytest.mark.parametrize("prefix", ["../song", "/tmp/song", "a/../../song", "..\\song"])
def test_a_prefix_that_leads_out_is_refused(output: Path, prefix: str) -> None:
    with pytest.raises(ValueError, match="leads out of ComfyUI's output folder"):
        save(music(), prefix=prefix)
    assert os.listdir(output) == []


def test_a_link_that_leads_out_is_refused(output: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (output / "away").symlink_to(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(ValueError, match=r"leads out of ComfyUI's output folder, through a link"):
        save(music(), prefix="away/song")


def test_a_folder_that_cannot_be_made_is_named(output: Path) -> None:
    (output / "file").write_text("in the way")
    with pytest.raises(ValueError, match=f'"file/song": no folder {output / "file"}: '):
        save(music(), prefix="file/song")


@pytest.mark.parametrize("sent", ["x", 5, ["a"], None, {"workflow": "x"}])
def test_what_a_client_sends_beside_a_prompt_may_be_anything(
    output: Path, in_a_prompt: None, monkeypatch: pytest.MonkeyPatch, sent: object
) -> None:
    monkeypatch.setattr(AceStepSave.hidden, "extra_pnginfo", sent)
    save(music())
    assert any(path.suffix == ".json" for path in output.rglob("*"))


def test_a_name_too_long_is_named(output: Path) -> None:
    with pytest.raises(ValueError, match="filename_prefix has a name of 300 bytes, which is too long for a file"):
        save(music(), prefix="n" * 300)
    assert os.listdir(output) == []


def test_every_format_has_a_name_of_its_suffix() -> None:
    assert all(name.startswith(kind.container) for name, kind in write_audio.FORMATS.items())
