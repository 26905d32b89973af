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
