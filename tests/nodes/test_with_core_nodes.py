"""`docs/with_core_nodes.md` says what every node of core's does to ours: the rows are read from it and tried here.

LATENT, CONDITIONING and hooks have laws of their own in test_latent_chains, test_conditioning_nodes and test_hooks.
"""

from __future__ import annotations

import functools
import json
import re
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import comfy.patcher_extension
import folder_paths
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import core_nodes
import golden_models
from acestep_pack.acestep_core.models.conditioner import Tokens
from acestep_pack.acestep_core.pipeline.condition import Encoding
from acestep_pack.acestep_core.pipeline.tasks import text2music
from acestep_pack.acestep_core.types import AudioCodes
from acestep_pack.nodes.audio import AceStepEncodeAudio
from acestep_pack.nodes.decode import AceStepDecode
from acestep_pack.nodes.host import model as models
from acestep_pack.nodes.host.conditioning import conditioning_of
from acestep_pack.nodes.host.latents import Origins, frame_mask, latent
from acestep_pack.nodes.lora import AceStepLoadLora
from acestep_pack.nodes.region import AceStepRegion
from acestep_pack.nodes.sample import AceStepSample
from acestep_pack.nodes.save import AceStepSave
from acestep_pack.nodes.tasks import AceStepRepaint
from comfyui import comfyui_path
from core_nodes import SOCKETS, run
from golden_models import z
from pack import PACK_ROOT

PAGE = PACK_ROOT / "docs" / "with_core_nodes.md"
STATUSES = ("works", "refused", "told", "no effect", "fails in core")
FRAMES, CHANNELS, STEPS, SEED, GUIDANCE = 40, 64, 2, 7, 3.0


# What the page says.


@dataclass(frozen=True)
class Said:
    """One node in one section of the page."""

    socket: str
    node: str
    status: str


@functools.cache
def page() -> tuple[Said, ...]:
    rows = []
    for section in PAGE.read_text(encoding="utf-8").split("\n## ")[1:]:
        socket, _, body = section.partition("\n")
        for named, status, _how in re.findall(r"^\| (`.+?) \| (.+?) \| (.+?) \|$", body, re.MULTILINE):
            rows += [Said(socket, node, status) for node in re.findall(r"`([^`]+)`", named)]
    return tuple(rows)


def said(socket: str) -> list[str]:
    return [row.node for row in page() if row.socket == socket]


def test_the_page_has_a_section_for_every_socket_and_known_words_in_it() -> None:
    assert list(dict.fromkeys(row.socket for row in page())) == list(SOCKETS)
    assert {row.status for row in page()} <= set(STATUSES)


@pytest.mark.parametrize("socket", SOCKETS)
def test_every_node_with_a_socket_is_named_once_in_its_section_and_no_other(socket: str) -> None:
    assert sorted(said(socket)) == sorted(
        node for node in core_nodes.classes() if socket in core_nodes.sockets_of(node)
    )


# What there is to try it on.


def tokens(name: str, n_tokens: int) -> Tokens:
    return Tokens(z(name, 1, n_tokens, 48), torch.ones(1, n_tokens, dtype=torch.bool))


def song(name: str = "one", **given: object) -> list:
    text = tokens(f"{name}.text", 7)
    made = {"text": text, "text_to_music": text, "lyric": tokens(f"{name}.lyric", 20), **given}
    return conditioning_of(Encoding(**made), Origins())


def without_words(positive: list) -> list:
    return run("ConditioningZeroOut", conditioning=positive)[0]


EMPTY, SONG = latent(torch.zeros(1, FRAMES, CHANNELS)), latent(z("song", 1, FRAMES, CHANNELS))
SOUND = {"waveform": 0.1 * z("sound", 2, 2, 48_000), "sample_rate": 48_000}
PICTURE = z("picture", 1, 64, 64, 3).sigmoid()


class FilmVae:
    """Stands for the VAE of a picture or film model, which many nodes ask for before they write what we do not read."""

    latent_channels = 16
    downscale_ratio = 8

    def encode(self, pixels: Tensor) -> Tensor:
        return torch.zeros(1, 16, 1, 8, 8)

    def spacial_compression_encode(self) -> int:
        return 8


def region() -> Tensor:
    return AceStepRegion.execute(SONG, 0.4, 0.8, "seconds", 0.0, False).result[0]


def write_model(folder: Path, size: float, variant: str) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"is_turbo": variant == "turbo"}))
    save_file({name: size * value for name, value in golden_models.weights("2b").items()}, folder / "model.safetensors")
    torch.save(z("gen.silence", 1, 800, CHANNELS).transpose(1, 2).contiguous(), folder / "silence_latent.pt")
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory):
    with torch.inference_mode():
        return models.load_model(write_model(tmp_path_factory.mktemp("base") / "m", 1.0, "base"), "auto", "fp32")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory):
    """Another model of the same size."""
    with torch.inference_mode():
        return models.load_model(write_model(tmp_path_factory.mktemp("other") / "m", 0.9, "base"), "auto", "fp32")


@functools.cache
def adapter() -> dict[str, Tensor]:
    """A LoRA of rank 4 on every attention of the decoder, in PEFT's naming."""
    made = {}
    for name, weight in golden_models.weights("2b").items():
        if name.startswith("decoder.layers.") and name.endswith("_proj.weight") and "attn" in name:
            stem = "base_model.model." + name.removeprefix("decoder.").removesuffix(".weight")
            made[f"{stem}.lora_A.weight"] = 0.3 * z(f"{name}.A", 4, weight.shape[1])
            made[f"{stem}.lora_B.weight"] = 0.3 * z(f"{name}.B", weight.shape[0], 4)
    return made


LORA, HYPERNETWORK, PNG, FLAC = "voice.safetensors", "hyper.pt", "picture.png", "sound.flac"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ComfyUI's folders for one test; those of models hold what the nodes ask for."""
    for kind, suffix in (("loras", ".safetensors"), ("hypernetworks", ".pt")):
        (tmp_path / kind).mkdir()
        monkeypatch.setitem(folder_paths.folder_names_and_paths, kind, ([str(tmp_path / kind)], {suffix}))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    for kind in ("output", "input", "temp"):
        (tmp_path / kind).mkdir()
        monkeypatch.setattr(folder_paths, f"{kind}_directory", str(tmp_path / kind))
    core_nodes.classes()
    return tmp_path


def ours(model, positive: list | None = None, latent_in: dict = EMPTY, **given: object) -> tuple[Tensor, list[str]]:
    """Return the samples of our sampler node, and the warnings in its text."""
    widgets = {"seed": SEED, "takes_per_plan": 1, "steps": STEPS, "shift": 0.0, "guidance": GUIDANCE, **given}
    made = AceStepSample.execute(model, positive or song(), latent_in, **widgets)
    return made.result[0]["samples"], made.ui["text"][0].split("\n")[1:]


def cores(model, **given: object) -> Tensor:
    """Return the samples of core's KSampler."""
    positive = song()
    inputs = {
        **{"model": model, "positive": positive, "negative": without_words(positive), "latent_image": EMPTY},
        **{"seed": SEED, "steps": STEPS, "cfg": GUIDANCE, "sampler_name": "euler", "scheduler": "simple"},
    }
    return run("KSampler", **{**inputs, **given})[0]["samples"]


def guider_of(model, cfg: float = GUIDANCE, positive: list | None = None):
    positive = positive or song()
    return run("CFGGuider", model=model, positive=positive, negative=without_words(positive), cfg=cfg)[0]


def levels_of(model, steps: int = STEPS) -> Tensor:
    return run("BasicScheduler", model=model, scheduler="simple", steps=steps)[0]


def custom(model, **given: object) -> Tensor:
    """Return the samples of SamplerCustomAdvanced, its parts given or KSampler's."""
    parts = {
        "noise": run("RandomNoise", noise_seed=SEED)[0],
        "guider": given.get("guider") or guider_of(model),
        "sampler": run("KSamplerSelect", sampler_name="euler")[0],
        "sigmas": levels_of(model),
        "latent_image": EMPTY,
    }
    return run("SamplerCustomAdvanced", **{**parts, **given})[0]["samples"]


def close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, atol=1e-4, rtol=0)


def seen(attempt: Callable[[], str]) -> str:
    """Return which status an attempt shows: its own, or that of an error of this pack or of core."""
    try:
        return attempt()
    except Exception as error:
        files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        ours = any(files[-1].is_relative_to(PACK_ROOT / part) for part in ("nodes", "acestep_core"))
        if ours and isinstance(error, ValueError):
            return "refused"
        if any(file.is_relative_to(comfyui_path()) for file in files):
            return "fails in core"
        raise  # a fault of the test


# Rows that nothing here can try, and what they would need.
NOT_TRIED = {
    "TorchCompileModel": "minutes of compiling",
    "TrainLoraNode": "a training run",
    "ImageOnlyCheckpointSave": "a picture encoder",
    **dict.fromkeys(
        ("QwenImageDiffsynthControlnet", "ZImageFunControlnet", "WanUni3CControlnetApply", "WanInfiniteTalkToVideo"),
        "a patch made for another network",
    ),
    **dict.fromkeys(("USOStyleReference", "SUPIRApply", "AnimaLLLiteApply"), "a patch made for another network"),
    **dict.fromkeys(("DiffControlNetLoader", "ControlNetInpaintingAliMamaApply"), "a ControlNet"),
    **dict.fromkeys(("AudioEncoderEncode", "TextGenerate", "TextGenerateLTX2Prompt"), "a model that hears"),
    "MiniMaxH3ReferenceToVideo": "a text encoder of MiniMax",
    **dict.fromkeys(
        ("RemoveBackground", "SAM3_TrackToMask", "SCAIL2ColoredMask", "MediaPipeFaceMask"), "its own model"
    ),
    **dict.fromkeys(("Load3D", "RenderSplat"), "a scene in 3D"),
}


def rows(socket: str) -> list:
    """Return the rows of a section that can be tried, as parameters."""
    return [pytest.param(row, id=row.node) for row in page() if row.socket == socket and row.node not in NOT_TRIED]


def test_what_is_not_tried_is_on_the_page() -> None:
    assert NOT_TRIED.keys() <= {row.node for row in page()}


# MODEL.

GIVEN: dict[str, Callable[[], dict]] = {
    **dict.fromkeys(("LoraLoaderModelOnly", "LoraLoaderBypassModelOnly"), lambda: {"lora_name": LORA}),
    **dict.fromkeys(("LoraLoader", "LoraLoaderBypass"), lambda: {"lora_name": LORA, "clip": None}),
    "LoraModelLoader": lambda: {"lora": adapter()},
    "HypernetworkLoader": lambda: {"hypernetwork_name": HYPERNETWORK},
    "CFGOverride": lambda: {"cfg": 5.0},
    "ModelNoiseScale": lambda: {"noise_scale": 2.0},
    "MiniMaxH3SigmaShift": lambda: {"shift_video": 6.0},
    "SkipLayerGuidanceSD3": lambda: {"layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiT": lambda: {"double_layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    "SkipLayerGuidanceDiTSimple": lambda: {"double_layers": "0", "start_percent": 0.0, "end_percent": 1.0},
    **dict.fromkeys(("EasyCache", "LazyCache"), lambda: {"reuse_threshold": 3.0, "start_percent": 0.0}),
    "ModelComputeDtype": lambda: {"dtype": "bf16"},
    "ContextWindowsManual": lambda: {"context_length": 16, "context_overlap": 4, "dim": 2},
    "WanContextWindowsManual": lambda: {"context_length": 61, "context_overlap": 4},
    "LTXVContextWindows": lambda: {"context_length": 121, "context_overlap": 8},
    "LatentApplyOperationCFG": lambda: {"operation": run("LatentOperationTonemapReinhard")[0]},
    "PerpNeg": lambda: {"empty_conditioning": song("empty")},
    "SAM3_Detect": lambda: {"conditioning": song()},
    "SAM3_VideoTrack": lambda: {"conditioning": song()},
    "HiDreamO1PatchSeamSmoothing": lambda: {"start_percent": 0.0, "end_percent": 1.0},
}


def filled(node: str, model, **more: object) -> dict:
    """Return the inputs of a node: what GIVEN says, and ours for the required sockets."""
    fill = {
        **{"MODEL": model.clone(), "CONDITIONING": song(), "LATENT": SONG, "IMAGE": PICTURE, "AUDIO": SOUND},
        **{"MASK": region(), "SIGMAS": torch.tensor([1.0, 0.5, 0.0]), "VAE": FilmVae()},
    }
    stated = core_nodes.inputs(node)
    small = {"width": 64, "height": 64, "length": 5, "batch_size": 1}  # of films
    given = {
        name: size for name, size in small.items() if name in stated and "VAE" in [kind for kind, _ in stated.values()]
    }
    given |= {**GIVEN.get(node, dict)(), **more}
    for name, (kind, _) in stated.items():
        if kind in fill and name in core_nodes.required(node):
            given.setdefault(name, fill[kind])
    return given


def patched(node: str, model, **more: object):
    """Return the MODEL that a node makes of ours."""
    made = run(node, **filled(node, model, **more))
    return made[core_nodes.outputs(node).index("MODEL")]


@pytest.fixture
def files(folders: Path) -> None:
    """What the loaders among the nodes load."""
    save_file(adapter(), folders / "loras" / LORA)
    layers = [{"linear.0.weight": 0.1 * torch.eye(64), "linear.0.bias": torch.zeros(64)}] * 2
    torch.save({"activation_func": "linear", 64: layers}, folders / "hypernetworks" / HYPERNETWORK)


def decoder_calls(model) -> Iterator[list[int]]:
    calls: list[int] = []
    watch = model.model.diffusion_model.decoder.register_forward_pre_hook(lambda *_: calls.append(1))
    yield calls
    watch.remove()


@functools.cache
def plain_of(model, steps: int) -> tuple[Tensor, list[str]]:
    return ours(model, steps=steps)


def changed(model, made, steps: int = STEPS, **given: object) -> str:
    """Return what a MODEL made of ours shows under our sampler."""
    plain, usual = ours(model, steps=steps, **given) if given else plain_of(model, steps)
    samples, warnings = ours(made, steps=steps, **given)
    assert torch.isfinite(samples).all()
    extra = [warning for warning in warnings if warning not in usual]
    if not close(samples, plain):
        return "works"
    if extra:
        return "told"
    assert torch.equal(samples, plain)
    return "no effect"


def merged(node: str, other) -> dict:
    """Return what a merge takes beside the first model: the second, and halves."""
    stated = core_nodes.inputs(node)
    if "model2" not in stated:
        return {}
    return {"model2": other.clone(), **{name: 0.5 for name, (kind, _) in stated.items() if kind == "FLOAT"}}


def all_at_half(model) -> dict[str, float]:
    """Return the strength of a merge for every weight of the network."""
    return {f"diffusion_model.{name}": 0.5 for name, _ in model.model.diffusion_model.named_parameters()}


MERGES_OF_OTHERS = {node for node in said("MODEL") if node.startswith("ModelMerge")} - {
    *("ModelMergeSimple", "ModelMergeBlocks", "ModelMergeAdd", "ModelMergeSubtract")
}


def masked() -> dict:
    return run("SetLatentNoiseMask", samples=SONG, mask=region())[0]


def saved(folder: Path, pattern: str) -> dict[str, Tensor]:
    (path,) = folder.rglob(pattern)
    return load_file(path)


def as_in_the_file(node: str, model, folder: Path, **more: object) -> str:
    run(node, model=model, filename_prefix="kept", **more)
    state = saved(folder / "output", "kept*.safetensors")
    weights = golden_models.weights("2b")
    return (
        "works" if all(torch.equal(state[f"model.diffusion_model.{name}"], weights[name]) for name in weights) else ""
    )


def of_the_loader() -> comfy.model_patcher.ModelPatcher:
    """A MODEL as one of core's loaders gives it: not ours."""
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(torch.nn.Linear(1, 1), cpu, cpu)


def follows_the_shift(make: Callable[[object], object], model) -> str:
    shifted = run("ModelSamplingSD3", model=model, shift=6.0)[0]
    return "works" if str(make(shifted)) != str(make(model)) else "no effect"


MODEL_ENDS: dict[str, Callable] = {
    "KSampler": lambda model, other, folder: "works" if torch.equal(cores(model), custom(model)) else "",
    "KSamplerAdvanced": lambda model, other, folder: equal_to_ksampler(
        model,
        "KSamplerAdvanced",
        **{"noise_seed": SEED, "steps": STEPS, "cfg": GUIDANCE, "sampler_name": "euler", "scheduler": "simple"},
    ),
    "SamplerCustom": lambda model, other, folder: equal_to_ksampler(
        model,
        "SamplerCustom",
        **{"noise_seed": SEED, "cfg": GUIDANCE, "sigmas": levels_of(model)},
        sampler=run("KSamplerSelect", sampler_name="euler")[0],
    ),
    "BasicScheduler": lambda model, other, folder: follows_the_shift(levels_of, model),
    "BetaSamplingScheduler": lambda model, other, folder: follows_the_shift(
        lambda each: run("BetaSamplingScheduler", model=each), model
    ),
    "SamplingPercentToSigma": lambda model, other, folder: follows_the_shift(
        lambda each: run("SamplingPercentToSigma", model=each, sampling_percent=0.5), model
    ),
    "SamplerSASolver": lambda model, other, folder: with_sampler("SamplerSASolver", model),
    "SDTurboScheduler": lambda model, other, folder: with_levels("SDTurboScheduler", model),
    "AddNoise": lambda model, other, folder: with_noise("AddNoise", model),
    "ModelSave": lambda model, other, folder: as_in_the_file("ModelSave", model, folder),
    "CheckpointSave": lambda model, other, folder: as_in_the_file("CheckpointSave", model, folder, clip=None, vae=None),
    "LoraSave": lambda model, other, folder: saves_a_lora(model, other, folder),
    "GetICLoRAParameters": lambda model, other, folder: (
        "no effect"
        if run("GetICLoRAParameters", **dict.fromkeys(core_nodes.inputs("GetICLoRAParameters"), model))
        else ""
    ),
}


def equal_to_ksampler(model, node: str, **given: object) -> str:
    positive = song()
    made = run(node, model=model, positive=positive, negative=without_words(positive), latent_image=EMPTY, **given)
    return "works" if torch.equal(made[0]["samples"], cores(model)) else ""


def saves_a_lora(model, other, folder: Path) -> str:
    difference = run("ModelMergeSubtract", model1=other, model2=model)[0]
    run("LoraSave", filename_prefix="kept", rank=2, model_diff=difference)
    return "works" if any("lora_up" in name for name in saved(folder / "output", "kept*.safetensors")) else ""


@pytest.mark.parametrize("row", rows("MODEL"))
def test_a_node_on_the_model_does_what_the_page_says(base, other, folders: Path, files: None, row: Said) -> None:
    def attempt() -> str:
        if row.node in MODEL_ENDS:
            return MODEL_ENDS[row.node](base, other, folders)
        if row.node in said("GUIDER"):
            return with_guider(row.node, base, other)
        if "MODEL" not in core_nodes.outputs(row.node):
            run(row.node, **filled(row.node, base))
            return "nothing"
        if "MODEL" not in [kind for kind, _ in core_nodes.inputs(row.node).values()]:
            return changed(base, of_the_loader())
        made = patched(row.node, base, **merged(row.node, other))
        given = {"latent_in": masked()} if row.node == "DifferentialDiffusion" else {}
        if "Cache" in row.node:
            given["steps"] = 8
        if row.node in MERGES_OF_OTHERS:  # as ModelMergeBlocks, which is sampled
            return "works" if all_at_half(base) == {key: patches[0][0] for key, patches in made.patches.items()} else ""
        return changed(base, made, **given)

    assert seen(attempt) == row.status


@pytest.mark.parametrize(
    "node", ["ModelSamplingSD3", "ModelSamplingAuraFlow", "ModelSamplingFlux", "ModelSamplingLTXV"]
)
def test_the_shift_of_a_node_is_the_shift_of_the_widget(base, node: str) -> None:
    made = patched(node, base)
    shift = float(made.get_model_object("model_sampling").percent_to_sigma(0.5))
    assert close(ours(made)[0], ours(base, shift=shift / (1 - shift))[0])


def test_the_shift_of_the_widget_wins_and_the_text_says_so(base) -> None:
    made = run("ModelSamplingSD3", model=base, shift=6.0)[0]
    samples, warnings = ours(made, shift=2.0)
    assert torch.equal(samples, ours(base, shift=2.0)[0])
    assert 'a node on the MODEL sets shift 6; "shift" is 2, and that is used' in warnings


def test_a_shift_beyond_ours_is_refused(base) -> None:
    with pytest.raises(ValueError, match="a node on the MODEL sets shift 12, it must be above 0 and at most 10"):
        ours(run("ModelSamplingSD3", model=base, shift=12.0)[0])


def test_a_scaled_noise_leaves_the_shift_alone(base) -> None:
    samples, warnings = ours(run("ModelNoiseScale", model=base, noise_scale=2.0)[0])
    assert torch.equal(samples, ours(base)[0])
    assert "ModelNoiseScale has no effect here: this sampler draws its own noise" in warnings


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@pytest.mark.parametrize("method", ["apg", "cfg"])
def test_cfg_override_is_the_guidance_of_that_part(base, cfg: float, method: str) -> None:
    options = run_options(guidance_method=method)
    whole = run("CFGOverride", model=base, cfg=cfg)[0]
    assert close(ours(whole, options=options)[0], ours(base, guidance=cfg, options=options)[0])
    half = run("CFGOverride", model=base, cfg=cfg, start_percent=0.5)[0]
    part = ours(half, options=options)[0]
    assert not close(part, ours(base, guidance=cfg, options=options)[0])
    assert not close(part, ours(base, options=options)[0])


@pytest.mark.parametrize("node", ["EasyCache", "LazyCache"])
@pytest.mark.parametrize("sampler", [lambda model: ours(model, steps=8), lambda model: cores(model, steps=8)])
def test_a_cache_with_a_high_threshold_calls_the_network_less_often(base, node: str, sampler: Callable) -> None:
    counted = []
    for model in (base, patched(node, base)):
        watched = decoder_calls(model)
        calls = next(watched)
        sampler(model)
        counted.append(len(calls))
        next(watched, None)
    assert 0 < counted[1] < counted[0]


def test_cores_lora_loader_is_ours(base, files: None) -> None:
    theirs = run("LoraLoaderModelOnly", model=base, lora_name=LORA, strength_model=0.7)[0]
    inputs = {given.id: given.default for given in AceStepLoadLora.GET_SCHEMA().inputs if hasattr(given, "default")}
    mine = AceStepLoadLora.execute(**{**inputs, "model": base, "adapter": LORA, "strength": 0.7}).result[0]
    assert close(ours(theirs)[0], ours(mine)[0])


def test_context_windows_that_hold_the_whole_song_change_nothing(base) -> None:
    made = run("ContextWindowsManual", model=base, context_length=FRAMES, context_overlap=4, dim=2)[0]
    assert torch.equal(ours(made)[0], ours(base)[0])


def run_options(**given: object):
    from acestep_pack.nodes.sample import AceStepSamplerOptions

    inputs = {each.id: each.default for each in AceStepSamplerOptions.GET_SCHEMA().inputs if hasattr(each, "default")}
    inputs.pop("morph_from", None)
    return AceStepSamplerOptions.execute(**{**inputs, **given}).result[0]


def test_a_film_with_its_sound_is_no_latent_of_a_song(base) -> None:
    both = run("LTXVConcatAVLatent", video_latent=SONG, audio_latent=SONG)[0]
    with pytest.raises(ValueError, match=r"this latent is a film with its sound, ACE-Step 1\.5 needs"):
        ours(base, latent_in=both)


# GUIDER.

GUIDERS: dict[str, Callable] = {
    "CFGGuider": lambda model, other: guider_of(model),
    "BasicGuider": lambda model, other: run("BasicGuider", model=model, conditioning=song())[0],
    "DualCFGGuider": lambda model, other: run(
        "DualCFGGuider",
        **{"model": model, "cond1": song(), "cond2": song("two"), "negative": without_words(song())},
        **{"cfg_conds": GUIDANCE, "cfg_cond2_negative": 2.0},
    )[0],
    "DualModelGuider": lambda model, other: run(
        "DualModelGuider",
        **{"model": model, "model_negative": other, "positive": song(), "negative": without_words(song())},
        cfg=GUIDANCE,
    )[0],
    "PerpNegGuider": lambda model, other: run(
        "PerpNegGuider",
        **{"model": model, "positive": song(), "negative": song("two"), "empty_conditioning": song("empty")},
        cfg=GUIDANCE,
    )[0],
}


def with_guider(node: str, model, other) -> str:
    if node == "SamplerCustomAdvanced":
        return "works" if torch.equal(custom(model), cores(model)) else ""
    samples = custom(model, guider=GUIDERS[node](model, other))
    assert torch.isfinite(samples).all()
    by_ksampler = {"CFGGuider": GUIDANCE, "BasicGuider": 1.0}
    if node in by_ksampler:
        return "works" if torch.equal(samples, cores(model, cfg=by_ksampler[node])) else ""
    return "works" if not close(samples, cores(model)) else "no effect"


@pytest.mark.parametrize("row", rows("GUIDER"))
def test_a_guider_does_what_the_page_says(base, other, row: Said) -> None:
    assert seen(lambda: with_guider(row.node, base, other)) == row.status


def test_two_passes_of_one_model_are_ordinary_guidance(base) -> None:
    assert close(custom(base, guider=GUIDERS["DualModelGuider"](base, base)), cores(base))


def test_a_second_pass_without_a_song_is_refused(base) -> None:
    guider = run("DualModelGuider", model=base, positive=song(), cfg=GUIDANCE)[0]
    with pytest.raises(ValueError, match=r"this CONDITIONING is not ACE-Step 1\.5's"):
        custom(base, guider=guider)


# SIGMAS.

LEVELS = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0])
SIGMAS_GIVEN: dict[str, dict] = {
    "ManualSigmas": {"sigmas": "1, 0.6, 0.2, 0"},
    "SplitSigmas": {"step": 2},
    "SplitSigmasDenoise": {"denoise": 0.5},
    "SetFirstSigma": {"sigma": 0.9},
}


def with_levels(node: str, model) -> str:
    given = {"sigmas": LEVELS, **SIGMAS_GIVEN.get(node, {})}
    given |= {"model": model, "steps": 5, "latent": SONG}
    made = run(node, **{name: given[name] for name in core_nodes.inputs(node) if name in given})
    sigmas = made[core_nodes.outputs(node).index("SIGMAS")]
    samples = custom(model, sigmas=sigmas)
    return "works" if torch.isfinite(samples).all() and not close(samples, custom(model)) else "no effect"


@pytest.mark.parametrize("row", rows("SIGMAS"))
def test_a_schedule_does_what_the_page_says(base, row: Said) -> None:
    def attempt() -> str:
        if "SIGMAS" in core_nodes.outputs(row.node):
            return with_levels(row.node, base)
        if row.node == "AddNoise":
            return with_noise(row.node, base)
        longer = levels_of(base, 3)
        if row.node == "SamplerCustomAdvanced":
            return "works" if not close(custom(base, sigmas=longer), custom(base)) else ""
        return MODEL_ENDS[row.node](base, None, None)

    assert seen(attempt) == row.status


@pytest.mark.parametrize(
    ("sigmas", "sentence"),
    [
        ((14.6, 1.0, 0.0), "the SIGMAS begin at 14.6, they are of another kind of model; noise levels of ACE-Step go"),
        ((0.0, 0.5, 1.0), "the SIGMAS end at 1, which is nothing but noise; let them fall towards 0"),
        ((1.0,), "the SIGMAS end at 1, which is nothing but noise"),
    ],
)
def test_levels_that_no_flow_has_are_refused(base, sigmas: tuple[float, ...], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        custom(base, sigmas=torch.tensor(sigmas))


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_two_halves_of_a_schedule_are_one_run(base, step: int, strength: float) -> None:
    codes = AudioCodes((tuple(613 * i % 64_000 for i in range(8)),))
    positive = song(codes=codes, task=text2music(strength))
    sigmas = levels_of(base, 4)
    high, low = run("SplitSigmas", sigmas=sigmas, step=step)
    at_once = custom(base, guider=guider_of(base, positive=positive), sigmas=sigmas)
    half = custom(base, guider=guider_of(base, positive=positive), sigmas=high)
    noise = run("DisableNoise")[0]
    both = custom(
        base,
        **{"guider": guider_of(base, positive=positive), "sigmas": low, "noise": noise},
        latent_image={"samples": half},
    )
    assert close(both, at_once)
    if strength < 1:
        assert not close(at_once, custom(base, guider=guider_of(base, positive=song(codes=codes)), sigmas=sigmas))


# NOISE.


def with_noise(node: str, model) -> str:
    noise = run("RandomNoise", noise_seed=SEED)[0]
    if node == "AddNoise":
        made = run(node, model=model, noise=noise, sigmas=torch.tensor([0.6, 0.0]), latent_image=SONG)[0]["samples"]
        mixed = 0.6 * noise.generate_noise(SONG) + 0.4 * SONG["samples"]
        return "works" if close(made, mixed) else ""
    if node in ("RandomNoise", "SamplerCustomAdvanced"):
        return "works" if torch.equal(custom(model, noise=noise), cores(model)) else ""
    given = {"warped_noise": SONG} if node == "VOIDWarpedNoiseSource" else {}
    samples = custom(model, noise=run(node, **given)[0])
    return "works" if torch.isfinite(samples).all() and not close(samples, cores(model)) else "no effect"


@pytest.mark.parametrize("row", rows("NOISE"))
def test_a_noise_does_what_the_page_says(base, row: Said) -> None:
    assert seen(lambda: with_noise(row.node, base)) == row.status


# SAMPLER.


def with_sampler(node: str, model) -> str:
    """Run it twice: the same seed is the same sound."""
    given = {"model": model} if "model" in core_nodes.inputs(node) else {}
    levels = torch.tensor([1.0, 0.75, 0.5, 0.0])
    if node == "SamplerDPMAdaptative":
        given |= {"rtol": 0.5, "atol": 0.5}  # fewer steps
    first, second = (custom(model, sampler=run(node, **given)[0], sigmas=levels) for _ in range(2))
    assert torch.isfinite(first).all()
    return "works" if torch.equal(first, second) and not close(first, custom(model)) else "no effect"


@pytest.mark.parametrize("row", rows("SAMPLER"))
def test_a_sampler_does_what_the_page_says(base, row: Said) -> None:
    def attempt() -> str:
        if "SAMPLER" in core_nodes.outputs(row.node):
            return with_sampler(row.node, base)
        return "works" if torch.equal(custom(base), cores(base)) else ""

    assert seen(attempt) == row.status


# AUDIO.

SAVERS = ("SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveAudioAdvanced", "PreviewAudio")


def decoded(vae) -> dict:
    two = latent(z("two", 2, FRAMES, CHANNELS))
    return AceStepDecode.execute(vae, two, False, -1.0, 0.0, 0.0).result[0]


AUDIO_GIVEN: dict[str, Callable[[dict], dict]] = {
    "EmptyAudio": lambda sound: {"duration": 1.0},
    "LoadAudio": lambda sound: {"audio": FLAC},
    "RecordAudio": lambda sound: {"audio": FLAC},
    "TrimAudioDuration": lambda sound: {"start_index": 0.2, "duration": 0.5},
    "JoinAudioChannels": lambda sound: dict(
        zip(("audio_left", "audio_right"), run("SplitAudioChannels", audio=sound), strict=True)
    ),
    "AudioAdjustVolume": lambda sound: {"volume": -6},
    "CreateVideo": lambda sound: {"images": PICTURE.repeat(30, 1, 1, 1)},
    "GetVideoComponents": lambda sound: {"video": run("CreateVideo", images=PICTURE, audio=sound)[0]},
    "WanDancerEncodeAudio": lambda sound: {"video_frames": 30},
    "WanDancerPadKeyframes": lambda sound: {"images": PICTURE.repeat(3, 1, 1, 1)},
    "WanDancerPadKeyframesList": lambda sound: {"images": PICTURE.repeat(3, 1, 1, 1)},
}


def heard(sound: dict, vae) -> bool:
    """Tell whether a sound goes on into our nodes, every take of it."""
    AceStepSave.execute(sound, "audio/kept", "flac")
    samples = AceStepEncodeAudio.execute(vae, sound).result[0]["samples"]
    return bool(torch.isfinite(samples).all()) and len(samples) == len(sound["waveform"])


@pytest.mark.parametrize("row", rows("AUDIO"))
def test_a_node_of_sound_does_what_the_page_says(base, vae, folders: Path, row: Said, monkeypatch) -> None:
    sound = decoded(vae)
    monkeypatch.setattr(AceStepSave, "hidden", None)

    def attempt() -> str:
        if row.node in ("LoadAudio", "RecordAudio"):
            AceStepSave.execute(sound, "kept", "flac")
            next((folders / "output").glob("kept*.flac")).rename(folders / "input" / FLAC)
        given = AUDIO_GIVEN.get(row.node, lambda sound: {})(sound)
        for name, (kind, _) in core_nodes.inputs(row.node).items():
            fill = {"AUDIO": sound, "LATENT": SONG, "VAE": vae, "MODEL": base, "CONDITIONING": song()}
            if kind in fill and name not in given:
                given[name] = fill[kind]
        made = run(row.node, **given)
        if "LATENT" in core_nodes.outputs(row.node):
            assert made[0]["samples"].shape[:2] == (2, CHANNELS)
        if row.node in SAVERS:
            assert any(folders.rglob("*ComfyUI*"))
        sounds = [each for each, kind in zip(made, core_nodes.outputs(row.node), strict=True) if kind == "AUDIO"]
        sounds = [each for given in sounds for each in (given if isinstance(given, list) else [given])]
        return "works" if all(heard(each, vae) for each in sounds) else ""

    assert seen(attempt) == row.status


# MASK.

MASK_GIVEN: dict[str, Callable[[], dict]] = {
    "InvertMask": dict,
    "ThresholdMask": lambda: {"value": 0.5},
    "GrowMask": lambda: {"expand": 3},
    "FeatherMask": lambda: {"left": 4, "right": 4},
    "CropMask": lambda: {"width": FRAMES, "height": 1},
    "MaskComposite": lambda: {"x": 0, "y": 0, "operation": "or"},
    "SolidMask": lambda: {"value": 1.0, "width": FRAMES, "height": 1},
    "BatchMasksNode": lambda: {"masks": {"mask0": region(), "mask1": region()}},
    "LoadImage": lambda: {"image": PNG},
    "LoadImageOutput": lambda: {"image": f"{PNG} [output]"},
    "LoadImageMask": lambda: {"image": PNG, "channel": "red"},
    "PorterDuffImageComposite": lambda: {"source_alpha": PICTURE[..., 0], "destination_alpha": PICTURE[..., 0]},
    "LatentCompositeMasked": lambda: {"x": 0, "y": 0, "mask": region()},
    "SAM3_VideoTrack": lambda: {"initial_mask": region()},
    "VAEEncodeForInpaint": lambda: {"mask": PICTURE[..., 0]},
    "InpaintModelConditioning": lambda: {"pixels": PICTURE, "mask": PICTURE[..., 0]},
    "VOIDInpaintConditioning": lambda: {"video": PICTURE.repeat(5, 1, 1, 1), "quadmask": PICTURE[..., 0]},
    "WanMoveTracksFromCoords": lambda: {"track_coords": '[[{"x": 1, "y": 2}]]', "track_mask": PICTURE[..., 0]},
    **dict.fromkeys(
        ("ConditioningSetProperties", "ConditioningSetPropertiesAndCombine"),
        lambda: {"cond_NEW": song("two"), "mask": region()},
    ),
    **dict.fromkeys(
        ("PairConditioningSetProperties", "PairConditioningSetPropertiesAndCombine"),
        lambda: {"positive_NEW": song("two"), "mask": region()},
    ),
}


def repainted(mask: Tensor) -> str:
    source = latent(SONG["samples"].transpose(1, 2).expand(len(mask), -1, -1))
    AceStepRepaint.execute(source, mask, "balanced", 0.5)
    return "works"


@pytest.mark.parametrize("row", rows("MASK"))
def test_a_mask_node_does_what_the_page_says(base, folders: Path, row: Said) -> None:
    def attempt() -> str:
        if row.node.startswith("LoadImage"):
            write_picture(folders, row.node)
        given = filled(row.node, base, **MASK_GIVEN.get(row.node, dict)())
        made = run(row.node, **given)
        by_kind = dict(zip(core_nodes.outputs(row.node), made, strict=True))
        if "MASK" in by_kind:
            mask = by_kind["MASK"]
            return repainted(mask[0] if isinstance(mask, list) else mask)
        if "CONDITIONING" in by_kind:
            positive = made[core_nodes.outputs(row.node).index("CONDITIONING")]
            same = torch.equal(ours(base, positive)[0], ours(base)[0])
            return "no effect" if same else "works"
        if "LATENT" in by_kind:
            ours(base, latent_in=by_kind["LATENT"])
        return "no effect" if "TRACKS" in by_kind else "works"

    assert seen(attempt) == row.status


def write_picture(folder: Path, node: str) -> None:
    from PIL import Image

    pixels = (255 * torch.cat((PICTURE, PICTURE[..., :1]), -1)[0]).byte().numpy()
    Image.fromarray(pixels).save(folder / ("output" if node.endswith("Output") else "input") / PNG)


def expected(node: str, mask: Tensor) -> Tensor:
    """Return what a node that keeps a mask of sound should make of it."""
    if node == "InvertMask":
        return 1 - mask
    if node == "GrowMask":
        return torch.nn.functional.max_pool1d(mask, 7, stride=1, padding=3)
    return mask


@pytest.mark.parametrize(
    "node", ["InvertMask", "ThresholdMask", "GrowMask", "MaskComposite", "CropMask", "MaskPreview"]
)
def test_a_region_survives_core_s_mask_nodes(base, node: str) -> None:
    made = run(node, **filled(node, base, **MASK_GIVEN.get(node, dict)()))[0]
    assert torch.equal(frame_mask(made, FRAMES), expected(node, region())[:, 0])


def test_a_feathered_region_fades_at_the_ends_of_the_song(base) -> None:
    full = run("SolidMask", value=1.0, width=FRAMES, height=1)[0]
    faded = frame_mask(run("FeatherMask", mask=full, left=4, top=0, right=4, bottom=0)[0], FRAMES)[0]
    assert faded.tolist() == pytest.approx([0.25, 0.5, 0.75, *[1] * (FRAMES - 6), 0.75, 0.5, 0.25])


@pytest.mark.parametrize("take", [repainted, lambda mask: run("SetLatentNoiseMask", samples=SONG, mask=mask)])
def test_a_picture_is_refused_unless_all_its_rows_are_equal(base, take: Callable) -> None:
    picture = PICTURE[..., 0][:, :, :FRAMES]
    sentence = f"this mask is a picture of {FRAMES}x64; for sound it is one row over time: make it with"

    def used(mask: Tensor) -> None:
        made = take(mask)
        if made != "works":
            ours(base, latent_in=made[0])

    with pytest.raises(ValueError, match=sentence):
        used(picture)
    used(picture[:, :1].expand(-1, 64, -1))
