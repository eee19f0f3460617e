"""Where live audio comes from: a producer fills a ring, a consumer empties it when it can.

`Capture` is what a microphone, a file played in real time and a test's fake device have in common. Positions are sample
numbers at the capture's own rate since it was opened; resampling is the consumer's work, never the audio callback's.
"""

from __future__ import annotations

import os
import threading
import time
from types import TracebackType
from typing import Self

import numpy as np

from edge_asr.audio import SAMPLE_RATE, AudioFile
from edge_asr.errors import EdgeAsrError, MicrophoneError
from edge_asr.ring import Policy, RingBuffer

BLOCK_MS = 10  # audio per callback
DEFAULT_RING_S = 10.0  # a consumer may stall this long and lose nothing
N_STAMPS = 1_024  # blocks whose arrival is remembered: as much as the ring holds


class Capture:
    """Audio at `rate_hz` in `ring`, and when each sample arrived. Subclasses call `push` from their producer."""

    name = "capture"
    latency_s = 0.0  # of the device and its driver, before `push`
    n_overflows = 0  # times that the driver lost samples before we saw them; how many, it does not say

    def __init__(self, rate_hz: int, ring_s: float = DEFAULT_RING_S, policy: Policy = "drop-oldest") -> None:
        self._ring_s, self._policy = ring_s, policy
        self._restart(rate_hz)

    def _restart(self, rate_hz: int) -> None:
        """Begin again at position 0 with an empty ring."""
        self.rate_hz = rate_hz
        self.ring = RingBuffer(round(self._ring_s * rate_hz), self._policy)
        self._n_blocks = 0
        self._stamp_positions = np.zeros(N_STAMPS, np.int64)  # samples captured, the block included
        self._stamp_times_s = np.zeros(N_STAMPS)

    def push(self, samples: np.ndarray) -> None:
        """Producer: (n,) float32 at `rate_hz`. Copies and returns; nothing here waits, prints or grows."""
        self.ring.write(samples)
        slot = self._n_blocks % N_STAMPS
        self._stamp_positions[slot] = self.ring.n_captured
        self._stamp_times_s[slot] = self.now_s()
        self._n_blocks += 1

    def arrival_s(self, position: int) -> float:
        """When the first `position` samples were all in, by `now_s`; for positions within the last 1,023 blocks."""
        n_blocks = self._n_blocks
        if n_blocks == 0:
            return self.now_s()
        slots = np.arange(max(0, n_blocks - N_STAMPS + 1), n_blocks) % N_STAMPS
        found = int(np.searchsorted(self._stamp_positions[slots], position))
        return float(self._stamp_times_s[slots[min(found, len(slots) - 1)]])

    @property
    def last_arrival_s(self) -> float:
        return self.arrival_s(self.ring.n_captured)

    # --- what a subclass says of itself

    @property
    def is_over(self) -> bool:
        """No more samples will be pushed."""
        raise NotImplementedError

    def start(self) -> None:
        """Begin to push."""

    def stop(self) -> None:
        """Push what is still on its way, then no more."""

    def wait(self, seconds: float) -> None:
        """Let time pass. Raises: MicrophoneError where the device is gone, or what else ended the capture."""
        self.pause(seconds)

    def reopen(self) -> None:
        """After the device went away: open it again, at position 0 of a new ring. Raises: MicrophoneError."""
        raise MicrophoneError(f"{self.name} ended and cannot be opened again")

    def pause(self, seconds: float) -> None:
        time.sleep(seconds)

    def now_s(self) -> float:
        return time.perf_counter()

    def close(self) -> None:
        self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class FilePlayer(Capture):
    """A recording as if it were spoken now: its samples reach the ring in blocks of 10 ms at real time.

    Raises: AudioError.
    """

    def __init__(
        self, path: str | os.PathLike[str], ring_s: float = DEFAULT_RING_S, policy: Policy = "drop-oldest"
    ) -> None:
        self._audio = AudioFile(path, block_ms=100)
        super().__init__(SAMPLE_RATE, ring_s, policy)
        self.name = self._audio.path.name
        self._thread = threading.Thread(target=self._play, name="file player", daemon=True)
        self._stopping = False
        self._failure: EdgeAsrError | None = None

    @property
    def damage(self) -> str | None:
        """What was wrong with the file, once it is over."""
        return self._audio.damage

    @property
    def is_over(self) -> bool:
        return self._stopping or (self._thread.ident is not None and not self._thread.is_alive())

    def start(self) -> None:
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        if self._thread.is_alive():
            self._thread.join()

    def wait(self, seconds: float) -> None:
        super().wait(seconds)
        if self._failure is not None and not self._thread.is_alive():
            failure, self._failure = self._failure, None
            raise failure

    def close(self) -> None:
        self.stop()
        self._audio.close()

    def _play(self) -> None:
        began_s = self.now_s()
        n_block = SAMPLE_RATE * BLOCK_MS // 1000
        try:
            for read in self._audio:
                for first in range(0, len(read), n_block):
                    block = read[first : first + n_block]
                    # a block can be heard when its last sample was spoken
                    due_s = began_s + (self.ring.n_captured + len(block)) / SAMPLE_RATE
                    time.sleep(max(0.0, due_s - self.now_s()))
                    if self._stopping:
                        return
                    self.push(block)
        except EdgeAsrError as error:
            self._failure = error
