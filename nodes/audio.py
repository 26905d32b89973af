"""Audio input: recordings to latents, latents to codes and back, and reference recordings."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

from ..acestep_core.audio.recording import recording, whole_frames
from ..acestep_core.constants import FRAMES_PER_CODE, SAMPLE_RATE
from ..acestep_core.models.tokenizer import GROUPS_AT_ONCE
from ..acestep_core.pipeline.condition import hints_of
from ..acestep_core.pipeline.memory import MLP_COPIES, RESIDUAL_COPIES
from ..acestep_core.pipeline.reference import EXCERPT_SAMPLES, Reference, excerpt
from ..acestep_core.types import AudioCodes, Take
from .codes import CODES
from .host import memory
from .host.latents import latent, latent_samples, recorded_latent
from .host.model import require_ours
from .host.sockets import CATEGORY, CodesSocket, ReferenceSocket
from .host.vae import encode

AUDIO = f"{CATEGORY}/audio"


class AceStepEncodeAudio(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepEncodeAudio",
            display_name="ACE-Step Encode Audio",
            category=AUDIO,
            description="Turns a recording into latents, to be covered, repainted, extended or read as codes.",
            search_aliases=["vae encode audio", "audio to latent", "source audio"],
            inputs=[
                io.Vae.Input("vae", tooltip="From Load ACE-Step VAE, or core's own loader."),
                io.Audio.Input(
                    "audio",
                    tooltip="Any sample rate, mono or stereo. Each item of a batch becomes a latent of its own.",
                ),
            ],
            outputs=[
                io.Latent.Output(tooltip="25 frames a second, the last padded with zeros; also carries the recording.")
            ],
        )

    @classmethod
    def execute(cls, vae, audio):
        waveform = _recording(audio)
        samples = encode(vae, whole_frames(waveform))
        n_items, n_frames, _ = samples.shape
        text = f"{waveform.shape[-1] / SAMPLE_RATE:.2f} s, {n_frames} frames, from {audio['sample_rate']} Hz"
        text = text if n_items == 1 else f"{n_items} recordings of {text}"
        return io.NodeOutput(recorded_latent(samples, waveform), ui={"text": (text,)})


class AceStepTokenize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepTokenize",
            display_name="ACE-Step Tokenize",
            category=CODES,
            description="Reads the audio codes of a recording, five a second: what the planner writes for a song.",
            search_aliases=["latent to codes", "audio to codes", "fsq", "semantic codes"],
            inputs=[
                io.Model.Input("model", tooltip="From Load ACE-Step Model; its audio tokenizer is used."),
                io.Latent.Input("latent", tooltip="From ACE-Step Encode Audio or the sampler."),
            ],
            outputs=[CodesSocket.Output(display_name="codes", tooltip="One sequence for each item of the latent.")],
        )

    @classmethod
    def execute(cls, model, latent):
        ours, device = _ready(model)
        dtype = ours.get_dtype_inference()
        frames, silence = latent_samples(latent), ours.silence.to(device, dtype)
        codes = ours.diffusion_model.tokenize(frames.to(device, dtype), silence).tolist()
        return io.NodeOutput(AudioCodes(tuple(map(tuple, codes))))


class AceStepDetokenize(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepDetokenize",
            display_name="ACE-Step Detokenize",
            category=CODES,
            description="Turns audio codes into the coarse latents that the music model follows.",
            search_aliases=["codes to latent", "hints", "25hz hints"],
            inputs=[
                io.Model.Input("model", tooltip="From Load ACE-Step Model; its audio detokenizer is used."),
                CodesSocket.Input("codes", tooltip="Any audio codes; each sequence becomes an item of the latent."),
            ],
            outputs=[io.Latent.Output(tooltip="25 frames a second; shorter sequences are padded with silence.")],
        )

    @classmethod
    def execute(cls, model, codes):
        n_codes = max(map(len, codes.sequences), default=0)
        if not n_codes:
            raise ValueError('there are no audio codes; connect some, or turn on "think_codes" where they are planned')
        ours, device = _ready(model)
        silence = ours.silence.to(device, ours.get_dtype_inference())
        hints = hints_of(ours.diffusion_model, codes, silence, n_codes * FRAMES_PER_CODE)
        takes = tuple(Take(plan=plan) for plan in range(codes.n_plans))
        return io.NodeOutput(latent(memory.to_intermediate(hints), takes))


class AceStepReference(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepReference",
            display_name="ACE-Step Reference",
            category=AUDIO,
            description="Takes 30 s of each recording whose voice, instruments and mix a song should imitate.",
            search_aliases=["timbre", "reference audio", "style audio", "voice", "clone voice", "singer"],
            inputs=[
                io.Vae.Input("vae", tooltip="From Load ACE-Step VAE, or core's own loader."),
                io.Audio.Input(
                    "audio",
                    tooltip="The recording to imitate: any sample rate, mono or stereo. Each item of a batch is one.",
                ),
                ReferenceSocket.Input(
                    "reference",
                    optional=True,
                    tooltip="More recordings to imitate; all of them are used.",
                ),
            ],
            outputs=[ReferenceSocket.Output(display_name="reference", tooltip="For ACE-Step Encode Song.")],
        )

    @classmethod
    def execute(cls, vae, audio, reference=None):
        waveform = _recording(audio, "the reference")
        made = Reference(encode(vae, excerpt(waveform)).contiguous())
        made = made if reference is None else made.beside(reference)
        used = "repeated up to 30 s" if waveform.shape[-1] < EXCERPT_SAMPLES else "of which 30 s are heard"
        count = f"{made.n_recordings} recording{'s' if made.n_recordings > 1 else ''} to sound like"
        text = f"{count}; this one has {waveform.shape[-1] / SAMPLE_RATE:.2f} s, {used}"
        return io.NodeOutput(made, ui={"text": (text,)})


def _recording(audio, name: str = "this audio"):
    """Return the waveform [B, 2, S] at 48 kHz of core's AUDIO."""
    return recording(audio["waveform"], audio["sample_rate"], name)


def _ready(patcher):
    """Load our model behind a MODEL socket with room for GROUPS_AT_ONCE groups of frames; return it and its device."""
    model = require_ours(patcher)
    shape = model.diffusion_model.config.encoder
    per_token = RESIDUAL_COPIES * shape.width + MLP_COPIES * shape.mlp_width
    n_tokens = GROUPS_AT_ONCE * (FRAMES_PER_CODE + 1)  # the learned token among them
    itemsize = model.get_dtype_inference().itemsize
    return model, memory.load_for(patcher, n_tokens * per_token * itemsize)
