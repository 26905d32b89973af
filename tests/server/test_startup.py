"""The pack in a live ComfyUI, before any prompt."""

from pathlib import Path

import pytest

from client import Client
from comfyui import PACK_FOLDER, Server, start

pytestmark = pytest.mark.server


def test_the_server_that_answers_is_the_one_we_started(server: Server, client: Client) -> None:
    assert str(server.base_dir) in client.system_stats()["system"]["argv"]


def test_every_node_of_the_pack_is_listed_under_its_prefix(client: Client) -> None:
    nodes = client.object_info().items()
    ours = [node_id for node_id, info in nodes if info["python_module"] == f"custom_nodes.{PACK_FOLDER}"]
    assert ours
    assert [node_id for node_id in ours if not node_id.startswith("AceStep")] == []


def test_the_pack_imports_without_a_failure(server: Server) -> None:
    # Core nodes may fail here: the test environment has no OpenGL.
    folder = str(Path("custom_nodes", PACK_FOLDER))
    timings = [line for line in server.log().splitlines() if line.endswith(folder)]
    assert timings
    assert [line for line in timings if "IMPORT FAILED" in line] == []


def test_a_server_that_cannot_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match="unrecognized arguments: --no-such-option"),
        start(tmp_path, ["--no-such-option"]),
    ):
        pass
