"""Find a model by name or path, and check that its files are whole and belong together.

A model directory holds `encoder.onnx`, `encoder.int8.onnx`, `tokens.txt` and `config.json`. The configuration names the
graph directory beside it and may carry under "files" the size and CRC-32 of each file, which `seal` writes: a flipped
bit in a weight would otherwise show only as worse text.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edge_asr.errors import LexiconError, ModelDamagedError, ModelMismatchError, ModelNotFoundError, UsageError
from edge_asr.tokens import TokenTable

DEFAULT_MODEL = "tcn-base"
MODELS_VARIABLE = "EDGE_ASR_MODELS"  # environment: a folder of models that is searched first
CONFIG = "config.json"
ENCODER_FILES = {"int8": "encoder.int8.onnx", "fp32": "encoder.onnx"}

Precision = Literal["int8", "fp32"]


@dataclass(frozen=True)
class ModelFiles:
    """A model directory whose configuration and tokens have been read."""

    directory: Path
    config: Mapping[str, Any]
    tokens: TokenTable

    @classmethod
    def open(cls, model: str | Path = DEFAULT_MODEL) -> ModelFiles:
        """Raises: ModelNotFoundError, ModelDamagedError."""
        directory = find_model(model)
        config = read_config(directory)
        check_file(directory, "tokens.txt", config)
        try:
            tokens = TokenTable.load(directory / "tokens.txt")
        except (LexiconError, UnicodeDecodeError) as error:
            raise ModelDamagedError(f"{directory / 'tokens.txt'}: is damaged ({error}); restore the file") from error
        return cls(directory, config, tokens)

    def encoder(self, precision: Precision) -> Path:
        """The checked encoder file of a precision."""
        if precision not in ENCODER_FILES:
            raise UsageError(f"precision must be {' or '.join(ENCODER_FILES)}, got {precision!r}")
        check_file(self.directory, ENCODER_FILES[precision], self.config)
        return self.directory / ENCODER_FILES[precision]

    @property
    def graph(self) -> Path | None:
        """The checked graph directory, or None for a model that has only greedy search."""
        relative = self.config.get("graph")
        if relative is None:
            return None
        directory = self.directory / str(relative)
        if not directory.is_dir():
            raise ModelNotFoundError(
                f"{directory}: the graph of model {self.directory.name} is missing; restore it, or use greedy search"
            )
        return check_graph(directory)

    def check_tokens(self, path: Path, sha256: str) -> None:
        """Raises: ModelMismatchError where another file was made for other tokens."""
        if sha256 != self.tokens.sha256:
            raise ModelMismatchError(
                f"{path}: was made for the tokens {sha256[:12]}…, {self.directory / 'tokens.txt'} is "
                f"{self.tokens.sha256[:12]}…; use the files of one export"
            )


def search_path() -> list[Path]:
    """Folders that may hold models: the environment's, the package's, and the one beside the package in a checkout."""
    package = Path(__file__).resolve().parent
    chosen = os.environ.get(MODELS_VARIABLE)
    return [*([Path(chosen)] if chosen else []), package / "models", package.parent / "models"]


def installed_models() -> dict[str, Path]:
    """Names of the models found, the first found of each name."""
    found: dict[str, Path] = {}
    for folder in search_path():
        for config in sorted(folder.glob(f"*/{CONFIG}")):
            if any((config.parent / name).is_file() for name in ENCODER_FILES.values()):  # not a graph
                found.setdefault(config.parent.name, config.parent)
    return found


def is_sherpa_folder(directory: Path) -> bool:
    """A folder of ONNX files that is none of ours, damaged ones included; see zipformer.py."""
    own = (CONFIG, *ENCODER_FILES.values())
    return directory.is_dir() and any(directory.glob("*.onnx")) and not any((directory / n).exists() for n in own)


def find_model(model: str | Path) -> Path:
    """The directory of a model given by path or by name; by path it may be one of sherpa-onnx."""
    directory = Path(model)
    if (directory / CONFIG).is_file() or is_sherpa_folder(directory):
        return directory
    names = installed_models()
    if str(model) in names:
        return names[str(model)]
    if directory.is_dir() and any(directory.iterdir()):
        raise ModelNotFoundError(f"{directory / CONFIG}: is missing, so this folder is no model; restore the file")
    known = ", ".join(names) or "none"
    raise ModelNotFoundError(
        f"no model {str(model)!r}: give the path of a model folder or one of the installed names ({known}); "
        f"{MODELS_VARIABLE} names a further folder to search"
    )


def read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: is missing; restore the file") from error
    except (ValueError, OSError) as error:
        raise ModelDamagedError(f"{path}: cannot be read as JSON ({error}); restore the file") from error
    if not isinstance(config, dict):
        raise ModelDamagedError(f"{path}: must hold one JSON object, holds a {type(config).__name__}; restore the file")
    return config


def own_graph(directory: Path) -> Path | None:
    """The graph that a model folder names, unchecked; None for one that has only greedy search."""
    relative = read_config(directory).get("graph") if (directory / CONFIG).is_file() else None
    return directory / str(relative) if relative else None


def check_file(directory: Path, name: str, config: Mapping[str, Any]) -> None:
    """Raises: ModelNotFoundError, ModelDamagedError where a file is not the one that was sealed."""
    path = directory / name
    if not path.is_file():
        raise ModelNotFoundError(f"{path}: is missing; restore the file or export the model again")
    sealed = config.get("files", {}).get(name)
    if sealed is None:
        return
    found = fingerprint(path)
    if found != sealed:
        raise ModelDamagedError(
            f"{path}: is damaged, needs {sealed['bytes']} bytes with CRC {sealed['crc32']}, "
            f"has {found['bytes']} with {found['crc32']}; restore the file"
        )


def check_graph(directory: Path) -> Path:
    """A graph directory whose files are those that were sealed."""
    config = read_config(directory)
    for name in config.get("files", {}):
        check_file(directory, name, config)
    return directory


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and CRC-32 of a file, which a gigabyte passes through in about a second."""
    crc, n_bytes = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            crc, n_bytes = zlib.crc32(block, crc), n_bytes + len(block)
    return {"bytes": n_bytes, "crc32": f"{crc:08x}"}


def seal(directory: str | Path) -> None:
    """Write into a directory's configuration the fingerprints of its data files."""
    directory = Path(directory)
    config = read_config(directory)
    data = sorted(path for path in directory.iterdir() if path.is_file() and path.suffix not in (".json", ".md"))
    config["files"] = {path.name: fingerprint(path) for path in data}
    (directory / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
