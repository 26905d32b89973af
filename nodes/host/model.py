"""Our DiT as a ComfyUI MODEL: what core's samplers, guiders, LoRA loaders and memory management expect.

The network is the core's AceStep with ComfyUI's forward signature. Everything a generation computes once
lives in a `Sampling`, made by a wrapper around core's outer sample and gone at its end.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.supported_models
import comfy.utils
import torch

from ...acestep_core.checkpoints.read import DiTFile, read_dit
from ...acestep_core.models.acestep import AceStep, AceStepConfig
from ...acestep_core.models.layers import Build
from ...acestep_core.models.silence import SILENCE_FRAMES, encoded_silence, published_silence
from ...acestep_core.pipeline.memory import activation_bytes
from ...acestep_core.pipeline.run import Branch, Run, Window
from ...acestep_core.pipeline.sample import Evaluation
from ...acestep_core.types import Take, in_turn, plan_of
from . import folders, memory, progress
from .conditioning import ENCODING_KEY, ROWS_KEY, encoding_of
from .latents import ACESTEP_KEY, fitted_mask

# How far a noise level may be off by rounding.
LEVEL_ERROR = 1e-4
# In transformer_options, for as long as a sampling lasts.
SAMPLING_KEY = "acestep_sampling"
# In transformer_options of one call of the model.
CALL_KEY = "acestep_call"
# What core's and others' nodes leave in transformer_options, and this network does not read.
UNREAD = {
    "patches": "patches of attention or blocks (FreeU, HyperTile, a Hypernetwork, a style model)",
    "patches_replace": "replaced attention or blocks (SkipLayerGuidance, PerturbedAttentionGuidance, SAG)",
    "rope_options": "scaled rotary positions (ScaleROPE)",
    "optimized_attention_override": "another attention function",
}


@dataclass(eq=False)
class Sampling:
    """What the forwards of one sampling share. Made by a wrapper around core's outer sample, gone at its end."""

    at: Evaluation | None = None  # the current evaluation of our own loop; None under core's samplers
    levels: tuple[float, ...] = ()  # the schedule of our own loop
    unread: set[str] = field(default_factory=set)  # keys of UNREAD that were met
    runs: dict[Network, Run] = field(default_factory=dict)  # one each, should a guider bring a second model

    def run_of(self, network: Network) -> Run:
        """Return the Run of a network, made at the first call."""
        if network not in self.runs:
            self.runs[network] = Run(network, network.silence)
            self.runs[network].expect([level for level in self.levels if level > 0])
        return self.runs[network]


@dataclass(frozen=True, eq=False)
class Call:
    """What one call of the model knows of the MODEL around the network."""

    weights: Hashable  # names the weights in force, as far as hooks change them within a sampling
    level_at: Callable[[float], float]  # the noise level at a share of a whole schedule


class BranchCond:
    """A Branch on its way through core's condition batching (the interface of comfy.conds)."""

    def __init__(self, branch: Branch, explicit_rows: bool, n_frames: int) -> None:
        self.branch, self.explicit_rows, self.n_frames = branch, explicit_rows, n_frames

    def process_cond(self, batch_size: int, area: list[int] | None = None, **_kwargs) -> BranchCond:
        """Return the cond for a batch: its own rows if they were given, else plans taken in turn.

        area: how many frames it is for, and from which on; of the window, where it sees one.
        """
        branch = self.branch
        if not self.explicit_rows:
            branch = replace(branch, rows=self._rows_of(batch_size))
        if area is not None:
            size, start = area
            branch = replace(branch, window=Window(self._frames[start : start + size], self.n_frames))
        return BranchCond(branch, self.explicit_rows, self.n_frames)

    def of_window(self, window, cond_retain: list[int], batch_size: int) -> BranchCond:
        """Return the cond for one of core's context windows, over time (dim 2) or over the batch (dim 0).

        Raises ValueError for one over channels.
        """
        if window.dim == 1:
            raise ValueError('context windows of an ACE-Step model go over time: set "dim" to 2')
        if window.dim == 0:
            rows = torch.tensor(self.branch.rows if self.explicit_rows else self._rows_of(batch_size))
            rows = window.get_tensor(rows, dim=0, retain_index_list=cond_retain)
            return BranchCond(replace(self.branch, rows=tuple(rows.tolist())), True, self.n_frames)
        frames = window.get_tensor(torch.tensor(self._frames), dim=0, retain_index_list=cond_retain)
        return BranchCond(
            replace(self.branch, window=Window(tuple(frames.tolist()), self.n_frames)),
            self.explicit_rows,
            self.n_frames,
        )

    def can_concat(self, other: BranchCond) -> bool:
        return self.branch.encoding.n_tokens == other.branch.encoding.n_tokens

    def concat(self, others: list[BranchCond]) -> tuple[Branch, ...]:
        return (self.branch, *(other.branch for other in others))

    def size(self) -> list[int]:
        return [len(self.branch.rows), self.branch.encoding.n_tokens]

    @property
    def _frames(self) -> tuple[int, ...]:
        return tuple(range(self.n_frames)) if self.branch.window is None else self.branch.window.frames

    def _rows_of(self, batch_size: int) -> tuple[int, ...]:
        return tuple(plan_of(item, None, self.branch.encoding.n_plans) for item in range(batch_size))


class Network(AceStep):
    """AceStep under ComfyUI's calling convention; `dtype` is the one its weights are kept in."""

    def __init__(self, config: AceStepConfig, build: Build, silence: torch.Tensor) -> None:
        super().__init__(config, build)
        self.dtype = build.dtype
        self.silence = silence

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        """Return the velocity [B, 64, T] of latents x [B, 64, T], within the wrappers of other nodes."""
        options = transformer_options or {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        executor = comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers)
        return executor.execute(x, timestep, context, control, options, **kwargs)

    def _forward(self, x, timestep, context, control, options, acestep=(), **_kwargs):
        """Return the velocity [B, 64, T] of latents x [B, 64, T]; acestep holds the batch's Branches."""
        sampling: Sampling = options.get(SAMPLING_KEY) or Sampling()
        call: Call = options[CALL_KEY]
        sampling.unread.update(UNREAD.keys() & options.keys() if any(map(options.get, UNREAD)) else ())
        t = float(options["sigmas"][0]) if sampling.at is None else sampling.at.t
        branches = [replace(branch, plain=_is_plain(branch, t, sampling, call, options)) for branch in acestep]
        v = sampling.run_of(self).velocity(x.transpose(1, 2), t, branches, call.weights)
        return v.transpose(1, 2)


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
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, ACESTEP_KEY, _with_sampling)
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


def _with_sampling(executor, noise, latent_image, sampler, sigmas, *args, **kwargs):
    """Wrap core's outer sample: give it a Sampling, take it away however it ends, and remember what core sampled.

    Raises ValueError for a MODEL or SIGMAS whose noise is not a flow's.
    """
    guider = executor.class_obj
    check_flow(guider.model_patcher)
    _check_levels(sigmas)
    if len(noise) > 1 and windows_over_time(guider.model_options, noise.shape[-1]):
        raise ValueError(
            'core\'s context windows take one item of a batch at a time; make one take, or use "ACE-Step Sampler", '
            "which makes several one by one"
        )
    for conds in guider.conds.values():
        for cond in conds:
            _fit_mask(cond, noise)
    options = guider.model_options.setdefault("transformer_options", {})
    sampling = options[SAMPLING_KEY] = Sampling()
    try:
        samples = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    finally:
        del options[SAMPLING_KEY]
    _remember(guider.conds.get("positive") or (), samples)
    if sampling.at is None and sampling.unread:  # our own sampler tells it itself
        progress.warn("\n".join(unread_warnings(sampling)))
    return samples


def unread_warnings(sampling: Sampling) -> list[str]:
    """Return what was on the MODEL of a sampling without effect, in sentences."""
    return [f"the MODEL carries {UNREAD[key]}, which have no effect on ACE-Step" for key in sorted(sampling.unread)]


def windows_over_time(model_options: dict, n_frames: int) -> bool:
    """Tell whether core would cut latents of n_frames into context windows."""
    handler = model_options.get("context_handler")
    return handler is not None and handler.dim != 0 and n_frames > handler.context_length


def check_flow(patcher) -> None:
    """Raise ValueError for a MODEL with a ModelSampling node that turns its velocities into something else."""
    sampling = patcher.get_model_object("model_sampling")
    if not isinstance(sampling, comfy.model_sampling.CONST):
        raise ValueError(
            "a node has set this MODEL to another kind of noise than ACE-Step was trained on; remove it "
            "(ModelSamplingDiscrete, ModelSamplingContinuousEDM, ModelSamplingContinuousV, ModelSamplingStableCascade)"
        )


def _check_levels(sigmas: torch.Tensor) -> None:
    """Raise ValueError for SIGMAS outside 1 to 0, or that end at 1, where core divides by 1 - sigma."""
    if len(sigmas) and float(sigmas.max()) > 1 + LEVEL_ERROR:
        raise ValueError(
            f"the SIGMAS begin at {float(sigmas.max()):.3g}, they are of another kind of model; noise levels of "
            "ACE-Step go from 1 to 0: make them with BasicScheduler"
        )
    if len(sigmas) and float(sigmas[-1]) > 1 - LEVEL_ERROR:
        raise ValueError(
            "the SIGMAS end at 1, which is nothing but noise; let them fall towards 0 (without FlipSigmas, and with a "
            "SplitSigmas step above 0)"
        )


def _fit_mask(cond: dict, noise: torch.Tensor) -> None:
    """Bring the mask of a condition to [B, T], as core expects it of latents [B, 64, T] but does not make it.

    Raises ValueError for a picture.
    """
    if "mask" not in cond:
        return
    mask = fitted_mask(cond["mask"], noise.shape[-1])
    if len(mask) > 1:
        mask = in_turn(mask, torch.arange(len(noise)))
    cond["mask"] = mask
    if cond.pop("set_area_to_bounds", False):
        inside = (mask != 0).any(0).nonzero().flatten().tolist() or [0]
        cond["area"] = (inside[-1] + 1 - inside[0], inside[0])


def _remember(positive: Sequence[dict], samples: torch.Tensor) -> None:
    """Remember which plan core's samplers followed in each item of samples [B, 64, T]; our own say more themselves."""
    beside = next((cond[ACESTEP_KEY] for cond in positive if ACESTEP_KEY in cond), None)
    if beside is None or any(ROWS_KEY in cond for cond in positive):
        return
    conds = [cond["model_conds"].get(ACESTEP_KEY) for cond in positive if "model_conds" in cond]
    n_plans = max((cond.branch.encoding.n_plans for cond in conds if cond is not None), default=0)
    if n_plans:
        takes = [Take(plan=plan_of(item, None, n_plans)) for item in range(len(samples))]
        beside.origins.add(samples.to(mm.intermediate_dtype()), takes)


def _weights_in_force(patcher) -> Hashable:
    """Return what names the weights that hooks have put in force, None without hooks."""
    hooks = None if patcher is None else patcher.current_hooks
    return None if hooks is None else tuple((hook.hook_ref, hook.strength) for hook in hooks.hooks)


def _is_plain(branch: Branch, t: float, sampling: Sampling, call: Call, options: dict) -> bool:
    """Tell whether a step goes on by the text alone: by its number in our own loop, in core's by where it leads.

    Core may run a part of a schedule, so that only levels tell where in the whole a step is.
    """
    encoding = branch.encoding
    if sampling.at is not None:
        return sampling.at.step >= encoding.turns_plain_at(len(options["sample_sigmas"]) - 1)
    lower = [float(sigma) for sigma in options["sample_sigmas"] if sigma < t - 1e-6]
    return max(lower, default=0.0) < call.level_at(encoding.task.strength) - 1e-4


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
