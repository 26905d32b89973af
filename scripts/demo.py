"""Make a song with a real ComfyUI, from nothing: `uv run scripts/demo.py`.

Without arguments it writes tiny random models, starts ComfyUI, runs workflow 01 and leaves a FLAC on disk.
With `--models` it uses a ComfyUI models folder that holds the published weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import client
import comfyui
import tiny_models

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflows" / "api" / "01_text_to_song.json"
BASE = ROOT / ".cache" / "demo"
DEMO_DURATION_S = 30.0
# What others call our widgets in their song files. Source: ace-step/ACE-Step-1.5, `examples/`.
SONG_FIELDS = {"keyscale": "key", "timesignature": "time_signature", "vocal_language": "language"}
RUN_TIMEOUT_S = 3600


def main() -> int:
    """Run the demo and return the exit status."""
    arguments = _arguments()
    prompt = json.loads(arguments.workflow.read_text(encoding="utf-8"))
    change_song(prompt, arguments)
    base_dir = _prepare(arguments.models)
    extra = ("--models-directory", str(arguments.models.resolve())) if arguments.models else ()
    print("starting ComfyUI …")
    with comfyui.start(base_dir, extra) as server:
        print(f"running {arguments.workflow.name} …")
        try:
            run = client.Client(server.url).run(prompt, timeout_s=RUN_TIMEOUT_S)
        except client.PromptRejected as refused:
            print(refusal(refused, arguments.models or base_dir / "models"), file=sys.stderr)
            return 1
        if not run.ok:
            print(_failure(run), file=sys.stderr)
            return 1
        _report(run, prompt, server.output_dir)
    if not arguments.models:
        print(
            "\nThe models were tiny and random, so this is noise, not music. For music, put the published models into a"
            "\nComfyUI models folder (the node AceStepDownload does it) and run: uv run scripts/demo.py --models DIR"
        )
    return 0


def change_song(prompt: dict, arguments: argparse.Namespace) -> None:
    """Put what the command line says into the prompt's song and sampler nodes."""
    song = json.loads(arguments.song.read_text(encoding="utf-8")) if arguments.song else {}
    duration = arguments.duration or float(song.get("duration") or DEMO_DURATION_S)
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] == "AceStepSong":
            renamed = {SONG_FIELDS.get(name, name): value for name, value in song.items()}
            inputs.update({name: value for name, value in renamed.items() if name in inputs and value})
            inputs["duration"] = duration
        elif node["class_type"] == "AceStepSample" and arguments.seed is not None:
            inputs["seed"] = arguments.seed


def stages(run: client.Run, prompt: dict) -> list[tuple[str, float]]:
    """Return each node that ran with its seconds, in order."""
    return [(prompt[node]["_meta"]["title"], run.seconds[node]) for node in run.executed if node in run.seconds]


def refusal(refused: client.PromptRejected, models: Path) -> str:
    """Return which models are missing and where they were looked for, or why else a prompt was refused."""
    missing = {
        f'"{error["extra_info"]["received_value"]}"'
        for node in refused.node_errors.values()
        for error in node["errors"]
        if error["type"] == "value_not_in_list" and "Load" in node["class_type"]
    }
    if not missing:
        return str(refused)
    return (
        f"{', '.join(sorted(missing))} cannot be found in {models}: run the node AceStepDownload there, or give the "
        "folder that has the files with --models"
    )


def _prepare(models: Path | None) -> Path:
    """Return a base directory with the pack installed, and tiny models in it unless real ones are given."""
    shutil.rmtree(BASE / "custom_nodes", ignore_errors=True)
    BASE.mkdir(parents=True, exist_ok=True)
    comfyui.install_pack(BASE)
    if models is None:
        print("writing tiny models …")
        tiny_models.write_comfyui_folders(BASE / "models")
    return BASE


def _report(run: client.Run, prompt: dict, output_dir: Path) -> None:
    for output in run.outputs.values():
        for file in output.get("audio", ()):
            print(f"\n{output_dir / file['subfolder'] / file['filename']}")
    print(f"\n{'stage':<32}seconds")
    for title, seconds in stages(run, prompt):
        print(f"{title:<32}{seconds:7.2f}")


def _failure(run: client.Run) -> str:
    return "\n".join(f"{error['node_type']}: {error['exception_message']}" for error in run.errors) or run.status


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="a ComfyUI models folder with published ACE-Step models")
    parser.add_argument("--song", type=Path, help="a JSON file with caption, lyrics, bpm, keyscale, …")
    parser.add_argument(
        "--duration", type=float, help=f"seconds, 10 to 600 (default: the song's, else {DEMO_DURATION_S:g})"
    )
    parser.add_argument("--seed", type=int, help="seed of the take")
    parser.add_argument("--workflow", type=Path, default=WORKFLOW, help="an API prompt (default: text to song)")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
