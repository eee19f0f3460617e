"""Make the sample clips and their manifest from texts, with the free synthesisers espeak-ng and flite.

    python samples/make_samples.py            (Debian: apt-get install espeak-ng flite)

Every random number is seeded, so the same versions of the synthesisers give the same clips.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import soxr

HERE = Path(__file__).resolve().parent
PEAK = 0.5


class Clip(NamedTuple):
    name: str  # the suffix chooses the container
    voice: str  # "flite:slt", "espeak:en-us+f3"
    text: str
    rate_hz: int = 16_000
    snr_db: float | None = None  # with noise at this ratio, or clean
    n_channels: int = 1


CLIPS = [
    Clip("sentence-weather.flac", "flite:slt", "the weather will be warm and sunny tomorrow afternoon"),
    Clip("sentence-train.wav", "flite:rms", "the last train to the city leaves at half past eleven"),
    Clip("sentence-garden.ogg", "flite:awb", "she planted roses and tulips along the garden wall"),
    Clip("sentence-letter.flac", "flite:slt", "he wrote a long letter to his brother in the country", 44_100, None, 2),
    Clip("sentence-river.wav", "flite:rms", "we walked along the river until it was too dark to see", 22_050),
    Clip("sentence-kitchen.mp3", "flite:slt", "there is fresh bread and butter on the kitchen table", 44_100),
    Clip("sentence-story.opus", "espeak:en-us+f3", "the old man told the children a story about the sea", 48_000),
    Clip("sentence-door.flac", "espeak:en-us", "please close the door when you leave the house"),
    Clip("noisy-sentence-market.flac", "flite:slt", "the market was full of people from every village", 16_000, 15),
    Clip("noisy-sentence-morning.ogg", "flite:rms", "every morning he reads the news with a cup of coffee", 16_000, 15),
    Clip("noisy-sentence-snow.flac", "flite:awb", "the mountains were white with snow in the winter", 16_000, 10),
    Clip("command-lights.wav", "flite:slt", "turn on the lights in the kitchen"),
    Clip("command-music.flac", "flite:rms", "play some music in the living room"),
    Clip("command-alarm.ogg", "flite:awb", "set an alarm for seven in the morning"),
    Clip("command-timer.wav", "espeak:en-gb+m3", "set a timer for ten minutes"),
    Clip("command-volume.flac", "espeak:en-us+f2", "turn the volume down please", 32_000),
    Clip("noisy-command-fan.flac", "flite:slt", "turn off the fan in the bedroom", 16_000, 12),
    Clip("noisy-command-heating.ogg", "flite:rms", "what is the temperature outside", 16_000, 12),
    Clip("digits-slt.flac", "flite:slt", "zero one two three four five six seven eight nine"),
    Clip("digits-rms.wav", "flite:rms", "four seven one nine two zero", 8_000),
    Clip("digits-awb.ogg", "flite:awb", "eight three five one six two"),
    Clip("noisy-digits-slt.flac", "flite:slt", "nine zero four two seven three", 16_000, 12),
]


def synthesise(voice: str, text: str) -> tuple[np.ndarray, int]:
    """(n,) float32 and its sample rate."""
    engine, name = voice.split(":")
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder) / "speech.wav"
        if engine == "flite":
            command = ["flite", "-voice", name, "-t", text, "-o", str(wav)]
        else:
            command = ["espeak-ng", "-v", name, "-s", "150", "-w", str(wav), text]
        subprocess.run(command, check=True)
        return soundfile.read(wav, dtype="float32")


def room_noise(n_samples: int, rng: np.random.Generator) -> np.ndarray:
    """Noise that falls with frequency, as of a fan or a distant street."""
    spectrum = np.fft.rfft(rng.standard_normal(n_samples))
    hz = np.fft.rfftfreq(n_samples, 1 / 16_000)
    return np.fft.irfft(spectrum / np.maximum(hz, 60) ** 0.7, n_samples)


def render(clip: Clip, seed: int) -> np.ndarray:
    """(n,) or (n, channels) float32 at the clip's rate, with a little quiet before and after."""
    rng = np.random.default_rng(seed)
    speech, rate_hz = synthesise(clip.voice, clip.text)
    speech = soxr.resample(speech, rate_hz, 16_000)
    speech = np.concatenate([np.zeros(4_000), speech, np.zeros(6_400)])
    speech *= PEAK / np.abs(speech).max()
    noise = room_noise(len(speech), rng)
    snr_db = 50 if clip.snr_db is None else clip.snr_db  # a room is never digitally silent
    spoken_power = np.mean(speech[4_000:-6_400] ** 2)
    noise *= np.sqrt(spoken_power / np.mean(noise**2) / 10 ** (snr_db / 10))
    samples = soxr.resample((speech + noise).astype(np.float32), 16_000, clip.rate_hz)
    if clip.n_channels == 2:  # two microphones: the second a little weaker
        return np.stack([samples, 0.7 * samples], axis=1)
    return samples


def write(clip: Clip, samples: np.ndarray) -> None:
    path = HERE / clip.name
    formats = {".opus": ("OGG", "OPUS"), ".mp3": ("MP3", "MPEG_LAYER_III"), ".ogg": ("OGG", "VORBIS")}
    container, subtype = formats.get(path.suffix, (path.suffix[1:].upper(), "PCM_16"))
    soundfile.write(path, samples, clip.rate_hz, format=container, subtype=subtype)


def main() -> None:
    rows = []
    for seed, clip in enumerate(CLIPS):
        samples = render(clip, seed)
        write(clip, samples)
        rows.append(
            {
                "audio_filepath": clip.name,
                "duration": round(len(samples) / clip.rate_hz, 3),
                "text": clip.text,
                "speaker": clip.voice,
                "source": clip.name.rsplit("-", 1)[0],
            }
        )
    manifest = HERE / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    n_bytes = sum((HERE / clip.name).stat().st_size for clip in CLIPS)
    print(f"{len(rows)} clips, {sum(row['duration'] for row in rows):.0f} s, {n_bytes / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
