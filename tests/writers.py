"""A program that saves into a folder as fast as it can, for tests of several at once, and of one that is killed.

python tests/writers.py KIND FOLDER WRITER N: saves N things (0: until it is killed) once FOLDER/../go exists, and
prints the name of each as soon as it is told to be saved.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from acestep_core import bundle  # noqa: E402
from acestep_core.codes import files as codes_files  # noqa: E402
from acestep_core.types import AudioCodes, SongSpec, Take  # noqa: E402

SOUND = bundle.Sound("song.wav", "wav 16-bit", 48_000, 2, 1.0)


def music(writer: int, item: int) -> bytes:
    """Bytes that tell who wrote them and whether they are whole, of 1 MB."""
    body = f"{writer} {item} ".encode().ljust(1_000_000, b"\x07")
    return body + hashlib.sha256(body).digest()


def author_of(content: bytes) -> tuple[int, int]:
    """Return writer and item of whole bytes."""
    body, digest = content[:-32], content[-32:]
    assert hashlib.sha256(body).digest() == digest, "the file is not whole"
    writer, item = body.split()[:2]
    return int(writer), int(item)


def save_bundle(folder: Path, writer: int, item: int) -> str:
    """Save a take; its seed and codes tell who wrote it, as its sound does."""
    take, codes = Take(seed=writer % 2), AudioCodes(((writer, item),))  # seeds of some writers are the same
    origin = bundle.Origin(SongSpec(f"{writer} {item}"), take, codes, lrc=f"{writer} {item}")
    return bundle.save_next(folder, "song", SOUND, music(writer, item), origin, take)


def save_codes(folder: Path, writer: int, item: int) -> str:
    return codes_files.save_next(AudioCodes(((writer, item),)), folder, "song")


def save_copy(folder: Path, writer: int, item: int) -> str:
    """Save a LoRA as its portable copy: each item twice, by every second writer the same one."""
    import torch
    from acestep_core.lora.change import Change, LowRank
    from acestep_core.lora.files import Adapter
    from acestep_core.lora.portable import keep_portable

    factors = LowRank(torch.full((2, 4), float(item)), torch.full((4, 2), float(writer % 2)))
    changes = {"decoder.layers.0.self_attn.q_proj.weight": Change(factors, 1.0)}
    return keep_portable(Adapter("voice", "PEFT", changes, (), (), True, ""), folder / "voice.safetensors")[0].name


SAVES: dict[str, Callable[[Path, int, int], str]] = {
    "bundles": save_bundle,
    "codes": save_codes,
    "copies": save_copy,
}


def start(kind: str, folder: Path, writer: int, n_items: int) -> subprocess.Popen[str]:
    """Start a writer; it says "ready" first."""
    command = [sys.executable, __file__, kind, str(folder), str(writer), str(n_items)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def bundle_of(audio: Path) -> tuple[int, int]:
    """Return who wrote a take, after looking that all its files are there, whole, and by the same."""
    writer, item = author = author_of(audio.read_bytes())
    ours = json.loads(audio.with_suffix(".json").read_text())[bundle.KEY]
    assert ours["audio"]["file"] == audio.name
    assert ours["song"]["caption"] == f"{writer} {item}"
    assert audio.with_suffix(".lrc").read_text() == f"{writer} {item}"
    assert codes_files.load(audio.with_suffix(".codes.json")).sequences == (author,)
    return author


def main(kind: str, folder: Path, writer: int, n_items: int) -> None:
    print("ready", flush=True)
    while not (folder.parent / "go").exists():
        time.sleep(0.001)
    for item in islice(count(), n_items or None):
        print(SAVES[kind](folder, writer, item), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
