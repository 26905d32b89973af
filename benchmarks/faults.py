"""What is lost when several programs write at once, and when one is killed: a table, for as many minutes as given.

uv run python benchmarks/faults.py [--minutes 5] [--seed 1]

Each fault is a program or several, stopped or crossed at random moments; then every file under a final name is read.
The short form of each is a test (tests/core/test_claims.py, tests/core/test_download.py).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from random import Random

from common import PACK_ROOT, load_pack, markdown_table

load_pack()
sys.path.append(str(PACK_ROOT / "tests"))

import writers  # noqa: E402
from acestep_pack.acestep_core.atomic_write import QUIET_S  # noqa: E402
from acestep_pack.acestep_core.checkpoints import download  # noqa: E402
from acestep_pack.acestep_core.checkpoints.catalogue import Checkpoint  # noqa: E402
from acestep_pack.acestep_core.codes import files as codes_files  # noqa: E402
from hub import HubStandIn, hub_stand_in  # noqa: E402

N_WRITERS, N_ITEMS = 3, 30
WEIGHTS = Random(1).randbytes(25_000_000)
MODEL = Checkpoint("m.safetensors", "stand-in/files", ("m.safetensors",), "vae", len(WEIGHTS), "bf16", "")


@dataclass
class Tally:
    """What was done and seen: how often, how many files, and what was wrong with them."""

    runs: int = 0  # or kills
    files: int = 0  # told to be saved, or whole in the end
    lost: int = 0  # told, and not there
    wrong: int = 0  # under a final name and not whole, or of another writer than it says
    doubled: int = 0  # numbers that two have
    left: int = 0  # hidden files and claims that the next run did not remove


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--download", nargs=2, metavar=("URL", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.download:
        url, folder = chosen.download
        download.download(MODEL, Path(folder), lambda _done, _total: None, lambda: None, url)
        return
    rows, random = [], Random(chosen.seed)
    for title, fault in FAULTS.items():
        tally, end = Tally(), time.monotonic() + 60 * chosen.minutes / len(FAULTS)
        while time.monotonic() < end or not tally.runs:
            with tempfile.TemporaryDirectory() as folder:
                fault(Path(folder), random, tally)
        rows.append([title, *(getattr(tally, field.name) for field in fields(tally))])
        print(title, tally, file=sys.stderr)
    print(markdown_table(("fault", *(field.name for field in fields(Tally))), rows))


def takes_at_once(folder: Path, _random: Random, tally: Tally) -> None:
    names, out = _saved_at_once("bundles", folder), folder / "out"
    audio = {path.name for path in out.glob("*.wav")}
    _compare(tally, names, audio, (writers.bundle_of, (out / name for name in audio)))
    tally.doubled += _doubled(audio)


def codes_at_once(folder: Path, _random: Random, tally: Tally) -> None:
    names, out = _saved_at_once("codes", folder), folder / "out"
    there = set(os.listdir(out))
    _compare(tally, names, there, (codes_files.load, (out / name for name in there)))
    tally.doubled += _doubled(there)


def killed_while_saving(folder: Path, random: Random, tally: Tally) -> None:
    out = folder / "out"
    running = [writers.start("bundles", out, writer, 0) for writer in range(2)]
    for each in running:
        each.stdout.readline()
    (folder / "go").touch()
    names = [each.stdout.readline().strip() for each in running]
    time.sleep(random.uniform(0, 0.3))
    for each in running:
        each.kill()
        each.wait()
    names += [name for each in running for name in each.stdout.read().split()]
    audio = {path.name for path in out.glob("*.wav")}
    _compare(tally, names, audio, (writers.bundle_of, (out / name for name in audio)))
    tally.doubled += _doubled(audio)
    tally.runs += 1  # two kills
    for path in out.iterdir():
        os.utime(path, (time.time() - 2 * QUIET_S,) * 2)
    writers.save_bundle(out, 9, 9)
    tally.left += sum(path.name.startswith(".") or path.suffix == ".claim" for path in out.iterdir())


def killed_while_downloading(folder: Path, random: Random, tally: Tally) -> None:
    with _hub() as hub:
        hub.stall_after = random.randrange(len(WEIGHTS))
        running = _downloader(hub, folder)
        while not hub.fetches():
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
        running.kill()
        running.wait()
        tally.wrong += (folder / MODEL.name).exists()
        hub.stall_after = None
        hub.go_on.set()
        _finish([_downloader(hub, folder)], folder, tally)


def downloads_at_once(folder: Path, random: Random, tally: Tally) -> None:
    with _hub() as hub:
        hub.break_after = [random.randrange(len(WEIGHTS)) for _ in range(random.randrange(3))]
        _finish([_downloader(hub, folder) for _ in range(N_WRITERS)], folder, tally)


FAULTS: dict[str, Callable[[Path, Random, Tally], None]] = {
    f"{N_WRITERS} programs save takes at once": takes_at_once,
    f"{N_WRITERS} programs save codes at once": codes_at_once,
    "kill -9 of 2 programs that save takes": killed_while_saving,
    "kill -9 of a download": killed_while_downloading,
    f"{N_WRITERS} downloads of one file at once, on a connection that breaks": downloads_at_once,
}


def _saved_at_once(kind: str, folder: Path) -> list[str]:
    running = [writers.start(kind, folder / "out", writer, N_ITEMS) for writer in range(N_WRITERS)]
    for each in running:
        each.stdout.readline()
    (folder / "go").touch()
    return [name for each in running for name in each.communicate()[0].split()]


def _compare(
    tally: Tally, told: list[str], there: set[str], look: tuple[Callable[[Path], object], Iterable[Path]]
) -> None:
    tally.runs += 1
    tally.files += len(there)
    tally.lost += len(told) - len(set(told) & there)
    read, paths = look
    for path in paths:
        try:
            read(path)
        except (AssertionError, OSError, ValueError):
            tally.wrong += 1


def _doubled(names: set[str]) -> int:
    return sum(n - 1 for n in Counter(name.split("_")[1].split(".")[0] for name in names).values())


def _hub() -> AbstractContextManager[HubStandIn]:
    """Return a stand-in for the hub that has the model."""
    return hub_stand_in(repos={MODEL.repo_id: {MODEL.files[0]: WEIGHTS}})


def _downloader(hub: HubStandIn, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--download", hub.url, str(folder)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def _finish(running: list[subprocess.Popen[bytes]], folder: Path, tally: Tally) -> None:
    tally.lost += sum(each.wait() != 0 for each in running)
    final = folder / MODEL.name
    tally.runs += 1
    tally.files += final.is_file()
    tally.wrong += final.is_file() and final.read_bytes() != WEIGHTS
    tally.left += len(list(folder.rglob("*.part")))


if __name__ == "__main__":
    main()
