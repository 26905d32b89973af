"""What every test can use: the pack as a package, and one live ComfyUI for the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client
from comfyui import Server, install_pack, start
from pack import PACK_ROOT, load_pack
from recordings import write_recordings

# At import, so that test modules can say `from acestep_pack.acestep_core import ...` at their top.
load_pack()


@pytest.fixture(scope="session")
def pack_root() -> Path:
    """The folder of the pack's source."""
    return PACK_ROOT


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A ComfyUI with this pack, the tiny models and some music, shared by all tests: leave it as you found it."""
    from tiny_models import write_comfyui_folders  # needs torch, which other tests may not

    base_dir = tmp_path_factory.mktemp("comfyui")
    install_pack(base_dir)
    write_comfyui_folders(base_dir / "models")
    write_recordings(base_dir / "input")
    with start(base_dir) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    """A client of the shared server."""
    return Client(server.url)
