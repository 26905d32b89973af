"""What saved workflows and API prompts rely on: the pack's nodes, their inputs in order, their outputs.

The stored snapshot is `nodes/object_info.json`. What is appended passes, and is protected from the day the
snapshot is written anew, which belongs to the same commit:

    uv run tests/contract.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SNAPSHOT = Path(__file__).parent / "nodes" / "object_info.json"
SCRIPTS = Path(__file__).parent.parent / "scripts"

# Node id -> {"inputs": [{"name", "type", "required", "default"}, ...], "outputs": [type, ...]}.
Contract = dict[str, dict[str, Any]]


def snapshot(nodes: list[type]) -> Contract:
    """Return the contract of node classes, inputs in the order of the canvas's widgets."""
    return {node.GET_SCHEMA().node_id: _node(node.GET_NODE_INFO_V1()) for node in nodes}


def breaks(old: Contract, new: Contract) -> list[str]:
    """Return what of the old contract the new one breaks, one sentence each; what is only appended breaks nothing."""
    found = [f"{node} is gone" for node in old if node not in new]
    for node in old.keys() & new.keys():
        found += _broken_inputs(node, old[node]["inputs"], new[node]["inputs"])
        kept = new[node]["outputs"][: len(old[node]["outputs"])]
        if kept != old[node]["outputs"]:
            found.append(f"{node}: outputs {old[node]['outputs']} became {new[node]['outputs']}")
    return found


def stored() -> Contract:
    """Return the snapshot of the repository."""
    return json.loads(SNAPSHOT.read_text(encoding="utf-8"))


def _broken_inputs(node: str, old: list[dict], new: list[dict]) -> list[str]:
    names = [given["name"] for given in old]
    if [given["name"] for given in new[: len(old)]] != names:
        return [f"{node}: inputs no longer begin with {', '.join(names)}"]
    found = []
    for before, after in zip(old, new, strict=False):
        where = f"{node}.{before['name']}"
        found += [
            f"{where}: {key} {before[key]} became {after[key]}"
            for key in ("type", "default")
            if before[key] != after[key]
        ]
        if after["required"] and not before["required"]:
            found.append(f"{where} became required")
    for added in new[len(old) :]:
        if added["required"] and added["default"] is None:
            found.append(f"{node}.{added['name']} is new, required and has no default")
    return found


def _node(info: dict) -> dict[str, Any]:
    return {
        "inputs": [
            _input(name, *info["input"][group][name], required=group == "required")
            for group, names in info["input_order"].items()
            if group != "hidden"
            for name in names
        ],
        "outputs": list(info["output"]),
    }


def _input(name: str, kind: Any, options: dict | None = None, *, required: bool) -> dict[str, Any]:
    return {
        "name": name,
        "type": "COMBO" if isinstance(kind, list) else kind,
        "required": required,
        "default": (options or {}).get("default"),
    }


def main() -> None:
    sys.path.append(str(SCRIPTS))
    import comfyui
    from pack import load_pack

    comfyui.make_importable(cpu=True)
    contract = snapshot(load_pack("nodes").NODES)
    broken = breaks(stored(), contract) if SNAPSHOT.is_file() else []
    SNAPSHOT.write_text(json.dumps(contract, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {SNAPSHOT.name}: {len(contract)} nodes", *broken, sep="\n")


if __name__ == "__main__":
    main()
