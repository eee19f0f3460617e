"""`edge-asr listen` on a real sound server: PortAudio, ALSA and PulseAudio, at real time."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import soundfile
from tones import speak
from virtual_microphone import VirtualMicrophone, what_is_missing

from edge_asr.metrics import word_errors
from edge_asr.model_files import DEFAULT_MODEL, installed_models
from edge_asr.recognizer import Recognizer

SAMPLES = Path(__file__).parent.parent / "samples"
SPOKEN_SAMPLES = ("sentence-river.wav", "command-lights.wav", "sentence-garden.ogg", "command-music.flac")
EVENT_S = 60.0  # longer than any wait for an event, on the slowest machine


@pytest.fixture
def microphone(capsys):
    missing = what_is_missing()
    if missing:
        with capsys.disabled():
            print(f"\n*** THE VIRTUAL MICROPHONE IS NOT TESTED: this machine lacks {missing} ***", file=sys.stderr)
        pytest.skip(f"needs {missing}")
    folder = Path(tempfile.mkdtemp(prefix="mic-", dir="/tmp"))  # the path of a Unix socket must be short
    try:
        with VirtualMicrophone(folder) as virtual:
            yield virtual
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Listening:
    """A running `edge-asr listen --json` and the events that it has printed."""

    def __init__(self, microphone: VirtualMicrophone, *options: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "edge_asr.cli", "listen", "--json", *options],
            env=microphone.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.stderr = ""
        self.events: list[dict] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.process.kill()
        self.leave()
        self.process.stdout.close()
        self.process.stderr.close()

    def _read(self) -> None:
        for line in self.process.stdout:
            with self._news:
                self.events.append(json.loads(line))
                self._news.notify_all()

    def wait_for(self, kind: str, n: int = 1) -> None:
        with self._news:
            if not self._news.wait_for(lambda: len(self.all(kind)) >= n, timeout=EVENT_S):
                raise AssertionError(f"no {kind!r} number {n} in {EVENT_S} s: {self.events}")

    def all(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["type"] == kind]

    def interrupt(self) -> dict:
        """Ctrl-C; the summary of a session that ended well."""
        self.process.send_signal(signal.SIGINT)
        assert self.leave() == 0, self.stderr
        (summary,) = self.all("summary")
        return summary

    def leave(self) -> int:
        """Wait for the end; its exit code."""
        if self._reader.is_alive() or not self.stderr:
            self._reader.join(EVENT_S)
            self.stderr = self.stderr or self.process.stderr.read()
        return self.process.wait(EVENT_S)


def hear(microphone: VirtualMicrophone, model: Path, clips: list[Path], saved: Path) -> tuple[list[str], dict]:
    """The utterances of a session into which the clips are spoken, one after the other; its summary."""
    with Listening(microphone, "--model", str(model), "--save-audio", str(saved)) as listening:
        listening.wait_for("listening")
        for clip in clips:
            n_before = len(listening.all("final"))
            microphone.play(clip)
            listening.wait_for("final", n_before + 1)
        summary = listening.interrupt()
    texts = [event["text"] for event in listening.all("final")]
    assert texts == [segment.text for segment in Recognizer(model).transcribe(saved)]
    return texts, summary


def assert_nothing_lost(summary: dict) -> None:
    assert {name: summary[name] for name in ("n_overflows", "n_dropped", "n_losses", "n_reconnects")} == dict.fromkeys(
        ("n_overflows", "n_dropped", "n_losses", "n_reconnects"), 0
    )


def test_the_microphone_hears_what_is_played(microphone, tone_model, tmp_path):
    sentences = ["turn on the light", "one two three four five", "turn off the light"]
    clips = []
    for i, sentence in enumerate(sentences):
        clips.append(tmp_path / f"{i}.wav")
        soundfile.write(clips[-1], speak(sentence), 16_000)
    texts, summary = hear(microphone, tone_model, clips, tmp_path / "heard.wav")
    assert texts == sentences
    assert_nothing_lost(summary)


@pytest.mark.skipif(DEFAULT_MODEL not in installed_models(), reason=f"model {DEFAULT_MODEL} is not in this checkout")
def test_the_microphone_hears_of_the_samples_what_transcribe_reads(microphone, tmp_path):
    model = installed_models()[DEFAULT_MODEL]
    recognizer = Recognizer(model)
    clips = []
    for name in SPOKEN_SAMPLES:
        clips.append(tmp_path / f"{Path(name).stem}.wav")
        samples, rate_hz = soundfile.read(SAMPLES / name)  # paplay knows fewer formats
        soundfile.write(clips[-1], samples, rate_hz, subtype="FLOAT")
    read = " ".join(segment.text for name in SPOKEN_SAMPLES for segment in recognizer.transcribe(SAMPLES / name))
    texts, summary = hear(microphone, model, clips, tmp_path / "heard.wav")
    # a busy machine may stutter while it plays, and other pauses may end the utterances
    assert word_errors(read, " ".join(texts)).n_errors <= 0.1 * len(read.split())
    assert_nothing_lost(summary)


def test_a_sound_server_that_dies_and_comes_back_is_survived(microphone, tone_model, tmp_path):
    clip = tmp_path / "speech.wav"
    soundfile.write(clip, speak("turn on the light"), 16_000)
    with Listening(microphone, "--model", str(tone_model), "--reconnect-s", "60") as listening:
        listening.wait_for("listening")
        microphone.play(clip)
        listening.wait_for("final")
        microphone.unplug()
        listening.wait_for("disconnected")
        microphone.plug_in()
        listening.wait_for("loss")
        microphone.play(clip)
        listening.wait_for("final", 2)
        summary = listening.interrupt()
    assert [event["text"] for event in listening.all("final")] == ["turn on the light"] * 2
    assert summary["n_reconnects"] == 1
    (loss,) = listening.all("loss")
    assert listening.all("final")[0]["end"] <= loss["start"] < loss["end"] <= listening.all("final")[1]["start"]


def test_a_sound_server_that_stays_away_ends_with_the_words_and_an_exit_code(microphone, tone_model, tmp_path):
    clip = tmp_path / "speech.wav"
    soundfile.write(clip, speak("turn on the light"), 16_000)
    with Listening(microphone, "--model", str(tone_model), "--reconnect-s", "1") as listening:
        listening.wait_for("listening")
        microphone.play(clip)
        microphone.unplug()
        assert listening.leave() == 51
    assert [event["text"] for event in listening.all("final")] == ["turn on the light"]
    assert "microphone" in listening.stderr


def test_the_virtual_device_is_listed_as_the_default(microphone):
    command = [sys.executable, "-m", "edge_asr.cli", "devices", "--json"]
    done = subprocess.run(command, env=microphone.environment, capture_output=True, text=True, check=True)
    (device,) = [json.loads(line) for line in done.stdout.splitlines()]
    assert device["name"] == "default"
    assert device["is_default"]
