"""Bounded single-producer single-consumer sample buffer that counts what it drops.

The producer is an audio callback: `write` copies and returns. It takes no lock, allocates no samples and never waits
for the consumer. Positions are absolute sample numbers since the start, so a loss shows as a gap in the positions
and never as a silent splice.

How it stays correct without a lock: the producer announces the end of what it is about to overwrite (`_claimed`),
copies, then publishes (`_written`). The consumer copies, and afterwards discards whatever the producer had claimed
over in the meantime, as in a sequence lock. Each counter has one writer, and Python stores integers atomically.
"""

from __future__ import annotations

from collections import deque
from typing import Literal, NamedTuple

import numpy as np

from edge_asr.errors import BufferOverflowError, UsageError

MAX_GAPS_KEPT = 1_000  # a session that drops all day keeps the last thousand gaps and the exact total

Policy = Literal["drop-oldest", "fail"]


class Gap(NamedTuple):
    """Samples `first_sample` … `first_sample + n_samples` were captured and lost."""

    first_sample: int
    n_samples: int


class Span(NamedTuple):
    """Consecutive samples; `first_sample` is the position of the first one since the start of the capture."""

    first_sample: int
    samples: np.ndarray  # (n,) float32


class RingBuffer:
    """`capacity_samples` float32 samples between one producer and one consumer.

    Policy on overflow: "drop-oldest" keeps the newest `capacity_samples`; "fail" refuses what does not fit, and
    `read` raises BufferOverflowError once the samples before the refusal are consumed.
    """

    def __init__(self, capacity_samples: int, policy: Policy = "drop-oldest") -> None:
        if capacity_samples < 1 or policy not in ("drop-oldest", "fail"):
            raise UsageError(
                f"a ring needs at least 1 sample and policy drop-oldest or fail, got {capacity_samples} and {policy!r}"
            )
        self.capacity_samples = capacity_samples
        self.policy = policy
        self.gaps: deque[Gap] = deque(maxlen=MAX_GAPS_KEPT)
        self._samples = np.zeros(capacity_samples, np.float32)
        self._claimed = 0  # the producer may be overwriting up to here
        self._written = 0  # the producer has finished up to here
        self._refused = 0  # offered to a full ring of policy "fail"
        self._read = 0  # the consumer is here
        self._dropped = 0  # of those passed by the consumer, how many it never saw

    @property
    def n_captured(self) -> int:
        """Samples offered by the producer so far."""
        return self._written + self._refused

    @property
    def n_consumed(self) -> int:
        return self._read - self._dropped

    @property
    def n_dropped(self) -> int:
        """Samples lost so far, those the consumer has yet to notice included."""
        overwritten = max(0, self._written - self.capacity_samples - self._read)
        return self._dropped + overwritten + self._refused

    def __len__(self) -> int:
        """Samples ready to be read."""
        return min(self._written - self._read, self.capacity_samples)

    def write(self, samples: np.ndarray) -> None:
        """Producer: take (n,) float32 samples."""
        n = len(samples)
        if self.policy == "fail":
            free = self.capacity_samples - (self._written - self._read)
            if self._refused or n > free:  # after a refusal nothing more: the stream has a hole now
                self._refused += n
                return
        self._claimed = self._written + n
        kept = samples[-self.capacity_samples :] if n > self.capacity_samples else samples
        start = (self._written + n - len(kept)) % self.capacity_samples
        head = min(len(kept), self.capacity_samples - start)
        self._samples[start : start + head] = kept[:head]
        self._samples[: len(kept) - head] = kept[head:]
        self._written += n

    def read(self, max_samples: int | None = None) -> Span:
        """Consumer: up to `max_samples` of the oldest samples that are still there (maybe none), and their position.

        Raises: BufferOverflowError (policy "fail") when a refusal lies directly ahead.
        """
        written = self._written
        self._skip_to(written - self.capacity_samples)
        n = written - self._read
        if n == 0 and self._refused:
            raise BufferOverflowError(
                f"the ring of {self.capacity_samples} samples was full and refused {self._refused} samples after "
                f"sample {written}; read faster, make the ring larger, or choose the policy drop-oldest"
            )
        if max_samples is not None:
            n = min(n, max_samples)
        copied_from = self._read
        start = copied_from % self.capacity_samples
        head = min(n, self.capacity_samples - start)
        samples = np.concatenate([self._samples[start : start + head], self._samples[: n - head]])
        self._skip_to(min(self._claimed - self.capacity_samples, copied_from + n))  # overwritten while it was copied
        first = self._read
        self._read = copied_from + n
        return Span(first, samples[first - copied_from :])

    def _skip_to(self, position: int) -> None:
        n_lost = position - self._read
        if n_lost > 0:
            last = self.gaps[-1] if self.gaps else Gap(-1, 0)
            if last.first_sample + last.n_samples == self._read:
                self.gaps[-1] = Gap(last.first_sample, last.n_samples + n_lost)
            else:
                self.gaps.append(Gap(self._read, n_lost))
            self._dropped += n_lost
            self._read = position
