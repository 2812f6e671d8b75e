"""Text as searches compare it: without case, accents, punctuation or doubled spaces. https://hl7.org/fhir/R4/search.html#string"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

_ASCII_WORD = re.compile(r"[a-z0-9 ]*", re.ASCII)
_TAG = re.compile(r"<[^>]*>")
_HAN = re.compile(
    r"[\u2e80-\u2fdf\u3005\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]"
)
_JOINED = "'’`´"  # O'Brien is one word; every other punctuation separates

MOST_WORDS = 2_000  # distinct words of one resource that full-text search keeps
LONGEST_WORD = 64


@lru_cache(maxsize=16_384)
def fold(text: str) -> str:
    """`"Müller-Lüdenscheidt  "` → `"muller ludenscheidt"`. Full-width letters become plain ones (NFKD)."""
    lowered = text.lower()
    if not (lowered.isascii() and _ASCII_WORD.fullmatch(lowered)):
        # Decomposed before and after folding case: either step can make what the other changes (İ, ẞ).
        decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
        lowered = "".join(
            c if c.isalnum() else "" if unicodedata.combining(c) or c in _JOINED else " " for c in decomposed
        )
    return " ".join(lowered.split())


def has_han(text: str) -> bool:
    return not text.isascii() and _HAN.search(text) is not None


def endings(text: str) -> Iterator[str]:
    """Every ending of `text` that starts at a Han character, but `text` itself: a prefix of one is any part of it."""
    for position, character in enumerate(text[:200]):
        if position and _HAN.match(character):
            yield text[position:]


@lru_cache(maxsize=4_096)
def pinyin(text: str) -> tuple[str, ...]:
    """`"王小明"` → `("wangxiaoming", "wang xiao ming")`: Mandarin without tones, as one word and in syllables."""
    from pypinyin import lazy_pinyin  # noqa: PLC0415  (its tables take 80 ms and 30 MB; most servers never need them)

    syllables = [fold(s) for s in lazy_pinyin(text) if fold(s)]
    return ("".join(syllables).replace(" ", ""), " ".join(syllables))


def words(text: str) -> Iterator[str]:
    """The distinct words of a text for full-text search; each Han character with the one after it is a word, too."""
    seen: set[str] = set()
    for word in fold(text).split():
        parts = [word[:LONGEST_WORD]]
        if has_han(word):
            parts = [word[i : i + 2] for i in range(len(word))]
        for part in parts:
            if part not in seen:
                seen.add(part)
                yield part


def plain(div: str) -> str:
    """A narrative's XHTML → its text."""
    return html.unescape(_TAG.sub(" ", div))


_SOUNDS = {**dict.fromkeys("bfpv", "1"), **dict.fromkeys("cgjkqsxz", "2"), **dict.fromkeys("dt", "3"), "l": "4"}
_SOUNDS |= {**dict.fromkeys("mn", "5"), "r": "6"}


def soundex(word: str) -> str:
    """American Soundex of a folded word: `robert` and `rupert` are both `r163`. Words of other alphabets are themselves."""
    if not word.isascii() or not word[:1].isalpha():
        return word
    code, last = word[0], _SOUNDS.get(word[0], "")
    for character in word[1:]:
        sound = _SOUNDS.get(character, "")
        if sound and sound != last:
            code += sound
        if character not in "hw":  # h and w do not separate equal sounds, vowels do
            last = sound
    return code[:4].ljust(4, "0")
