"""Every node has a help page, which ComfyUI finds by the node's id, and the page keeps up with the node."""

from pathlib import Path

import pytest

from acestep_pack.nodes import NODES

SCHEMAS = {node.GET_SCHEMA().node_id: node.GET_SCHEMA() for node in NODES}


@pytest.fixture
def docs(pack_root: Path) -> Path:
    return pack_root / "web" / "docs"


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_node_has_a_page_under_its_own_name(docs: Path, node_id: str) -> None:
    page = (docs / f"{node_id}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {SCHEMAS[node_id].display_name}\n")


@pytest.mark.parametrize("node_id", SCHEMAS)
def test_a_page_names_every_input(docs: Path, node_id: str) -> None:
    page = (docs / f"{node_id}.md").read_text(encoding="utf-8")
    missing = [given.id for given in SCHEMAS[node_id].inputs if f"`{given.id}`" not in page]
    assert missing == []


def test_every_page_belongs_to_a_node(docs: Path) -> None:
    assert {page.stem for page in docs.glob("*.md")} == set(SCHEMAS)
