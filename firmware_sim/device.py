"""Device profiles: one TOML file per device, every number with its kind and source.

    [cpu]
    clock_hz = { value = 1.3e9, kind = "published", source = "linux mt8516.dtsi" }

`kind` is one of KINDS; `low` and `high` may replace the band that the kind gives. Anything misspelt, missing, negative
or without a source is refused with the name of the file and the key.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from firmware_sim.errors import BudgetError, DeviceError

PROFILE_DIR = Path(__file__).parent / "devices"
SCHEMA_VERSION = 1

# Relative half-width of the band around a rate: value / (1 + w) … value · (1 + w).
# `derived` is computed from published results by the formula named in its source, `proxy` was seen on a sibling board.
KINDS = {"measured": 0.05, "published": 0.10, "derived": 0.20, "proxy": 0.30, "assumed": 0.50}
WEAKEST_FIRST = ("assumed", "proxy", "derived", "published", "measured")

PESSIMISTIC, NOMINAL, OPTIMISTIC = -1, 0, 1

# What a calibrated operator class multiplies with its coefficients; see `latency.features`.
FEATURES = (
    "one",
    "padded_macs",
    "near_weight_bytes",
    "far_weight_bytes",
    "activation_bytes",
    "elements",
    "transcendentals",
)


@dataclass(frozen=True)
class Figure:
    """One number of a profile: value in the unit its key names, kind of evidence, source, band."""

    value: float
    kind: str
    source: str
    low: float
    high: float

    def at(self, end: int, higher_is_better: bool) -> float:
        """The value at one end of the band: PESSIMISTIC, NOMINAL or OPTIMISTIC."""
        if end == NOMINAL:
            return self.value
        return self.high if (end == OPTIMISTIC) == higher_is_better else self.low


@dataclass(frozen=True)
class Key:
    """What the schema knows of one key."""

    meaning: str
    required: bool = True
    zero_allowed: bool = False
    signed: bool = False
    higher_is_better: bool = True
    default: float = 0.0  # taken, as `assumed`, where an optional key is missing
    exact: bool = False  # a size, a count or a limit: no band
    exact_if_known: bool = False  # a published or measured clock is what it is


SCHEMA: dict[str, Key] = {
    "cpu.cores": Key("number of equal cores", exact=True),
    "cpu.clock_hz": Key("highest clock of a core", exact_if_known=True),
    "cpu.fp32_mac_per_cycle": Key("float multiply-adds per cycle and core, matrix products"),
    "cpu.int8_mac_per_cycle": Key("8-bit multiply-adds per cycle and core, matrix products"),
    "cpu.depthwise_mac_per_cycle": Key("the same for depthwise convolution", required=False),
    "cpu.elementwise_per_cycle": Key("elements per cycle of add, multiply, copy with conversion"),
    "cpu.transcendental_per_cycle": Key("elements per cycle of exp, tanh, sigmoid, log"),
    "cpu.node_overhead_cycles": Key("cycles a runtime spends per node", higher_is_better=False, zero_allowed=True),
    "cpu.run_overhead_cycles": Key("cycles a runtime spends per call", higher_is_better=False, zero_allowed=True),
    "cpu.arc_cycles": Key("cycles per arc of the graph search", higher_is_better=False),
    "cpu.overlap": Key("share of the shorter of compute and transfer hidden by the other", False, True, default=0.5),
    "cpu.sleep_exit_s": Key("time to leave core sleep", False, True, higher_is_better=False),
    "cpu.cluster_exit_s": Key("time to leave cluster sleep", False, True, higher_is_better=False),
    "memory.cache_bytes": Key("last-level cache, 0 where there is none", zero_allowed=True, exact=True),
    "memory.cache_bytes_per_cycle": Key("read rate of cache or on-chip SRAM, per core"),
    "memory.ram_bytes": Key("RAM of the device", exact=True),
    "memory.ram_bytes_per_s": Key("sustained read rate of RAM"),
    "memory.ram_latency_s": Key("one dependent random read", higher_is_better=False),
    "memory.flash_bytes": Key("flash or storage of the device", exact=True),
    "memory.flash_bytes_per_s": Key("sustained read rate of flash, where weights stay there", required=False),
    "budget.flash_bytes": Key("flash that system and speech may take together", exact=True),
    "budget.ram_bytes": Key("RAM that system and speech may take together", exact=True),
    "budget.system_flash_bytes": Key("operating system and other programs", zero_allowed=True, exact=True),
    "budget.system_ram_bytes": Key("operating system and other programs", zero_allowed=True, exact=True),
    "budget.temperature_c": Key("highest allowed temperature of the chip", signed=True, exact=True),
    "power.idle_w": Key("board at rest", zero_allowed=True, higher_is_better=False),
    "power.active_w": Key("one core busy at the highest clock, above rest", higher_is_better=False),
    "thermal.ambient_c": Key("air around the device", signed=True, exact=True),
    "thermal.resistance_c_per_w": Key("chip to air", higher_is_better=False),
    "thermal.capacitance_j_per_c": Key("heat stored per degree", exact=True),
    "thermal.throttle_c": Key("temperature at which the clock is lowered", signed=True, exact=True),
}
SIZE_KEYS = ("budget.flash_bytes", "memory.flash_bytes"), ("budget.ram_bytes", "memory.ram_bytes")
TOP_KEYS = {"schema", "name", "title", "runtime", "weights_in", "notes", "operating_point", "background", "fit"}
POINT_KEYS = {"clock_hz", "voltage_v", "kind", "source"}
TASK_KEYS = {"name", "period_ms", "cost_ms", "priority", "bytes_per_s", "kind", "source"}


@dataclass(frozen=True)
class OperatingPoint:
    """A clock and its voltage."""

    clock_hz: float
    voltage_v: float
    kind: str
    source: str


@dataclass(frozen=True)
class Task:
    """Background work on the recogniser's core: `cost_ms` at the highest clock every `period_ms`.

    A lower `priority` number runs first; the recogniser has priority 10. `bytes_per_s` is its share of RAM bandwidth.
    """

    name: str
    period_ms: float
    cost_ms: float
    priority: int
    bytes_per_s: float
    kind: str
    source: str


@dataclass(frozen=True)
class Device:
    """A profile that passed the schema. `figures` maps "section.key" to Figure."""

    name: str
    title: str
    runtime: str
    weights_in: str  # "ram" or "flash": where a running model reads its weights
    figures: Mapping[str, Figure]
    points: tuple[OperatingPoint, ...]  # slowest first; the last is the profile's clock
    background: tuple[Task, ...]
    fit: Mapping[str, tuple[float, ...]]  # calibrated seconds per feature, by operator class; empty: roofline
    fit_error: tuple[float, float]  # relative band of the fit: lowest and highest true/predicted on held-out networks
    notes: str

    def __getitem__(self, key: str) -> float:
        return self.figures[key].value

    def at(self, key: str, end: int) -> float:
        """Value of a figure at an end of its band."""
        return self.figures[key].at(end, SCHEMA[key].higher_is_better)

    def with_value(self, key: str, value: float) -> Device:
        """The same device with one figure moved (the band moves along); used by sweeps and what-if questions.

        Raises BudgetError where the value cannot be."""
        check_value(key, value, f"value for {key}")
        old = self.figures[key]
        ratio = value / old.value if old.value else 1.0
        moved = replace(old, value=value, low=old.low * ratio, high=old.high * ratio)
        points, background = self.points, self.background
        if key == "cpu.clock_hz":
            points = (*(p for p in self.points if p.clock_hz < value), replace(self.points[-1], clock_hz=value))
            background = tuple(replace(task, cost_ms=task.cost_ms / ratio) for task in self.background)
        return replace(self, figures={**self.figures, key: moved}, points=points, background=background)


def device_names(folder: Path = PROFILE_DIR) -> list[str]:
    """Names of the shipped profiles, sorted."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def load_device(name_or_path: str | Path) -> Device:
    """A profile by shipped name or by path of a TOML file.

    Raises DeviceError with near matches for an unknown name, and for any breach of the schema."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise DeviceError(
                f"need a device profile, have no file {path}; give an existing .toml file or a device name"
            )
        return parse_device(path)
    known = device_names()
    if str(name_or_path) not in known:
        near = difflib.get_close_matches(str(name_or_path).lower(), known, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"known: {', '.join(known)}"
        raise DeviceError(f"need a known device, have {str(name_or_path)!r}; {hint} (or give a .toml file)")
    return parse_device(PROFILE_DIR / f"{name_or_path}.toml")


def parse_device(path: Path) -> Device:
    """Read and check one TOML profile. Raises DeviceError or BudgetError."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DeviceError(f"{path.name}: need TOML, have a syntax error: {error}") from error
    except OSError as error:
        raise DeviceError(f"{path}: need a readable profile, have {error.strerror}; check its rights") from error
    where = path.name
    if data.get("schema") != SCHEMA_VERSION:
        raise DeviceError(f"{where}: need schema = {SCHEMA_VERSION}, have {data.get('schema')!r}")
    sections = {key.partition(".")[0] for key in SCHEMA}
    refuse_unknown(data, TOP_KEYS | sections, where)
    figures = read_figures(data, where)
    for budget, physical in SIZE_KEYS:
        asked, limit = figures[budget].value, figures[physical].value
        if asked > limit:
            raise BudgetError(f"{where}: need {budget} at most {physical} = {limit:.0f}, have {asked:.0f}")
    weights_in = data.get("weights_in", "ram")
    if weights_in not in ("ram", "flash"):
        raise DeviceError(f'{where}: need weights_in = "ram" or "flash", have {weights_in!r}')
    if weights_in == "flash" and "memory.flash_bytes_per_s" not in figures:
        raise DeviceError(f"{where}: weights_in is flash, so memory.flash_bytes_per_s is needed")
    fit, fit_error = read_fit(data.get("fit", {}), where)
    return Device(
        name=text(data, "name", where),
        title=text(data, "title", where),
        runtime=text(data, "runtime", where),
        weights_in=weights_in,
        figures=figures,
        points=read_points(data.get("operating_point", []), figures["cpu.clock_hz"], where),
        background=tuple(read_task(entry, where) for entry in data.get("background", [])),
        fit=fit,
        fit_error=fit_error,
        notes=str(data.get("notes", "")),
    )


def read_figures(data: Mapping, where: str) -> dict[str, Figure]:
    """All figures of a profile, optional ones filled with their default as `assumed`."""
    figures = {}
    for section in {key.partition(".")[0] for key in SCHEMA}:
        table = data.get(section, {})
        if not isinstance(table, dict):
            raise DeviceError(f"{where}: need [{section}] as a table, have {table!r}")
        refuse_unknown(
            table, {k.partition(".")[2] for k in SCHEMA if k.startswith(section + ".")}, f"{where} [{section}]"
        )
    for key, rule in SCHEMA.items():
        section, _, name = key.partition(".")
        entry = data.get(section, {}).get(name)
        if entry is not None:
            figures[key] = read_figure(key, entry, f"{where}: {key}")
        elif rule.required:
            error = BudgetError if section == "budget" else DeviceError
            raise error(f"{where}: need {key} ({rule.meaning}), have nothing; add {name} = {{ value, kind, source }}")
        elif rule.default or rule.zero_allowed:
            figures[key] = banded(key, rule.default, "assumed", "default of the schema")
    return figures


def read_figure(key: str, entry: object, where: str) -> Figure:
    """One `{ value, kind, source, low?, high? }`."""
    if not isinstance(entry, dict):
        raise DeviceError(f"{where}: need {{ value, kind, source }}, have {entry!r}")
    refuse_unknown(entry, {"value", "kind", "source", "low", "high"}, where)
    check_value(key, entry.get("value"), where)
    check_evidence(entry, where)
    figure = banded(key, float(entry["value"]), entry["kind"], entry["source"])
    low, high = entry.get("low", figure.low), entry.get("high", figure.high)
    for bound in (low, high):
        check_value(key, bound, where)
    if not low <= figure.value <= high:
        raise DeviceError(f"{where}: need low ≤ value ≤ high, have {low} ≤ {figure.value} ≤ {high}")
    return replace(figure, low=float(low), high=float(high))


def banded(key: str, value: float, kind: str, source: str) -> Figure:
    """A figure with the band its kind gives; sizes, counts and limits have none."""
    rule = SCHEMA[key]
    known = rule.exact or (rule.exact_if_known and kind in ("measured", "published"))
    width = 0.0 if known else KINDS[kind]
    return Figure(value, kind, source, value / (1 + width), value * (1 + width))


def check_value(key: str, value: object, where: str) -> None:
    """Refuse what no device can have: not a number, negative, zero where the key is a rate or a budget."""
    rule = SCHEMA[key]
    error = BudgetError if key.startswith("budget.") else DeviceError
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise error(f"{where}: need a number for {rule.meaning}, have {value!r}")
    if value < 0 and not rule.signed:
        raise error(f"{where}: need {rule.meaning} above zero, have {value}")
    if value == 0 and not (rule.zero_allowed or rule.signed):
        raise error(
            f"{where}: need {rule.meaning} above zero, have 0; leave the key out only where the schema allows it"
        )


def check_evidence(entry: Mapping, where: str) -> None:
    """Every number says what kind of evidence it is and where it comes from."""
    if entry.get("kind") not in KINDS:
        raise DeviceError(f"{where}: need kind = one of {', '.join(KINDS)}; have {entry.get('kind')!r}")
    if not isinstance(entry.get("source"), str) or not entry["source"].strip():
        raise DeviceError(f"{where}: need a source (document, board, reasoning), have {entry.get('source')!r}")


def read_points(entries: object, clock: Figure, where: str) -> tuple[OperatingPoint, ...]:
    """Operating points, slowest first; a profile without any runs at its one clock."""
    points = [OperatingPoint(clock.value, 1.0, clock.kind, clock.source)] if not entries else []
    for entry in entries:
        refuse_unknown(entry, POINT_KEYS, f"{where} [[operating_point]]")
        check_evidence(entry, f"{where} [[operating_point]]")
        for key in ("clock_hz", "voltage_v"):
            positive(entry, key, f"{where} [[operating_point]]")
        points.append(OperatingPoint(entry["clock_hz"], entry["voltage_v"], entry["kind"], entry["source"]))
    points.sort(key=lambda p: p.clock_hz)
    if not math.isclose(points[-1].clock_hz, clock.value, rel_tol=1e-6):
        raise DeviceError(
            f"{where}: need the fastest operating point at cpu.clock_hz = {clock.value:.0f}, "
            f"have {points[-1].clock_hz:.0f}"
        )
    return tuple(points)


def read_task(entry: Mapping, where: str) -> Task:
    """One `[[background]]` entry."""
    where = f"{where} [[background]]"
    refuse_unknown(entry, TASK_KEYS, where)
    check_evidence(entry, where)
    for key in ("period_ms", "cost_ms"):
        positive(entry, key, where)
    if entry["cost_ms"] >= entry["period_ms"]:
        raise BudgetError(f"{where}: need cost_ms below period_ms, have {entry['cost_ms']} of {entry['period_ms']}")
    priority, traffic = entry.get("priority", 5), entry.get("bytes_per_s", 0.0)
    if not isinstance(priority, int) or not isinstance(traffic, (int, float)) or traffic < 0:
        raise DeviceError(f"{where}: need a whole priority and bytes_per_s ≥ 0, have {priority!r} and {traffic!r}")
    name = text(entry, "name", where)
    return Task(name, entry["period_ms"], entry["cost_ms"], priority, traffic, entry["kind"], entry["source"])


def read_fit(table: Mapping, where: str) -> tuple[dict[str, tuple[float, ...]], tuple[float, float]]:
    """Calibrated seconds per feature, by operator class, and the held-out band of the fit."""
    if not table:
        return {}, (1.0, 1.0)
    classes = table.get("seconds", {})
    band = table.get("held_out", [])
    numbers = all(isinstance(v, (int, float)) and v >= 0 for row in classes.values() for v in row)
    numbers = numbers and all(len(row) == len(FEATURES) for row in classes.values())
    if not classes or not numbers or len(band) != 2 or not 0 < band[0] <= 1 <= band[1]:
        raise DeviceError(
            f"{where} [fit]: need {len(FEATURES)} seconds by class, none negative, and held_out = [low ≤ 1, high ≥ 1]"
        )
    return {name: tuple(float(v) for v in row) for name, row in classes.items()}, (float(band[0]), float(band[1]))


def positive(entry: Mapping, key: str, where: str) -> None:
    """Refuse a missing, non-numeric or non-positive value."""
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise BudgetError(f"{where}: need {key} above zero, have {value!r}")


def text(table: Mapping, key: str, where: str) -> str:
    """A non-empty string."""
    if not isinstance(table.get(key), str) or not table[key]:
        raise DeviceError(f"{where}: need {key} as text, have {table.get(key)!r}")
    return table[key]


def refuse_unknown(table: Mapping, known: Iterable[str], where: str) -> None:
    """A misspelt key is an error, with the nearest right one."""
    known = set(known)
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise DeviceError(f"{where}: need known keys, have {key!r}; {hint}")
