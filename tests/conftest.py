"""What every test can use: the pack as a package, and one live ComfyUI for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client
from comfyui import HOST, Server, install_pack, start
from hub import hub_stand_in
from pack import PACK_ROOT, load_pack
from recordings import write_recordings

# At import, so that test modules can say `from acestep_pack.acestep_core import ...` at their top.
load_pack()

# Models of tests are tiny: more threads would only wait for each other, and for those of other workers. Servers and
# scripts that tests start inherit it. It has to be set before torch is imported, so tests/ imports that below only.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of live servers first, side by side.

    The workers of `pytest -n` begin with equal stretches of the list and take from each other's ends. So few of them
    start a ComfyUI, and none starts it last, while the others have nothing left to do.
    """
    items.sort(key=lambda item: not any(item.get_closest_marker(name) for name in ("browser", "server")))


@pytest.fixture(scope="session")
def pack_root() -> Path:
    """The folder of the pack's source."""
    return PACK_ROOT


@pytest.fixture
def inference_mode() -> Iterator[None]:
    """For as long as the test runs, torch records nothing for gradients."""
    import torch

    with torch.inference_mode():
        yield


@pytest.fixture(scope="session")
def hub_port() -> int:
    """The port of the server's Hugging Face Hub, where nothing answers until a test opens a stand-in on it."""
    with hub_stand_in() as hub:
        return hub.server_address[1]


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, hub_port: int) -> Iterator[Server]:
    """A ComfyUI with this pack, the tiny models and some music, shared by all tests: leave it as you found it."""
    from tiny_models import write_comfyui_folders

    base_dir = tmp_path_factory.mktemp("comfyui")
    install_pack(base_dir)
    write_comfyui_folders(base_dir / "models")
    write_recordings(base_dir / "input")
    with start(base_dir, env={"HF_ENDPOINT": f"http://{HOST}:{hub_port}"}) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    """A client of the shared server."""
    return Client(server.url)
