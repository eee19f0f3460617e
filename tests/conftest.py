"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tones import write_tone_encoder, write_tone_model


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
