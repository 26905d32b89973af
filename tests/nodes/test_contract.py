"""Saved workflows must keep opening: ids, input names, order, defaults and output types only ever grow."""

import copy
from collections.abc import Callable

import pytest

from acestep_pack.nodes import NODES
from contract import Contract, breaks, snapshot, stored

INFO = {node.GET_SCHEMA().node_id: node.GET_NODE_INFO_V1() for node in NODES}
INPUTS = [
    pytest.param(options[-1], id=f"{node}.{name}")
    for node, info in INFO.items()
    for group in ("required", "optional")
    for name, options in info["input"].get(group, {}).items()
]


def test_nothing_that_was_published_has_changed() -> None:
    assert breaks(stored(), snapshot(NODES)) == []


@pytest.mark.parametrize("node", INFO)
def test_a_node_is_filed_and_named_as_ours(node: str) -> None:
    assert node.startswith("AceStep")
    assert INFO[node]["category"].startswith("audio/ACE-Step/")
    assert INFO[node]["description"]


@pytest.mark.parametrize("options", INPUTS)
def test_an_input_explains_itself(options: dict) -> None:
    assert options.get("tooltip", "").strip()


@pytest.mark.parametrize("node", INFO)
def test_every_output_explains_itself(node: str) -> None:
    assert all(INFO[node]["output_tooltips"])


def test_ids_are_unique() -> None:
    assert len(INFO) == len(NODES)


# What counts as a break.

OLD: Contract = {
    "A": {
        "inputs": [
            {"name": "model", "type": "MODEL", "required": True, "default": None},
            {"name": "steps", "type": "INT", "required": True, "default": 8},
            {"name": "seeds", "type": "STRING", "required": False, "default": ""},
        ],
        "outputs": ["LATENT"],
    }
}
NEW_WIDGET = {"name": "limit", "type": "FLOAT", "required": True, "default": 0.0}
NEW_SOCKET = {"name": "options", "type": "OPTIONS", "required": False, "default": None}


@pytest.mark.parametrize(
    "append",
    [
        pytest.param(lambda c: c.update(B={"inputs": [], "outputs": []}), id="a node"),
        pytest.param(lambda c: c["A"]["inputs"].append(NEW_WIDGET), id="a last widget with a default"),
        pytest.param(lambda c: c["A"]["inputs"].append(NEW_SOCKET), id="an optional socket"),
        pytest.param(lambda c: c["A"]["outputs"].append("STRING"), id="a last output"),
        pytest.param(lambda c: c["A"]["inputs"][0].update(required=False), id="a demand less"),
    ],
)
def test_appending_breaks_nothing(append: Callable[[Contract], None]) -> None:
    new = copy.deepcopy(OLD)
    append(new)
    assert breaks(OLD, new) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c.pop("A"), "A is gone"),
        (lambda c: c["A"]["inputs"].reverse(), "A: inputs no longer begin with model, steps, seeds"),
        (lambda c: c["A"]["inputs"].pop(), "A: inputs no longer begin with model, steps, seeds"),
        (lambda c: c["A"]["inputs"].insert(1, NEW_WIDGET), "A: inputs no longer begin with model, steps, seeds"),
        (lambda c: c["A"]["inputs"][1].update(default=50), "A.steps: default 8 became 50"),
        (lambda c: c["A"]["inputs"][1].update(type="FLOAT"), "A.steps: type INT became FLOAT"),
        (lambda c: c["A"]["inputs"][2].update(required=True), "A.seeds became required"),
        (
            lambda c: c["A"]["inputs"].append({**NEW_SOCKET, "required": True}),
            "A.options is new, required and has no default",
        ),
        (lambda c: c["A"]["outputs"].insert(0, "STRING"), "A: outputs ['LATENT'] became ['STRING', 'LATENT']"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_any_other_change_is_a_break(change: Callable[[Contract], object], sentence: str) -> None:
    new = copy.deepcopy(OLD)
    change(new)
    assert breaks(OLD, new) == [sentence]
