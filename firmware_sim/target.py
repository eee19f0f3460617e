"""Target runtimes: which operators they run, what they add to flash and RAM, and the scratch their kernels take.

One TOML file per runtime beside the device profiles. `operators = "all"` means every operator with a cost rule.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from firmware_sim.cost import OpCost
from firmware_sim.device import Figure, check_evidence, refuse_unknown, text
from firmware_sim.errors import DeviceError
from firmware_sim.operators import KNOWN, VIEWS

RUNTIME_DIR = Path(__file__).parent / "runtimes"
KEYS = {
    "name",
    "title",
    "operators",
    "decomposed",
    "float_operators",
    "source",
    "kind",
    "in_place",
    "runs_shapes",
    "alignment",
    "scratch",
}
FIGURES = ("code_bytes", "heap_bytes", "weight_copies")


@dataclass(frozen=True)
class Target:
    """A runtime. `weight_copies`: bytes of RAM per byte of weights where weights live in RAM."""

    name: str
    title: str
    operators: frozenset[str]
    float_operators: bool  # False: only the 8-bit forms run
    in_place: bool
    runs_shapes: bool  # an interpreter that visits shape arithmetic and views
    alignment: int
    scratch: str
    figures: Mapping[str, Figure]
    kind: str
    source: str

    def unsupported(self, ops: Iterable[OpCost]) -> list[str]:
        """Operator types this runtime cannot run, with what is wrong, sorted."""
        found = set()
        for op in ops:
            if op.kind in ("frontend", "search", "shape") or op.op_type in VIEWS:
                continue
            if op.op_type not in self.operators:
                found.add(op.op_type)
            elif not self.float_operators and op.macs and op.precision == "fp32":
                found.add(f"{op.op_type} (fp32)")
        return sorted(found)


@cache
def load_target(name: str, folder: Path = RUNTIME_DIR) -> Target:
    """A runtime by name. Raises DeviceError for an unknown one or a broken file."""
    path = folder / f"{name}.toml"
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.toml"))
        near = difflib.get_close_matches(name, known, n=2)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        raise DeviceError(f"need a known runtime, have {name!r}; {hint}")
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise DeviceError(f"{path.name}: need TOML, have a syntax error: {error}") from error
    refuse_unknown(data, KEYS | set(FIGURES), path.name)
    check_evidence(data, path.name)
    operators = data.get("operators")
    listed = KNOWN if operators == "all" else set(operators or ()) | set(data.get("decomposed", ()))
    if not listed:
        raise DeviceError(f'{path.name}: need operators as a list or "all", have {operators!r}')
    if data.get("scratch") not in SCRATCH:
        raise DeviceError(f"{path.name}: need scratch = one of {', '.join(SCRATCH)}, have {data.get('scratch')!r}")
    return Target(
        name=text(data, "name", path.name),
        title=text(data, "title", path.name),
        operators=frozenset(listed),
        float_operators=bool(data.get("float_operators", True)),
        in_place=bool(data.get("in_place", False)),
        runs_shapes=bool(data.get("runs_shapes", False)),
        alignment=int(data.get("alignment", 16)),
        scratch=data["scratch"],
        figures={key: read_size(data, key, path.name) for key in FIGURES},
        kind=data["kind"],
        source=data["source"],
    )


def read_size(data: Mapping, key: str, where: str) -> Figure:
    """A `{ value, kind, source }` that is a size or a factor, not negative."""
    entry = data.get(key)
    if not isinstance(entry, dict):
        raise DeviceError(f"{where}: need {key} = {{ value, kind, source }}, have {entry!r}")
    check_evidence(entry, f"{where}: {key}")
    value = entry.get("value")
    if not isinstance(value, (int, float)) or value < 0:
        raise DeviceError(f"{where}: need {key} ≥ 0, have {value!r}")
    return Figure(float(value), entry["kind"], entry["source"], float(value), float(value))


def scratch_bytes(op: OpCost, target: Target) -> int:
    """Working memory of one kernel while it runs."""
    return SCRATCH[target.scratch](op)


def scratch_onnxruntime(op: OpCost) -> int:
    """im2col for convolutions, an int32 accumulator for integer products, gate buffers for recurrences."""
    if op.kind == "conv":
        item = 1 if op.precision == "int8" else 4
        return op.rows * op.depth * item + (4 * op.rows * op.columns if op.precision == "int8" else 0)
    if op.kind == "recurrent":
        quantised_input = op.rows * op.channels_in if op.precision == "int8" else 0
        return 4 * op.rows * op.columns + 8 * (op.depth - op.channels_in) + quantised_input
    if op.kind in ("gemm", "attention") and op.precision == "int8":
        return 4 * op.rows * op.columns
    return 0


def scratch_st(op: OpCost) -> int:
    """ST Edge AI: formulas that reproduce all ten scratch sizes of the published streaming-wakeword report."""
    if op.kind == "depthwise":
        return (3 * op.kernel + 10) * op.channels_in + 1
    if op.kind == "conv":
        return 4 * op.depth + 10 * op.columns
    if op.kind == "gemm":
        return 2 * op.depth
    if op.op_type in ("Softmax", "LogSoftmax"):
        return 496
    return 4 * op.columns if op.kind == "recurrent" else 0


def scratch_cmsis(op: OpCost) -> int:
    """CMSIS-NN: two im2col columns in 16 bits for convolutions, gate buffers in 16 bits for recurrences."""
    if op.kind in ("conv", "depthwise"):
        return 2 * 2 * op.depth if op.kind == "conv" else 2 * op.kernel * op.channels_in
    return 2 * op.columns if op.kind == "recurrent" else 0


SCRATCH: dict[str, Callable[[OpCost], int]] = {
    "onnxruntime": scratch_onnxruntime,
    "st-edge-ai": scratch_st,
    "cmsis-nn": scratch_cmsis,
}
