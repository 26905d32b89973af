"""The canvas opens with the pack's nodes, in both of its renderers."""

import pytest
from playwright.sync_api import Page

pytestmark = pytest.mark.browser


@pytest.mark.parametrize(("page", "drawn_in_vue"), [("classic", False), ("nodes2", True)], indirect=["page"])
def test_a_node_of_the_pack_is_drawn_by_the_chosen_renderer(page: Page, drawn_in_vue: bool) -> None:
    node_id = page.evaluate(
        """() => {
            const node = window.LiteGraph.createNode("AceStepSample")
            window.app.graph.add(node)
            return node.id
        }"""
    )
    in_vue = page.locator(f'[data-node-id="{node_id}"]')
    if drawn_in_vue:
        in_vue.wait_for()
    assert in_vue.count() == int(drawn_in_vue)


def test_every_word_of_song_info_connects_to_the_song_and_to_text(page: Page) -> None:
    """Also after the workflow was saved and opened again."""
    connected = page.evaluate(
        """async () => {
            const graph = window.app.graph
            const [info, song, other] = ["AceStepSongInfo", "AceStepSong", "AceStepSong"].map((type) => {
                const node = window.LiteGraph.createNode(type)
                graph.add(node)
                return node
            })
            for (const name of ["key", "time_signature", "language"]) {
                info.connect(info.findOutputSlot(name), song, song.findInputSlot(name))
            }
            info.connect(info.findOutputSlot("key"), other, other.findInputSlot("caption"))
            const ids = [song.id, other.id]
            await window.app.loadGraphData(graph.serialize())
            return ids.flatMap((id) =>
                window.app.graph.getNodeById(id).inputs.filter((each) => each.link != null).map((each) => each.name)
            )
        }"""
    )
    assert sorted(connected) == ["caption", "key", "language", "time_signature"]
