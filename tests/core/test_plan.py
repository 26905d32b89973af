"""The planner's modes on a tiny random planner with the real vocabulary, and codes kept in files and text."""

import dataclasses
import json

import pytest
import torch

import tiny_models
import vocabulary
from acestep_pack.acestep_core.checkpoints.read import read_planner
from acestep_pack.acestep_core.codes import files as codes_files
from acestep_pack.acestep_core.constants import INSTRUMENTAL_LYRICS, LANGUAGES
from acestep_pack.acestep_core.models.qwen3 import Qwen3
from acestep_pack.acestep_core.planner.decode import LmSampling
from acestep_pack.acestep_core.planner.plan import Planner, Thinking, idea, plan, rewrite, understand
from acestep_pack.acestep_core.planner.prompts import understand_prompt
from acestep_pack.acestep_core.types import AudioCodes, SongSpec

pytestmark = pytest.mark.usefixtures("inference_mode")

SAMPLING = LmSampling(top_p=1.0)  # how tokens are drawn has tests of its own, and top-p sorts 151,669 for each
SONG = SongSpec("slow piano ballad", "[Verse]\nhello", "en", 90, "A minor", "4", 10.0)
OPEN = SongSpec("slow piano ballad", "[Verse]\nhello", duration_s=10.0)
NOTHING = Thinking(codes=False, metadata=False, caption=False, language=False)


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> Planner:
    folder = tmp_path_factory.mktemp("planner") / "acestep-5Hz-lm-0.6B"
    tiny_models.write_planner_official(folder)
    file = read_planner(folder)
    model = Qwen3(file.config)
    model.load_state_dict(file.state)
    # A random planner never ends its turn by itself.
    return Planner(model.eval(), vocabulary.tokenizer(), torch.float32, torch.device("cpu"), max_lyric_tokens=40)


def test_song_goes_straight_through_when_nothing_is_to_be_thought(planner):
    made = plan(planner, SONG, NOTHING, (1,), SAMPLING)
    assert (made.song, made.codes, made.blueprint) == (SONG, AudioCodes(), "")


def test_plan_has_exactly_five_codes_a_second_for_each_seed(planner):
    made = plan(planner, SONG, Thinking(metadata=False, caption=False, language=False), (1, 2, 3), SAMPLING)
    assert [len(sequence) for sequence in made.codes.sequences] == [50, 50, 50]
    assert len(set(made.codes.sequences)) == 3


def test_plan_of_a_seed_is_the_same_alone_and_among_others(planner):
    thinking = Thinking(metadata=False, caption=False, language=False)
    together = plan(planner, SONG, thinking, (5, 6, 7), SAMPLING).codes.sequences
    alone = plan(planner, SONG, thinking, (6,), SAMPLING).codes.sequences
    assert together[1] == alone[0]


def test_open_fields_are_filled_in_and_given_ones_stay(planner):
    given = dataclasses.replace(OPEN, key="F# minor")
    made = plan(planner, given, Thinking(codes=False, caption=False), (1,), SAMPLING)
    assert (made.song.key, made.song.duration_s, made.song.caption) == ("F# minor", 10.0, given.caption)
    assert made.song.bpm is not None
    assert made.song.time_signature is not None
    assert made.song.language in LANGUAGES
    assert made.blueprint.startswith("<think>")


def test_metadata_is_left_alone_when_only_the_language_is_asked_for(planner):
    only_language = Thinking(codes=False, metadata=False, caption=False)
    made = plan(planner, OPEN, only_language, (1,), SAMPLING).song
    assert made == dataclasses.replace(OPEN, language=made.language)


def test_caption_is_rewritten_only_when_asked(planner):
    made = plan(planner, SONG, Thinking(codes=False), (3,), SAMPLING)
    assert made.song.caption != SONG.caption
    assert made.song.lyrics == SONG.lyrics


def test_song_that_says_nothing_is_refused(planner):
    with pytest.raises(ValueError, match="neither caption nor lyrics"):
        plan(planner, SongSpec(), Thinking(), (1,), SAMPLING)


def test_negative_that_nothing_listens_to_is_refused(planner):
    unguided, says = LmSampling(cfg_scale=1.0), "negative works with a cfg_scale above 1, got 1; raise it or leave"
    with pytest.raises(ValueError, match=says):
        plan(planner, SONG, Thinking(), (1,), unguided, "noise")
    plan(planner, SONG, NOTHING, (1,), unguided, "noise")


class Reserved(Exception):
    """Ends a task where it has asked for its memory."""


def reserving(planner: Planner) -> Planner:
    """Return a planner whose tasks end when they ask for memory, and say how much."""

    def stop(n_bytes: int) -> bool:
        raise Reserved(n_bytes)

    return dataclasses.replace(planner, reserve=stop)


def reserved(planner: Planner, song: SongSpec, thinking: Thinking, n_plans: int, sampling: LmSampling) -> int:
    """Return the bytes that a plan asks for before it begins."""
    with pytest.raises(Reserved) as asked:
        plan(reserving(planner), song, thinking, tuple(range(n_plans)), sampling)
    return asked.value.args[0]


def test_what_is_wrong_with_a_song_is_told_before_anything_is_loaded(planner):
    with pytest.raises(ValueError, match="neither caption nor lyrics"):
        reserved(planner, SongSpec(), Thinking(), 1, SAMPLING)
    endless = SongSpec("slow piano ballad", 33_000 * "la ")
    for thinking in (Thinking(), Thinking(metadata=False, caption=False, language=False)):
        with pytest.raises(ValueError, match="exceed the planner's 32768; shorten the lyrics or the song"):
            reserved(planner, endless, thinking, 1, SAMPLING)


def test_memory_asked_for_is_what_the_plan_needs_and_no_more(planner):
    def needed(song: SongSpec = SONG, n_plans: int = 8, cfg_scale: float = 2.0, **thinking: bool) -> int:
        return reserved(planner, song, Thinking(**thinking), n_plans, LmSampling(cfg_scale=cfg_scale))

    long = dataclasses.replace(SONG, duration_s=600.0)
    assert needed(codes=False, metadata=False, caption=False, language=False) == 0
    assert needed(codes=False) == needed(long, codes=False)
    assert needed(n_plans=1) < needed() < needed(long)
    assert needed(dataclasses.replace(SONG, duration_s=None)) == needed(long)
    assert 1.7 < needed(long) / needed(long, cfg_scale=1.0) < 2


def test_idea_becomes_a_whole_song_in_the_language_given(planner):
    song = idea(planner, "a lullaby for a lighthouse", False, "sv", 1, SAMPLING)
    assert song.language == "sv"
    assert song.bpm is not None
    assert song.lyrics


def test_instrumental_idea_has_no_words(planner):
    assert idea(planner, "a march of beetles", True, None, 1, SAMPLING).lyrics == INSTRUMENTAL_LYRICS


def test_rewritten_song_keeps_every_field_the_user_gave(planner):
    song = rewrite(planner, SONG, 2, SAMPLING)
    kept = ("language", "bpm", "key", "time_signature", "duration_s")
    assert all(getattr(song, name) == getattr(SONG, name) for name in kept)


def test_codes_are_understood_as_a_song(planner):
    song = understand(planner, (1, 2, 63_999), 1, SAMPLING)
    assert None not in (song.bpm, song.key, song.time_signature, song.duration_s)


def test_a_code_is_one_token_also_where_the_tokenizer_does_not_know_it(planner):
    ids = planner.ids(understand_prompt((5, 0, 63_999)))
    before, after = understand_prompt((5,)).split("<|audio_code_5|>")
    assert ids == [*planner.ids(before), 151_674, 151_669, 215_668, *planner.ids(after)]


def test_text_that_is_no_code_stays_words(planner):
    for text in ("<|audio_code_64000|>", "<|audio_code_05|>", "<|audio_code_|>", "audio_code_5"):
        assert max(planner.ids(text)) < 151_669


def test_code_out_of_range_is_not_understood(planner):
    with pytest.raises(ValueError, match="audio code 64000 at position 1 is outside"):
        understand(planner, (5, 64_000), 1, SAMPLING)


def test_no_codes_cannot_be_understood(planner):
    with pytest.raises(ValueError, match="no codes to understand"):
        understand(planner, (), 1, SAMPLING)


def test_cancel_in_mid_plan_goes_through(planner):
    class CancelledError(BaseException):
        pass

    def cancel(done: int, total: int) -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        plan(planner, SONG, Thinking(), (1,), SAMPLING, on_token=cancel)


CODES = AudioCodes(((0, 35_847, 63_999), (), (7,)))


def test_saved_codes_load_back_equal(tmp_path):
    path = tmp_path / "plan.codes.json"
    codes_files.save(CODES, path)
    assert codes_files.load(path) == CODES
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"format": "acestep-codes", "version": 1, "sequences": [[1, 2', "damaged"),
        ("[1, 2]", "not a codes file"),
        ('{"format": "acestep-codes", "version": 9, "sequences": []}', "version 9"),
        ('{"format": "acestep-codes", "version": 1, "sequences": [[1, "x"]]}', "'x' at position 1"),
        ('{"format": "acestep-codes", "version": 1, "sequences": [[1, 64000]]}', "64000 at position 1"),
        ('{"format": "acestep-codes", "version": 1}', "no list of sequences"),
    ],
)
def test_damaged_codes_file_says_where(tmp_path, content, says):
    path = tmp_path / "plan.codes.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=says) as error:
        codes_files.load(path)
    assert "\n" not in str(error.value)


def test_damage_names_the_character_where_the_file_breaks_off(tmp_path):
    path = tmp_path / "plan.codes.json"
    codes_files.save(CODES, path)
    whole = path.read_text(encoding="utf-8")
    assert json.loads(whole)
    path.write_text(whole[:-10], encoding="utf-8")
    with pytest.raises(ValueError, match=r"char \d+"):
        codes_files.load(path)
