"""The real canvas: ComfyUI's frontend in a headless Chromium, on the shared server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from client import Client
from comfyui import Server

# Also says that the pack's nodes have arrived. `!!`, because Playwright would call a class it is handed.
CANVAS_IS_READY = "!!(window.app?.extensionManager && window.LiteGraph?.registered_node_types.AceStepSample)"
READY_LIMIT_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium; per module, as Playwright's event loop would break asyncio in other tests."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no chromium on the PATH")
    with sync_playwright() as playwright:
        # Containers have no user namespaces for Chromium's sandbox; all it visits is our own server.
        chromium = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture(params=["classic", "nodes2"])
def page(request: pytest.FixtureRequest, browser: Browser, server: Server, client: Client) -> Iterator[Page]:
    """The canvas with the pack's nodes registered, once drawn on a canvas (classic) and once in Vue (nodes2).

    For one of the two only: `@pytest.mark.parametrize("page", ["classic"], indirect=True)`.
    """
    client.set_setting("Comfy.VueNodes.Enabled", request.param == "nodes2")
    client.set_setting("Comfy.TutorialCompleted", True)  # else the template browser covers the canvas
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    canvas = context.new_page()
    canvas.goto(server.url)
    canvas.wait_for_function(CANVAS_IS_READY, timeout=READY_LIMIT_MS)
    yield canvas
    context.close()
