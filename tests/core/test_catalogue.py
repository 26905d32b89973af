"""Laws of the catalogue: every row can be found, stored and shown."""

from __future__ import annotations

import dataclasses

import pytest

from acestep_pack.acestep_core.checkpoints import catalogue

CHECKPOINTS = catalogue.CHECKPOINTS


def test_names_are_unique_on_every_file_system() -> None:
    names = [checkpoint.name.lower() for checkpoint in CHECKPOINTS]
    assert sorted(set(names)) == sorted(names)
    assert not set(names) & set(catalogue.SETS)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def test_a_checkpoint_stays_in_its_folder(checkpoint: catalogue.Checkpoint) -> None:
    assert checkpoint.folder in catalogue.FOLDERS
    for text in (checkpoint.name, *checkpoint.files):
        assert ".." not in text
        assert not text.startswith("/")
        assert "\\" not in text
    assert "/" not in checkpoint.name
    # Only the last component may be a pattern: the download compares the rest as it is.
    assert all("*" not in file.rpartition("/")[0] for file in checkpoint.files)


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=lambda checkpoint: checkpoint.name)
def test_a_checkpoint_names_weights_of_a_plausible_size(checkpoint: catalogue.Checkpoint) -> None:
    assert any(file.endswith(".safetensors") for file in checkpoint.files)
    assert 10**8 < checkpoint.size_bytes < 2.1e10
    assert checkpoint.dtype in ("bf16", "fp32")


@pytest.mark.parametrize("checkpoint", [c for c in CHECKPOINTS if c.is_folder], ids=lambda checkpoint: checkpoint.name)
def test_a_folder_gets_its_config_last_so_that_it_lists_only_when_whole(
    checkpoint: catalogue.Checkpoint,
) -> None:
    assert checkpoint.files[-1].endswith("config.json")


@pytest.mark.parametrize(
    "checkpoint", [c for c in CHECKPOINTS if not c.is_folder], ids=lambda checkpoint: checkpoint.name
)
def test_a_single_file_keeps_its_published_name(checkpoint: catalogue.Checkpoint) -> None:
    assert checkpoint.files[0].rpartition("/")[2] == checkpoint.name


def test_every_diffusion_model_says_its_variant_and_no_other_part_does() -> None:
    for checkpoint in CHECKPOINTS:
        assert bool(checkpoint.variant) == (checkpoint.folder in ("diffusion_models", "checkpoints"))


@pytest.mark.parametrize("name", catalogue.SETS)
def test_a_set_brings_one_model_one_text_encoder_and_one_vae(name: str) -> None:
    assert sorted(checkpoint.folder for checkpoint in catalogue.choose(name)) == [
        "diffusion_models",
        "text_encoders",
        "vae",
    ]


def test_choosing_a_name_gives_that_checkpoint_alone() -> None:
    for checkpoint in CHECKPOINTS:
        assert catalogue.choose(checkpoint.name) == (checkpoint,)


def test_choosing_an_unknown_name_says_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'acestep-v2'.*turbo set, base set.*acestep-v15-xl-sft"):
        catalogue.choose("acestep-v2")


@pytest.mark.parametrize(
    "wrong", [{"folder": "loras"}, {"files": ()}, {"size_bytes": 0}], ids=lambda wrong: next(iter(wrong))
)
def test_a_row_that_breaks_the_rules_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=CHECKPOINTS[0].name):
        dataclasses.replace(CHECKPOINTS[0], **wrong)


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_968, "1.97 kB"), (337_431_732, "337 MB"), (19_949_340_504, "19.9 GB")],
)
def test_sizes_read_as_the_hub_shows_them(n_bytes: int, text: str) -> None:
    assert catalogue.human_size(n_bytes) == text
