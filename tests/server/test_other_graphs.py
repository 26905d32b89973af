"""Graphs as other people wire them, core's nodes between ours, in a live ComfyUI: no wrong sound without a word.

The laws of each kind are in tests/nodes (test_latent_chains, test_conditioning_nodes, test_hooks); here the same
things go through prompts, files and ComfyUI's caches.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from acestep_pack.acestep_core.codes.files import load as load_codes
from acestep_pack.acestep_core.constants import SAMPLE_RATE
from api_prompts import Prompt, add, assert_fails, link, node, saved, text_to_song
from client import Client, Run
from comfyui import Server

pytestmark = pytest.mark.server

TWO_PLANS = "<|audio_code_1|>" * 50 + "\r\n \r\n" + "<|audio_code_777|>" * 50
_seeds = itertools.count(5_000_000, 100)


def song(codes: str = "", **changes: dict) -> Prompt:
    """A short song of two steps that saves nothing yet; with codes, two plans of it."""
    prompt = text_to_song(AceStepSample={"steps": 2, "seed": next(_seeds)}, **changes)
    for name in ("AceStepSave", "AceStepDecode"):
        del prompt[node(prompt, name)]
    if codes:
        read = add(prompt, "AceStepCodesFromText", text=codes)
        prompt[node(prompt, "AceStepEncode")]["inputs"]["codes"] = [read, 0]
    return prompt


def decode(prompt: Prompt, latent: list, **inputs: object) -> list:
    settings = {"normalize": True, "peak_dbfs": -1.0, "fade_in": 0.0, "fade_out": 0.0}
    return [add(prompt, "AceStepDecode", vae=link(prompt, "AceStepLoadVAE"), latent=latent, **settings, **inputs), 0]


def save(prompt: Prompt, audio: list, **inputs: object) -> str:
    return add(prompt, "AceStepSave", audio=audio, filename_prefix="audio/other", format="wav 32-bit float", **inputs)


def seeds_of(paths: list[Path]) -> list[int | None]:
    takes = [json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["acestep"]["take"] for path in paths]
    return [take and take["seed"] for take in takes]


def latent_of(server: Server, run: Run, at: str) -> torch.Tensor:
    assert run.ok, run.errors
    (file,) = run.outputs[at]["latents"]
    return load_file(server.output_dir / file["subfolder"] / file["filename"])["latent_tensor"]


def samples_of(path: Path) -> np.ndarray:
    samples, sample_rate = soundfile.read(path, dtype="float32", always_2d=True)
    assert sample_rate == SAMPLE_RATE
    return samples


def test_takes_joined_in_turned_order_keep_their_seeds(server: Server, client: Client) -> None:
    prompt = song()
    first = node(prompt, "AceStepSample")
    seed = prompt[first]["inputs"]["seed"]
    second = add(prompt, "AceStepSample", **{**prompt[first]["inputs"], "seed": seed + 1})
    turned = [add(prompt, "LatentBatch", samples1=[second, 0], samples2=[first, 0]), 0]
    at = save(prompt, decode(prompt, turned), latent=turned)
    assert seeds_of(saved(server, client.run(prompt), at)) == [seed + 1, seed]


def test_a_second_pass_by_cores_sampler_has_no_seed_of_ours(server: Server, client: Client) -> None:
    prompt = song()
    ours, model, encode = (node(prompt, name) for name in ("AceStepSample", "AceStepLoadModel", "AceStepEncode"))
    (negative,) = [add(prompt, "ConditioningZeroOut", conditioning=[encode, 0])]
    settings = {"seed": 99, "steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 0.5}
    refined = add(
        prompt,
        "KSampler",
        model=[model, 0],
        positive=[encode, 0],
        negative=[negative, 0],
        latent_image=[ours, 0],
        **settings,
    )
    at = save(prompt, decode(prompt, [refined, 0]), latent=[refined, 0])
    (path,) = saved(server, client.run(prompt), at)
    assert seeds_of([path]) == [None]
    assert "seed" not in path.stem


@pytest.mark.parametrize("picked", [0, 1])
def test_a_picked_take_is_saved_with_the_codes_of_its_own_plan(server: Server, client: Client, picked: int) -> None:
    prompt = song(TWO_PLANS)
    one = [add(prompt, "LatentFromBatch", samples=link(prompt, "AceStepSample"), batch_index=picked, length=1), 0]
    at = save(prompt, decode(prompt, one), codes=link(prompt, "AceStepCodesFromText"))
    (path,) = saved(server, client.run(prompt), at)
    (codes,) = load_codes(path.with_suffix(".codes.json")).sequences
    assert set(codes) == {(1, 777)[picked]}


@pytest.mark.parametrize("changed", [False, True], ids=["picked", "picked and changed"])
def test_a_picked_take_of_a_repaint_keeps_its_own_recording_or_asks_for_it(
    server: Server, client: Client, changed: bool
) -> None:
    prompt = song(TWO_PLANS)
    sampler, encode = node(prompt, "AceStepSample"), node(prompt, "AceStepEncode")
    sound = decode(prompt, [sampler, 0])
    recordings = [add(prompt, "AceStepEncodeAudio", vae=link(prompt, "AceStepLoadVAE"), audio=sound), 0]
    where = {"start": 4.0, "end": 6.0, "unit": "seconds", "feather": 0.0, "invert": False}
    region = [add(prompt, "AceStepRegion", latent=recordings, **where), 0]
    task = [add(prompt, "AceStepRepaint", source=recordings, mask=region, mode="balanced", strength=0.5), 0]
    again = add(prompt, "AceStepEncode", **{**prompt[encode]["inputs"], "task": task})
    del prompt[again]["inputs"]["codes"]
    painted = {**prompt[sampler]["inputs"], "conditioning": [again, 0], "latent": [again, 1]}
    taken = [add(prompt, "AceStepSample", **painted), 0]
    one = [add(prompt, "LatentFromBatch", samples=taken, batch_index=1, length=1), 0]
    if changed:
        one = [add(prompt, "LatentMultiply", samples=one, multiplier=0.99), 0]
    sources, result = save(prompt, sound), save(prompt, decode(prompt, one, task=task))
    if changed:
        assert_fails(client, prompt, "AceStepDecode", "nobody knows which of 2 recordings item 1 of this latent")
        return
    run = client.run(prompt)
    _, second = map(samples_of, saved(server, run, sources))
    (kept,) = map(samples_of, saved(server, run, result))
    assert np.array_equal(kept[: 3 * SAMPLE_RATE], second[: 3 * SAMPLE_RATE])
    assert np.array_equal(kept[7 * SAMPLE_RATE :], second[7 * SAMPLE_RATE :])
    assert not np.array_equal(kept[5 * SAMPLE_RATE : 6 * SAMPLE_RATE], second[5 * SAMPLE_RATE : 6 * SAMPLE_RATE])


@pytest.fixture
def lora(server: Server) -> Iterator[str]:
    """A LoRA on every cross-attention of the turbo model's decoder."""
    weights = load_file(server.base_dir / "models" / "diffusion_models" / "acestep_v1.5_turbo.safetensors")
    generator, made = torch.Generator().manual_seed(1), {}
    for name, weight in weights.items():
        if "decoder" in name and name.endswith(("cross_attn.k_proj.weight", "cross_attn.v_proj.weight")):
            stem = "diffusion_model." + name.removesuffix(".weight")
            made[f"{stem}.lora_up.weight"] = torch.randn(weight.shape[0], 4, generator=generator)
            made[f"{stem}.lora_down.weight"] = torch.randn(4, weight.shape[1], generator=generator)
    path = server.base_dir / "models" / "loras" / "cross attention.safetensors"
    save_file(made, path)
    yield path.name
    path.unlink()


def hooked_song(lora: str, end: float, sampler: str) -> Prompt:
    """A song under a hook up to a share of the steps, sampled by our node or core's; saves the latent."""
    prompt = song()
    ours, encode = node(prompt, "AceStepSample"), link(prompt, "AceStepEncode")
    hooks = [add(prompt, "CreateHookLoraModelOnly", lora_name=lora, strength_model=1.0), 0]
    properties = {"cond_NEW": encode, "strength": 1.0, "set_cond_area": "default", "hooks": hooks}
    hooked = [add(prompt, "ConditioningSetProperties", **properties), 0]
    first = [add(prompt, "ConditioningSetTimestepRange", conditioning=hooked, start=0.0, end=end), 0]
    second = [add(prompt, "ConditioningSetTimestepRange", conditioning=encode, start=end, end=1.0), 0]
    both = [add(prompt, "ConditioningCombine", conditioning_1=first, conditioning_2=second), 0]
    prompt[ours]["inputs"] |= {"conditioning": both, "seed": 7, "steps": 4}
    made = [ours, 0]
    if sampler == "KSampler":
        zeroed = [add(prompt, "ConditioningZeroOut", conditioning=encode), 0]
        settings = {"seed": 7, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        settings |= {"model": link(prompt, "AceStepLoadModel"), "latent_image": link(prompt, "AceStepEncode", 1)}
        made = [add(prompt, "KSampler", positive=both, negative=zeroed, **settings), 0]
    add(prompt, "SaveLatent", samples=made, filename_prefix="latents/hooked")
    return prompt


@pytest.mark.parametrize("sampler", ["AceStepSample", "KSampler"])
def test_a_hook_for_a_part_of_the_steps_acts_in_that_part(
    server: Server, client: Client, lora: str, sampler: str
) -> None:
    never, some, always = (
        latent_of(server, client.run(prompt), node(prompt, "SaveLatent"))
        for prompt in (hooked_song(lora, end, sampler) for end in (0.0, 0.45, 1.0))
    )
    assert all((one - other).abs().max() > 0.1 for one, other in itertools.combinations((never, some, always), 2))


def test_a_schedule_in_two_nodes_is_the_schedule_in_one(server: Server, client: Client) -> None:
    def sampled(*parts: tuple[int, int]) -> torch.Tensor:
        prompt = song(TWO_PLANS.split("\r")[0])
        encode = node(prompt, "AceStepEncode")
        prompt[encode]["inputs"]["codes_strength"] = 0.5
        zeroed = [add(prompt, "ConditioningZeroOut", conditioning=[encode, 0]), 0]
        settings = {"noise_seed": 7, "steps": 4, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"}
        settings |= {"model": link(prompt, "AceStepLoadModel"), "positive": [encode, 0], "negative": zeroed}
        made = [encode, 1]
        for start, end in parts:
            flags = {"add_noise": "disable" if start else "enable"}
            flags["return_with_leftover_noise"] = "disable" if end == 4 else "enable"
            steps = {"start_at_step": start, "end_at_step": end}
            made = [add(prompt, "KSamplerAdvanced", latent_image=made, **settings, **flags, **steps), 0]
        at = add(prompt, "SaveLatent", samples=made, filename_prefix="latents/parts")
        return latent_of(server, client.run(prompt), at)

    assert torch.equal(sampled((0, 4)), sampled((0, 2), (2, 4)))


def test_a_repeated_latent_makes_as_many_takes_and_a_picture_is_no_mask(server: Server, client: Client) -> None:
    prompt = song()
    sampler, encode = node(prompt, "AceStepSample"), node(prompt, "AceStepEncode")
    prompt[sampler]["inputs"]["latent"] = [add(prompt, "RepeatLatentBatch", samples=[encode, 1], amount=4), 0]
    at = add(prompt, "SaveLatent", samples=[sampler, 0], filename_prefix="latents/four")
    assert len(latent_of(server, client.run(prompt), at)) == 4

    picture = [add(prompt, "SolidMask", value=1.0, width=512, height=512), 0]
    faded = [add(prompt, "FeatherMask", mask=picture, left=64, top=64, right=64, bottom=64), 0]
    prompt[sampler]["inputs"]["latent"] = [add(prompt, "SetLatentNoiseMask", samples=[encode, 1], mask=faded), 0]
    assert_fails(client, prompt, "AceStepSample", "this mask is a picture of 512x512", "ACE-Step Region")
