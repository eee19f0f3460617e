"""What is known of a model without loading it: its config.json and the figures in its results.json.

Export writes the one, benchmarks/measure_models.py the other; nothing here measures anything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_asr.errors import ModelDamagedError, ModelNotFoundError
from edge_asr.model_files import find_model, installed_models, read_config

RESULTS = "results.json"
SCHEMA = 1
CHUNKS_MS = (80, 160, 320, 640)
DEFAULT_CHUNK_MS = 320


@dataclass(frozen=True)
class Model:
    """A model's configuration and measured figures, as they lie on disk."""

    name: str
    config: Mapping[str, Any]
    results: Mapping[str, Any]
    stale: tuple[str, ...] = ()  # rows measured with other weights or another graph than lie there now

    def row(self, name: str) -> Mapping[str, Any]:
        """A set under a setting, empty where it was not measured."""
        return self.results.get("rows", {}).get(name, {})

    def at_chunk(self, chunk_ms: int) -> Mapping[str, Any]:
        """dev-clean streamed in chunks of this length."""
        return self.row("dev-clean" if chunk_ms == DEFAULT_CHUNK_MS else f"dev-clean {chunk_ms} ms")

    def cost(self, chunk_ms: int = DEFAULT_CHUNK_MS, precision: str = "int8") -> Mapping[str, Any]:
        return self.results.get("cost", {}).get(f"{precision} {chunk_ms} ms", {})

    def speed(self, chunk_ms: int = DEFAULT_CHUNK_MS) -> Mapping[str, Any]:
        return self.results.get("speed", {}).get("run", {}).get("chunks", {}).get(str(chunk_ms), {})

    @property
    def training_speed(self) -> Mapping[str, Any]:
        """Forward and backward passes of the encoder with CTC, measured beside the other encoders."""
        return self.results.get("speed", {}).get("training", {})

    @property
    def training(self) -> Mapping[str, Any]:
        return self.config.get("training") or {}

    @property
    def encoder(self) -> str:
        return str(self.config.get("encoder", "unknown"))

    @property
    def parameters(self) -> int | None:
        return self.config.get("export", {}).get("parameters")

    @property
    def int8_mb(self) -> float | None:
        n_bytes = self.config.get("export", {}).get("int8_bytes")
        return None if n_bytes is None else n_bytes / 1e6

    def bytes_per_s(self, chunk_ms: int = DEFAULT_CHUNK_MS) -> float | None:
        """Weights, state and activations that operators read and write per second of audio."""
        cost = self.cost(chunk_ms)
        return sum(cost[f"{part}_bytes_per_s"] for part in ("weight", "state", "activation")) if cost else None

    def bytes_per_mac(self, chunk_ms: int = DEFAULT_CHUNK_MS) -> float | None:
        moved, cost = self.bytes_per_s(chunk_ms), self.cost(chunk_ms)
        return moved / cost["macs_per_s"] if moved and cost["macs_per_s"] else None


def ancestors(training: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The runs that a run started from, the last one first."""
    while training := training.get("started_from", {}):
        yield training


def load_models(names: Sequence[str] = ()) -> list[Model]:
    """Models by name or path, or all that are installed and measured, the fewest errors on dev-clean first.

    Raises: ModelNotFoundError, ModelDamagedError.
    """
    paths = [find_model(name) for name in names] or [p for p in installed_models().values() if (p / RESULTS).is_file()]
    if not paths:
        raise ModelNotFoundError(
            "need a measured model, have none; python benchmarks/measure_models.py SPEECH_DIR measures the shipped ones"
        )
    models = [load_model(path) for path in paths]
    return models if names else sorted(models, key=lambda m: (m.row("dev-clean").get("wer", float("inf")), m.name))


def load_model(directory: Path) -> Model:
    path = directory / RESULTS
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: is missing; measure the model (benchmarks/measure_models.py)") from error
    except (ValueError, OSError) as error:
        raise ModelDamagedError(f"{path}: cannot be read as JSON ({error}); measure the model again") from error
    if not isinstance(results, dict) or results.get("schema") != SCHEMA:
        raise ModelDamagedError(f"{path}: needs results of schema {SCHEMA}, has another file; measure the model again")
    config = read_config(directory)
    return Model(directory.resolve().name, config, results, stale_rows(directory, config, results.get("rows", {})))


def identity(directory: Path, config: Mapping[str, Any], graph: str = "", grammar: str = "") -> dict[str, Any]:
    """What a word error rate was measured with: the training run of the weights, and the checksum of the graph."""
    training = config.get("training") or {}
    found: dict[str, Any] = {"run": [training.get(key) for key in ("run", "steps", "heard_h")]}
    folder = directory / str(config.get("graph", ""))
    folder = folder.parent / graph if graph else folder
    if not grammar and (folder / "config.json").is_file() and "graph" in config:
        found["graph_crc32"] = read_config(folder).get("files", {}).get("graph.fst", {}).get("crc32")
    return found


def stale_rows(directory: Path, config: Mapping[str, Any], rows: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the rows that no longer belong to what lies in the model's folder."""
    return tuple(
        name
        for name, row in rows.items()
        if row.get("measured_with") != identity(directory, config, row.get("graph", ""), row.get("grammar", ""))
    )


def stamps(models: Sequence[Model]) -> list[dict[str, Any]]:
    """When, where and by which command the figures were taken, one line for each model, command and machine."""
    found: dict[str, dict[str, Any]] = {}
    for model in models:
        for section in model.results.values():
            for row in section.values() if isinstance(section, dict) else ():
                taken = row.get("measured")
                if taken:
                    line = {"model": model.name, "command": taken["command"], "machine": taken["machine"]}
                    line = found.setdefault(json.dumps(line, sort_keys=True), line | {"dates": [], "loads": []})
                    line["dates"].append(taken["date"])
                    line["loads"] += [] if taken.get("load") is None else [taken["load"]]
    return [
        {
            **{key: value for key, value in line.items() if key not in ("dates", "loads")},
            "first": min(line["dates"]),
            "last": max(line["dates"]),
            "load": [min(line["loads"]), max(line["loads"])] if line["loads"] else None,
        }
        for line in found.values()
    ]
