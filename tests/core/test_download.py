"""Downloads over real HTTP, against a stand-in for the Hugging Face Hub that can break off or refuse."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from huggingface_hub import constants

from acestep_pack.acestep_core.checkpoints import download as downloads
from acestep_pack.acestep_core.checkpoints.catalogue import Checkpoint
from hub import HubStandIn, hub_stand_in

ROOT = Path(__file__).resolve().parents[2]


class Cancelled(BaseException):
    """What a host raises to cancel; ComfyUI's own is no Exception either."""


CHUNK_BYTES = 64 * 1024


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStandIn]:
    # huggingface_hub takes 10 MB at a time, and waits a second before it connects again.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", CHUNK_BYTES)
    monkeypatch.setattr(time, "sleep", lambda _seconds, sleep=time.sleep: sleep(0.001))
    with hub_stand_in() as server:
        yield server


# Several chunks and a bit: a broken transfer must be able to stop between, and inside, chunks.
WEIGHTS = Random(1).randbytes(4 * CHUNK_BYTES + 123)
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
    return [each.path for each in fetched(hub, checkpoint, folder_dir)]


def fetched(hub: HubStandIn, checkpoint: Checkpoint, folder_dir: Path) -> list[downloads.Fetched]:
    return downloads.download(checkpoint, folder_dir, lambda _done, _total: None, lambda: None, hub.url)


def files_below(directory: Path) -> list[str]:
    """Return the files that a user sees."""
    paths = (path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in paths if downloads.STAGING not in path.parts)


def cancel(hub: HubStandIn, checkpoint: Checkpoint, folder_dir: Path, n_bytes: int) -> int:
    """Cancel once n_bytes have arrived, in whole chunks, from a hub that then stalls; return how many are kept."""
    hub.stall_after = n_bytes
    seen = [0]

    def on_progress(done: int, total: int) -> None:
        seen[0] = done

    def check_cancelled() -> None:
        if seen[0] >= n_bytes // CHUNK_BYTES * CHUNK_BYTES:
            raise Cancelled

    with pytest.raises(Cancelled):
        downloads.download(checkpoint, folder_dir, on_progress, check_cancelled, hub.url)
    hub.stall_after = None
    hub.go_on.set()
    return downloads.staged_bytes(checkpoint, folder_dir)


def test_a_single_file_lands_in_its_folder_and_nothing_else_does(full_hub: HubStandIn, tmp_path: Path) -> None:
    assert fetch(full_hub, SINGLE, tmp_path / "vae") == [tmp_path / "vae" / "tiny.safetensors"]
    assert files_below(tmp_path) == ["vae/tiny.safetensors"]
    assert (tmp_path / "vae" / "tiny.safetensors").read_bytes() == WEIGHTS


def test_a_folder_brings_every_shard_and_only_the_files_of_the_catalogue(full_hub: HubStandIn, tmp_path: Path) -> None:
    fetch(full_hub, FOLDER, tmp_path)
    wanted = sorted(f"tiny-xl/{name}" for name in (*SHARDS, "model.safetensors.index.json", "config.json"))
    assert files_below(tmp_path) == wanted
    for name, content in SHARDS.items():
        assert (tmp_path / "tiny-xl" / name).read_bytes() == content


@pytest.mark.parametrize("by_hand", [(), SHARDS], ids=["an empty folder", "shards put there by hand"])
def test_progress_rises_to_the_total(full_hub: HubStandIn, tmp_path: Path, by_hand: tuple[str, ...]) -> None:
    for name in by_hand:
        (tmp_path / "tiny-xl").mkdir(exist_ok=True)
        (tmp_path / "tiny-xl" / name).write_bytes(SHARDS[name])
    steps: list[tuple[int, int]] = []
    downloads.download(FOLDER, tmp_path, lambda done, total: steps.append((done, total)), lambda: None, full_hub.url)
    done = [step[0] for step in steps]
    assert done == sorted(done)
    n_bytes = sum((tmp_path / name).stat().st_size for name in files_below(tmp_path))
    assert steps[-1][0] == steps[-1][1] == 2 * n_bytes, "each byte counts when it arrives and when it is checked"


@pytest.mark.parametrize("n_bytes", [CHUNK_BYTES, 2 * CHUNK_BYTES + 5])
def test_a_broken_transfer_goes_on_with_a_range(full_hub: HubStandIn, tmp_path: Path, n_bytes: int) -> None:
    full_hub.break_after = [n_bytes]
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    first, second = full_hub.fetches()
    assert "Range" not in first
    start = int(re.fullmatch(r"bytes=(\d+)-", second["Range"]).group(1))
    assert 0 < start <= n_bytes
    assert path.read_bytes() == WEIGHTS


def test_a_server_without_ranges_starts_over_and_the_file_is_whole(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.break_after, full_hub.honours_range = [2 * CHUNK_BYTES], False
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


def test_a_transfer_that_never_moves_gives_up_in_one_sentence(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.break_after = [0] * 100
    with pytest.raises(RuntimeError, match=r"tiny\.safetensors could not be downloaded"):
        fetch(full_hub, SINGLE, tmp_path)
    assert downloads.MAX_IDLE_ATTEMPTS <= len(full_hub.fetches()) < 50
    assert not (tmp_path / "tiny.safetensors").exists()


def test_cancelling_leaves_no_final_file_and_the_next_run_resumes(full_hub: HubStandIn, tmp_path: Path) -> None:
    n_staged = cancel(full_hub, SINGLE, tmp_path, 2 * CHUNK_BYTES)
    assert n_staged == 2 * CHUNK_BYTES
    assert files_below(tmp_path) == []
    assert not downloads.is_present(SINGLE, tmp_path)

    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert full_hub.fetches()[-1]["Range"] == f"bytes={n_staged}-"
    assert path.read_bytes() == WEIGHTS
    assert files_below(tmp_path) == ["tiny.safetensors"]


def test_a_part_of_an_older_version_is_dropped_not_continued(full_hub: HubStandIn, tmp_path: Path) -> None:
    assert cancel(full_hub, SINGLE, tmp_path, CHUNK_BYTES) == CHUNK_BYTES
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


# Hubs, networks and disks that alter bytes: a final name only ever holds the right ones.


def test_a_server_that_sends_on_and_on_is_stopped_at_the_listed_size(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.is_endless = True
    with pytest.raises(RuntimeError, match=r"tiny\.safetensors sends more where the hub lists 262,267 bytes") as caught:
        fetch(full_hub, SINGLE, tmp_path)
    assert "\n" not in str(caught.value)
    assert downloads.staged_bytes(SINGLE, tmp_path) == 0
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("where", ["api", "HEAD", "GET"])
def test_a_login_page_is_refused_and_never_resumed_upon(full_hub: HubStandIn, tmp_path: Path, where: str) -> None:
    n_staged = cancel(full_hub, SINGLE, tmp_path, 2 * CHUNK_BYTES) if where != "GET" else 0
    full_hub.pages = {where}
    with pytest.raises(RuntimeError, match=r"could not be downloaded|log in to the network") as caught:
        fetch(full_hub, SINGLE, tmp_path)
    assert "\n" not in str(caught.value)
    assert downloads.staged_bytes(SINGLE, tmp_path) == n_staged, "what had arrived before is kept, no page is"
    full_hub.pages = set()
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


def flipped(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("position", [0, CHUNK_BYTES, len(WEIGHTS) - 1])
def test_a_file_altered_on_the_way_is_refused_and_the_next_run_is_whole(
    full_hub: HubStandIn, tmp_path: Path, position: int
) -> None:
    full_hub.served = {SINGLE.files[0]: flipped(WEIGHTS, position)}
    with pytest.raises(RuntimeError, match=r"tiny\.safetensors arrived with another checksum than the hub lists"):
        fetch(full_hub, SINGLE, tmp_path)
    assert files_below(tmp_path) == []
    full_hub.served = {}
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


def test_a_small_file_is_compared_with_what_git_knows_it_by(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.served = {"config.json": b'{"hidden_size": 65}'}
    with pytest.raises(RuntimeError, match=r"config\.json arrived with another checksum"):
        fetch(full_hub, FOLDER, tmp_path)
    assert "tiny-xl/config.json" not in files_below(tmp_path)


@pytest.mark.parametrize("position", [0, CHUNK_BYTES, 2 * CHUNK_BYTES - 1])
def test_a_beginning_that_was_altered_on_disk_is_fetched_again(
    full_hub: HubStandIn, tmp_path: Path, position: int
) -> None:
    cancel(full_hub, SINGLE, tmp_path, 2 * CHUNK_BYTES)
    (part,) = tmp_path.rglob("*.part")
    part.write_bytes(flipped(part.read_bytes(), position))
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("n_bytes", [0, 1, len(WEIGHTS) - 1])
def test_a_file_that_is_sent_short_is_refused(full_hub: HubStandIn, tmp_path: Path, n_bytes: int) -> None:
    full_hub.served = {SINGLE.files[0]: WEIGHTS[:n_bytes]}
    with pytest.raises(RuntimeError, match=r"tiny\.safetensors sent .* where the hub lists 262,267 bytes: log in"):
        fetch(full_hub, SINGLE, tmp_path)
    assert files_below(tmp_path) == []
    full_hub.served = {}
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("shift", [-5, 5])
def test_a_rest_that_begins_elsewhere_than_asked_ends_in_the_right_file(
    full_hub: HubStandIn, tmp_path: Path, shift: int
) -> None:
    cancel(full_hub, SINGLE, tmp_path, 2 * CHUNK_BYTES)
    full_hub.range_shift = shift
    try:
        (path,) = fetch(full_hub, SINGLE, tmp_path)
    except RuntimeError as refused:
        assert "where the hub lists" in str(refused)  # noqa: PT017
        assert files_below(tmp_path) == []
        full_hub.range_shift = 0
        (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


def test_a_server_that_fails_for_a_while_is_asked_again(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.statuses = [503, 500]
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_file_that_is_refused_is_named_with_the_status(full_hub: HubStandIn, tmp_path: Path, status: int) -> None:
    full_hub.statuses = [status] * 100
    with pytest.raises(RuntimeError, match=f"HTTP status {status}"):
        fetch(full_hub, SINGLE, tmp_path)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_connection_cut_anywhere_and_often_ends_in_the_right_file(
    full_hub: HubStandIn, tmp_path: Path, seed: int
) -> None:
    random = Random(seed)
    full_hub.redirects = bool(seed % 2)
    full_hub.honours_range = seed % 3 > 0
    full_hub.break_after = [random.randrange(2 * CHUNK_BYTES) for _ in range(random.randrange(1, 9))]
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert path.read_bytes() == WEIGHTS


def test_a_stalled_connection_can_be_cancelled(full_hub: HubStandIn, tmp_path: Path) -> None:
    asked = []

    def check_cancelled() -> None:
        asked.append(None)
        if len(asked) > 10:
            raise Cancelled

    full_hub.stall_after = CHUNK_BYTES
    with pytest.raises(Cancelled):
        downloads.download(SINGLE, tmp_path, lambda _done, _total: None, check_cancelled, full_hub.url)


@pytest.mark.parametrize("is_noted", [True, False], ids=["downloaded here", "put there by hand"])
def test_a_file_that_was_damaged_later_is_told_and_fetched_again(
    full_hub: HubStandIn, tmp_path: Path, is_noted: bool
) -> None:
    path = tmp_path / SINGLE.name
    if is_noted:
        assert fetched(full_hub, SINGLE, tmp_path) == [downloads.Fetched(path, downloads.DOWNLOADED)]
    path.write_bytes(flipped(WEIGHTS, 7))
    os.utime(path, (1, 1))
    assert downloads.is_present(SINGLE, tmp_path), "it has the right size"
    assert fetched(full_hub, SINGLE, tmp_path) == [downloads.Fetched(path, downloads.KEPT)]
    assert path.read_bytes() == WEIGHTS
    # It may have been somebody's own.
    assert path.with_name(f"{path.name}.old").read_bytes() == flipped(WEIGHTS, 7)
    assert fetched(full_hub, SINGLE, tmp_path) == [downloads.Fetched(path, downloads.PRESENT)]


def test_a_file_put_there_by_hand_is_read_once_and_not_fetched(full_hub: HubStandIn, tmp_path: Path) -> None:
    path = tmp_path / SINGLE.name
    path.write_bytes(WEIGHTS)
    for n_requests in (1, 1):
        assert fetched(full_hub, SINGLE, tmp_path) == [downloads.Fetched(path, downloads.PRESENT)]
        assert len(full_hub.requests) == n_requests
    assert full_hub.fetches() == []


def test_a_complete_file_can_be_used_without_the_hub(hub: HubStandIn, tmp_path: Path) -> None:
    path = tmp_path / SINGLE.name
    path.write_bytes(WEIGHTS)
    hub.server_close()
    assert fetched(hub, SINGLE, tmp_path) == [downloads.Fetched(path, downloads.UNCHECKED)]


def test_a_complete_file_in_a_folder_that_cannot_be_written_to_is_left_alone(
    full_hub: HubStandIn, tmp_path: Path
) -> None:
    path = tmp_path / SINGLE.name
    path.write_bytes(WEIGHTS)
    (tmp_path / downloads.STAGING).touch()  # in the way
    assert fetched(full_hub, SINGLE, tmp_path) == [downloads.Fetched(path, downloads.UNCHECKED)]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"tiny.safetensors": 3}', '{"tiny.safetensors": []}', "[" * 9999])
def test_notes_that_were_damaged_cost_a_look_and_nothing_else(
    full_hub: HubStandIn, tmp_path: Path, content: str
) -> None:
    fetch(full_hub, SINGLE, tmp_path)
    downloads.Download(SINGLE, tmp_path).notes_file.write_text(content)
    full_hub.requests.clear()
    fetch(full_hub, SINGLE, tmp_path)
    assert full_hub.fetches() == []


@pytest.mark.parametrize("listed", [{"size": 0}, {"size": None}, {"blobId": None, "lfs": None}, {"blobId": "../x"}])
def test_a_listing_that_does_not_say_what_is_right_is_refused(
    full_hub: HubStandIn, tmp_path: Path, listed: dict
) -> None:
    full_hub.listing = {"config.json": listed}
    with pytest.raises(RuntimeError, match=r"the hub lists no size or no checksum for config\.json"):
        fetch(full_hub, FOLDER, tmp_path)
    assert files_below(tmp_path) == []


def in_another_program(
    hub: HubStandIn, folder_dir: Path, environment: dict[str, str] | None = None
) -> subprocess.Popen[str]:
    """Start a download in a program of its own, which prints what became of each file."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = {CHUNK_BYTES}
from acestep_core.checkpoints import catalogue, download
args = catalogue.{SINGLE!r}, Path({str(folder_dir)!r}), lambda done, total: None, lambda: None, {hub.url!r}
print([each.state for each in download.download(*args)])
"""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], text=True, env=environment, **pipes)


def test_programs_that_download_at_once_end_in_one_right_file(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.stall_after = 2 * CHUNK_BYTES  # so that all have begun before one has ended
    running = [in_another_program(full_hub, tmp_path) for _ in range(3)]
    deadline = time.monotonic() + 60
    while sum("/api/" in path for path, _ in full_hub.requests) < 3 and time.monotonic() < deadline:
        threading.Event().wait(0.05)
    full_hub.go_on.set()
    told = sorted(each.communicate(timeout=60)[0].strip() for each in running)
    assert told == ["['already there']"] * 2 + ["['downloaded']"]
    assert (tmp_path / SINGLE.name).read_bytes() == WEIGHTS
    assert len(full_hub.fetches()) == 1


def test_a_download_whose_program_is_killed_goes_on_in_the_next(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.stall_after = 2 * CHUNK_BYTES
    running = in_another_program(full_hub, tmp_path)
    deadline = time.monotonic() + 60
    while downloads.staged_bytes(SINGLE, tmp_path) < 2 * CHUNK_BYTES and time.monotonic() < deadline:
        threading.Event().wait(0.02)
    running.kill()
    running.communicate()
    assert files_below(tmp_path) == []
    full_hub.go_on.set()
    (path,) = fetch(full_hub, SINGLE, tmp_path)
    assert full_hub.fetches()[-1]["Range"] == f"bytes={2 * CHUNK_BYTES}-"
    assert path.read_bytes() == WEIGHTS


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


def test_a_user_who_wants_no_network_gets_one_sentence(full_hub: HubStandIn, tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    running = in_another_program(full_hub, tmp_path, environment=environment)
    assert running.wait(timeout=60) != 0
    assert "tiny.safetensors could not be downloaded (OfflineModeIsEnabled)" in running.communicate()[1]
    assert full_hub.requests == []


def test_the_environment_chooses_the_hub_and_the_token_goes_no_further(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.redirects, full_hub.break_after = True, [CHUNK_BYTES]
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from acestep_core.checkpoints import catalogue, download
assert "huggingface_hub" not in sys.modules and "torch" not in sys.modules
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = {CHUNK_BYTES}
checkpoint = catalogue.{SINGLE!r}
download.download(checkpoint, Path({str(tmp_path)!r}), lambda done, total: None, lambda: None)
"""
    environment = {**os.environ, "HF_ENDPOINT": full_hub.url, "HF_TOKEN": "hf_stand_in"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True, timeout=60)
    assert (tmp_path / SINGLE.name).read_bytes() == WEIGHTS
    tokens = {"/cdn" in path: headers.get("Authorization") for path, headers in full_hub.requests}
    assert tokens == {False: "Bearer hf_stand_in", True: None}
    assert full_hub.fetches()[-1]["Range"] == f"bytes={CHUNK_BYTES}-"
