"""From timed phonemes to a mouth that moves: five tracks, co-articulated, at any frame rate.

Each phoneme is a target for the mouth. Lips are ahead of the sound and blend neighbours, so the
targets are shifted and smoothed. The closure of p, b and m is kept separate and stays complete.
"""

from collections.abc import Sequence

import numpy as np

from latentsync.errors import OptionError
from latentsync.training.synthetic.speech import Phoneme
from latentsync.types import FloatArray, IntArray

__all__ = ["SOUNDS", "TRACKS", "mouth_tracks", "sound_track", "targets"]

TRACKS = ("open", "wide", "round", "bite", "tongue")
"""open 0..1; wide -1 (narrow) .. 1 (spread); round 0..1; bite: lower lip under the upper teeth,
0..1; tongue: its tip at the upper teeth, 0..1."""

_HZ = 200  # targets are laid out this finely
_SMOOTH_SECONDS = 0.035  # standard deviation of the blend between neighbours
_CLOSE_SECONDS = 0.012  # the same for closures, which are quicker
_LEAD_SECONDS = 0.030  # by which lips are ahead of the voice
_CLOSURE_LEAD_SECONDS = 0.010
_CLOSURE_MIN_SECONDS = 0.060  # long enough to be seen at 25 frames a second
_STRESSED, _UNSTRESSED = 1.08, 0.92

Target = tuple[float, float, float, float, float]
_REST: Target = (0.0, 0.0, 0.0, 0.0, 0.0)

# The first letter of an espeak-ng mnemonic is the vowel; a second vowel letter makes a diphthong.
_VOWELS: dict[str, tuple[float, float, float]] = {
    "a": (0.88, 0.15, 0.0),
    "A": (0.92, -0.05, 0.1),
    "V": (0.66, 0.05, 0.0),
    "0": (0.76, -0.2, 0.45),
    "O": (0.62, -0.3, 0.65),
    "o": (0.5, -0.35, 0.75),
    "u": (0.24, -0.5, 1.0),
    "U": (0.3, -0.4, 0.8),
    "i": (0.22, 0.9, 0.0),
    "I": (0.3, 0.6, 0.0),
    "e": (0.42, 0.6, 0.0),
    "E": (0.56, 0.5, 0.0),
    "&": (0.8, 0.4, 0.0),
    "@": (0.38, 0.05, 0.1),
    "3": (0.42, -0.1, 0.4),
    "y": (0.22, -0.4, 0.95),
    "Y": (0.35, -0.35, 0.85),
    "W": (0.45, -0.3, 0.7),
    "8": (0.38, 0.0, 0.2),
}
_CONSONANTS: dict[str, Target] = {
    letter: shape
    for letters, shape in {
        "pbm": (0.0, 0.0, 0.0, 0.0, 0.0),
        "B": (0.09, 0.0, 0.0, 0.0, 0.0),
        "fv": (0.1, 0.2, 0.0, 1.0, 0.0),
        "w": (0.12, -0.6, 1.0, 0.0, 0.0),
        "r": (0.25, -0.2, 0.45, 0.0, 0.2),
        "R": (0.3, 0.0, 0.1, 0.0, 0.0),
        "*": (0.24, 0.1, 0.0, 0.0, 0.6),
        "l": (0.33, 0.2, 0.0, 0.0, 0.9),
        "L": (0.3, 0.2, 0.0, 0.0, 0.5),
        "sz": (0.14, 0.45, 0.0, 0.0, 0.0),
        "SZ": (0.2, -0.3, 0.7, 0.0, 0.0),
        "TD": (0.22, 0.2, 0.0, 0.0, 1.0),
        "t": (0.17, 0.3, 0.0, 0.0, 0.5),
        "d": (0.18, 0.3, 0.0, 0.0, 0.5),
        "n": (0.2, 0.25, 0.0, 0.0, 0.5),
        "N": (0.28, 0.2, 0.0, 0.0, 0.0),
        "kg": (0.27, 0.1, 0.0, 0.0, 0.0),
        "Q": (0.28, 0.0, 0.0, 0.0, 0.0),
        "xX": (0.28, 0.1, 0.0, 0.0, 0.0),
        "C": (0.25, 0.4, 0.0, 0.0, 0.0),
        "h": (0.35, 0.0, 0.0, 0.0, 0.0),
        "H": (0.3, 0.0, 0.0, 0.0, 0.0),
        "j": (0.22, 0.7, 0.0, 0.0, 0.0),
        "J": (0.22, 0.5, 0.0, 0.0, 0.0),
        "c": (0.24, 0.4, 0.0, 0.0, 0.0),
        "q": (0.28, 0.0, 0.0, 0.0, 0.0),
        "?": (0.2, 0.0, 0.0, 0.0, 0.0),
    }.items()
    for letter in letters
}
SOUNDS = ("", *_VOWELS, *_CONSONANTS)
"""Silence, then the first letters of the mnemonics that are distinguished."""

_CLOSED = "pbm"
_FRICATIVES = "SZszfxF"
_NEUTRAL: Target = (0.3, 0.1, 0.0, 0.0, 0.0)


def targets(name: str) -> list[Target]:
    """The one or two mouth shapes of an espeak-ng mnemonic; none for a mark without a sound."""
    if name.startswith("_"):
        return [_REST]
    strength = _STRESSED if "'" in name else _UNSTRESSED
    letters = name.lstrip("',%=")
    if not letters or letters[0] in "(;:|!":
        return []
    if letters[0] in _CONSONANTS:
        found = [_CONSONANTS[letters[0]]]
        if letters[1:2] and letters[1] in _FRICATIVES and letters[0] in "tdpk":
            found.append(_CONSONANTS.get(letters[1], _NEUTRAL))  # an affricate
        return found
    vowels = [_VOWELS[letter] for letter in letters if letter in _VOWELS][:2]
    return [(o * strength, w, r, 0.0, 0.0) for o, w, r in vowels] or [_NEUTRAL]


def _smooth(track: FloatArray, lead_seconds: float, seconds: float) -> FloatArray:
    """Move `track` (samples, columns) ahead, then blur it along time; ends are repeated."""
    steps = round(lead_seconds * _HZ)
    track = np.concatenate([track[steps:], np.repeat(track[-1:], steps, axis=0)])
    radius = int(4 * seconds * _HZ) + 1
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / (seconds * _HZ)) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(track, ((radius, radius), (0, 0)), mode="edge")
    columns = [np.convolve(column, kernel, mode="valid") for column in padded.T]
    return np.stack(columns, axis=1).astype(np.float32)


def mouth_tracks(phonemes: Sequence[Phoneme], seconds: float, *, fps: float = 25.0) -> FloatArray:
    """(frames, 5) float32, the columns of `TRACKS`; row i is the mouth at i / fps seconds.

    Raises:
        OptionError: a duration or a frame rate that is not positive.
    """
    if not (seconds > 0 and fps > 0):
        raise OptionError(f"got {seconds} seconds at {fps} fps; both must be above 0")
    samples = int(seconds * _HZ) + _HZ
    raw = np.zeros((samples, len(TRACKS)), np.float32)
    gate = np.ones((samples, 1), np.float32)  # 0 while the lips are pressed together
    ends = [p.start_seconds for p in phonemes[1:]] + [seconds]
    for phoneme, end in zip(phonemes, ends, strict=True):
        shapes = targets(phoneme.name)
        start = int(phoneme.start_seconds * _HZ)
        stop = min(max(int(end * _HZ), start + 1), samples)
        if not shapes or start >= samples:
            continue
        turn = start + (stop - start) * 45 // 100 if len(shapes) > 1 else stop
        raw[start:turn], raw[turn:stop] = shapes[0], shapes[-1]
        if phoneme.name.lstrip("',%=")[:1] in tuple(_CLOSED):
            shortest = start + int(_CLOSURE_MIN_SECONDS * _HZ)
            gate[start : max(stop, shortest)] = 0.0
    tracks = _smooth(raw, _LEAD_SECONDS, _SMOOTH_SECONDS)
    gate = _smooth(gate, _CLOSURE_LEAD_SECONDS, _CLOSE_SECONDS)
    tracks[:, 0] *= np.clip((gate[:, 0] - 0.15) / 0.7, 0.0, 1.0)
    tracks[:, 3] *= gate[:, 0]
    frames = int(np.floor(seconds * fps + 1e-6))
    index = np.minimum((np.arange(frames) / fps * _HZ).round().astype(int), samples - 1)
    limits = np.array([[0, -1, 0, 0, 0], [1, 1, 1, 1, 1]], np.float32)
    return np.clip(tracks[index], *limits).astype(np.float32)


def sound_track(phonemes: Sequence[Phoneme], seconds: float, *, fps: float) -> IntArray:
    """(frames,) int64: which of SOUNDS is heard at i / fps seconds; -1 for one not among them."""
    track = np.zeros(int(np.floor(seconds * fps + 1e-6)), np.int64)
    for phoneme in phonemes:
        letter = phoneme.name.lstrip("',%=")[:1]
        silent = phoneme.name.startswith("_")
        if letter and letter in "(;:|!":
            continue  # a mark: the sound before it continues
        known = "" if silent else letter
        start = int(np.ceil(phoneme.start_seconds * fps))
        track[start:] = SOUNDS.index(known) if known in SOUNDS else -1
    return track
