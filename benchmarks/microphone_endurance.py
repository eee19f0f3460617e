"""A simulated day at the microphone: flat memory, no drift, and ears as good after any trouble as before.

A fake device sends blocks of 10 ms at true cadence on a clock that runs as fast as the recogniser can follow. Every ten
minutes someone says one of the samples; in between there is a quiet room.

    python benchmarks/microphone_endurance.py [--json] [--hours 8] [--model NAME] [--decoder greedy]

Memory: resident set, largest less smallest after the first `WARM_UP` of the session. Drift: of the seconds of audio
against the fake device's clock, and of the time at which the sample is heard against when it was spoken, first to last.
Recovery: a sample after a NaN, ten seconds of full-scale noise and an hour of digital silence (a sixth of `--hours` if
that is less), against the same sample after a quiet room.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edge_asr.audio import SAMPLE_RATE, load_audio
from edge_asr.capture import BLOCK_MS, Capture
from edge_asr.live import LiveSession, Progress
from edge_asr.recognizer import Recognizer, Segment

CLIP = Path(__file__).parent.parent / "samples" / "sentence-river.wav"
EVERY_S = 600
WARM_UP = 0.125  # of the session
ROOM_LEVEL = 1e-3  # −60 dB
STEP_S = 0.3  # the consumer looks this rarely, to save time; the ring has room for 10 s
BLOCK = SAMPLE_RATE * BLOCK_MS // 1000


class FakeDevice(Capture):
    """`sound(first, n)` gives the samples from position `first` on; its clock moves as the consumer waits."""

    name = "fake device"

    def __init__(self, sound: Callable[[int, int], np.ndarray], seconds: float) -> None:
        super().__init__(SAMPLE_RATE)
        self._sound, self._n_total = sound, int(seconds * SAMPLE_RATE)
        self._clock_s = 0.0

    @property
    def is_over(self) -> bool:
        return self.ring.n_captured >= self._n_total

    def now_s(self) -> float:
        return self._clock_s

    def pause(self, seconds: float) -> None:
        self._clock_s += max(seconds, STEP_S)
        while not self.is_over and (self.ring.n_captured + BLOCK) / SAMPLE_RATE <= self._clock_s:
            self.push(self._sound(self.ring.n_captured, BLOCK))


def quiet_room(seed: int = 1) -> np.ndarray:
    """A second of it."""
    return (ROOM_LEVEL * np.random.default_rng(seed).standard_normal(SAMPLE_RATE)).astype(np.float32)


def day(clip: np.ndarray) -> Callable[[int, int], np.ndarray]:
    room = quiet_room()

    def sound(first: int, n: int) -> np.ndarray:
        samples = room[first % SAMPLE_RATE : first % SAMPLE_RATE + n]
        at = first % (EVERY_S * SAMPLE_RATE) - SAMPLE_RATE  # a second after each ten minutes began
        if 0 <= at < len(clip):
            spoken = clip[at : at + n]
            samples = samples.copy()
            samples[: len(spoken)] += spoken
        return samples

    return sound


def resident_mb() -> float:
    """Linux only."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


def endure(recognizer: Recognizer, hours: float) -> dict[str, float]:
    seconds = 3600 * hours
    device = FakeDevice(day(load_audio(CLIP)), seconds)
    session = LiveSession(recognizer, device)
    memory_mb: list[float] = []
    next_s, finals, began = WARM_UP * seconds, [], time.perf_counter()
    for event in session.events():
        if isinstance(event, Segment) and event.is_final:
            finals.append(event)
        elif isinstance(event, Progress) and event.audio_s >= next_s:
            memory_mb.append(resident_mb())
            next_s += seconds / 200
    phases = [segment.start % EVERY_S for segment in finals]
    figures = session.figures
    return {
        "hours": hours,
        "wall_s": time.perf_counter() - began,
        "memory_start_mb": memory_mb[0],
        "memory_end_mb": memory_mb[-1],
        "memory_range_mb": max(memory_mb) - min(memory_mb),
        "n_finals": len(finals),
        "n_texts": len({segment.text for segment in finals}),
        "time_drift_ms": 1000 * (phases[-1] - phases[0]) if phases else float("nan"),
        "sample_drift": figures.audio_s * SAMPLE_RATE - device.ring.n_captured,
        "n_dropped": figures.n_dropped,
        "rtf": figures.rtf,
    }


def recover(recognizer: Recognizer, silence_s: float) -> dict[str, str]:
    """The text of the clip after each trouble."""
    clip, room = load_audio(CLIP), np.tile(quiet_room(), 3)
    noise = np.random.default_rng(2).uniform(-1, 1, 10 * SAMPLE_RATE).astype(np.float32)
    troubles = {
        "quiet room": room,
        "one NaN": np.concatenate([[np.float32(np.nan)], room]),
        "10 s of full-scale noise": np.concatenate([noise, room]),
        f"{silence_s / 60:.0f} min of digital silence": np.zeros(int(silence_s * SAMPLE_RATE), np.float32),
    }
    texts = {}
    for name, trouble in troubles.items():
        audio = np.concatenate([room, clip, trouble, clip, room])
        audio = audio[: len(audio) // BLOCK * BLOCK]
        device = FakeDevice(lambda first, n, audio=audio: audio[first : first + n], len(audio) / SAMPLE_RATE)
        begin_s = (len(room) + len(clip) + len(trouble)) / SAMPLE_RATE
        heard = [segment for segment in LiveSession(recognizer, device) if segment.is_final]
        texts[name] = " ".join(word.text for segment in heard for word in segment.words if word.start >= begin_s - 0.2)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=8)
    parser.add_argument("--model", default=None)
    parser.add_argument("--decoder", choices=("graph", "greedy"))
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    named = {} if options.model is None else {"model": options.model}
    recognizer = Recognizer(decoder=options.decoder, **named)
    result = endure(recognizer, options.hours)
    texts = recover(recognizer, min(3600.0, 600 * options.hours))
    if options.json:
        print(json.dumps({**result, "after": texts}))
        return
    print(
        "{hours:g} hours in {wall_s:.0f} s: memory {memory_start_mb:.1f} MB after warm-up, {memory_end_mb:.1f} at the "
        "end, range {memory_range_mb:.2f}; drift {sample_drift:g} samples, {time_drift_ms:.1f} ms; {n_finals} finals "
        "of {n_texts} texts; {n_dropped} dropped; RTF {rtf:.4f}".format(**result)
    )
    for name, text in texts.items():
        print(f"after {name}: {text}")


if __name__ == "__main__":
    main()
