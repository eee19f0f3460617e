"""The audio callback's own time, and the latency from the end of a chunk to its partial on the screen.

A thread plays PortAudio: every 10 ms it calls the microphone's callback with the samples, in real time, while a session
recognises them and draws its live lines on a pseudo-terminal. No sound hardware is needed; with --device the callbacks
come from PortAudio and whatever that device hears (a virtual microphone, for example).

    python benchmarks/microphone_latency.py [--json] [--seconds 60] [--model NAME] [--chunk-ms 320] [--device NAME]

Callback: from its entry to its return. Latency: from the callback that delivered a chunk's last sample until the
session has written the chunk's words to the terminal; 7.5 ms of it is the window of the chunk's last feature frame,
rounded up to the next block of 10 ms. The driver's own buffer comes before, and is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from edge_asr.audio import load_audio
from edge_asr.capture import BLOCK_MS
from edge_asr.listen import TerminalDisplay
from edge_asr.live import LiveSession
from edge_asr.meters import LatencyHistogram
from edge_asr.microphone import Microphone
from edge_asr.recognizer import Recognizer
from edge_asr.screen import Screen

SAMPLES = Path(__file__).parent.parent / "samples"
PAUSE_S = 1.5  # between two clips
NO_FLAGS = SimpleNamespace(input_overflow=False)


class TimedMicrophone(Microphone):
    """Times each callback."""

    def __init__(self, *args, **options) -> None:
        self.callback_times = LatencyHistogram()
        super().__init__(*args, **options)

    def _on_audio(self, frames, n_frames, time_info, status) -> None:
        began = time.perf_counter()
        super()._on_audio(frames, n_frames, time_info, status)
        self.callback_times.add(time.perf_counter() - began)


class PlayedMicrophone(TimedMicrophone):
    """Its PortAudio is a thread that calls back every 10 ms with the next frames (n, channels)."""

    def __init__(self, samples: np.ndarray, rate_hz: int, n_channels: int) -> None:
        self._samples = np.tile(samples[:, None], (1, n_channels))
        self._shape = rate_hz, n_channels
        super().__init__()

    def _open(self) -> None:
        rate_hz, self.n_channels = self._shape
        self.name, self.latency_s = "played samples", 0.0
        self.device = SimpleNamespace(name=self.name)
        self._restart(rate_hz)
        self._weights = np.full(self.n_channels, 1 / self.n_channels, np.float32)
        self._mono = np.zeros(rate_hz * BLOCK_MS // 1000, np.float32)
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._over = False

    @property
    def is_over(self) -> bool:
        return self._over

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._thread.join()

    def wait(self, seconds: float) -> None:
        self.pause(seconds)

    def _play(self) -> None:
        n_block = len(self._mono)
        began_s = time.perf_counter()
        for first in range(0, len(self._samples) - n_block + 1, n_block):
            time.sleep(max(0.0, began_s + (first + n_block) / self.rate_hz - time.perf_counter()))
            self._on_audio(self._samples[first : first + n_block], n_block, None, NO_FLAGS)
        self._over = True


def speech(seconds: float) -> np.ndarray:
    """(n,) float32 at 16 kHz: the samples one after the other, over and over."""
    pause = np.zeros(int(PAUSE_S * 16_000), np.float32)
    clips = [load_audio(path) for path in sorted(SAMPLES.glob("*.wav")) + sorted(SAMPLES.glob("*.flac"))]
    once = np.concatenate([part for clip in clips for part in (clip, pause)])
    return np.resize(once, int(seconds * 16_000))


def measure(microphone: TimedMicrophone, recognizer: Recognizer, seconds: float) -> dict[str, float]:
    master, slave = os.openpty()
    reader = threading.Thread(target=drain, args=[master], daemon=True)
    reader.start()
    with os.fdopen(slave, "w", encoding="utf-8") as terminal, microphone:
        display = TerminalDisplay(Screen(terminal, terminal))
        session = LiveSession(recognizer, microphone)
        for event in session.events():
            display.show(event)
            if session.audio_s >= seconds:
                session.stop()
        display.close()
    figures, callback = session.figures, microphone.callback_times
    return {
        "audio_s": figures.audio_s,
        "callback_p50_us": 1e6 * callback.quantile(0.5),
        "callback_p99_us": 1e6 * callback.quantile(0.99),
        "callback_max_us": 1e6 * callback.quantile(1.0),
        "n_callbacks": callback.n,
        "latency_p50_ms": figures.latency_p50_ms,
        "latency_p99_ms": figures.latency_p99_ms,
        "latency_max_ms": figures.latency_max_ms,
        "n_chunks": figures.n_chunks,
        "rtf": figures.rtf,
        "driver_latency_ms": 1000 * microphone.latency_s,
        "n_overflows": figures.n_overflows,
        "n_dropped": figures.n_dropped,
        "taken_back_percent": figures.taken_back_percent,
    }


def drain(master: int) -> None:
    """A terminal that reads at once."""
    try:
        while os.read(master, 65_536):
            pass
    except OSError:  # the other end is closed
        os.close(master)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=50, help="of audio for each of the two settings")
    parser.add_argument("--model", default=None)
    parser.add_argument("--chunk-ms", type=int, default=320)
    parser.add_argument("--device", help="measure on this microphone instead of the played samples")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each setting")
    options = parser.parse_args()
    named = {} if options.model is None else {"model": options.model}
    recognizer = Recognizer(chunk_ms=options.chunk_ms, **named)
    if options.device is not None:
        settings = {options.device: TimedMicrophone(options.device)}
    else:
        samples = speech(options.seconds)
        settings = {
            "16 kHz mono": PlayedMicrophone(samples, 16_000, 1),
            "48 kHz stereo": PlayedMicrophone(np.repeat(samples, 3), 48_000, 2),
        }
    for name, microphone in settings.items():
        result = measure(microphone, recognizer, options.seconds)
        if options.json:
            print(json.dumps({"setting": name, "chunk_ms": options.chunk_ms, **result}))
            continue
        print(
            "{0}, chunks of {1} ms: callback p50 {callback_p50_us:.0f}, p99 {callback_p99_us:.0f}, max "
            "{callback_max_us:.0f} µs ({n_callbacks} callbacks); chunk to screen p50 {latency_p50_ms:.1f}, p99 "
            "{latency_p99_ms:.1f}, max {latency_max_ms:.1f} ms ({n_chunks} chunks); RTF {rtf:.3f}; {n_overflows} "
            "overruns, {n_dropped} dropped; driver's buffer {driver_latency_ms:.0f} ms; {taken_back_percent:.1f} % of "
            "shown words taken back".format(name, options.chunk_ms, **result)
        )


if __name__ == "__main__":
    main()
