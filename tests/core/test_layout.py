"""The house: its rooms stand on floors, what they import lies below, and ComfyUI is let in at one door.

A room is a folder of acestep_core/ or nodes/, or a file beside those folders.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from pack import PACK_ROOT

# From the ground up. A room imports from the floors below its own; on its own floor too, as long as no circle arises.
FLOORS = (
    {"acestep_core/constants"},
    {"acestep_core/types", "acestep_core/atomic_write", "acestep_core/numbering"},
    {"acestep_core/models"},
    {"acestep_core/checkpoints", "acestep_core/song", "acestep_core/codes", "acestep_core/audio"},
    {"acestep_core/pipeline", "acestep_core/scoring", "acestep_core/lora"},
    {"acestep_core/planner"},
    {"acestep_core/*"},  # every other file of acestep_core: what joins rooms, such as bundle
    {"nodes/host"},
    {"nodes/pictures"},
    {"nodes"},
)
HOST = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "nodes", "server"}
# Slow to import, and not needed by everyone who imports the module.
MAY_BE_LATE = {"huggingface_hub", "tokenizers", "torchaudio", "yaml"}

Name = tuple[str, ...]


@dataclass(frozen=True)
class Import:
    """One name that a module imports: ours by its path from the root, others by theirs."""

    path: Name
    is_ours: bool
    is_late: bool  # inside a function
    line: int


@dataclass(frozen=True)
class Module:
    path: Name
    is_package: bool
    tree: ast.Module

    def __str__(self) -> str:
        return "/".join(self.path)

    @property
    def room(self) -> str:
        top, *below = self.path
        if top == "nodes":
            return f"nodes/{below[0]}" if below and below[0] in ("host", "pictures") else "nodes"
        known = f"{top}/{below[0]}" if below else top
        return known if any(known in floor for floor in FLOORS) or self._lies_in_a_folder else "acestep_core/*"

    @property
    def _lies_in_a_folder(self) -> bool:
        return len(self.path) > 2 or (self.is_package and len(self.path) == 2)

    def imports(self) -> Iterator[Import]:
        """Yield what it imports anywhere, for type checkers alone too."""
        late = {
            id(node)
            for function in ast.walk(self.tree)
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            for node in ast.walk(function)
        }
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield Import(tuple(alias.name.split(".")), False, id(node) in late, node.lineno)
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    yield Import((*self._base(node), alias.name), node.level > 0, id(node) in late, node.lineno)

    def _base(self, node: ast.ImportFrom) -> Name:
        inside = tuple(node.module.split(".")) if node.module else ()
        if not node.level:
            return inside
        up = node.level - self.is_package
        return self.path[: len(self.path) - up] + inside


def read(file: Path) -> Module:
    path = file.relative_to(PACK_ROOT).with_suffix("").parts
    is_package = path[-1] == "__init__"
    return Module(path[:-1] if is_package else path, is_package, ast.parse(file.read_text(encoding="utf-8")))


MODULES = [read(file) for top in ("acestep_core", "nodes") for file in sorted((PACK_ROOT / top).rglob("*.py"))]
BY_PATH = {module.path: module for module in MODULES}
CORE = [module for module in MODULES if module.path[0] == "acestep_core"]
every_module = pytest.mark.parametrize("module", MODULES, ids=str)


def target(found: Import) -> Module:
    """Return the module that an import of ours reaches, itself or for a name in it."""
    return BY_PATH[found.path] if found.path in BY_PATH else BY_PATH[found.path[:-1]]


def floor_of(room: str) -> int:
    (found,) = [index for index, floor in enumerate(FLOORS) if room in floor]
    return found


@pytest.mark.parametrize("module", [module for module in MODULES if len(module.path) > 1], ids=str)
def test_a_module_stands_on_a_floor_and_imports_nothing_from_above(module: Module) -> None:
    assert any(module.room in floor for floor in FLOORS), f"{module.room} is a new room: give it a floor in FLOORS"
    above = [
        f"line {found.line}: {target(found)}"
        for found in module.imports()
        if found.is_ours and floor_of(target(found).room) > floor_of(module.room)
    ]
    assert above == []


def test_no_rooms_import_each_other_in_a_circle() -> None:
    below: dict[str, set[str]] = {}
    for module in MODULES:
        reached = {target(found).room for found in module.imports() if found.is_ours}
        below.setdefault(module.room, set()).update(reached - {module.room})
    try:
        TopologicalSorter(below).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {m.path: {target(found).path for found in m.imports() if found.is_ours} - {m.path} for m in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join("/".join(path) for path in reversed(error.args[1])))


@pytest.mark.parametrize("module", CORE, ids=str)
def test_the_core_knows_no_host(module: Module) -> None:
    assert [found for found in module.imports() if not found.is_ours and found.path[0] in HOST] == []


@every_module
def test_imports_stand_at_the_top_but_for_slow_ones(module: Module) -> None:
    late = [found for found in module.imports() if found.is_late]
    assert [found for found in late if found.is_ours or found.path[0] not in MAY_BE_LATE] == []


@every_module
def test_every_module_says_what_it_owns(module: Module) -> None:
    assert ast.get_docstring(module.tree)


@every_module
def test_nodes_are_defined_directly_in_their_folder(module: Module) -> None:
    is_node_file = module.path[0] == "nodes" and len(module.path) == 2 and not module.is_package
    classes = [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)]
    nodes = [each.name for each in classes if any(ast.unparse(base).endswith("ComfyNode") for base in each.bases)]
    assert bool(nodes) == is_node_file, f"nodes: {nodes}"
