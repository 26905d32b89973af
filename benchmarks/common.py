"""What every benchmark needs: the pack and ComfyUI as imports, fair timing, peak memory, a table to print.

A benchmark runs all implementations in one process, on the same weights and inputs, and prints markdown.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil
import torch

PACK_ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(PACK_ROOT / "scripts"))

from pack import load_pack  # noqa: E402, F401  for the benchmarks, which cannot see scripts/ before this

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAMPLING_S = 0.001


def load_comfyui(device: str) -> None:
    """Make ComfyUI's modules importable, set up for this device."""
    import comfyui

    comfyui.make_importable(cpu=device == "cpu")


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser of the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser


def compare(contenders: Mapping[str, Callable[[], object]], rounds: int = 5, warm_up: bool = True) -> dict[str, float]:
    """Return the seconds of each contender's best round.

    The contenders take turns, so that a machine that slows down slows all of them.
    """
    best = dict.fromkeys(contenders, float("inf"))
    for round_number in range(rounds + warm_up):
        for name, run in contenders.items():
            seconds = _seconds(run)
            if round_number >= warm_up:
                best[name] = min(best[name], seconds)
    return best


def best_of(run: Callable[[], object], rounds: int = 5) -> float:
    """Return the seconds of the best round of one function."""
    return compare({"": run}, rounds)[""]


def peak_memory(run: Callable[[], object], device: str = "cpu") -> int:
    """Return by how many bytes memory in use rose above its start while run() ran, its result included.

    On CUDA the allocator counts. On a CPU the process's resident memory is sampled every millisecond, so
    that the kernels' own scratch memory counts too; expect noise of some MB.
    """
    _release_free_memory()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    process = psutil.Process()
    before = peak = process.memory_info().rss
    finished = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not finished.wait(SAMPLING_S):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        run()
    finally:
        finished.set()
        watcher.join()
    return peak - before


def hardware(device: str = "cpu") -> str:
    """Return one line that names the machine and torch's version."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    cores = os.cpu_count()
    return f"{_cpu_name()}, {torch.get_num_threads()} threads of {cores} cores, torch {torch.__version__}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a markdown table; floats are shown with three digits."""

    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join(f"{c:.3g}" if isinstance(c, float) else str(c) for c in cells) + " |"

    return "\n".join([line(header), line("---" for _ in header), *map(line, rows)])


def _seconds(run: Callable[[], object]) -> float:
    _synchronize()
    start = time.perf_counter()
    run()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _release_free_memory() -> None:
    """Give freed memory back to the system, or a later peak hides in what an earlier one left behind."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for entry in cpuinfo.read_text().splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or platform.machine()
