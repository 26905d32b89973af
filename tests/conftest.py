"""What every test can use: the pack as a package, and one live ComfyUI for the whole session."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from client import Client
from comfyui import Server, install_pack, start
from recordings import write_recordings

PACK_ROOT = Path(__file__).resolve().parent.parent


def _load_pack(name: str) -> None:
    """Import the repository's root as the package `name`, the way ComfyUI imports a custom node folder."""
    spec = importlib.util.spec_from_file_location(
        name, PACK_ROOT / "__init__.py", submodule_search_locations=[str(PACK_ROOT)]
    )
    sys.modules[name] = package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)


# At import, so that test modules can say `from acestep_pack.acestep_core import ...` at their top.
_load_pack("acestep_pack")


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
