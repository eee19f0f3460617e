"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from recordings import write_recordings
from tones import write_tone_encoder, write_tone_model

from edge_asr.cli import main


@pytest.fixture(scope="session")
def tone_encoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    write_tone_encoder(path)
    return path


@pytest.fixture(scope="session")
def tone_model(tmp_path_factory) -> Path:
    """A model folder that hears speech made of tones; read-only, copy it to damage it."""
    directory = tmp_path_factory.mktemp("models") / "tones"
    write_tone_model(directory)
    return directory


@pytest.fixture(scope="session")
def prepared_samples(tmp_path_factory) -> Path:
    """The feature cache of the samples, read-only."""
    from little_runs import SAMPLES  # torch, which many tests do without

    from edge_asr.data import prepare

    folder = tmp_path_factory.mktemp("cache")
    prepare(SAMPLES, folder, n_workers=1)
    return folder


@pytest.fixture
def recordings(tmp_path, monkeypatch) -> Path:
    """The current folder; rec/ holds recordings to transcribe."""
    monkeypatch.chdir(tmp_path)
    write_recordings(Path("rec"))
    return tmp_path


@pytest.fixture
def transcribe(tone_model, folder, capsys):
    """`edge-asr transcribe` in the test file's own `folder`: exit code, standard output, standard error."""

    def run(*arguments) -> tuple[int, str, str]:
        code = main(["transcribe", "--model", str(tone_model), *map(str, arguments)])
        output = capsys.readouterr()
        return code, output.out, output.err

    return run
