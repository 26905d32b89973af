"""Writes an adapter of any trainer anew in the form that the most programs read alike, alpha in its factors.

    uv run scripts/convert_lora.py lokr_weights.safetensors voice.safetensors
    uv run scripts/convert_lora.py run/final/adapter voice          # a folder, as PEFT writes it

A file goes to ComfyUI with any LoRA loader, to acestep.cpp, diffusers and DiffSynth; a folder to the official
interface and to PEFT. What a reader will not understand is said.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pack import load_pack

files = load_pack("acestep_core.lora.files")
portable = load_pack("acestep_core.lora.portable")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="a file, or a trainer's folder")
    parser.add_argument("target", type=Path, help="what to write: a .safetensors file, or a folder")
    given = parser.parse_args()
    try:
        adapter = files.read_adapter(given.adapter)
        lost = portable.save_portable(adapter, given.target)
    except (ValueError, OSError) as error:
        sys.exit(str(error))
    print(f"{given.target}: {len(adapter.changes)} changes from {adapter.format}")
    for sentence in (*adapter.notes, *lost):
        print(f"note: {sentence}")


if __name__ == "__main__":
    main()
