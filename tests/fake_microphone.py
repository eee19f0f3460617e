"""Microphones without hardware: a device at true cadence on a clock that a test moves, and a mock of PortAudio."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from edge_asr.capture import BLOCK_MS, Capture
from edge_asr.errors import MicrophoneError


class FakeMicrophone(Capture):
    """Pushes `audio` in blocks of 10 ms as its own clock passes; time moves only while the consumer waits.

    unplugged_s: the device is away from the first to the second of these times; audio goes on unheard.
    """

    name = "fake"

    def __init__(
        self, audio: np.ndarray, rate_hz: int = 16_000, unplugged_s: tuple[float, float] | None = None, **options: Any
    ) -> None:
        super().__init__(rate_hz, **options)
        self._audio = audio
        self._unplugged_s = unplugged_s
        self._clock_s = 0.0
        self._n_spoken = 0
        self._stopped = False
        self._connected = True

    def now_s(self) -> float:
        return self._clock_s

    @property
    def is_over(self) -> bool:
        return self._stopped or self._n_spoken >= len(self._audio)

    def stop(self) -> None:
        self._stopped = True

    def pause(self, seconds: float) -> None:
        n_block = self.rate_hz * BLOCK_MS // 1000
        until_s = self._clock_s + seconds
        while not self.is_over:
            due_s = (self._n_spoken + n_block) / self.rate_hz
            if due_s > until_s:
                break
            self._clock_s = due_s
            if not self.is_away:
                if self._connected:
                    self.push(self._audio[self._n_spoken : self._n_spoken + n_block])
            else:
                self._connected = False
            self._n_spoken += n_block
        self._clock_s = max(self._clock_s, until_s)

    def wait(self, seconds: float) -> None:
        self.pause(seconds)
        if not self._connected:
            raise MicrophoneError("microphone 'fake' stopped; was it unplugged? Plug it in again")

    def reopen(self) -> None:
        if self.is_away:
            raise MicrophoneError("no microphone 'fake'")
        self._connected = True
        self._restart(self.rate_hz)

    @property
    def is_away(self) -> bool:
        return self._unplugged_s is not None and self._unplugged_s[0] <= self._clock_s < self._unplugged_s[1]


class PortAudioError(Exception):
    """sounddevice's: (message, code)."""


class Status:
    def __init__(self, input_overflow: bool = False) -> None:
        self.input_overflow = input_overflow


class FakeStream:
    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.latency = settings["latency"]
        self.active = False
        self.closed = False

    def start(self) -> None:
        self.active = True

    def close(self, ignore_errors: bool = True) -> None:
        self.active, self.closed = False, True

    def deliver(self, frames: np.ndarray, overflow: bool = False) -> None:
        """What PortAudio does every 10 ms."""
        self.settings["callback"](frames, len(frames), None, Status(overflow))


class FakeSounddevice:
    """The part of sounddevice that the microphone uses.

    refuse: (rate, channels) → PortAudio's error code, or 0 to open.
    """

    PortAudioError = PortAudioError

    def __init__(
        self,
        inputs: list[tuple[str, int, int]],
        default: int = 0,
        refuse: Callable[[int, int], int] = lambda rate_hz, n_channels: 0,
    ) -> None:
        """inputs: (name, channels, rate) of each device."""
        self.inputs = inputs
        self.default = type("default", (), {"device": (default, -1)})
        self.refuse = refuse
        self.streams: list[FakeStream] = []
        self.n_rescans = 0

    def query_hostapis(self) -> list[dict[str, Any]]:
        return [{"name": "Fake API"}]

    def query_devices(self) -> list[dict[str, Any]]:
        return [
            {"name": name, "hostapi": 0, "max_input_channels": n_channels, "default_samplerate": float(rate_hz)}
            for name, n_channels, rate_hz in self.inputs
        ]

    def InputStream(self, **settings: Any) -> FakeStream:
        code = self.refuse(settings["samplerate"], settings["channels"])
        if code:
            raise PortAudioError("refused", code)
        self.streams.append(FakeStream(settings))
        return self.streams[-1]

    def _terminate(self) -> None:
        self.n_rescans += 1

    def _initialize(self) -> None:
        pass
