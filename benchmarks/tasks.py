"""Tasks from waveform to waveform against diffusers' pipeline, and an endless song, a minute at a time.

    uv run benchmarks/tasks.py                                   # mid-size, 2 CPU threads, a narrow VAE
    uv run benchmarks/tasks.py --device cuda --dtype bf16 --size 2b --width 128 --rounds 3

Both share weights, noise and texts, and are checked to make the same sound where their rules agree. diffusers
repaints a region and extracts a track a call, and encodes its source in each. Eight steps, no guidance: the more
of either, the less encoding counts. A stage of the endless song should cost the same however long the song is.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import DTYPES, PACK_ROOT, arguments, hardware, load_pack, markdown_table, peak_memory
from diffusers import (
    AceStepPipeline,
    AceStepTransformer1DModel,
    AutoencoderOobleck,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.ace_step.modeling_ace_step import AceStepConditionEncoder
from diffusers.utils import logging
from dit import LEVELS, SIZES, _diffusers_names, _load, randomize
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import Qwen2TokenizerFast, Qwen3Model
from transformers import Qwen3Config as TheirQwen3Config

load_pack()
sys.path.append(str(PACK_ROOT / "scripts"))

import comfyui  # noqa: E402
import recordings  # noqa: E402
from acestep_pack.acestep_core.audio.level import normalize_peak  # noqa: E402
from acestep_pack.acestep_core.checkpoints.vae_keys import fold_weight_norm  # noqa: E402
from acestep_pack.acestep_core.constants import FRAME_RATE, LATENT_CHANNELS, REFERENCE_FRAMES, SAMPLE_RATE  # noqa: E402
from acestep_pack.acestep_core.models.acestep import AceStep, AceStepConfig  # noqa: E402
from acestep_pack.acestep_core.models.conditioner import Tokens  # noqa: E402
from acestep_pack.acestep_core.models.layers import AttentionShape, Build, alternating  # noqa: E402
from acestep_pack.acestep_core.models.qwen3 import Qwen3, Qwen3Config  # noqa: E402
from acestep_pack.acestep_core.models.vae import Vae, VaeConfig  # noqa: E402
from acestep_pack.acestep_core.pipeline.encode import encode  # noqa: E402
from acestep_pack.acestep_core.pipeline.generate import Job, generate  # noqa: E402
from acestep_pack.acestep_core.pipeline.preserve import (  # noqa: E402
    BALANCED,
    Keep,
    Preserve,
)
from acestep_pack.acestep_core.pipeline.region import region  # noqa: E402
from acestep_pack.acestep_core.pipeline.splice import can_splice, splice  # noqa: E402
from acestep_pack.acestep_core.pipeline.tasks import Source, Task, extend, extract, repaint  # noqa: E402
from acestep_pack.acestep_core.song.tokens import Ids, load_tokenizer  # noqa: E402
from acestep_pack.acestep_core.types import SongSpec  # noqa: E402

MB = 1 << 20
SAME = 1e-3  # of the loudest sample, in float32; another track or region is 40 times as far off
CHECK_S = 12.0
N_STEPS, SHIFT = 8, 3.0  # those of LEVELS
PEAK_DBFS = -1.0  # what diffusers brings all it makes to
TRACKS = ("vocals", "drums", "bass", "guitar")
STAGE_S, CONTEXT_S = 60, 30
SONG = SongSpec(
    caption="slow waltz for music box, rain on the window",
    lyrics="[Verse]\n" + 30 * "la la la la la la la\n",
    language="en",
    bpm=84,
    key="F# minor",
    time_signature="3",
)
N_TOKENS = 151_669
TEXT_ENCODER = Qwen3Config(AttentionShape(64, 192, 4, 2, 16, window=None), n_layers=2, n_tokens=N_TOKENS)
TINY = AceStepConfig(
    decoder=AttentionShape(64, 192, 4, 2, 16),
    encoder=AttentionShape(64, 192, 4, 2, 16),
    windowed_layers=alternating(8),
    text_width=TEXT_ENCODER.shape.width,
)

Span = tuple[float, float]  # seconds


@dataclass(frozen=True, eq=False)
class Reader:
    """A text encoder, as the nodes' one reads."""

    tokenizer: Tokenizer
    model: Qwen3
    dtype: torch.dtype
    device: str

    def states(self, text: Ids) -> Tokens:
        return Tokens(self.model(text.ids.to(self.device), self.dtype), text.attention_mask.to(self.device))

    def embeddings(self, text: Ids) -> Tokens:
        return Tokens(self.model.embed(text.ids.to(self.device), self.dtype), text.attention_mask.to(self.device))


@dataclass(frozen=True, eq=False)
class Ours:
    """The tasks as the nodes do them. Audio and latents lie on the CPU, as in a graph."""

    model: AceStep
    vae: Vae
    reader: Reader
    silence: Tensor

    def encode(self, audio: Tensor) -> Tensor:
        """Return latents [1, T, 64] of audio [1, 2, S]."""
        return self.vae.encode_tiled(audio, device=self.silence.device, dtype=self.silence.dtype).mT.float().cpu()

    def decode(self, latents: Tensor) -> Tensor:
        """Return audio [B, 2, S] of latents [B, T, 64]."""
        return self.vae.decode_tiled(latents.mT.to(self.silence), out_device="cpu").float()

    def generate(self, task: Task) -> Tensor:
        """Return the canvases [N, n_frames, 64] of a task's rows."""
        rows, n_frames = torch.arange(task.n_rows), task.window_frames
        job = Job(tuple(rows.tolist()), noise_for(n_frames, task.n_rows), LEVELS, preserve=self._preserve(task))
        latents = generate(self.model, encode(self.reader, SONG, task=task), self.silence, job)
        return task.assemble(latents.cpu(), rows)

    def _preserve(self, task: Task) -> Preserve | None:
        mask = task.mask_in_window(task.window_frames)
        if mask is None or task.keep is None:
            return None
        source = task.source_in_window(task.window_frames, self.silence.cpu()).float()
        return Preserve(source, mask, task.keep)

    def sound(self, task: Task, canvases: Tensor) -> Tensor:
        """Return the audio [N, 2, S] of a task's canvases: spliced into the recordings, or all of it decoded."""
        if can_splice(task):
            return torch.stack([splice(each, task, row, self.decode) for row, each in enumerate(canvases)])
        return normalize_peak(self.decode(canvases), PEAK_DBFS)

    def do(self, task: Task) -> Tensor:
        return self.sound(task, self.generate(task))

    def repaint(self, audio: Tensor, spans: Sequence[Span], keep: Keep | None = BALANCED) -> Tensor:
        """Return audio with all spans made anew in one generation."""
        source = Source(self.encode(audio), waveform=audio)
        mask = torch.cat([region(source.n_frames, *span) for span in spans]).amax(0, keepdim=True)
        return self.do(repaint(source, mask, keep))

    def repaint_in_turn(self, audio: Tensor, spans: Sequence[Span]) -> Tensor:
        for span in spans:
            audio = self.repaint(audio, [span])
        return audio

    def extract(self, audio: Tensor, tracks: Sequence[str]) -> Tensor:
        """Return tracks [N, 2, S] of audio [1, 2, S], each a row of one batch."""
        return self.do(extract(Source(self.encode(audio), waveform=audio), tuple(tracks)))


@dataclass(frozen=True, eq=False)
class Diffusers:
    """The same tasks by diffusers' pipeline as it is."""

    pipeline: AceStepPipeline

    def call(self, audio: Tensor, noise: Tensor, **settings: object) -> Tensor:
        made: Tensor = self.pipeline(
            prompt=[SONG.caption],
            lyrics=[SONG.lyrics],
            vocal_language=SONG.language,
            bpm=SONG.bpm,
            keyscale=SONG.key,
            timesignature=SONG.time_signature,
            src_audio=audio,
            audio_duration=audio.shape[-1] / SAMPLE_RATE,
            latents=noise,
            num_inference_steps=N_STEPS,
            shift=SHIFT,
            guidance_scale=1.0,
            **settings,
        ).audios
        return made.cpu()

    def repaint_in_turn(self, audio: Tensor, spans: Sequence[Span]) -> Tensor:
        noise = noise_for(audio.shape[-1] * FRAME_RATE // SAMPLE_RATE, 1)
        for start_s, end_s in spans:
            audio = self.call(audio, noise, task_type="repaint", repainting_start=start_s, repainting_end=end_s)
        return audio

    def extract(self, audio: Tensor, tracks: Sequence[str]) -> Tensor:
        noise = noise_for(audio.shape[-1] * FRAME_RATE // SAMPLE_RATE, len(tracks)).split(1)
        pairs = zip(tracks, noise, strict=True)
        return torch.cat([self.call(audio, each, task_type="extract", track_name=track) for track, each in pairs])


@dataclass(frozen=True, eq=False)
class Cost:
    """What a run took, and what it made. On a CPU the peak is of what lies beside that."""

    seconds: float
    peak_bytes: int
    made: Tensor


def main() -> None:
    parser = arguments(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--size", choices=("mid", "2b"), default="mid")
    parser.add_argument("--width", type=int, default=8, help="of the VAE; 128 is the released size")
    parser.add_argument("--seconds", type=int, default=60, help="length of the song; 0 leaves out both tasks")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=int, nargs="*", default=[2, 5, 10, 20], help="stages of the endless song")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    logging.set_verbosity_error()
    print(f"{hardware(options.device)}; {options.dtype}, VAE width {options.width}; best of {options.rounds}, in turns")
    ours, theirs = build(SIZES[options.size], options.width, DTYPES[options.dtype], options.device)
    if options.seconds:
        check_same(ours, theirs, options.dtype)
        for title, contenders in tasks(ours, theirs, song(options.seconds)).items():
            costs = in_turns(contenders, options.rounds, options.device)
            print(f"\n### {options.size}: {title}, {options.seconds} s\n\n{table(costs)}")
    if options.minutes:
        tiny = replace(ours, model=random_model(TINY, Build(dtype=DTYPES[options.dtype], device=options.device)))
        stages = endless(tiny, options.minutes, options.device)
        print(f"\n### tiny: {STAGE_S} s more, hearing {CONTEXT_S} s\n\n{stages}")


def tasks(ours: Ours, theirs: Diffusers, audio: Tensor) -> dict[str, dict[str, Callable[[], Tensor]]]:
    """Return the contenders of each table; first one piece of the work by us, then all of it."""
    spans = three_spans(audio.shape[-1] / SAMPLE_RATE)
    return {
        "repaint of three regions": {
            "ours, one region": lambda: ours.repaint(audio, spans[1:2]),
            "ours, all at once": lambda: ours.repaint(audio, spans),
            "ours, one after another": lambda: ours.repaint_in_turn(audio, spans),
            "diffusers, one after another": lambda: theirs.repaint_in_turn(audio, spans),
        },
        f"extract of {len(TRACKS)} tracks": {
            "ours, one track": lambda: ours.extract(audio, TRACKS[:1]),
            "ours, all in a batch": lambda: ours.extract(audio, TRACKS),
            "diffusers, one after another": lambda: theirs.extract(audio, TRACKS),
        },
    }


def table(costs: Mapping[str, Cost]) -> str:
    """Return the table of seconds, how many times those of our one piece and of our whole they are, and memory."""
    one, whole, *_ = (cost.seconds for cost in costs.values())
    rows = [
        (name, f"{cost.seconds:.2f}", f"{cost.seconds / one:.2f}x", f"{cost.seconds / whole:.2f}x", megabytes(cost))
        for name, cost in costs.items()
    ]
    return markdown_table(("", "seconds", "÷ first row", "÷ second row", "peak MB"), rows)


def endless(ours: Ours, minutes: Sequence[int], device: str) -> str:
    """Return the table of some stages: what goes on from latents, and what goes on from the whole recording.

    Latents are chained from stage to stage. A recording of that length is the first minute over and over.
    """
    first = song(STAGE_S)
    latents, rows = ours.encode(first), []
    ours.do(extend(Source(latents, waveform=first), 0, STAGE_S, CONTEXT_S))  # warms up
    for minute in range(2, max(minutes) + 1):
        chained = measure(lambda z=latents: ours.generate(extend(Source(z), 0, STAGE_S, CONTEXT_S)), device)
        latents = chained.made
        if minute in minutes:
            audio = first.repeat(1, 1, minute - 1)
            encoding = measure(lambda x=audio: ours.encode(x), device)
            task = extend(Source(encoding.made, waveform=audio), 0, STAGE_S, CONTEXT_S)
            rest = measure(lambda t=task: splice(ours.generate(t)[0], t, 0, ours.decode), device)
            cells = [(f"{cost.seconds:.2f}", megabytes(cost)) for cost in (chained, encoding, rest)]
            rows.append((f"{minute} min", *itertools.chain(*cells)))
    parts = ("from latents", "encoding the recording", "generating and splicing")
    return markdown_table(("song after it", *(f"{part}, {unit}" for part in parts for unit in ("s", "MB"))), rows)


def megabytes(cost: Cost) -> str:
    return f"{cost.peak_bytes / MB:.0f}"


def in_turns(contenders: Mapping[str, Callable[[], Tensor]], rounds: int, device: str) -> dict[str, Cost]:
    """Return the best round of each contender; they take turns."""
    costs: dict[str, Cost] = {}
    for _ in range(rounds):
        for name, run in contenders.items():
            cost = measure(run, device)
            costs[name] = min(cost, costs.get(name, cost), key=lambda each: each.seconds)
    return costs


def measure(run: Callable[[], Tensor], device: str) -> Cost:
    """Return the cost of a run, which gives back what it made on the CPU."""
    seen: list[tuple[float, Tensor]] = []

    def timed() -> None:
        start = time.perf_counter()
        made = run()
        seen.append((time.perf_counter() - start, made))

    peak = peak_memory(timed, device)
    ((seconds, made),) = seen
    return Cost(seconds, peak - made.nbytes if device == "cpu" else peak, made)


def check_same(ours: Ours, theirs: Diffusers, dtype: str) -> None:
    """Print by how much a short repaint and extract differ, and raise where they are not the same. Warms both up."""
    audio = song(CHECK_S)
    spans = three_spans(CHECK_S)[1:2]
    pairs = {
        "repaint that keeps nothing": (ours.repaint(audio, spans, None), theirs.repaint_in_turn(audio, spans)),
        "extract": (ours.extract(audio, TRACKS), theirs.extract(audio, TRACKS)),
    }
    for name, (mine, peer) in pairs.items():
        error = ((mine - peer).abs().max() / peer.abs().max()).item()
        print(f"Largest difference from diffusers: {name} {error:.1e} of the maximum.")
        if dtype == "fp32" and not error < SAME:
            raise AssertionError(f"{name} differs by {error:.1e} of the maximum")


def three_spans(duration_s: float) -> list[Span]:
    """Return the middle two fifths of each third of a song, on tenths of a second."""
    third = duration_s / 3
    return [(round(third * (i + 0.3), 1), round(third * (i + 0.7), 1)) for i in range(3)]


def song(duration_s: float) -> Tensor:
    """Return a synthesised recording [1, 2, S]."""
    return torch.from_numpy(recordings.song(duration_s, 0)).T[None].float().contiguous()


def noise_for(n_frames: int, n_rows: int) -> Tensor:
    return torch.randn(n_rows, n_frames, LATENT_CHANNELS, generator=torch.Generator().manual_seed(n_frames))


def build(config: AceStepConfig, width: int, dtype: torch.dtype, device: str) -> tuple[Ours, Diffusers]:
    """Return both sides around one set of random weights."""
    torch.manual_seed(0)
    where = Build(dtype=dtype, device=device)
    config = replace(config, text_width=TEXT_ENCODER.shape.width)
    model, text_model = random_model(config, where), Qwen3(TEXT_ENCODER, where).eval()
    randomize(text_model)
    vae, their_vae = (each.to(device, dtype).eval() for each in vaes(width))
    silence = torch.randn(1, REFERENCE_FRAMES, LATENT_CHANNELS).to(device, dtype)
    folder = comfyui.comfyui_path() / "comfy" / "text_encoders" / "qwen25_tokenizer"
    transformer, condition_encoder = _their_dit(config, model.state_dict())
    condition_encoder.silence_latent = silence
    pipeline = AceStepPipeline(
        vae=their_vae,
        text_encoder=_their_text_encoder(text_model.state_dict()).to(device, dtype).eval(),
        tokenizer=_their_tokenizer(folder),
        transformer=transformer.to(device, dtype).eval(),
        condition_encoder=condition_encoder.to(device, dtype).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
    )
    pipeline.set_progress_bar_config(disable=True)
    return Ours(model, vae, Reader(load_tokenizer(folder), text_model, dtype, device), silence), Diffusers(pipeline)


def random_model(config: AceStepConfig, where: Build) -> AceStep:
    model = AceStep(config, where).eval()
    randomize(model)
    return model


def vaes(width: int) -> tuple[Vae, nn.Module]:
    """Return both VAEs with the same random weights, and a posterior so narrow that diffusers' draws are its mean."""
    config = VaeConfig(width, width)
    theirs = AutoencoderOobleck(
        encoder_hidden_size=width,
        decoder_channels=width,
        decoder_input_channels=LATENT_CHANNELS,
        downsampling_ratios=list(config.strides),
        channel_multiples=list(config.multiples),
        sampling_rate=SAMPLE_RATE,
    )
    # Its encoder gives as many numbers as it is wide, whatever the decoder takes: only 128 fits.
    last = nn.Conv1d(width * config.multiples[-1], 2 * LATENT_CHANNELS, 3, padding=1)
    theirs.encoder.conv2 = nn.utils.weight_norm(last)
    for name, parameter in theirs.named_parameters():
        noise = torch.randn(parameter.shape)
        parameter.data = 0.5 + 0.1 * noise if name.endswith("weight_g") else 0.3 * noise
    last.weight_g.data[LATENT_CHANNELS:] = 0
    last.bias.data[LATENT_CHANNELS:] = -math.inf  # leaves the 1e-4 that both add
    ours = Vae(config)
    ours.load_state_dict(fold_weight_norm(theirs.state_dict()))
    return ours, theirs


def _their_dit(config: AceStepConfig, state: dict[str, Tensor]) -> tuple[nn.Module, nn.Module]:
    transformer = AceStepTransformer1DModel(
        **_sizes(config.decoder),
        num_hidden_layers=len(config.windowed_layers),
        encoder_hidden_size=config.encoder.width,
        is_turbo=True,
    )
    encoder = AceStepConditionEncoder(
        **_sizes(config.encoder),
        text_hidden_dim=config.text_width,
        num_lyric_encoder_hidden_layers=config.n_lyric_layers,
        num_timbre_encoder_hidden_layers=config.n_timbre_layers,
    )
    _load(transformer, _diffusers_names(state, "decoder."))
    _load(encoder, _diffusers_names(state, "encoder."))
    return transformer, encoder


def _their_text_encoder(state: dict[str, Tensor]) -> nn.Module:
    shape = TEXT_ENCODER.shape
    sizes = _sizes(shape) | {"num_hidden_layers": TEXT_ENCODER.n_layers, "vocab_size": N_TOKENS}
    model = Qwen3Model(TheirQwen3Config(**sizes, rope_theta=shape.rope_theta))
    _load(model, state)
    return model


def _their_tokenizer(folder: Path) -> Qwen2TokenizerFast:
    """Return the tokenizer, appending one end of text as Qwen3-Embedding's own file does."""
    tokenizer = Qwen2TokenizerFast.from_pretrained(folder, padding_side="right")
    end = (tokenizer.pad_token, tokenizer.pad_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    return tokenizer


def _sizes(shape: AttentionShape) -> dict[str, int]:
    return {
        "hidden_size": shape.width,
        "intermediate_size": shape.mlp_width,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "head_dim": shape.head_dim,
    }


if __name__ == "__main__":
    main()
