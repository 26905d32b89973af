"""Fetch published checkpoints from the Hugging Face Hub: resumable, cancellable, never half a file.

The host passes the folder, a progress callback and a callback that raises to cancel. Bytes gather in a hidden
`.download/` beside the destination; a file gets its final name only when the size is right.

huggingface_hub supplies addresses, sizes and the user's token (HF_ENDPOINT and HF_TOKEN apply); the bytes come by
plain HTTP. Its own hf_hub_download deletes the partial file when a transfer breaks off (huggingface_hub#4228), so it
cannot resume, and it cannot be cancelled between two chunks.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath, PureWindowsPath

import requests

from .catalogue import APPROXIMATION, Checkpoint, human_size

STAGING = ".download"
CHUNK_BYTES = 256 * 1024  # between two checks for cancellation
CONNECT_TIMEOUT_S = 10.0
READ_TIMEOUT_S = 60.0
MAX_IDLE_ATTEMPTS = 3  # in a row, without one new byte
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.safetensors$")

OnProgress = Callable[[int, int], None]  # bytes so far, bytes in total
CheckCancelled = Callable[[], None]  # raises the host's exception when the user has cancelled


@dataclass(frozen=True)
class Transfer:
    """One file to download."""

    url: str
    size_bytes: int  # as the hub lists it
    part: Path  # the partial file; its name holds the content's id, so a file that changed upstream starts afresh
    final: Path

    @property
    def is_done(self) -> bool:
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
) -> list[Path]:
    """Return the checkpoint's files under folder_dir, fetching those that are missing or of a wrong size.

    folder_dir is ComfyUI's folder of the category; endpoint defaults to the hub's own (HF_ENDPOINT).
    A checkpoint that is already complete costs no request.

    Raises: RuntimeError, one sentence, when the hub cannot be reached, has no such file, or the disk refuses.
    """
    if is_present(checkpoint, folder_dir):
        return local_files(checkpoint, folder_dir)
    wanted = Download(checkpoint, folder_dir, endpoint)
    transfers = _plan(wanted)
    with _explained(wanted):
        wanted.staging_dir.mkdir(parents=True, exist_ok=True)
        wanted.target_dir.mkdir(parents=True, exist_ok=True)
        _require_space(checkpoint, transfers)
        total_bytes = sum(transfer.size_bytes for transfer in transfers)
        before_bytes = 0
        for transfer in transfers:
            if not transfer.is_done:
                _fetch(transfer, before_bytes, total_bytes, on_progress, check_cancelled)
                os.replace(transfer.part, transfer.final)
            before_bytes += transfer.size_bytes
            on_progress(before_bytes, total_bytes)
    _remove_if_empty(wanted.staging_dir)
    return [transfer.final for transfer in transfers]


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


def _covers(files: list[Path], pattern: str) -> bool:
    """Say whether a file, or every shard of a numbered set (`-00001-of-00004`), matches pattern."""
    matches = [path.name for path in files if fnmatchcase(path.name, pattern)]
    shard = _SHARD.search(matches[0]) if matches else None
    return len(matches) == int(shard.group(1)) if shard else bool(matches)


def _plan(wanted: Download) -> list[Transfer]:
    """Return one transfer per file, all of the same commit, in the catalogue's order."""
    # Imported here: it is slow, and it reads HF_ENDPOINT once, at import.
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    # The library uses requests (0.x), httpx (1.x) or httpx2 (2.x), whose errors need not be OSErrors; the base class of
    # its own error is the base of theirs. A ValueError means a login page where JSON was expected.
    unreachable: tuple[type[BaseException], ...] = (OSError, ValueError, *HfHubHTTPError.__bases__)
    api, repo_id = HfApi(endpoint=wanted.endpoint), wanted.checkpoint.repo_id
    try:
        info = api.model_info(repo_id, files_metadata=True, timeout=CONNECT_TIMEOUT_S)
    except unreachable as error:
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
            transfers.append(
                Transfer(
                    url=hf_hub_url(repo_id, file.rfilename, revision=info.sha, endpoint=api.endpoint),
                    size_bytes=file.size or 0,
                    part=wanted.staging_dir / f"{name}.{(file.blob_id or 'unknown')[:12]}.part",
                    final=wanted.target_dir / name,
                )
            )
    return transfers


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a path in a repository matches a pattern; a name that leaves its folder never does."""
    file, wanted = PurePosixPath(path), PurePosixPath(pattern)
    is_plain = file.name == PureWindowsPath(file.name).name
    return is_plain and file.parent == wanted.parent and fnmatchcase(file.name, wanted.name)


def _require_space(checkpoint: Checkpoint, transfers: list[Transfer]) -> None:
    missing_bytes = sum(t.size_bytes - t.n_staged for t in transfers if not t.is_done)
    directory = transfers[0].final.parent
    free_bytes = shutil.disk_usage(directory).free
    if missing_bytes > free_bytes:
        raise RuntimeError(
            f"{checkpoint.name} needs {human_size(missing_bytes)} more in {directory}, "
            f"where {human_size(free_bytes)} are free: make room and run again"
        )


def _fetch(
    transfer: Transfer,
    before_bytes: int,
    total_bytes: int,
    on_progress: OnProgress,
    check_cancelled: CheckCancelled,
) -> None:
    """Complete transfer.part from the bytes it already has, reconnecting as often as needed."""
    _remove_outdated_parts(transfer)
    n_idle = 0
    while (n_before := transfer.n_staged) < transfer.size_bytes:
        check_cancelled()
        try:
            for n_staged in _stream(transfer):
                on_progress(before_bytes + min(n_staged, transfer.size_bytes), total_bytes)
                check_cancelled()
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            n_idle = 0 if transfer.n_staged > n_before else n_idle + 1
            if n_idle == MAX_IDLE_ATTEMPTS:
                raise
            time.sleep(n_idle)
    if transfer.n_staged != transfer.size_bytes:
        received = human_size(transfer.n_staged)
        transfer.part.unlink()  # not a prefix of the file, so nothing to resume
        raise RuntimeError(
            f"{transfer.url} sent {received} where the hub lists {human_size(transfer.size_bytes)}: "
            "run again, and if it repeats, a proxy is altering the file"
        )


def _stream(transfer: Transfer) -> Iterator[int]:
    """Append one response to transfer.part, yielding its size after each chunk."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    n_staged = transfer.n_staged
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}  # compressed bytes cannot be resumed
    if n_staged:
        headers["Range"] = f"bytes={n_staged}-"
    timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
    with requests.get(transfer.url, headers=headers, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        # A server that ignores the range answers 200 and sends the whole file; then start over.
        resumes = response.status_code == requests.codes.partial_content
        with transfer.part.open("ab" if resumes else "wb") as part:
            for chunk in response.iter_content(CHUNK_BYTES):
                part.write(chunk)
                yield part.tell()
    if transfer.n_staged < transfer.size_bytes:
        # urllib3 before 2.0 raises nothing for a truncated response.
        raise requests.ConnectionError(f"{transfer.url} was closed early")


@contextmanager
def _explained(wanted: Download) -> Iterator[None]:
    """Turn errors of the network and the disk into one sentence that says what to do."""
    try:
        yield
    except requests.RequestException as error:  # before OSError, which it derives from
        raise RuntimeError(_offline_sentence(wanted, error)) from error
    except OSError as error:
        raise RuntimeError(
            f"{wanted.checkpoint.name} cannot be written to {wanted.target_dir} "
            f"({error.strerror or error}): free some space or make the folder writable and run again, "
            "the download goes on where it stopped"
        ) from error


def _offline_sentence(wanted: Download, error: BaseException) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    cause = f"HTTP status {status}" if status else type(error).__name__
    return (
        f"{wanted.checkpoint.name} could not be downloaded ({cause}): run again when you are online, which goes on "
        f"where it stopped, or open {wanted.page} in a browser and save "
        f"{', '.join(wanted.checkpoint.files)} into {wanted.target_dir}"
    )


def _remove_outdated_parts(transfer: Transfer) -> None:
    for part in transfer.part.parent.glob(f"{transfer.final.name}.*.part"):
        if part != transfer.part:
            part.unlink()


def _remove_if_empty(staging: Path) -> None:
    with suppress(OSError):  # not empty: another download waits there
        staging.rmdir()
        staging.parent.rmdir()
