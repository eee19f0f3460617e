"""A folder of recordings to transcribe, and what a batch has written."""

from __future__ import annotations

from pathlib import Path

import soundfile
from tones import speak

from edge_asr.outputs import PRIVATE

N_RECORDINGS = 12
SAID = ("one", "two three", "four", "five one two")


def write_recordings(folder: Path) -> None:
    """N_RECORDINGS short ones, in two folders."""
    for i in range(N_RECORDINGS):
        path = folder / ("deep" if i % 3 == 0 else "") / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, speak(SAID[i % len(SAID)]), 16_000)


def tree(path: str | Path) -> dict[str, bytes]:
    """The files of a folder, without the journal."""
    files = (p for p in Path(path).rglob("*") if p.is_file() and PRIVATE not in p.parts)
    return {str(p.relative_to(path)): p.read_bytes() for p in files}
