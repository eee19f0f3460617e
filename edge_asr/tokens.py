"""Token table (what the network emits) and lexicon (how words are pronounced).

The tokens are the 39 phones of CMUdict without stress, in alphabetical order after the blank. Characters are the other
choice: `CHARACTERS`, with `▁` before each word, need no lexicon file, for every word spells itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from edge_asr.digest import sha256
from edge_asr.errors import LexiconError

CMUDICT_PATH = Path(__file__).with_name("cmudict.txt.xz")

BLANK = "<blk>"
# fmt: off
PHONES = (
    "AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY",
    "F", "G", "HH", "IH", "IY", "JH", "K", "L", "M", "N", "NG", "OW", "OY",
    "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH",
)
# fmt: on
WORD_START = "▁"  # the character model's mark before a word, as in SentencePiece
CHARACTERS = ("'", *"abcdefghijklmnopqrstuvwxyz", WORD_START)

Pronunciation = tuple[str, ...]

_SPELLABLE = re.compile(r"[a-z']*[a-z][a-z']*")


class TokenTable:
    """Symbols of the network's output, in order; the index is the token id and blank is 0."""

    def __init__(self, symbols: Iterable[str]) -> None:
        self.symbols = list(symbols)
        self._ids = {symbol: i for i, symbol in enumerate(self.symbols)}
        if self.symbols[:1] != [BLANK]:
            have = repr(self.symbols[0]) if self.symbols else "an empty table"
            raise LexiconError(f"token 0 must be {BLANK}, have {have}; put {BLANK} first")
        if len(self._ids) != len(self.symbols):
            twice = next(s for i, s in enumerate(self.symbols) if self._ids[s] != i)
            raise LexiconError(f"tokens must be distinct, have {twice!r} twice; remove one")

    @classmethod
    def phones(cls) -> TokenTable:
        """Blank and the 39 phones of CMUdict: V = 40."""
        return cls((BLANK, *PHONES))

    @classmethod
    def characters(cls) -> TokenTable:
        """Blank, apostrophe, a–z and the mark before a word: V = 29."""
        return cls((BLANK, *CHARACTERS))

    @classmethod
    def load(cls, path: str | Path) -> TokenTable:
        """Reads `symbol id` lines; ids must count up from 0. Raises LexiconError."""
        symbols = []
        for number, line in _lines(Path(path)):
            fields = line.split()
            if len(fields) != 2 or fields[1] != str(len(symbols)):
                raise LexiconError(f"{path}:{number}: need 'symbol {len(symbols)}', have {line!r}; rewrite the table")
            symbols.append(fields[0])
        return cls(symbols)

    def save(self, path: str | Path) -> None:
        Path(path).write_bytes(self._text())

    @property
    def sha256(self) -> str:
        """Hash of the saved file; model and graph carry it, so that a mismatch shows before a wrong word does."""
        return sha256(self._text()).hexdigest()

    def id(self, symbol: str) -> int:
        try:
            return self._ids[symbol]
        except KeyError:
            raise LexiconError(
                f"need one of the {len(self)} tokens ({' '.join(self.symbols[:4])} …), have {symbol!r}; "
                "check the pronunciation or use the model's own tokens.txt"
            ) from None

    def ids(self, symbols: Iterable[str]) -> list[int]:
        return [self.id(symbol) for symbol in symbols]

    def __len__(self) -> int:
        return len(self.symbols)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._ids

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenTable) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(tuple(self.symbols))

    def _text(self) -> bytes:
        return "".join(f"{symbol} {i}\n" for i, symbol in enumerate(self.symbols)).encode()


class Lexicon:
    """Words and their pronunciations; a word outside the entries goes to `fallback`, if there is one.

    `entries` maps a word to its pronunciations, most usual first. `fallback(word, lexicon)` returns pronunciations
    too, or raises LexiconError; its answers are kept, so that every word is worked out once.
    """

    def __init__(
        self,
        entries: Mapping[str, Iterable[Pronunciation]] | None = None,
        fallback: Callable[[str, Lexicon], list[Pronunciation]] | None = None,
    ) -> None:
        self.entries: dict[str, list[Pronunciation]] = {}
        self.fallback = fallback
        self._guessed: dict[str, list[Pronunciation]] = {}
        for word, pronunciations in (entries or {}).items():
            for pronunciation in pronunciations:
                self.add(word, pronunciation)

    @classmethod
    def cmudict(cls, g2p: bool = True) -> Lexicon:
        """CMUdict without stress; with `g2p`, every word of a–z and apostrophe gets a pronunciation."""
        return cls(read_cmudict(), _guess if g2p else None)

    @classmethod
    def characters(cls) -> Lexicon:
        """Every word spells itself: `▁` and its letters."""
        return cls(fallback=_spell)

    @classmethod
    def load(cls, path: str | Path, g2p: bool = False) -> Lexicon:
        """Reads `word p1 p2 …` lines, one for each pronunciation; `g2p` as in `cmudict`. Raises LexiconError."""
        lexicon = cls(fallback=_guess if g2p else None)
        lexicon.update(path)
        return lexicon

    def update(self, path: str | Path) -> None:
        """Adds a user's file of `word p1 p2 …` lines; its pronunciations replace those of the words that it names.

        Stress marks as in CMUdict ("AH0") are taken off.
        """
        additions: dict[str, list[Pronunciation]] = {}
        for number, line in _lines(Path(path)):
            word, *phones = line.split()
            if not phones:
                raise LexiconError(f"{path}:{number}: need 'word p1 p2 …', have {line!r}; add the phones")
            additions.setdefault(word, []).append(tuple(_without_stress(phone) for phone in phones))
        for word, pronunciations in additions.items():
            self.entries[word] = list(dict.fromkeys(pronunciations))

    def save(self, path: str | Path, words: Iterable[str] | None = None) -> None:
        """Writes `word p1 p2 …` lines, sorted: all entries, or those of `words`, asking the fallback where needed."""
        words = self.entries if words is None else words
        lines = [" ".join((word, *phones)) for word in sorted(set(words)) for phones in self.pronunciations(word)]
        Path(path).write_text("".join(line + "\n" for line in lines), encoding="utf-8")

    def add(self, word: str, pronunciation: Iterable[str]) -> None:
        phones = tuple(pronunciation)
        if not word or not phones:
            raise LexiconError(f"need a word and its phones, have {word!r} and {phones!r}; add what is missing")
        known = self.entries.setdefault(word, [])
        if phones not in known:
            known.append(phones)

    def pronunciations(self, word: str) -> list[Pronunciation]:
        """All pronunciations of a word, at least one. Raises LexiconError where nothing pronounces it."""
        known = self.entries.get(word) or self._guessed.get(word)
        if known is None:
            if self.fallback is None:
                raise LexiconError(
                    f"need a pronunciation, have none for {word!r} among {len(self.entries)} words; "
                    "add a 'word p1 p2 …' line or allow g2p"
                )
            known = self._guessed[word] = self.fallback(word, self)
        return list(known)

    def check(self, tokens: TokenTable) -> None:
        """Raises LexiconError for the first entry that uses a phone outside the token table."""
        for word, pronunciations in self.entries.items():
            for phones in pronunciations:
                unknown = [phone for phone in phones if phone not in tokens]
                if unknown:
                    raise LexiconError(
                        f"need phones of the model's token table, have {unknown[0]!r} in {word!r}; "
                        f"use {' '.join(tokens.symbols[1:])}"
                    )

    def __contains__(self, word: object) -> bool:
        return word in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


def read_cmudict() -> dict[str, list[Pronunciation]]:
    """CMUdict (Carnegie Mellon, licence in cmudict.LICENSE): words of a–z and apostrophe, without stress."""
    import lzma  # not needed to transcribe

    entries: dict[str, list[Pronunciation]] = {}
    for line in lzma.decompress(CMUDICT_PATH.read_bytes()).decode().splitlines():
        word, *phones = line.split()
        entries.setdefault(word, []).append(tuple(phones))
    return entries


# ------------------------------------------------------------------------------- pronunciations of unlisted words

SIBILANTS = frozenset({"S", "Z", "SH", "ZH", "CH", "JH"})
VOICELESS = frozenset({"P", "T", "K", "F", "TH"})


def _guess(word: str, lexicon: Lexicon) -> list[Pronunciation]:
    """The fallback of word lexica: possessives from their base, everything else by grapheme to phoneme."""
    from edge_asr.g2p import pronounce  # needs this module; and its model is read on first use only

    base, ending = word[:-2], word[-2:]
    if ending == "'s" and _SPELLABLE.fullmatch(base):
        return [(*phones, *_possessive_ending(phones[-1])) for phones in lexicon.pronunciations(base)]
    if ending == "s'" and _SPELLABLE.fullmatch(base):
        return lexicon.pronunciations(word[:-1])
    return pronounce(_spellable(word))


def _possessive_ending(last_phone: str) -> Pronunciation:
    if last_phone in SIBILANTS:
        return ("IH", "Z")
    return ("S",) if last_phone in VOICELESS else ("Z",)


def _spell(word: str, lexicon: Lexicon) -> list[Pronunciation]:
    """The fallback of the character lexicon."""
    return [(WORD_START, *_spellable(word))]


def _without_stress(phone: str) -> str:
    return phone[:-1] if phone[-1] in "012" and phone[:-1] in PHONES else phone


def _spellable(word: str) -> str:
    if not _SPELLABLE.fullmatch(word):
        raise LexiconError(
            f"need a word of a–z and apostrophe, have {word!r}; spell out numbers and symbols, "
            "or add a 'word p1 p2 …' line to the lexicon"
        )
    return word


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise LexiconError(f"need the file {path}, have none; check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise LexiconError(f"need UTF-8 text in {path}, have {error}; check the file") from None
    return ((i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip())
