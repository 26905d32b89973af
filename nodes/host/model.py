"""Our DiT as a ComfyUI MODEL: what core's samplers, guiders, LoRA loaders and memory management expect.

The network is in `network`, what happens around a sampling of it in `sampling`.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.patcher_extension
import comfy.supported_models
import comfy.utils
import torch

from ...acestep_core.checkpoints.read import DiTFile, read_dit
from ...acestep_core.models.layers import Build
from ...acestep_core.models.silence import SILENCE_FRAMES, encoded_silence, published_silence
from ...acestep_core.pipeline.memory import activation_bytes
from ...acestep_core.pipeline.run import Branch
from . import folders, memory
from .conditioning import ENCODING_KEY, ROWS_KEY, encoding_of
from .latents import ACESTEP_KEY
from .network import CALL_KEY, BranchCond, Call, Network
from .sampling import with_sampling


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
            return Network(file.config, Build(memory.with_attention(operations), dtype, device), silence)

        comfy.model_base.BaseModel.__init__(
            self, config, comfy.model_base.ModelType.FLOW, device=device, unet_model=network
        )
        self.variant, self.variant_known = file.variant, file.variant_known
        self.alignment_heads = file.alignment_heads
        self.silence = silence
        self.own_sampling = type(self.model_sampling)  # what ModelSampling nodes put another in place of

    def extra_conds(self, **kwargs):
        """Return the one condition our network takes, from our conditioning or from core's own."""
        states, n_frames = kwargs.get("cross_attn"), kwargs["noise"].shape[-1]
        encoding = kwargs.get(ENCODING_KEY) or encoding_of(states, kwargs, n_frames)
        rows = kwargs.get(ROWS_KEY)
        # All-zero text is core's sign for "without the prompt" (ConditioningZeroOut).
        branch = Branch(encoding, rows or (), null=not bool(torch.count_nonzero(states)))
        return {ACESTEP_KEY: BranchCond(branch, rows is not None, n_frames)}

    def resize_cond_for_context_window(self, cond_key, cond_value, window, x_in, device, retain_index_list=()):
        """Return the condition of one of core's context windows, None for what is not ours."""
        if not isinstance(cond_value, BranchCond):
            return None
        return cond_value.of_window(window, list(retain_index_list), x_in.shape[0])

    def _apply_model(self, x, t, c_concat=None, c_crossattn=None, control=None, transformer_options=None, **kwargs):
        call = Call(_weights_in_force(self.current_patcher), self.model_sampling.percent_to_sigma)
        options = {**(transformer_options or {}), CALL_KEY: call}
        return super()._apply_model(x, t, c_concat, c_crossattn, control, options, **kwargs)

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
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, ACESTEP_KEY, with_sampling)
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


def _weights_in_force(patcher) -> Hashable:
    """Return what names the weights that hooks have put in force, None without hooks."""
    hooks = None if patcher is None else patcher.current_hooks
    return None if hooks is None else tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks)


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
