"""From emissions to words: greedy collapse, or search of a decoding graph. Both take emissions as they come.

Times are seconds from the start of the stream and keep running over `reset`, which ends an utterance. A word lasts from
the frame before its first token, unless that is another word's, to the frame after its last token: CTC hears a sound
once it is well under way. Over words put where we know (benchmarks/word_times.py) the first token's own frame was 45 ms
late at the median, the end of the last one 3 ms early.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import kaldifst
import numpy as np
from kaldi_decoder import DecodableCtc, FasterDecoder, FasterDecoderOptions

from edge_asr.endpoint import FRAME_S
from edge_asr.errors import SearchError
from edge_asr.graph import OTHER, Graph
from edge_asr.tokens import WORD_START, TokenTable

DEFAULT_BEAM = 13.0
DEFAULT_ACOUSTIC_SCALE = 1.0
DEFAULT_MAX_ACTIVE = 3000
N_STRAY_FRAMES = 6  # frames of a silence in which a token may be likelier than blank
COST_LIMIT = 1e4  # of one frame: an impossible token is then only the worst, and the search never runs dry


@dataclass(frozen=True, slots=True)  # ten hours have 100,000 of them
class Word:
    """Start and end in seconds from the start of the stream; confidence 0…1, see `confidence`."""

    text: str
    start: float
    end: float
    confidence: float


@dataclass(frozen=True)
class Span:
    """One token on the best path: frames `first` to `last`, counted from the last reset; its best log-probability."""

    token: int
    first: int
    last: int
    log_prob: float


class Decoder(Protocol):
    """What both decoders do; `n_frames` and `n_trailing_blank` count from the last reset, for the endpoint rules."""

    n_frames: int

    @property
    def n_trailing_blank(self) -> int: ...

    @property
    def most_trailing_blank(self) -> int:
        """A bound of `n_trailing_blank` that costs next to nothing."""

    def accept(self, log_probs: np.ndarray) -> None: ...

    def partial(self) -> tuple[Word, ...]: ...

    def finish(self) -> tuple[Word, ...]: ...

    def reset(self) -> None: ...


def confidence(spans: Sequence[Span]) -> float:
    """Geometric mean over a word's tokens of the posterior that each had in its best frame.

    It says how clearly the sounds were heard, not how likely the word is; so it never depends on the language model.
    """
    return math.exp(min(0.0, sum(span.log_prob for span in spans) / len(spans))) if spans else 0.0


class GreedyDecoder:
    """The best token of each frame, repeats merged and blanks dropped.

    Characters and word pieces make words, phones stand alone.
    """

    def __init__(self, tokens: TokenTable) -> None:
        self._symbols = tokens.symbols
        self._has_words = any(symbol.startswith(WORD_START) for symbol in tokens.symbols)
        self._start_frame = 0
        self.n_frames = 0
        self._spans: list[Span] = []
        self._previous = 0  # token of the last frame

    @property
    def n_trailing_blank(self) -> int:
        return self.n_frames - (self._spans[-1].last + 1 if self._spans else 0)

    @property
    def most_trailing_blank(self) -> int:
        return self.n_trailing_blank

    def accept(self, log_probs: np.ndarray) -> None:
        """log_probs: (U, V), any U. Raises SearchError."""
        log_probs = _checked(log_probs, len(self._symbols))
        best = log_probs.argmax(axis=1)
        for token, log_prob in zip(best.tolist(), log_probs[np.arange(len(best)), best].tolist(), strict=True):
            if token and token == self._previous:
                span = self._spans[-1]
                self._spans[-1] = Span(token, span.first, self.n_frames, max(span.log_prob, log_prob))
            elif token:
                self._spans.append(Span(token, self.n_frames, self.n_frames, log_prob))
            self._previous = token
            self.n_frames += 1

    def partial(self) -> tuple[Word, ...]:
        words: list[list[Span]] = []
        for span in self._spans:
            begins = not self._has_words or self._symbols[span.token].startswith(WORD_START)
            if begins or not words:
                words.append([])
            words[-1].append(span)
        placed: list[Word] = []
        for spans in words:
            if text := _join(self._symbols, spans):
                placed.append(_word(text, spans, self._start_frame, placed[-1].end if placed else 0.0))
        return tuple(placed)

    def finish(self) -> tuple[Word, ...]:
        return self.partial()

    def reset(self) -> None:
        self._start_frame += self.n_frames
        self.n_frames = 0
        self._spans = []
        self._previous = 0


class GraphDecoder:
    """Beam search of a decoding graph, Kaldi's FasterDecoder.

    beam: costs above the best path's that are still followed; max_active: paths kept in a frame, at most.
    acoustic_scale: weight of the emissions against the graph's costs.
    blank_skip: the second and later frames in a row whose blank is likelier than this are left out, for they change
        no path; 1 searches every frame.
    """

    def __init__(
        self,
        graph: Graph,
        beam: float = DEFAULT_BEAM,
        acoustic_scale: float = DEFAULT_ACOUSTIC_SCALE,
        max_active: int = DEFAULT_MAX_ACTIVE,
        blank_skip: float = 1.0,
    ) -> None:
        if not beam > 0 or not acoustic_scale > 0 or max_active < 2 or not 0 < blank_skip <= 1:
            raise SearchError(
                "need beam > 0, acoustic_scale > 0, max_active ≥ 2 and 0 < blank_skip ≤ 1, "
                f"have {beam}, {acoustic_scale}, {max_active}, {blank_skip}; change them"
            )
        self.graph = graph
        self.acoustic_scale = acoustic_scale
        self.blank_skip = blank_skip
        self.n_recoveries = 0  # times that no path was left and the search began anew
        options = FasterDecoderOptions(beam=beam, max_active=max_active, min_active=min(20, max_active - 1))
        self._search = FasterDecoder(graph.fst, options)
        self._start_frame = 0
        self.n_frames = 0
        self._begin()

    @property
    def n_trailing_blank(self) -> int:
        spans, _ = self._best_path()
        return self.n_frames - (spans[-1].last + 1 if spans else 0)

    @property
    def most_trailing_blank(self) -> int:
        """Frames since the emissions, without the search, last had more than a few stray tokens."""
        sounding = self._sounding
        return self.n_frames - (sounding[-1 - N_STRAY_FRAMES] + 1 if len(sounding) > N_STRAY_FRAMES else 0)

    def accept(self, log_probs: np.ndarray) -> None:
        """log_probs: (U, V), any U. Raises SearchError."""
        if self._finished:
            raise SearchError("the utterance is finished and takes no more emissions; reset the decoder first")
        log_probs = _checked(log_probs, self.graph.n_tokens)
        if not len(log_probs):
            return
        blank = log_probs[:, 0] > math.log(self.blank_skip)
        kept = ~(blank & np.append(self._was_blank, blank[:-1]))
        self._was_blank = bool(blank[-1])
        self._frames.extend((self.n_frames + np.flatnonzero(kept)).tolist())
        self._sounding.extend((self.n_frames + np.flatnonzero(log_probs.argmax(axis=1))).tolist())
        self.n_frames += len(log_probs)
        self._best = None
        if not kept.any():
            return
        log_probs = log_probs[kept]
        self._emissions.append(log_probs)
        scores = np.full((len(log_probs), log_probs.shape[1] + 1), -2 * COST_LIMIT, np.float32)  # and the end label
        # relative to the best token, or float32 totals would lose their decimals in a long utterance
        relative = self.acoustic_scale * (log_probs - np.maximum(log_probs.max(axis=1, keepdims=True), -COST_LIMIT))
        np.maximum(relative, -COST_LIMIT, out=scores[:, :-1])
        self._advance(scores)

    def partial(self) -> tuple[Word, ...]:
        """The words so far, as the best path has them; cheap enough for every chunk."""
        return self._words(*self._best_path())

    def finish(self) -> tuple[Word, ...]:
        """The words of the utterance: the best path that may end here, else the best path. Then comes `reset`."""
        if self._frames and not self._finished:
            scores = np.full((1, self.graph.n_tokens + 1), -2 * COST_LIMIT, np.float32)
            scores[0, 0], scores[0, -1] = -COST_LIMIT, 0.0  # a path that cannot end waits in a blank
            self._advance(scores)
            self._best = None
        self._finished = True
        return self._words(*self._best_path())

    def tokens_of_words(self) -> list[tuple[int, ...]]:
        """For each word of the best path, the tokens that it was heard as: which of its pronunciations was said."""
        spans, word_ids = self._best_path()
        places = align_words([span.token + 1 for span in spans], word_ids, self.graph)
        return [tuple(span.token for span in spans[low:high]) for low, high in places]

    def reset(self) -> None:
        self._start_frame += self.n_frames
        self.n_frames = 0
        self._begin()

    def _begin(self) -> None:
        self._search.init_decoding()
        self._emissions: list[np.ndarray] = []  # searched since the reset, for the confidence
        self._frames: list[int] = []  # the frame of each row of the emissions
        self._sounding: list[int] = []  # frames whose likeliest token is not blank
        self._was_blank = False
        self._finished = False
        self._best: tuple[list[Span], list[int]] | None = None

    def _advance(self, scores: np.ndarray) -> None:
        decodable = DecodableCtc(scores, self._search.num_frames_decoded())
        for _ in scores:  # a frame a call: the search holds Python's lock, which an audio callback may be waiting for
            self._search.advance_decoding(decodable, 1)

    def _best_path(self) -> tuple[list[Span], list[int]]:
        """→ tokens and word ids."""
        if self._best is None and self._frames:
            found, lattice = self._search.get_best_path()
            if found:
                _, labels, words, _ = kaldifst.get_linear_symbol_sequence(lattice)
                emissions = self._emissions = [np.concatenate(self._emissions)]
                labels = np.array(labels[: len(self._frames)])  # without the end label
                self._best = _spans(labels - 1, np.array(self._frames), emissions[0]), words
            else:
                self.n_recoveries += 1
                self._begin()
        return self._best or ([], [])

    def _words(self, spans: list[Span], word_ids: list[int]) -> tuple[Word, ...]:
        places = align_words([span.token + 1 for span in spans], word_ids, self.graph)
        words, end = [], 0.0
        for word, (low, high) in zip(word_ids, places, strict=True):
            if self.graph.words[word] == OTHER:
                continue
            placed = _word(sys.intern(self.graph.words[word]), spans[low:high], self._start_frame, end)
            end = placed.end
            words.append(placed)
        return tuple(words)


def align_words(labels: Sequence[int], word_ids: Sequence[int], graph: Graph) -> list[tuple[int, int]]:
    """For each word the range of `labels` (token id + 1) that pronounces it.

    The graph puts a word out where it first is certain, before its last phone or at it, so the path alone does not say
    where words begin; the pronunciations do. The last word may be on its way yet, and phones after it have no word.
    """
    before: list[dict[int, int]] = []  # for each word: end → begin
    begins: dict[int, int] | set[int] = {0}
    for word in word_ids:
        ends: dict[int, int] = {}
        for begin in sorted(begins):
            for pronunciation in graph.pronunciations(word) or [labels[begin : begin + 1]]:
                ends.setdefault(_match(labels, begin, pronunciation), begin)
        ends.pop(-1, None)
        before.append(ends)
        begins = ends
    places: list[tuple[int, int]] = []
    end = max(begins, default=0)
    for ends in reversed(before):
        begin = ends.get(end, end)
        places.append((begin, end))
        end = begin
    return places[::-1]


def _match(labels: Sequence[int], begin: int, pronunciation: Sequence[int]) -> int:
    """End of a pronunciation that begins at `begin`, −1 where the labels are others; it may be cut off by their end."""
    at = begin
    for label in pronunciation:
        if at == len(labels):
            break
        if labels[at] == label:
            at += 1
        elif not at or labels[at - 1] != label:  # the compact topology lets one held label count twice
            return -1
    return at


def _spans(tokens: np.ndarray, frames: np.ndarray, log_probs: np.ndarray) -> list[Span]:
    """Runs of one token along a path, blanks dropped."""
    begins = np.flatnonzero(np.diff(tokens, prepend=-1))
    ends = np.append(begins[1:], len(tokens))[: len(begins)]
    best = np.maximum.reduceat(log_probs[np.arange(len(tokens)), tokens], begins)
    runs = zip(tokens[begins].tolist(), frames[begins].tolist(), frames[ends - 1].tolist(), best.tolist(), strict=True)
    return [Span(*run) for run in runs if run[0]]


def _word(text: str, spans: Sequence[Span], start_frame: int, earliest_s: float) -> Word:
    if not spans:
        return Word(text, earliest_s, earliest_s, 0.0)
    start = max((start_frame + spans[0].first - 1) * FRAME_S, start_frame * FRAME_S, earliest_s)
    return Word(text, start, max((start_frame + spans[-1].last + 1) * FRAME_S, start), confidence(spans))


def _join(symbols: Sequence[str], spans: Sequence[Span]) -> str:
    return "".join(symbols[span.token] for span in spans).replace(WORD_START, "")


def _checked(log_probs: np.ndarray, n_tokens: int) -> np.ndarray:
    log_probs = np.asarray(log_probs, np.float32)
    if log_probs.ndim != 2 or log_probs.shape[1] != n_tokens:
        raise SearchError(
            f"need log-probabilities (frames, {n_tokens}), have shape {log_probs.shape}; "
            "use the graph and token table that belong to the model"
        )
    if not (log_probs < math.inf).all():  # NaN compares false
        raise SearchError("need log-probabilities, have NaN or +Inf among them; check the model and its input")
    return log_probs
