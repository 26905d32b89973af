"""Rates, limits and vocabularies of ACE-Step 1.5. Numbers only; every other module derives from these.

Source: ace-step/ACE-Step-1.5, `acestep/constants.py` and the model configuration class, unless said otherwise.
"""

# Audio and its two latent clocks. The VAE turns 1920 samples into one frame; five frames make one code.
SAMPLE_RATE = 48_000
AUDIO_CHANNELS = 2
SAMPLES_PER_FRAME = 1_920
FRAME_RATE = SAMPLE_RATE // SAMPLES_PER_FRAME  # 25 Hz
FRAMES_PER_CODE = 5
CODE_RATE = FRAME_RATE // FRAMES_PER_CODE  # 5 Hz
LATENT_CHANNELS = 64

# Length of a generation, and of the parts that go with it.
MIN_DURATION_S = 10
MAX_DURATION_S = 600
DEFAULT_DURATION_S = 120  # the official pipeline's choice when nothing tells the length
MIN_FRAMES = 128
REFERENCE_FRAMES = 750  # 30 s of timbre reference
UNKNOWN_DURATION_S = 30  # what the prompt says when no length is known

# Finite scalar quantisation: six digits make one of 64,000 codes.
FSQ_LEVELS = (8, 8, 8, 5, 5, 5)
N_CODES = 64_000

AUTO = "auto"  # what widgets and files say to let the model or the planner decide
MAX_POSITION_S = 3_600.0  # an hour: recordings to edit may be longer than what is generated

# Song metadata.
MIN_BPM = 30
MAX_BPM = 300
TIME_SIGNATURES = ("2", "3", "4", "6")
NOTES = ("A", "B", "C", "D", "E", "F", "G")
ACCIDENTALS = ("", "#", "b", "♯", "♭")
MODES = ("major", "minor")
KEYS = tuple(f"{note}{accidental} {mode}" for note in NOTES for accidental in ACCIDENTALS for mode in MODES)
UNKNOWN_LANGUAGE = "unknown"
LANGUAGES = (
    *"ar az bg bn ca cs da de el en es fa fi fr he hi hr ht hu id is it ja ko la lt ms ne nl no pa pl pt ro".split(),
    *"ru sa sk sr sv sw ta te th tl tr uk ur vi yue zh".split(),
    UNKNOWN_LANGUAGE,
)
INSTRUMENTAL_LYRICS = "[Instrumental]"

# Tokens of the Qwen3 text encoder.
MAX_CAPTION_TOKENS = 256
MAX_LYRIC_TOKENS = 2_048
END_OF_TEXT_ID = 151_643

# Characters of a text: lyrics that fit MAX_LYRIC_TOKENS have some 12,000, an hour of codes written as text 400,000.
MAX_TEXT_LENGTH = 100_000
MAX_CODES_TEXT_LENGTH = 4_000_000

MAX_TAKES = 8
MAX_SEED = 2**53 - 1  # the largest integer a browser keeps exactly


def frame_at(seconds: float) -> int:
    """Return the latent frame that a moment lies in.

    Source: ace-step/ACE-Step-1.5, `acestep/handler.py`.
    """
    return int(seconds * SAMPLE_RATE // SAMPLES_PER_FRAME)


def frames_for(duration_s: float) -> int:
    """Return how many 25 Hz latent frames duration_s fills, at least MIN_FRAMES.

    The duration is rounded to 0.1 s and the frames down, as the official pipeline does; diffusers
    rounds up and ComfyUI to nearest, so lengths may differ from theirs by one frame. Like the official
    arithmetic this loses a frame where a tenth has no exact binary form: 10.2 s are 254 frames.
    Source: ace-step/ACE-Step-1.5, `acestep/handler.py`.
    """
    n_samples = int(max(0.1, round(duration_s, 1)) * SAMPLE_RATE)
    return max(MIN_FRAMES, n_samples // SAMPLES_PER_FRAME)
