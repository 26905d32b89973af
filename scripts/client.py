"""Talks to a running ComfyUI as its canvas does: prompts over HTTP, their progress over a websocket.

Synchronous, one call a prompt: `Client(url).run(prompt)` returns what happened as a `Run`.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests
import websocket

REQUEST_TIMEOUT_S = 60.0

Json = dict[str, Any]


class PromptRejected(ValueError):
    """ComfyUI's validation refused a prompt, or some of its outputs.

    error: {type, message, details}; empty when only some outputs were refused.
    node_errors: node id -> {class_type, errors: [{type, message, details, extra_info}]}.
    """

    def __init__(self, error: Json, node_errors: Mapping[str, Json]) -> None:
        self.error = error
        self.node_errors = dict(node_errors)
        reasons = [f"{error['message']} {error.get('details') or ''}".strip()] if error else []
        for node_id, node in self.node_errors.items():
            for reason in node["errors"]:
                text = f"{reason['message']} {reason.get('details') or ''}".strip()
                reasons.append(f"node {node_id} ({node['class_type']}): {text}")
        super().__init__("ComfyUI rejected the prompt: " + "; ".join(reasons))


@dataclass(frozen=True)
class Run:
    """What ComfyUI did with one prompt.

    status: "success" or "error", from the history. A branch that was blocked on purpose counts as success
        there and shows only in errors, so prefer ok.
    outputs: node id -> the node's ui output, cached nodes included.
    cached: nodes that were not run because their results were at hand.
    executed: nodes that were run, in the order in which they were first entered.
    errors: the `execution_error` messages (node_id, node_type, exception_type, exception_message, ...).
    progress: the `progress` messages (node, value, max); ComfyUI drops some of those that come too fast.
    seconds: node id -> seconds between entering it and entering the next, as seen from this side.
    """

    prompt_id: str
    status: str
    outputs: Mapping[str, Json]
    cached: frozenset[str]
    executed: tuple[str, ...]
    errors: tuple[Json, ...]
    progress: tuple[Json, ...]
    seconds: Mapping[str, float]
    interrupted: bool

    @property
    def ok(self) -> bool:
        return self.status == "success" and not self.errors


@dataclass(frozen=True)
class Message:
    """One websocket message about a prompt, with the moment it arrived (time.perf_counter)."""

    arrived_s: float
    kind: str
    data: Json


class Client:
    """The HTTP and websocket interface of the ComfyUI at url."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self._session = requests.Session()
        self._session.trust_env = False  # a server on this machine is never behind a proxy

    def system_stats(self) -> Json:
        """Return versions, devices and the command line of the server."""
        return self._get("/system_stats").json()

    def object_info(self, node_id: str | None = None) -> Json:
        """Return the description of one node class, or of all of them by id.

        Raises: LookupError if the server has no such node.
        """
        if node_id is None:
            return self._get("/object_info").json()
        found = self._get(f"/object_info/{node_id}").json()
        if node_id not in found:
            raise LookupError(f"ComfyUI has no node {node_id}")
        return found[node_id]

    def queue(self, prompt: Json, extra_data: Json | None = None, client_id: str | None = None) -> str:
        """Return the id of the queued prompt, an API-format graph (node id -> class_type, inputs).

        Raises: PromptRejected if ComfyUI refuses any of its outputs. It would still run the others: nobody
            should take a part for the whole, so those are cancelled.
        """
        body: Json = {"prompt": prompt, "extra_data": extra_data or {}}
        if client_id is not None:
            body["client_id"] = client_id
        response = self._session.post(f"{self.url}/prompt", json=body, timeout=REQUEST_TIMEOUT_S)
        if response.status_code != requests.codes.bad_request:
            response.raise_for_status()
        reply = response.json()
        if response.ok and reply["node_errors"]:
            self.cancel(reply["prompt_id"])
        if not response.ok or reply["node_errors"]:
            raise PromptRejected(reply.get("error") or {}, reply["node_errors"] or {})
        return reply["prompt_id"]

    def run(
        self,
        prompt: Json,
        timeout_s: float = 300.0,
        on_message: Callable[[Message], None] | None = None,
        extra_data: Json | None = None,
    ) -> Run:
        """Return how prompt went, once it has ended in whatever way.

        on_message sees each message as it arrives, e.g. to interrupt the prompt at a chosen step.

        Raises: PromptRejected as in queue; TimeoutError after timeout_s, the prompt being cancelled;
            ConnectionError if the server goes away.
        """
        # A new id each time: ComfyUI forgets an id when its old connection ends, even if a new one uses it.
        client_id = uuid.uuid4().hex
        messages = []
        with closing(self._connect(client_id)) as connection:
            prompt_id = self.queue(prompt, extra_data, client_id)
            try:
                for message in _listen(connection, prompt_id, timeout_s):
                    messages.append(message)
                    if on_message is not None:
                        on_message(message)
            except TimeoutError:
                self.cancel(prompt_id)
                raise TimeoutError(f"the prompt did not end within {timeout_s:g} s; cancelled") from None
        return _summary(prompt_id, messages, self.history(prompt_id))

    def interrupt(self, prompt_id: str | None = None) -> None:
        """Stop the running prompt at its next step; with an id, only if it is the one that runs."""
        self._post("/interrupt", {"prompt_id": prompt_id} if prompt_id else {})

    def cancel(self, prompt_id: str) -> None:
        """Take a prompt out of the queue, or interrupt it if it runs already."""
        self._post("/queue", {"delete": [prompt_id]})
        self.interrupt(prompt_id)

    def history(self, prompt_id: str) -> Json:
        """Return what ComfyUI recorded of a finished prompt (outputs, status); empty before it has ended."""
        return self._get(f"/history/{prompt_id}").json().get(prompt_id, {})

    def upload_audio(self, path: Path) -> str:
        """Return the name under which LoadAudio knows the uploaded file."""
        with Path(path).open("rb") as file:
            # ComfyUI takes every kind of input file through the field it first had for images.
            files = {"image": (Path(path).name, file)}
            response = self._session.post(
                f"{self.url}/upload/image", files=files, data={"type": "input"}, timeout=REQUEST_TIMEOUT_S
            )
        response.raise_for_status()
        stored = response.json()
        return f"{stored['subfolder']}/{stored['name']}" if stored["subfolder"] else stored["name"]

    def view(self, filename: str, subfolder: str = "", type: str = "output") -> bytes:
        """Return the bytes of a file that a node saved; the arguments are the keys of its ui output."""
        return self._get("/view", {"filename": filename, "subfolder": subfolder, "type": type}).content

    def set_setting(self, name: str, value: bool | int | float | str) -> None:
        """Change one of the canvas's settings, as kept by the server; a page takes it up when it loads."""
        self._post(f"/settings/{name}", value)

    def free(self) -> None:
        """Ask ComfyUI to unload all models and forget cached results; it does so between prompts, soon."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def _get(self, path: str, params: Mapping[str, str] | None = None) -> requests.Response:
        response = self._session.get(self.url + path, params=params, timeout=REQUEST_TIMEOUT_S)
        response.raise_for_status()
        return response

    def _post(self, path: str, body: Any) -> None:
        self._session.post(self.url + path, json=body, timeout=REQUEST_TIMEOUT_S).raise_for_status()

    def _connect(self, client_id: str) -> websocket.WebSocket:
        address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={client_id}"
        connection = websocket.create_connection(address, timeout=REQUEST_TIMEOUT_S)
        # The server sends its status once it has registered us; a prompt posted earlier could outrun that.
        connection.recv()
        return connection


def _listen(connection: websocket.WebSocket, prompt_id: str, timeout_s: float) -> Iterator[Message]:
    """Yield the messages about prompt_id up to the last, `executing` with no node."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        frame = _receive(connection, deadline_s - time.monotonic())
        if isinstance(frame, bytes):
            continue  # previews
        message = json.loads(frame)
        if message["data"].get("prompt_id") != prompt_id:
            continue  # the state of the queue, other prompts
        yield Message(time.perf_counter(), message["type"], message["data"])
        if message["type"] == "executing" and message["data"]["node"] is None:
            return


def _receive(connection: websocket.WebSocket, timeout_s: float) -> str | bytes:
    if timeout_s <= 0:
        raise TimeoutError
    connection.settimeout(timeout_s)
    try:
        frame = connection.recv()
    except websocket.WebSocketTimeoutException:
        raise TimeoutError from None
    except (websocket.WebSocketException, OSError) as lost:
        raise ConnectionError(f"ComfyUI went away while a prompt ran: {lost}") from lost
    if frame == "":  # how websocket-client reports an orderly close
        raise ConnectionError("ComfyUI closed the connection while a prompt ran")
    return frame


def _summary(prompt_id: str, messages: list[Message], history: Json) -> Run:
    def of_kind(kind: str) -> tuple[Json, ...]:
        return tuple(message.data for message in messages if message.kind == kind)

    seconds = _node_seconds(messages)
    return Run(
        prompt_id=prompt_id,
        status=history["status"]["status_str"],
        outputs=history["outputs"],
        cached=frozenset(node for data in of_kind("execution_cached") for node in data["nodes"]),
        executed=tuple(seconds),
        errors=of_kind("execution_error"),
        progress=of_kind("progress"),
        seconds=seconds,
        interrupted=bool(of_kind("execution_interrupted")),
    )


def _node_seconds(messages: list[Message]) -> dict[str, float]:
    """Return the seconds spent in each node, in the order in which they were first entered."""
    seconds: dict[str, float] = {}
    entered = [message for message in messages if message.kind == "executing"]
    for message, following in pairwise(entered):
        node = message.data["node"]
        seconds[node] = seconds.get(node, 0.0) + following.arrived_s - message.arrived_s
    return seconds
