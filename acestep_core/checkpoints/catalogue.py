"""Every published checkpoint of the ACE-Step 1.5 family: its repository, its size and its ComfyUI folder.

Data only: download.py fetches the files, read.py reads them. There are two publishers: the authors (a folder or a
repository for each checkpoint) and Comfy-Org (the same weights as single files).

Source: ace-step/ACE-Step-1.5, `acestep/model_downloader.py` (repositories, folders);
Comfy-Org/ace_step_1.5_ComfyUI_files on the Hugging Face Hub (single files and their sizes).
"""

from __future__ import annotations

from dataclasses import dataclass

OFFICIAL_REPO = "ACE-Step/Ace-Step1.5"
COMFY_REPO = "Comfy-Org/ace_step_1.5_ComfyUI_files"

# ComfyUI's own model folders; the node asks ComfyUI where each of them is.
FOLDERS = ("diffusion_models", "text_encoders", "vae", "checkpoints")

# A size computed from tensor shapes lacks the file's header, at most 100 kB; see Checkpoint.size_bytes.
APPROXIMATION = 0.001


@dataclass(frozen=True)
class Checkpoint:
    """One loadable part of the family."""

    name: str
    repo_id: str
    files: tuple[str, ...]  # paths in the repository; the last component may be a pattern, for shards
    folder: str  # of FOLDERS; a single file goes into `folder/`, several into `folder/name/`
    size_bytes: int  # of the weights; configuration, tokenizer and silence add 4 to 47 MB
    dtype: str
    note: str  # for the list of the download node
    variant: str = ""  # of a diffusion model; "" for other parts
    size_is_exact: bool = True  # False: the sum of the tensors, good to APPROXIMATION

    def __post_init__(self) -> None:
        if self.folder not in FOLDERS:
            raise ValueError(f"{self.name} names folder {self.folder!r}: it must be one of {', '.join(FOLDERS)}")
        if not self.files or self.size_bytes <= 0:
            raise ValueError(f"{self.name} needs at least one file and a size above 0")

    @property
    def is_folder(self) -> bool:
        return len(self.files) > 1

    @property
    def size_text(self) -> str:
        return ("" if self.size_is_exact else "about ") + human_size(self.size_bytes)


def human_size(n_bytes: int) -> str:
    """Return n_bytes in decimal units, as the Hugging Face Hub shows sizes: 4787825604 is "4.79 GB"."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if n_bytes >= factor:
            return f"{n_bytes / factor:.3g} {unit}"
    return f"{n_bytes} B"


# config.json comes last in every list: a folder counts as a model once it has one, and so appears in the loaders'
# lists only when its weights are complete.
_DIT_FILES = ("model.safetensors", "silence_latent.pt", "config.json")
_XL_FILES = ("model-*.safetensors", "model.safetensors.index.json", "silence_latent.pt", "config.json")
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "added_tokens.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)
_LM_FILES = ("model.safetensors", *_TOKENIZER_FILES, "config.json")
_LM_4B_FILES = ("model-*.safetensors", "model.safetensors.index.json", *_TOKENIZER_FILES, "config.json")

# Weights of the 2B file (677 tensors) and of the XL file (829 tensors, fp32 in the official repositories).
_DIT_2B_BYTES = 4_787_825_604
_DIT_XL_FP32_BYTES = 19_949_340_504
_LM_4B_TENSOR_BYTES = 8_379_108_352
# The 2B model, Qwen3-Embedding-0.6B, the 1.7B planner and the VAE in one file.
_ALL_IN_ONE_TENSOR_BYTES = 4_787_745_036 + 1_191_553_024 + 3_708_487_680 + 337_390_852


def _inside(folder: str, files: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{folder}/{file}" for file in files)


def _official_dit(variant: str, note: str) -> Checkpoint:
    name = f"acestep-v15-{variant}"
    return Checkpoint(
        name=name,
        repo_id=f"ACE-Step/{name}",
        files=_DIT_FILES,
        folder="diffusion_models",
        size_bytes=_DIT_2B_BYTES,
        dtype="bf16",
        note=note,
        variant=variant,
        size_is_exact=False,
    )


def _official_xl(variant: str, note: str, *, size_is_exact: bool = False) -> Checkpoint:
    name = f"acestep-v15-{variant}"
    return Checkpoint(
        name=name,
        repo_id=f"ACE-Step/{name}",
        files=_XL_FILES,
        folder="diffusion_models",
        size_bytes=_DIT_XL_FP32_BYTES,
        dtype="fp32",
        note=note,
        variant=variant,
        size_is_exact=size_is_exact,
    )


def _comfy_file(folder: str, name: str, size_bytes: int, note: str, variant: str = "") -> Checkpoint:
    return Checkpoint(
        name=name,
        repo_id=COMFY_REPO,
        files=(f"split_files/{folder}/{name}",),
        folder=folder,
        size_bytes=size_bytes,
        dtype="bf16",
        note=note,
        variant=variant,
    )


CHECKPOINTS: tuple[Checkpoint, ...] = (
    # Comfy-Org: single files. There is no 2B sft among them; the official folder below serves.
    _comfy_file(
        "diffusion_models",
        "acestep_v1.5_turbo.safetensors",
        4_787_825_604,
        "2B, 8 steps: start here",
        "turbo",
    ),
    _comfy_file("diffusion_models", "acestep_v1.5_base.safetensors", 4_787_825_604, "2B, 50 steps, every task", "base"),
    _comfy_file(
        "diffusion_models",
        "acestep_v1.5_xl_turbo_bf16.safetensors",
        9_974_719_892,
        "XL, 8 steps, half the official size",
        "xl-turbo",
    ),
    _comfy_file(
        "diffusion_models",
        "acestep_v1.5_xl_sft_bf16.safetensors",
        9_974_719_930,
        "XL, 50 steps, half the official size",
        "xl-sft",
    ),
    _comfy_file(
        "diffusion_models",
        "acestep_v1.5_xl_base_bf16.safetensors",
        9_974_719_930,
        "XL, 50 steps, every task, half the official size",
        "xl-base",
    ),
    _comfy_file("text_encoders", "qwen_0.6b_ace15.safetensors", 1_191_588_248, "text encoder, needed by every model"),
    _comfy_file("text_encoders", "qwen_1.7b_ace15.safetensors", 3_708_523_360, "planner, the authors' default"),
    _comfy_file("text_encoders", "qwen_4b_ace15.safetensors", 8_379_154_232, "planner, the most capable"),
    _comfy_file("vae", "ace_1.5_vae.safetensors", 337_431_732, "VAE, needed by every model"),
    Checkpoint(
        name="ace_step_1.5_turbo_aio.safetensors",
        repo_id=COMFY_REPO,
        files=("checkpoints/ace_step_1.5_turbo_aio.safetensors",),
        folder="checkpoints",
        size_bytes=_ALL_IN_ONE_TENSOR_BYTES,
        dtype="bf16",
        note="turbo, text encoder, 1.7B planner and VAE in one file",
        variant="turbo",
        size_is_exact=False,
    ),
    # The authors' folders.
    Checkpoint(
        name="acestep-v15-turbo",
        repo_id=OFFICIAL_REPO,
        files=_inside("acestep-v15-turbo", _DIT_FILES),
        folder="diffusion_models",
        size_bytes=_DIT_2B_BYTES,
        dtype="bf16",
        note="2B, 8 steps",
        variant="turbo",
    ),
    _official_dit("turbo-shift1", "2B, 8 steps, trained at shift 1"),
    _official_dit("turbo-shift3", "2B, 8 steps, trained at shift 3"),
    _official_dit("turbo-continuous", "2B, 8 steps, experimental: any shift from 1 to 5"),
    _official_dit("sft", "2B, 50 steps"),
    _official_dit("base", "2B, 50 steps, every task; the one to train on"),
    _official_xl("xl-turbo", "XL, 8 steps", size_is_exact=True),
    _official_xl("xl-sft", "XL, 50 steps"),
    _official_xl("xl-base", "XL, 50 steps, every task"),
    Checkpoint(
        name="Qwen3-Embedding-0.6B",
        repo_id=OFFICIAL_REPO,
        files=_inside("Qwen3-Embedding-0.6B", _LM_FILES),
        folder="text_encoders",
        size_bytes=1_191_586_416,
        dtype="bf16",
        note="text encoder with its tokenizer",
    ),
    Checkpoint(
        name="acestep-5Hz-lm-0.6B",
        repo_id="ACE-Step/acestep-5Hz-lm-0.6B",
        files=_LM_FILES,
        folder="text_encoders",
        size_bytes=1_325_804_024,
        dtype="bf16",
        note="planner, the smallest",
    ),
    Checkpoint(
        name="acestep-5Hz-lm-1.7B",
        repo_id=OFFICIAL_REPO,
        files=_inside("acestep-5Hz-lm-1.7B", _LM_FILES),
        folder="text_encoders",
        size_bytes=3_708_521_528,
        dtype="bf16",
        note="planner, the authors' default",
    ),
    Checkpoint(
        name="acestep-5Hz-lm-4B",
        repo_id="ACE-Step/acestep-5Hz-lm-4B",
        files=_LM_4B_FILES,
        folder="text_encoders",
        size_bytes=_LM_4B_TENSOR_BYTES,
        dtype="bf16",
        note="planner, the most capable",
        size_is_exact=False,
    ),
    Checkpoint(
        # The repository calls this folder "vae", which says nothing beside other models' VAEs.
        name="acestep-v15-vae",
        repo_id=OFFICIAL_REPO,
        files=_inside("vae", ("diffusion_pytorch_model.safetensors", "config.json")),
        folder="vae",
        size_bytes=337_431_388,
        dtype="bf16",
        note="VAE",
    ),
)

# Named shortcuts: what one download should bring so that a first song can be made.
SETS: dict[str, tuple[str, ...]] = {
    "turbo set": ("acestep_v1.5_turbo.safetensors", "qwen_0.6b_ace15.safetensors", "ace_1.5_vae.safetensors"),
    "base set": ("acestep_v1.5_base.safetensors", "qwen_0.6b_ace15.safetensors", "ace_1.5_vae.safetensors"),
}


def choose(what: str) -> tuple[Checkpoint, ...]:
    """Return the checkpoints behind the name of a set or of one checkpoint.

    Raises: ValueError when nothing has that name.
    """
    by_name = {checkpoint.name: checkpoint for checkpoint in CHECKPOINTS}
    if what not in SETS and what not in by_name:
        raise ValueError(f"no checkpoint is called {what!r}: choose one of {', '.join((*SETS, *by_name))}")
    return tuple(by_name[name] for name in SETS.get(what, (what,)))
