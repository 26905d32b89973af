"""Fetch published checkpoints from the Hugging Face Hub: resumable, cancellable, never a wrong byte under a final name.

The host passes the folder, a progress callback and a callback that raises to cancel. Bytes gather in a hidden
`.download/` beside the destination, one download at a time. A file gets its final name only when its checksum is the
one that the hub lists; what was found right is noted in `.download/`, so that it is not read again.

Every request is huggingface_hub's, with its settings: HF_ENDPOINT, HF_HUB_OFFLINE, HF_HUB_DOWNLOAD_TIMEOUT, the user's
token, proxies. Of its functions this uses http_get, which resumes; hf_hub_download throws away what has arrived when a
transfer breaks off or its program ends (huggingface_hub#4228).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO, cast

from filelock import Timeout

from ..atomic_write import write_text
from .catalogue import APPROXIMATION, Checkpoint, human_size

STAGING = ".download"
READ_BYTES = 8 * 1024 * 1024  # at a time, for a checksum
CONNECT_TIMEOUT_S = 10.0
POLL_S = 0.1  # between two looks at a transfer, or at the lock of another one
MAX_IDLE_ATTEMPTS = 6  # in a row, without one new byte; http_get may make several in each
MAX_PAUSE_S = 2.0  # between two of them
RANGE_REFUSED = 416  # HTTP status
SERVER_FAILED = 500  # and above
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

# What became of a file, for the user.
PRESENT = "already there"
UNCHECKED = "already there, though not compared with the hub (offline, or the folder is read-only)"
DOWNLOADED = "downloaded"
KEPT = "downloaded again, as the file held other bytes; it is still there, with .old behind its name"

OnProgress = Callable[[int, int], None]  # bytes so far, bytes in total
CheckCancelled = Callable[[], None]  # raises the host's exception when the user has cancelled


@dataclass(frozen=True)
class Fetched:
    """A file of a checkpoint that is complete, and what became of it: PRESENT, DOWNLOADED, …"""

    path: Path
    state: str


@dataclass(frozen=True)
class Transfer:
    """One file to download, and what the hub lists of it.

    checksum: SHA-256 of a large file (64 hexadecimal digits), or the SHA-1 that git knows a small one by (40).
    part: the partial file; its name holds the checksum, so a file that changed upstream starts afresh.
    """

    url: str
    commit: str
    size_bytes: int
    checksum: str
    part: Path
    final: Path

    @property
    def has_size(self) -> bool:
        return self.final.is_file() and self.final.stat().st_size == self.size_bytes

    @property
    def n_staged(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0


@dataclass(frozen=True)
class Download:
    """A checkpoint, where it goes, and where it comes from."""

    checkpoint: Checkpoint
    folder_dir: Path  # ComfyUI's folder of the category
    endpoint: str | None = None  # None = the hub's own (HF_ENDPOINT)

    @property
    def target_dir(self) -> Path:
        """Return the folder that will hold the files."""
        return self.folder_dir / self.checkpoint.name if self.checkpoint.is_folder else self.folder_dir

    @property
    def staging_dir(self) -> Path:
        """Return the folder where bytes gather."""
        return self.folder_dir / STAGING / self.checkpoint.name

    @property
    def notes_file(self) -> Path:
        """Return the file that tells which files were found right, and when those were written."""
        return self.staging_dir / "checked.json"

    @property
    def page(self) -> str:
        """Return the address where a browser shows the files."""
        from huggingface_hub import HfApi

        return f"{HfApi(endpoint=self.endpoint).endpoint}/{self.checkpoint.repo_id}/tree/main"


def download(
    checkpoint: Checkpoint,
    folder_dir: Path,
    on_progress: OnProgress,
    check_cancelled: CheckCancelled,
    endpoint: str | None = None,
) -> list[Fetched]:
    """Return the checkpoint's files under folder_dir, fetching those that are missing or not as the hub lists them.

    folder_dir is ComfyUI's folder of the category; endpoint defaults to the hub's own (HF_ENDPOINT). Progress counts
    each byte twice: when it arrives, and when it is read again for the checksum.
    A checkpoint that was found complete before costs no request; one that came another way is read once.

    Raises: RuntimeError, one sentence, when the hub cannot be reached, has no such file or other bytes than it lists,
    or the disk refuses.
    """
    wanted = Download(checkpoint, folder_dir, endpoint)
    present = is_present(checkpoint, folder_dir)
    files, notes = local_files(checkpoint, folder_dir), _noted(wanted)
    if present and all(notes.get(path.name, [""])[1:] == _stamp(path) for path in files):
        return [Fetched(path, PRESENT) for path in files]
    try:
        transfers = _plan(wanted)
    except RuntimeError:
        if not present:
            raise
        return [Fetched(path, UNCHECKED) for path in files]
    with _explained(wanted):
        try:
            wanted.staging_dir.mkdir(parents=True, exist_ok=True)
            wanted.target_dir.mkdir(parents=True, exist_ok=True)
        except OSError:
            if not present:
                raise
            return [Fetched(path, UNCHECKED) for path in files]
        with _alone(wanted, check_cancelled):
            progress = _Progress(2 * sum(each.size_bytes for each in transfers), on_progress, check_cancelled)
            return _in_turn(wanted, transfers, progress)


def local_files(checkpoint: Checkpoint, folder_dir: Path) -> list[Path]:
    """Return the files of the checkpoint that lie under folder_dir, complete or not."""
    directory = Download(checkpoint, folder_dir).target_dir
    names = [PurePosixPath(file).name for file in checkpoint.files]
    return [path for name in names for path in sorted(directory.glob(name)) if path.is_file()]


def is_present(checkpoint: Checkpoint, folder_dir: Path) -> bool:
    """Say, from disk alone, whether every file is there and the weights have the catalogue's size."""
    files = local_files(checkpoint, folder_dir)
    if any(not _covers(files, PurePosixPath(pattern).name) for pattern in checkpoint.files):
        return False
    n_bytes = sum(path.stat().st_size for path in files if path.suffix == ".safetensors")
    tolerance = 0.0 if checkpoint.size_is_exact else APPROXIMATION
    return abs(n_bytes - checkpoint.size_bytes) <= tolerance * checkpoint.size_bytes


def staged_bytes(checkpoint: Checkpoint, folder_dir: Path) -> int:
    """Return how many bytes of an unfinished download can be resumed."""
    return sum(part.stat().st_size for part in Download(checkpoint, folder_dir).staging_dir.glob("*.part"))


@dataclass
class _Progress:
    """How far all files together are, shown and open to cancelling each time it is told."""

    total: int
    on_progress: OnProgress
    check_cancelled: CheckCancelled
    before: int = 0  # of the files that are done

    def at(self, n_done: int) -> None:
        self.on_progress(min(self.before + n_done, self.total), self.total)
        self.check_cancelled()

    def add(self, transfer: Transfer) -> None:
        """Count a file as done."""
        self.before += 2 * transfer.size_bytes
        self.at(0)

    def after(self, n_done: int) -> Callable[[int], None]:
        """Return what shows n bytes more than n_done, for any n."""
        return lambda n_more: self.at(n_done + n_more)


def _in_turn(wanted: Download, transfers: list[Transfer], progress: _Progress) -> list[Fetched]:
    """Complete one file after the other."""
    notes = _noted(wanted)
    states = {each.final: _state(each, notes, progress) for each in transfers}
    _require_space(wanted.checkpoint, [each for each in transfers if states[each.final] != PRESENT])
    for each in transfers:
        if states[each.final] != PRESENT:
            _fetch(each, wanted, progress)
            progress.add(each)
        notes[each.final.name] = [each.checksum, *_stamp(each.final)]
        write_text(json.dumps(notes, indent=1), wanted.notes_file)
    return [Fetched(path, state) for path, state in states.items()]


def _state(transfer: Transfer, notes: dict[str, list[Any]], progress: _Progress) -> str:
    """Return PRESENT for a file that is there and right, else what it will have been when it is fetched."""
    if not transfer.final.is_file():
        return DOWNLOADED
    if not transfer.has_size:
        return KEPT
    is_noted = notes.get(transfer.final.name) == [transfer.checksum, *_stamp(transfer.final)]
    if not is_noted and not _is_right(transfer, transfer.final, progress.after(transfer.size_bytes)):
        return KEPT
    progress.add(transfer)
    return PRESENT


def _stamp(path: Path) -> list[Any]:
    """Return size and time of a file, which change when it is written to."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _noted(wanted: Download) -> dict[str, list[Any]]:
    """Return [checksum, *stamp] of each file that was found right, by name."""
    try:
        notes = json.loads(wanted.notes_file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # none yet, or damaged: files are read again
        return {}
    return {name: note for name, note in notes.items() if isinstance(note, list)} if isinstance(notes, dict) else {}


@contextmanager
def _alone(wanted: Download, check_cancelled: CheckCancelled) -> Iterator[None]:
    """Wait until no other program downloads this checkpoint into this folder, and let none begin meanwhile."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

    with ExitStack() as held:
        while True:
            check_cancelled()
            try:
                held.enter_context(WeakFileLock(wanted.staging_dir / "lock", timeout=POLL_S))
                break
            except Timeout:
                continue
        yield


def _covers(files: list[Path], pattern: str) -> bool:
    """Say whether a file, or every shard of a numbered set (`-00001-of-00004`), matches pattern."""
    matches = [path.name for path in files if fnmatchcase(path.name, pattern)]
    shard = _SHARD.search(matches[0]) if matches else None
    return len(matches) == int(shard.group(1)) if shard else bool(matches)


def _plan(wanted: Download) -> list[Transfer]:
    """Return one transfer per file, all of the same commit, in the catalogue's order."""
    # Imported here: it is slow, and it reads HF_ENDPOINT once, at import.
    from huggingface_hub import HfApi, hf_hub_url

    api, repo_id = HfApi(endpoint=wanted.endpoint), wanted.checkpoint.repo_id
    try:
        info = api.model_info(repo_id, files_metadata=True, timeout=CONNECT_TIMEOUT_S)
    except _unreachable() as error:
        raise RuntimeError(_offline_sentence(wanted, error)) from error

    transfers = []
    for pattern in wanted.checkpoint.files:
        listed = [file for file in info.siblings or () if _matches(file.rfilename, pattern)]
        if not listed:
            raise RuntimeError(
                f"{repo_id} has no {pattern}: its files were renamed, "
                f"look at {wanted.page} and save what replaces it into {wanted.target_dir}"
            )
        for file in sorted(listed, key=lambda file: file.rfilename):
            name = PurePosixPath(file.rfilename).name
            checksum = (file.lfs.sha256 if file.lfs else file.blob_id) or ""
            if not file.size or not _CHECKSUM.fullmatch(checksum):
                raise RuntimeError(
                    f"the hub lists no size or no checksum for {name}, so nobody can tell whether it arrives "
                    f"whole: run again later, or look at {wanted.page}"
                )
            transfers.append(
                Transfer(
                    url=hf_hub_url(repo_id, file.rfilename, revision=info.sha, endpoint=api.endpoint),
                    commit=info.sha or "",
                    size_bytes=file.size,
                    checksum=checksum,
                    part=wanted.staging_dir / f"{name}.{checksum[:12]}.part",
                    final=wanted.target_dir / name,
                )
            )
    return transfers


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a path in a repository matches a pattern; a name that leaves its folder never does."""
    file, wanted = PurePosixPath(path), PurePosixPath(pattern)
    is_plain = file.name == PureWindowsPath(file.name).name
    return is_plain and file.parent == wanted.parent and fnmatchcase(file.name, wanted.name)


def _unreachable() -> tuple[type[BaseException], ...]:
    """Return what huggingface_hub raises where the hub does not answer as it should.

    The library uses requests (0.x), httpx (1.x) or httpx2 (2.x), whose errors need not be OSErrors; the base class of
    its own error is the base of theirs. A ValueError means a login page where JSON was expected.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, *HfHubHTTPError.__bases__)


def _require_space(checkpoint: Checkpoint, transfers: list[Transfer]) -> None:
    missing_bytes = sum(each.size_bytes - each.n_staged for each in transfers)
    if transfers and missing_bytes > (free_bytes := shutil.disk_usage(transfers[0].final.parent).free):
        raise RuntimeError(
            f"{checkpoint.name} needs {human_size(missing_bytes)} more in {transfers[0].final.parent}, "
            f"where {human_size(free_bytes)} are free: make room and run again"
        )


def _fetch(transfer: Transfer, wanted: Download, progress: _Progress) -> None:
    """Receive what is missing of a file and give it its final name, if it is the file that the hub lists.

    Where bytes of an earlier run were wrong, everything is fetched once more.
    """
    _remove_outdated_parts(transfer)
    for _ in range(2 if transfer.n_staged else 1):
        _receive(transfer, wanted, progress)
        if _is_right(transfer, transfer.part, progress.after(transfer.size_bytes)):
            _keep(transfer)
            os.replace(transfer.part, transfer.final)
            return
        transfer.part.unlink()
    raise RuntimeError(
        f"{transfer.final.name} arrived with another checksum than the hub lists: run again, and if it repeats, "
        "a proxy or a virus scanner is altering the file"
    )


def _keep(transfer: Transfer) -> None:
    """Put a file of other bytes aside: it may be a user's own, a merge under the official name."""
    if transfer.final.is_file():
        os.replace(transfer.final, transfer.final.with_name(f"{transfer.final.name}.old"))


def _is_right(transfer: Transfer, path: Path, on_bytes: Callable[[int], None]) -> bool:
    """Tell whether a file has the checksum that the hub lists. on_bytes is told how many bytes were read."""
    if len(transfer.checksum) == hashlib.sha256().digest_size * 2:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % transfer.size_bytes, usedforsecurity=False)  # as git does
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            on_bytes(file.tell())
    return digest.hexdigest() == transfer.checksum


def _receive(transfer: Transfer, wanted: Download, progress: _Progress) -> None:
    """Complete transfer.part from the bytes it already has, reconnecting as often as needed."""
    failures: tuple[type[BaseException], ...] = (_AnotherFile, *_unreachable())
    n_idle = 0
    while (n_before := transfer.n_staged) < transfer.size_bytes:
        progress.at(n_before)
        try:
            _require_hub(transfer)
            _connect(transfer, wanted, progress)
        except _Refused:
            transfer.part.unlink()
            if n_before == 0 or n_idle >= MAX_IDLE_ATTEMPTS:
                raise
            n_idle += 1  # the server may have sent the whole file where the rest was asked for
        except failures as error:
            status = _status(error)
            if status == RANGE_REFUSED:
                transfer.part.unlink(missing_ok=True)
            elif status is not None and status < SERVER_FAILED:
                raise
            n_idle = 0 if transfer.n_staged > n_before else n_idle + 1
            if n_idle >= MAX_IDLE_ATTEMPTS:
                raise
            time.sleep(min(n_idle, MAX_PAUSE_S))


def _connect(transfer: Transfer, wanted: Download, progress: _Progress) -> None:
    """Append to transfer.part what the hub sends."""
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    with transfer.part.open("ab") as file:
        sink = _Sink(file, transfer, wanted)
        fetch = partial(
            http_get,
            transfer.url,
            cast(BinaryIO, sink),
            resume_size=sink.start,
            headers={**build_hf_headers(), "Accept-Encoding": "identity"},  # compressed bytes cannot be resumed
            expected_size=transfer.size_bytes,
            displayed_filename=transfer.final.name,
        )
        try:
            _watched(fetch, lambda: progress.at(sink.n_bytes))
        except OSError as error:
            if type(error) is not OSError or error.errno is not None:
                raise
            # http_get's own complaint: the answer ended, with another size. None of it is kept.
            file.truncate(sink.start)
            raise _AnotherFile(_another_file(transfer, f"sent {sink.n_bytes:,} bytes")) from error


class _AnotherFile(RuntimeError):
    """What arrived is not the file: a login page, or what a proxy gave up on."""


class _Refused(RuntimeError):
    """What arrives cannot be the file."""


class _Sink:
    """The partial file as http_get writes it: never longer than listed, and errors of the disk told from the net's."""

    def __init__(self, file: BinaryIO, transfer: Transfer, wanted: Download) -> None:
        self.file, self.transfer, self.wanted = file, transfer, wanted
        self.start = self.n_bytes = file.tell()

    def write(self, chunk: bytes) -> int:
        if self.n_bytes + len(chunk) > self.transfer.size_bytes:
            raise _Refused(_another_file(self.transfer, "sends more"))
        try:
            self.file.write(chunk)
            self.file.flush()  # so that a full disk is noticed here
        except OSError as error:
            raise RuntimeError(_disk_sentence(self.wanted, error)) from error
        self.n_bytes += len(chunk)
        return len(chunk)

    def tell(self) -> int:
        return self.n_bytes

    def seek(self, position: int) -> int:
        """Go back, as http_get does when a server sends the whole file where the rest was asked for."""
        self.n_bytes = self.start = self.file.seek(position)
        return position

    def truncate(self) -> int:
        return self.file.truncate()


def _watched(work: Callable[[], None], look: Callable[[], None]) -> None:
    """Do work in a thread and look every POLL_S; raise what work raises, or at once what look raises.

    So a connection that sends nothing can be cancelled. The thread then ends by itself: its file is closed.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        look()
    if errors:
        raise errors[0]


def _require_hub(transfer: Transfer) -> None:
    """Raise RuntimeError where something else than the hub answers for it, before it can spoil what has arrived."""
    from huggingface_hub import get_hf_file_metadata

    found = get_hf_file_metadata(transfer.url, timeout=CONNECT_TIMEOUT_S)
    if found.commit_hash != transfer.commit or found.size not in (None, transfer.size_bytes):
        size = "another file" if found.size is None else f"{found.size:,} bytes"
        raise RuntimeError(_another_file(transfer, f"offers {size}"))


@contextmanager
def _explained(wanted: Download) -> Iterator[None]:
    """Turn errors of the network and the disk into one sentence that says what to do."""
    try:
        yield
    except RuntimeError:
        raise
    except _unreachable() as error:
        is_of_the_disk = isinstance(error, OSError) and error.errno is not None and error.filename is not None
        raise RuntimeError((_disk_sentence if is_of_the_disk else _offline_sentence)(wanted, error)) from error


def _disk_sentence(wanted: Download, error: BaseException) -> str:
    return (
        f"{wanted.checkpoint.name} cannot be written to {wanted.target_dir} "
        f"({getattr(error, 'strerror', None) or error}): free some space or make the folder writable and run again, "
        "the download goes on where it stopped"
    )


def _another_file(transfer: Transfer, what: str) -> str:
    return (
        f"{transfer.url} {what} where the hub lists {transfer.size_bytes:,} bytes: log in to the network if it "
        "asks for that, and run again; if it repeats, a proxy is altering the file"
    )


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error is about."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _offline_sentence(wanted: Download, error: BaseException) -> str:
    status = _status(error)
    cause = f"HTTP status {status}" if status else type(error).__name__
    return (
        f"{wanted.checkpoint.name} could not be downloaded ({cause}): run again when you are online, which goes on "
        f"where it stopped, or open {wanted.page} in a browser and save "
        f"{', '.join(wanted.checkpoint.files)} into {wanted.target_dir}"
    )


def _remove_outdated_parts(transfer: Transfer) -> None:
    if transfer.n_staged > transfer.size_bytes:
        transfer.part.unlink()
    for part in transfer.part.parent.glob(f"{transfer.final.name}.*.part"):
        if part != transfer.part:
            part.unlink()
