"""The pack as a library: load the models, then plan, make, edit, score and save songs. No ComfyUI anywhere.

    band = studio.load("ComfyUI/models", device="cuda", dtype=torch.bfloat16)
    plan = band.plan(SongSpec("a slow waltz for accordion", "[Verse]\\nThe lamps go out along the river"))
    takes = band.make(plan.song, plan.codes, seed=7, n_takes=2)
    take = band.repaint(takes.only(0), 12.0, 18.0, seed=8)
    band.save(band.score(take), "out")

The same seeds give the takes that the nodes give. One model at a time is on the device; the others wait on the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import bundle
from .audio.file import FORMATS
from .audio.file import encode as encode_audio
from .audio.level import peak_gain
from .audio.recording import recording, whole_frames
from .checkpoints.loaded import Models, Parts
from .constants import FRAME_RATE, LATENT_CHANNELS, SAMPLE_RATE
from .models.conditioner import Tokens
from .models.qwen3 import Qwen3
from .models.silence import fit
from .pipeline.condition import Encoding, condition
from .pipeline.encode import encode
from .pipeline.generate import generate
from .pipeline.options import Options
from .pipeline.preserve import BALANCED, Keep
from .pipeline.reference import Reference, excerpt
from .pipeline.region import region
from .pipeline.splice import can_splice, splice
from .pipeline.takes import Request, Takes, prepare
from .pipeline.tasks import TEXT2MUSIC, Source, Task, repaint
from .planner.decode import LmSampling
from .planner.plan import Plan, Planner, Thinking, plan
from .scoring.attention import lyric_attention, lyric_heads, lyric_rows, noise_level
from .scoring.lyric_score import score_lyrics
from .scoring.lyrics import Lyrics
from .scoring.score import Score
from .song.tokens import Ids
from .types import AudioCodes, SongSpec, Take, in_turn

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PEAK_DBFS = -1.0  # as the Decode node's default
OnProgress = Callable[[str, int, int], None]  # stage, parts done, parts in all


class Cancelled(Exception):
    """The caller's `cancel` said so; nothing is left half done on the device."""


@dataclass(frozen=True, eq=False)
class Rendition:
    """Takes of a song: what was asked for, latents, sound."""

    song: SongSpec
    encoding: Encoding
    takes: tuple[Take, ...]
    latents: Tensor  # [N, T, 64]
    decoded: Tensor  # [N, 2, S] at 48 kHz, at the level of the VAE, or of the recording that a task keeps
    gain: Tensor  # [N, 1, 1]; a later edit keeps it, so that what it does not touch stays the same
    summary: str = ""  # the settings, in a line
    scores: tuple[Score, ...] = ()  # one a take, once scored

    @property
    def audio(self) -> Tensor:
        """Return the sound of every take, [N, 2, S] at 48 kHz."""
        return self.decoded * self.gain

    def only(self, take: int) -> Rendition:
        """Return one of the takes."""
        part = slice(take, take + 1)
        return replace(
            self,
            takes=self.takes[part],
            latents=self.latents[part],
            decoded=self.decoded[part],
            gain=self.gain[part],
            scores=self.scores[part],
        )


def load(
    models: str | Path | Parts,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    *,
    variant: str = "auto",
    on_progress: OnProgress | None = None,
    cancel: Callable[[], bool] | None = None,
) -> Studio:
    """Return a studio over a ComfyUI models folder or chosen parts; each model is read when it is first needed.

    on_progress(stage, done, total) is called as work goes on; when cancel() is true, the call raises Cancelled.

    Raises FileNotFoundError where a model is missing.
    """
    parts = models if isinstance(models, Parts) else Parts.found_in(Path(models))
    return Studio(parts, torch.device(device), dtype, variant, on_progress, cancel)


class Studio:
    """Loaded models and what can be done with them."""

    def __init__(
        self,
        parts: Parts,
        device: torch.device,
        dtype: torch.dtype,
        variant: str = "auto",
        on_progress: OnProgress | None = None,
        cancel: Callable[[], bool] | None = None,
    ) -> None:
        self._models = Models(parts, device, dtype, variant)
        self.on_progress, self.cancel = on_progress, cancel

    def plan(
        self,
        song: SongSpec,
        *,
        thinking: Thinking | None = None,
        seeds: Sequence[int] = (0,),
        sampling: LmSampling | None = None,
    ) -> Plan:
        """Return a song completed by the planner, with audio codes of one plan for each seed.

        Raises FileNotFoundError without a planner, and as `planner.plan` does.
        """
        models = self._models
        with torch.inference_mode():
            planner = Planner(models.planner(), models.tokenizer("planner"), models.dtype, models.device)
            return plan(
                planner,
                song,
                thinking or Thinking(),
                seeds,
                sampling or LmSampling(),
                on_token=lambda done, total: self._step("plan", done, total),
            )

    def make(
        self,
        song: SongSpec,
        codes: AudioCodes | None = None,
        *,
        task: Task = TEXT2MUSIC,
        reference: Reference | None = None,
        seed: int = 0,
        n_takes: int = 1,
        steps: int = 0,
        shift: float = 0.0,
        guidance: float = 0.0,
        options: Options | None = None,
    ) -> Rendition:
        """Return takes of a song: n_takes of every plan of its codes or row of its task, seeds counting up.

        0 in steps, shift and guidance is the checkpoint's preset. Raises ValueError as `encode` and `prepare` do.
        """
        models = self._models
        request = Request(
            seed=seed,
            takes_per_plan=n_takes,
            n_steps=steps,
            shift=shift,
            guidance=guidance,
            options=options or Options(),
        )
        with torch.inference_mode():
            self._step("encode", 0, 1)
            encoding = encode(self._reader(), song, codes, task, None if reference is None else reference.latents)
            silence = models.silence()
            empty = torch.zeros(1, encoding.task.window_frames, LATENT_CHANNELS)
            takes = prepare(request, models.dit_file.variant, encoding.task, encoding.n_plans, empty, silence)
            latents = encoding.task.assemble(self._sampled(encoding, takes, silence), takes.rows)
            decoded = self._sound(latents, encoding.task, takes.rows)
        gain = torch.ones(len(decoded), 1, 1) if can_splice(encoding.task) else peak_gain(decoded, PEAK_DBFS)
        return Rendition(song, encoding, takes.takes, latents, decoded, gain, takes.summary)

    def source(self, audio: Tensor, sample_rate: int = SAMPLE_RATE) -> Source:
        """Return a recording [B, C, S] as a source for a task (see `pipeline.tasks`), with its samples.

        Raises ValueError for what is not music.
        """
        waveform = recording(audio, sample_rate)
        return Source(self._latents(whole_frames(waveform)), waveform=waveform)

    def reference(self, audio: Tensor, sample_rate: int = SAMPLE_RATE) -> Reference:
        """Return recordings [B, C, S] whose voice and sound a song should take."""
        return Reference(self._latents(excerpt(recording(audio, sample_rate))))

    def repaint(
        self, rendition: Rendition, start_s: float, end_s: float, *, keep: Keep | None = BALANCED, **settings: object
    ) -> Rendition:
        """Return takes with the region from start_s to end_s generated again, the rest kept sample for sample.

        settings: as `make` takes them. For other edits make a Task of `source(rendition.audio)` and call `make`.
        """
        source = Source(rendition.latents, waveform=rendition.decoded)
        task = repaint(source, region(source.n_frames, start_s, end_s), keep)
        made = self.make(rendition.song, task=task, **settings)  # type: ignore[arg-type]
        return replace(made, gain=in_turn(rendition.gain, torch.tensor([take.plan for take in made.takes])))

    def score(self, rendition: Rendition) -> Rendition:
        """Return the takes with how well each sings its lyrics, and when (`scores`).

        Raises ValueError for a model whose lyric heads are not known.
        """
        encoding = rendition.encoding
        if encoding.lyric_ids is None or (lyrics := Lyrics(encoding.lyric_ids.pieces)).is_wordless:
            return replace(rendition, scores=(Score(),) * len(rendition.takes))
        with torch.inference_mode():
            models, silence = self._models, self._models.silence()
            model = models.dit()
            heads = lyric_heads(model.config, models.dit_file.alignment_heads)
            start, stop = encoding.task.window if encoding.task.sources else (0, rendition.latents.shape[1])
            windows = fit(rendition.latents[:, start:stop], stop - start, silence).to(models.device, models.dtype)
            given = condition(model, encoding, silence.to(windows), windows.shape[1])
            scores = []
            for item, take in enumerate(rendition.takes):
                self._step("score", item, len(rendition.takes))
                row = torch.tensor([take.plan % encoding.n_plans], device=models.device)
                attention = lyric_attention(
                    model,
                    given.tokens.select(row),
                    given.context.index_select(0, row),
                    windows[item : item + 1],
                    lyric_rows(encoding.lyric_ids),
                    noise_level(take.n_steps),
                    heads,
                )
                score = score_lyrics(attention[0].float().cpu(), lyrics, windows.shape[1] / FRAME_RATE).score
                scores.append(score.later(start / FRAME_RATE))
            return replace(rendition, scores=tuple(scores))

    def save(self, rendition: Rendition, folder: str | Path, name: str = "song", format: str = "flac") -> list[Path]:
        """Write every take with its sidecars (JSON, codes, timed lyrics) and return the audio files.

        Numbers go on from those of the same name in the folder; nothing is written over.

        Raises ValueError for an unknown format, or a folder that cannot be written to.
        """
        if format not in FORMATS:
            raise ValueError(f'format "{format}" is unknown; choose one of {", ".join(FORMATS)}')
        kind, paths = FORMATS[format], []
        path = Path(folder, bundle.clean_prefix(name))
        for item, (take, audio) in enumerate(zip(rendition.takes, rendition.audio, strict=True)):
            file = path.name + kind.suffix
            sound = bundle.Sound(file, format, SAMPLE_RATE, audio.shape[0], audio.shape[1] / SAMPLE_RATE)
            origin = bundle.Origin(
                song=rendition.song,
                take=take,
                codes=bundle.codes_of(rendition.encoding.codes, item, take.plan),
                score=rendition.scores[item] if rendition.scores else None,
            )
            content = encode_audio(audio, SAMPLE_RATE, kind, {})
            saved = bundle.save_next(path.parent, path.name, sound, content, origin, take)
            paths.append(path.with_name(saved))
        return paths

    def _reader(self) -> _Reader:
        models = self._models
        network = models.text_encoder()
        return _Reader(network, models.tokenizer("text_encoder"), models.device, models.dtype)

    def _sampled(self, encoding: Encoding, takes: Takes, silence: Tensor) -> Tensor:
        """Return the latents [N, T, 64] of all takes, one after the other: each is the same as in a batch."""
        if encoding.task.keeps_all:
            return in_turn(encoding.task.source_in_window(takes.n_frames, silence), takes.rows)
        model = self._models.dit()
        silence = silence.to(self._models.device, self._models.dtype)
        n_steps, n_takes = len(takes.levels) - 1, len(takes.takes)

        def sampled(item: int) -> Tensor:
            def on_step(step: int, _data: Tensor) -> None:
                self._step("sample", item * n_steps + step + 1, n_takes * n_steps)

            return generate(model, encoding, silence, takes.job(slice(item, item + 1)), on_step=on_step).cpu()

        return torch.cat([sampled(item) for item in range(n_takes)])

    def _sound(self, latents: Tensor, task: Task, rows: Tensor) -> Tensor:
        models, vae = self._models, self._models.vae()

        def decode(part: Tensor) -> Tensor:
            given = part.mT.to(models.device, models.dtype)
            return vae.decode_tiled(given, on_tile=partial(self._step, "decode"), out_device="cpu").float()

        if can_splice(task):
            return torch.stack(
                [splice(take, task, row, decode) for take, row in zip(latents, rows.tolist(), strict=True)]
            )
        return decode(latents)

    def _latents(self, waveform: Tensor) -> Tensor:
        """Return latents [B, T, 64] of a waveform [B, 2, S] at 48 kHz."""
        models = self._models
        with torch.inference_mode():
            on_tile = partial(self._step, "encode audio")
            encoded = models.vae().encode_tiled(waveform, on_tile=on_tile, device=models.device, dtype=models.dtype)
            return encoded.mT.float().cpu()

    def _step(self, stage: str, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(stage, done, total)
        if self.cancel is not None and self.cancel():
            raise Cancelled(f"cancelled while at {stage}")


@dataclass(frozen=True, eq=False)
class _Reader:
    """The text encoder as `encode` wants it; states come back to the CPU."""

    model: Qwen3
    tokenizer: Tokenizer
    device: torch.device
    dtype: torch.dtype

    def states(self, text: Ids) -> Tokens:
        return Tokens(self.model(text.ids.to(self.device), self.dtype).float().cpu(), text.attention_mask)

    def embeddings(self, text: Ids) -> Tokens:
        return Tokens(self.model.embed(text.ids.to(self.device), self.dtype).float().cpu(), text.attention_mask)
