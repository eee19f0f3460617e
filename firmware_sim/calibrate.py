"""Fit the host profile to onnxruntime on this machine, and say how wrong it is on networks it has not seen.

Small networks of every operator class are timed in interleaved rounds (the fastest run of each counts: noise only ever
adds), then one non-negative least-squares fit over all classes explains them from `latency.features`. A fifth of the
small networks and every model that is named are held out. Errors are relative; the band of the profile is the widest
held-out ratio of true to predicted.
"""

from __future__ import annotations

import math
import os
import platform
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from rich import box
from rich.table import Table
from scipy.optimize import nnls

from edge_asr.errors import OutputError
from firmware_sim.device import FEATURES, PROFILE_DIR
from firmware_sim.errors import CalibrationError
from firmware_sim.latency import CACHE_SHARE, features, fit_class
from firmware_sim.microbench import Network, networks
from firmware_sim.model import encoder_path, load_model

HELD_OUT_EVERY = 5
RUNS_PER_ROUND = 5
MIN_ROWS = 8

Timer = Callable[[Sequence[Network], int], list[float]]


@dataclass(frozen=True)
class Row:
    """One measured network: seconds, and its features summed by class."""

    name: str
    seconds: float
    by_class: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Calibration:
    """Coefficients by class (seconds per feature), and true/predicted ratios of what the fit has not seen."""

    seconds: dict[str, tuple[float, ...]]
    fitted: dict[str, float]
    held_out: dict[str, float]
    models: dict[str, float]
    measured_s: dict[str, float]
    machine: str

    @property
    def band(self) -> tuple[float, float]:
        """Lowest and highest true/predicted ratio over the held-out networks, whole models where there are any."""
        ratios = list(self.models.values()) or list(self.held_out.values())
        return min(1.0, *ratios), max(1.0, *ratios)

    def as_dict(self) -> dict[str, object]:
        return {
            "machine": self.machine,
            "seconds": {name: list(row) for name, row in self.seconds.items()},
            "features": list(FEATURES),
            "errors_percent": {
                "fitted": errors_percent(self.fitted),
                "held_out": errors_percent(self.held_out),
                "models": errors_percent(self.models),
            },
            "models": {
                n: {"true_over_predicted": r, "measured_ms": self.measured_s[n] * 1e3} for n, r in self.models.items()
            },
        }


def calibrate(
    models: Sequence[str] = (),
    repeats: int = 15,
    progress: Callable[[str], None] = lambda line: None,
    timer: Timer | None = None,
    small: Sequence[Network] | None = None,
) -> Calibration:
    """Measure, fit, and test on held-out networks and models (each in every precision it ships).

    `timer` and `small` replace the clock and the small networks in tests. Raises CalibrationError where too little was
    measured, and the errors of `load_model`."""
    small = networks() if small is None else small
    whole = [network for name in models for network in whole_networks(name)]
    progress(f"timing {len(small)} small networks and {len(whole)} models, {repeats} rounds")
    seconds = (timer or time_networks)([*small, *whole], repeats)
    rows = [row_of(network, s) for network, s in zip([*small, *whole], seconds, strict=True)]
    order = np.random.default_rng(0).permutation(len(small))  # every class must be in both parts
    held_out = [rows[i] for i in order[: len(small) // HELD_OUT_EVERY]]
    fitted = [rows[i] for i in order[len(small) // HELD_OUT_EVERY :]]
    coefficients = fit(fitted)
    return Calibration(
        seconds=coefficients,
        fitted=ratios(fitted, coefficients),
        held_out=ratios(held_out, coefficients),
        models=ratios(rows[len(small) :], coefficients),
        measured_s={row.name: row.seconds for row in rows},
        machine=machine_name(),
    )


def whole_networks(model: str) -> list[Network]:
    """The encoder of a model in each precision it ships, at its own chunk size."""
    found = []
    for precision in ("fp32", "int8"):
        path, directory = encoder_path(Path(model), precision)
        loaded = load_model(model, precision)
        name = f"{loaded.name} {loaded.precision}"
        found.append(Network(name, path.read_bytes(), loaded.graph, (*loaded.ops, loaded.shapes)))
        if directory is None:
            break
    return found


def near_cache_bytes() -> int:
    """Second-level cache of the first core; 1 MiB where the system does not say."""
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index2/size").read_text().strip()
        return int(text.rstrip("KM")) * {"K": 1024, "M": 2**20}[text[-1]]
    except (OSError, ValueError, KeyError):
        return 2**20


def row_of(network: Network, seconds: float) -> Row:
    """Features of a network by class. Raises CalibrationError for a time that cannot be."""
    if not (seconds > 0 and math.isfinite(seconds)):
        raise CalibrationError(
            f"need a time above 0 s for {network.name}, have {seconds}; measure again on a quiet machine"
        )
    by_class: dict[str, np.ndarray] = {"run": run_features(network)}
    room = CACHE_SHARE * near_cache_bytes()
    resident = sum(op.weight_bytes for op in network.ops) <= room
    for op in network.ops:
        name = fit_class(op)
        by_class[name] = by_class.get(name, np.zeros(len(FEATURES))) + np.array(features(op, room, resident), float)
    return Row(network.name, seconds, by_class)


def run_features(network: Network) -> np.ndarray:
    """What a call costs beside its operators: once, per input and output, per byte handed over."""
    values, names = network.graph.values, (*network.graph.inputs, *network.graph.outputs)
    n_bytes = sum(values[name].n_bytes for name in names)
    return np.array([1.0, 0.0, 0.0, 0.0, n_bytes, len(names), 0.0])


def fit(rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """Non-negative seconds per feature and class that explain the rows best in relative terms."""
    if len(rows) < MIN_ROWS:
        raise CalibrationError(f"need at least {MIN_ROWS} measured networks, have {len(rows)}")
    classes = sorted({name for row in rows for name in row.by_class})
    matrix = np.array([[*design(row, classes)] for row in rows]) / np.array([row.seconds for row in rows])[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    used = scale > 0
    solution = np.zeros(matrix.shape[1])
    solution[used] = (
        nnls(matrix[:, used] / scale[used], np.ones(len(rows)), maxiter=50 * matrix.shape[1])[0] / scale[used]
    )
    width = len(FEATURES)
    return {name: tuple(float(v) for v in solution[i * width : (i + 1) * width]) for i, name in enumerate(classes)}


def design(row: Row, classes: Sequence[str]) -> np.ndarray:
    """The features of a row, class after class."""
    nothing = np.zeros(len(FEATURES))
    return np.concatenate([row.by_class.get(name, nothing) for name in classes])


def predict(row: Row, coefficients: Mapping[str, Sequence[float]]) -> float:
    """Seconds by the fit. Raises CalibrationError for a class that was never measured."""
    missing = sorted(set(row.by_class) - set(coefficients))
    if missing:
        raise CalibrationError(f"need measurements of {', '.join(missing)} to predict {row.name}, have none")
    return float(sum(np.dot(coefficients[name], row.by_class[name]) for name in row.by_class))


def ratios(rows: Sequence[Row], coefficients: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """True over predicted time of each row."""
    return {row.name: row.seconds / predict(row, coefficients) for row in rows}


def errors_percent(found: Mapping[str, float]) -> dict[str, float]:
    """Median and worst |predicted − true| / true."""
    if not found:
        return {}
    errors = [abs(1 / ratio - 1) * 100 for ratio in found.values()]
    return {"median": float(np.median(errors)), "worst": max(errors), "n": len(errors)}


def time_networks(nets: Sequence[Network], repeats: int) -> list[float]:
    """Fastest run of each network over interleaved rounds, one thread, so that a slow spell hits all alike."""
    sessions = [open_session(net.content) for net in nets]
    feeds = [random_feeds(session, net) for session, net in zip(sessions, nets, strict=True)]
    best = [math.inf] * len(nets)
    for session, feed in zip(sessions, feeds, strict=True):
        session.run(None, feed)
    for _ in range(repeats):
        for i, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            for _ in range(RUNS_PER_ROUND):
                begin = time.perf_counter()
                session.run(None, feed)
                best[i] = min(best[i], time.perf_counter() - begin)
    return best


def open_session(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def random_feeds(session: onnxruntime.InferenceSession, net: Network) -> dict[str, np.ndarray]:
    """Noise for features, zeros for streaming states: denormals and overflows would time something else."""
    rng = np.random.default_rng(0)
    feeds = {}
    for info in session.get_inputs():
        shape = net.graph.values[info.name].shape
        noise = 0.0 if info.name.startswith("state_") else rng.normal(0, 0.5, shape)
        feeds[info.name] = np.asarray(np.broadcast_to(noise, shape), np.float32).copy()
    return feeds


def machine_name() -> str:
    """Processor and software that the figures belong to."""
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass
    return f"{model}, {os.cpu_count()} cores, onnxruntime {onnxruntime.__version__}"


def write_profile(path: Path, result: Calibration) -> None:
    """The shipped host profile with the fit added, as a profile of its own. Raises OutputError."""
    text = (PROFILE_DIR / "host.toml").read_text(encoding="utf-8").partition("\n[fit]")[0]
    low, high = result.band
    text = re.sub(r'^title = ".*"$', f'title = "{result.machine}"', text, count=1, flags=re.MULTILINE)
    old = next(line for line in text.splitlines() if line.startswith("cache_bytes ="))
    new = f'cache_bytes = {{ value = {near_cache_bytes()}, kind = "measured", source = "second-level cache, sysfs" }}'
    text = text.replace(old, new)
    text += f"\n[fit]\nheld_out = [{low:.4f}, {high:.4f}]\n\n[fit.seconds]\n"
    for name, row in sorted(result.seconds.items()):
        text += f'"{name}" = [{", ".join(f"{v:.6e}" for v in row)}]\n'
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place with --out") from error


def calibration_table(result: Calibration) -> Table:
    """Errors on what was fitted, what was held out, and the models."""
    table = Table(title=result.machine, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("networks", "n", "median error", "worst error"):
        table.add_column(name, justify="left" if name == "networks" else "right")
    for label, found in (("fitted", result.fitted), ("held out", result.held_out), ("models", result.models)):
        errors = errors_percent(found)
        if errors:
            table.add_row(label, f"{errors['n']:.0f}", f"{errors['median']:.1f} %", f"{errors['worst']:.1f} %")
    for name, ratio in result.models.items():
        true_ms = result.measured_s[name] * 1e3
        table.add_row(f"  {name}", f"{true_ms:.2f} ms", f"{true_ms / ratio:.2f} ms", f"{(1 / ratio - 1) * 100:+.1f} %")
    return table
