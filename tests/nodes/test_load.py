"""What the loaders offer: the files that fit first, and a word where there is none."""

from __future__ import annotations

import itertools

import pytest

from acestep_pack.nodes import load
from acestep_pack.nodes.host import folders

# As they are published: single files, and the official folders.
TEXT_ENCODERS = ("qwen_0.6b_ace15.safetensors", "Qwen3-Embedding-0.6B/")
PLANNERS = ("qwen_1.7b_ace15.safetensors", "qwen_4b_ace15.safetensors", "acestep-5Hz-lm-0.6B/", "acestep-5Hz-lm-1.7B/")
LOADERS = (load.AceStepLoadModel, load.AceStepLoadTextEncoder, load.AceStepLoadPlanner, load.AceStepLoadVAE)


def offered(node: type) -> list[str]:
    return node.define_schema().inputs[0].options


@pytest.mark.parametrize(
    ("node", "fits"), [(load.AceStepLoadTextEncoder, TEXT_ENCODERS), (load.AceStepLoadPlanner, PLANNERS)]
)
def test_a_fresh_loader_has_a_file_that_fits_whatever_else_is_in_the_folder(monkeypatch, node: type, fits) -> None:
    for one, other in itertools.product(TEXT_ENCODERS, PLANNERS):
        for names in ([one, other], [other, one]):
            monkeypatch.setattr(load, "models_in", lambda category, names=names: names if "text" in category else [])
            assert offered(node)[0] in fits
            assert sorted(offered(node)) == sorted(names)


@pytest.mark.parametrize("node", LOADERS)
def test_a_loader_without_files_says_what_to_run(monkeypatch, node: type) -> None:
    monkeypatch.setattr(load, "models_in", lambda category: [])
    (only,) = offered(node)
    assert only == "none found: run ACE-Step Download"
    with pytest.raises(
        FileNotFoundError, match='there is no model in models/vae; run "ACE-Step Download", then press R'
    ):
        folders.path_of(("vae",), only)
