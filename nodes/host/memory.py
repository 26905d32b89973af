"""ComfyUI's memory management, seen from the pack: devices, dtypes, operations, and room for activations."""

from __future__ import annotations

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.utils
import torch
from comfy.ldm.modules.attention import optimized_attention

from ...acestep_core.checkpoints.keys import SCALED_FP8, is_quantization
from ...acestep_core.checkpoints.scaled import FP8, dequantized
from ...acestep_core.models.layers import Build, scaled_dot_product_attention

# The checkpoints are bf16; half precision overflows in their attention.
# Source: ace-step/ACE-Step-1.5 issues 924 and 927.
COMPUTE_DTYPES = (torch.bfloat16, torch.float32)
WEIGHT_DTYPES = {
    "auto": None,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def with_attention(operations: type) -> type:
    """Return ComfyUI's layer classes with its attention beside them, as the core expects."""
    return type("AceStepOps", (operations,), {"attention": staticmethod(attention)})


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return attention [B, H, Sq, D] by the kernel the user chose for ComfyUI, where it takes our shapes.

    Sage and flash attention take no mask, and ComfyUI's CPU choice trades time for memory we do not use.
    """
    if mask is None and (mm.sage_attention_enabled() or mm.flash_attention_enabled()):
        gqa = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
        return optimized_attention(q, k, v, q.shape[1], skip_reshape=True, skip_output_reshape=True, **gqa)
    return scaled_dot_product_attention(q, k, v, mask)


def patcher(model: torch.nn.Module, load_device: torch.device, offload_device: torch.device, dynamic: bool = True):
    """Return ComfyUI's patcher around a model that has no weights yet; see `fill`.

    The class is looked up here, not imported: ComfyUI replaces it at start when it runs with dynamic VRAM.
    """
    make = comfy.model_patcher.CoreModelPatcher if dynamic else comfy.model_patcher.ModelPatcher
    mm.archive_model_dtypes(model)
    return make(model, load_device=load_device, offload_device=offload_device)


def fill(patcher, model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load weights into a patcher's model; under dynamic VRAM they stay backed by the file.

    Raises ValueError for scales that no layer takes and that cannot be multiplied in.
    """
    built = {name: weight.dtype for name, weight in model.named_parameters()}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=patcher.is_dynamic())
    if missing:
        raise RuntimeError(f"{len(missing)} weights are missing from the file, the first is {missing[0]}")
    scaled = {key.rpartition(".")[0] + ".weight" for key in unexpected if key != SCALED_FP8 and is_quantization(key)}
    for name, weight in _multiplied_out(scaled, state, built).items():
        # Layer by layer: a quantised layer drops its weight when it is loaded without.
        layer = model.get_submodule(name.removesuffix(".weight"))
        layer.load_state_dict({"weight": weight}, strict=False, assign=patcher.is_dynamic())
    model.eval().requires_grad_(False)


def _multiplied_out(
    weights: set[str], state: dict[str, torch.Tensor], built: dict[str, torch.dtype]
) -> dict[str, torch.Tensor]:
    """Return weights of a state dict with their scales multiplied in, in the dtypes that their layers were built in.

    ComfyUI's convolutions take no scales, nor do its linear layers where nothing in a file says that it has them.
    """
    if any(built.get(name) in FP8 for name in weights):
        raise ValueError(
            "the model file has fp8 weights with scales, but lacks the marks by which ComfyUI computes with them; "
            'choose "bf16" as weight_dtype'
        )
    own = {key: tensor for key, tensor in state.items() if key.rpartition(".")[0] + ".weight" in weights}
    plain = dequantized("the model file", own, torch.float32)
    return {name: plain[name].to(built[name]) for name in weights}


def text_encoder_build() -> tuple[Build, torch.dtype, torch.device, torch.device]:
    """Return how to build a text encoder, the dtype it computes in, and its load and offload devices."""
    load, offload = mm.text_encoder_device(), mm.text_encoder_offload_device()
    dtype = torch.bfloat16 if mm.should_use_bf16(load) else torch.float32
    return Build(with_attention(comfy.ops.manual_cast), dtype, offload), dtype, load, offload


def vae_build() -> tuple[Build, torch.dtype, torch.device, torch.device]:
    """Return how to build a VAE, the dtype it computes in, and its load and offload devices."""
    load, offload = mm.vae_device(), mm.vae_offload_device()
    dtype = mm.vae_dtype(load, list(COMPUTE_DTYPES))
    return Build(with_attention(comfy.ops.manual_cast), dtype, offload), dtype, load, offload


def load_for(patcher, memory_required: float) -> torch.device:
    """Make a model resident, with room for its activations, and return its device."""
    mm.load_models_gpu([patcher], memory_required=memory_required)
    return patcher.load_device


def room_beside(patcher) -> float:
    """Return the bytes of a device that activations may take once a model's weights are in."""
    device = patcher.load_device
    weights = min(patcher.model_size(), mm.maximum_vram_for_weights(device))
    return max(0, mm.get_total_memory(device) - weights - mm.extra_reserved_memory())


def capacity(patcher) -> float:
    """Return the bytes of a model's device that models and activations may take together."""
    return mm.get_total_memory(patcher.load_device) - mm.extra_reserved_memory()


def may_capture(patcher, dtype: torch.dtype) -> bool:
    """Tell whether a CUDA graph may go on reading a loaded model's weights where they are now.

    They must all be on the device in the dtype they compute in, patched by no layer as it runs, and not under
    dynamic VRAM, which moves them between two runs of a layer. Then ComfyUI's layers read the weights themselves
    and no copy. NVIDIA only. Never run on a GPU by this pack's tests.
    """
    device = patcher.load_device
    if device.type != "cuda" or not mm.is_nvidia() or patcher.is_dynamic():
        return False
    if any(weight.device != device or weight.dtype != dtype for weight in patcher.model.parameters()):
        return False
    layers = patcher.model.modules()
    return not any(getattr(layer, name, []) for layer in layers for name in ("weight_function", "bias_function"))


def to_intermediate(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor where ComfyUI keeps what travels between nodes, float32."""
    return tensor.to(mm.intermediate_device(), torch.float32)


def intermediate_device() -> torch.device:
    """Return where ComfyUI keeps what travels between nodes."""
    return mm.intermediate_device()


def to_intermediate_device(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor where ComfyUI keeps what travels between nodes, its dtype unchanged."""
    return tensor.to(mm.intermediate_device())
