"""The planner's place in ComfyUI's memory: what it asks for, when a graph may be captured, how its pace is told."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import comfy.model_management as mm
import pytest
import torch

import tiny_models
from acestep_pack.acestep_core.types import SongSpec
from acestep_pack.nodes import plan as nodes
from acestep_pack.nodes.host import memory
from acestep_pack.nodes.host import planner as planners
from acestep_pack.nodes.host.planner import PlannerModel

SONG = SongSpec("slow piano ballad", "[Verse]\nhello", "en", 90, "A minor", "4", 10.0)
CODES_ALONE = {"think_metadata": False, "think_caption": False, "think_language": False}
BF16, CARD = torch.bfloat16, torch.device("cuda:0")


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> PlannerModel:
    folder: Path = tmp_path_factory.mktemp("planner") / "acestep-5Hz-lm-0.6B"
    tiny_models.write_planner_official(folder)
    with torch.inference_mode():
        return planners.load_planner(folder)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The bytes beside its weights that each loading of a model asks ComfyUI for."""
    seen: list[float] = []
    load = mm.load_models_gpu

    def loading(models, memory_required, **more):
        seen.append(memory_required)
        return load(models, memory_required=memory_required, **more)

    monkeypatch.setattr(mm, "load_models_gpu", loading)
    return seen


def plan(planner: PlannerModel, song: SongSpec = SONG, **inputs: object):
    """Return the output of a plan node; inputs override its widgets."""
    given = nodes.AceStepPlan.GET_SCHEMA().inputs
    widgets = {widget.id: widget.default for widget in given if hasattr(widget, "default")}
    return nodes.AceStepPlan.execute(planner, song, **(widgets | CODES_ALONE | inputs))


# Memory.


def test_a_plan_asks_for_two_rows_only_when_it_is_guided(planner, asked):
    for inputs in ({"cfg_scale": 1.0}, {"cfg_scale": 2.0}, {"plans": 2}):
        plan(planner, **inputs)
    unguided, guided, two = asked
    cache = 2 * 2 * 8 * 16 * 50 * planner.core.dtype.itemsize  # keys and values of two layers for 50 codes
    assert guided - unguided > cache
    assert two > guided


def test_a_plan_that_no_memory_could_hold_is_refused_in_a_sentence(planner, monkeypatch):
    monkeypatch.setattr(mm, "get_total_memory", lambda device: 2**20 + mm.extra_reserved_memory())
    with pytest.raises(RuntimeError) as error:
        plan(planner, plans=8)
    assert re.fullmatch(
        r"the planner needs 0\.[0-9] GiB beside its weights and the device has 0\.0; "
        "make fewer plans at once or a shorter song",
        str(error.value),
    )


def test_what_is_wrong_with_a_plan_is_told_before_anything_is_loaded(planner, asked):
    for song, inputs in ((SongSpec(), {}), (SONG, {"cfg_scale": 1.0, "negative": "drums"})):
        with pytest.raises(ValueError, match=r"caption|negative"):
            plan(planner, song, **inputs)
    assert asked == []


# When a CUDA graph may be captured. Decided on stand-ins: this machine has no card.


@dataclass
class Weight:
    device: torch.device = CARD
    dtype: torch.dtype = BF16


@dataclass
class Layer:
    weight_function: list = field(default_factory=list)
    bias_function: list = field(default_factory=list)


@dataclass
class Loaded:
    """What the decision looks at of a patcher and of its model."""

    weights: tuple[Weight, ...] = (Weight(), Weight())
    layers: tuple[object, ...] = (object(), Layer())
    dynamic: bool = False
    load_device: torch.device = CARD

    @property
    def model(self) -> Loaded:
        return self

    def parameters(self) -> tuple[Weight, ...]:
        return self.weights

    def modules(self) -> tuple[object, ...]:
        return self.layers

    def is_dynamic(self) -> bool:
        return self.dynamic


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mm, "is_nvidia", lambda: True)


@pytest.mark.usefixtures("nvidia")
def test_a_graph_may_be_captured_of_weights_that_stay_as_they_are():
    assert memory.may_capture(Loaded(), BF16)


@pytest.mark.usefixtures("nvidia")
@pytest.mark.parametrize(
    "loaded",
    [
        pytest.param(Loaded(weights=(Weight(), Weight(torch.device("cpu")))), id="one weight is offloaded"),
        pytest.param(Loaded(weights=(Weight(), Weight(dtype=torch.float8_e4m3fn))), id="one weight is cast"),
        pytest.param(Loaded(layers=(Layer([abs]),)), id="a layer patches its weight"),
        pytest.param(Loaded(layers=(Layer([], [abs]),)), id="a layer patches its bias"),
        pytest.param(Loaded(dynamic=True), id="dynamic VRAM"),
        pytest.param(Loaded((), (), load_device=torch.device("cpu")), id="a CPU"),
    ],
)
def test_no_graph_is_captured_of_weights_that_move(loaded):
    assert not memory.may_capture(loaded, BF16)


def test_no_graph_is_captured_on_other_makers_cards():
    assert not memory.may_capture(Loaded(), BF16)


def test_a_planner_is_told_whether_to_capture_and_keeps_its_lexicon(planner, monkeypatch):
    assert not planner.core.reserve(0)
    monkeypatch.setattr(memory, "may_capture", lambda patcher, dtype: patcher is planner.patcher)
    assert planner.core.reserve(0)
    assert planner.core.lexicon is planner.core.lexicon


# Pace.


def test_the_pace_stands_below_the_blueprint_and_not_in_it(planner):
    output = plan(planner, plans=3)
    *_, blueprint = output.result
    (text,) = output.ui["text"]
    assert re.fullmatch(r"150 codes in [0-9]+\.[0-9] s, [0-9]+ per second", text.removeprefix(blueprint + "\n\n"))


def test_without_codes_the_pace_is_that_of_the_thoughts(planner):
    (text,) = plan(planner, think_codes=False, think_caption=True, top_p=1.0).ui["text"]
    assert re.search(r"</?think>.*\n\n[0-9]+ tokens in [0-9]+\.[0-9] s, [0-9]+ per second$", text, re.DOTALL)


def test_a_song_that_goes_straight_through_needs_no_memory_and_has_no_pace(planner, asked):
    output = plan(planner, think_codes=False)
    assert output.result[0] == SONG
    assert (output.ui["text"], asked) == (("",), [0])


@pytest.mark.parametrize(
    ("told", "seconds"),
    [([(10, 90), (20, 90)], 3), ([(50, 90), (5, 10)], 2), ([(0, 1), (10, 90), (20, 90)], 4)],
    ids=["one part", "two parts", "loading, then one part"],
)
def test_the_pace_is_that_of_the_last_part(monkeypatch, told, seconds):
    """A clock that goes on by a second whenever it is read."""
    clock = iter(range(100))
    monkeypatch.setattr(nodes, "perf_counter", lambda: next(clock))
    pace = nodes.Pace()
    for progress in told:
        pace(*progress)
    assert pace.line("codes", 60) == f"60 codes in {seconds:.1f} s, {60 / seconds:.0f} per second"
