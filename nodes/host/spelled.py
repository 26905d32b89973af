"""Key, time signature and language of our nodes: combos that take other spellings too, typed or over a wire.

A node with such inputs has them in its `validate_inputs`, so that ComfyUI leaves what they hold to check_spelling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from comfy_api.v0_0_2 import io
from comfy_execution.validation import validate_node_input

from ...acestep_core.constants import AUTO
from ...acestep_core.song.spelling import key_of, language_of, time_signature_of

READERS = {"key": key_of, "time_signature": time_signature_of, "language": language_of}  # by name of the input


def known(name: str, value: object) -> str | None:
    """Return what an input of READERS holds as the model's word, None for auto or nothing.

    Raises ValueError for a spelling that is not certain.
    """
    return None if value is None or str(value).strip().lower() in ("", AUTO) else READERS[name](value)


def check_spelling(node: type[io.ComfyNode], input_types: Mapping[str, str], **words: object) -> Literal[True] | str:
    """Return True, or the sentence that ComfyUI is to refuse a node's inputs with.

    input_types: of each connected input, what comes over its wire. words: what inputs of READERS hold, None for a
    connected one, which is read when it arrives.
    """
    for given in node.define_schema().inputs:
        takes = "COMBO,STRING" if given.id in words else given.get_io_type()
        comes = input_types.get(given.id, takes)
        if not validate_node_input(comes, takes):
            return f'"{given.id}" takes {takes} and is connected to {comes}; connect another output'
    try:
        for name, value in words.items():
            known(name, value)
    except ValueError as error:
        return str(error)
    return True
