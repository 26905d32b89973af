"""Networks with their weights, for programs without a host: read at first use, one at a time on the device.

ComfyUI does this itself (nodes/host/memory.py); the library in `studio` uses what is here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ..models.acestep import AceStep
from ..models.layers import Build
from ..models.qwen3 import Qwen3
from ..models.silence import SILENCE_FRAMES, encoded_silence, published_silence
from ..models.vae import Vae
from ..song.tokens import load_tokenizer
from .catalogue import CHECKPOINTS
from .read import DiTFile, Qwen3File, VaeFile, read_dit, read_planner, read_text_encoder, read_vae
from .scaled import dequantized

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PLANNER_NOTE = "planner"  # how the catalogue's notes of planners begin
# Where ComfyUI keeps the vocabulary that its single files lack, from its models folder.
COMFYUI_TOKENIZER = Path("..", "comfy", "text_encoders", "qwen25_tokenizer")

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class Parts:
    """The files or folders of one set of models."""

    dit: Path
    text_encoder: Path
    vae: Path
    planner: Path | None = None  # only for planning
    tokenizer: Path | None = None  # folder with the Qwen vocabulary, for text encoders that are a single file

    @classmethod
    def found_in(cls, models: Path) -> Parts:
        """Return the first published model of each kind, in the catalogue's order, that a ComfyUI models folder has.

        Raises FileNotFoundError, naming the kind, where one is missing.
        """
        whole = _first(models, "checkpoints")
        tokenizer = models / COMFYUI_TOKENIZER
        return cls(
            dit=_first(models, "diffusion_models") or whole or _missing(models, "diffusion_models"),
            text_encoder=_first(models, "text_encoders") or whole or _missing(models, "text_encoders"),
            vae=_first(models, "vae") or whole or _missing(models, "vae"),
            planner=_first(models, "text_encoders", planners=True) or whole,
            tokenizer=tokenizer if tokenizer.is_dir() else None,
        )


class Models:
    """The networks of one set of parts."""

    def __init__(self, parts: Parts, device: torch.device, dtype: torch.dtype, variant: str) -> None:
        self.parts, self.device, self.dtype, self.variant = parts, device, dtype, variant
        self._networks: dict[str, nn.Module] = {}
        self._dit_file: DiTFile | None = None
        self._tokenizers: dict[str, Tokenizer] = {}
        self._silence: Tensor | None = None

    @property
    def dit_file(self) -> DiTFile:
        """Return what the DiT's file tells, its tensors left out once the network has them."""
        if self._dit_file is None:
            self._dit_file = read_dit(self.parts.dit, self.variant)
        return self._dit_file

    def dit(self) -> AceStep:
        """Return the music model, on the device."""
        if "dit" not in self._networks:
            file = self.dit_file
            self._networks["dit"] = self._filled(AceStep(file.config, self._build()), file)
            file.state.clear()  # the network has them now
        return self._on_device("dit", AceStep)

    def text_encoder(self) -> Qwen3:
        """Return the text encoder, on the device."""
        if "text_encoder" not in self._networks:
            self._read_qwen3("text_encoder", read_text_encoder(self.parts.text_encoder))
        return self._on_device("text_encoder", Qwen3)

    def planner(self) -> Qwen3:
        """Return the planner, on the device. Raises FileNotFoundError without one."""
        if self.parts.planner is None:
            raise FileNotFoundError("there is no planner among the models; make the song without a plan")
        if "planner" not in self._networks:
            self._read_qwen3("planner", read_planner(self.parts.planner))
        return self._on_device("planner", Qwen3)

    def vae(self) -> Vae:
        """Return the VAE, on the device."""
        if "vae" not in self._networks:
            file = read_vae(self.parts.vae)
            self._networks["vae"] = self._filled(Vae(file.config, self._build()), file)
        return self._on_device("vae", Vae)

    def tokenizer(self, name: str) -> Tokenizer:
        """Return the tokenizer of the text encoder or the planner, which must have been asked for before."""
        return self._tokenizers[name]

    def silence(self) -> Tensor:
        """Return the DiT's silence latents [1, n, 64]: its file's own, else the published ones, else the VAE's."""
        if self._silence is None:
            self._silence = self._find_silence()
        return self._silence

    def _find_silence(self) -> Tensor:
        file = self.dit_file
        if file.silence is not None:
            return file.silence
        if file.is_released_size:
            return published_silence(SILENCE_FRAMES)
        vae = self.vae()
        return encoded_silence(lambda audio: vae.encode_tiled(audio, device=self.device, dtype=self.dtype))

    def _read_qwen3(self, name: str, file: Qwen3File) -> None:
        folder = file.tokenizer_folder or self.parts.tokenizer
        if folder is None:
            raise FileNotFoundError(
                f'{file.name} brings no tokenizer; name a folder with the Qwen vocabulary as "tokenizer", such as '
                "the Qwen3-Embedding-0.6B folder"
            )
        self._tokenizers[name] = load_tokenizer(folder)
        self._networks[name] = self._filled(Qwen3(file.config, self._build()), file)

    def _build(self) -> Build:
        return Build(dtype=self.dtype)

    def _filled(self, network: Network, file: DiTFile | Qwen3File | VaeFile) -> Network:
        state = dequantized(file.name, file.state, self.dtype)
        network.load_state_dict({name: tensor.to(self.dtype) for name, tensor in state.items()})
        return network.eval().requires_grad_(False)

    def _on_device(self, name: str, kind: type[Network]) -> Network:
        """Return a network, moved to the device; the others wait on the CPU."""
        for other, network in self._networks.items():
            network.to(self.device if other == name else "cpu")
        network = self._networks[name]
        assert isinstance(network, kind)
        return network


def _first(models: Path, folder: str, planners: bool = False) -> Path | None:
    """Return the first published model that is in a folder, by the catalogue's order."""
    for checkpoint in CHECKPOINTS:
        is_planner = folder == "text_encoders" and PLANNER_NOTE in checkpoint.note
        path = models / folder / checkpoint.name
        if checkpoint.folder == folder and is_planner == planners and path.exists():
            return path
    return None


def _missing(models: Path, folder: str) -> Path:
    raise FileNotFoundError(f"{models / folder} holds no published ACE-Step 1.5 model; docs/models.md lists them")
