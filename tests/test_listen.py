"""`edge-asr listen`: what a terminal sees, what a pipe gets, how it ends."""

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
from fake_microphone import FakeSounddevice
from hypothesis import given
from hypothesis import strategies as st
from tones import speak

from edge_asr.cli import main
from edge_asr.live import Disconnected, Figures, Loss, Progress
from edge_asr.recognizer import Segment
from edge_asr.screen import CLOCK_WIDTH, ERASE_LIVE, SHOW_CURSOR, Screen, clock, tail

ESCAPES = re.compile(r"\x1b\[[?0-9;]*[A-Za-z]")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "speech.wav"
    soundfile.write(path, speak("turn on"), 16_000)
    return path


def progress(**changed) -> Progress:
    return Progress(
        **{"audio_s": 12.34, "level_db": -20, "peak_db": -9, "ring_fill": 0.02, "latency_ms": 18, "rtf": 0.06,
           "zeros_s": 0, **changed}
    )  # fmt: skip


def segment(text: str, start: float = 3.2, is_final: bool = True) -> Segment:
    return Segment(start, start + 1, text, (), is_final)


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


# --- a pipe --------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_finals_only_and_stderr_the_summary(tone_model, clip, capsys):
    assert main(["listen", "--model", str(tone_model), "--from-file", str(clip)]) == 0
    out, err = capsys.readouterr()
    assert out == "turn on\n"
    assert "listening to speech.wav at 16000 Hz" in err
    assert re.search(r"1\.\d s of audio, 1 segments, RTF .*0 overruns, 0 samples dropped, 0 gaps", err)


def test_quiet_leaves_only_the_words(tone_model, clip, capsys):
    assert main(["listen", "--quiet", "--model", str(tone_model), "--from-file", str(clip)]) == 0
    assert capsys.readouterr() == ("turn on\n", "")


def test_json_lines_tell_everything(tone_model, clip, capsys):
    options = ["--json", "--partials", "--model", str(tone_model), "--from-file", str(clip)]
    assert main(["listen", *options]) == 0
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert [event["type"] for event in events if event["type"] != "partial"] == ["listening", "final", "summary"]
    partials = [event["text"] for event in events if event["type"] == "partial"]
    assert partials
    assert all("turn on".startswith(text) for text in partials)
    final, summary = events[-2:]
    assert final["text"] == "turn on"
    assert [word["word"] for word in final["words"]] == ["turn", "on"]
    assert summary["audio_s"] == pytest.approx(soundfile.info(clip).duration, abs=1e-3)
    assert summary["n_dropped"] == summary["n_overflows"] == 0
    assert {"latency_p50_ms", "latency_p99_ms", "rtf", "taken_back_percent"} <= set(summary)


def test_json_tells_of_losses_and_of_a_device_that_went_away(capsys):
    from edge_asr.listen import JsonDisplay

    display = JsonDisplay(partials=False)
    for event in (progress(), segment("on", is_final=False), Loss(1, 2, "x"), Disconnected(3, "y", 30)):
        display.show(event)
    display.summary(Figures())
    kinds = [json.loads(line)["type"] for line in capsys.readouterr().out.splitlines()]
    assert kinds == ["listening", "loss", "disconnected", "summary"]


def test_a_grammar_narrows_what_is_heard(tone_model, clip, tmp_path, capsys):
    grammar = tmp_path / "grammar.txt"
    grammar.write_text("turn (on | off)\n")
    options = ["--quiet", "--model", str(tone_model), "--from-file", str(clip), "--grammar", str(grammar)]
    assert main(["listen", *options]) == 0
    assert capsys.readouterr().out in ("turn on\n", "turn off\n")


def test_what_was_heard_is_saved(tone_model, clip, tmp_path, capsys):
    saved = tmp_path / "heard.wav"
    assert main(["listen", "--model", str(tone_model), "--from-file", str(clip), "--save-audio", str(saved)]) == 0
    heard, rate_hz = soundfile.read(saved, dtype="float32")
    assert rate_hz == 16_000
    assert (heard == soundfile.read(clip, dtype="float32")[0]).all()
    capsys.readouterr()
    assert main(["transcribe", "--quiet", "--model", str(tone_model), str(saved)]) == 0
    assert capsys.readouterr().out == "turn on\n"


def test_endpoint_rules_go_by_their_known_names(tone_model, clip, capsys):
    options = ["--model", str(tone_model), "--from-file", str(clip), "--rule2-min-trailing-silence", "0"]
    assert main(["listen", *options]) == 2
    assert "rule2_min_trailing_silence must be more than 0 seconds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "exit_code", "said"),
    [
        (["--from-file", "no such file.wav"], 11, "cannot be opened"),
        (["--from-file", "CLIP", "--model", "no such model"], 21, "no model"),
        (["--from-file", "CLIP", "--save-audio", "heard.mp3"], 2, r"ends in \.wav"),
        (["--from-file", "CLIP", "--chunk-ms", "50"], 2, "multiple of 40 ms"),
        (["--from-file", "CLIP", "--ring-s", "0"], 2, "at least 1 sample"),
    ],
)
def test_errors_say_what_is_wrong_before_anything_is_heard(tone_model, clip, capsys, options, exit_code, said):
    options = [str(clip) if option == "CLIP" else option for option in options]
    if "--model" not in options:
        options += ["--model", str(tone_model)]
    assert main(["listen", *options]) == exit_code
    out, err = capsys.readouterr()
    assert out == ""
    assert re.search(said, err)


def test_without_a_microphone_the_command_says_so(monkeypatch, tone_model, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSounddevice([]))
    assert main(["listen", "--model", str(tone_model)]) == 51
    assert main(["devices"]) == 51
    assert capsys.readouterr().err.count("needs a microphone, this machine shows none") == 2


def test_devices_are_listed_with_a_mark_at_the_default(monkeypatch, capsys):
    inputs = [("Webcam", 1, 48_000), ("USB", 2, 44_100)]
    monkeypatch.setitem(sys.modules, "sounddevice", FakeSounddevice(inputs, default=1))
    assert main(["devices"]) == 0
    assert capsys.readouterr().out == (
        "   0  Webcam  (Fake API, 48000 Hz, 1 channel)\n*  1  USB  (Fake API, 44100 Hz, 2 channels)\n"
    )
    assert main(["devices", "--json"]) == 0
    assert [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()] == ["Webcam", "USB"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_last_words_and_exits_0(tone_model, tmp_path, number):
    path = tmp_path / "long.wav"
    soundfile.write(path, speak("turn on the light", tail_s=60), 16_000)
    command = [sys.executable, "-m", "edge_asr.cli", "listen", "--json", "--partials", "--model", str(tone_model)]
    with subprocess.Popen(
        [*command, "--rule2-min-trailing-silence", "inf", "--rule1-min-trailing-silence", "inf",
         "--from-file", str(path)], stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        for line in process.stdout:
            if json.loads(line).get("text") == "turn on the light":
                break
        process.send_signal(number)
        *_, final, summary = map(json.loads, process.stdout)
        assert process.wait() == 0
    assert (final["type"], final["text"]) == ("final", "turn on the light")
    assert summary["audio_s"] < 30


# --- a terminal ----------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Terminal()


def on_screen(written: str) -> list[str]:
    """The lines that a terminal shows after this was written, by the few sequences that the screen uses."""
    rows, row = [""], 0
    for part in re.split(r"(\r\x1b\[1A\x1b\[J|\x1b\[[?0-9;]*[A-Za-z]|\n)", written):
        if part == ERASE_LIVE:
            row -= 1
            rows = [*rows[:row], ""]
        elif part == "\n":
            row += 1
            rows = [*rows[:row], ""]
        elif not ESCAPES.fullmatch(part):
            rows[row] += part
    return [line.rstrip() for line in rows]


def test_the_live_lines_rewrite_themselves_and_finals_stay(terminal):
    screen = Screen(terminal, terminal)
    screen.notice("listening")
    screen.progress(progress())
    screen.partial(segment("turn of", is_final=False))
    screen.partial(segment("turn on the", is_final=False))
    rows = on_screen(terminal.getvalue())
    assert rows[:2] == ["listening", f"{' ' * CLOCK_WIDTH}  turn on the"]
    assert rows[2] == "   0:12.3  █████████▍····  -20 dB │ ring   2 % │ chunk  18 ms │ RTF 0.060"
    screen.final(segment("turn on the light"))
    screen.progress(progress(audio_s=14))
    rows = on_screen(terminal.getvalue())
    assert rows[:2] == ["listening", "   0:03.2  turn on the light"]
    assert rows[2] == ""
    screen.close()
    assert on_screen(terminal.getvalue()) == ["listening", "   0:03.2  turn on the light", ""]
    assert terminal.getvalue().endswith(SHOW_CURSOR)


def test_finals_go_to_a_pipe_while_the_terminal_shows_the_rest(terminal):
    pipe = io.StringIO()
    screen = Screen(terminal, pipe)
    screen.progress(progress())
    screen.final(segment("turn on"))
    screen.close()
    assert pipe.getvalue() == "turn on\n"
    assert "turn on" not in terminal.getvalue()


@pytest.mark.parametrize("columns", [20, 30, 50, 80, 200])
def test_live_lines_never_wrap(monkeypatch, terminal, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    screen = Screen(terminal, terminal)
    screen.progress(progress(audio_s=36_123.4, level_db=-120, latency_ms=12_345.6, rtf=12.3456))
    screen.partial(segment("word " * 60, is_final=False))
    for line in re.split(r"[\r\n]", ESCAPES.sub("", terminal.getvalue())):
        assert len(line) < columns


def test_the_meter_follows_the_level_and_warns_of_clipping(terminal):
    screen = Screen(terminal, terminal)
    lengths = []
    for level_db in (-120, -60, -40, -20, -6, 0, 3):
        bar = ESCAPES.sub("", screen._meter(progress(level_db=level_db)))
        assert len(bar) == 14
        lengths.append(sum(cell != "·" for cell in bar))
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (0, 14)
    assert "\x1b[31m" in screen._meter(progress(peak_db=-1))
    assert "\x1b[31m" not in screen._meter(progress(peak_db=-6))


def test_no_color_and_a_terminal_without_unicode_are_respected(monkeypatch, terminal):
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    screen = Screen(terminal, terminal)
    screen.progress(progress())
    screen.partial(segment("word " * 60, is_final=False))
    assert terminal.getvalue().isascii()
    assert not re.search(r"\x1b\[\d+m", terminal.getvalue())


def test_a_muted_microphone_is_told_once(terminal, monkeypatch):
    from edge_asr import listen

    monkeypatch.setattr(sys, "stderr", terminal)
    display = listen.TerminalDisplay(Screen(terminal, terminal))
    for zeros_s in (4, 6, 8):
        display.show(progress(zeros_s=zeros_s))
    assert terminal.getvalue().count("is it muted") == 1


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "   0:00.0"), (75.29, "   1:15.2"), (3_600, "1:00:00.0"), (35_999.99, "9:59:59.9")]
)
def test_clock_times_line_up(seconds, told):
    assert clock(seconds) == told


@given(st.text("ab ", max_size=60), st.integers(0, 40))
def test_a_text_that_does_not_fit_shows_its_end(text, width):
    shown = tail(text, width, "…")
    assert len(shown) <= max(width, 0) or shown == text
    if len(text) > width > 2 and not text.endswith(" "):
        assert text.endswith(shown.removeprefix("…").lstrip())


def test_listening_takes_as_long_as_the_recording(tone_model, clip):
    began = time.monotonic()
    assert main(["listen", "--quiet", "--model", str(tone_model), "--from-file", str(clip)]) == 0
    assert time.monotonic() - began >= soundfile.info(clip).duration
