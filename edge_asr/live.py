"""Live audio in, segments out as they are spoken: the consumer between a `Capture` and a `Recognizer`.

    recognizer = Recognizer()
    with Microphone() as microphone:
        for segment in LiveSession(recognizer, microphone):
            print(segment.text, "" if segment.is_final else "…")

Times are seconds since the capture began. Audio that was lost (a full ring, an unplugged device) leaves a gap in them:
the utterance before it is finished, a fresh stream begins behind it, and a `Loss` says from when to when.
Any number of sessions may share one recognizer, each in a thread of its own.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np

from edge_asr.audio import SAMPLE_RATE, Resampler, replace_damaged
from edge_asr.capture import Capture
from edge_asr.decoder import Word
from edge_asr.errors import BufferOverflowError, MicrophoneError
from edge_asr.features import FRAME_MS, HOP_MS
from edge_asr.meters import LatencyHistogram, LevelMeter, StableWords
from edge_asr.recognizer import Recognizer, Segment
from edge_asr.recording import Recording

PROGRESS_S = 0.1  # of audio between two reports
RECONNECT_S = 30.0  # how long an unplugged device is waited for
RETRY_S = 0.5
MIN_PAUSE_S, MAX_PAUSE_S = 0.002, 0.05  # between two looks into the ring
FEATURE_TAIL_SAMPLES = SAMPLE_RATE * (FRAME_MS - HOP_MS) // 2000  # a chunk's last frame reaches over the chunk's end


@dataclass(frozen=True)
class Loss:
    """Audio that nobody heard, in seconds since the capture began."""

    start: float
    end: float
    reason: str


@dataclass(frozen=True)
class Disconnected:
    """The device went away at `at` seconds; the session tries to open it again for `retry_s`."""

    at: float
    reason: str
    retry_s: float


@dataclass(frozen=True)
class Progress:
    """How the session is doing, about ten times for each second of audio."""

    audio_s: float
    level_db: float  # root mean square of the last 100 ms, full scale = 0
    peak_db: float
    ring_fill: float  # 0 … 1
    latency_ms: float  # of the last chunk
    rtf: float  # compute time / audio time of about the last three seconds
    zeros_s: float  # for how long every sample has been exactly 0


Event = Segment | Loss | Disconnected | Progress


@dataclass(frozen=True)
class Figures:
    """What a session adds up to."""

    audio_s: float = 0.0  # heard, without what was lost
    compute_s: float = 0.0
    n_chunks: int = 0
    latency_p50_ms: float = 0.0  # from the arrival of a chunk's last sample until its words were taken off our hands
    latency_p99_ms: float = 0.0
    latency_max_ms: float = 0.0
    n_overflows: int = 0  # reported by the driver
    n_dropped: int = 0  # samples lost in the ring
    n_losses: int = 0
    n_reconnects: int = 0
    n_replaced: int = 0  # NaN, Inf and impossible samples, taken as silence
    n_finals: int = 0
    n_words_shown: int = 0
    n_words_taken_back: int = 0
    max_ring_fill: float = 0.0

    @property
    def rtf(self) -> float:
        return self.compute_s / self.audio_s if self.audio_s else 0.0

    @property
    def taken_back_percent(self) -> float:
        return 100 * self.n_words_taken_back / self.n_words_shown if self.n_words_shown else 0.0


class LiveSession:
    """One capture through one recognizer.

    stable_chunks: a word is shown in partial segments once it has stayed for so many chunks more; finals are not
        affected
    reconnect_s:   how long to wait for a device that went away; 0 gives up at once
    recording:     keeps what was heard, as the model got it
    Raises, while iterated: MicrophoneError when the device stays away, BufferOverflowError with the ring's policy
    "fail", OutputError of the recording. Words said before come out first.
    """

    def __init__(
        self,
        recognizer: Recognizer,
        capture: Capture,
        stable_chunks: int = 0,
        reconnect_s: float = RECONNECT_S,
        recording: Recording | None = None,
    ) -> None:
        self.recognizer, self.capture, self.recording = recognizer, capture, recording
        self._reconnect_s = reconnect_s
        self._stopping = False
        self._origin_s = 0.0  # of the capture's position 0, in the session's time
        self._n_heard = 0  # samples since the device was opened
        self._heard_before_s = self._compute_s = self._recent_compute_s = self._recent_rtf = self._ring_fill = 0.0
        self._latencies = LatencyHistogram()
        self._last_latency_s = 0.0
        self._meter = LevelMeter()
        self._words = StableWords(stable_chunks)
        self._n_dropped_before = 0  # in rings before the device was opened again
        self._n_losses = self._n_reconnects = self._n_finals = self._n_replaced = 0
        self._begin_stream(0)

    def __iter__(self) -> Iterator[Segment]:
        """Partial segments when their text changes, and final ones."""
        return (event for event in self.events() if isinstance(event, Segment))

    def run(
        self,
        on_final: Callable[[Segment], object],
        on_partial: Callable[[Segment], object] | None = None,
        on_loss: Callable[[Loss], object] | None = None,
    ) -> Figures:
        """Until the capture is over or `stop` is called, in this thread; the same as iterating, for callback minds."""
        for event in self.events():
            if isinstance(event, Segment):
                call = on_final if event.is_final else on_partial
            else:
                call = on_loss if isinstance(event, Loss) else None
            if call is not None:
                call(event)
        return self.figures

    def stop(self) -> None:
        """From any thread or a signal handler: take in what is on its way, finish the last words, end."""
        self._stopping = True  # no lock: a signal handler may come at any moment

    @property
    def audio_s(self) -> float:
        """Heard so far; without what was lost."""
        return self._heard_before_s + self._n_heard / self.capture.rate_hz

    @property
    def figures(self) -> Figures:
        milliseconds = [1000 * self._latencies.quantile(q) for q in (0.5, 0.99, 1.0)]
        return Figures(
            self.audio_s, self._compute_s, self._latencies.n, *milliseconds,
            n_overflows=self.capture.n_overflows,
            n_dropped=self._n_dropped_before + self.capture.ring.n_dropped,
            n_losses=self._n_losses, n_reconnects=self._n_reconnects, n_replaced=self._n_replaced,
            n_finals=self._n_finals, n_words_shown=self._words.n_shown, n_words_taken_back=self._words.n_taken_back,
            max_ring_fill=self._ring_fill,
        )  # fmt: skip

    def events(self) -> Iterator[Event]:
        """All that happens, in order."""
        self.capture.start()
        try:
            yield from self._listen()
        except BufferOverflowError:
            yield from self._end_stream()
            raise

    def _listen(self) -> Iterator[Event]:
        while True:
            if self._stopping:
                self.capture.stop()
            over = self.capture.is_over  # asked before reading, so that what comes in between is not left behind
            try:
                n_heard = yield from self._hear()
                if over and not n_heard:
                    break
                if not over:
                    self.capture.wait(self._pause_s())
            except MicrophoneError as error:
                yield from self._reconnect(error)
        yield from self._end_stream()

    # --- audio

    def _hear(self) -> Generator[Event, None, int]:
        """Take what the ring holds; returns the number of samples."""
        ring = self.capture.ring
        self._ring_fill = max(self._ring_fill, len(ring) / ring.capacity_samples)
        first, samples = ring.read()
        if first > self._position:
            yield from self._skip(first)
        if len(samples):
            began = time.perf_counter()
            clean, n_replaced = replace_damaged(samples)
            self._n_replaced += n_replaced
            self._position = first + len(samples)
            self._n_heard += len(samples)
            self._meter.add(clean)
            self._accept(self._resampler.process(clean))
            self._count_compute(time.perf_counter() - began)
            yield from self._decode()
            if self._meter.n_samples >= PROGRESS_S * self.capture.rate_hz:
                yield self._progress()
        return len(samples)

    def _accept(self, samples: np.ndarray) -> None:
        self._stream.accept_waveform(SAMPLE_RATE, samples)
        if self.recording is not None:
            self.recording.write(samples)

    def _skip(self, position: int) -> Iterator[Event]:
        """The ring lost everything up to `position`."""
        start, end = self._time_s(self._position), self._time_s(position)
        yield from self._end_stream()
        self._begin_stream(position)
        yield self._lost(start, end, f"the recogniser was busy for longer than the ring's {self._ring_s:.0f} s")

    def _reconnect(self, error: MicrophoneError) -> Iterator[Event]:
        """Finish what was said, then try to open the device until it is back. Raises: MicrophoneError."""
        capture = self.capture
        yield from self._hear()
        yield from self._end_stream()
        start, gone_s = self._time_s(self._position), capture.last_arrival_s
        yield Disconnected(start, str(error), self._reconnect_s)
        n_dropped, heard_s = capture.ring.n_dropped, self.audio_s
        deadline_s = capture.now_s() + self._reconnect_s
        while True:
            if capture.now_s() >= deadline_s:
                raise error
            if self._stopping:
                capture.stop()
                self._begin_stream(self._position)
                return
            try:
                capture.reopen()
                break
            except MicrophoneError as failure:
                error = failure
                capture.pause(min(RETRY_S, max(0.0, deadline_s - capture.now_s())))
        self._n_reconnects += 1
        self._n_dropped_before += n_dropped
        self._n_heard, self._heard_before_s = 0, heard_s
        self._origin_s = start + capture.now_s() - gone_s
        self._begin_stream(0)
        yield self._lost(start, self._origin_s, "the microphone was away")

    def _lost(self, start: float, end: float, reason: str) -> Loss:
        self._n_losses += 1
        if self.recording is not None:
            self.recording.silence_until(end)
        return Loss(start, end, reason)

    # --- words

    def _begin_stream(self, position: int) -> None:
        """A fresh stream of the recognizer, whose time 0 is at `position` of the capture."""
        self._position = self._stream_begin = position
        self._stream = self.recognizer.create_stream()
        self._resampler = Resampler(self.capture.rate_hz)
        self._n_chunks = 0  # of this stream

    def _end_stream(self) -> Iterator[Segment]:
        """The last words."""
        self._accept(self._resampler.flush())
        self._stream.input_finished()
        yield from self._decode()
        if self._stream.is_over:  # also where nothing was left to decode
            yield from self._show(self.recognizer.result(self._stream))

    def _decode(self) -> Iterator[Segment]:
        stream, recognizer = self._stream, self.recognizer
        while stream.is_ready:
            began = time.perf_counter()
            self._n_chunks += stream.needs_encoding
            recognizer.decode(stream)
            is_chunk_done = not stream.is_ready or stream.needs_encoding  # a search step may be a part of a chunk
            is_final = stream.is_over or recognizer.is_endpoint(stream)
            segment = recognizer.result(stream) if is_final or is_chunk_done else None
            if is_final:
                recognizer.reset(stream)
            self._count_compute(time.perf_counter() - began)
            if segment is not None:
                yield from self._show(segment)
            if is_chunk_done:
                self._count_latency()

    def _show(self, segment: Segment) -> Iterator[Segment]:
        words = self._words.update([word.text for word in segment.words], segment.is_final)
        if segment.is_final and segment.words:
            self._n_finals += 1
            yield self._in_session_time(segment)
        elif self._words.changed:
            shown = segment.words[: len(words)]
            start, end = (shown[0].start, shown[-1].end) if shown else (segment.start, segment.start)
            yield self._in_session_time(Segment(start, end, " ".join(words), shown, False))

    def _in_session_time(self, segment: Segment) -> Segment:
        offset = self._time_s(self._stream_begin)
        if not offset:
            return segment
        words = tuple(_later(word, offset) for word in segment.words)
        return replace(segment, start=segment.start + offset, end=segment.end + offset, words=words)

    def _time_s(self, position: int) -> float:
        return self._origin_s + position / self.capture.rate_hz

    # --- figures

    @property
    def _ring_s(self) -> float:
        return self.capture.ring.capacity_samples / self.capture.rate_hz

    @property
    def _chunk_end(self) -> int:
        """The capture's position at which the last encoded chunk of this stream ended."""
        return self._stream_begin + self._n_chunks * self.recognizer.chunk_ms * self.capture.rate_hz // 1000

    def _pause_s(self) -> float:
        """Until the next chunk may be complete, the level wants to be shown, or the ring is half way to being full."""
        ring, rate_hz = self.capture.ring, self.capture.rate_hz
        next_end = self._chunk_end + self.recognizer.chunk_ms * rate_hz // 1000
        missing_s = (next_end - self._position) / rate_hz + FEATURE_TAIL_SAMPLES / SAMPLE_RATE
        n_held = len(ring)
        if n_held and n_held >= missing_s * rate_hz:
            return 0.0
        room_s = (ring.capacity_samples - n_held) / rate_hz
        return min(max(missing_s, MIN_PAUSE_S), MAX_PAUSE_S, room_s / 2)

    def _count_latency(self) -> None:
        if self._chunk_end <= self._position:  # not the padded chunk at the end of a stream
            self._last_latency_s = self.capture.now_s() - self.capture.arrival_s(self._chunk_end)
            self._latencies.add(self._last_latency_s)

    def _count_compute(self, seconds: float) -> None:
        self._compute_s += seconds
        self._recent_compute_s += seconds

    def _progress(self) -> Progress:
        audio_s = self._meter.n_samples / self.capture.rate_hz
        share = min(1.0, audio_s / 3)
        self._recent_rtf += share * (self._recent_compute_s / audio_s - self._recent_rtf)
        self._recent_compute_s = 0.0
        ring = self.capture.ring
        level_db, peak_db, n_zeros = self._meter.take()
        return Progress(
            self._time_s(self._position), level_db, peak_db, len(ring) / ring.capacity_samples,
            1000 * self._last_latency_s, self._recent_rtf, n_zeros / self.capture.rate_hz,
        )  # fmt: skip


def _later(word: Word, seconds: float) -> Word:
    return replace(word, start=word.start + seconds, end=word.end + seconds)
