"""N-gram models as ARPA files, plain or compressed."""

import gzip
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

import numpy as np

from edge_asr.errors import LanguageModelError
from edge_asr.ngram import BOS, EOS, NgramModel, NgramOrder


def read_text(path: str | Path) -> str:
    """UTF-8 text, decompressed where the name ends in .gz or .xz. Raises LanguageModelError."""
    try:
        with _opener(path)(path, "rt", encoding="utf-8") as file:
            return file.read()
    except (OSError, EOFError, lzma.LZMAError, UnicodeDecodeError) as error:
        raise LanguageModelError(f"need readable text in {path}, have: {error}; check the path and the file") from error


def write_arpa(model: NgramModel, path: str | Path) -> None:
    """Writes ARPA, compressed where the name ends in .gz or .xz."""
    with _opener(path)(path, "wt", encoding="utf-8") as file:
        counts = (f"ngram {n}={len(level)}\n" for n, level in enumerate(model.orders, 1))
        file.writelines(["\\data\\\n", *counts])
        names = model.vocab  # of the n-grams of the order at hand
        for n, level in enumerate(model.orders, 1):
            if n > 1:
                names = [f"{names[c]} {model.vocab[w]}" for c, w in zip(level.context.tolist(), level.word.tolist())]
            file.write(f"\n\\{n}-grams:\n")
            probs, backoffs = level.log10_prob.tolist(), level.log10_backoff.tolist()
            if n < model.order:
                file.writelines(f"{p:.6f}\t{name}\t{b:.6f}\n" for p, name, b in zip(probs, names, backoffs))
            else:
                file.writelines(f"{p:.6f}\t{name}\n" for p, name in zip(probs, names))
        file.write("\n\\end\\\n")


def read_arpa(path: str | Path) -> NgramModel:
    """Reads ARPA, plain, .gz or .xz. Raises LanguageModelError with what is wrong in it."""
    text = read_text(path)
    try:
        return _parse_arpa(text)
    except LanguageModelError as error:
        raise LanguageModelError(f"{path}: {error}") from error


def _opener(path: str | Path) -> Callable[..., TextIO]:
    return {".gz": gzip.open, ".xz": lzma.open}.get(Path(path).suffix, open)


def _parse_arpa(text: str) -> NgramModel:
    counts = [int(count) for count in re.findall(r"^ngram \d+\s*=\s*(\d+)", text[:4096], re.MULTILINE)]
    if not counts:
        raise LanguageModelError("need \\data\\ and its counts at the top, have none; check that it is an ARPA file")
    vocab: list[str] = []
    ids: dict[str, int] = {}
    tables = []  # of each order: word ids (N, n), log10 probabilities, log10 back-offs
    for n, count in enumerate(counts, 1):
        fields, width = _arpa_fields(text, n, count)
        if n == 1:
            vocab = fields[1::width]
            ids = {word: i for i, word in enumerate(vocab)}
        try:
            columns = [np.fromiter(map(ids.__getitem__, fields[k + 1 :: width]), np.int32, count) for k in range(n)]
            log10_prob = np.array(fields[::width], float)
            log10_backoff = np.array(fields[n + 1 :: width], float) if width == n + 2 else np.zeros(count)
        except KeyError as error:
            raise LanguageModelError(f"need all words among the 1-grams, have {error} in a {n}-gram; add it") from error
        except ValueError as error:
            raise LanguageModelError(f"need log10 numbers in the {n}-grams, have {error}; check the file") from error
        if not np.all(log10_prob <= 0):
            raise LanguageModelError(f"need log10 probabilities of at most 0, have others in the {n}-grams")
        tables.append((np.column_stack(columns), log10_prob, log10_backoff))
    if len(ids) < len(vocab) or not {BOS, EOS} <= ids.keys():
        raise LanguageModelError(f"need distinct 1-grams with {BOS} and {EOS} among them; check the file")
    return _assembled(vocab, tables)


def _arpa_fields(text: str, n: int, count: int) -> tuple[list[str], int]:
    """The white-space separated fields of one order, and how many each n-gram has."""
    header = re.compile(rf"^\\{n}-grams:", re.MULTILINE).search(text)
    end = re.compile(r"^\\(\d+-grams:|end\\)", re.MULTILINE).search(text, header.end()) if header else None
    if header is None or end is None:
        raise LanguageModelError(f"need the section of {n}-grams and what follows it, have a file cut short")
    section = text[header.end() : end.start()]
    fields = section.split()
    if len(fields) not in (count * (n + 1), count * (n + 2)):  # some lines have a back-off and some have none
        lines = [line.split() for line in section.splitlines() if line.strip()]
        fields = [field for line in lines for field in (line if len(line) == n + 2 else [*line, "0"])]
    width = n + 2 if len(fields) == count * (n + 2) else n + 1
    if len(fields) != count * width:
        raise LanguageModelError(f"need {count} {n}-grams as the header says, have other lines; check the file")
    return fields, width


def _assembled(vocab: list[str], tables: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> NgramModel:
    """Sorts the n-grams under their prefixes; a prefix that the file does not list is added as it would back off."""
    orders: list[NgramOrder] = []
    while len(orders) < len(tables):
        n = len(orders) + 1
        words, log10_prob, log10_backoff = tables[n - 1]
        lower = NgramModel(vocab, orders)
        context = lower.rows(words[:, :-1]) if n > 1 else np.zeros(len(words), np.int32)
        if np.any(context < 0):
            missing = np.unique(words[context < 0, :-1], axis=0)
            listed, probs, backoffs = tables[n - 2]
            zeros = np.zeros(len(missing))
            tables[n - 2] = (
                np.concatenate([listed, missing]),
                np.concatenate([probs, lower.log10_prob(missing)]),
                np.concatenate([backoffs, zeros]),
            )
            orders = orders[: n - 2]  # again from the order that grew
            continue
        by = np.lexsort((words[:, -1], context))
        level = NgramOrder(context[by].astype(np.int32), words[by, -1], log10_prob[by], log10_backoff[by])
        if n > 1 and np.any((np.diff(level.context) == 0) & (np.diff(level.word) == 0)):
            raise LanguageModelError(f"need each {n}-gram once, have one twice; remove the copy")
        orders.append(level)
    return NgramModel(vocab, orders)
