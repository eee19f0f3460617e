"""edge_asr: streaming English speech recognition for small devices.

The public names load on first use, so that `import edge_asr` costs milliseconds and a program that only
reads audio never pays for the decoder.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:
    from edge_asr.audio import SAMPLE_RATE, read_blocks
    from edge_asr.capture import FilePlayer
    from edge_asr.decoder import Word
    from edge_asr.errors import EdgeAsrError
    from edge_asr.live import LiveSession
    from edge_asr.microphone import Microphone
    from edge_asr.recognizer import Recognizer, Segment, Stream
    from edge_asr.transcription import transcribe, transcribe_files

_HOME = {
    "EdgeAsrError": "errors",
    "SAMPLE_RATE": "audio",
    "read_blocks": "audio",
    "FilePlayer": "capture",
    "LiveSession": "live",
    "Microphone": "microphone",
    "Recognizer": "recognizer",
    "Segment": "recognizer",
    "Stream": "recognizer",
    "transcribe": "transcription",
    "transcribe_files": "transcription",
    "Word": "decoder",
}

__all__ = [
    "SAMPLE_RATE", "EdgeAsrError", "FilePlayer", "LiveSession", "Microphone", "Recognizer", "Segment", "Stream", "Word",
    "read_blocks", "transcribe", "transcribe_files",
]  # fmt: skip


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'edge_asr' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"edge_asr.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
