"""Whatever goes wrong: one clear sentence at the node that caused it, and the next prompt works."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import demo
from acestep_pack.acestep_core.checkpoints import catalogue, download
from api_prompts import Prompt, add, assert_fails, cancel_at, failure, node, shipped, sketch, text_to_song
from client import Client, PromptRejected, Run
from comfyui import Server
from hub import HubStandIn, hub_stand_in
from tiny_models import acestep, files, layers

pytestmark = pytest.mark.server


@pytest.fixture(autouse=True)
def the_next_prompt_works(server: Server, client: Client) -> Iterator[None]:
    """Whatever a test did, the server is up after it and samples."""
    yield
    assert server.process.poll() is None
    assert client.run(sketch()).ok


@pytest.fixture(scope="module", autouse=True)
def bad_files(server: Server) -> Iterator[None]:
    """Files of every kind of badness in the model and input folders."""
    models, inputs = server.base_dir / "models", server.base_dir / "input"
    dits = models / "diffusion_models"
    turbo = (dits / "acestep_v1.5_turbo.safetensors").read_bytes()
    made = [dits / name for name in ("cut.safetensors", "empty.safetensors", "pickle.ckpt", "core.safetensors")]
    for path, content in zip(made, (turbo[: len(turbo) // 2], b"", b"PK\x03\x04"), strict=False):
        path.write_bytes(content)
    save_file(readable_by_core(), dits / "core.safetensors")
    made.append(Path(shutil.copy(models / "vae" / "ace_1.5_vae.safetensors", dits / "vae.safetensors")))
    made.append(Path(shutil.copy(dits / "acestep_v1.5_turbo.safetensors", models / "vae" / "dit.safetensors")))
    torn = Path(shutil.copytree(dits / "acestep-v15-xl-turbo", dits / "torn"))
    next(torn.glob("*00002*")).unlink()
    for name, samples in LATENTS.items():
        made.append(inputs / f"{name}.latent")
        save_file({"latent_tensor": samples, "latent_format_version_0": torch.tensor([])}, made[-1])
    yield
    for path in made:
        path.unlink()
    shutil.rmtree(torn)


LATENTS = {
    "nan": torch.full((1, 64, 250), float("nan")),
    "infinite": torch.full((1, 64, 250), float("inf")),
    "no takes": torch.zeros(0, 64, 250),
    "no frames": torch.zeros(1, 64, 0),
    "picture": torch.zeros(1, 4, 64, 64),
}


def readable_by_core() -> dict[str, torch.Tensor]:
    """Return as much of a small DiT as ComfyUI's own loader takes: it presumes heads of 128 and texts of 1024."""
    shape = layers.AttentionShape(width=64, mlp_width=192, n_heads=16, n_kv_heads=8, head_dim=128)
    config = acestep.AceStepConfig(shape, shape, (True,), 32, n_lyric_layers=1, n_timbre_layers=1, n_pooler_layers=1)
    expected = acestep.AceStep(config, files.SHAPES_ONLY).state_dict()
    parts = ("decoder.", "encoder.lyric_encoder.layers.")
    return {name: torch.zeros(like.shape).bfloat16() for name, like in expected.items() if name.startswith(parts)}


# Refused by ComfyUI itself, from what our nodes declare: nothing runs.


@pytest.mark.parametrize(
    ("at", "inputs", "kind"),
    [
        ("AceStepLoadModel", {"model": "gone.safetensors"}, "value_not_in_list"),
        ("AceStepLoadModel", {"model": "../../secret.safetensors"}, "value_not_in_list"),
        ("AceStepLoadModel", {"variant": "xxl"}, "value_not_in_list"),
        ("AceStepLoadTextEncoder", {"text_encoder": "gone/"}, "value_not_in_list"),
        ("AceStepLoadVAE", {"vae": "gone.safetensors"}, "value_not_in_list"),
        ("AceStepSong", {"bpm": 301}, "value_bigger_than_max"),
        ("AceStepSong", {"bpm": -1}, "value_smaller_than_min"),
        ("AceStepSong", {"duration": 600.1}, "value_bigger_than_max"),
        ("AceStepSample", {"takes_per_plan": 0}, "value_smaller_than_min"),
        ("AceStepSample", {"takes_per_plan": 9}, "value_bigger_than_max"),
        ("AceStepSample", {"steps": 201}, "value_bigger_than_max"),
        ("AceStepSample", {"seed": 2**53}, "value_bigger_than_max"),
        ("AceStepDecode", {"peak_dbfs": 1.0}, "value_bigger_than_max"),
    ],
)
def test_a_value_no_widget_offers_never_starts(client: Client, at: str, inputs: dict, kind: str) -> None:
    prompt = text_to_song(**{at: inputs})
    with pytest.raises(PromptRejected) as caught:
        client.run(prompt)
    ((refused, details),) = caught.value.node_errors.items()
    assert prompt[refused]["class_type"] == at
    assert [error["type"] for error in details["errors"]] == [kind]


@pytest.mark.parametrize("name", ["language", "key", "time_signature"])
@pytest.mark.parametrize("value", ["tlh", "c", "H major", "7/8", "12/8"])
def test_a_word_that_is_no_songs_never_starts_and_is_named_with_those_that_are(
    client: Client, name: str, value: str
) -> None:
    prompt = text_to_song(AceStepSong={name: value})
    with pytest.raises(PromptRejected) as caught:
        client.run(prompt)
    ((refused, details),) = caught.value.node_errors.items()
    assert refused == node(prompt, "AceStepSong")
    (error, *_) = (error for error in details["errors"] if error["extra_info"]["input_name"] == name)
    label = name.replace("_", " ")
    assert error["type"] == "custom_validation_failed"
    assert error["details"].startswith(f'{name} - {label} "{value}" ')


def test_a_language_that_is_none_never_starts_at_the_idea_either(client: Client) -> None:
    prompt = shipped("03_idea_to_song", AceStepIdea={"language": "tlh"})
    with pytest.raises(PromptRejected, match='language "tlh" is unknown; use one of ar, az'):
        client.run(prompt)


@pytest.mark.parametrize(
    ("name", "slot", "kind"),
    [("bpm", 0, "STRING"), ("key", 2, "INT"), ("instrumental", 6, "FLOAT"), ("caption", 2, "INT")],
)
def test_a_wire_that_does_not_fit_the_song_never_starts(client: Client, name: str, slot: int, kind: str) -> None:
    prompt = text_to_song()
    info = add(prompt, "AceStepSongInfo", song=[add(prompt, "AceStepExampleSong", style="any", seed=3), 0])
    prompt[node(prompt, "AceStepSong")]["inputs"][name] = [info, slot]
    with pytest.raises(PromptRejected, match=rf'"{name}" takes .* and is connected to {kind}; connect another output'):
        client.run(prompt)


@pytest.mark.parametrize(("name", "value"), [("key", "c"), ("time_signature", "7/8"), ("language", "Klingon")])
def test_a_wrong_word_that_arrives_over_a_wire_fails_at_the_song(client: Client, name: str, value: str) -> None:
    prompt = text_to_song()
    prompt[node(prompt, "AceStepSong")]["inputs"][name] = [add(prompt, "PrimitiveString", value=value), 0]
    assert_fails(client, prompt, "AceStepSong", f'{name.replace("_", " ")} "{value}"')


def test_the_demo_says_which_models_are_missing_and_where_it_looked(client: Client, tmp_path: Path) -> None:
    prompt = text_to_song(
        AceStepLoadModel={"model": "gone.safetensors"}, AceStepLoadVAE={"vae": "gone_as_well.safetensors"}
    )
    with pytest.raises(PromptRejected) as caught:
        client.run(prompt)
    assert demo.refusal(caught.value, tmp_path).startswith(
        f'"gone.safetensors", "gone_as_well.safetensors" cannot be found in {tmp_path}: run the node AceStepDownload'
    )


def test_the_demo_says_why_else_it_was_refused(client: Client, tmp_path: Path) -> None:
    with pytest.raises(PromptRejected) as caught:
        client.run(text_to_song(AceStepSample={"steps": 201}))
    assert demo.refusal(caught.value, tmp_path) == str(caught.value)


# Refused by our nodes.


@pytest.mark.parametrize(
    ("at", "inputs", "words"),
    [
        (
            "AceStepLoadModel",
            {"model": "cut.safetensors"},
            ("cut.safetensors has", "bytes", "truncated", "download it again"),
        ),
        ("AceStepLoadModel", {"model": "empty.safetensors"}, ("empty.safetensors is empty", "download it again")),
        ("AceStepLoadModel", {"model": "pickle.ckpt"}, ("pickle.ckpt is no .safetensors file",)),
        ("AceStepLoadModel", {"model": "torn/"}, ("torn lacks model-00002-of-00004.safetensors", "download it again")),
        ("AceStepLoadModel", {"model": "vae.safetensors"}, ("vae.safetensors is not an", "it looks like", "VAE")),
        (
            "AceStepLoadModel",
            {"variant": "xl-turbo"},
            ("acestep_v1.5_turbo.safetensors holds 2B weights where variant", "xl-turbo", "expects XL"),
        ),
        (
            "AceStepLoadModel",
            {"model": "acestep-v15-xl-turbo/", "variant": "turbo"},
            ("acestep-v15-xl-turbo holds XL weights where variant", "expects 2B"),
        ),
        (
            "AceStepLoadTextEncoder",
            {"text_encoder": "qwen_1.7b_ace15.safetensors"},
            ("qwen_1.7b_ace15.safetensors is not an", "planner"),
        ),
        (
            "AceStepLoadTextEncoder",
            {"text_encoder": "acestep-5Hz-lm-0.6B/"},
            ("acestep-5Hz-lm-0.6B is not an", "planner"),
        ),
        ("AceStepLoadVAE", {"vae": "dit.safetensors"}, ("dit.safetensors is not an", "it looks like")),
        ("AceStepSong", {"bpm": 29}, ("bpm must be 30 to 300, got 29; 0 lets the model decide",)),
        ("AceStepSong", {"duration": 9.9}, ("duration must be 10 to 600 s, got 9.9 s",)),
        ("AceStepEncode", {}, ("the lyrics are", "tokens long and the model reads 2048; shorten them")),
        ("AceStepSample", {"seeds": "1, 2"}, ("2 seeds are listed for 1 takes; list one for each or none",)),
        ("AceStepSample", {"seeds": "1, two"}, ('"two" is not a seed; write numbers separated by commas',)),
        ("AceStepSample", {"seeds": "-1"}, ("seed -1 is outside 0..2^53-1",)),
    ],
)
def test_a_bad_value_or_file_fails_at_its_own_node(
    client: Client, at: str, inputs: dict, words: tuple[str, ...]
) -> None:
    changes = {at: inputs} if inputs else {"AceStepSong": {"lyrics": "la la la\n" * 1_000}}
    run = assert_fails(client, text_to_song(**changes), at, *words)
    assert run.progress == (), "some long work was done first"


def test_a_split_file_without_silence_and_without_a_vae_says_what_to_connect(client: Client) -> None:
    prompt = sketch()
    del prompt[node(prompt, "AceStepLoadModel")]["inputs"]["vae"]
    assert_fails(client, prompt, "AceStepLoadModel", 'no silence latent; connect a VAE to "vae"')


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"timesteps": "1, abc"}, ('"abc" is not a timestep; write numbers separated by commas',)),
        ({"timesteps": "0.5, 0.9"}, ("custom timesteps must fall from at most 1 towards 0; 0.9 does not",)),
        ({"timesteps": "0"}, ("custom timesteps are empty",)),
        ({"guidance_start": 0.8, "guidance_end": 0.2}, ("guidance interval must satisfy", "got 0.8 to 0.2")),
    ],
)
def test_bad_options_fail_where_they_are_set(client: Client, options: dict, words: tuple[str, ...]) -> None:
    prompt = sketch()
    defaults = {
        name: given[1]["default"]
        for name, given in client.object_info("AceStepSamplerOptions")["input"]["required"].items()
    }
    chosen = add(prompt, "AceStepSamplerOptions", **(defaults | options))
    prompt[node(prompt, "AceStepSample")]["inputs"]["options"] = [chosen, 0]
    assert_fails(client, prompt, "AceStepSamplerOptions", *words)


LATENT_WORDS = {
    "nan": "this latent holds NaN or infinity",
    "infinite": "this latent holds NaN or infinity",
    "no takes": "this latent is empty: it has no takes or no frames",
    "no frames": "this latent is empty: it has no takes or no frames",
    "picture": "this latent is (1, 4, 64, 64), ACE-Step 1.5 needs [takes, 64, frames]",
}


@pytest.mark.parametrize("at", ["AceStepSample", "AceStepDecode"])
@pytest.mark.parametrize("name", LATENT_WORDS)
def test_a_latent_that_is_none_is_noticed_before_any_work(client: Client, name: str, at: str) -> None:
    prompt = text_to_song()
    loaded = add(prompt, "LoadLatent", latent=f"{name}.latent")
    prompt[node(prompt, at)]["inputs"]["latent"] = [loaded, 0]
    del prompt[node(prompt, "AceStepSave")]["inputs"]["latent"]  # for which the sampler would run first
    run = assert_fails(client, prompt, at, LATENT_WORDS[name])
    assert run.progress == ()


def test_a_model_of_cores_loader_is_named_with_ours(client: Client) -> None:
    prompt = sketch()
    foreign = add(prompt, "UNETLoader", unet_name="core.safetensors", weight_dtype="default")
    prompt[node(prompt, "AceStepSample")]["inputs"]["model"] = [foreign, 0]
    assert_fails(client, prompt, "AceStepSample", "from another loader", "(AceStepLoadModel)")


def test_a_vae_of_another_model_is_refused_before_the_decode(client: Client) -> None:
    prompt = text_to_song(AceStepSample={"steps": 1})
    pixels = add(prompt, "VAELoader", vae_name="pixel_space")
    prompt[node(prompt, "AceStepDecode")]["inputs"]["vae"] = [pixels, 0]
    assert_fails(client, prompt, "AceStepDecode", "this VAE is not ACE-Step 1.5's")


# Cancelled.


@pytest.mark.parametrize("at", ["AceStepSample", "AceStepDecode"])
def test_a_cancel_in_mid_step_ends_the_run_and_leaves_no_file(server: Server, client: Client, at: str) -> None:
    long = {"AceStepSample": {"steps": 200}, "AceStepDecode": {"fade_out": 1.0}}[at]
    prompt = text_to_song(AceStepSong={"duration": 60.0}, **({"AceStepSample": {"steps": 1}} | {at: long}))
    before = sorted(server.output_dir.rglob("*"))
    run = client.run(prompt, on_message=cancel_at(client, node(prompt, at)))
    assert run.interrupted
    assert not run.ok
    shown = [message for message in run.progress if message["node"] == node(prompt, at)]
    assert shown[-1]["value"] < shown[-1]["max"]
    assert node(prompt, "AceStepSave") not in run.executed
    assert sorted(server.output_dir.rglob("*")) == before


# Downloads.

PLANNER = next(checkpoint for checkpoint in catalogue.CHECKPOINTS if checkpoint.name == "qwen_4b_ace15.safetensors")
CHUNK_BYTES = 10 * 1024 * 1024  # of huggingface_hub
WEIGHTS = bytes(3 * CHUNK_BYTES)


@pytest.fixture
def hub(hub_port: int) -> Iterator[HubStandIn]:
    with hub_stand_in(hub_port) as server:
        server.repos = {PLANNER.repo_id: {PLANNER.files[0]: WEIGHTS}}
        yield server


@pytest.fixture
def folder(server: Server) -> Path:
    return server.base_dir / "models" / "text_encoders"


@pytest.fixture
def arrived(folder: Path) -> Iterator[Callable[[], dict[str, bytes]]]:
    """Return the files that a user sees in the folder since the test began; they are gone when it is over."""
    before = set(folder.rglob("*"))

    def look() -> dict[str, bytes]:
        new = (path for path in folder.rglob("*") if path not in before and path.is_file())
        seen = (path for path in new if download.STAGING not in path.parts)
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in seen}

    yield look
    for name in look():
        (folder / name).unlink()
    shutil.rmtree(folder / download.STAGING, ignore_errors=True)


def fetch(client: Client) -> tuple[Run, Prompt]:
    prompt: Prompt = {}
    add(prompt, "AceStepDownload", what=PLANNER.name)
    return client.run(prompt), prompt


def test_offline_is_one_sentence_with_the_address_and_leaves_nothing(
    client: Client, folder: Path, arrived: Callable[[], dict[str, bytes]]
) -> None:
    at, sentence = failure(*fetch(client))
    assert at == "AceStepDownload"
    for words in (f"{PLANNER.name} could not be downloaded", "online", PLANNER.repo_id, str(folder)):
        assert words in sentence
    assert arrived() == {}


def test_a_write_that_fails_is_one_sentence_and_the_next_run_goes_on(
    client: Client, hub: HubStandIn, folder: Path, arrived: Callable[[], dict[str, bytes]]
) -> None:
    in_the_way = folder / PLANNER.name
    in_the_way.mkdir()  # so that the finished file cannot take its name
    at, sentence = failure(*fetch(client))
    assert at == "AceStepDownload"
    assert f"{PLANNER.name} cannot be written to {folder}" in sentence
    assert arrived() == {}

    in_the_way.rmdir()
    run, _ = fetch(client)
    assert run.ok
    assert arrived() == {PLANNER.name: WEIGHTS}
    assert len(hub.fetches()) == 1, "what was there has been fetched again"


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(
    client: Client, hub: HubStandIn, folder: Path, arrived: Callable[[], dict[str, bytes]]
) -> None:
    hub.break_after = [CHUNK_BYTES + 5]
    run, prompt = fetch(client)
    assert run.ok
    (report,) = run.outputs[node(prompt, "AceStepDownload")]["text"]
    assert report == f"{PLANNER.name}  31.5 MB  downloaded: {folder}"
    assert "Range" in hub.fetches()[-1]
    assert arrived() == {PLANNER.name: WEIGHTS}
