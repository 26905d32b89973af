"""Make a song without ComfyUI: `uv run scripts/sing.py SONG.json --models DIR`.

SONG.json has caption, lyrics and, if known, bpm, key (or keyscale), time_signature, language and duration. DIR is a
ComfyUI models folder. What each take was made of is written beside its audio file.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from pack import load_pack

PRECISIONS = ("fp32", "bf16")


def main(arguments: list[str] | None = None) -> int:
    """Make the songs that the command line asks for and return the exit status."""
    given = _parser().parse_args(arguments)
    try:
        for path in sing(given):
            print(path)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"sing: {error}", file=sys.stderr)
        return 1
    return 0


def sing(given: argparse.Namespace) -> list[Path]:
    """Return the audio files of a command line's takes."""
    import torch

    loaded = load_pack("acestep_core.checkpoints.loaded")
    song = load_pack("acestep_core.song.files").read_song(given.song)
    if given.duration:
        song = replace(song, duration_s=given.duration)
    parts = loaded.Parts.found_in(given.models)
    if given.tokenizer:
        parts = replace(parts, tokenizer=given.tokenizer)
    band = load_pack("acestep_core.studio").load(
        parts, given.device, torch.float32 if given.precision == "fp32" else torch.bfloat16, on_progress=_show
    )
    codes = None
    if given.plan:
        plan = band.plan(song, seeds=[given.seed])
        song, codes = plan.song, plan.codes
    made = band.make(
        song,
        codes,
        seed=given.seed,
        n_takes=given.takes,
        steps=given.steps,
        shift=given.shift,
        guidance=given.guidance,
    )
    print(made.summary, file=sys.stderr)
    if given.score:
        made = band.score(made)
    return band.save(made, given.out, given.song.stem, given.format)


def _show(stage: str, done: int, total: int) -> None:
    if done == total or done == 0:
        print(f"{stage} {done}/{total}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("song", type=Path, help="a JSON file with caption, lyrics, bpm, ...")
    parser.add_argument("--models", type=Path, required=True, help="a ComfyUI models folder")
    parser.add_argument("--out", type=Path, default=Path(), help="folder for the songs (default: this one)")
    parser.add_argument("--tokenizer", type=Path, help="folder with the Qwen vocabulary, if the models bring none")
    parser.add_argument("--plan", action="store_true", help="let the planner plan the song first")
    parser.add_argument("--score", action="store_true", help="score the lyrics and write timed ones")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first take (default: 0)")
    parser.add_argument("--takes", type=int, default=1, help="how many takes (default: 1)")
    parser.add_argument("--duration", type=float, help="seconds, 10 to 600 (default: the song's, else 120)")
    parser.add_argument("--steps", type=int, default=0, help="sampling steps (default: the model's)")
    parser.add_argument("--shift", type=float, default=0.0, help="schedule shift (default: the model's)")
    parser.add_argument("--guidance", type=float, default=0.0, help="guidance scale (default: the model's)")
    parser.add_argument("--format", default="flac", help="as the Save node's, such as flac or 'mp3 V0' (default: flac)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps, ... (default: cpu)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 halves the memory on a card")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
