"""The planner's nodes: plan, idea, format, understand. Each is one call of the core."""

from __future__ import annotations

from time import perf_counter

from comfy_api.v0_0_2 import io

from ..acestep_core.constants import AUTO, LANGUAGES, MAX_TAKES
from ..acestep_core.planner.decode import LmSampling
from ..acestep_core.planner.plan import Thinking, plan, rewrite, understand
from ..acestep_core.planner.plan import idea as make
from ..acestep_core.planner.prompts import think_fields
from ..acestep_core.types import take_seeds
from .host import progress
from .host.sockets import CATEGORY, CodesSocket, PlannerSocket, SongSocket
from .host.spelled import check_spelling, known
from .host.widgets import number, unit
from .host.widgets import seed as seed_widget

PLAN = f"{CATEGORY}/plan"


def _planner_input():
    return PlannerSocket.Input("planner", tooltip="From Load ACE-Step Planner.")


def _seed_input():
    return seed_widget("Random seed. Each further plan uses the next number.")


def _sampling_inputs():
    return [
        number(
            "temperature",
            0.85,
            2.0,
            "Randomness of the tokens. 0 always takes the likeliest.",
            step=0.01,
            advanced=True,
        ),
        unit(
            "top_p",
            0.9,
            "Choose only among the likeliest tokens whose probabilities add up to this share. 0 and 1 are off.",
            advanced=True,
        ),
        io.Int.Input(
            "top_k",
            default=0,
            min=0,
            max=1000,
            tooltip="Choose only among this many of the likeliest tokens. 0 is off.",
            advanced=True,
        ),
    ]


class AceStepPlan(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepPlan",
            display_name="ACE-Step Plan",
            category=PLAN,
            description="Completes a song and sketches its music in audio codes, one sequence a plan.",
            search_aliases=["5hz lm", "thinking", "audio codes", "chain of thought"],
            inputs=[
                _planner_input(),
                SongSocket.Input(
                    "song",
                    tooltip="The song to plan. Fields you filled in stay; only the caption is rewritten when "
                    "think_caption is on.",
                ),
                _seed_input(),
                io.Int.Input(
                    "plans",
                    default=1,
                    min=1,
                    max=MAX_TAKES,
                    tooltip="How many plans to make, 1 to 8. They share tempo, key, length and caption; their codes "
                    "differ.",
                ),
                io.Boolean.Input(
                    "think_codes",
                    default=True,
                    tooltip="Sketch the music in audio codes, five a second. When off, the music model works without a "
                    "sketch.",
                ),
                io.Boolean.Input(
                    "think_metadata",
                    default=True,
                    tooltip="Choose tempo, key, time signature and length where they are on auto.",
                ),
                io.Boolean.Input("think_caption", default=True, tooltip="Rewrite the caption in more detail."),
                io.Boolean.Input(
                    "think_language", default=True, tooltip="Detect the language of the lyrics where it is on auto."
                ),
                *_sampling_inputs(),
                number(
                    "min_p",
                    0.0,
                    1.0,
                    "Leave out tokens whose probability is below this share of the likeliest one's. 0 is off.",
                    step=0.001,
                    advanced=True,
                ),
                io.Float.Input(
                    "repetition_penalty",
                    default=1.0,
                    min=0.5,
                    max=2.0,
                    step=0.01,
                    tooltip="Above 1 makes tokens that have already appeared less likely. 1 is off.",
                    advanced=True,
                ),
                number(
                    "cfg_scale",
                    2.0,
                    10.0,
                    "How strictly the codes follow the song. 1 or less is off, and faster.",
                    advanced=True,
                ),
                io.String.Input(
                    "negative",
                    default="",
                    tooltip="What the codes should not sound like. Needs cfg_scale above 1.",
                    advanced=True,
                ),
            ],
            outputs=[
                SongSocket.Output(display_name="song", tooltip="The completed song."),
                CodesSocket.Output(display_name="codes", tooltip="One sequence a plan; empty when codes are off."),
                io.String.Output(display_name="blueprint", tooltip="The planner's thoughts as text."),
            ],
        )

    @classmethod
    def execute(
        cls,
        planner,
        song,
        seed,
        plans,
        think_codes,
        think_metadata,
        think_caption,
        think_language,
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty,
        cfg_scale,
        negative,
    ):
        sampling = LmSampling(temperature, top_k, top_p, min_p, repetition_penalty, cfg_scale)
        thinking = Thinking(think_codes, think_metadata, think_caption, think_language)
        seeds = take_seeds(seed, plans)
        pace = Pace()
        made = plan(planner.core, song, thinking, seeds, sampling, negative, pace)
        n_codes = sum(map(len, made.codes.sequences))
        line = pace.line("codes", n_codes) if n_codes else pace.line("tokens")
        return io.NodeOutput(made.song, made.codes, made.blueprint, ui={"text": (_paragraphs(made.blueprint, line),)})


class AceStepIdea(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepIdea",
            display_name="ACE-Step Idea",
            category=PLAN,
            description="Makes a whole song, lyrics and all, from one sentence.",
            search_aliases=["simple mode", "write lyrics", "inspire"],
            inputs=[
                _planner_input(),
                io.String.Input(
                    "idea",
                    multiline=True,
                    placeholder="a lullaby for a lighthouse keeper",
                    tooltip="What the song is about or should sound like, in a sentence.",
                ),
                io.Boolean.Input("instrumental", default=False, tooltip="A song without words."),
                io.Combo.Input(
                    "language",
                    options=[AUTO, *LANGUAGES],
                    default=AUTO,
                    tooltip="Language of the lyrics. auto lets the planner choose.",
                ),
                _seed_input(),
                *_sampling_inputs(),
            ],
            outputs=[SongSocket.Output(display_name="song", tooltip="The finished song.")],
        )

    @classmethod
    def validate_inputs(cls, input_types, language=AUTO):
        return check_spelling(cls, input_types, language=language)

    @classmethod
    def execute(cls, planner, idea, instrumental, language, seed, temperature, top_p, top_k):
        sampling = _words(temperature, top_p, top_k)
        pace = Pace()
        return _shown(make(planner.core, idea, instrumental, known("language", language), seed, sampling, pace), pace)


class AceStepFormat(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepFormat",
            display_name="ACE-Step Format",
            category=PLAN,
            description="Rewrites caption and lyrics in the form that suits the model best. Fields you filled in stay.",
            search_aliases=["rewrite", "enhance prompt"],
            inputs=[
                _planner_input(),
                SongSocket.Input("song", tooltip="The song to rewrite."),
                _seed_input(),
                *_sampling_inputs(),
            ],
            outputs=[SongSocket.Output(display_name="song", tooltip="The rewritten song.")],
        )

    @classmethod
    def execute(cls, planner, song, seed, temperature, top_p, top_k):
        sampling = _words(temperature, top_p, top_k)
        pace = Pace()
        return _shown(rewrite(planner.core, song, seed, sampling, pace), pace)


class AceStepUnderstand(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="AceStepUnderstand",
            display_name="ACE-Step Understand",
            category=PLAN,
            description="Describes what audio codes sound like: caption, lyrics, tempo, key.",
            search_aliases=["caption audio", "transcribe"],
            inputs=[
                _planner_input(),
                CodesSocket.Input(
                    "codes",
                    tooltip="Audio codes, such as those of a recording, from ACE-Step Tokenize. If there are several "
                    "plans, the first is described.",
                ),
                _seed_input(),
                *_sampling_inputs(),
            ],
            outputs=[SongSocket.Output(display_name="song", tooltip="The song as the planner hears it.")],
        )

    @classmethod
    def execute(cls, planner, codes, seed, temperature, top_p, top_k):
        sampling = _words(temperature, top_p, top_k)
        first = codes.sequences[0] if codes.n_plans else ()
        pace = Pace()
        return _shown(understand(planner.core, first, seed, sampling, pace), pace)


class Pace:
    """Shows a planner's progress, and how fast it was.

    A plan has two parts, thoughts and codes, which both count from 0; the pace is that of the last part.
    """

    def __init__(self) -> None:
        self._show = progress.of_parts()
        self._start = self._last = perf_counter()
        self._n_done = 0

    def __call__(self, n_done: int, n_all: int) -> None:
        if n_done == 0:  # the weights are loaded now
            self._start = perf_counter()
        elif n_done <= self._n_done:
            self._start = self._last
        self._n_done, self._last = n_done, perf_counter()
        self._show(n_done, n_all)

    def line(self, unit: str, n_made: int | None = None) -> str:
        """Return "600 codes in 11.9 s, 50 per second"; empty if there were none. n_made: of all plans together."""
        n_made, seconds = self._n_done if n_made is None else n_made, perf_counter() - self._start
        return f"{n_made} {unit} in {seconds:.1f} s, {n_made / seconds:.0f} per second" if n_made else ""


def _words(temperature: float, top_p: float, top_k: int):
    """Return the sampling settings for text, which has no guidance."""
    return LmSampling(temperature, top_k, top_p, cfg_scale=1.0)


def _shown(song, pace: Pace) -> io.NodeOutput:
    """Return a song; the node shows its fields, its lyrics and the pace."""
    fields = "\n".join(f"{name}: {value}" for name, value in think_fields(song).items())
    return io.NodeOutput(song, ui={"text": (_paragraphs(fields, song.lyrics, pace.line("tokens")),)})


def _paragraphs(*parts: str) -> str:
    """Return the parts that are not empty, with a blank line between them."""
    return "\n\n".join(filter(None, parts))
