"""What is written about the pack keeps up with it: a help page for each node, the README, and the pages in docs/.

ComfyUI finds a help page by the node's id.
"""

import re
from pathlib import Path

import pytest

from acestep_pack.nodes import NODES

README_WORDS = 1_400  # a front door; what needs more room has a page in docs/
LINK = re.compile(r"\]\(([^)#]+)")

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


def test_the_table_of_nodes_has_every_node_once(pack_root: Path) -> None:
    page = (pack_root / "docs" / "nodes.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \[(.+?)\]\(\.\./web/docs/(\w+)\.md\)", page, re.MULTILINE)
    assert sorted(rows) == sorted((schema.display_name, node_id) for node_id, schema in SCHEMAS.items())


def test_the_readme_is_short(pack_root: Path) -> None:
    assert len((pack_root / "README.md").read_text(encoding="utf-8").split()) < README_WORDS


def test_the_readme_names_every_workflow_and_no_other(pack_root: Path) -> None:
    named = re.findall(r"`(\d\d_\w+)`", (pack_root / "README.md").read_text(encoding="utf-8"))
    assert set(named) == {file.stem for file in (pack_root / "workflows").glob("*.json")}


def test_no_link_between_the_pages_is_dead(pack_root: Path) -> None:
    for page in (pack_root / "README.md", *(pack_root / "docs").glob("*.md")):
        links = [link for link in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in link]
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name


# What a musician types into the node search, and what should come up. The search reads names and aliases.
WORDS = {
    "music": {"AceStepSong", "AceStepSample"},
    "bpm": {"AceStepSong"},
    "tempo": {"AceStepSong"},
    "key": {"AceStepSong"},
    "instrumental": {"AceStepSong", "AceStepExtract"},
    "seed": {"AceStepSample"},
    "srt": {"AceStepSave", "AceStepScoreLyrics"},
    "lrc": {"AceStepSave", "AceStepScoreLyrics"},
    "karaoke": {"AceStepScoreLyrics", "AceStepExtract"},
    "voice": {"AceStepReference"},
    "clone voice": {"AceStepReference"},
    "crossfade": {"AceStepStitch", "AceStepEditCodes"},
    "mix": {"AceStepStitch", "AceStepEditCodes"},
    "normalize": {"AceStepDecode"},
    "inpaint": {"AceStepRepaint", "AceStepRegion"},
    "acapella": {"AceStepExtract"},
    "vocals": {"AceStepExtract"},
    "stems": {"AceStepExtract"},
    "audio2audio": {"AceStepCover"},
    "remix": {"AceStepCover", "AceStepMorph"},
    "continue": {"AceStepExtend"},
    "download model": {"AceStepDownload"},
    "lora": {"AceStepLoadLora"},
    "mp3": {"AceStepSave"},
}


@pytest.mark.parametrize("word", WORDS)
def test_a_musicians_word_finds_its_nodes(word: str) -> None:
    """As an alias of its own: inside a longer one the search ranks it below everyone else's nodes."""
    found = {node_id for node_id, schema in SCHEMAS.items() if word in schema.search_aliases}
    assert WORDS[word] <= found
