"""Sentences by seed: plain words of each language strung together, and words that don't exist.

They need not make sense; they must contain every sound of a language, in every neighbourhood.
"""

from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["draw_sentence"]

_REAL_SHARE = 0.65  # of the words; the others don't exist
_ONSETS, _VOWELS, _CODAS = (
    sounds.split()
    for sounds in (
        "b p m f v w r l s z sh ch t d n k g h j br pl st tr gr fl sm kl sp",
        "a e i o u ai ou ee oo au ei oa",
        "m n l r s t k p f ng b d",
    )
)


def draw_sentence(rng: np.random.Generator, language: str) -> str:
    """Draw 4 to 11 words of `language` ("en-gb", "de", ...).

    A language without a list of words speaks only words that don't exist, in its own accent.
    """
    words = _words().get(language.split("-")[0], [])
    sentence: list[str] = []
    for _ in range(rng.integers(4, 12)):
        real = len(words) > 0 and rng.random() < _REAL_SHARE
        word = words[rng.integers(len(words))] if real else _pseudo_word(rng)
        sentence.append(word + ("," if rng.random() < 0.12 else ""))
    return " ".join(sentence).rstrip(",") + ("?" if rng.random() < 0.15 else ".")


@cache
def _words() -> dict[str, list[str]]:
    """Read the words of each language: a paragraph each, led by the language's code."""
    text = Path(__file__).with_name("words.txt").read_text(encoding="utf-8")
    paragraphs = (paragraph.split() for paragraph in text.split("\n\n"))
    return {code.rstrip(":"): words for code, *words in paragraphs}


def _pseudo_word(rng: np.random.Generator) -> str:
    def pick(sounds: list[str]) -> str:
        return sounds[rng.integers(len(sounds))]

    syllables = [pick(_ONSETS) + pick(_VOWELS) for _ in range(rng.integers(1, 4))]
    return "".join(syllables) + (pick(_CODAS) if rng.random() < 0.4 else "")
