"""ComfyUI's model folders: what the combos list, where a name leads, and how a file is read."""

from __future__ import annotations

from pathlib import Path

import comfy.utils
import folder_paths
import torch

from ...acestep_core.checkpoints.read import list_model_folders

# What a combo offers where there is nothing to choose: an empty one looks like a missing wire.
NO_MODELS = "none found: run ACE-Step Download"
TOKENIZER_FOLDER = Path(comfy.__path__[0]) / "text_encoders" / "qwen25_tokenizer"


def read(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, read as ComfyUI reads them, older forms of quantisation made new."""
    state, metadata = comfy.utils.load_torch_file(str(path), safe_load=True, return_metadata=True)
    return comfy.utils.convert_old_quants(state, "", metadata=metadata or {})[0]


def models_in(category: str) -> list[str]:
    """Return what a combo over a ComfyUI folder offers: files, and model folders as `name/`, all with `/`."""
    files = [name.replace("\\", "/") for name in folder_paths.get_filename_list(category)]
    folders = {name for root in folder_paths.get_folder_paths(category) for name in list_model_folders(Path(root))}
    inside = tuple(folders)
    return sorted(folders) + [name for name in files if not name.startswith(inside)]


def path_of(categories: tuple[str, ...], name: str) -> Path:
    """Return the file or folder a combo value names.

    Raises FileNotFoundError when it is gone or there is none, ValueError when the name leads out of ComfyUI's folders.
    """
    where = " or ".join(f"models/{category}" for category in categories)
    if name == NO_MODELS:
        raise FileNotFoundError(f'there is no model in {where}; run "ACE-Step Download", then press R on the canvas')
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f'"{name}" leads outside the models folder; choose a model from the list')
    for category in categories:
        for root in map(Path, folder_paths.get_folder_paths(category)):
            path = root / name
            if path.exists():
                return path
    fetched = "" if "loras" in categories else ' or run "ACE-Step Download"'
    raise FileNotFoundError(f'"{name}" is not in {where}; put it there{fetched}')
