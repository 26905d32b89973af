"""The planner's codes phase against ComfyUI's own sampling loop and transformers' generate, on the same weights.

All with guidance, temperature 0.85 and top-p 0.9; before they are timed, all must choose the same codes greedily.
ComfyUI's loop makes one take at a time. Further tables: the cache's memory against its formula, time per code
against position, and on a GPU codes per second against what its memory bandwidth allows.

    uv run benchmarks/lm.py                                        # mid, batch 1 and 4, and the 0.6B without a target
    uv run benchmarks/lm.py --device cuda --dtype bf16 --size 0.6b 1.7b 4b
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from itertools import pairwise

os.environ.setdefault("TQDM_DISABLE", "1")  # ComfyUI's loop shows a bar

import torch
from common import (
    DTYPES,
    arguments,
    best_of,
    compare,
    hardware,
    load_comfyui,
    load_pack,
    markdown_table,
    peak_memory,
)
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList, Qwen3ForCausalLM
from transformers import Qwen3Config as TheirQwen3Config

load_pack()

from acestep_pack.acestep_core.constants import N_CODES  # noqa: E402
from acestep_pack.acestep_core.models.layers import AttentionShape, Build  # noqa: E402
from acestep_pack.acestep_core.models.qwen3 import KVCache, Qwen3, Qwen3Config  # noqa: E402
from acestep_pack.acestep_core.planner.decode import (  # noqa: E402
    END_OF_TURN_ID,
    FIRST_CODE_ID,
    LmSampling,
    cache_bytes,
    generate_codes,
)

MB = 1 << 20
N_TOKENS = 217_204
PAD_ID = 151_643
# As long as a plan's prompts are: a caption with a few verses, and the bare unconditional one.
COND, UNCOND = [*range(1_000, 1_300)], [*range(2_000, 2_033)]
N_LONG = 3_000  # codes of ten minutes
N_SAME = 8  # codes that all must agree on
SIZES = {
    "tiny": Qwen3Config(AttentionShape(64, 128, 2, 1, 128, window=None), 2, N_TOKENS),
    "mid": Qwen3Config(AttentionShape(512, 1536, 4, 2, 128, window=None), 8, N_TOKENS),
    "0.6b": Qwen3Config(AttentionShape(1024, 3072, 16, 8, 128, window=None), 28, N_TOKENS),
    "1.7b": Qwen3Config(AttentionShape(2048, 6144, 16, 8, 128, window=None), 28, N_TOKENS),
    "4b": Qwen3Config(AttentionShape(2560, 9728, 32, 8, 128, window=None), 36, N_TOKENS),
}
SAMPLED, GREEDY = LmSampling(temperature=0.85, top_p=0.9, cfg_scale=2.0), LmSampling(temperature=0.0, cfg_scale=2.0)

# Codes of each take: (how many takes, how many codes, whether exactly so many, sampling) -> takes.
Contender = Callable[[int, int, bool, LmSampling], list[list[int]]]


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["mid"])
    parser.add_argument("--open-size", choices=SIZES, default="0.6b", help="the size run without a target")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--codes", type=int, default=100)
    parser.add_argument("--open-codes", type=int, default=25)
    parser.add_argument("--long", type=int, default=N_LONG, help="codes of the table of positions, 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    load_comfyui(options.device)
    dtype = DTYPES[options.dtype]
    print(f"{hardware(options.device)}; {options.dtype}; best of {options.rounds}, in turns")
    if options.device.startswith("cuda"):
        print(f"\n### codes per second against the bandwidth limit\n\n{bandwidth(options, dtype)}")
        return
    for size in options.size:
        contenders = build(SIZES[size], dtype, options.device)
        print(
            f"\n### {size}: {options.codes} codes\n\n{speed(contenders, options.batch, options.codes, True, options)}"
        )
        if options.long:
            model = random_model(SIZES[size], dtype, options.device)
            print(f"\n### {size}: time per code by position\n\n{positions(model, options.long, dtype, options.device)}")
        print(f"\n### {size}: memory of the cache\n\n{memory(SIZES[size], options.batch, dtype, options.device)}")
    contenders = build(SIZES[options.open_size], dtype, options.device)
    table = speed(contenders, options.batch, options.open_codes, False, options)
    print(f"\n### {options.open_size} without a target, {options.open_codes} codes at most\n\n{table}")


def speed(contenders: dict[str, Contender], batches: list[int], n_codes: int, exact: bool, options) -> str:
    """Return the table of codes per second, all takes counted, and of our ratios."""
    same = {name: run(1, N_SAME, True, GREEDY)[0] for name, run in contenders.items()}
    if options.dtype == "fp32" and len({tuple(codes) for codes in same.values()}) > 1:
        raise AssertionError(f"greedy codes differ: {same}")
    rows = []
    for n_takes in batches:
        calls = {name: lambda run=run, n=n_takes: run(n, n_codes, exact, SAMPLED) for name, run in contenders.items()}
        n_made = {name: sum(map(len, call())) for name, call in calls.items()}  # a take without a target may end
        seconds = compare(calls, options.rounds, warm_up=False)
        rates = {name: n_made[name] / seconds[name] for name in calls}
        ratios = [f"{rates['ours'] / rate:.2f}x" for name, rate in rates.items() if name != "ours"]
        rows.append([n_takes, *(f"{rate:.1f}" for rate in rates.values()), *ratios])
    peers = [name for name in contenders if name != "ours"]
    return markdown_table(["takes", *(f"{n} codes/s" for n in contenders), *(f"vs {n}" for n in peers)], rows)


def positions(model: Qwen3, n_codes: int, dtype: torch.dtype, device: str) -> str:
    """Return the table of milliseconds per code, and bytes read per code, along one long take."""
    marks = {}
    generate_codes(
        model, COND, UNCOND, n_codes, (0,), SAMPLED, lambda done, _: marks.update({done: time.perf_counter()}),
        dtype=dtype, device=device,
    )  # fmt: skip
    edges = [max(5, n_codes * part // 10 // 5 * 5) for part in range(0, 11, 2)]
    rows = []
    for start, end in pairwise(edges):
        seconds = (marks[end] - marks[start]) / (end - start)
        read = live_bytes(model) + cache_bytes(model.config, 2, len(COND) + (start + end) // 2, dtype.itemsize)
        rows.append((f"{start}–{end}", 1000 * seconds, read / MB))
    _, first_ms, first_mb = rows[0]
    header = ["codes", "ms a code", "MB read a code", "time, of the first", "bytes, of the first"]
    return markdown_table(header, [[*row, f"{row[1] / first_ms:.2f}x", f"{row[2] / first_mb:.2f}x"] for row in rows])


def memory(config: Qwen3Config, batches: list[int], dtype: torch.dtype, device: str) -> str:
    """Return the table of what a cache of ten minutes takes, guided, and what its formula says."""
    rows = []
    for n_takes in batches:
        n_slots = len(COND) + N_LONG - 1

        def make(n_rows: int = 2 * n_takes, n_slots: int = n_slots) -> None:
            for layer in KVCache(config, (0,) * n_rows, n_slots, dtype, device).layers:
                for buffer in layer:
                    buffer.fill_(1)  # untouched memory is not counted

        measured, formula = peak_memory(make, device), cache_bytes(config, 2 * n_takes, n_slots, dtype.itemsize)
        rows.append([n_takes, f"{measured / MB:.1f}", f"{formula / MB:.1f}", f"{measured / formula:.3f}x"])
    return markdown_table(["takes", "measured MB", "formula MB", "measured / formula"], rows)


def bandwidth(options, dtype: torch.dtype) -> str:
    """Return the table of steps per second, eager and as a CUDA graph, and their part of the bandwidth limit.

    A step reads the live weights once, however many takes there are, and the filled cache of every row.
    """
    block = torch.empty(1 << 31, dtype=torch.uint8, device=options.device)
    bytes_a_second = 2 * block.numel() / best_of(block.clone)
    del block
    rows = []
    for size in options.size:
        model = random_model(SIZES[size], dtype, options.device)
        for n_takes in options.batch:
            cells = []
            cache = cache_bytes(SIZES[size], 2 * n_takes, len(COND) + options.codes // 2, dtype.itemsize)
            limit = bytes_a_second / (live_bytes(model) + cache)
            for capture in (False, True):
                run = ours(model, dtype, options.device, capture)
                # The difference of two lengths: without prompt, capture and the copy of the head.
                times = [best_of(lambda n=n, k=n_takes, run=run: run(k, n, True, SAMPLED), options.rounds)
                         for n in (options.codes // 2, options.codes)]  # fmt: skip
                rate = (options.codes - options.codes // 2) / (times[1] - times[0])
                cells += [f"{n_takes * rate:.0f}", f"{rate / limit:.0%}"]
            rows.append([size, n_takes, f"{n_takes * limit:.0f}", *cells])
    header = ["size", "takes", "limit codes/s", "eager codes/s", "of limit", "graph codes/s", "of limit"]
    return f"{bytes_a_second / 1e12:.2f} TB/s measured\n\n{markdown_table(header, rows)}"


def live_bytes(model: Qwen3) -> int:
    """Return the bytes of weights that a code needs: all layers, and the head's rows of codes."""
    layers = sum(weight.nbytes for layer in model.layers for weight in layer.parameters())
    table = model.embed_tokens.weight
    return layers + N_CODES * table.shape[1] * table.itemsize


def random_model(config: Qwen3Config, dtype: torch.dtype, device: str) -> Qwen3:
    """Return a model whose logits spread as wide as a trained one's: by about 4, so that top-p has work to do."""
    model = Qwen3(config, Build(dtype=dtype, device=device)).eval()
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            nn.init.normal_(weight, 1.0, 0.1)
        else:
            nn.init.normal_(weight, 0.0, (4.0 if name == "embed_tokens.weight" else 1.0) * weight.shape[1] ** -0.5)
    return model.requires_grad_(False)


def build(config: Qwen3Config, dtype: torch.dtype, device: str) -> dict[str, Contender]:
    """Return the three implementations around one set of random weights, in the same memory."""
    model = random_model(config, dtype, device)
    return {
        "ours": ours(model, dtype, device),
        "ComfyUI": comfyui_loop(model, dtype, device),
        "transformers": transformers_generate(model, dtype, device),
    }


def ours(model: Qwen3, dtype: torch.dtype, device: str, capture: bool = False) -> Contender:
    def run(n_takes: int, n_codes: int, exact: bool, sampling: LmSampling) -> list[list[int]]:
        target = n_codes if exact else None
        takes = generate_codes(
            model, COND, UNCOND, target, range(n_takes), sampling,
            capture=capture, dtype=dtype, device=device, max_codes=n_codes,
        )  # fmt: skip
        return [list(take) for take in takes]

    return run


def comfyui_loop(ours: Qwen3, dtype: torch.dtype, device: str) -> Contender:
    ace15 = importlib.import_module("comfy.text_encoders.ace15")
    shape = ours.config.shape
    sizes = {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_hidden_layers": ours.config.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
    }
    options = {"model_name": "lm", "lm_model_config": sizes}
    model = ace15.Qwen3_2B_ACE15(device=device, dtype=dtype, model_options=options)
    model.transformer.model.load_state_dict(ours.state_dict(), assign=True)
    model.set_clip_options({"execution_device": torch.device(device)})
    prompts = [[[(token, 1.0) for token in prompt]] for prompt in (COND, UNCOND)]

    def run(n_takes: int, n_codes: int, exact: bool, sampling: LmSampling) -> list[list[int]]:
        settings = {"temperature": sampling.temperature, "top_p": sampling.top_p, "cfg_scale": sampling.cfg_scale}
        lengths = {"min_tokens": n_codes if exact else 0, "max_tokens": n_codes}
        return [ace15.generate_audio_codes(model, *prompts, **lengths, seed=s, **settings) for s in range(n_takes)]

    return run


def transformers_generate(ours: Qwen3, dtype: torch.dtype, device: str) -> Contender:
    shape = ours.config.shape
    config = TheirQwen3Config(
        hidden_size=shape.width,
        intermediate_size=shape.mlp_width,
        num_hidden_layers=ours.config.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        vocab_size=ours.config.n_tokens,
        rope_theta=shape.rope_theta,
        tie_word_embeddings=True,
        eos_token_id=END_OF_TURN_ID,
        pad_token_id=PAD_ID,
    )
    model = Qwen3ForCausalLM(config).eval().requires_grad_(False)
    model.model.load_state_dict(ours.state_dict(), assign=True)
    model.tie_weights()
    model.to(device, dtype)

    def run(n_takes: int, n_codes: int, exact: bool, sampling: LmSampling) -> list[list[int]]:
        cond, uncond = (torch.tensor([prompt] * n_takes, device=device) for prompt in (COND, UNCOND))
        drawn = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        found = model.generate(
            cond,
            attention_mask=torch.ones_like(cond),
            negative_prompt_ids=uncond,
            guidance_scale=sampling.cfg_scale,
            max_new_tokens=n_codes,
            logits_processor=LogitsProcessorList([OnlyCodes(may_end=not exact)]),
            **(drawn if sampling.temperature else {"do_sample": False}),
        )
        return [
            [token - FIRST_CODE_ID for token in take if token >= FIRST_CODE_ID]
            for take in found[:, len(COND) :].tolist()
        ]

    return run


class OnlyCodes(LogitsProcessor):
    """Lets through codes, and the end of the turn."""

    def __init__(self, may_end: bool) -> None:
        self.may_end = may_end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        end = scores[:, END_OF_TURN_ID].clone()
        scores[:, :FIRST_CODE_ID] = -torch.inf
        scores[:, FIRST_CODE_ID + N_CODES :] = -torch.inf
        if self.may_end:
            scores[:, END_OF_TURN_ID] = end
        return scores


if __name__ == "__main__":
    main()
