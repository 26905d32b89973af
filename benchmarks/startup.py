"""What the pack adds to ComfyUI's start: seconds to import it and to describe its nodes, and modules it brings.

ComfyUI loads its own nodes first, so what those import costs the pack nothing. Every round is a new process.

uv run benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common import PACK_ROOT, hardware, load_comfyui, markdown_table

# What takes long to import, and is wanted only when a node runs.
HEAVY = ("transformers", "tokenizers", "huggingface_hub", "soundfile", "scipy", "diffusers", "requests")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one-round", type=Path, metavar="PACK", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one_round:
        print(json.dumps(one_round(chosen.one_round)))
    else:
        report(chosen.rounds)


def report(n_rounds: int) -> None:
    """Print the best of some rounds, after one that leaves compiled files behind."""
    sys.path.append(str(PACK_ROOT / "scripts"))
    import comfyui

    with tempfile.TemporaryDirectory() as base_dir:
        pack = comfyui.install_pack(Path(base_dir))
        rounds = [_in_new_process(pack) for _ in range(n_rounds + 1)][1:]
    names = ("import", "object_info, first", "object_info, again")
    print(hardware(), f"best of {n_rounds}", sep=", ")
    print(markdown_table(("stage", "seconds"), [(name, min(each[name] for each in rounds)) for name in names]))
    print(f"\nPackages that come with it: {', '.join(rounds[0]['packages']) or 'none'}")
    print(f"Heavy ones among them: {', '.join(rounds[0]['heavy']) or 'none'}")


def one_round(pack: Path) -> dict[str, Any]:
    """Return the seconds of each stage in this process, and the packages that were not there before."""
    load_comfyui("cpu")
    import nodes

    asyncio.run(nodes.init_builtin_extra_nodes())
    core, before = set(nodes.NODE_CLASS_MAPPINGS), set(sys.modules)

    start = time.perf_counter()
    if not asyncio.run(nodes.load_custom_node(str(pack))):
        raise RuntimeError(f"ComfyUI could not load {pack}")
    imported = time.perf_counter()
    ours = [node for name, node in nodes.NODE_CLASS_MAPPINGS.items() if name not in core]
    _describe(ours)
    first = time.perf_counter()
    _describe(ours)
    again = time.perf_counter()

    packages = _packages(sys.modules) - _packages(before) - {str(pack).replace(".", "_x_")}  # as ComfyUI names ours
    return {
        "import": imported - start,
        "object_info, first": first - imported,
        "object_info, again": again - first,
        "packages": sorted(packages),
        "heavy": sorted(packages & set(HEAVY)),
    }


def _packages(modules: Iterable[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


def _describe(nodes: list[type]) -> None:
    for node in nodes:
        node.GET_NODE_INFO_V1()


def _in_new_process(pack: Path) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, __file__, "--one-round", str(pack)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(run.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
