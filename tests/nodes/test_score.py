"""The nodes that score takes, pick among them and mark their weak lines, and the picture of what is heard."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import comfy.model_management as mm
import folder_paths
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image

import tiny_models
from acestep_pack.acestep_core.constants import FRAME_RATE
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.tasks import Source, repaint
from acestep_pack.acestep_core.scoring.lyric_score import score_lyrics
from acestep_pack.acestep_core.scoring.lyrics import Lyrics, TimedLine
from acestep_pack.acestep_core.scoring.score import NamedScore, Score, Scores
from acestep_pack.acestep_core.song.tokens import load_tokenizer, lyric_ids
from acestep_pack.acestep_core.types import AudioCodes, SongSpec, Take
from acestep_pack.nodes.host import folders, lyric_scorer, memory
from acestep_pack.nodes.host import model as models
from acestep_pack.nodes.host import planner as planners
from acestep_pack.nodes.host.conditioning import conditioning_of
from acestep_pack.nodes.host.latents import (
    ACESTEP_KEY,
    RECORDINGS_KEY,
    Origins,
    frame_mask,
    latent,
    latent_takes,
    recorded_latent,
)
from acestep_pack.nodes.pictures import lanes as picture
from acestep_pack.nodes.pictures import lyrics as lyrics_picture
from acestep_pack.nodes.region import AceStepRegion
from acestep_pack.nodes.score import AceStepPickBest, AceStepScoreLyrics, AceStepScorePlan, AceStepWeakLines

SONG = SongSpec("slow piano ballad", "[Verse]\nWalking home in rain\nHold the night\n\n[Chorus]\nStay", "en")
N_FRAMES = 131  # odd, so that the last patch is half empty
N_CODES = 27


@pytest.fixture(autouse=True)
def temp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where previews are written."""
    monkeypatch.setattr(folder_paths, "temp_directory", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def xl(folder: Path):
    """A model whose config.json names the heads that follow the lyrics."""
    tiny_models.write_dit_official(folder / "xl", "xl-turbo")
    with torch.inference_mode():
        return models.load_model(folder / "xl", "auto", "fp32")


@pytest.fixture(scope="module")
def planner(folder: Path):
    tiny_models.write_planner_official(folder / "planner")
    with torch.inference_mode():
        return planners.load_planner(folder / "planner")


@pytest.fixture(scope="module")
def conditioned() -> Callable[..., list]:
    """Return a maker of CONDITIONING of a song, its states random: conditioned(codes=…, task=…)."""
    tokenizer = load_tokenizer(folders.TOKENIZER_FOLDER)

    def make(song: SongSpec = SONG, **given: object) -> list:
        ids = lyric_ids(tokenizer, song)
        width, generator = tiny_models.TEXT_SHAPE.width, torch.Generator().manual_seed(3)
        lyric = torch.randn(1, ids.tokens.ids.shape[1], width, generator=generator)
        text = whole(torch.randn(1, 9, width, generator=generator))
        encoding = Encoding(text, text, whole(lyric), ids, **given)
        return conditioning_of(encoding, Origins())

    return make


def whole(states: torch.Tensor) -> Tokens:
    return Tokens(states, torch.ones(states.shape[:2], dtype=torch.bool))


def songs(n_takes: int = 1, n_frames: int = N_FRAMES, n_steps: int = 8, plans: tuple[int, ...] = ()) -> dict:
    """Return takes of seeds from 7 on; a take is the same whatever stands beside it."""
    plans = plans or (0,) * n_takes
    takes = tuple(Take(7 + i, plan, n_steps) for i, plan in enumerate(plans))
    music = [torch.randn(n_frames, 64, generator=torch.Generator().manual_seed(i)) for i in range(n_takes)]
    return latent(torch.stack(music), takes)


def part(value: dict, items: slice) -> dict:
    return latent(value["samples"][items].transpose(1, 2), latent_takes(value)[items])


def codes(n_plans: int = 1) -> AudioCodes:
    return AudioCodes(tuple(tuple((plan * 7919 + 613 * i) % 64_000 for i in range(N_CODES)) for plan in range(n_plans)))


def heard(model, conditioning: list, value: dict, score: Scores | None = None) -> Scores:
    return AceStepScoreLyrics.execute(model, conditioning, value, score).result[0]


def text_of(output) -> list[str]:
    (text,) = output.ui["text"]
    return text.splitlines()


def numbers(score: Score) -> list[float]:
    """Return everything a score tells as numbers."""
    times = [number for line in score.lines for number in (line.start_s, line.end_s, line.confidence)]
    return [named.value for named in score.named] + times


# Scores of takes.


def test_a_take_has_scores_lines_with_times_and_the_lrc_of_them(xl, conditioned) -> None:
    output = AceStepScoreLyrics.execute(xl, conditioned(), songs(2))
    scores, lrc = output.result
    assert (len(scores.takes), scores.plans, scores.n_frames) == (2, (0, 0), N_FRAMES)
    for take in scores.takes:
        assert take.names == ("lyrics", "lyrics_coverage", "lyrics_monotonicity", "lyrics_confidence")
        assert all(0 <= score.value <= 1 for score in take.named)
        assert [line.text for line in take.lines] == SONG.lyrics.replace("\n\n", "\n").split("\n")
        assert all(0 <= line.start_s < line.end_s <= N_FRAMES / FRAME_RATE + 1e-9 for line in take.lines)
    assert [line.split("]", 1)[1] for line in lrc.split("\n")] == [line.text for line in scores.takes[0].lines]
    for i, line in enumerate(text_of(output)):
        assert re.fullmatch(rf"take {i + 1} \(seed {7 + i}\): \d\.\d\d, weakest line '[^\[].*' \d\.\d\d", line)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_score_does_not_depend_on_batch_mates_or_chunks(xl, conditioned, monkeypatch, size: int) -> None:
    conditioning, takes = conditioned(codes=codes(2)), songs(5, plans=(0, 0, 1, 1, 1))
    together = heard(xl, conditioning, takes)
    monkeypatch.setattr(lyric_scorer, "MOST_AT_ONCE", size)
    in_chunks = heard(xl, conditioning, takes)
    alone = [heard(xl, conditioning, part(takes, slice(i, i + 1))).takes[0] for i in range(5)]
    for one, other, third in zip(together.takes, in_chunks.takes, alone, strict=True):
        assert numbers(one) == pytest.approx(numbers(other), abs=1e-4)
        assert numbers(one) == pytest.approx(numbers(third), abs=1e-4)
    assert len({tuple(numbers(take)) for take in together.takes}) == 5


def test_takes_that_do_not_fit_memory_together_are_heard_in_turns(xl, conditioned, monkeypatch) -> None:
    shapes = []
    attend = lyric_scorer.lyric_attention
    monkeypatch.setattr(
        lyric_scorer, "lyric_attention", lambda *given: shapes.append(given[3].shape[0]) or attend(*given)
    )
    asked = []
    load = memory.load_for
    monkeypatch.setattr(memory, "load_for", lambda patcher, n_bytes: asked.append(n_bytes) or load(patcher, n_bytes))
    heard(xl, conditioned(), songs(5))
    monkeypatch.setattr(memory, "room_beside", lambda patcher: asked[0] / 5 * 2.5)
    heard(xl, conditioned(), songs(5))
    monkeypatch.setattr(memory, "room_beside", lambda patcher: 0)
    heard(xl, conditioned(), songs(2))
    assert shapes == [5, 2, 2, 1, 1, 1]
    assert asked[1:] == pytest.approx([asked[0] / 5 * 2, asked[0] / 5])


def test_a_user_who_cancels_is_not_kept_waiting(xl, conditioned) -> None:
    mm.interrupt_current_processing()
    with pytest.raises(mm.InterruptProcessingException):
        heard(xl, conditioned(), songs(2))
    assert len(heard(xl, conditioned(), songs(2)).takes) == 2


def test_takes_of_different_steps_are_each_noised_as_they_were_made(xl, conditioned) -> None:
    few, many = songs(2, n_steps=4), songs(2, n_steps=50)
    mixed = latent(few["samples"].transpose(1, 2), (latent_takes(few)[0], latent_takes(many)[1]))
    scores = heard(xl, conditioned(), mixed).takes
    assert numbers(scores[0]) == pytest.approx(numbers(heard(xl, conditioned(), few).takes[0]), abs=1e-4)
    assert numbers(scores[1]) == pytest.approx(numbers(heard(xl, conditioned(), many).takes[1]), abs=1e-4)
    assert numbers(heard(xl, conditioned(), few).takes[1]) != numbers(scores[1])


def test_a_take_that_nobody_knows_the_steps_of_has_those_of_the_models_preset(xl, conditioned) -> None:
    known = heard(xl, conditioned(), songs(n_steps=8))
    assert heard(xl, conditioned(), songs(n_steps=0)) == known
    recording = {"samples": songs()["samples"]}
    assert heard(xl, conditioned(), recording) == known


def test_what_codes_foretell_is_scored_once_a_plan(xl, conditioned, monkeypatch) -> None:
    levels = []
    attend = lyric_scorer.lyric_attention
    monkeypatch.setattr(
        lyric_scorer, "lyric_attention", lambda *given: levels.append((given[5], given[3].shape[0])) or attend(*given)
    )
    first, second, third = heard(xl, conditioned(codes=codes(2)), songs(3, plans=(0, 0, 1))).takes
    assert levels == [(1.0, 2), (0.125, 3)]
    assert first.value("lyrics_planned") == second.value("lyrics_planned") != third.value("lyrics_planned")
    assert heard(xl, conditioned(), songs()).takes[0].value("lyrics_planned") is None


def test_an_item_that_nobody_knows_is_scored_where_there_is_a_single_plan(xl, conditioned) -> None:
    foreign = {"samples": songs(2)["samples"]}
    assert heard(xl, conditioned(codes=codes(1)), foreign).plans == (0, 0)
    with pytest.raises(ValueError, match="nobody knows which of 2 plans item 1 of this latent belongs to: a node in"):
        heard(xl, conditioned(codes=codes(2)), foreign)


def test_nothing_that_goes_in_is_changed(xl, conditioned) -> None:
    conditioning, takes = conditioned(), songs()
    kept = takes["samples"].clone()
    heard(xl, conditioning, takes)
    assert torch.equal(takes["samples"], kept)
    assert set(takes) == {"samples", "type", ACESTEP_KEY}


def test_a_score_is_extended(xl, conditioned) -> None:
    takes = songs(3, plans=(0, 0, 1))
    plans = Scores(tuple(Score((NamedScore("plan", value),)) for value in (0.6, 0.7)), (0, 1))
    conditioning = conditioned(codes=codes(2))
    assert heard(xl, conditioning, takes, plans) == plans.extended(heard(xl, conditioning, takes))


def test_third_party_heads_are_told_of(xl, conditioned, monkeypatch) -> None:
    known = lyric_scorer.lyric_heads
    monkeypatch.setattr(lyric_scorer, "lyric_heads", lambda *given: replace(known(*given), third_party=True))
    assert text_of(AceStepScoreLyrics.execute(xl, conditioned(), songs()))[-1] == lyric_scorer.THIRD_PARTY


# Windows of tasks.


def painted(n_frames: int, start: int, stop: int, window: tuple[int, int] | None = None):
    """Return a repaint of a part of a song, and the song."""
    music = torch.randn(1, n_frames, 64, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(1, n_frames)
    mask[:, start:stop] = 1
    task = repaint(Source(music), mask)
    return replace(task, window=window) if window else task


def test_a_take_is_heard_in_its_tasks_window_and_timed_on_the_whole(xl, conditioned) -> None:
    start, stop = 60, 60 + N_FRAMES
    task = painted(300, 100, 150, (start, stop))
    takes = songs(2, n_frames=300, plans=(0, 0))
    windows = takes["samples"].transpose(1, 2)[:, start:stop]
    inside = painted(N_FRAMES, 40, 90)
    same_source = replace(inside, sources=(Source(task.sources[0].latents[:, start:stop]),))
    alone = heard(xl, conditioned(task=same_source), latent(windows, latent_takes(takes)))
    scores = heard(xl, conditioned(task=task), takes)
    assert (scores.n_frames, alone.n_frames) == (300, N_FRAMES)
    for one, other in zip(scores.takes, alone.takes, strict=True):
        assert numbers(one) == pytest.approx(numbers(other.later(start / FRAME_RATE)), abs=1e-4)


def test_a_window_behind_the_end_goes_on_in_silence(xl, conditioned) -> None:
    task = painted(100, 20, 60)
    assert task.window_frames > 100
    scores = heard(xl, conditioned(task=task), songs(n_frames=100))
    assert scores.n_frames == 100
    lines = scores.takes[0].lines
    assert lines[-1].end_s > 100 / FRAME_RATE
    assert AceStepWeakLines.execute(scores, 1.0, 0, 0.25).result[0].shape == (1, 1, 100)


def test_what_a_foreign_sampler_made_of_a_window_is_put_into_the_whole(xl, conditioned) -> None:
    task = painted(300, 100, 150, (60, 60 + N_FRAMES))
    takes = songs()
    full = task.assemble(takes["samples"].transpose(1, 2), torch.zeros(1, dtype=torch.long))
    assert heard(xl, conditioned(task=task), takes) == heard(
        xl, conditioned(task=task), latent(full, latent_takes(takes))
    )


# Nothing to align.


@pytest.mark.parametrize("lyrics", ["", "[Instrumental]", "[Intro]\n\n[Solo]"])
def test_a_song_without_words_is_no_error(conditioned, folder: Path, lyrics: str) -> None:
    tiny_models.write_dit_official(folder / "unknown", "turbo")
    unknown = models.load_model(folder / "unknown", "auto", "fp32")  # no heads are known for its size
    output = AceStepScoreLyrics.execute(unknown, conditioned(SongSpec("drone", lyrics)), songs(2))
    scores, lrc = output.result
    assert scores == Scores((Score(), Score()), (0, 0), N_FRAMES)
    assert lrc == ""
    assert output.ui == {"text": ("nothing to align",)}
    assert not AceStepWeakLines.execute(scores, 1.0, 0, 0.25).result[0].any()


# What is refused.


def refused(*given) -> str:
    with pytest.raises(ValueError, match=r".+") as error:
        AceStepScoreLyrics.execute(*given)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_foreign_model_is_refused(conditioned) -> None:
    other = ModelPatcher(torch.nn.Identity(), torch.device("cpu"), torch.device("cpu"))
    assert "from another loader; load it with" in refused(other, conditioned(), songs())


def test_conditioning_of_core_is_refused(xl) -> None:
    core = [[torch.zeros(1, 5, 32), {"conditioning_lyrics": torch.zeros(1, 4, 32)}]]
    assert refused(xl, core, songs()) == (
        'this conditioning does not tell its lyrics; make it with "ACE-Step Encode Song"'
    )


def test_a_size_whose_heads_nobody_knows_is_refused(conditioned, folder: Path) -> None:
    tiny_models.write_dit_official(folder / "small", "turbo")
    small = models.load_model(folder / "small", "auto", "fp32")
    assert "this model has 8 layers of 16" in refused(small, conditioned(), songs())


def test_a_latent_that_holds_nan_is_refused(xl, conditioned) -> None:
    broken = songs(2)
    broken["samples"][1, 3, 5] = float("nan")
    assert "this latent holds NaN or infinity" in refused(xl, conditioned(), broken)


def test_a_latent_of_another_task_is_refused(xl, conditioned) -> None:
    task = painted(300, 100, 150, (60, 60 + N_FRAMES))
    assert "the latent has 200 frames, the repaint generates 131" in refused(
        xl, conditioned(task=task), songs(n_frames=200)
    )


def test_a_score_of_other_takes_is_not_extended(xl, conditioned) -> None:
    other = heard(xl, conditioned(), songs(2))
    assert "are not of the same takes; extend a score of the same latent" in refused(xl, conditioned(), songs(), other)


# Plans.


def test_plans_are_scored_and_their_parts_told(planner) -> None:
    song = replace(SONG, bpm=90, key="A minor", duration_s=10.0)
    output = AceStepScorePlan.execute(planner, song, codes(2))
    (scores,) = output.result
    assert (scores.plans, scores.is_of_plans) == ((0, 1), True)
    for i, line in enumerate(text_of(output)):
        told = ", ".join(rf"{name} \d\.\d\d" for name in ("caption", "lyrics", "bpm", "duration", "key", "language"))
        assert re.fullmatch(rf"plan {i + 1}: \d\.\d\d \({told}\)", line)
        assert line.startswith(f"plan {i + 1}: {scores.takes[i].value('plan'):.2f}")


def test_the_score_of_a_plan_goes_to_the_takes_sung_from_it(planner) -> None:
    takes = lyric_scores(0.1, 0.2, 0.3, plans=(0, 0, 1))
    (alone,) = AceStepScorePlan.execute(planner, SONG, codes(2)).result
    (both,) = AceStepScorePlan.execute(planner, SONG, codes(2), takes).result
    assert both == takes.extended(alone)


def test_no_codes_are_refused(planner) -> None:
    with pytest.raises(ValueError, match="there are no codes to score; plan the song first"):
        AceStepScorePlan.execute(planner, SONG, AudioCodes())


# Picking.


def lyric_scores(*values: float, plans: tuple[int, ...] = (), n_frames: int = N_FRAMES, **more: float) -> Scores:
    named = tuple(NamedScore(name, value) for name, value in more.items())
    takes = tuple(Score((NamedScore("lyrics", value), *named)) for value in values)
    return Scores(takes, plans or (0,) * len(values), n_frames)


def pick(value: dict, score: Scores, count: int = 1, weights: tuple[float, ...] = (1.0, 0.0, 0.0), **more):
    return AceStepPickBest.execute(value, score, count, *weights, **more)


def test_the_best_come_out_best_first_with_their_seeds_and_scores() -> None:
    takes, scores = songs(4, plans=(0, 0, 1, 1)), lyric_scores(0.2, 0.8, 0.5, 0.9, plans=(0, 0, 1, 1))
    output = pick(takes, scores, 2)
    picked, kept, kept_codes = output.result
    assert torch.equal(picked["samples"], takes["samples"][[3, 1]])
    assert latent_takes(picked) == (latent_takes(takes)[3], latent_takes(takes)[1])
    assert kept == scores.picked((3, 1))
    assert kept_codes == AudioCodes()
    assert text_of(output) == ["take 4 of 4 (seed 10): 0.90", "take 2 of 4 (seed 8): 0.80"]


def test_with_codes_every_pick_has_a_plan_of_its_own() -> None:
    takes, scores = songs(3, plans=(0, 1, 1)), lyric_scores(0.2, 0.8, 0.9, plans=(0, 1, 1))
    picked, kept, kept_codes = pick(takes, scores, 3, codes=codes(2)).result
    first, second = codes(2).sequences
    assert kept_codes.sequences == (second, second, first)
    assert [(take.seed, take.plan) for take in latent_takes(picked)] == [(9, 0), (8, 1), (7, 2)]
    assert kept.plans == (0, 1, 2)
    # And what was picked can be picked from again.
    again, _, same = pick(picked, kept, 1, codes=kept_codes).result
    assert torch.equal(again["samples"], takes["samples"][2:])
    assert same.sequences == (second,)


def test_all_candidates_are_compared_together() -> None:
    first, second, third = songs(2), songs(1), songs(3)
    more = {
        "latent_2": second,
        "score_2": lyric_scores(0.95),
        "latent_4": third,
        "score_4": lyric_scores(0.1, 0.99, 0.2),
    }
    output = pick(first, lyric_scores(0.3, 0.97), 3, **more)
    picked = output.result[0]
    expected = [third["samples"][1], first["samples"][1], second["samples"][0]]
    assert torch.equal(picked["samples"], torch.stack(expected))
    assert [line.split(":")[0] for line in text_of(output)] == [
        "take 5 of 6 (seed 8)",
        "take 2 of 6 (seed 8)",
        "take 3 of 6 (seed 7)",
    ]


def test_weights_mix_the_scores() -> None:
    scores = Scores(
        tuple(
            Score((NamedScore("lyrics", a), NamedScore("plan", b), NamedScore("lyrics_planned", c)))
            for a, b, c in ((0.9, 0.1, 0.1), (0.1, 0.9, 0.1), (0.1, 0.1, 0.9))
        ),
        (0, 0, 0),
        N_FRAMES,
    )
    for best in range(3):
        weights = tuple(float(name == best) for name in range(3))
        assert torch.equal(
            pick(songs(3), scores, 1, weights).result[0]["samples"], songs(3)["samples"][best : best + 1]
        )
    assert text_of(pick(songs(3), scores, 1, (3.0, 1.0, 0.0))) == ["take 1 of 3 (seed 7): 0.70"]


def test_takes_can_be_picked_by_the_scores_of_their_plans_alone() -> None:
    plans = Scores(tuple(Score((NamedScore("plan", value),)) for value in (0.6, 0.7)), (0, 1))
    takes = songs(3, plans=(0, 1, 1))
    picked, kept, _ = pick(takes, plans, 2, (0.0, 1.0, 0.0)).result
    assert torch.equal(picked["samples"], takes["samples"][1:])
    assert (kept.plans, kept.n_frames) == ((1, 1), N_FRAMES)


def test_a_recording_is_not_carried_along_and_a_foreign_latent_has_no_seeds() -> None:
    recorded = recorded_latent(torch.randn(2, N_FRAMES, 64), torch.zeros(2, 2, N_FRAMES * 1_920))
    output = pick(recorded, lyric_scores(0.1, 0.2))
    assert RECORDINGS_KEY not in output.result[0]
    assert text_of(output) == ["take 2 of 2: 0.20"]


def test_takes_without_a_score_that_counts_stay_in_their_order_and_the_node_says_so() -> None:
    instrumental = Scores((Score(), Score()), (0, 0), N_FRAMES)
    output = pick(songs(2), instrumental)
    assert torch.equal(output.result[0]["samples"], songs(2)["samples"][:1])
    assert text_of(output)[1].startswith("no take has a score with a weight here, so the first takes are kept")


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"count": 3}, "3 takes cannot be picked of 2; pick 1 to 2"),
        ({"latent_2": songs()}, '"latent_2" is connected without its other half: connect "score_2" as well'),
        ({"score_3": lyric_scores(0.1)}, '"score_3" is connected without its other half: connect "latent_3" as well'),
        (
            {"latent_2": songs(n_frames=200), "score_2": lyric_scores(0.1, n_frames=200)},
            r"takes of 5\.24 s and 8 s do not go into one batch; pick among takes of one length",
        ),
        (
            {"latent_2": songs(2), "score_2": lyric_scores(0.1)},
            r'the score of "latent_2" is of 1 take of 5\.24 s, the latent has 2 takes of 5\.24 s; connect the one made',
        ),
        (
            {"latent_2": songs(), "score_2": lyric_scores(0.1, n_frames=200)},
            r'the score of "latent_2" is of 1 take of 8 s, the latent has 1 take of 5\.24 s; connect the one made',
        ),
        (
            {"latent_2": songs(), "score_2": lyric_scores(0.1, plan=0.9), "weights": (1.0, 1.0, 0.0)},
            'take 3 has a score "plan", take 1 has none; score all alike, or give it weight 0',
        ),
    ],
)
def test_what_cannot_be_picked_from_is_refused(given: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        pick(songs(2), lyric_scores(0.1, 0.2), **given)


def test_takes_of_plans_without_codes_are_refused() -> None:
    with pytest.raises(ValueError, match="take 1 was sung from plan 5, but there are codes for 2 plans"):
        pick(songs(plans=(4,)), lyric_scores(0.1, plans=(4,)), codes=codes(2))


# Weak lines.

TIMED = Scores(
    (
        Score((), (TimedLine("[Verse]", 0, 1, 0.1, is_tag=True), TimedLine("Hold the night", 1, 3, 0.31))),
        Score((), (TimedLine("Stay", 2, 3, 0.9), TimedLine("Go", 4, 5, 0.2))),
    ),
    (0, 0),
    N_FRAMES,
)


def test_weak_lines_are_masked_take_by_take_and_named() -> None:
    output = AceStepWeakLines.execute(TIMED, 0.5, 0, 0.0)
    mask, words = output.result
    assert mask.shape == (2, 1, N_FRAMES)
    expected = [
        AceStepRegion.execute(songs(), start, end, "seconds", 0.0, False).result[0] for start, end in ((1, 3), (4, 5))
    ]
    assert torch.equal(mask, torch.cat(expected))
    assert words == "Hold the night\nGo"
    assert text_of(output) == ["take 1: 'Hold the night' 0.31", "take 2: 'Go' 0.20"]


def test_no_weak_line_is_an_empty_mask_that_a_repaint_takes() -> None:
    output = AceStepWeakLines.execute(TIMED, 0.1, 0, 0.25)
    mask, words = output.result
    assert (bool(mask.any()), words) == (False, "")
    assert text_of(output) == ["take 1: no line is weak", "take 2: no line is weak"]
    task = repaint(Source(songs(2)["samples"].transpose(1, 2)), frame_mask(mask, N_FRAMES))
    assert task.keeps_all


def test_a_score_of_plans_knows_no_lines() -> None:
    plans = Scores((Score((NamedScore("plan", 0.5),)),), (0,))
    with pytest.raises(ValueError, match='this score is of plans and knows no lines; connect one from "ACE-Step Score'):
        AceStepWeakLines.execute(plans, 0.5, 0, 0.25)


# The picture.

PIECES = ("[", "Verse", "]\n", "Hold", " the", " night", "\n", "Stay", "\n")
LOUD, FAINT = 1.0, 0.3


def planted(pieces: tuple[str, ...] = PIECES, start_s: float = 0.0, duration_s: float = 12.0) -> lyric_scorer.SungTake:
    """Return 12 s of which every token has as much, the second half faint."""
    lyrics = Lyrics(pieces)
    n_frames = 150
    tokens = torch.arange(n_frames) * len(pieces) // n_frames
    attention = torch.zeros(1, len(pieces), n_frames)
    attention[0, tokens, torch.arange(n_frames)] = torch.where(tokens < len(pieces) - 2, LOUD, FAINT)
    found = score_lyrics(attention, lyrics, 12.0)
    return lyric_scorer.SungTake(lyrics, found.score.later(start_s).lines, found.energy, start_s, 12.0, duration_s)


def drawn(value: lyric_scorer.SungTake) -> np.ndarray:
    return lyrics_picture.lyrics_picture(value)[0].numpy()


def rows_of(image: np.ndarray) -> np.ndarray:
    """Return the bottom line of each sung line's row, just inside its frame, left to right."""
    tops = picture.GAP + lyrics_picture.HEADING + lyrics_picture.ROW_GAP
    bottoms = [tops + lyrics_picture.MOST_ROW * (i + 1) + lyrics_picture.ROW_GAP * i - 5 for i in range(2)]
    return image[bottoms][:, picture.MARGIN : -picture.MARGIN]


def lit(row: np.ndarray) -> tuple[float, float]:
    """Return from where to where a row is warm, in seconds of 12."""
    warm = (row[:, 0] - row[:, 2] > 0.2).nonzero()[0]
    return warm.min() / picture.LANE_WIDTH * 12, (warm.max() + 1) / picture.LANE_WIDTH * 12


INVISIBLE = "\u200b\u0301"  # in some fonts


def has_words(row: np.ndarray) -> bool:
    """Tell whether anything is written over the heat of a row, in the colour of words alone."""
    return bool((np.abs(row - np.array(lyrics_picture.WORDS) / 255).max(-1) < 0.02).any())


def test_a_line_is_warm_when_it_is_heard() -> None:
    first, second = rows_of(drawn(planted()))
    token_s = 12 / len(PIECES)
    assert lit(first) == pytest.approx((3 * token_s, 7 * token_s), abs=0.1)
    assert lit(second) == pytest.approx((7 * token_s, 12), abs=0.1)


def test_what_is_heard_late_in_a_song_is_drawn_late() -> None:
    image = drawn(planted(start_s=12.0, duration_s=24.0))
    begin, end = lit(rows_of(image)[0])
    token_s = 12 / len(PIECES)
    assert (2 * begin, 2 * end) == pytest.approx((12 + 3 * token_s, 12 + 7 * token_s), abs=0.15)


def test_weak_lines_have_a_colour_of_their_own() -> None:
    image = (255 * drawn(planted())).round().astype(int)
    has = [(image == colour).all(-1).any(1).nonzero()[0] for colour in (lyrics_picture.SURE, lyrics_picture.UNSURE)]
    border = picture.GAP + lyrics_picture.HEADING + lyrics_picture.ROW_GAP + lyrics_picture.MOST_ROW
    assert all(rows.size for rows in has)
    assert has[0].max() < border < has[1].min()


@pytest.mark.parametrize(
    "text",
    [
        "我在夜里等你",
        "夜に駆ける",
        "밤하늘",
        "ночь",
        "مرحبا بالعالم",
        "שלום",
        "हम साथ",
        "🎵🎶",
        "a" * 500,
        INVISIBLE,
        "�",
    ],
)
def test_every_script_is_drawn_somehow(text: str) -> None:
    image = drawn(planted(("[", "Verse", "]\n", text, "\n", "Stay", "\n")))
    assert image.shape == drawn(planted(("[", "Verse", "]\n", "Hold", "\n", "Stay", "\n"))).shape
    top = picture.GAP + lyrics_picture.HEADING + lyrics_picture.ROW_GAP
    assert has_words(image[top : top + lyrics_picture.MOST_ROW]) or text == INVISIBLE


@pytest.mark.parametrize(
    ("n_lines", "row"),
    [(1, lyrics_picture.MOST_ROW), (25, 40), (60, lyrics_picture.LEAST_ROW), (400, lyrics_picture.LEAST_ROW)],
)
def test_every_line_has_a_row_that_is_high_enough_to_read(n_lines: int, row: int) -> None:
    lyrics = Lyrics(tuple(piece for i in range(n_lines) for piece in (f"line {i}", "\n")))
    found = score_lyrics(torch.rand(1, 2 * n_lines, 60, generator=torch.Generator().manual_seed(0)), lyrics, 4.8)
    image = drawn(lyric_scorer.SungTake(lyrics, found.score.lines, found.energy, 0.0, 4.8, 4.8))
    rows = n_lines * row + (n_lines - 1) * lyrics_picture.ROW_GAP
    assert image.shape[:2] == (picture.GAP + rows + picture.AXIS_HEIGHT, 1_000)
    tops = picture.GAP + (row + lyrics_picture.ROW_GAP) * np.arange(n_lines)
    assert all(has_words(image[top : top + row]) for top in tops)


def test_the_picture_is_on_the_node(xl, conditioned, temp_dir: Path) -> None:
    (file,) = AceStepScoreLyrics.execute(xl, conditioned(), songs(2)).ui["images"]
    assert file["type"] == "temp"
    image = np.asarray(Image.open(temp_dir / file["filename"]))
    height = (
        picture.GAP
        + 3 * lyrics_picture.MOST_ROW
        + 2 * lyrics_picture.HEADING
        + 4 * lyrics_picture.ROW_GAP
        + picture.AXIS_HEIGHT
    )
    assert image.shape == (height, 1_000, 3)
