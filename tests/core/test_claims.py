"""Several programs on one folder: no two share a name, none loses anything, and a killed one leaves nothing half."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest
from safetensors.torch import load_file

import writers
from acestep_pack.acestep_core import bundle
from acestep_pack.acestep_core.atomic_write import QUIET_S
from acestep_pack.acestep_core.codes import files as codes_files
from acestep_pack.acestep_core.numbering import CLAIM, numbered

N_WRITERS, N_ITEMS = 3, 20


@contextmanager
def at_once(folder: Path, kind: str, n_items: int, n_writers: int = N_WRITERS) -> Iterator[list]:
    """Programs that begin to save at one moment, the folder not yet there."""
    running = [writers.start(kind, folder, writer, n_items) for writer in range(n_writers)]
    try:
        assert [each.stdout.readline() for each in running] == ["ready\n"] * n_writers
        (folder.parent / "go").touch()
        yield running
    finally:
        for each in running:
            each.kill()
            each.wait()
            each.stdout.close()
        (folder.parent / "go").unlink(missing_ok=True)


def told(running: list) -> list[str]:
    names = [each.communicate(timeout=120)[0].split() for each in running]
    assert [each.returncode for each in running] == [0] * len(running)
    return [name for of_one in names for name in of_one]


def number_of(name: str) -> int:
    return int(name.split("_")[1].split(".")[0])


EVERYONES = {(writer, item) for writer in range(N_WRITERS) for item in range(N_ITEMS)}


def test_takes_saved_by_several_programs_at_once_are_all_there_and_whole(tmp_path: Path) -> None:
    with at_once(tmp_path / "out", "bundles", N_ITEMS) as running:
        names = told(running)
    audio = sorted((tmp_path / "out").glob("*.wav"))
    assert sorted(names) == [path.name for path in audio]
    assert [number_of(path.name) for path in audio] == list(range(1, len(EVERYONES) + 1))
    assert {writers.bundle_of(path) for path in audio} == EVERYONES
    assert len(os.listdir(tmp_path / "out")) == 4 * len(EVERYONES)


def test_codes_saved_by_several_programs_at_once_are_all_there(tmp_path: Path) -> None:
    with at_once(tmp_path / "out", "codes", N_ITEMS) as running:
        names = told(running)
    assert sorted(names) == sorted(os.listdir(tmp_path / "out"))
    assert sorted(map(number_of, names)) == list(range(1, len(EVERYONES) + 1))
    assert {codes_files.load(tmp_path / "out" / name).sequences[0] for name in names} == EVERYONES


def test_adapters_kept_by_several_programs_at_once_are_each_there_once(tmp_path: Path) -> None:
    with at_once(tmp_path / "out", "copies", N_ITEMS) as running:
        told(running)
    found = [
        tuple(sorted((name, tuple(tensor.flatten().tolist())) for name, tensor in load_file(path).items()))
        for path in (tmp_path / "out").iterdir()
    ]
    assert len(found) == len(set(found)) == 2 * N_ITEMS
    names = {"voice.safetensors", *(f"voice_{number}.safetensors" for number in range(2, 2 * N_ITEMS + 1))}
    assert names == set(os.listdir(tmp_path / "out"))


def test_threads_of_one_program_share_no_number(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=lambda writer=writer: [writers.save_codes(tmp_path, writer, i) for i in range(N_ITEMS)])
        for writer in range(N_WRITERS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {codes_files.load(path).sequences[0] for path in tmp_path.iterdir()} == EVERYONES


@pytest.mark.parametrize("seed", range(2))
def test_a_program_killed_while_it_saves_leaves_whole_takes_and_the_next_goes_on(tmp_path: Path, seed: int) -> None:
    out = tmp_path / "out"
    with at_once(out, "bundles", 0, n_writers=2) as running:
        names = [each.stdout.readline().strip() for each in running]
        time.sleep(Random(seed).uniform(0, 0.1))
        for each in running:
            each.kill()
        names += [name for each in running for name in each.stdout.read().split()]
    audio = {path.name for path in out.glob("*.wav")}
    assert set(names) <= audio
    authors = [writers.bundle_of(out / name) for name in audio]
    assert len(set(authors)) == len(authors)
    numbers = [number_of(name) for name in audio]
    assert len(set(numbers)) == len(numbers)

    for path in out.iterdir():  # as if it had been long ago
        os.utime(path, (time.time() - QUIET_S - 60,) * 2)
    saved = writers.save_bundle(out, 9, 9)
    assert number_of(saved) > max(numbers)
    assert writers.bundle_of(out / saved) == (9, 9)
    assert not [path for path in out.iterdir() if path.name.startswith(".") or path.suffix == CLAIM]


# The number alone.


def test_a_number_that_someone_holds_is_passed_over_until_it_is_given_back(tmp_path: Path) -> None:
    def nested(number: int) -> tuple[int, int]:
        (tmp_path / f"song_{number:05}.wav").touch()
        return number, numbered(tmp_path, "song", lambda other: other)

    assert numbered(tmp_path, "song", nested) == (1, 2)
    assert numbered(tmp_path, "song", lambda number: number) == 2
    assert os.listdir(tmp_path) == ["song_00001.wav"]


def test_numbers_go_on_after_the_highest_by_comfyuis_rule_and_names_do_not_mix(tmp_path: Path) -> None:
    for name in ("song_00007_.flac", "song_00009_seed3.json", "song_live_00050.wav", "songs_00060.wav", "song_x.wav"):
        (tmp_path / name).touch()
    assert [numbered(tmp_path, name, int) for name in ("song", "song_live", "songs", "son")] == [10, 51, 61, 1]


def test_a_name_that_is_taken_after_all_costs_a_number_and_no_file(tmp_path: Path) -> None:
    """As on a share that shows a file late, or a disk that takes Song for song."""

    def write(number: int) -> int:
        if number < 3:
            raise FileExistsError
        return number

    assert numbered(tmp_path, "song", write) == 3
    assert os.listdir(tmp_path) == []


def test_a_folder_that_another_program_removes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, listdir = tmp_path / "out", os.listdir

    def removed_meanwhile(path: Path) -> list[str]:
        names = listdir(path)
        if not names:
            os.rmdir(path)
        return names

    monkeypatch.setattr(os, "listdir", removed_meanwhile)
    assert bundle.save_next(folder, "song", writers.SOUND, b"", bundle.Origin()) == "song_00001.wav"


def test_a_disk_that_refuses_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^n+ cannot be written to {tmp_path}: File name too long; make room"):
        numbered(tmp_path, "n" * 300, lambda number: number)
    assert os.listdir(tmp_path) == []
