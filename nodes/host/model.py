"""Our DiT as a ComfyUI MODEL: what core's samplers, guiders, LoRA loaders and memory management expect.

The network is the core's AceStep with ComfyUI's forward signature. Everything a generation computes once
lives in a `Run`, made by a wrapper around core's outer sample and gone at its end.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import comfy.utils
import torch

from ...acestep_core.checkpoints.read import DiTFile, read_dit
from ...acestep_core.models.acestep import AceStep, AceStepConfig
from ...acestep_core.models.conditioner import Tokens
from ...acestep_core.models.layers import Build
from ...acestep_core.models.silence import SILENCE_FRAMES, encoded_silence, published_silence
from ...acestep_core.pipeline.condition import Encoding
from ...acestep_core.pipeline.memory import activation_bytes
from ...acestep_core.pipeline.run import Branch, Run
from ...acestep_core.pipeline.tasks import TEXT2MUSIC, Source, cover
from ...acestep_core.types import AudioCodes, plan_of
from . import folders, memory
from .sockets import ACESTEP_KEY, ROWS_KEY

RUN_KEY = "acestep_run"


class BranchCond:
    """A Branch on its way through core's condition batching (the interface of comfy.conds)."""

    def __init__(self, branch: Branch, explicit_rows: bool) -> None:
        self.branch, self.explicit_rows = branch, explicit_rows

    def process_cond(self, batch_size: int, **_kwargs) -> BranchCond:
        """Return the cond for a batch: its own rows if they were given, else plans taken in turn."""
        if self.explicit_rows:
            return self
        rows = tuple(plan_of(item, None, self.branch.encoding.n_plans) for item in range(batch_size))
        return BranchCond(replace(self.branch, rows=rows), False)

    def can_concat(self, other: BranchCond) -> bool:
        return self.branch.encoding.n_tokens == other.branch.encoding.n_tokens

    def concat(self, others: list[BranchCond]) -> tuple[Branch, ...]:
        return (self.branch, *(other.branch for other in others))

    def size(self) -> list[int]:
        return [len(self.branch.rows), self.branch.encoding.n_tokens]


class Network(AceStep):
    """AceStep under ComfyUI's calling convention; `dtype` is the one its weights are kept in."""

    def __init__(self, config: AceStepConfig, build: Build) -> None:
        super().__init__(config, build)
        self.dtype = build.dtype

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, acestep=(), **_kwargs):
        """Return the velocity [B, 64, T] of latents x [B, 64, T]; acestep holds the batch's Branches."""
        options = transformer_options or {}
        run: Run = options[RUN_KEY]
        t = float(timestep[0]) if run.at is None else run.at.t
        frames = x.transpose(1, 2)
        step, n_steps = _where(run, t, options)
        branches = [replace(branch, plain=step >= branch.encoding.turns_plain_at(n_steps)) for branch in acestep]
        return run.velocity(frames, t, branches).transpose(1, 2)


class AceStepModel(comfy.model_base.ACEStep15):
    """ComfyUI's model object. Subclasses core's own so that core's LoRA key map knows it."""

    def __init__(
        self,
        file: DiTFile,
        config: comfy.supported_models.ACEStep15,
        silence: torch.Tensor,
        device: torch.device,
    ) -> None:
        def network(device, operations, dtype, **_config):
            return Network(file.config, Build(memory.with_attention(operations), dtype, device))

        comfy.model_base.BaseModel.__init__(
            self, config, comfy.model_base.ModelType.FLOW, device=device, unet_model=network
        )
        self.variant, self.variant_known = file.variant, file.variant_known
        self.alignment_heads = file.alignment_heads
        self.silence = silence

    def extra_conds(self, **kwargs):
        """Return the one condition our network takes, from our conditioning or from core's own."""
        states = kwargs["cross_attn"]
        encoding = kwargs.get(ACESTEP_KEY) or _core_encoding(kwargs)
        rows = kwargs.get(ROWS_KEY)
        # All-zero text is core's sign for "without the prompt" (ConditioningZeroOut).
        branch = Branch(encoding, rows or (), null=not bool(torch.count_nonzero(states)))
        return {ACESTEP_KEY: BranchCond(branch, explicit_rows=rows is not None)}

    def extra_conds_shapes(self, **kwargs):
        return {}

    def memory_required(self, input_shape, cond_shapes=None):
        """Return the bytes of activations a forward over input_shape [B, 64, T] needs."""
        n_tokens = max((size[1] for size in (cond_shapes or {}).get(ACESTEP_KEY, ())), default=0)
        itemsize = comfy.model_management.dtype_size(self.get_dtype_inference())
        config = self.diffusion_model.config
        return activation_bytes(config, input_shape[0], input_shape[-1], n_tokens, itemsize)


def load_model(path: Path, variant: str, weight_dtype: str, vae=None, disable_dynamic: bool = False):
    """Return a ComfyUI MODEL of a DiT file or folder. The VAE encodes silence where the file has none."""
    file = read_dit(path, variant, folders.read)
    silence = _silence(file, vae)
    # Convert old quantisation again: in an all-in-one file its marker is visible only without the prefix.
    state, _ = comfy.utils.convert_old_quants(file.state, "", metadata={})
    load_device, offload_device = mm.get_torch_device(), mm.unet_offload_device()
    config = _config(weight_dtype, state, load_device)
    model = AceStepModel(file, config, silence, offload_device)
    patcher = memory.patcher(model, load_device, offload_device, dynamic=not disable_dynamic)
    memory.fill(patcher, model.diffusion_model, state)
    patcher.cached_patcher_init = (load_model, (path, variant, weight_dtype, vae))
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, ACESTEP_KEY, _with_run)
    return patcher


def _silence(file: DiTFile, vae) -> torch.Tensor:
    """Return the silence latents [1, n, 64] of a checkpoint: its own, else a VAE's, else the published ones.

    Raises ValueError where none of the three is to be had.
    """
    if file.silence is not None:
        return file.silence
    if vae is not None:
        return encoded_silence(lambda audio: vae.encode(audio.movedim(1, -1)))
    if file.is_released_size:
        return published_silence(SILENCE_FRAMES)
    raise ValueError('this model file has no silence latent; connect a VAE to "vae", or load the official folder')


def require_ours(patcher) -> AceStepModel:
    """Return the model behind a MODEL socket.

    Raises ValueError for a MODEL that our loader did not make.
    """
    if not isinstance(patcher.model, AceStepModel):
        raise ValueError(
            f'this MODEL is a {type(patcher.model).__name__} from another loader; load it with "Load ACE-Step Model" '
            "(AceStepLoadModel)"
        )
    return patcher.model


def _with_run(executor, *args, **kwargs):
    """Wrap core's outer sample: give the generation its Run, and take it away however it ends."""
    guider = executor.class_obj
    model = guider.model_patcher.model
    options = guider.model_options.setdefault("transformer_options", {})
    options[RUN_KEY] = Run(model.diffusion_model, model.silence)
    try:
        return executor(*args, **kwargs)
    finally:
        del options[RUN_KEY]


def _where(run: Run, t: float, options: dict) -> tuple[int, int]:
    """Return which step of how many a forward belongs to: our sampler says so, for others the sigmas do."""
    sigmas = options["sample_sigmas"]
    step = run.at.step if run.at is not None else int((sigmas > t + 1e-6).sum())
    return step, len(sigmas) - 1


def _config(weight_dtype: str, state: dict[str, torch.Tensor], device: torch.device):
    """Return core's configuration object for our network, with dtypes and quantisation decided."""
    config = comfy.supported_models.ACEStep15({"audio_model": "ace1.5"})
    supported = list(memory.COMPUTE_DTYPES)
    config.quant_config = comfy.utils.detect_layer_quantization(state, "")
    chosen = memory.WEIGHT_DTYPES[weight_dtype]
    if chosen is None:
        stored = None if config.quant_config else comfy.utils.weight_dtype(state)
        chosen = mm.unet_dtype(device, comfy.utils.calculate_parameters(state), supported, weight_dtype=stored)
    compute = mm.unet_manual_cast(None if config.quant_config else chosen, device, supported)
    config.set_inference_dtype(chosen, compute, device=device)
    return config


def _core_encoding(kwargs: dict) -> Encoding:
    """Return the encoding of conditioning made by core's TextEncodeAceStepAudio1.5, as core means it.

    A reference latent is both the timbre and the song to cover, and then codes are ignored. Lengths and
    padding follow our own rules, which are the official project's.
    """
    text, lyric = kwargs["cross_attn"], kwargs.get("conditioning_lyrics")
    if lyric is None:
        raise ValueError(
            'this CONDITIONING is not ACE-Step 1.5\'s; make it with "ACE-Step Encode Song" or TextEncodeAceStepAudio1.5'
        )
    references = kwargs.get("reference_audio_timbre_latents") or ()
    reference = references[-1].transpose(1, 2) if len(references) else None
    codes = kwargs.get("audio_codes") if reference is None else None
    return Encoding(
        text=_unpadded(text),
        text_to_music=_unpadded(text),
        lyric=_unpadded(lyric),
        codes=AudioCodes(tuple(tuple(sequence) for sequence in codes)) if codes is not None else AudioCodes(),
        timbre=reference,
        task=TEXT2MUSIC if reference is None else cover(Source(reference)),
    )


def _unpadded(states: torch.Tensor) -> Tokens:
    return Tokens(states, torch.ones(states.shape[:2], dtype=torch.bool, device=states.device))
