"""The real canvas: ComfyUI's frontend in a headless Chromium, on the shared server."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from client import Client
from comfyui import PACK_FOLDER, Server
from workflows import CANVAS_IS_READY, READY_LIMIT_MS


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
def page(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Page]:
    """The canvas with the pack's nodes registered, once drawn on a canvas (classic) and once in Vue (nodes2).

    For one of the two only: `@pytest.mark.parametrize("page", ["classic"], indirect=True)`.
    """
    with canvas(browser, server, request.param) as (opened, _):
        yield opened


@pytest.fixture(scope="module", params=["classic", "nodes2"])
def workbench(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[tuple[Page, list[str]]]:
    """One canvas for all tests of a module, and a list that fills with errors it reports about files of the pack."""
    with canvas(browser, server, request.param) as opened:
        yield opened


@contextmanager
def canvas(browser: Browser, server: Server, renderer: str) -> Iterator[tuple[Page, list[str]]]:
    client = Client(server.url)
    client.set_setting("Comfy.VueNodes.Enabled", renderer == "nodes2")
    client.set_setting("Comfy.TutorialCompleted", True)  # else the template browser covers the canvas
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    opened = context.new_page()
    errors: list[str] = []

    def note(text: str) -> None:
        if f"/extensions/{PACK_FOLDER}/" in text:
            errors.append(text)

    opened.on("pageerror", lambda error: note(f"{error.message} {error.stack}"))
    opened.on("console", lambda said: note(f"{said.location['url']} {said.text}") if said.type == "error" else None)
    opened.goto(server.url)
    opened.wait_for_function(CANVAS_IS_READY, timeout=READY_LIMIT_MS)
    yield opened, errors
    context.close()
