"""Downloads over real HTTP, against a stand-in for the Hugging Face Hub that can break off or refuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from acestep_pack.acestep_core.checkpoints import download as downloads
from acestep_pack.acestep_core.checkpoints.catalogue import Checkpoint
from hub import HubStandIn, hub_stand_in

ROOT = Path(__file__).resolve().parents[2]


class Cancelled(BaseException):
    """What a host raises to cancel; ComfyUI's own is no Exception either."""


@pytest.fixture
def hub() -> Iterator[HubStandIn]:
    with hub_stand_in() as server:
        yield server


# Several chunks and a bit: a broken transfer must be able to stop between, and inside, chunks.
WEIGHTS = Random(1).randbytes(4 * downloads.CHUNK_BYTES + 123)
SHARDS = {f"model-0000{i}-of-00002.safetensors": Random(i).randbytes(1_000 * i) for i in (1, 2)}
SINGLE = Checkpoint(
    name="tiny.safetensors",
    repo_id="stand-in/files",
    files=("split_files/vae/tiny.safetensors",),
    folder="vae",
    size_bytes=len(WEIGHTS),
    dtype="bf16",
    note="",
)
FOLDER = Checkpoint(
    name="tiny-xl",
    repo_id="stand-in/tiny-xl",
    files=("model-*.safetensors", "model.safetensors.index.json", "config.json"),
    folder="diffusion_models",
    size_bytes=sum(map(len, SHARDS.values())),
    dtype="fp32",
    note="",
    variant="xl-turbo",
)


@pytest.fixture
def full_hub(hub: HubStandIn) -> HubStandIn:
    hub.repos = {
        SINGLE.repo_id: {SINGLE.files[0]: WEIGHTS, "README.md": b"not asked for"},
        FOLDER.repo_id: {
            **SHARDS,
            "model.safetensors.index.json": b"{}",
            "config.json": b'{"hidden_size": 64}',
            "optimizer/model-00001-of-00001.safetensors": b"heavy and not asked for",
        },
    }
    return hub


def fetch(hub: HubStandIn, checkpoint: Checkpoint, folder_dir: Path) -> list[Path]:
    return downloads.download(checkpoint, folder_dir, lambda _done, _total: None, lambda: None, hub.url)


def files_below(directory: Path) -> list[str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return sorted(path.relative_to(directory).as_posix() for path in paths)


def cancel_after(n_bytes: int) -> tuple[downloads.OnProgress, downloads.CheckCancelled]:
    """Return callbacks that cancel once n_bytes have arrived."""
    seen = [0]

    def on_progress(done: int, total: int) -> None:
        seen[0] = done

    def check_cancelled() -> None:
        if seen[0] >= n_bytes:
            raise Cancelled

    return on_progress, check_cancelled


def test_a_single_file_lands_in_its_folder_and_nothing_else_does(full_hub: HubStandIn, tmp_path: Path) -> None:
    assert fetch(full_hub, SINGLE, tmp_path / "vae") == [tmp_path / "vae" / "tiny.safetensors"]
    assert files_below(tmp_path) == ["vae/tiny.safetensors"]
    assert (tmp_path / "vae" / "tiny.safetensors").read_bytes() == WEIGHTS
    assert not (tmp_path / "vae" / downloads.STAGING).exists()


def test_a_folder_brings_every_shard_and_only_the_files_of_the_catalogue(full_hub: HubStandIn, tmp_path: Path) -> None:
    fetch(full_hub, FOLDER, tmp_path)
    wanted = sorted(f"tiny-xl/{name}" for name in (*SHARDS, "model.safetensors.index.json", "config.json"))
    assert files_below(tmp_path) == wanted
    for name, content in SHARDS.items():
        assert (tmp_path / "tiny-xl" / name).read_bytes() == content


def test_progress_rises_to_the_total(full_hub: HubStandIn, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    downloads.download(FOLDER, tmp_path, lambda done, total: steps.append((done, total)), lambda: None, full_hub.url)
    done = [step[0] for step in steps]
    assert done == sorted(done)
    assert steps[-1][0] == steps[-1][1] == sum((tmp_path / name).stat().st_size for name in files_below(tmp_path))


@pytest.mark.parametrize("n_bytes", [downloads.CHUNK_BYTES, 2 * downloads.CHUNK_BYTES + 5])
def test_a_broken_transfer_goes_on_with_a_range(full_hub: HubStandIn, tmp_path: Path, n_bytes: int) -> None:
    full_hub.break_after = [n_bytes]
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    first, second = full_hub.fetches()
    assert "Range" not in first
    start = int(re.fullmatch(r"bytes=(\d+)-", second["Range"]).group(1))
    assert 0 < start <= n_bytes
    assert path.read_bytes() == WEIGHTS


def test_a_server_without_ranges_starts_over_and_the_file_is_whole(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.break_after, full_hub.honours_range = [2 * downloads.CHUNK_BYTES], False
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


def test_a_transfer_that_never_moves_gives_up_in_one_sentence(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.break_after = [0] * 10
    with pytest.raises(RuntimeError, match=r"tiny\.safetensors could not be downloaded"):
        fetch(full_hub, SINGLE, tmp_path)
    assert len(full_hub.fetches()) == downloads.MAX_IDLE_ATTEMPTS
    assert not (tmp_path / "tiny.safetensors").exists()


def test_cancelling_leaves_no_final_file_and_the_next_run_resumes(full_hub: HubStandIn, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        downloads.download(SINGLE, tmp_path, *cancel_after(2 * downloads.CHUNK_BYTES), full_hub.url)
    assert all(name.startswith(f"{downloads.STAGING}/") for name in files_below(tmp_path))
    n_staged = downloads.staged_bytes(SINGLE, tmp_path)
    assert n_staged >= 2 * downloads.CHUNK_BYTES
    assert not downloads.is_present(SINGLE, tmp_path)

    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert full_hub.fetches()[-1]["Range"] == f"bytes={n_staged}-"
    assert path.read_bytes() == WEIGHTS
    assert files_below(tmp_path) == ["tiny.safetensors"]


def test_a_part_of_an_older_version_is_dropped_not_continued(full_hub: HubStandIn, tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        downloads.download(SINGLE, tmp_path, *cancel_after(downloads.CHUNK_BYTES), full_hub.url)
    newer = WEIGHTS[::-1]
    full_hub.repos[SINGLE.repo_id][SINGLE.files[0]] = newer
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert "Range" not in full_hub.fetches()[-1]
    assert path.read_bytes() == newer
    assert files_below(tmp_path) == ["tiny.safetensors"]


def test_a_complete_checkpoint_costs_no_request(full_hub: HubStandIn, tmp_path: Path) -> None:
    expected = {checkpoint.name: fetch(full_hub, checkpoint, tmp_path) for checkpoint in (SINGLE, FOLDER)}
    full_hub.requests.clear()
    for checkpoint in (SINGLE, FOLDER):
        assert downloads.is_present(checkpoint, tmp_path)
        assert fetch(full_hub, checkpoint, tmp_path) == expected[checkpoint.name]
    assert full_hub.requests == []


def test_only_what_is_missing_or_cut_short_is_fetched_again(full_hub: HubStandIn, tmp_path: Path) -> None:
    fetch(full_hub, FOLDER, tmp_path)
    cut = tmp_path / "tiny-xl" / "model-00002-of-00002.safetensors"
    cut.write_bytes(cut.read_bytes()[:-1])
    (tmp_path / "tiny-xl" / "config.json").unlink()
    full_hub.requests.clear()
    fetch(full_hub, FOLDER, tmp_path)
    assert [path.rpartition("/")[2] for path, _ in full_hub.requests if "/resolve/" in path] == [
        cut.name,
        "config.json",
    ]
    assert cut.read_bytes() == SHARDS[cut.name]


def test_a_missing_shard_is_noticed_without_asking_the_hub(full_hub: HubStandIn, tmp_path: Path) -> None:
    fetch(full_hub, FOLDER, tmp_path)
    (tmp_path / "tiny-xl" / "model-00001-of-00002.safetensors").unlink()
    assert not downloads.is_present(FOLDER, tmp_path)


def test_offline_says_what_to_fetch_where_and_into_which_folder(hub: HubStandIn, tmp_path: Path) -> None:
    hub.server_close()  # nothing listens there any more
    with pytest.raises(RuntimeError) as caught:
        fetch(hub, SINGLE, tmp_path)
    sentence = str(caught.value)
    for needed in (f"{hub.url}/{SINGLE.repo_id}/tree/main", SINGLE.files[0], str(tmp_path), "browser"):
        assert needed in sentence
    assert "\n" not in sentence
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_refusing_hub_is_named_with_its_status(full_hub: HubStandIn, tmp_path: Path, status: int) -> None:
    full_hub.status = status
    with pytest.raises(RuntimeError, match=f"HTTP status {status}"):
        fetch(full_hub, SINGLE, tmp_path)


def test_a_file_the_repository_no_longer_has_is_named(full_hub: HubStandIn, tmp_path: Path) -> None:
    del full_hub.repos[FOLDER.repo_id]["config.json"]
    with pytest.raises(RuntimeError, match=r"stand-in/tiny-xl has no config\.json"):
        fetch(full_hub, FOLDER, tmp_path)
    assert files_below(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named_in_one_sentence(full_hub: HubStandIn, tmp_path: Path) -> None:
    blocker = tmp_path / "vae"
    blocker.write_text("a file where the folder should be")
    with pytest.raises(RuntimeError, match=r"tiny\.safetensors cannot be written to .*vae.*writable"):
        fetch(full_hub, SINGLE, blocker)
    assert blocker.read_text() == "a file where the folder should be"


def test_a_final_name_that_cannot_be_taken_keeps_the_bytes_for_the_next_run(
    full_hub: HubStandIn, tmp_path: Path
) -> None:
    final = tmp_path / "tiny.safetensors"
    final.mkdir()
    with pytest.raises(RuntimeError, match="cannot be written"):
        fetch(full_hub, SINGLE, tmp_path)
    assert downloads.staged_bytes(SINGLE, tmp_path) == len(WEIGHTS)
    final.rmdir()
    full_hub.requests.clear()
    fetch(full_hub, SINGLE, tmp_path)
    assert full_hub.fetches() == []
    assert final.read_bytes() == WEIGHTS


def test_a_disk_too_small_is_refused_before_the_first_byte(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.listed_sizes[SINGLE.files[0]] = 10**18
    with pytest.raises(RuntimeError, match=r"needs 1e\+09 GB more in .*: make room and run again"):
        fetch(full_hub, SINGLE, tmp_path)
    assert full_hub.fetches() == []


def test_a_file_longer_than_listed_never_gets_its_final_name(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.listed_sizes[SINGLE.files[0]] = len(WEIGHTS) - 1
    with pytest.raises(RuntimeError, match="where the hub lists"):
        fetch(full_hub, SINGLE, tmp_path)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "model-/../../../evil.safetensors",
        "../model-1.safetensors",
        "model-..\\..\\evil.safetensors",
        "deep/model-1.safetensors",
    ],
)
def test_a_name_that_leaves_its_folder_is_never_fetched(full_hub: HubStandIn, tmp_path: Path, name: str) -> None:
    full_hub.repos[FOLDER.repo_id][name] = b"evil"
    fetch(full_hub, FOLDER, tmp_path / "models")
    assert all(path.startswith("models/tiny-xl/") for path in files_below(tmp_path))
    assert len(files_below(tmp_path)) == len(SHARDS) + 2


def test_the_environment_chooses_the_hub_and_the_token_goes_no_further(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.redirects, full_hub.break_after = True, [downloads.CHUNK_BYTES]
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from acestep_core.checkpoints import catalogue, download
assert "huggingface_hub" not in sys.modules and "torch" not in sys.modules
checkpoint = catalogue.{SINGLE!r}
download.download(checkpoint, Path({str(tmp_path)!r}), lambda done, total: None, lambda: None)
"""
    environment = {**os.environ, "HF_ENDPOINT": full_hub.url, "HF_TOKEN": "hf_stand_in"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert (tmp_path / SINGLE.name).read_bytes() == WEIGHTS
    tokens = {"/cdn" in path: headers.get("Authorization") for path, headers in full_hub.requests}
    assert tokens == {False: "Bearer hf_stand_in", True: None}
    assert full_hub.fetches()[-1]["Range"] == f"bytes={downloads.CHUNK_BYTES}-"
