"""How well audio codes fit the song they were planned for, asked of the planner that can also describe codes.

Metadata: does it name them among its first guesses. Caption and lyrics: are they likelier with the codes than
without. The questions are here, the arithmetic in `likelihood.py`.
Source: ace-step/ACE-Step-1.5, `acestep/test_time_scaling.py`; the planner was rewarded by 50/30/20 in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..scoring.score import NamedScore, Score
from ..types import AudioCodes, SongSpec
from .likelihood import PMI_SCALE, Likelihood, likelihood_bytes, likelihoods, pmi_score
from .plan import Planner
from .prompts import think_text, understand_prompt

PLAN = "plan"
WEIGHTS = {"caption": 0.5, "lyrics": 0.3, "metadata": 0.2}
METADATA = ("bpm", "duration_s", "key", "language", "time_signature")  # of SongSpec, in the planner's order
LYRICS_ANSWER = "<think>\n</think>\n# Lyric\n{lyrics}\n"


@dataclass(frozen=True)
class Answer:
    """The expected answer of the planner about a plan, and the name of its score."""

    name: str
    text: str
    is_metadata: bool


def score_plans(
    planner: Planner,
    song: SongSpec,
    codes: AudioCodes,
    scale: float = PMI_SCALE,
    on_plan: Callable[[int, int], None] | None = None,
) -> tuple[Score, ...]:
    """Return a score for each plan: `plan`, and its parts under `plan_…`. scale: see pmi_score.

    What does not depend on the codes is asked once for all plans. on_plan is told how many of how many are done.

    Raises: ValueError without codes, or for a song that says nothing to compare them with.
    """
    answers = _checked_answers(song, codes)
    planner.reserve(_score_bytes(planner, codes, answers))
    worded = [answer for answer in answers if not answer.is_metadata]
    alone = _ask(planner, (), worded)
    scores = []
    for sequence in codes.sequences:
        with_codes = _ask(planner, sequence, answers)
        recalls = [
            NamedScore(f"plan_{answer.name}", likelihood.recall)
            for answer, likelihood in zip(answers, with_codes, strict=True)
            if answer.is_metadata
        ]
        pmi = [
            NamedScore(f"plan_{answer.name}", pmi_score(with_codes[index].log_prob, alone[index].log_prob, scale))
            for index, answer in enumerate(worded)
        ]
        scores.append(Score((NamedScore(PLAN, reward(pmi, recalls)), *pmi, *recalls)))
        if on_plan is not None:
            on_plan(len(scores), codes.n_plans)
    return tuple(scores)


def answers_of(song: SongSpec) -> tuple[Answer, ...]:
    """Return what a song tells of itself, caption and lyrics first; what it leaves open is not asked."""
    answers = []
    if song.caption.strip():
        answers.append(Answer("caption", think_text(SongSpec(caption=song.caption)) + "\n", False))
    if song.lyrics.strip():
        answers.append(Answer("lyrics", LYRICS_ANSWER.format(lyrics=song.lyrics), False))
    for name in METADATA:
        value = getattr(song, name)
        if value is not None:
            alone = replace(SongSpec(), **{name: value})
            answers.append(Answer(name.removesuffix("_s"), think_text(alone) + "\n", True))
    return tuple(answers)


def reward(pmi: Sequence[NamedScore], recalls: Sequence[NamedScore]) -> float:
    """Return the weighted mean of caption, lyrics and metadata, the mean of its fields; what is missing is left out."""
    parts = {score.name.removeprefix("plan_"): score.value for score in pmi}
    if recalls:
        parts["metadata"] = sum(score.value for score in recalls) / len(recalls)
    total = sum(WEIGHTS[name] for name in parts)
    return sum(WEIGHTS[name] * value for name, value in parts.items()) / total


def _score_bytes(planner: Planner, codes: AudioCodes, answers: Sequence[Answer]) -> int:
    """Return the memory that asking about the longest plan takes at most, beside the weights."""
    n_question = len(planner.ids(understand_prompt(max(codes.sequences, key=len))))
    n_answers = sum(len(planner.ids(answer.text)) for answer in answers)
    return likelihood_bytes(planner.model.config, n_question, n_answers, planner.dtype.itemsize)


def _checked_answers(song: SongSpec, codes: AudioCodes) -> tuple[Answer, ...]:
    if not all(codes.sequences) or not codes.n_plans:
        raise ValueError("there are no codes to score; plan the song first, or tokenize some audio")
    answers = answers_of(song)
    if not answers:
        raise ValueError("the song says nothing its codes could fit; give it a caption, lyrics or a tempo")
    return answers


def _ask(planner: Planner, codes: Sequence[int], answers: Sequence[Answer]) -> tuple[Likelihood, ...]:
    if not answers:
        return ()
    question = planner.ids(understand_prompt(codes))
    texts = [planner.ids(answer.text) for answer in answers]
    return likelihoods(planner.model, question, texts, planner.dtype, planner.device)
