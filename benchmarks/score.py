"""What scoring costs: a take's lyrics against a denoising step, DTW against a loop, a plan against forward passes.

    uv run benchmarks/score.py
    uv run benchmarks/score.py --device cuda --dtype bf16 --size 2b xl --planner 0.6b

Lyrics: one pass of the DiT, both alignments, metrics and timed lines, against one sampling step of the same take. The
mid-size model has its own table of heads, at the same relative depth as 2B's. DTW (dynamic time warping): the loop
computes the same cell by cell for some of the tokens, and its time is scaled to all. Plan: caption, lyrics and five
fields, against one forward pass per answer with logits over the whole vocabulary, as in the official code, and
against those forward passes without logits.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import DTYPES, arguments, best_of, compare, hardware, load_pack, markdown_table, peak_memory
from dit import SIZES
from torch import Tensor, nn

load_pack()

from acestep_pack.acestep_core.constants import CODE_RATE, FRAME_RATE  # noqa: E402
from acestep_pack.acestep_core.models.acestep import AceStep, AceStepConfig  # noqa: E402
from acestep_pack.acestep_core.models.conditioner import Tokens  # noqa: E402
from acestep_pack.acestep_core.models.layers import AttentionShape, Build  # noqa: E402
from acestep_pack.acestep_core.models.qwen3 import Qwen3, Qwen3Config  # noqa: E402
from acestep_pack.acestep_core.planner.likelihood import likelihoods  # noqa: E402
from acestep_pack.acestep_core.scoring.alignment import dtw_path  # noqa: E402
from acestep_pack.acestep_core.scoring.attention import LyricHeads, lyric_attention, lyric_heads, noise_level  # noqa: E402
from acestep_pack.acestep_core.scoring.lyric_score import score_lyrics  # noqa: E402
from acestep_pack.acestep_core.scoring.lyrics import Lyrics  # noqa: E402

MB = 1 << 20
N_LYRIC, N_OTHER = 250, 50  # condition tokens: of the lyrics, and of timbre and caption
N_TOKENS = 217_204
LONGEST_S, MOST_TOKENS = 600, 2_048
LINE = (*[" la"] * 7, "\n")
# Tokens of the answers a plan is scored by: all of them with the codes, the first two without codes as well.
PLAN = {"caption": 60, "lyrics": N_LYRIC, "bpm": 12, "duration": 12, "keyscale": 12, "language": 12, "time": 12}
N_ALONE = 2
N_QUESTION = 40  # tokens of the prompt around the codes
# Seven heads in three of eight layers; 2B has seven in 24 layers, the last of them the seventh.
MID_HEADS = LyricHeads(((0, 1), (1, 0), (1, 2), (1, 3), (2, 0), (2, 1), (2, 3)))
PLANNERS = {
    "mid": Qwen3Config(AttentionShape(512, 1536, 4, 2, 128, window=None), 8, N_TOKENS),
    "0.6b": Qwen3Config(AttentionShape(1024, 3072, 16, 8, 128, window=None), 28, N_TOKENS),
}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--size", choices=SIZES, nargs="+", default=["mid"])
    parser.add_argument("--planner", choices=PLANNERS, default="mid")
    parser.add_argument("--seconds", type=int, nargs="+", default=[240], help="length of the takes")
    parser.add_argument("--plan-seconds", type=int, default=120, help="length of the plan")
    parser.add_argument("--loop-tokens", type=int, default=32, help="how many tokens the loop aligns")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    dtype = DTYPES[options.dtype]
    print(f"{hardware(options.device)}; {options.dtype}; best of {options.rounds}, in turns")
    for size in options.size:
        print(f"\n### {size}: lyrics of a take\n\n{takes(size, options, dtype)}")
    print(f"\n### dynamic time warping, {LONGEST_S} s and {MOST_TOKENS} tokens\n\n{alignments(options)}")
    print(f"\n### {options.planner}: a plan of {options.plan_seconds} s, once\n\n{plans(options, dtype)}")


def takes(size: str, options: argparse.Namespace, dtype: torch.dtype) -> str:
    """Return the table of what scoring a take costs against one sampling step of it."""
    config = SIZES[size]
    heads = MID_HEADS if size == "mid" else lyric_heads(config)
    model = AceStep(config, Build(dtype=dtype, device=options.device)).eval()
    randomize(model)
    lyrics = Lyrics(tuple(LINE[index % len(LINE)] for index in range(N_LYRIC)))
    rows = []
    for duration_s in options.seconds:
        tokens, context, latents = inputs(config, duration_s, dtype, options.device)
        cross = model.decoder.cross_kv(tokens.states)
        modulation = model.decoder.modulation(torch.tensor([0.5], device=options.device), dtype)

        def attend(t=tokens, c=context, x=latents):
            return lyric_attention(model, t, c, x, range(N_LYRIC), noise_level(8), heads)

        attention = attend()[0]
        calls = {
            "step": lambda c=context, x=latents, m=modulation, kv=cross: model.decoder(x, c, m, kv),
            "attention": attend,
            "alignment": lambda a=attention, d=duration_s: score_lyrics(a, lyrics, d),
        }
        best = compare(calls, options.rounds)
        scoring = best["attention"] + best["alignment"]
        memory = peak_memory(lambda attend=attend, d=duration_s: score_lyrics(attend()[0], lyrics, d), options.device)
        ms = [f"{1000 * seconds:.0f}" for seconds in (*best.values(), scoring)]
        rows.append([f"{duration_s} s", *ms, f"{scoring / best['step']:.2f}", f"{memory / MB:.0f}"])
    return markdown_table(
        ["take", "step ms", "attention ms", "alignment ms", "scoring ms", "scoring ÷ step", "peak MB"], rows
    )


def alignments(options: argparse.Namespace) -> str:
    """Return the table of seconds of dtw_path and of the loop, scaled to the same number of cells."""
    n_frames = LONGEST_S * FRAME_RATE // 2
    gain = torch.rand(MOST_TOKENS, n_frames, generator=torch.Generator().manual_seed(0))
    few = gain[: options.loop_tokens]
    total = looped(few.numpy())
    path = dtw_path(few)
    if not np.isclose(float(few[path.tokens, path.frames].sum()), total, rtol=1e-4):
        raise AssertionError("the loop found another path")
    ours = best_of(lambda: dtw_path(gain), options.rounds)
    loop = best_of(lambda: looped(few.numpy()), 1) * MOST_TOKENS / options.loop_tokens
    memory = peak_memory(lambda: dtw_path(gain)) / MB
    return markdown_table(
        ["ours s", "loop s", "vs loop", "ours peak MB"], [[ours, loop, f"{loop / ours:.0f}x", memory]]
    )


def looped(gain: np.ndarray) -> float:
    """Return the sum along the best path, by a loop over frames and tokens."""
    n_tokens, n_frames = gain.shape
    sums = np.full((n_tokens + 1, n_frames + 1), np.inf, np.float32)
    moves = np.zeros((n_tokens + 1, n_frames + 1), np.uint8)
    sums[0, 0] = 0
    for f in range(1, n_frames + 1):
        for i in range(1, n_tokens + 1):
            left, diagonal, up = sums[i, f - 1], sums[i - 1, f - 1], sums[i - 1, f]
            best, move = (left, 0) if left <= diagonal else (diagonal, 1)
            if up < best:
                best, move = up, 2
            sums[i, f] = best - gain[i - 1, f - 1]
            moves[i, f] = move
    return -float(sums[-1, -1])


def plans(options: argparse.Namespace, dtype: torch.dtype) -> str:
    """Return the table of seconds: ours, one forward pass per answer with all logits, and those without logits."""
    model = Qwen3(PLANNERS[options.planner], Build(dtype=dtype, device=options.device)).eval()
    randomize(model)
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        return torch.randint(N_TOKENS, (n,), generator=generator).tolist()

    answers = [draw(n) for n in PLAN.values()]
    with_codes, alone = draw(N_QUESTION + options.plan_seconds * CODE_RATE), draw(N_QUESTION)
    asked = [(with_codes, answer) for answer in answers] + [(alone, answer) for answer in answers[:N_ALONE]]

    def ours() -> list[float]:
        answered = (
            *likelihoods(model, with_codes, answers, dtype, options.device),
            *likelihoods(model, alone, answers[:N_ALONE], dtype, options.device),
        )
        return [one.log_prob for one in answered]

    def forwards() -> list[Tensor]:
        return [model(torch.tensor([q + a], device=options.device), dtype) for q, a in asked]

    def official() -> list[float]:
        return [one_by_one(model, question, answer, dtype, options.device) for question, answer in asked]

    if options.dtype == "fp32" and not np.allclose(ours(), official(), rtol=1e-4):
        raise AssertionError("log-probabilities differ")
    best = compare({"ours": ours, "official": official, "forwards": forwards}, 1, warm_up=False)
    ratios = [f"1/{best[name] / best['ours']:.1f}" for name in ("official", "forwards")]
    header = ["ours s", f"{len(asked)} official s", "forwards alone s", "of official", "of forwards alone"]
    return markdown_table(header, [[*best.values(), *ratios]])


def one_by_one(model: Qwen3, question: list[int], answer: list[int], dtype: torch.dtype, device: str) -> float:
    """Return an answer's mean log-probability from one forward, with logits of the vocabulary at every token."""
    hidden = model(torch.tensor([question + answer], device=device), dtype)[0]
    every = torch.arange(model.config.n_tokens, device=device)
    logits = hidden @ model.head_rows(every, dtype).mT
    logs = logits[len(question) - 1 : -1].float().log_softmax(-1)
    return float(logs.gather(1, torch.tensor(answer, device=device)[:, None]).mean())


def inputs(config: AceStepConfig, duration_s: int, dtype: torch.dtype, device: str) -> tuple[Tokens, Tensor, Tensor]:
    """Return condition tokens, context and a take of a length, random."""
    generator = torch.Generator().manual_seed(duration_s)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    n_tokens, n_frames = N_LYRIC + N_OTHER, duration_s * FRAME_RATE
    states = draw(1, n_tokens, config.encoder.width)
    attention_mask = torch.ones(1, n_tokens, dtype=torch.bool, device=device)
    return Tokens(states, attention_mask), draw(1, n_frames, 128), draw(1, n_frames, 64)


def randomize(model: nn.Module) -> None:
    """Fill the parameters with numbers that keep activations in a normal range."""
    for name, parameter in model.named_parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        nn.init.normal_(parameter, mean=float("norm" in name), std=0.1 if "norm" in name else fan_in**-0.5)


if __name__ == "__main__":
    main()
