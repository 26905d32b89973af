"""Imports the repository's root as the package `acestep_pack`, the way ComfyUI imports a custom node folder.

The root itself never goes on sys.path: there its `nodes` would hide ComfyUI's module of that name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

PACK_ROOT = Path(__file__).resolve().parent.parent
PACK = "acestep_pack"


def load_pack(module: str = "") -> Any:
    """Return the pack, or a module of it by its path inside, such as "acestep_core.constants"."""
    if PACK not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            PACK, PACK_ROOT / "__init__.py", submodule_search_locations=[str(PACK_ROOT)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules[PACK] = package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    return importlib.import_module(f"{PACK}.{module}" if module else PACK)
