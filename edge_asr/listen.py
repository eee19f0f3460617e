"""edge-asr listen and edge-asr devices: the live microphone on a terminal, or as lines for a program.

stdout is the transcript, stderr is status: a pipe gets finals only, a terminal also the words as they change.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from edge_asr.capture import DEFAULT_RING_S, Capture, FilePlayer
from edge_asr.cli import add_recognizer_options, recognizer_options
from edge_asr.endpoint import EndpointRules
from edge_asr.errors import INTERRUPTED_EXIT_CODE, EdgeAsrError
from edge_asr.live import RECONNECT_S, Disconnected, Event, Figures, LiveSession, Loss, Progress
from edge_asr.microphone import DRIVER_LATENCY_S, Microphone, list_devices
from edge_asr.recognizer import DEFAULT_CHUNK_MS, Recognizer, Segment
from edge_asr.recording import Recording
from edge_asr.runtime import FRAME_SHIFT_MS
from edge_asr.screen import Screen, can_draw

MUTED_S = 5.0  # of nothing but zeros: real microphones are never that quiet


class Display(Protocol):
    def show(self, event: Event) -> None: ...

    def notice(self, text: str) -> None: ...

    def summary(self, figures: Figures) -> None: ...

    def close(self) -> None: ...


def main(argv: Sequence[str] | None = None) -> int:
    """`edge-asr listen`; returns its exit code. Raises: EdgeAsrError."""
    options = build_parser().parse_args(argv)
    with ExitStack() as opened:
        recording = opened.enter_context(Recording(options.save_audio)) if options.save_audio else None
        capture = opened.enter_context(_open_capture(options))  # first: it fails at once, a graph loads for seconds
        display = _display(options)
        display.notice("loading the model …")
        recognizer = Recognizer(endpoint=_endpoint_rules(options), **recognizer_options(options))
        session = LiveSession(recognizer, capture, options.stable, options.reconnect_s, recording)
        opened.callback(display.close)
        opened.enter_context(_stop_on_signals(session))
        display.notice(_greeting(recognizer, capture))
        try:
            for event in session.events():
                display.show(event)
        finally:
            display.close()
            display.summary(session.figures)
        if isinstance(capture, FilePlayer) and capture.damage is not None:
            display.notice(f"warning: {options.from_file}: {capture.damage}; the text ends there")
    return 0


def devices_main(argv: Sequence[str] | None = None) -> int:
    """`edge-asr devices`; returns its exit code. Raises: EdgeAsrError."""
    parser = argparse.ArgumentParser("edge-asr devices", description="List the microphones; * marks the default.")
    parser.add_argument("--json", action="store_true", help="one JSON object for each")
    options = parser.parse_args(argv)
    for device in list_devices():
        if options.json:
            print(json.dumps(asdict(device)))
        else:
            mark = "*" if device.is_default else " "
            channels = "1 channel" if device.n_channels == 1 else f"{device.n_channels} channels"
            print(f"{mark} {device.index:2d}  {device.name}  ({device.host_api}, {device.rate_hz} Hz, {channels})")
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "edge-asr listen", description="Live transcription of a microphone. Ctrl-C finishes the last words and ends."
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--device", help="index or part of the name of a microphone (see edge-asr devices)")
    source.add_argument("--from-file", type=Path, metavar="FILE", help="play a recording at real time instead")
    parser.add_argument("--save-audio", type=Path, metavar="FILE.wav", help="keep what was heard, as the model got it")
    parser.add_argument("--json", action="store_true", help="events as JSON lines on stdout")
    parser.add_argument("--partials", action="store_true", help="with --json: partial texts too")
    parser.add_argument("--quiet", action="store_true", help="no live line, greeting and summary; errors only")
    parser.add_argument(
        "--stable", type=int, default=0, metavar="CHUNKS",
        help="show a word once it has stayed for so many chunks more (default 0: at once)",
    )  # fmt: skip
    add_recognizer_options(parser, DEFAULT_CHUNK_MS, str(DEFAULT_CHUNK_MS))
    for field in fields(EndpointRules):
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=float, metavar="S", help=f"endpoint rule (default {field.default} s)")
    parser.add_argument(
        "--ring-s", type=float, default=DEFAULT_RING_S, help="audio kept while the recogniser is busy (default 10 s)"
    )
    parser.add_argument(
        "--on-overflow", choices=("drop-oldest", "fail"), default="drop-oldest", help="when that is not enough"
    )
    parser.add_argument(
        "--reconnect-s", type=float, default=RECONNECT_S, help="wait for an unplugged device (default 30 s)"
    )
    parser.add_argument(
        "--driver-latency-s", type=float, default=DRIVER_LATENCY_S,
        help="buffer asked of the audio driver (default 0.1 s); more on a slow device",
    )  # fmt: skip
    return parser


def _endpoint_rules(options: argparse.Namespace) -> EndpointRules:
    named = {field.name: getattr(options, field.name) for field in fields(EndpointRules)}
    return EndpointRules(**{name: seconds for name, seconds in named.items() if seconds is not None})


def _open_capture(options: argparse.Namespace) -> Capture:
    if options.from_file is not None:
        return FilePlayer(options.from_file, options.ring_s, options.on_overflow)
    return Microphone(options.device, options.ring_s, options.on_overflow, options.driver_latency_s)


def _greeting(recognizer: Recognizer, capture: Capture) -> str:
    lookahead_ms = recognizer.session.info.lookahead_frames * FRAME_SHIFT_MS
    return (
        f"listening to {capture.name} at {capture.rate_hz} Hz with {recognizer.name} {recognizer.precision} "
        f"({recognizer.decoder_kind} search, {recognizer.chunk_ms} + {lookahead_ms} ms); Ctrl-C ends"
    )


@contextmanager
def _stop_on_signals(session: LiveSession) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) finishes the last words, the second ends at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        session.stop()
        for each in before:
            signal.signal(each, leave)

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(INTERRUPTED_EXIT_CODE)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# --- what is shown -------------------------------------------------------------------------------------------------


def _display(options: argparse.Namespace) -> Display:
    if options.json:
        return JsonDisplay(options.partials)
    if not options.quiet and can_draw(sys.stderr):
        return TerminalDisplay(Screen(sys.stderr, sys.stdout))
    return PlainDisplay(options.quiet)


class PlainDisplay:
    """Finals on stdout, the rest as lines on stderr."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet
        self._warned_of_silence = False

    def show(self, event: Event) -> None:
        match event:
            case Segment(is_final=True):
                print(event.text, flush=True)
            case Loss() | Disconnected():
                self._tell(f"warning: {describe(event)}")
            case Progress() if event.zeros_s > MUTED_S and not self._warned_of_silence:
                self._warned_of_silence = True
                self.notice(f"warning: {MUTED}")

    def notice(self, text: str) -> None:
        if not self._quiet:
            self._tell(text)

    def summary(self, figures: Figures) -> None:
        self.notice(summary_text(figures))

    def close(self) -> None:
        pass

    @staticmethod
    def _tell(text: str) -> None:
        print(f"edge-asr: {text}", file=sys.stderr, flush=True)


class TerminalDisplay:
    """The live screen."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._warned_of_silence = False

    def show(self, event: Event) -> None:
        match event:
            case Segment(is_final=True):
                self._screen.final(event)
            case Segment():
                self._screen.partial(event)
            case Progress():
                self._screen.progress(event)
                if event.zeros_s > MUTED_S and not self._warned_of_silence:
                    self._warned_of_silence = True
                    self._screen.notice(MUTED)
            case _:
                self._screen.notice(describe(event))

    def notice(self, text: str) -> None:
        self._screen.notice(text, "dim")

    def summary(self, figures: Figures) -> None:
        self._screen.notice(summary_text(figures), "dim")

    def close(self) -> None:
        self._screen.close()


class JsonDisplay:
    """One JSON object for each event, `type` first."""

    def __init__(self, partials: bool) -> None:
        self._partials = partials
        self._began = False

    def show(self, event: Event) -> None:
        if not self._began:  # something was heard: a slow device may take seconds to wake up
            self._began = True
            self._print("listening")
        match event:
            case Segment(is_final=True):
                words = [_rounded({"word": word.text, **asdict(word)}) for word in event.words]
                for word in words:
                    del word["text"]
                self._print("final", start=event.start, end=event.end, text=event.text, words=words)
            case Segment() if self._partials:
                self._print("partial", start=event.start, end=event.end, text=event.text)
            case Loss():
                self._print("loss", **asdict(event))
            case Disconnected():
                self._print("disconnected", **asdict(event))

    def notice(self, text: str) -> None:
        """A program wants events, not sentences."""

    def summary(self, figures: Figures) -> None:
        self._print("summary", **asdict(figures), rtf=figures.rtf, taken_back_percent=figures.taken_back_percent)

    def close(self) -> None:
        pass

    @staticmethod
    def _print(kind: str, **values: Any) -> None:
        print(json.dumps({"type": kind, **_rounded(values)}), flush=True)


MUTED = (
    "the microphone sends nothing but zeros: is it muted, or may this program not use it? "
    "(macOS: System Settings > Privacy & Security > Microphone)"
)


def describe(event: Loss | Disconnected) -> str:
    if isinstance(event, Loss):
        return f"lost {event.end - event.start:.2f} s of audio from {event.start:.2f} s on: {event.reason}"
    retrying = f"; trying for {event.retry_s:.0f} s to open it again" if event.retry_s else ""
    return f"at {event.at:.2f} s: {event.reason}{retrying}"


def summary_text(figures: Figures) -> str:
    return (
        f"{figures.audio_s:.1f} s of audio, {figures.n_finals} segments, RTF {figures.rtf:.4f}; "
        f"chunk latency p50 {figures.latency_p50_ms:.1f} ms, p99 {figures.latency_p99_ms:.1f} ms; "
        f"{figures.n_overflows} overruns, {figures.n_dropped} samples dropped, {figures.n_losses} gaps, "
        f"ring at most {100 * figures.max_ring_fill:.0f} % full; "
        f"{figures.n_words_taken_back} of {figures.n_words_shown} shown words taken back "
        f"({figures.taken_back_percent:.1f} %)"
        + (f"; {figures.n_replaced} damaged samples taken as silence" if figures.n_replaced else "")
    )


def _rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgeAsrError as error:
        print(f"edge-asr: error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
