"""Scores, times and LRC text against what the official scorer and aligner make of the same attention.

`golden/README.md` tells what is stored. The official tie rule is used here and nowhere else.
"""

import json

import numpy as np
import pytest
from safetensors.torch import load_file

from acestep_pack.acestep_core.scoring.alignment import consensus, dtw_path, energy
from acestep_pack.acestep_core.scoring.attention import KNOWN_HEADS
from acestep_pack.acestep_core.scoring.lyrics import Lyrics, timed_lines
from acestep_pack.acestep_core.scoring.metrics import measure
from acestep_pack.acestep_core.scoring.subtitles import lrc
from golden_models import GOLDEN, SINGLE_FORWARD, assert_close

pytestmark = pytest.mark.parity

TENSORS = load_file(GOLDEN / "scoring.safetensors")
SAID = json.loads((GOLDEN / "scoring.json").read_text())
LYRICS = Lyrics(tuple(SAID["words"]))
CASES = tuple(SAID["cases"])
FRAME_S = SAID["duration_s"] / 150


def seen(case):
    return TENSORS[f"{case}.attention"]


def timing(case):
    return dtw_path(consensus(seen(case)), official_ties=True)


def test_the_heads_of_2b_are_the_official_ones():
    pairs = [(int(layer), head) for layer, heads in SAID["heads"].items() for head in heads]
    assert KNOWN_HEADS[24, 16].pairs == tuple(pairs)


@pytest.mark.parametrize("case", CASES)
def test_energy_equals_official(case):
    assert_close(energy(seen(case)), TENSORS[f"{case}.energy"], SINGLE_FORWARD)


@pytest.mark.parametrize("case", CASES)
def test_consensus_equals_official(case):
    assert_close(consensus(seen(case)), TENSORS[f"{case}.consensus"], SINGLE_FORWARD)


@pytest.mark.parametrize("case", CASES)
def test_path_equals_official_under_its_tie_rule(case):
    path = dtw_path(TENSORS[f"{case}.energy"].square(), official_ties=True)
    assert np.array_equal(np.stack((path.tokens, path.frames), 1), TENSORS[f"{case}.path"].numpy())


@pytest.mark.parametrize("case", CASES)
def test_metrics_and_score_equal_official(case):
    expected = SAID["cases"][case]
    assert LYRICS.sung == tuple(map(bool, expected["type_mask"]))
    found = energy(seen(case))
    metrics = measure(found, dtw_path(found.square(), official_ties=True), LYRICS.sung)
    assert metrics.coverage == pytest.approx(expected["coverage"], abs=1e-9)
    assert metrics.monotonicity == pytest.approx(expected["monotonicity"], abs=1e-9)
    assert metrics.confidence == pytest.approx(expected["confidence"], abs=1e-6)
    assert metrics.score == expected["score"]


@pytest.mark.parametrize("case", CASES)
def test_token_times_equal_official(case):
    first, last = timing(case).spans()
    expected = SAID["cases"][case]["tokens"]
    assert LYRICS.pieces == tuple(text for text, _, _ in expected)
    np.testing.assert_allclose(first * FRAME_S, [start for _, start, _ in expected], atol=1e-9)
    np.testing.assert_allclose(last * FRAME_S, [end for _, _, end in expected], atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_lines_equal_official_but_end_with_their_last_frame_and_not_before_it(case):
    lines = timed_lines(LYRICS, timing(case), energy(seen(case)), SAID["duration_s"])
    ours = [(line.text, round(line.start_s, 3), round(line.end_s - FRAME_S, 3)) for line in lines]
    assert ours == [tuple(line) for line in SAID["cases"][case]["lines"]]


@pytest.mark.parametrize("case", CASES)
def test_lrc_equals_official(case):
    assert lrc(timed_lines(LYRICS, timing(case), energy(seen(case)), SAID["duration_s"])) == SAID["cases"][case]["lrc"]


@pytest.mark.parametrize("case", CASES)
def test_on_this_attention_our_tie_rule_changes_nothing(case):
    ours, official = dtw_path(consensus(seen(case))), timing(case)
    assert np.array_equal(ours.frames, official.frames)
    assert np.array_equal(ours.tokens, official.tokens)
