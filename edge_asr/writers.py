"""Transcripts as txt, srt, vtt, tsv, json and jsonl, by the conventions that whisper made usual.

A writer turns a `Transcript` into text; `save` puts it on disk so that a reader never sees half a file.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_asr.errors import OutputError

if TYPE_CHECKING:
    from edge_asr.recognizer import Segment

LANGUAGE = "en"


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


def clock(seconds: float, decimal_mark: str, always_hours: bool) -> str:
    """12.3456 → 00:12.346, or 00:00:12,346 with hours."""
    milliseconds = max(0, round(seconds * 1000))
    hours, milliseconds = divmod(milliseconds, 3_600_000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    whole, milliseconds = divmod(milliseconds, 1_000)
    prefix = f"{hours:02d}:" if always_hours or hours else ""
    return f"{prefix}{minutes:02d}:{whole:02d}{decimal_mark}{milliseconds:03d}"


def txt(transcript: Transcript) -> str:
    """One segment per line."""
    return "".join(f"{segment.text}\n" for segment in transcript.segments)


def srt(transcript: Transcript) -> str:
    """SubRip."""
    return "".join(
        f"{number}\n{clock(segment.start, ',', True)} --> {clock(segment.end, ',', True)}\n{segment.text}\n\n"
        for number, segment in enumerate(transcript.segments, 1)
    )


def vtt(transcript: Transcript) -> str:
    """WebVTT (W3C)."""
    return "WEBVTT\n\n" + "".join(
        f"{clock(segment.start, '.', False)} --> {clock(segment.end, '.', False)}\n{segment.text}\n\n"
        for segment in transcript.segments
    )


def tsv(transcript: Transcript) -> str:
    """Start and end in milliseconds, text; with a header line."""
    return "start\tend\ttext\n" + "".join(
        f"{round(1000 * segment.start)}\t{round(1000 * segment.end)}\t{segment.text}\n"
        for segment in transcript.segments
    )


def as_json(transcript: Transcript) -> dict[str, Any]:
    """The object that json and jsonl hold. Times in seconds, confidences in 0 … 1."""
    return {
        "audio_filepath": transcript.audio_filepath,
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


def json_document(transcript: Transcript) -> str:
    """One indented object."""
    return json.dumps(as_json(transcript), indent=2, ensure_ascii=False) + "\n"


def jsonl(transcript: Transcript) -> str:
    """The same object on one line."""
    return json.dumps(as_json(transcript), ensure_ascii=False) + "\n"


WRITERS: dict[str, Callable[[Transcript], str]] = {
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
