"""Samples in, words out: the verbs known from sherpa-onnx and Vosk, and one generator for people.

    recognizer = Recognizer()
    for segment in recognizer.stream(blocks):
        print(segment.text, "" if segment.is_final else "…")

The text does not depend on how the audio was split or on the chunk: the encoder is exact in both, and the search is
always asked for an endpoint at the same moments of the stream (every `SEARCH_VECTORS` vectors).
An endpoint resets the search and the endpoint rules, never the encoder, so no first word is lost.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_asr.audio import SAMPLE_RATE, AudioFile, Resampler, as_mono
from edge_asr.decoder import Decoder, GraphDecoder, GreedyDecoder, Word
from edge_asr.endpoint import FRAME_S, Endpoint, EndpointRules
from edge_asr.errors import GrammarError, ModelDamagedError, StreamError, UsageError
from edge_asr.features import FEATURE_STREAMS, FbankStream, KaldiFbankStream
from edge_asr.graph import Graph, load_graph
from edge_asr.model_files import DEFAULT_MODEL, ModelFiles, Precision, check_graph
from edge_asr.runtime import FRAME_SHIFT_MS, EncoderInfo, EncoderStream, advance, check_chunk_frames
from edge_asr.tokens import WORD_START, Lexicon, TokenTable
from edge_asr.zipformer import ZipformerStream, open_model, open_session

DEFAULT_CHUNK_MS = 320
RECORDING_CHUNK_MS = 2_560
FILE_CHUNK_MS = 10_240  # of files whose text nobody waits for: most clips are one chunk, and long ones cost less
SEARCH_VECTORS = 8  # vectors of 40 ms between two questions for an endpoint: 320 ms, whatever the chunk
SEARCH_SETTINGS = ("beam", "max_active", "acoustic_scale", "word_cost", "blank_skip")

DecoderKind = Literal["graph", "greedy"]
FeatureKind = Literal["numpy", "kaldi"]


@dataclass(frozen=True)
class Segment:
    """Words between two endpoints. Times in seconds from the start of the stream; a final segment will not change."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...]
    is_final: bool


class Stream:
    """One speaker's audio on its way through a recognizer; made by `Recognizer.create_stream`."""

    def __init__(
        self, encoder: EncoderStream | ZipformerStream, decoder: Decoder, fbank: FbankStream | KaldiFbankStream
    ) -> None:
        self.n_samples = 0  # accepted, at 16 kHz
        self.n_replaced = 0  # NaN, Inf and impossible samples, replaced by 0
        self.encoder = encoder
        self.decoder = decoder
        self.n_searched = 0  # vectors since the start of the stream
        self._emissions: np.ndarray | None = None  # (U, V) encoded, not yet searched
        self._resampler: Resampler | None = None
        self._fbank = fbank
        self._finished = False

    def accept_waveform(self, sample_rate: int, samples: np.ndarray) -> None:
        """samples: (n,) or (n, channels), float in ±1 or signed integers, any n; one rate for the whole stream."""
        if self._finished:
            raise StreamError("the stream was told input_finished and takes no more audio; create a new stream")
        if self._resampler is None:
            self._resampler = Resampler(sample_rate)
        if sample_rate != self._resampler.rate_hz:
            raise StreamError(
                f"the stream began at {self._resampler.rate_hz} Hz and got {sample_rate} Hz; create a new stream"
            )
        mono, n_replaced = as_mono(samples)
        self.n_replaced += n_replaced
        self._accept(self._resampler.process(mono))

    def input_finished(self) -> None:
        """No more audio will come; what is still inside comes out with the next decodes. Nobody needs to pad."""
        if self._finished:
            return
        if self._resampler is not None:
            self._accept(self._resampler.flush())
        self.encoder.accept(self._fbank.flush())
        self.encoder.finish()
        self._finished = True

    @property
    def duration_s(self) -> float:
        return self.n_samples / SAMPLE_RATE

    @property
    def searched_s(self) -> float:
        """How far the words go."""
        return self.n_searched * FRAME_S

    @property
    def is_ready(self) -> bool:
        return self._emissions is not None or self.encoder.n_ready_frames > 0

    @property
    def is_over(self) -> bool:
        """All audio is in and searched."""
        return self._finished and not self.is_ready

    @property
    def needs_search(self) -> bool:
        return self._emissions is not None

    @property
    def needs_encoding(self) -> bool:
        return self._emissions is None and self.encoder.n_ready_frames > 0

    def give(self, emissions: np.ndarray) -> None:
        """Vectors (U, V) that the encoder has made of this stream's audio."""
        self._emissions = emissions if len(emissions) else None

    def take_emissions(self) -> np.ndarray | None:
        """The vectors up to the next moment at which an endpoint may be, or None."""
        if self._emissions is None:
            return None
        n = SEARCH_VECTORS - self.n_searched % SEARCH_VECTORS
        taken, rest = self._emissions[:n], self._emissions[n:]
        self._emissions = rest if len(rest) else None
        self.n_searched += len(taken)
        return taken

    def _accept(self, samples: np.ndarray) -> None:
        self.n_samples += len(samples)
        self.encoder.accept(self._fbank.accept(samples))


class Recognizer:
    """A loaded model, shared by any number of streams.

    model:      name of an installed model, or the path of a model folder, ours or a zipformer2-ctc of sherpa-onnx
    precision:  "int8" or "fp32"
    chunk_ms:   audio per encoder step, a multiple of 40; changes the latency, not the text. None is for recordings: as
                large as the model takes, up to 2.56 s, which costs less, and 10.24 s of a batch of files. A model of
                sherpa-onnx has one of its own
    decoder:    "graph" (lexicon and language model) or "greedy"; None takes the graph where the model has one
    grammar:    a file of phrases to listen for, instead of the model's own graph
    graph:      the folder of another graph, made by `edge-asr graph`, or one that `shared_graph` has loaded
    beam, max_active, acoustic_scale, word_cost, blank_skip: of the graph search; None takes the model's own, but with
                a grammar 1 for the acoustic scale, which a model has for its language model
    endpoint:   the rules for the end of an utterance
    features:   "numpy", or "kaldi" for kaldi-native-fbank's, whose last bits are those of sherpa-onnx; slower
    Raises: ModelError, GraphError, LexiconError, UsageError.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        precision: Precision = "int8",
        chunk_ms: int | None = DEFAULT_CHUNK_MS,
        decoder: DecoderKind | None = None,
        grammar: str | os.PathLike[str] | None = None,
        graph: str | os.PathLike[str] | Graph | None = None,
        beam: float | None = None,
        max_active: int | None = None,
        acoustic_scale: float | None = None,
        word_cost: float | None = None,
        blank_skip: float | None = None,
        endpoint: EndpointRules | None = None,
        n_threads: int = 1,
        features: FeatureKind = "numpy",
    ) -> None:
        if features not in FEATURE_STREAMS:
            raise UsageError(f"features must be one of {', '.join(FEATURE_STREAMS)}, got {features!r}")
        files = open_model(model)
        self._search = _search_settings(
            files, dict(zip(SEARCH_SETTINGS, (beam, max_active, acoustic_scale, word_cost, blank_skip), strict=True))
        )
        # before the session, for loading a graph is the peak of memory
        self.graph = _choose_graph(files, decoder, grammar, graph, self._search.pop("word_cost", None))
        replaced = grammar is not None or graph is not None
        if replaced and acoustic_scale is None and self.graph.config.get("kind") == "grammar":
            self._search.pop("acoustic_scale", None)  # it is set against a language model's costs, which are not here
        self._features = FEATURE_STREAMS[features]
        # beside a graph memory counts more than the encoder's time, a tenth of the whole
        self.session = open_session(files, precision, n_threads, arena=self.graph is None)
        self.name = files.directory.resolve().name
        self.precision = precision
        if self.session.fixed_chunk_frames is not None:
            chunk_ms = self.session.fixed_chunk_frames * FRAME_SHIFT_MS
        info = self.session.info
        self.chunk_ms = _up_to(RECORDING_CHUNK_MS, info) if chunk_ms is None else chunk_ms
        self._chunk_frames = _chunk_frames(info, self.chunk_ms)
        self._file_chunk_frames = self._chunk_frames
        if chunk_ms is None and self.graph is None:  # the search costs so much that a graph's memory comes first
            self._file_chunk_frames = _chunk_frames(info, _up_to(FILE_CHUNK_MS, info))
        self._tokens = files.tokens
        self._endpoint = Endpoint(endpoint)
        self.decoder_kind: DecoderKind = "greedy" if self.graph is None else "graph"

    @staticmethod
    def shared_graph(options: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments of a Recognizer with the graph loaded that they ask for, for processes to fork with."""
        chosen = {name: options.get(name) for name in ("decoder", "grammar", "graph")}
        files = open_model(options.get("model", DEFAULT_MODEL))
        word_cost = _search_settings(files, {"word_cost": options.get("word_cost")}).get("word_cost")
        graph = _choose_graph(files, **chosen, word_cost=word_cost)
        return {**options, "grammar": None, "graph": graph}

    def create_stream(self, whole_file: bool = False) -> Stream:
        """whole_file: nobody waits for the first words, so chunks are longer where `chunk_ms` leaves them open."""
        if self.graph is None:
            decoder: Decoder = GreedyDecoder(self._tokens)
        else:
            decoder = GraphDecoder(self.graph, **self._search)
        chunk_frames = self._file_chunk_frames if whole_file else self._chunk_frames
        return Stream(self.session.create_stream(chunk_frames), decoder, self._features())

    def is_ready(self, stream: Stream) -> bool:
        """There is something to decode."""
        return stream.is_ready

    def decode(self, stream: Stream) -> None:
        """One step: encode a chunk if none is waiting, then search to the next moment at which an endpoint may be."""
        self.decode_streams([stream])

    def decode_streams(self, streams: Sequence[Stream]) -> None:
        """One step of every stream that is ready, with one encoder call for those whose chunks are of equal length."""
        self.encode(streams)
        for stream in streams:
            self._search_on(stream)

    def encode(self, streams: Sequence[Stream]) -> None:
        """One encoder step, as a batch, of all streams that have a chunk and whose last chunk has been searched."""
        hungry = [stream for stream in streams if stream.needs_encoding]
        for stream, emissions in zip(hungry, advance(self.session, [s.encoder for s in hungry]), strict=True):
            stream.give(emissions)

    def _search_on(self, stream: Stream) -> None:
        emissions = stream.take_emissions()
        if emissions is not None:
            stream.decoder.accept(emissions)

    def is_endpoint(self, stream: Stream) -> bool:
        """The utterance is over: take its result, then `reset`. Asked only every 320 ms of the stream, else False."""
        if stream.n_searched % SEARCH_VECTORS:
            return False
        decoder = stream.decoder
        if not decoder.n_frames or not self._endpoint.possible(decoder.n_frames, decoder.most_trailing_blank):
            return False  # without walking back the best path, which costs more the longer the utterance is
        return self._endpoint.detected(decoder.n_frames, decoder.n_trailing_blank)

    def result(self, stream: Stream) -> Segment:
        """The words since the last reset: final at an endpoint and at the end of the stream, else partial."""
        is_final = stream.is_over or self.is_endpoint(stream)
        return _segment(stream.decoder.finish() if is_final else stream.decoder.partial(), is_final, stream.searched_s)

    def reset(self, stream: Stream) -> None:
        """Begin the next utterance of the stream. The encoder keeps its states, and times keep running."""
        stream.decoder.reset()

    def finals(self, stream: Stream) -> Iterator[Segment]:
        """Decode all that is ready, and give the segments that have become final; those without words are left out."""
        yield from self.search(stream)
        while stream.is_ready:
            self.encode([stream])
            yield from self.search(stream)

    def search(self, stream: Stream) -> Iterator[Segment]:
        """Search all that `encode` has made of the stream, and give the segments that have become final by that."""
        while stream.needs_search:
            self._search_on(stream)
            if self.is_endpoint(stream):
                yield from self._close_segment(stream)
        if stream.is_over:
            yield from self._close_segment(stream)

    def stream(
        self, blocks: Iterable[np.ndarray], sample_rate: int = SAMPLE_RATE, partials: bool = True
    ) -> Iterator[Segment]:
        """Segments of one stream as they come: partial ones when they change (if `partials`), and final ones.

        blocks: arrays (n,) or (n, channels) of any n, at `sample_rate`.
        """
        stream, shown = self.create_stream(), ""
        for block in blocks:
            stream.accept_waveform(sample_rate, block)
            for segment in self.finals(stream):
                shown = ""
                yield segment
            if partials:
                segment = self.result(stream)
                if segment.text != shown:
                    shown = segment.text
                    yield segment
        stream.input_finished()
        yield from self.finals(stream)

    def _close_segment(self, stream: Stream) -> Iterator[Segment]:
        segment = _segment(stream.decoder.finish(), True, stream.searched_s)
        self.reset(stream)
        if segment.words:
            yield segment

    def transcribe(self, source: str | os.PathLike[str] | np.ndarray) -> Iterator[Segment]:
        """Final segments of a file, or of an array (n,) or (n, channels) at 16 kHz, as they are recognised.

        Raises: AudioError.
        """
        if isinstance(source, np.ndarray):
            yield from self.stream(np.array_split(source, max(1, len(source) // SAMPLE_RATE)), partials=False)
            return
        with AudioFile(source) as audio:
            yield from self.stream(audio, partials=False)


def _up_to(chunk_ms: int, info: EncoderInfo) -> int:
    limit_ms = info.max_chunk_frames * FRAME_SHIFT_MS
    return min(chunk_ms, limit_ms) if limit_ms else chunk_ms


def _chunk_frames(info: EncoderInfo, chunk_ms: int) -> int:
    chunk_frames, remainder_ms = divmod(chunk_ms, FRAME_SHIFT_MS)
    if remainder_ms:
        raise UsageError(f"a chunk must be whole frames of {FRAME_SHIFT_MS} ms, got {chunk_ms} ms; round it")
    return check_chunk_frames(info, chunk_frames)


def _segment(words: tuple[Word, ...], is_final: bool, now_s: float) -> Segment:
    start, end = (words[0].start, words[-1].end) if words else (now_s, now_s)
    return Segment(start, end, " ".join(word.text for word in words), words, is_final)


def _search_settings(files: ModelFiles, chosen: dict[str, float | None]) -> dict[str, Any]:
    """The model's settings of the graph search, overridden by those that were chosen."""
    own = files.config.get("decoder", {})
    unknown = set(own) - set(SEARCH_SETTINGS)
    if unknown:
        raise ModelDamagedError(
            f"{files.directory / 'config.json'}: 'decoder' may hold {', '.join(SEARCH_SETTINGS)}, "
            f"has {', '.join(sorted(unknown))}; correct the file"
        )
    return {**own, **{name: value for name, value in chosen.items() if value is not None}}


def _choose_graph(
    files: ModelFiles,
    decoder: DecoderKind | None,
    grammar: str | os.PathLike[str] | None,
    graph: str | os.PathLike[str] | Graph | None,
    word_cost: float | None,
) -> Graph | None:
    """The graph to search; None for greedy search."""
    if decoder not in (None, "graph", "greedy"):
        raise UsageError(f"decoder must be graph or greedy, got {decoder!r}")
    if sum(choice is not None for choice in (grammar, graph, decoder if decoder == "greedy" else None)) > 1:
        raise UsageError("a grammar, a graph and greedy search exclude each other; give one of them")
    if isinstance(graph, Graph):
        return graph
    if grammar is not None:
        return compile_grammar(grammar, files.tokens)
    if decoder == "greedy":
        return None
    directory = files.graph if graph is None else check_graph(Path(graph))
    if directory is None and decoder == "graph":
        raise UsageError(f"model {files.directory.name} has no graph; use greedy search, or give a grammar or a graph")
    return None if directory is None else load_graph(directory, files.tokens.sha256, word_cost)


def compile_grammar(path: str | os.PathLike[str], tokens: TokenTable) -> Graph:
    """The graph of a grammar file, pronounced by CMUdict and, beyond it, by the grapheme-to-phoneme model."""
    # Compiling reads CMUdict, a third of a second that searching never needs.
    from edge_asr.grammar import build_grammar_graph

    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise GrammarError(f"{path}: needs a text file of phrases, one on a line, have: {error}; check it") from error
    return build_grammar_graph(text, default_lexicon(tokens), tokens)


def default_lexicon(tokens: TokenTable) -> Lexicon:
    """How words are pronounced in a model's tokens: by CMUdict in phones, or letter by letter."""
    return Lexicon.characters() if WORD_START in tokens else Lexicon.cmudict()
