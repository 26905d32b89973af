"""Adapters in a live ComfyUI: stacks that change the latents, reports that are right, refusals in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from api_prompts import Prompt, add, link, node, shipped, text_to_song
from client import Client, Run
from comfyui import Server
from lora_files import Made, write
from tiny_models import dit

pytestmark = pytest.mark.server

ROWS = ("PEFT folder", "LyCORIS LoKr", "PEFT folder, DoRA")
SAMPLING = {
    *("AceStepLoadModel", "AceStepLoadTextEncoder", "AceStepLoadVAE"),  # the VAE gives the tiny model its silence
    *("AceStepSong", "AceStepEncode", "AceStepSample"),
}


@pytest.fixture(scope="module")
def loras(server: Server) -> Iterator[dict[str, Made]]:
    """Adapters for the tiny turbo model in models/loras, and some that are for nothing here."""
    folder = server.base_dir / "models" / "loras"
    folder.mkdir(exist_ok=True)
    before = set(folder.rglob("*"))
    made = {row: write(folder, row, dit("turbo")) for row in ROWS}
    xl = write(folder, "kohya, full names", dit("xl-turbo"))
    xl.path.rename(folder / "xl.safetensors")
    save_file({"double_blocks.0.img_attn.lora_A.weight": torch.ones(4, 4)}, folder / "flux.safetensors")
    half = load_file(made["LyCORIS LoKr"].path)
    save_file(half | {"lora_te1_text_model.lora_up.weight": torch.ones(4, 4)}, folder / "partial.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "xl.safetensors").read_bytes()[:5_000])
    yield made
    for path in sorted(set(folder.rglob("*")) - before, reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def name(path: Path) -> str:
    return path.name + "/" * path.is_dir()


def with_loras(*chosen: tuple[str, float], seed: int = 5, weight_dtype: str = "fp32") -> tuple[Prompt, list[str]]:
    """Return a prompt that samples through a chain of adapters and saves its latent, and the adapters' nodes."""
    prompt = text_to_song(AceStepSample={"seed": seed, "steps": 2}, AceStepLoadModel={"weight_dtype": weight_dtype})
    prompt = {key: value for key, value in prompt.items() if value["class_type"] in SAMPLING}
    model, nodes = link(prompt, "AceStepLoadModel"), []
    for adapter, strength in chosen:
        parts = {f"strength_{part}": 1.0 for part in ("self_attention", "cross_attention", "mlp", "condition_encoder")}
        nodes.append(add(prompt, "AceStepLoadLora", model=model, adapter=adapter, strength=strength, **parts))
        model = [nodes[-1], 0]
    prompt[node(prompt, "AceStepSample")]["inputs"]["model"] = model
    add(prompt, "SaveLatent", samples=link(prompt, "AceStepSample"), filename_prefix="latents/lora")
    return prompt, nodes


def latents(server: Server, run: Run) -> np.ndarray:
    assert run.ok, run.errors
    (file,) = [file for output in run.outputs.values() for file in output.get("latents", ())]
    return load_file(server.output_dir / file["subfolder"] / file["filename"])["latent_tensor"].numpy()


def sampled(server: Server, client: Client, *chosen: tuple[str, float], **settings: str) -> np.ndarray:
    return latents(server, client.run(with_loras(*chosen, **settings)[0]))


def test_a_stack_changes_the_latents_and_each_node_reports(
    server: Server, client: Client, loras: dict[str, Made]
) -> None:
    prompt, nodes = with_loras(*((name(loras[row].path), 0.5) for row in ROWS))
    run = client.run(prompt)
    stacked = latents(server, run)
    bare = sampled(server, client)
    alone = [sampled(server, client, (name(loras[row].path), 0.5)) for row in ROWS]
    for one, other in zip([stacked, *alone], [bare, stacked, stacked, stacked], strict=True):
        assert not np.allclose(one, other, atol=1e-2)
    for each, row in zip(nodes, ROWS, strict=True):
        (report,) = run.outputs[each]["text"]
        assert report.splitlines()[0].startswith(f"{loras[row].path.name}: {row.split()[0]} ")
        assert report.splitlines()[1] == (
            "matched 22 of 22 modules: self-attention 8 at 0.5, cross-attention 8 at 0.5, mlp 6 at 0.5"
        )
        assert report in server.log()


def test_strength_0_and_taking_it_off_are_the_bare_model_bit_for_bit(
    server: Server, client: Client, loras: dict[str, Made]
) -> None:
    adapter = name(loras["PEFT folder"].path)
    bare = sampled(server, client, seed=6)
    on = sampled(server, client, (adapter, 1.0), seed=6)
    client.free()
    again = sampled(server, client, seed=6)
    off = sampled(server, client, (adapter, 0.0), seed=6)
    assert not np.allclose(on, bare, atol=1e-2)
    assert np.array_equal(again, bare)
    assert np.array_equal(off, bare)


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8_e4m3fn"])
def test_narrow_weights_take_a_stack(server: Server, client: Client, loras: dict[str, Made], weight_dtype: str) -> None:
    chosen = [(name(loras[row].path), 1.0) for row in ROWS[:2]]
    on = sampled(server, client, *chosen, weight_dtype=weight_dtype)
    assert np.isfinite(on).all()
    assert not np.allclose(on, sampled(server, client, weight_dtype=weight_dtype), atol=1e-2)


def test_core_lora_loader_stacks_with_ours(server: Server, client: Client, loras: dict[str, Made]) -> None:
    ours = (name(loras["PEFT folder"].path), 1.0)
    prompt, (own,) = with_loras(ours)
    core = add(
        prompt,
        "LoraLoaderModelOnly",
        model=[own, 0],
        lora_name=loras["LyCORIS LoKr"].path.name,
        strength_model=1.0,
    )
    prompt[node(prompt, "AceStepSample")]["inputs"]["model"] = [core, 0]
    both = sampled(server, client, ours, (loras["LyCORIS LoKr"].path.name, 1.0))
    np.testing.assert_allclose(latents(server, client.run(prompt)), both, atol=1e-3)


def test_a_partial_match_is_a_warning_and_the_song_is_made(client: Client, loras: dict[str, Made]) -> None:
    prompt, (own,) = with_loras(("partial.safetensors", 1.0))
    run = client.run(prompt)
    assert run.ok
    (report,) = run.outputs[own]["text"]
    assert report.splitlines()[-1] == "warning: 1 of 23 modules are not used: lora_te1_text_model"


REFUSED = {
    "xl.safetensors": "xl.safetensors is for ACE-Step 1.5 of width 96, and this model is of width 64: ",
    "flux.safetensors": "flux.safetensors is an adapter for an image model (Flux) ",
    "cut.safetensors": "cut.safetensors ends in its header: it looks truncated, download it again",
}


@pytest.mark.parametrize("adapter", REFUSED)
def test_a_wrong_adapter_is_refused_in_one_sentence_and_the_next_prompt_works(
    server: Server, client: Client, loras: dict[str, Made], adapter: str
) -> None:
    run = client.run(with_loras((adapter, 1.0))[0])
    (error,) = run.errors
    assert error["node_type"] == "AceStepLoadLora"
    assert error["exception_message"].strip().startswith(REFUSED[adapter])
    assert "\n" not in error["exception_message"].strip()
    assert np.isfinite(sampled(server, client)).all()


def test_the_combo_offers_folders_and_files(client: Client, loras: dict[str, Made]) -> None:
    _, options = client.object_info("AceStepLoadLora")["input"]["required"]["adapter"]
    offered = options["options"]
    assert {"run/", "dora/", "xl.safetensors"} <= set(offered)
    assert not any(each.startswith("run/a") for each in offered)


# The workflows as shipped.


@pytest.mark.parametrize(("workflow", "n_adapters"), [("21_lora_one", 1), ("22_lora_stack", 2)])
def test_a_workflow_sings_with_its_adapters_and_says_that_they_took(
    server: Server, client: Client, workflow: str, n_adapters: int
) -> None:
    changes = {"AceStepSong": {"duration": 10}, "AceStepSample": {"steps": 2, "seed": 5}}
    run = client.run(shipped(workflow, **changes))
    assert run.ok, run.errors
    reports = [output["text"][0] for output in run.outputs.values() if "text" in output]
    assert sum("matched 32 of 32 modules" in report for report in reports) == n_adapters, reports
    (audio,) = [output["audio"] for output in run.outputs.values() if "audio" in output]
    assert (server.output_dir / audio[0]["subfolder"] / audio[0]["filename"]).is_file()
