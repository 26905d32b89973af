"""Laws of the planner's decoder, on a random planner of two small layers with the real vocabulary."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acestep_pack.acestep_core.constants import N_CODES
from acestep_pack.acestep_core.models.layers import AttentionShape, Build
from acestep_pack.acestep_core.models.qwen3 import KVCache, Qwen3, Qwen3Config
from acestep_pack.acestep_core.planner import decode
from acestep_pack.acestep_core.planner.decode import LmSampling, draw, generate_codes, generate_text, guide, penalize
from acestep_pack.acestep_core.planner.grammar import Choice, Forced, Grammar, Rule, Text
from golden_models import assert_close

pytestmark = pytest.mark.usefixtures("inference_mode")

SHAPE = AttentionShape(width=16, mlp_width=32, n_heads=4, n_kv_heads=2, head_dim=8, window=None)
CONFIG = Qwen3Config(SHAPE, n_layers=2, n_tokens=217_204)
CODES = slice(decode.FIRST_CODE_ID, decode.FIRST_CODE_ID + N_CODES)

COND, UNCOND = [*range(100, 131)], [7, 8, 9]
PLAIN = LmSampling(temperature=1.0, top_p=1.0, cfg_scale=1.0)
GREEDY = LmSampling(temperature=0.0)


@functools.cache
def planner(config: Qwen3Config = CONFIG) -> Qwen3:
    """Return a planner whose logits spread by about 4. Shared between tests: leave it as you found it."""
    generator = torch.Generator().manual_seed(1)
    model = Qwen3(config)
    for name, weight in model.named_parameters():
        numbers = torch.randn(weight.shape, generator=generator)
        scale = 1.0 if name.startswith(("embed_tokens", "lm_head")) else weight.shape[-1] ** -0.5
        weight.data = 1 + 0.1 * numbers if weight.ndim == 1 else scale * numbers
    return model.eval().requires_grad_(False)


def own_planner(**changes: Tensor) -> Qwen3:
    """Return a planner with a head of its own that a test may damage, with other tensors in place of its own."""
    model = Qwen3(Qwen3Config(SHAPE, n_layers=2, n_tokens=217_204, own_head=True))
    tied = planner().state_dict()
    model.load_state_dict(tied | {"lm_head.weight": tied["embed_tokens.weight"]} | changes)
    return model.eval().requires_grad_(False)


def codes(seeds=(0,), n_codes=12, sampling=LmSampling(), **more):  # noqa: B008
    return generate_codes(more.pop("model", planner()), COND, UNCOND, n_codes, seeds, sampling, **more)


def states(model: Qwen3, ids: list[int]) -> Tensor:
    """Return hidden states [1, S, width], computed without a cache."""
    return model(torch.tensor([ids]), torch.float32)


def code_logits(model: Qwen3, ids: list[int]) -> Tensor:
    """Return the logits [N_CODES] behind ids, computed without a cache."""
    return states(model, ids)[0, -1] @ model.embed_tokens.weight[CODES].T


# The cache.


@pytest.mark.parametrize("pieces", [[20], [1] * 20, [7, 1, 1, 11], [19, 1]])
def test_states_of_a_sequence_in_pieces_equal_the_whole(pieces):
    ids = [*range(50, 70)]
    cache, found = KVCache(CONFIG, (0,), 20, torch.float32, "cpu"), []
    for n in pieces:
        start = cache.n_filled
        x = planner().embed(torch.tensor([ids[start : start + n]]), torch.float32)
        found.append(planner().extend(x, cache.next(n)))
    assert_close(torch.cat(found, 1), states(planner(), ids), 1e-5)


def two_prompts(n_more: int) -> tuple[KVCache, list[list[int]]]:
    """Return a cache of two rows for each of two prompts of different length, and what every row has read."""
    prompts, caches = [COND, UNCOND], []
    for prompt in prompts:
        caches.append(KVCache(CONFIG, (0,), len(prompt), torch.float32, "cpu"))
        decode._run(planner(), prompt, caches[-1])
    return KVCache.repeat(CONFIG, caches, 2, n_more), [[*prompt] for prompt in prompts for _ in range(2)]


def test_rows_of_different_prompts_in_one_cache_equal_each_alone():
    cache, rows = two_prompts(3)
    for step in range(3):
        for number, row in enumerate(rows):
            row.append(1000 * step + number)
        x = planner().embed(torch.tensor([row[-1:] for row in rows]), torch.float32)
        found = planner().extend(x, cache.next(1))[:, 0]
        assert_close(found, torch.cat([states(planner(), row)[:, -1] for row in rows]), 1e-5)


def test_several_tokens_behind_different_prompts_equal_each_alone():
    cache, rows = two_prompts(3)
    more = [11, 12, 13]
    found = planner().extend(planner().embed(torch.tensor([more] * 4), torch.float32), cache.next(3))
    assert_close(found, torch.cat([states(planner(), row + more)[:, -3:] for row in rows]), 1e-5)


def test_slots_on_the_device_reach_what_slots_on_the_host_reach():
    """The first is how a CUDA graph sees the cache: with slots beyond what is filled."""
    caches = [two_prompts(5)[0] for _ in range(2)]
    x = planner().embed(torch.tensor([[1], [2], [3], [4]]), torch.float32)
    by_host = planner().extend(x, caches[0].next(1))
    by_device = planner().extend(x, caches[1].reach(torch.tensor([len(COND)]), len(COND) + 5))
    assert_close(by_device, by_host, 1e-6)


def test_cache_takes_the_bytes_of_its_formula():
    cache = KVCache(CONFIG, (0, 0, 4), 37, torch.bfloat16, "cpu")
    found = sum(buffer.nbytes for layer in cache.layers for buffer in layer)
    assert found == decode.cache_bytes(CONFIG, n_rows=3, n_positions=37, itemsize=2)


def test_cache_of_the_released_17b_takes_112_kib_a_token():
    shape = AttentionShape(width=2048, mlp_width=6144, n_heads=16, n_kv_heads=8, head_dim=128, window=None)
    assert decode.cache_bytes(Qwen3Config(shape, 28, 217_204), 1, 1, itemsize=2) == 114_688


def test_eight_guided_plans_of_ten_minutes_take_10_gib_beside_the_released_17b():
    shape = AttentionShape(width=2048, mlp_width=6144, n_heads=16, n_kv_heads=8, head_dim=128, window=None)
    needed = decode.codes_bytes(Qwen3Config(shape, 28, 217_204), [2_000 * [0], UNCOND], 3_000, 8, itemsize=2)
    in_the_cache = 16 * 5_000 * 114_688
    assert in_the_cache < needed < in_the_cache + 1.5 * 2**30


@pytest.mark.parametrize("n_codes", [50, 3000])
def test_memory_is_told_for_two_prompts_only_when_there_are_two(n_codes):
    alone, guided = (decode.codes_bytes(CONFIG, prompts, n_codes, 2, 4) for prompts in ([COND], [COND, UNCOND]))
    assert guided - alone > decode.cache_bytes(CONFIG, 2, len(COND) + n_codes, 4)


def test_cache_of_a_generation_ends_with_the_last_code_that_is_read(monkeypatch):
    made = []
    monkeypatch.setattr(decode._Takes, "check", lambda takes: made.append(takes.cache))
    codes(seeds=(0, 1, 2), n_codes=9)
    assert made[0].layers[0][0].shape == (6, 2, len(COND) + 8, 8)
    assert made[0].n_filled == made[0].n_slots


def test_full_cache_says_how_much_it_holds():
    cache = KVCache(CONFIG, (0,), 3, torch.float32, "cpu")
    with pytest.raises(ValueError, match="holds 3 tokens, 4 were asked for"):
        cache.next(4)


# Codes.


@pytest.mark.parametrize("n_codes", [0, 1, 2, 17, 100])
def test_a_plan_has_exactly_the_codes_that_were_asked_for(n_codes):
    (take,) = codes(n_codes=n_codes)
    assert len(take) == n_codes
    assert all(0 <= code < N_CODES for code in take)


def test_eight_guided_plans_of_ten_minutes_have_3000_codes_each(monkeypatch):
    monkeypatch.setattr(decode, "N_CODES", 1_000)  # to choose among: what counts here is how many are chosen
    model = planner(Qwen3Config(AttentionShape(8, 8, 1, 1, 8, window=None), n_layers=1, n_tokens=217_204))
    assert [len(take) for take in codes(range(8), 3000, GREEDY, model=model)] == 8 * [3000]


@pytest.mark.parametrize("sampling", [LmSampling(), PLAIN, LmSampling(top_k=50, min_p=0.01, repetition_penalty=1.2)])
def test_a_take_depends_on_its_seed_and_not_on_its_batch(sampling):
    alone = {seed: codes((seed,), 20, sampling)[0] for seed in (3, 2**53 - 1, 5)}
    assert len(set(alone.values())) == 3
    for batch in [(3, 2**53 - 1, 5), (5, 3), (5, 5, 2**53 - 1)]:
        assert codes(batch, 20, sampling) == [alone[seed] for seed in batch]


def test_a_longer_plan_begins_with_the_shorter():
    assert codes(n_codes=30)[0][:12] == codes(n_codes=12)[0]


@pytest.mark.parametrize("cfg_scale", [1.0, 2.0, 3.5])
def test_temperature_zero_takes_the_likeliest_code(cfg_scale):
    cond, uncond, expected = [*COND], [*UNCOND], []
    for _ in range(6):
        by_cond, by_uncond = code_logits(planner(), cond), code_logits(planner(), uncond)
        expected.append(int((by_uncond + cfg_scale * (by_cond - by_uncond)).argmax()))
        for ids in (cond, uncond):
            ids.append(decode.FIRST_CODE_ID + expected[-1])
    assert codes(n_codes=6, sampling=LmSampling(temperature=0.0, cfg_scale=cfg_scale)) == [tuple(expected)]


def test_own_head_is_used_where_there_is_one():
    reversed_head = planner().embed_tokens.weight.clone()
    reversed_head[CODES] = reversed_head[CODES].flip(0)
    model = own_planner(**{"lm_head.weight": reversed_head})
    sampling = LmSampling(temperature=0.0, cfg_scale=1.0)
    first, second = codes(n_codes=2, model=model, sampling=sampling)[0]
    assert N_CODES - 1 - first == int(code_logits(planner(), COND).argmax())
    assert N_CODES - 1 - second == int(code_logits(planner(), [*COND, decode.FIRST_CODE_ID + first]).argmax())


def test_unconditional_prompt_is_not_read_without_guidance():
    assert generate_codes(planner(), COND, [], 5, (0,), PLAIN) == codes(n_codes=5, sampling=PLAIN)


def test_guidance_by_the_same_prompt_changes_nothing():
    guided = generate_codes(planner(), COND, COND, 12, (0,), LmSampling(temperature=0.0, cfg_scale=5.0))
    assert guided == codes(n_codes=12, sampling=LmSampling(temperature=0.0, cfg_scale=1.0))


def test_repetition_penalty_counts_codes_and_not_the_prompt():
    strong = LmSampling(temperature=0.0, repetition_penalty=1e9, cfg_scale=1.0)
    (without,), (penalized,) = codes(n_codes=200, sampling=GREEDY), codes(n_codes=200, sampling=strong)
    assert len(set(without)) < 200
    assert len(set(penalized)) == 200
    prompt = [*COND, decode.FIRST_CODE_ID + penalized[0]]
    likeliest = int(code_logits(planner(), prompt).argmax())
    (first,) = generate_codes(planner(), prompt, [], 1, (0,), strong)[0]
    assert first == likeliest


# The end of a plan without a target.


@functools.cache
def ending_planner() -> Qwen3:
    """Return a planner that ends its turn once in a while."""
    head = planner().embed_tokens.weight.clone()
    head[decode.END_OF_TURN_ID] *= -6
    return own_planner(**{"lm_head.weight": head})


def test_without_a_target_each_take_ends_by_itself():
    seeds, more = (1, 2, 3), {"model": ending_planner(), "max_codes": 200}
    takes = codes(seeds, None, PLAIN, **more)
    assert len({len(take) for take in takes}) > 1
    assert all(len(take) < 200 for take in takes)
    assert takes == [codes((seed,), None, PLAIN, **more)[0] for seed in seeds]


def test_without_a_target_a_plan_that_does_not_end_is_cut():
    head = planner().embed_tokens.weight.clone()
    head[CODES] *= 30
    (take,) = codes(n_codes=None, sampling=PLAIN, model=own_planner(**{"lm_head.weight": head}), max_codes=35)
    assert len(take) == 35


def test_with_a_target_a_plan_cannot_end_early():
    assert [len(take) for take in codes((1, 2, 3), 60, PLAIN, model=ending_planner())] == [60, 60, 60]


# Drawing.

LOGITS = 2 * torch.randn(1, 200, generator=torch.Generator().manual_seed(3))
GRID = torch.linspace(0.5, 9999.5, 10_000) / 10_000  # even numbers between 0 and 1


def plainly_kept(probabilities: list[float], sampling: LmSampling) -> set[int]:
    """Return what top-k, then top-p, then min-p keep, by their definitions."""
    ranked = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])
    ranked = ranked[: sampling.top_k or None]
    total, before, kept = sum(probabilities[i] for i in ranked), 0.0, []
    for i in ranked:
        if not sampling.top_p or before < sampling.top_p * total:
            kept.append(i)
        before += probabilities[i]
    return {i for i in kept if probabilities[i] >= sampling.min_p * probabilities[ranked[0]]}


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize(("top_k", "top_p", "min_p"), [
    (0, 1.0, 0.0), (0, 0.0, 0.0), (1, 1.0, 0.0), (7, 1.0, 0.0), (500, 1.0, 0.0), (0, 0.9, 0.0), (0, 0.5, 0.0),
    (0, 1e-6, 0.0), (0, 1.0, 0.1), (0, 1.0, 1.0), (40, 0.8, 0.0), (40, 0.99, 0.02),
])  # fmt: skip
def test_draws_follow_the_plain_formulas(temperature, top_k, top_p, min_p):
    sampling = LmSampling(temperature, top_k, top_p, min_p)
    probabilities = torch.softmax(LOGITS / temperature, -1)[0].tolist()
    kept = plainly_kept(probabilities, sampling)
    total = sum(probabilities[i] for i in kept)
    drawn = draw(LOGITS.expand(len(GRID), -1), GRID[:, None], sampling).bincount(minlength=200)
    for i, count in enumerate(drawn.tolist()):
        expected = len(GRID) * probabilities[i] / total if i in kept else 0
        assert abs(count - expected) <= (1.5 if i in kept else 0), f"token {i}: {count} draws, {expected:.1f} expected"


def test_numbers_at_the_ends_draw_the_first_and_the_last_kept_token():
    logits = torch.full((2, 9), -torch.inf)
    logits[:, 3], logits[:, 5] = 0.0, 1.0
    ends = torch.tensor([[1e-30], [1.0]])
    assert draw(logits, ends, PLAIN).tolist() == [3, 5]
    assert draw(logits, ends, LmSampling(top_k=8, top_p=1.0)).tolist() == [3, 5]


def test_rounding_hardly_moves_a_draw():
    """Equal probabilities, told apart by noise as small as float32's own: the draws stay where they are."""
    generator = torch.Generator().manual_seed(0)
    noise = 1e-7 * torch.randn(2, 1, 5000, generator=generator)
    first, second = (draw(each.expand(1000, -1), GRID[::10, None], PLAIN) for each in noise)
    assert (first - second).abs().max() <= 1


def test_uniform_numbers_are_a_seeds_own_and_never_zero():
    both = decode._uniforms([1, 2], 1000)
    assert both.shape == (1000, 2, 1)
    assert torch.equal(both[:, :1], decode._uniforms([1], 1000))
    assert 0 < both.min() < both.max() <= 1


def test_guidance_is_linear_in_its_scale():
    cond, uncond = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(guide(cond, uncond, 1.0), cond)
    torch.testing.assert_close(guide(cond, uncond, 0.0), uncond)
    torch.testing.assert_close(guide(cond, uncond, 3.0), 3 * cond - 2 * uncond)


def test_penalty_lowers_seen_logits_of_either_sign():
    logits, seen = torch.tensor([[4.0, -4.0, 4.0, 0.0]]), torch.tensor([[True, True, False, True]])
    assert penalize(logits, seen, 2.0).tolist() == [[2.0, -8.0, 4.0, 0.0]]


@pytest.mark.parametrize(("name", "value", "said"), [
    ("temperature", -0.1, "temperature must be 0 or above, got -0.1"),
    ("temperature", float("nan"), "temperature must be 0 or above, got nan"),
    ("top_k", -1, "top_k must be 0 or above, got -1"),
    ("top_p", 1.1, "top_p must be 0 to 1, got 1.1"),
    ("min_p", -0.5, "min_p must be 0 to 1, got -0.5"),
    ("cfg_scale", float("inf"), "cfg_scale must be 0 or above, got inf"),
    ("repetition_penalty", 0, "repetition_penalty must be above 0, got 0; 1 is off"),
])  # fmt: skip
def test_sampling_out_of_range_is_refused(name, value, said):
    with pytest.raises(ValueError, match=said):
        LmSampling(**{name: value})


# Progress, cancelling, bad numbers.


def test_progress_is_told_once_a_second_of_music():
    told = []
    codes(n_codes=12, on_token=lambda *progress: told.append(progress))
    assert told == [(5, 12), (10, 12), (12, 12)]


class Cancelled(Exception):
    """As a host raises it."""


def test_cancelling_passes_through_and_the_next_run_works():
    def cancel(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        codes(on_token=cancel)
    assert codes() == codes()


def test_logits_that_are_no_numbers_are_told_after_the_prompt():
    model = own_planner(**{"norm.weight": torch.full((16,), torch.nan)})
    told = []
    with pytest.raises(RuntimeError, match="are no numbers in float32; its file looks damaged"):
        codes(model=model, on_token=lambda *progress: told.append(progress))
    assert told == []


def test_logits_that_become_no_numbers_are_told_at_the_end():
    embeddings = planner().embed_tokens.weight.clone()
    embeddings[CODES] = torch.nan
    with pytest.raises(RuntimeError, match="are no numbers in float32"):
        codes(model=own_planner(**{"embed_tokens.weight": embeddings}))


def test_overflow_in_half_precision_says_which_dtype_to_use():
    model = own_planner(**{"norm.weight": torch.full((16,), 6e4)}).half()
    with pytest.raises(RuntimeError, match="overflow in fp16; load it with dtype bf16, or fp32"):
        codes(model=model, dtype=torch.float16)
    with pytest.raises(RuntimeError, match="overflow in fp16"):
        generate_text(model, COND, Grammar(iter_of(Choice((1, 2)))), 0, PLAIN, dtype=torch.float16)


def test_more_positions_than_the_planner_has_are_refused():
    with pytest.raises(ValueError, match="prompt of 31 tokens and 40000 to follow exceed the planner's 32768"):
        codes(n_codes=40_000)
    with pytest.raises(ValueError, match="prompt of 30000 tokens and 4096 to follow exceed"):
        decode.text_bytes(CONFIG, 30_000 * [0], 4)
    with pytest.raises(ValueError, match="prompt of 30000 tokens and 3000 to follow exceed"):
        decode.codes_bytes(CONFIG, [COND, 30_000 * [0]], 3_000, 1, 4)


# A step as a CUDA graph would see it.


class Calls(TorchDispatchMode):
    """The operations that run within it, and the kinds of device each had to do with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, set[str]]] = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        out = operation(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        self.seen.append((str(operation), {tensor.device.type for tensor in tensors}))
        return out


@pytest.mark.parametrize("sampling", [
    LmSampling(), GREEDY, PLAIN, LmSampling(top_k=50, min_p=0.01, repetition_penalty=1.2),
])  # fmt: skip
def test_a_step_on_the_device_needs_nothing_of_the_host(sampling):
    """On a pretended card: its operations are told apart by device, and none is computed."""
    with torch.inference_mode(False), FakeTensorMode():
        model = Qwen3(CONFIG, Build(device="cuda")).requires_grad_(False)
        cache = KVCache(CONFIG, (0, 0, 2, 2) if sampling.is_guided else (0, 0), 40, torch.float32, "cuda")
        takes = decode._Takes(model, cache, sampling, torch.rand(5, 2, 1, device="cuda"), may_end=True)
        with Calls() as calls:
            takes.follow(cache.reach(takes.n_chosen + 9, 30))
    assert len(calls.seen) > 100
    assert [call for call in calls.seen if call[1] != {"cuda"}] == []
    assert [name for name, _ in calls.seen if "_local_scalar_dense" in name or "nonzero" in name] == []


# Text.


def iter_of(*steps: Forced | Choice | Text) -> Rule:
    """Write what the steps leave, whatever is chosen."""
    for step in steps:  # noqa: UP028 (a tuple takes no token that is sent)
        yield step


def text(*steps: Forced | Choice | Text, seed: int = 0, sampling: LmSampling = PLAIN, **more: int) -> tuple[int, ...]:
    return generate_text(planner(), COND, Grammar(iter_of(*steps)), seed, sampling, **more)


@pytest.fixture
def runs(monkeypatch) -> list[int]:
    """The number of tokens in each run of the model."""
    counts: list[int] = []
    run = decode._run
    monkeypatch.setattr(decode, "_run", lambda model, ids, cache: counts.append(len(ids)) or run(model, ids, cache))
    return counts


ANY = Text(banned=())


def test_forced_tokens_in_one_run_equal_one_run_each(runs):
    forced = text(Forced((11, 12, 13)), ANY, Forced((14, 15)), ANY, sampling=GREEDY)
    assert runs == [len(COND) + 3, 1 + 2]
    singly = [Choice((token,)) for token in (11, 12, 13)], [Choice((token,)) for token in (14, 15)]
    assert text(*singly[0], ANY, *singly[1], ANY, sampling=GREEDY) == forced
    assert runs[2:] == [len(COND), 1, 1, 1, 1, 1, 1]


def test_nothing_is_run_when_everything_is_forced(runs):
    assert text(Forced((1, 2)), Forced((3,))) == (1, 2, 3)
    assert runs == []


def test_free_text_is_the_likeliest_of_what_is_not_banned():
    logits = states(planner(), COND)[0, -1] @ planner().embed_tokens.weight[: decode.N_TEXT_TOKENS].T
    first, second = logits.topk(2).indices.tolist()
    assert text(ANY, sampling=GREEDY) == (first,)
    assert text(Text(banned=(first,)), sampling=GREEDY) == (second,)


def test_choice_is_drawn_among_its_rows():
    drawn = {text(Choice((5, 700, 216_000)), seed=seed) for seed in range(30)}
    assert drawn <= {(5,), (700,), (216_000,)}
    assert len(drawn) > 1


def test_greedy_choice_is_the_likeliest_at_any_temperature():
    rows = tuple(range(40, 60))
    best = rows[int((states(planner(), COND)[0, -1] @ planner().embed_tokens.weight[40:60].T).argmax())]
    hot = LmSampling(temperature=50.0, top_p=1.0)
    assert {text(Choice(rows, greedy=True), seed=seed, sampling=hot) for seed in range(10)} == {(best,)}


def test_repetition_penalty_of_text_counts_what_was_chosen():
    strong = LmSampling(temperature=0.0, repetition_penalty=1e9)
    for step in (ANY, Choice(tuple(range(40, 1000)))):
        assert len(set(text(*[step] * 30, sampling=GREEDY))) < 30
        assert len(set(text(*[step] * 30, sampling=strong))) == 30


def test_text_of_a_seed_is_the_same_every_time():
    steps = [ANY, Forced((1, 2)), ANY, ANY]
    assert text(*steps, seed=4) == text(*steps, seed=4) != text(*steps, seed=5)


@pytest.mark.parametrize("n", [1, 3, 4, 5])
def test_text_stops_at_its_limit_within_forced_tokens_too(n):
    steps = [ANY, ANY, Forced((1, 2, 3)), ANY, ANY]
    assert text(*steps, max_tokens=n) == text(*steps)[:n]


def test_text_can_be_cancelled():
    def cancel(done: int, total: int) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        generate_text(planner(), COND, Grammar(iter_of(ANY, ANY)), 0, PLAIN, cancel)
