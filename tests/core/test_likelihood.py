"""What a planner thinks of answers and plans, on a random planner: against one whole forward for each answer."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import vocabulary
from acestep_pack.acestep_core.models.layers import AttentionShape
from acestep_pack.acestep_core.models.qwen3 import Qwen3, Qwen3Config
from acestep_pack.acestep_core.planner import likelihood
from acestep_pack.acestep_core.planner.likelihood import likelihoods, pmi_score
from acestep_pack.acestep_core.planner.plan import Planner
from acestep_pack.acestep_core.planner.prompts import understand_prompt
from acestep_pack.acestep_core.planner.score import answers_of, reward, score_plans
from acestep_pack.acestep_core.scoring.score import NamedScore
from acestep_pack.acestep_core.types import AudioCodes, SongSpec

SHAPE = AttentionShape(width=16, mlp_width=32, n_heads=4, n_kv_heads=2, head_dim=8, window=None)
N_TOKENS = 217_204
QUESTION = [*range(500, 537)]
ANSWERS = ([3, 9, 27, 81, 3], [7], [*range(9_000, 9_040)], [216_000, 5])

SONG = SongSpec(
    caption="Warm piano ballad: rain, brushes", lyrics="[Verse]\nWalking far\n", bpm=120, key="C major", language="en"
)
CODES = AudioCodes((tuple(range(0, 640, 13)), tuple(range(63_000, 63_050))))


@functools.cache
def model(own_head: bool = False, n_tokens: int = N_TOKENS) -> Qwen3:
    """Return a planner whose logits spread by about 4. Shared between tests: leave it as you found it."""
    generator = torch.Generator().manual_seed(1)
    built = Qwen3(Qwen3Config(SHAPE, n_layers=2, n_tokens=n_tokens, own_head=own_head))
    for name, weight in built.named_parameters():
        numbers = torch.randn(weight.shape, generator=generator)
        scale = 1.0 if name.startswith(("embed_tokens", "lm_head")) else weight.shape[-1] ** -0.5
        weight.data = 1 + 0.1 * numbers if weight.ndim == 1 else scale * numbers
    return built.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(model(), vocabulary.tokenizer(), torch.float32, torch.device("cpu"))


@torch.inference_mode()
def slow(planner_model: Qwen3, question: list[int], answer: list[int]) -> tuple[float, float]:
    """Return mean log-probability and recall, all logits of one forward at hand."""
    hidden = planner_model(torch.tensor([question + answer]), torch.float32)[0, len(question) - 1 :]
    head = planner_model.lm_head or planner_model.embed_tokens
    log_probs: Tensor = (hidden @ head.weight.T).double().log_softmax(-1)
    total, recall = 0.0, 0.0
    for index, token in enumerate(answer):
        first = log_probs[index].topk(10).indices.tolist()
        total += float(log_probs[index, token])
        recall += 1 - first.index(token) / 10 if token in first else 0
    return total / len(answer), recall / len(answer)


def likely_answer(planner_model: Qwen3, ranks: list[int]) -> list[int]:
    """Return an answer whose tokens each have the given rank behind QUESTION and those before."""
    answer: list[int] = []
    head = (planner_model.lm_head or planner_model.embed_tokens).weight
    for rank in ranks:
        hidden = planner_model(torch.tensor([QUESTION + answer]), torch.float32)[0, -1]
        answer.append(int((head @ hidden).argsort(descending=True)[rank - 1]))
    return answer


@pytest.mark.parametrize("own_head", [False, True])
def test_answers_side_by_side_equal_each_in_a_forward_of_its_own(own_head: bool) -> None:
    found = likelihoods(model(own_head), QUESTION, ANSWERS)
    for one, answer in zip(found, ANSWERS, strict=True):
        log_prob, recall = slow(model(own_head), QUESTION, answer)
        assert one.log_prob == pytest.approx(log_prob, rel=1e-5)
        assert one.recall == pytest.approx(recall)


def test_an_answer_does_not_depend_on_those_beside_it() -> None:
    together = likelihoods(model(), QUESTION, ANSWERS)
    for one, answer in zip(together, ANSWERS, strict=True):
        (alone,) = likelihoods(model(), QUESTION, [answer])
        assert one.log_prob == pytest.approx(alone.log_prob, rel=1e-5)


def test_answers_of_one_token_need_the_question_alone() -> None:
    found = likelihoods(model(), QUESTION, [[7], [8]])
    assert [one.log_prob for one in found] == pytest.approx(
        [slow(model(), QUESTION, [token])[0] for token in (7, 8)], rel=1e-5
    )


@pytest.mark.parametrize(
    ("ranks", "expected"), [([1, 1, 1], 1.0), ([1, 3, 1], 2.8 / 3), ([10, 11, 1], 1.1 / 3), ([50], 0.0)]
)
def test_recall_falls_by_a_tenth_a_rank_and_is_0_behind_the_tenth(ranks: list[int], expected: float) -> None:
    (found,) = likelihoods(model(), QUESTION, [likely_answer(model(), ranks)])
    assert found.recall == pytest.approx(expected)


def test_the_vocabulary_may_be_cut_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    small = model(n_tokens=10_000)
    answers = [[3, 9_999, 8_191], [8_192]]
    whole = likelihoods(small, QUESTION, answers)
    monkeypatch.setattr(likelihood, "VOCABULARY_SLICE", 37)
    for one, other in zip(likelihoods(small, QUESTION, answers), whole, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, rel=1e-6)
        assert one.recall == other.recall


@pytest.mark.parametrize(("question", "answers"), [([], [[1]]), ([1], [[1], []])])
def test_nothing_has_no_likelihood(question: list[int], answers: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="a likelihood needs a question and answers of at least one token each"):
        likelihoods(model(), question, answers)


@pytest.mark.parametrize(
    ("pmi", "expected"), [(-0.2, 0.1192), (-0.05, 0.3775), (0.0, 0.5), (0.05, 0.6225), (0.1, 0.7311), (0.5, 0.9933)]
)
def test_pmi_scores_are_the_worked_out_ones(pmi: float, expected: float) -> None:
    assert pmi_score(pmi - 3.0, -3.0) == pytest.approx(expected, abs=1e-4)


def test_a_large_difference_is_certain_and_does_not_overflow() -> None:
    assert pmi_score(-2000.0, 0.0) < 1e-300
    assert pmi_score(0.0, -2000.0) == 1.0
    with pytest.raises(ValueError, match="the scale of a PMI score must be above 0, got 0"):
        pmi_score(1.0, 0.0, 0.0)


# Plans.


def named(prefix: str = "", **values: float) -> list[NamedScore]:
    return [NamedScore(f"plan_{prefix}{name}", value) for name, value in values.items()]


def test_the_reward_is_the_worked_out_one_and_weights_of_what_is_missing_are_left_out() -> None:
    caption, lyrics = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-0.5))
    recalls = named(bpm=0.98, duration=1.0, key=0.86, language=0.93)
    assert reward(named(caption=caption, lyrics=lyrics), recalls) == pytest.approx(0.7408, abs=1e-4)
    assert reward(named(caption=caption), recalls) == pytest.approx(0.7915, abs=1e-4)
    assert reward(named(lyrics=lyrics), []) == pytest.approx(lyrics)


def test_answers_are_what_the_planner_was_trained_to_write() -> None:
    answers = {answer.name: answer.text for answer in answers_of(SONG)}
    assert answers == {
        "caption": "<think>\ncaption: 'Warm piano ballad: rain, brushes'\n</think>\n",
        "lyrics": "<think>\n</think>\n# Lyric\n[Verse]\nWalking far\n\n",
        "bpm": "<think>\nbpm: 120\n</think>\n",
        "key": "<think>\nkeyscale: C major\n</think>\n",
        "language": "<think>\nlanguage: en\n</think>\n",
    }


def test_scores_of_plans_equal_those_made_answer_by_answer(planner: Planner) -> None:
    scores = score_plans(planner, SONG, CODES, scale=0.5)
    for codes, score in zip(CODES.sequences, scores, strict=True):
        given, alone = planner.ids(understand_prompt(codes)), planner.ids(understand_prompt(()))
        for answer in answers_of(SONG):
            ids = planner.ids(answer.text)
            log_prob, recall = slow(model(), given, ids)
            without, _ = slow(model(), alone, ids)
            expected = recall if answer.is_metadata else 1 / (1 + math.exp(-(log_prob - without) / 0.5))
            assert score.value(f"plan_{answer.name}") == pytest.approx(expected, abs=1e-4)
        parts = {name.removeprefix("plan_"): score.value(name) for name in score.names if name != "plan"}
        metadata = (parts["bpm"] + parts["key"] + parts["language"]) / 3
        whole = 0.5 * parts["caption"] + 0.3 * parts["lyrics"] + 0.2 * metadata
        assert score.value("plan") == pytest.approx(whole)


def test_a_plan_scores_the_same_alone_and_among_others(planner: Planner) -> None:
    together = score_plans(planner, SONG, CODES)
    for sequence, score in zip(CODES.sequences, together, strict=True):
        assert score_plans(planner, SONG, AudioCodes((sequence,))) == (score,)


def test_the_question_without_codes_is_asked_once_for_all_plans(planner: Planner) -> None:
    questions = []

    def ids(text: str) -> list[int]:
        questions.append(text)
        return planner.ids(text)

    reader = SimpleNamespace(
        model=planner.model, dtype=planner.dtype, device=planner.device, ids=ids, reserve=planner.reserve
    )
    score_plans(reader, SONG, CODES)
    assert questions.count(understand_prompt(())) == 1


def test_what_a_song_leaves_open_is_not_asked(planner: Planner) -> None:
    (score, _) = score_plans(planner, SongSpec(bpm=120), CODES)
    assert score.names == ("plan", "plan_bpm")
    assert score.value("plan") == score.value("plan_bpm")


def test_plans_without_codes_and_songs_without_words_are_refused(planner: Planner) -> None:
    for codes in (AudioCodes(), AudioCodes(((1, 2), ()))):
        with pytest.raises(ValueError, match="there are no codes to score; plan the song first"):
            score_plans(planner, SONG, codes)
    with pytest.raises(ValueError, match="the song says nothing its codes could fit"):
        score_plans(planner, SongSpec(), CODES)


def test_the_memory_of_a_score_grows_with_its_codes_by_more_than_their_cache(planner: Planner) -> None:
    asked: list[int] = []
    frugal = replace(planner, reserve=lambda n_bytes: bool(asked.append(n_bytes)))
    for n_codes in (500, 1500):
        score_plans(frugal, SONG, AudioCodes(((7,) * n_codes,)))
    short, long = asked
    assert long - short > 1000 * 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head_dim, bytes
