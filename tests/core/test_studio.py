"""The pack as a library, on tiny models: no host, progress, cancel, edits that keep what they do not touch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

import comfyui
import tiny_models
from acestep_pack.acestep_core import studio
from acestep_pack.acestep_core.checkpoints.loaded import Parts
from acestep_pack.acestep_core.song.files import read_song
from acestep_pack.acestep_core.studio import Cancelled, Studio
from acestep_pack.acestep_core.types import SongSpec
from pack import PACK_ROOT

SONG = SongSpec("a slow waltz", "[Verse]\nThe lamps go out along the river", duration_s=10)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    folder = tmp_path_factory.mktemp("parts")
    tiny_models.write_dit_comfy(folder / "acestep_v1.5_turbo.safetensors", "turbo")
    tiny_models.write_text_encoder_comfy(folder / "qwen_0.6b_ace15.safetensors")
    tiny_models.write_vae_comfy(folder / "ace_1.5_vae.safetensors")
    return Parts(
        dit=folder / "acestep_v1.5_turbo.safetensors",
        text_encoder=folder / "qwen_0.6b_ace15.safetensors",
        vae=folder / "ace_1.5_vae.safetensors",
        tokenizer=comfyui.comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer",
    )


@pytest.fixture(scope="module")
def band(parts: Parts) -> Studio:
    return studio.load(parts)


@pytest.fixture(scope="module")
def takes(band: Studio) -> studio.Rendition:
    return band.make(SONG, seed=7, n_takes=2, steps=2)


def test_takes_are_as_long_as_the_song_and_differ(takes: studio.Rendition) -> None:
    assert takes.audio.shape == (2, 2, 10 * 48_000)
    assert [take.seed for take in takes.takes] == [7, 8]
    assert not torch.equal(takes.audio[0], takes.audio[1])


def test_a_take_is_the_same_alone(band: Studio, takes: studio.Rendition) -> None:
    assert torch.equal(band.make(SONG, seed=8, steps=2).audio[0], takes.audio[1])


def test_a_repaint_keeps_every_sample_outside_its_region(band: Studio, takes: studio.Rendition) -> None:
    made = band.repaint(takes.only(1), 4.0, 6.0, seed=1, steps=2)
    before, after = (takes.audio[1], made.audio[0])
    fade = 48_000 // 10
    kept = torch.ones(before.shape[1], dtype=torch.bool)
    kept[4 * 48_000 - fade : 6 * 48_000 + fade] = False
    assert torch.equal(before[:, kept], after[:, kept])
    assert not torch.equal(before[:, ~kept], after[:, ~kept])


def test_a_repainted_region_is_as_loud_as_the_rest_was_made(band: Studio, takes: studio.Rendition) -> None:
    """A region made again from the same noise everywhere would be the take itself: at the take's own level."""
    made = band.repaint(takes.only(0), 4.0, 6.0, seed=7, steps=2)
    inside = slice(int(4.5 * 48_000), int(5.5 * 48_000))
    ratio = made.audio[0, :, inside].std() / takes.audio[0, :, inside].std()
    assert 0.5 < ratio < 2
    assert torch.equal(made.gain, takes.gain[:1])


def test_scores_time_every_line(band: Studio, takes: studio.Rendition) -> None:
    scored = band.score(takes)
    assert [score.names[0] for score in scored.scores] == ["lyrics", "lyrics"]
    assert [line.text for line in scored.scores[0].lines if not line.is_tag] == ["The lamps go out along the river"]
    assert torch.equal(scored.only(1).audio[0], takes.audio[1])


def test_files_of_a_take_lie_side_by_side(band: Studio, takes: studio.Rendition, tmp_path: Path) -> None:
    paths = band.save(band.score(takes), tmp_path, "waltz")
    assert [path.name for path in paths] == ["waltz_00001_seed7.flac", "waltz_00002_seed8.flac"]
    assert {path.suffix for path in tmp_path.iterdir()} == {".flac", ".json", ".lrc", ".srt"}


def test_a_song_begins_from_a_recording_of_any_rate(band: Studio) -> None:
    heard = band.source(music(44_100, 3), 44_100)
    assert heard.latents.shape == (1, 75, 64)
    assert heard.waveform is not None
    assert heard.waveform.shape == (1, 2, 3 * 48_000)


def test_progress_tells_each_stage_to_its_end(parts: Parts) -> None:
    steps: list[tuple[str, int, int]] = []
    studio.load(parts, on_progress=lambda *step: steps.append(step)).make(SONG, steps=3, n_takes=2)
    assert [done for stage, done, total in steps if stage == "sample"] == [1, 2, 3, 4, 5, 6]
    assert [stage for stage, done, total in steps if done == total] == ["sample", "decode"]


@pytest.mark.parametrize("stage", ["encode", "sample", "decode"])
def test_cancel_ends_the_stage_it_comes_in_and_the_next_song_is_unharmed(
    parts: Parts, takes: studio.Rendition, stage: str
) -> None:
    current = []
    band = studio.load(parts, on_progress=lambda *step: current.append(step[0]), cancel=lambda: stage in current)
    with pytest.raises(Cancelled):
        band.make(SONG, seed=7, steps=2)
    current[:] = []
    band.cancel = lambda: False
    assert torch.equal(band.make(SONG, seed=7, steps=2).audio[0], takes.audio[0])


def test_a_missing_model_is_named_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="diffusion_models holds no published ACE-Step"):
        studio.load(tmp_path)


def test_a_models_folder_is_searched_by_published_names(tmp_path: Path) -> None:
    for name in (
        "diffusion_models/acestep_v1.5_base.safetensors",
        "text_encoders/qwen_0.6b_ace15.safetensors",
        "text_encoders/qwen_4b_ace15.safetensors",
        "vae/ace_1.5_vae.safetensors",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = Parts.found_in(tmp_path)
    assert found.dit.name == "acestep_v1.5_base.safetensors"
    assert found.text_encoder.name == "qwen_0.6b_ace15.safetensors"
    assert found.planner is not None
    assert found.planner.name == "qwen_4b_ace15.safetensors"


def test_a_song_without_a_planner_cannot_be_planned(band: Studio) -> None:
    with pytest.raises(FileNotFoundError, match="there is no planner among the models"):
        band.plan(SONG)


def test_the_library_imports_no_host() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(PACK_ROOT)!r})\n"
        "from acestep_core import studio\n"
        "assert not {'comfy', 'folder_paths', 'nodes', 'server'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_lines_of_the_readme_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (PACK_ROOT / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    tiny_models.write_comfyui_folders(tmp_path / "ComfyUI" / "models")
    (tmp_path / "ComfyUI" / "comfy").symlink_to(comfyui.comfyui_path() / "comfy")
    monkeypatch.chdir(tmp_path)
    # The same modules as in the other tests, under the name that a program outside ComfyUI gives them.
    exec(program.replace("from acestep_core", "from acestep_pack.acestep_core"), {})
    assert sorted(path.name for path in (tmp_path / "out").glob("*.flac")) == ["song_00001_seed8.flac"]


@pytest.mark.parametrize(
    ("text", "song"),
    [
        (
            '{"caption": "c", "lyrics": ["a", "b"], "bpm": 90, "keyscale": "A minor", "timesignature": 4, '
            '"duration": 30, "vocal_language": "auto"}',
            SongSpec("c", "a\nb", bpm=90, key="A minor", time_signature="4", duration_s=30),
        ),
        ('{"caption": "c", "vocal_language": "en", "bpm": 0, "key": "", "title": "t"}', SongSpec("c", language="en")),
    ],
)
def test_song_files_are_read_under_either_names(tmp_path: Path, text: str, song: SongSpec) -> None:
    (tmp_path / "song.json").write_text(text, encoding="utf-8")
    assert read_song(tmp_path / "song.json") == song


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "song file song.json: it must be an object"),
        ("{", "song file song.json: "),
        ('{"bpm": "fast"}', 'song file song.json: bpm must be a number, got "fast"'),
        ('{"bpm": 9}', "song file song.json: bpm must be 30 to 300, got 9"),
    ],
)
def test_a_song_file_that_is_none_is_named(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "song.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=sentence):
        read_song(tmp_path / "song.json")


def music(sample_rate: int, seconds: int) -> Tensor:
    t = torch.arange(sample_rate * seconds) / sample_rate
    return 0.5 * torch.sin(2 * torch.pi * 220 * t).expand(1, 1, -1)
