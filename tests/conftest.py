"""Fixtures that several test files share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tones import write_tone_encoder


@pytest.fixture(scope="session")
def tone_encoder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    write_tone_encoder(path)
    return path
