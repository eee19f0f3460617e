"""The shipped samples are what their manifest says, small, and readable without anything but the runtime."""

from pathlib import Path

import pytest

from edge_asr.audio import SAMPLE_RATE, AudioFile, load_audio
from edge_asr.data import read_manifest

SAMPLES = Path(__file__).parent.parent / "samples"
CLIPS = read_manifest(SAMPLES / "manifest.jsonl")


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: Path(clip.audio_filepath).name)
def test_a_sample_is_whole_and_as_long_as_its_manifest_says(clip):
    with AudioFile(clip.audio_filepath) as audio:
        n_samples = sum(map(len, audio))
    assert audio.damage is None
    assert n_samples / SAMPLE_RATE == pytest.approx(clip.duration, abs=0.1)
    assert 0.2 < abs(load_audio(clip.audio_filepath)).max() < 1


def test_every_container_and_several_voices_and_rates_are_there():
    paths = [Path(clip.audio_filepath) for clip in CLIPS]
    assert {path.suffix for path in paths} == {".wav", ".flac", ".ogg", ".opus", ".mp3"}
    assert len({clip.speaker for clip in CLIPS}) >= 5
    assert {clip.source for clip in CLIPS} >= {"sentence", "command", "digits", "noisy-sentence", "noisy-command"}
    assert len({AudioFile(path).rate_hz for path in paths}) >= 4


def test_the_samples_are_small_and_all_listed():
    files = {path.name for path in SAMPLES.iterdir() if path.suffix not in (".py", ".jsonl") and path.is_file()}
    assert files == {Path(clip.audio_filepath).name for clip in CLIPS}
    assert sum((SAMPLES / name).stat().st_size for name in files) < 2_000_000
