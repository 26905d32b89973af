"""Songs from text in a live ComfyUI, as its canvas would ask for them: from a prompt to a file on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from acestep_pack.acestep_core.constants import SAMPLE_RATE, SAMPLES_PER_FRAME, frames_for
from api_prompts import WORKFLOWS, Prompt, add, link, node, saved, text_to_song
from client import Client
from comfyui import Server

pytestmark = pytest.mark.server

AIO = "ace_step_1.5_turbo_aio.safetensors"
LAYOUTS = {
    "AceStepLoadModel": [
        "acestep-v15-base/",
        "acestep-v15-turbo-diffusers/",
        "acestep-v15-turbo/",
        "acestep-v15-xl-turbo/",
        "acestep_v1.5_base.safetensors",
        "acestep_v1.5_turbo.safetensors",
        "acestep_v1.5_xl_turbo_bf16.safetensors",
        AIO,
    ],
    "AceStepLoadTextEncoder": ["Qwen3-Embedding-0.6B/", "qwen_0.6b_ace15.safetensors", AIO],
    "AceStepLoadVAE": ["acestep-v15-vae/", "ace_1.5_vae.safetensors", AIO],
}
COMBOS = {"AceStepLoadModel": "model", "AceStepLoadTextEncoder": "text_encoder", "AceStepLoadVAE": "vae"}
OTHER_MODELS = {"qwen_1.7b_ace15.safetensors", "acestep-5Hz-lm-0.6B/"}  # planners lie among the text encoders


def listen(path: Path) -> np.ndarray:
    """Return a song's samples [S, 2] after checking that it is one: 48 kHz stereo, audible, whole."""
    samples, sample_rate = soundfile.read(path, always_2d=True)
    assert sample_rate == SAMPLE_RATE
    assert samples.shape[1] == 2
    assert np.isfinite(samples).all()
    assert samples.std() > 1e-3
    assert not np.array_equal(samples[:, 0], samples[:, 1])
    return samples


def n_samples(duration_s: float) -> int:
    return frames_for(duration_s) * SAMPLES_PER_FRAME


@pytest.mark.parametrize("workflow", [path.stem for path in sorted(WORKFLOWS.glob("01_*.json"))])
def test_a_workflow_makes_a_song_of_the_length_asked_at_minus_1_dbfs(
    server: Server, client: Client, workflow: str
) -> None:
    prompt = text_to_song(workflow, AceStepSong={"duration": 11.3})
    run = client.run(prompt, extra_data={"extra_pnginfo": {"workflow": {"nodes": [workflow]}}})
    (path,) = saved(server, run)
    samples = listen(path)
    assert len(samples) == n_samples(11.3)
    assert abs(len(samples) / SAMPLE_RATE - 11.3) < 1 / 25
    assert np.abs(samples).max() == pytest.approx(10 ** (-1 / 20), abs=1e-3)

    sampler = node(prompt, "AceStepSample")
    steps = [message for message in run.progress if message["node"] == sampler]
    assert steps[-1]["value"] == steps[-1]["max"] == (50 if "base" in workflow else 8)
    assert path.suffix == ".flac"
    with av.open(str(path)) as file:
        assert json.loads(file.metadata["prompt"]) == prompt
        assert json.loads(file.metadata["workflow"]) == {"nodes": [workflow]}


@pytest.mark.parametrize(
    ("workflow", "model", "sampler"),
    [
        ("01_text_to_song", "2B turbo, ", "8 steps, shift 3, no guidance, euler, seed 7"),
        ("01_text_to_song_base", "2B base, ", "50 steps, shift 1, guidance 7, euler, seed 7"),
    ],
)
def test_the_nodes_say_what_auto_came_to(client: Client, workflow: str, model: str, sampler: str) -> None:
    prompt = text_to_song(workflow)
    run = client.run(prompt)
    (loaded,), (sampled,) = (run.outputs[node(prompt, n)]["text"] for n in ("AceStepLoadModel", "AceStepSample"))
    assert loaded.startswith(model)
    assert sampled == sampler


def test_a_choice_off_the_preset_is_warned_of_on_the_node_and_in_the_log(server: Server, client: Client) -> None:
    prompt = text_to_song(AceStepSample={"guidance": 5.0, "steps": 2})
    (text,) = client.run(prompt).outputs[node(prompt, "AceStepSample")]["text"]
    warning = "turbo has guidance distilled in: guidance 5 will distort, use 1"
    assert text.splitlines()[1:] == [warning]
    assert warning in server.log()


def test_another_seed_runs_only_the_sampler_and_what_follows_it(server: Server, client: Client) -> None:
    first, second = (text_to_song(AceStepSample={"seed": seed}) for seed in (31, 32))
    one, two = (saved(server, client.run(prompt)) for prompt in (first, second))
    again = client.run(text_to_song(AceStepSample={"seed": 33}))
    later = tuple(node(first, name) for name in ("AceStepSample", "AceStepDecode", "AceStepSave"))
    assert again.executed == later
    assert again.cached == first.keys() - set(later)
    assert not np.array_equal(listen(one[0]), listen(two[0]))


def test_the_same_seed_is_the_same_song_even_when_every_model_is_loaded_anew(server: Server, client: Client) -> None:
    prompt = text_to_song(AceStepSample={"seed": 51})
    (before,) = saved(server, client.run(prompt))
    client.free()
    while (run := client.run(prompt)).cached:  # ComfyUI forgets when it next has nothing to do
        client.free()
    (after,) = saved(server, run)
    assert np.array_equal(listen(before), listen(after))


def test_takes_are_files_of_their_own_and_each_is_the_song_of_its_seed(server: Server, client: Client) -> None:
    takes = saved(server, client.run(text_to_song(AceStepSample={"seed": 70, "takes_per_plan": 3})))
    assert len(takes) == 3
    (alone,) = saved(server, client.run(text_to_song(AceStepSample={"seed": 72})))
    first, _, third = map(listen, takes)
    np.testing.assert_allclose(third, listen(alone), atol=1e-3)
    assert not np.allclose(first, third, atol=1e-2)


def test_listed_seeds_are_the_takes(server: Server, client: Client) -> None:
    listed = {"seeds": "72, 70", "takes_per_plan": 2, "seed": 5}
    one, two = map(listen, saved(server, client.run(text_to_song(AceStepSample=listed))))
    (alone,) = saved(server, client.run(text_to_song(AceStepSample={"seed": 72})))
    np.testing.assert_allclose(one, listen(alone), atol=1e-3)
    assert not np.allclose(one, two, atol=1e-2)


# Every layout of models.


@pytest.mark.parametrize("loader", LAYOUTS)
def test_a_loader_offers_every_layout(client: Client, loader: str) -> None:
    _, options = client.object_info(loader)["input"]["required"][COMBOS[loader]]
    assert sorted(set(options["options"]) - OTHER_MODELS) == sorted(LAYOUTS[loader])


@pytest.mark.parametrize(("loader", "name"), [(loader, name) for loader in LAYOUTS for name in LAYOUTS[loader]])
def test_a_model_makes_a_song_in_every_layout(server: Server, client: Client, loader: str, name: str) -> None:
    changes = {loader: {COMBOS[loader]: name}, "AceStepSample": {"seed": 90, "steps": 4}}
    (path,) = saved(server, client.run(text_to_song(**changes)))
    assert len(listen(path)) == n_samples(10)


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp32", "fp8_e4m3fn", "fp8_e5m2"])
def test_weights_can_be_kept_in_any_format(server: Server, client: Client, weight_dtype: str) -> None:
    changes = {"AceStepLoadModel": {"weight_dtype": weight_dtype}, "AceStepSample": {"seed": 91, "steps": 4}}
    (path,) = saved(server, client.run(text_to_song(**changes)))
    assert len(listen(path)) == n_samples(10)


# Core's nodes on our wires.


def core_prompt(lora: str | None, seed: int) -> Prompt:
    """Return our loaders and encoder, then core's LoRA loader, sampler and decoder."""
    prompt = text_to_song()
    model, positive = link(prompt, "AceStepLoadModel"), link(prompt, "AceStepEncode")
    if lora is not None:
        model = [add(prompt, "LoraLoaderModelOnly", model=model, lora_name=lora, strength_model=1.0), 0]
    sampled = add(
        prompt,
        "KSampler",
        model=model,
        positive=positive,
        negative=[add(prompt, "ConditioningZeroOut", conditioning=positive), 0],
        latent_image=link(prompt, "AceStepEncode", 1),
        seed=seed,
        steps=4,
        cfg=2.0,
        sampler_name="euler",
        scheduler="simple",
        denoise=1.0,
    )
    decoded = add(prompt, "VAEDecodeAudio", samples=[sampled, 0], vae=link(prompt, "AceStepLoadVAE"))
    inputs = prompt[node(prompt, "AceStepSave")]["inputs"]
    inputs["audio"] = [decoded, 0]
    del inputs["latent"]
    for name in ("AceStepSample", "AceStepDecode"):
        del prompt[node(prompt, name)]
    return prompt


def test_core_sampler_decoder_and_lora_loader_work_on_our_wires(server: Server, client: Client) -> None:
    runs = [client.run(core_prompt(each, seed=1)) for each in (None, "voice.safetensors", None)]
    sampler = node(core_prompt(None, seed=1), "KSampler")
    assert sampler in runs[2].executed, "ComfyUI's cache has answered for the third"
    off, on, off_again = (listen(*saved(server, run)) for run in runs)
    assert len(off) == n_samples(10)
    assert not np.allclose(off, on, atol=1e-2)
    assert np.array_equal(off, off_again)


def test_core_encodes_and_tiles_with_our_vae(server: Server, client: Client) -> None:
    prompt = text_to_song(AceStepSample={"steps": 2})
    vae = link(prompt, "AceStepLoadVAE")
    encoded = add(prompt, "VAEEncodeAudio", audio=link(prompt, "AceStepDecode"), vae=vae)
    decoded = add(prompt, "VAEDecodeAudioTiled", samples=[encoded, 0], vae=vae, tile_size=64, overlap=16)
    prompt[node(prompt, "AceStepSave")]["inputs"]["audio"] = [decoded, 0]
    (path,) = saved(server, client.run(prompt))
    assert len(listen(path)) == n_samples(10)


def test_a_song_taken_apart_is_the_song_that_was_put_in(client: Client) -> None:
    told = {"caption": "drone", "bpm": 97, "key": "Eb major", "time_signature": "6", "duration": 12.5}
    prompt = text_to_song(AceStepSong={**told, "language": "auto", "instrumental": True})
    prompt = {key: value for key, value in prompt.items() if value["class_type"] == "AceStepSong"}
    info = add(prompt, "AceStepSongInfo", song=link(prompt, "AceStepSong"))
    shown = [add(prompt, "PreviewAny", source=[info, slot]) for slot in range(7)]
    outputs = client.run(prompt).outputs
    assert [outputs[each]["text"][0] for each in shown] == [
        "drone",
        "[Instrumental]",
        "97",
        "Eb major",
        "6",
        "",
        "12.5",
    ]


WORDS = ("language", "key", "time_signature")
FIELDS = ("caption", "lyrics", "bpm", "key", "time_signature", "language", "duration")  # of Song Info, in order


def fields_of(client: Client, prompt: Prompt, song: list) -> list[str]:
    """Return what Song Info says of a song."""
    info = add(prompt, "AceStepSongInfo", song=song)
    shown = [add(prompt, "PreviewAny", source=[info, slot]) for slot in range(len(FIELDS))]
    run = client.run(prompt)
    assert run.ok, run.errors
    return [run.outputs[each]["text"][0] for each in shown]


def blank_song(prompt: Prompt, **inputs: Any) -> list:
    """Add a song of which everything is left open but inputs; return a link to it."""
    blank = {"caption": "", "lyrics": "", "bpm": 0, "duration": 0.0} | dict.fromkeys(WORDS, "auto")
    return [add(prompt, "AceStepSong", **(blank | {"instrumental": False} | inputs)), 0]


@pytest.mark.parametrize(
    "told", [{}, {"language": "ja", "bpm": 97, "key": "E♭ minor", "time_signature": "6", "duration": 12.5}]
)
def test_a_song_taken_apart_and_put_together_again_is_the_same(client: Client, told: dict[str, Any]) -> None:
    prompt: Prompt = {}
    info = add(prompt, "AceStepSongInfo", song=blank_song(prompt, caption="drone", lyrics="la", **told))
    again = blank_song(prompt, **{name: [info, slot] for slot, name in enumerate(FIELDS)})
    found = fields_of(client, prompt, again)
    expected = {"caption": "drone", "lyrics": "la", "bpm": 0, "duration": 0.0} | told
    assert found == [str(expected.get(name, "")) for name in FIELDS]


@pytest.mark.parametrize(
    ("name", "spelling", "value"),
    [
        ("key", "f# min", "F# minor"),
        ("key", "Bb", "Bb major"),
        ("time_signature", "6/8", "6"),
        ("time_signature", 4, "4"),
        ("language", "en-US", "en"),
        ("language", "Japanese", "ja"),
        ("key", "", ""),
        ("language", "Auto", ""),
    ],
)
@pytest.mark.parametrize("wired", [False, True])
def test_a_word_may_be_spelled_in_any_certain_way_typed_or_wired(
    client: Client, name: str, spelling: str | int, value: str, wired: bool
) -> None:
    prompt: Prompt = {}
    given = [add(prompt, "PrimitiveString", value=str(spelling)), 0] if wired else spelling
    found = fields_of(client, prompt, blank_song(prompt, **{name: given}))
    assert found[FIELDS.index(name)] == value


def test_what_song_info_says_fits_inputs_for_text(client: Client) -> None:
    prompt: Prompt = {}
    told = {"key": "F# minor", "time_signature": "3", "language": "ja"}
    info = add(prompt, "AceStepSongInfo", song=blank_song(prompt, **told))
    for name, value in told.items():
        captioned = blank_song(prompt, caption=[info, FIELDS.index(name)])
        assert fields_of(client, dict(prompt), captioned)[0] == value
