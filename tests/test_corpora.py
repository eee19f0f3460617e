"""Public corpora on disk become manifests."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from edge_asr.corpora import corpus_to_manifest, resolve_manifest
from edge_asr.data import read_manifest
from edge_asr.errors import ManifestError


def test_librispeech_on_disk_loads_by_name(tmp_path):
    folder = tmp_path / "LibriSpeech" / "train-clean-100" / "19" / "198"
    folder.mkdir(parents=True)
    for number in range(2):
        soundfile.write(folder / f"19-198-000{number}.flac", np.zeros(16_000), 16_000)
    (folder / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")
    assert corpus_to_manifest("librispeech", tmp_path, tmp_path / "m.jsonl", "train-clean-100") == 2
    clips = read_manifest(tmp_path / "m.jsonl")
    assert sorted(c.text for c in clips) == ["northanger abbey", "this little work"]
    assert {c.speaker for c in clips} == {"19"}
    assert resolve_manifest(f"librispeech:{tmp_path}:train-clean-100", tmp_path / "made").is_file()


def test_speech_commands_on_disk_load_by_name(tmp_path):
    root = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    (root / "yes").mkdir(parents=True)
    soundfile.write(root / "yes" / "0a7c2a8d_nohash_0.wav", np.zeros(16_000), 16_000)
    (root / "testing_list.txt").write_text("yes/0a7c2a8d_nohash_0.wav\n")
    (root / "validation_list.txt").write_text("")
    assert corpus_to_manifest("SPEECHCOMMANDS", tmp_path, tmp_path / "m.jsonl", "testing") == 1
    row = json.loads((tmp_path / "m.jsonl").read_text())
    assert (row["text"], row["speaker"], row["duration"]) == ("yes", "0a7c2a8d", 1.0)


def test_an_unknown_corpus_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(ManifestError, match="LIBRISPEECH, SPEECHCOMMANDS"):
        corpus_to_manifest("TEDLIUM", tmp_path, tmp_path / "m.jsonl")


def test_a_path_is_taken_as_a_path(tmp_path):
    assert resolve_manifest("some/train.jsonl", tmp_path) == Path("some/train.jsonl")


def test_a_corpus_that_is_not_on_disk_is_an_error(tmp_path):
    with pytest.raises(ManifestError, match="unpack it there"):
        corpus_to_manifest("LIBRISPEECH", tmp_path, tmp_path / "m.jsonl")
