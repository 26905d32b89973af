"""The planner's decoder against transformers' Qwen3ForCausalLM: logits, and whole greedy sequences."""

from __future__ import annotations

import functools

import comfy.ops
import pytest
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, Qwen3ForCausalLM
from transformers import Qwen3Config as TheirQwen3Config

import golden_models
from acestep_pack.acestep_core.constants import N_CODES
from acestep_pack.acestep_core.models.layers import AttentionShape, Build
from acestep_pack.acestep_core.models.qwen3 import KVCache, Qwen3, Qwen3Config
from acestep_pack.acestep_core.planner.decode import (
    FIRST_CODE_ID,
    LmSampling,
    generate_codes,
    generate_text,
    head_columns,
    penalize,
)
from acestep_pack.acestep_core.planner.grammar import N_TEXT_TOKENS, Grammar, Rule, Text
from acestep_pack.nodes.host.memory import with_attention
from golden_models import assert_close
from parity.peers import ONE_PART

pytestmark = pytest.mark.parity

SHAPE = AttentionShape(width=48, mlp_width=96, n_heads=4, n_kv_heads=2, head_dim=16, window=None)
N_TOKENS = 217_204
TIED, UNTIED = (Qwen3Config(SHAPE, n_layers=3, n_tokens=N_TOKENS, own_head=own_head) for own_head in (False, True))
CODES = range(FIRST_CODE_ID, FIRST_CODE_ID + N_CODES)
# The reference prompts of a plan have about these lengths; the words do not matter here.
COND = [151_644, *range(300, 339), 151_667, 271, 151_668, 271]
UNCOND = [151_644, *range(700, 728), 151_667, 271, 151_668, 271]

parametrized = pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "own head"])


@functools.cache
def ours(config: Qwen3Config) -> Qwen3:
    model = Qwen3(config)
    model.load_state_dict(weights(config))
    return model.eval().requires_grad_(False)


@functools.cache
def theirs(config: Qwen3Config) -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM(
        TheirQwen3Config(
            hidden_size=SHAPE.width,
            intermediate_size=SHAPE.mlp_width,
            num_hidden_layers=config.n_layers,
            num_attention_heads=SHAPE.n_heads,
            num_key_value_heads=SHAPE.n_kv_heads,
            head_dim=SHAPE.head_dim,
            vocab_size=config.n_tokens,
            tie_word_embeddings=not config.own_head,
            rope_theta=SHAPE.rope_theta,
        )
    )
    body = {name if name.startswith("lm_head") else f"model.{name}": tensor for name, tensor in weights(config).items()}
    missing, unexpected = model.load_state_dict(body, strict=False)
    assert not unexpected
    assert missing == ([] if config.own_head else ["lm_head.weight"])
    model.generation_config.eos_token_id = None  # here a length ends a text, not a token
    return model.eval().requires_grad_(False)


@functools.cache
def weights(config: Qwen3Config) -> dict[str, Tensor]:
    expected = Qwen3(config, Build(device="meta")).state_dict()
    return {name: golden_models.weight(name, list(like.shape)) for name, like in expected.items()}


class Only(LogitsProcessor):
    """Lets through some tokens, as ComfyUI's mask does."""

    def __init__(self, live: range) -> None:
        self.live = slice(live.start, live.stop)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.live] = scores[:, self.live]
        return masked


def generated_by_them(config: Qwen3Config, prompt: list[int], live: range, n: int, **more) -> list[int]:
    ids = torch.tensor([prompt])
    found = theirs(config).generate(
        ids,
        do_sample=False,
        max_new_tokens=n,
        logits_processor=LogitsProcessorList([Only(live)]),
        pad_token_id=0,
        **more,
    )
    return found[0, len(prompt) :].tolist()


def logits_by_them(config: Qwen3Config, ids: list[int]) -> Tensor:
    return theirs(config)(torch.tensor([ids])).logits[0]


@parametrized
def test_logits_of_any_row_equal_transformers(config):
    hidden = ours(config)(torch.tensor([COND]), torch.float32)[0]
    theirs = logits_by_them(config, COND)
    for live in (CODES, range(N_TEXT_TOKENS), (198, 220, 3_680, 151_645, N_TOKENS - 1)):
        assert_close(hidden @ head_columns(ours(config), live, hidden), theirs[:, list(live)], ONE_PART)


@parametrized
@pytest.mark.parametrize("piece", [1, 5, len(COND)])
def test_cached_logits_equal_transformers_without_a_cache(config, piece):
    model = ours(config)
    cache, found = KVCache(config, (0,), len(COND), torch.float32, "cpu"), []
    for start in range(0, len(COND), piece):
        x = model.embed(torch.tensor([COND[start : start + piece]]), torch.float32)
        found.append(model.extend(x, cache.next(x.shape[1])))
    hidden = torch.cat(found, 1)[0]
    assert_close(
        hidden @ head_columns(model, CODES, hidden), logits_by_them(config, COND)[:, CODES.start : CODES.stop], ONE_PART
    )


@parametrized
def test_greedy_codes_equal_transformers_generate(config):
    expected = generated_by_them(config, COND, CODES, 60)
    (found,) = generate_codes(ours(config), COND, UNCOND, 60, (0,), LmSampling(temperature=0.0, cfg_scale=1.0))
    assert [FIRST_CODE_ID + code for code in found] == expected
    assert len(set(found)) > 10


@parametrized
def test_greedy_guided_codes_equal_guidance_by_hand(config):
    scale, cond, uncond = 2.0, [*COND], [*UNCOND]
    for _ in range(30):
        by_cond, by_uncond = (logits_by_them(config, ids)[-1, CODES.start : CODES.stop] for ids in (cond, uncond))
        token = FIRST_CODE_ID + int((by_uncond + scale * (by_cond - by_uncond)).argmax())
        cond.append(token)
        uncond.append(token)
    (found,) = generate_codes(ours(config), COND, UNCOND, 30, (0,), LmSampling(temperature=0.0, cfg_scale=scale))
    assert [FIRST_CODE_ID + code for code in found] == cond[len(COND) :]


def test_greedy_guided_codes_equal_transformers_own_guidance():
    more = {"guidance_scale": 2.0, "negative_prompt_ids": torch.tensor([UNCOND])}
    expected = generated_by_them(TIED, COND, CODES, 60, **more)
    (found,) = generate_codes(ours(TIED), COND, UNCOND, 60, (0,), LmSampling(temperature=0.0, cfg_scale=2.0))
    assert [FIRST_CODE_ID + code for code in found] == expected


def test_a_batch_of_greedy_takes_equals_transformers_generate():
    expected = generated_by_them(TIED, COND, CODES, 30)
    takes = generate_codes(ours(TIED), COND, UNCOND, 30, (1, 2, 3, 4), LmSampling(temperature=0.0, cfg_scale=1.0))
    assert [[FIRST_CODE_ID + code for code in take] for take in takes] == [expected] * 4


@parametrized
def test_greedy_text_equals_transformers_generate(config):
    def rule() -> Rule:
        for _ in range(40):
            yield Text(banned=())

    expected = generated_by_them(config, COND, range(N_TEXT_TOKENS), 40)
    assert list(generate_text(ours(config), COND, Grammar(rule()), 0, LmSampling(temperature=0.0))) == expected


@parametrized
def test_codes_on_comfyui_layers_that_cast_equal_codes_on_whole_weights(config):
    """As the nodes run it: weights rest in bf16, and are float32 only while they are used."""
    resting = {name: tensor.bfloat16() for name, tensor in weights(config).items()}
    casting = Qwen3(config, Build(with_attention(comfy.ops.manual_cast), torch.bfloat16))
    whole = Qwen3(config)
    for model in (casting, whole):
        model.load_state_dict(resting)
        model.eval().requires_grad_(False)
    assert casting.embed_tokens.weight.dtype == torch.bfloat16
    takes = [generate_codes(model, COND, UNCOND, 30, (1, 2), LmSampling()) for model in (casting, whole)]
    assert takes[0] == takes[1]


def test_repetition_penalty_equals_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(1, 100, generator=torch.Generator().manual_seed(0))
    written = torch.tensor([[3, 50, 3, 99]])
    seen = torch.zeros(1, 100, dtype=torch.bool).scatter_(1, written, True)
    assert torch.equal(penalize(logits, seen, 1.3), RepetitionPenaltyLogitsProcessor(1.3)(written, logits))
