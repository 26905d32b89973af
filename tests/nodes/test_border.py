"""What passes between ComfyUI and every node: wrong things get a sentence, and every sentence can be printed."""

from __future__ import annotations

import ast
import functools
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.sd
import numpy as np
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.v0_0_2 import io
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from acestep_pack.acestep_core.constants import MAX_TEXT_LENGTH
from acestep_pack.acestep_core.pipeline.options import Options
from acestep_pack.acestep_core.pipeline.reference import Reference
from acestep_pack.acestep_core.pipeline.tasks import text2music
from acestep_pack.acestep_core.scoring.score import Score, Scores
from acestep_pack.acestep_core.types import AudioCodes, SongSpec
from acestep_pack.nodes import NODES
from acestep_pack.nodes.host import printable as printing
from acestep_pack.nodes.host import sockets
from acestep_pack.nodes.host.border import guard
from acestep_pack.nodes.host.planner import PlannerModel
from acestep_pack.nodes.host.printable import printable
from acestep_pack.nodes.host.sockets import MAX_LENGTHS, SamplerOptions, inputs_of
from acestep_pack.nodes.host.spelled import READERS
from acestep_pack.nodes.host.widgets import FileInput
from pack import PACK_ROOT
from reader import Reader

CPU = torch.device("cpu")
TEXTS = ("caf\u00e9", "\u65e5\u672c\u8a9e", "\U0001f600", "\u2212", "x\udfffy", "\ud83d", "a\x00b")
every_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)


@functools.cache
def belongings() -> dict[str, Any]:
    """Return something that belongs on each kind of wire."""
    return {
        "ACESTEP_TEXT_ENCODER": Reader(),
        "ACESTEP_PLANNER": PlannerModel(None, None),
        "ACESTEP_SONG": SongSpec(),
        "ACESTEP_CODES": AudioCodes(((1, 2),)),
        "ACESTEP_REFERENCE": Reference(torch.ones(1, 750, 64)),
        "ACESTEP_TASK": text2music(),
        "ACESTEP_OPTIONS": SamplerOptions(Options()),
        "ACESTEP_SCORE": Scores((Score(),), (0,)),
        "MODEL": ModelPatcher(torch.nn.Identity(), CPU, CPU),
        "VAE": comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}),
        "CONDITIONING": [[torch.zeros(1, 2, 3), {}]],
        "LATENT": {"samples": torch.zeros(1, 64, 10)},
        "AUDIO": {"waveform": torch.zeros(1, 2, 10), "sample_rate": 48_000},
        "MASK": torch.zeros(1, 10),
    }


ODD = {
    "text": "abc",
    "whole": 10**30,
    "number": 1e30,
    "true": True,
    "nan": math.nan,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "nothing": None,
    "list": ["a", 1],
    "dict": {"a": 1},
    "object": object(),
    "class": SongSpec,
    "LATENT of a text": {"samples": "x"},
    "AUDIO without rate": {"waveform": torch.zeros(1, 2, 10)},
    "AUDIO of a text": {"waveform": "x", "sample_rate": 48_000},
    "CONDITIONING of texts": [["x", {}]],
    "CONDITIONING of no pair": [[torch.zeros(1, 2, 3)]],
}
# Which of the odd values belong on a wire after all.
FITTING = {
    "STRING": {"text"},
    "BOOLEAN": {"true"},
}


def right(node: type[io.ComfyNode], given: io.Input) -> list[Any]:
    """Return values that belong in an input."""
    kind = given.get_io_type()
    if kind in belongings():
        return [belongings()[kind]] + ([None] if given.optional else [])
    if kind == "BOOLEAN":
        return [True, False]
    if kind == "STRING":
        return ["", "abc", "\u65e5\u672c\u8a9e \U0001f600", "x" * MAX_TEXT_LENGTH]
    if kind == "COMBO":
        return list(given.options) or ["abc"]
    low, high = given.min, given.max
    return [low, high, np.int64(low), np.int64(high)] if kind == "INT" else [low, high, math.ceil(low), np.float32(low)]


def wrong(node: type[io.ComfyNode], given: io.Input) -> Iterator[Any]:
    """Yield values that do not belong in an input."""
    kind = given.get_io_type()
    for name, value in ODD.items():
        if name in FITTING.get(kind, ()) or (isinstance(given, FileInput) and isinstance(value, str)):
            continue
        if value is None and (given.id in READERS or (given.optional and kind in belongings())):
            continue
        yield value
    yield from (value for other, value in belongings().items() if other != kind)
    if kind == "STRING":
        yield from ("x\udfffy", "a\x00b", "x" * (MAX_LENGTHS.get(given.id, MAX_TEXT_LENGTH) + 1))
    if kind in ("INT", "FLOAT"):
        yield from (given.min - 1, given.max + 1)
    if kind == "INT":
        yield 2.5


def refusal(run: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r".+") as caught:
        run()
    return str(caught.value)


@every_node
def test_a_wrong_thing_in_an_input_gets_a_line_that_names_the_input(node: type[io.ComfyNode]) -> None:
    inputs = inputs_of(node)
    others = {name: right(node, given)[0] for name, given in inputs.items()}
    for name, given in inputs.items():
        for value in wrong(node, given):
            said = refusal(lambda name=name, value=value: node.execute(**{**others, name: value}))
            assert name in said or name.replace("_", " ") in said, (name, said)
            assert said.isascii(), (name, said)
            assert "\n" not in said, (name, said)


@every_node
def test_what_belongs_in_an_input_passes(node: type[io.ComfyNode]) -> None:
    for name, given in inputs_of(node).items():
        for value in right(node, given):
            sockets.checked(node, {name: value})


def test_every_kind_of_socket_that_a_node_has_is_checked() -> None:
    kinds = {given.get_io_type() for node in NODES for given in inputs_of(node).values()}
    assert kinds <= set(sockets.WIRES)


def test_a_combo_over_files_is_declared_as_one() -> None:
    loaders = {
        (node.__name__, name)
        for node in NODES
        for name, given in inputs_of(node).items()
        if isinstance(given, FileInput)
    }
    assert loaders == {
        ("AceStepLoadModel", "model"),
        ("AceStepLoadTextEncoder", "text_encoder"),
        ("AceStepLoadPlanner", "planner"),
        ("AceStepLoadVAE", "vae"),
        ("AceStepLoadLora", "adapter"),
        ("AceStepLoadCodes", "file"),
    }


# What can be printed.


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252", "ascii", "gbk"])
@pytest.mark.parametrize("text", TEXTS)
def test_a_printable_text_can_be_written_to_the_log_and_keeps_what_the_log_holds(text: str, encoding: str) -> None:
    made = printable(text, ("utf-8", encoding))
    made.encode(encoding)
    assert printable(made, ("utf-8", encoding)) == made
    assert all(letter in made for letter in text if letter.encode(encoding, "ignore"))


@pytest.fixture(params=["utf-8", "cp1252", "ascii"])
def log(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The encoding of ComfyUI's log."""
    monkeypatch.setattr(printing, "log_encodings", lambda: {"utf-8", request.param})
    return request.param


def node_that(execute: Callable[[], object]) -> type[io.ComfyNode]:
    class Failing(io.ComfyNode):
        @classmethod
        def define_schema(cls):
            return io.Schema(node_id="Failing", inputs=[])

        @classmethod
        def execute(cls):
            return execute()

    return guard(Failing)


def raising(error: BaseException, cause: BaseException | None = None) -> Callable[[], object]:
    def fail() -> object:
        raise error from cause

    return fail


def outcome(execute: Callable[[], object]) -> BaseException:
    try:
        node_that(execute).execute()
    except BaseException as error:
        return error
    pytest.fail("nothing was raised")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", [ValueError, RuntimeError, FileNotFoundError, KeyError, OSError, MemoryError])
def test_whatever_an_error_quotes_it_can_be_printed(log: str, text: str, kind: type[Exception]) -> None:
    for error in (kind(f'"{text}" is wrong'), kind("plain")):
        for cause in (None, ValueError(text)):
            shown = outcome(raising(error, cause))
            "".join(traceback.format_exception(shown)).encode(log)
            assert "is wrong" in str(shown) or "plain" in str(shown)
            assert isinstance(shown, kind) or not isinstance(shown, FileNotFoundError | ValueError)


def test_what_comes_out_of_a_memory_that_is_full_stays_what_it_is(log: str) -> None:
    full = torch.OutOfMemoryError("out of memory")
    assert outcome(raising(full, ValueError("\u65e5"))) is full


@pytest.mark.parametrize("ending", [mm.InterruptProcessingException(), KeyboardInterrupt(), SystemExit()])
def test_a_cancel_passes_as_it_is(ending: BaseException) -> None:
    assert outcome(raising(ending)) is ending


def test_a_panic_of_a_library_becomes_one_sentence() -> None:
    panic = type("PanicException", (BaseException,), {})("Onig: retry-limit-in-match over\nsecond line")
    shown = outcome(raising(panic))
    assert isinstance(shown, RuntimeError)
    assert str(shown) == (
        "a library gave up on what it was given (PanicException: Onig: retry-limit-in-match over); "
        "check the texts and files"
    )


def test_an_error_of_the_system_about_a_file_becomes_one_sentence() -> None:
    shown = outcome(Path("x" * 5_000).stat)
    assert str(shown).startswith('"xxx')
    assert str(shown).endswith(
        'x" cannot be read or written: File name too long; check its name, its folder and the space there'
    )


def test_a_text_shown_on_a_node_holds_no_half_characters() -> None:
    shown = node_that(lambda: io.NodeOutput(ui={"text": ("a\udfff \u65e5", "b")})).execute()
    assert shown.ui == {"text": ("a\\udfff \u65e5", "b")}


@pytest.mark.parametrize("text", TEXTS)
def test_a_line_of_our_log_can_be_printed(log: str, text: str, caplog: pytest.LogCaptureFixture) -> None:
    printing.logger("acestep").warning("%s", text)
    caplog.messages[-1].encode(log)


def test_our_own_sentences_are_ascii() -> None:
    found = [
        f"{file.name}:{word.lineno}: {word.value}"
        for top in ("acestep_core", "nodes")
        for file in sorted((PACK_ROOT / top).rglob("*.py"))
        for raised in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(raised, ast.Raise)
        for word in ast.walk(raised)
        if isinstance(word, ast.Constant) and isinstance(word.value, str) and not word.value.isascii()
    ]
    assert found == []


def test_a_panic_of_the_tokenizers_library_itself_becomes_one_sentence() -> None:
    split = Split(Regex("(a+)+$"), "isolated")
    shown = outcome(lambda: split.pre_tokenize_str("a" * 40 + "!"))
    assert isinstance(shown, RuntimeError)
    assert "PanicException" in str(shown)
