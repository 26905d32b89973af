"""Nodes that score takes and plans, pick the best, and mark the lines to sing again."""

from __future__ import annotations

from dataclasses import replace

import torch
from comfy_api.v0_0_2 import io, ui

from ..acestep_core.bundle import codes_of
from ..acestep_core.planner.score import PLAN, score_plans
from ..acestep_core.scoring.lyric_score import LYRICS, LYRICS_PLANNED
from ..acestep_core.scoring.rank import Weight, mix, pick_best
from ..acestep_core.scoring.score import WEAK, Scores, joined, time_mask, weak_lines, weakest_line
from ..acestep_core.scoring.subtitles import lrc
from ..acestep_core.types import AudioCodes, Take
from .host import progress
from .host.latents import keys_of, latent_samples, latent_takes
from .host.latents import latent as made
from .host.lyric_scorer import score_takes
from .host.sockets import CATEGORY, CodesSocket, PlannerSocket, ScoreSocket, SongSocket
from .host.widgets import number, unit
from .pictures.lyrics import lyrics_picture

SCORE = f"{CATEGORY}/score"
N_CANDIDATES = 4
MAX_PICKS = 64
MAX_WEIGHT = 10.0
MAX_LINES = 100
MAX_PADDING_S = 10.0
NOTHING_COUNTS = (
    "no take has a score with a weight here, so the first takes are kept; score them, or set another weight"
)


class AceStepScoreLyrics(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepScoreLyrics",
            display_name="ACE-Step Score Lyrics",
            category=SCORE,
            description="Scores how well each take sings its lyrics, and shows when each line is sung.",
            search_aliases=[
                "lyric timestamps",
                "lrc",
                "srt",
                "subtitles",
                "karaoke",
                "alignment score",
                "best of n",
                "quality",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model the takes were sampled with, from Load ACE-Step Model."),
                io.Conditioning.Input(
                    "conditioning",
                    tooltip="What the takes were sampled with, from ACE-Step Encode Song. It holds the lyrics.",
                ),
                io.Latent.Input("latent", tooltip="The takes, from the sampler; or a recording of this song, encoded."),
                _extended_input(),
            ],
            outputs=[
                ScoreSocket.Output(
                    display_name="score", tooltip="For each take: scores from 0 to 1, and when its lines are sung."
                ),
                io.String.Output(
                    display_name="lrc",
                    tooltip="Timed lyrics of the first take as LRC text. With the score connected, ACE-Step Save "
                    "writes those of every take.",
                ),
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, model, conditioning, latent, score=None):
        result = score_takes(model, conditioning, latent)
        for warning in result.warnings:
            progress.log.warning(warning)
        takes = latent_takes(latent)
        lines = [f"{_name(item, takes)}: {_sung(take)}" for item, take in enumerate(result.scores.takes)]
        shown = {"text": ("\n".join((*(lines if result.best else ["nothing to align"]), *result.warnings)),)}
        if result.best is not None:
            shown |= ui.PreviewImage(lyrics_picture(result.best), cls=cls).as_dict()
        scores = result.scores if score is None else score.extended(result.scores)
        return io.NodeOutput(scores, lrc(result.scores.takes[0].lines), ui=shown)


class AceStepScorePlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepScorePlan",
            display_name="ACE-Step Score Plan",
            category=SCORE,
            description="Asks the planner how well audio codes fit the song they were planned for.",
            search_aliases=["lm score", "pmi", "rank plans", "best of n", "quality"],
            inputs=[
                PlannerSocket.Input("planner", tooltip="From Load ACE-Step Planner."),
                SongSocket.Input(
                    "song", tooltip="The planned song, from ACE-Step Plan. Fields on auto are not scored."
                ),
                CodesSocket.Input(
                    "codes", tooltip="The codes of its plans, or of a recording, from ACE-Step Tokenize."
                ),
                _extended_input(),
            ],
            outputs=[
                ScoreSocket.Output(
                    display_name="score",
                    tooltip="A score from 0 to 1 for each plan, or for each take if other scores are connected.",
                )
            ],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, planner, song, codes, score=None):
        scored = score_plans(planner.core, song, codes, on_plan=progress.of_parts())
        scores = Scores(scored, tuple(range(codes.n_plans)))
        text = "\n".join(f"plan {plan + 1}: {_planned(each)}" for plan, each in enumerate(scores.takes))
        return io.NodeOutput(scores if score is None else score.extended(scores), ui={"text": (text,)})


class AceStepPickBest(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        more = range(2, N_CANDIDATES + 1)
        return io.Schema(
            node_id="AceStepPickBest",
            display_name="ACE-Step Pick Best",
            category=SCORE,
            description="Keeps the best of many takes, best first.",
            search_aliases=["best of n", "rank", "select takes", "top k", "latent from batch"],
            inputs=[
                io.Latent.Input("latent", tooltip="Takes to pick from."),
                ScoreSocket.Input("score", tooltip="Their scores, from ACE-Step Score Lyrics or Score Plan."),
                io.Int.Input("count", default=1, min=1, max=MAX_PICKS, tooltip="How many of all takes to keep."),
                _weight_input("weight_lyrics", 1.0, "how well the take sings its lyrics"),
                _weight_input("weight_plan", 0.0, "how well the codes fit the song, according to the planner"),
                _weight_input("weight_planned", 0.0, "how well the lyrics can already be followed in the plan alone"),
                *(socket for number in more for socket in _candidate_inputs(number)),
                CodesSocket.Input(
                    "codes",
                    optional=True,
                    tooltip="The codes that all takes were sung from. The output has those of the picked takes.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="The picked takes, best first, with their seeds."),
                ScoreSocket.Output(display_name="score", tooltip="Their scores."),
                CodesSocket.Output(
                    display_name="codes", tooltip="One sequence for each picked take; empty if codes is not connected."
                ),
            ],
        )

    @classmethod
    def execute(cls, latent, score, count, weight_lyrics, weight_plan, weight_planned, codes=None, **more):
        candidates = _candidates(latent, score, more)
        scores = joined([_scores_of(name, *candidate) for name, candidate in candidates.items()])
        samples = torch.cat([latent_samples(candidate) for candidate, _ in candidates.values()])
        takes = tuple(take for candidate, _ in candidates.values() for take in latent_takes(candidate))

        named = zip((LYRICS, PLAN, LYRICS_PLANNED), (weight_lyrics, weight_plan, weight_planned), strict=True)
        weights = [Weight(name, weight) for name, weight in named]
        best = pick_best(scores.takes, weights, count)
        lines = [f"{_name(item, takes, len(samples))}: {mix(scores.takes[item], weights):.2f}" for item in best]
        if not any(part.weight and take.value(part.name) is not None for part in weights for take in scores.takes):
            lines.append(NOTHING_COUNTS)
        picked, kept_takes, kept_codes = _picked(scores, takes, best, codes or AudioCodes())
        shown = {"text": ("\n".join(lines),)}
        return io.NodeOutput(made(samples[list(best)], kept_takes), picked, kept_codes, ui=shown)


class AceStepWeakLines(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepWeakLines",
            display_name="ACE-Step Weak Lines",
            category=SCORE,
            description="Marks the lines that are sung badly, so that ACE-Step Repaint can sing them again.",
            search_aliases=["repair", "fix line", "lyric mask", "mumbling", "repaint lyrics"],
            inputs=[
                ScoreSocket.Input("score", tooltip="From ACE-Step Score Lyrics, which finds when each line is sung."),
                unit(
                    "threshold",
                    WEAK,
                    "Lines with a confidence below this are weak, 0 to 1. The picture of ACE-Step "
                    "Score Lyrics shows the confidence of each line.",
                ),
                io.Int.Input(
                    "most",
                    default=0,
                    min=0,
                    max=MAX_LINES,
                    tooltip="At most this many lines of each take, the worst ones. 0 marks all below the threshold.",
                ),
                number(
                    "padding",
                    0.25,
                    MAX_PADDING_S,
                    "Seconds to mark before and after each weak line as well.",
                    step=0.05,
                ),
            ],
            outputs=[
                io.Mask.Output(
                    display_name="mask",
                    tooltip="1 where a weak line is sung, 25 values a second, one row per take; all 0 if no line is "
                    "weak. For ACE-Step Repaint.",
                ),
                io.String.Output(display_name="lines", tooltip="The words of the weak lines, one line each."),
            ],
        )

    @classmethod
    def execute(cls, score, threshold, most, padding):
        if score.is_of_plans:
            raise ValueError('this score is of plans and knows no lines; connect one from "ACE-Step Score Lyrics"')
        weak = [weak_lines(take, threshold, most) for take in score.takes]
        mask = torch.stack([time_mask(lines, score.n_frames, padding) for lines in weak])
        words = "\n".join(line.text for lines in weak for line in lines)
        text = "\n".join(f"take {item + 1}: {_weak(lines)}" for item, lines in enumerate(weak))
        return io.NodeOutput(mask[:, None], words, ui={"text": (text,)})


def _extended_input():
    return ScoreSocket.Input(
        "score",
        optional=True,
        tooltip="Other scores of the same takes, or of their plans. The new scores are added to them.",
    )


def _weight_input(name: str, default: float, what: str):
    tooltip = f"Weight of {what}. 0 leaves it out."
    return io.Float.Input(name, default=default, min=0.0, max=MAX_WEIGHT, step=0.05, tooltip=tooltip)


def _candidate_inputs(number: int):
    return [
        io.Latent.Input(f"latent_{number}", optional=True, tooltip="More takes of the same length to pick from."),
        ScoreSocket.Input(f"score_{number}", optional=True, tooltip=f"The scores of latent_{number}."),
    ]


def _candidates(latent: dict, score, more: dict) -> dict:
    """Return the latents to pick from and their scores, by the name of the latent's input.

    Raises ValueError for one that lacks the other, or latents of different length.
    """
    candidates = {"latent": (latent, score)}
    for position in range(2, N_CANDIDATES + 1):
        names = (f"latent_{position}", f"score_{position}")
        pair = tuple(more.get(name) for name in names)
        if (pair[0] is None) != (pair[1] is None):
            connected, missing = names if pair[1] is None else reversed(names)
            raise ValueError(f'"{connected}" is connected without its other half: connect "{missing}" as well')
        if pair[0] is not None:
            candidates[names[0]] = pair
    return candidates


def _scores_of(name: str, latent: dict, score):
    """Return the Scores of the takes of a latent.

    Raises ValueError for those of other takes.
    """
    n_takes, n_frames = latent_samples(latent).shape[:2]
    if score.is_of_plans:
        plans = [None if take is None else take.plan for take in latent_takes(latent)]
        sung_from = tuple(0 if plan is None else plan for plan in plans)  # None passes where there is a single plan
        return Scores(score.of_items(plans), sung_from, n_frames, keys_of(latent))
    if score.keys and score.n_frames == n_frames:
        return score.ordered(keys_of(latent))
    if (len(score.takes), score.n_frames) != (n_takes, n_frames):
        here = Scores(score.takes[:1] * n_takes, (0,) * n_takes, n_frames).summary
        raise ValueError(
            f'the score of "{name}" is of {score.summary}, the latent has {here}; connect the one made of it'
        )
    return score


def _picked(scores, takes: tuple, best: tuple[int, ...], codes):
    """Return the Scores, Takes and codes of the best. With codes there is a plan for each of them, in their order."""
    kept = tuple(takes[item] for item in best)
    if not codes.n_plans:
        return scores.picked(best), kept, codes
    sung_from = [codes_of(codes, item, scores.plans[item]).sequences[0] for item in best]
    renumbered = tuple(replace(take or Take(), plan=plan) for plan, take in enumerate(kept))
    return scores.picked(best, range(len(best))), renumbered, AudioCodes(tuple(sung_from))


def _name(item: int, takes: tuple, n_all: int = 0) -> str:
    """Return "take 3 of 8 (seed 9)", without the parts that are not known."""
    take = takes[item]
    seed = f" (seed {take.seed})" if take is not None and take.seed is not None else ""
    return f"take {item + 1}{f' of {n_all}' if n_all else ''}{seed}"


def _sung(score) -> str:
    """Return how well a take sings its lyrics, and which line it sings worst."""
    planned, weakest = score.value(LYRICS_PLANNED), weakest_line(score)
    parts = [
        f"{score.value(LYRICS) or 0:.2f}",
        f"plan alone {planned:.2f}" if planned is not None else "",
        f"weakest line {_line(weakest)}" if weakest is not None else "",
    ]
    return ", ".join(filter(None, parts))


def _planned(score) -> str:
    """Return how well a plan fits its song, and each part of the song."""
    (whole, *parts) = score.named
    of_parts = ", ".join(f"{each.name.removeprefix('plan_')} {each.value:.2f}" for each in parts)
    return f"{whole.value:.2f} ({of_parts})"


def _weak(lines: tuple) -> str:
    return ", ".join(map(_line, lines)) or "no line is weak"


def _line(line) -> str:
    return f"'{line.text}' {line.confidence:.2f}"
