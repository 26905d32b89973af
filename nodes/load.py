"""The loaders: one node each for DiT, text encoder and VAE, every file layout behind one combo."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..acestep_core.checkpoints.detect import VARIANTS
from .host import folders, progress
from .host.folders import models_in
from .host.memory import WEIGHT_DTYPES
from .host.model import load_model
from .host.planner import load_planner
from .host.sockets import CATEGORY, PlannerSocket, TextEncoderSocket
from .host.text_encoder import load_text_encoder
from .host.vae import load_vae
from .host.widgets import FileInput

DIT_FOLDERS = ("diffusion_models", "checkpoints")
TEXT_ENCODER_FOLDERS = ("text_encoders", "checkpoints")
VAE_FOLDERS = ("vae", "checkpoints")
# Two loaders list models/text_encoders: words in the names of what the other one is for.
PLANNER_WORDS = ("5hz", "1.7b", "4b")
TEXT_ENCODER_WORDS = ("embedding", "qwen_0.6b")
LOADERS = f"{CATEGORY}/loaders"


class AceStepLoadModel(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepLoadModel",
            display_name="Load ACE-Step Model",
            category=LOADERS,
            description="Loads the music model: diffusion transformer, condition encoder and audio tokenizer.",
            search_aliases=["ace step dit", "unet loader", "diffusion model"],
            inputs=[
                FileInput(
                    "model",
                    options=_options(DIT_FOLDERS),
                    tooltip="A file or folder in models/diffusion_models, or an all-in-one file in models/checkpoints."
                    " Folders end with a slash.",
                ),
                io.Combo.Input(
                    "variant",
                    options=list(VARIANTS),
                    default="auto",
                    tooltip="How the weights were trained. This sets what auto means for steps, shift and guidance. "
                    "auto reads it from the model's configuration or file name.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="auto",
                    tooltip="Number format of the weights. auto suits the file and the card; fp8 needs half the memory "
                    "of bf16, at a small loss of quality.",
                    advanced=True,
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Used only for model files without a silence latent: this VAE then encodes one.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The music model; works with our sampler and with core's.")],
        )

    @classmethod
    def execute(cls, model, variant, weight_dtype, vae=None):
        patcher = load_model(folders.path_of(DIT_FOLDERS, model), variant, weight_dtype, vae)
        text = _describe(patcher.model)
        progress.log.info(text)
        return io.NodeOutput(patcher, ui={"text": (text,)})


class AceStepLoadTextEncoder(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepLoadTextEncoder",
            display_name="Load ACE-Step Text Encoder",
            category=LOADERS,
            description="Loads Qwen3-Embedding, which reads the caption and the lyrics.",
            search_aliases=["ace step clip", "qwen embedding"],
            inputs=[
                FileInput(
                    "text_encoder",
                    options=_options(TEXT_ENCODER_FOLDERS, last=PLANNER_WORDS),
                    tooltip="A file or folder in models/text_encoders, or an all-in-one file in models/checkpoints. "
                    "Not the planner, which is in the same folder.",
                )
            ],
            outputs=[TextEncoderSocket.Output(display_name="text_encoder", tooltip="For ACE-Step Encode Song.")],
        )

    @classmethod
    def execute(cls, text_encoder):
        return io.NodeOutput(load_text_encoder(folders.path_of(TEXT_ENCODER_FOLDERS, text_encoder)))


class AceStepLoadPlanner(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepLoadPlanner",
            display_name="Load ACE-Step Planner",
            category=LOADERS,
            description="Loads the 5 Hz language model, which plans a song before it is made.",
            search_aliases=["ace step lm", "5hz lm", "thinking model"],
            inputs=[
                FileInput(
                    "planner",
                    options=_options(TEXT_ENCODER_FOLDERS, last=TEXT_ENCODER_WORDS),
                    tooltip="0.6B, 1.7B or 4B: a file or folder in models/text_encoders, or an all-in-one file in "
                    "models/checkpoints.",
                )
            ],
            outputs=[PlannerSocket.Output(display_name="planner", tooltip="For Plan, Idea, Format and Understand.")],
        )

    @classmethod
    def execute(cls, planner):
        return io.NodeOutput(load_planner(folders.path_of(TEXT_ENCODER_FOLDERS, planner)))


class AceStepLoadVAE(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepLoadVAE",
            display_name="Load ACE-Step VAE",
            category=LOADERS,
            description="Loads the audio codec between 48 kHz stereo and 25 Hz latents.",
            search_aliases=["oobleck", "audio vae"],
            inputs=[
                FileInput(
                    "vae",
                    options=_options(VAE_FOLDERS),
                    tooltip="A file or folder in models/vae, or an all-in-one file in models/checkpoints.",
                )
            ],
            outputs=[io.Vae.Output(tooltip="Works with our nodes and with core's audio VAE nodes.")],
        )

    @classmethod
    def execute(cls, vae):
        return io.NodeOutput(load_vae(folders.path_of(VAE_FOLDERS, vae)))


def _options(categories: tuple[str, ...], last: tuple[str, ...] = ()) -> list[str]:
    """Return what to choose from, names with one of the words `last` behind all others; never nothing at all."""
    names = [name for category in categories for name in models_in(category)]
    return sorted(names, key=lambda name: any(word in name.lower() for word in last)) or [folders.NO_MODELS]


def _describe(model) -> str:
    guess = "" if model.variant_known else " (assumed: neither the name nor a configuration tells)"
    size = "XL" if model.diffusion_model.config.timbre_class_token else "2B"
    return f"{size} {model.variant}{guess}, {str(model.get_dtype()).removeprefix('torch.')}"
