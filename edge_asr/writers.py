"""Transcripts as txt, srt, vtt, tsv, json and jsonl, by the conventions that whisper made usual.

A writer turns a `Transcript` into text; `save` puts it on disk so that a reader never sees half a file.
Subtitles (srt, vtt) are cut and laid out by a `Layout`; txt, tsv and json keep the segments as they were recognised.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_asr.errors import OutputError
from edge_asr.sources import portable
from edge_asr.subtitles import Cue, Layout, cues

if TYPE_CHECKING:
    from edge_asr.recognizer import Segment

LANGUAGE = "en"
DEFAULT_LAYOUT = Layout()


@dataclass(frozen=True)
class Transcript:
    """What was said in one recording."""

    audio_filepath: str
    duration: float  # s
    segments: Sequence[Segment]
    model: str = ""

    @property
    def text(self) -> str:
        return " ".join(segment.text for segment in self.segments if segment.text)


def clock(milliseconds: int, decimal_mark: str, always_hours: bool) -> str:
    """12346 → 00:12.346, or 00:00:12,346 with hours."""
    hours, milliseconds = divmod(max(0, milliseconds), 3_600_000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, milliseconds = divmod(milliseconds, 1_000)
    prefix = f"{hours:02d}:" if always_hours or hours else ""
    return f"{prefix}{minutes:02d}:{whole:02d}{decimal_mark}{milliseconds:03d}"


def txt(transcript: Transcript, layout: Layout = DEFAULT_LAYOUT) -> str:
    """One segment per line."""
    return "".join(f"{segment.text}\n" for segment in transcript.segments)


def srt(transcript: Transcript, layout: Layout = DEFAULT_LAYOUT) -> str:
    """SubRip."""
    return "".join(
        f"{number}\n{clock(cue.start_ms, ',', True)} --> {clock(cue.end_ms, ',', True)}\n{_said(cue)}\n\n"
        for number, cue in enumerate(cues(transcript.segments, layout, transcript.duration), 1)
    )


def vtt(transcript: Transcript, layout: Layout = DEFAULT_LAYOUT) -> str:
    """WebVTT (W3C)."""
    return "WEBVTT\n\n" + "".join(
        f"{clock(cue.start_ms, '.', False)} --> {clock(cue.end_ms, '.', False)}\n{_said(cue, _vtt_text)}\n\n"
        for cue in cues(transcript.segments, layout, transcript.duration)
    )


def tsv(transcript: Transcript, layout: Layout = DEFAULT_LAYOUT) -> str:
    """Start and end in milliseconds, text; with a header line. A row is a segment, or a word where these are marked."""
    rows = [w for segment in transcript.segments for w in (segment.words if layout.highlight_words else (segment,))]
    return "start\tend\ttext\n" + "".join(
        f"{round(1000 * row.start)}\t{round(1000 * row.end)}\t{row.text}\n" for row in rows
    )


def _said(cue: Cue, escape: Callable[[str], str] = str) -> str:
    """The lines of a cue, the word that is being said underlined as whisper does it."""
    number, lines = 0, []
    for line in cue.lines:
        words = []
        for word in line:
            words.append(f"<u>{escape(word)}</u>" if number == cue.word else escape(word))
            number += 1
        lines.append(" ".join(words))
    return "\n".join(lines)


def _vtt_text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def as_json(transcript: Transcript) -> dict[str, Any]:
    """The object that json and jsonl hold. Times in seconds, confidences in 0 … 1."""
    return {
        "audio_filepath": portable(transcript.audio_filepath),
        "duration": round(transcript.duration, 3),
        "language": LANGUAGE,
        "model": transcript.model,
        "text": transcript.text,
        "segments": [
            {
                "id": number,
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "text": segment.text,
                "words": [
                    {
                        "word": word.text,
                        "start": round(word.start, 3),
                        "end": round(word.end, 3),
                        "confidence": round(word.confidence, 3),
                    }
                    for word in segment.words
                ],
            }
            for number, segment in enumerate(transcript.segments)
        ],
    }


def json_document(transcript: Transcript, layout: Layout = DEFAULT_LAYOUT) -> str:
    """One indented object."""
    return json.dumps(as_json(transcript), indent=2, ensure_ascii=False) + "\n"


def jsonl(transcript: Transcript, layout: Layout = DEFAULT_LAYOUT) -> str:
    """The same object on one line."""
    return json.dumps(as_json(transcript), ensure_ascii=False) + "\n"


WRITERS: dict[str, Callable[[Transcript, Layout], str]] = {
    "txt": txt,
    "srt": srt,
    "vtt": vtt,
    "tsv": tsv,
    "json": json_document,
    "jsonl": jsonl,
}


def save(path: str | Path, text: str) -> None:
    """Write a whole file or none: into a neighbour first, then renamed over. Raises: OutputError."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True) if path.parent.is_dir() else None
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
