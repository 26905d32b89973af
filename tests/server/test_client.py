"""The client that the demo and all other server tests rely on, against ComfyUI's own nodes."""

import uuid
from pathlib import Path

import pytest

from client import Client, PromptRejected

pytestmark = pytest.mark.server


def a_prompt(text: str) -> dict:
    """Return a graph of core nodes whose node 2 shows text; a new text is a new graph to ComfyUI's cache."""
    return {
        "1": {"class_type": "PrimitiveString", "inputs": {"value": text}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
    }


def test_run_returns_outputs_order_and_seconds(client: Client) -> None:
    text = str(uuid.uuid4())
    run = client.run(a_prompt(text))
    assert run.ok
    assert run.outputs["2"]["text"] == [text]
    assert run.executed == ("1", "2")
    assert run.cached == frozenset()
    assert min(run.seconds.values()) >= 0


def test_a_repeated_prompt_is_cached_and_still_has_its_outputs(client: Client) -> None:
    prompt = a_prompt(str(uuid.uuid4()))
    first, second = client.run(prompt), client.run(prompt)
    assert second.ok
    assert second.executed == ()
    assert second.cached == {"1", "2"}
    assert second.outputs == first.outputs


def test_a_rejected_prompt_names_the_node_and_the_reason(client: Client) -> None:
    prompt = a_prompt("never seen")
    del prompt["2"]["inputs"]["source"]
    with pytest.raises(PromptRejected, match=r"node 2 \(PreviewAny\): Required input.* source") as caught:
        client.run(prompt)
    assert caught.value.node_errors["2"]["errors"][0]["type"] == "required_input_missing"


def test_a_prompt_of_which_one_output_is_refused_is_rejected_as_a_whole(client: Client) -> None:
    prompt = a_prompt("never seen") | {"3": {"class_type": "PreviewAny", "inputs": {}}}
    with pytest.raises(PromptRejected, match="node 3"):
        client.run(prompt)
    assert client.run(a_prompt(str(uuid.uuid4()))).ok


def test_a_node_that_raises_is_in_errors(client: Client) -> None:
    outside = {"samples": ["1", 0], "filename_prefix": "../outside"}
    run = client.run(
        {
            "1": {"class_type": "EmptyLatentAudio", "inputs": {"seconds": 1.0, "batch_size": 1}},
            "2": {"class_type": "SaveLatent", "inputs": outside},
        }
    )
    assert run.status == "error"
    assert not run.ok
    assert [error["node_id"] for error in run.errors] == ["2"]


def test_a_prompt_past_its_time_is_cancelled_and_the_next_one_works(client: Client) -> None:
    with pytest.raises(TimeoutError, match="did not end within 0 s"):
        client.run(a_prompt(str(uuid.uuid4())), timeout_s=0)
    assert client.run(a_prompt(str(uuid.uuid4()))).ok


def test_an_uploaded_file_can_be_viewed(client: Client, tmp_path: Path) -> None:
    path = tmp_path / "hum.wav"
    path.write_bytes(b"RIFF")
    name = client.upload_audio(path)
    assert client.view(name, type="input") == b"RIFF"


def test_an_unknown_node_is_a_lookup_error(client: Client) -> None:
    with pytest.raises(LookupError, match="ComfyUI has no node NoSuchNode"):
        client.object_info("NoSuchNode")
