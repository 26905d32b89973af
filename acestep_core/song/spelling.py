"""What people write for a key, a time signature or a language, as the model's own word for it.

Only what can mean one thing is taken: "f#m" is F# minor, but "c" is C major to some and C minor to others. SongSpec
knows the model's words alone, so whoever makes one from a user's text comes here first.
"""

from __future__ import annotations

import re
import unicodedata

from ..constants import LANGUAGES, TIME_SIGNATURES, UNKNOWN_LANGUAGE

MODES = {"major": "major", "maj": "major", "minor": "minor", "min": "minor", "m": "minor"}
ACCIDENTALS = {"sharp": "#", "flat": "b"}  # in words; signs stay as they are
# The model has no double accidentals. Where one ends on a white key, that is the only name of its pitch.
WHITE_KEYS = {"C##": "D", "D##": "E", "F##": "G", "G##": "A", "A##": "B"} | {
    "Dbb": "C", "Ebb": "D", "Gbb": "F", "Abb": "G", "Bbb": "A"
}  # fmt: skip
_KEY = re.compile(r"([a-g])[\s-]*(##?|♯♯?|bb?|♭♭?|sharp|flat)?(?:[\s-]*(major|maj|minor|min|m)\.?)?", re.IGNORECASE)

METERS = ("2/4", "3/4", "4/4", "6/8")  # the beats of TIME_SIGNATURES, written in full

# Source: ISO 639; Haitian Creole and Modern Greek under the names that people use.
LANGUAGE_NAMES = {
    "arabic": "ar", "azerbaijani": "az", "bulgarian": "bg", "bengali": "bn", "catalan": "ca", "czech": "cs",
    "danish": "da", "german": "de", "greek": "el", "english": "en", "spanish": "es", "persian": "fa", "finnish": "fi",
    "french": "fr", "hebrew": "he", "hindi": "hi", "croatian": "hr", "haitian creole": "ht", "hungarian": "hu",
    "indonesian": "id", "icelandic": "is", "italian": "it", "japanese": "ja", "korean": "ko", "latin": "la",
    "lithuanian": "lt", "malay": "ms", "nepali": "ne", "dutch": "nl", "norwegian": "no", "punjabi": "pa",
    "polish": "pl", "portuguese": "pt", "romanian": "ro", "russian": "ru", "sanskrit": "sa", "slovak": "sk",
    "serbian": "sr", "swedish": "sv", "swahili": "sw", "tamil": "ta", "telugu": "te", "thai": "th", "tagalog": "tl",
    "turkish": "tr", "ukrainian": "uk", "urdu": "ur", "vietnamese": "vi", "cantonese": "yue", "chinese": "zh",
    "mandarin": "zh",
}  # fmt: skip
# A language, and perhaps a script and a region: en, en-US, sr-Latn, es-419. Source: RFC 5646.
_LANGUAGE_TAG = re.compile(r"([a-z]{2,3})(?:[-_][a-z]{4})?(?:[-_]([a-z]{2}|[0-9]{3}))?")
CANTONESE_REGIONS = ("hk", "mo")  # where zh is written for what is sung as yue


def key_of(text: object) -> str:
    """Return the key, one of KEYS, that a text such as "f# min", "Bb" or "E flat major" names.

    Accidentals stay as written, # or ♯; a double one becomes the white key it ends on. A key without a mode is major.

    Raises ValueError for anything that is no key, and for one in lower case without a mode.
    """
    plain = _plain(text)
    match = _KEY.fullmatch(plain)
    if match is None or match[3] == "M":
        raise _unknown("key", text, 'write it like "C major", "F# minor", "Eb major" or "F#m"')
    if match[3] is None and match[1].islower():
        raise ValueError(f'key "{plain}" may be major or minor; write "{plain} major" or "{plain} minor"')
    note, accidental = match[1].upper(), (match[2] or "").lower()
    tonic = note + ACCIDENTALS.get(accidental, accidental)
    if len(tonic) > 2:
        tonic = tonic.replace("♯", "#").replace("♭", "b")
        if tonic not in WHITE_KEYS:
            raise _unknown("key", text, "write it with a single sharp or flat")
        tonic = WHITE_KEYS[tonic]
    return f"{tonic} {MODES[(match[3] or 'major').lower()]}"


def time_signature_of(text: object) -> str:
    """Return the time signature, one of TIME_SIGNATURES, that a number or a text such as "4" or "4/4" names.

    Raises ValueError for any other.
    """
    if isinstance(text, float) and text.is_integer():
        text = int(text)
    written = re.sub(r"\s*/\s*", "/", _plain(text))
    for beats, meter in zip(TIME_SIGNATURES, METERS, strict=True):
        if written in (beats, meter):
            return beats
    raise _unknown("time signature", text, f"use {', '.join(TIME_SIGNATURES)} or {', '.join(METERS)}")


def language_of(text: object) -> str:
    """Return the language, one of LANGUAGES, that a code, a code with a region or an English name tells.

    Raises ValueError for any other, and for Chinese of a region where songs are Cantonese.
    """
    plain = _plain(text).lower()
    match = _LANGUAGE_TAG.fullmatch(plain)
    if plain in LANGUAGES:
        return plain
    if plain in LANGUAGE_NAMES:
        return LANGUAGE_NAMES[plain]
    if match is not None and match[1] in LANGUAGES:
        if match[1] == "zh" and match[2] in CANTONESE_REGIONS:
            raise ValueError(f'language "{text}" may be Cantonese or Mandarin; write "yue" or "zh"')
        return match[1]
    codes = ", ".join(LANGUAGES[:-1])
    raise _unknown("language", text, f'use one of {codes} or "{UNKNOWN_LANGUAGE}", "en-US" or "English" for en too')


def _plain(text: object) -> str:
    """Return a text without the white space around it, and with one form of each character."""
    return unicodedata.normalize("NFKC", str(text)).strip()


def _unknown(name: str, text: object, advice: str) -> ValueError:
    return ValueError(f'{name} "{text}" is unknown; {advice}')
