"""An assessment as plain data, for `--json`. Units are in the names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from firmware_sim.latency import Interval, OpTime
from firmware_sim.ledger import Ledger
from firmware_sim.scenario import Run
from firmware_sim.verdict import Assessment, Breaking, first_to_break


def as_dict(a: Assessment) -> dict[str, Any]:
    """The whole result; stable names, JSON types only."""
    nearest = first_to_break(a.breaking)
    return {
        "verdict": a.verdict,
        "broken": a.broken,
        "exit_code": a.exit_code,
        "model": model_dict(a),
        "device": {"name": a.device.name, "title": a.device.title, "runtime": a.target.name, "notes": a.device.notes},
        "unsupported": list(a.unsupported),
        "flash": ledger_dict(a.flash),
        "ram": ledger_dict(a.ram),
        "arena": {"bytes": a.plan.arena_bytes, "lower_bound_bytes": a.plan.lower_bound_bytes},
        "latency_ms": interval_ms(a.latency),
        "chunk_ms": a.model.period_s * 1e3,
        "word_delay_ms": a.word_delay_s * 1e3,
        "worst_response_ms": None if a.worst_response_s is None else a.worst_response_s * 1e3,
        "operators": [op_dict(time) for time in a.times],
        "evidence": a.evidence,
        "basis": a.basis(),
        "run": run_dict(a.run),
        "expected_run": run_dict(a.expected),
        "temperature_c": {"hottest": a.hottest_c, "limit": a.device["budget.temperature_c"]},
        "breaking_points": [breaking_dict(b) for b in a.breaking],
        "first_to_break": nearest.label if nearest else None,
        "figures": {key: figure_dict(figure) for key, figure in sorted(a.device.figures.items())},
    }


def model_dict(a: Assessment) -> dict[str, Any]:
    model = a.model
    return {
        "name": model.name,
        "encoder": model.encoder_kind,
        "precision": model.precision,
        "macs_per_chunk": model.macs,
        "macs_per_second": model.macs_per_second,
        "weight_bytes": model.weight_bytes,
        "state_bytes": model.state_bytes,
        "lookahead_ms": model.lookahead_frames * 10,
        "max_active": model.search.max_active,
    }


def ledger_dict(ledger: Ledger) -> dict[str, Any]:
    return {
        "used_bytes": ledger.used_bytes,
        "budget_bytes": ledger.budget_bytes,
        "margin_bytes": ledger.margin_bytes,
        "kept": ledger.is_kept,
        "share_assumed": ledger.share_assumed(),
        "entries": [{"label": e.label, "bytes": e.n_bytes, "kind": e.kind, "note": e.note} for e in ledger.entries],
    }


def op_dict(time: OpTime) -> dict[str, Any]:
    op = time.op
    return {
        "name": op.name,
        "operator": op.op_type,
        "kind": op.kind,
        "precision": op.precision,
        "macs": op.macs,
        "weight_bytes": op.weight_bytes,
        "traffic_bytes": op.traffic_bytes,
        "memory_bytes": time.slow_bytes,
        "intensity": op.intensity,
        "ms": time.total_s * 1e3,
        "bound": time.bound,
    }


def run_dict(run: Run) -> dict[str, Any]:
    return {
        "audio_s": run.audio_s,
        "samples": {
            "captured": run.captured,
            "consumed": run.consumed,
            "dropped": run.dropped,
            "in_ring": run.in_ring,
        },
        "overruns": len(run.gaps),
        "chunks": len(run.jobs),
        "late": run.n_late,
        "lateness_ms": {f"p{p:g}": run.lateness(p) * 1e3 for p in (50, 99, 99.9)},
        "response_ms": {f"p{p:g}": run.response(p) * 1e3 for p in (50, 99, 99.9)},
        "rtf": run.rtf,
        "energy_j": run.energy_j,
        "mean_power_w": run.mean_power_w,
        "throttled_at_s": run.throttled_at_s,
        "peak_temperature_c": run.peak_temperature_c,
        "steady_temperature_c": run.steady_temperature_c,
    }


def breaking_dict(b: Breaking) -> dict[str, Any]:
    return {"figure": b.label, "factor": b.factor, "value": b.value, "unit": b.unit, "kind": b.kind}


def figure_dict(figure: object) -> Mapping[str, Any]:
    return {name: getattr(figure, name) for name in ("value", "kind", "source", "low", "high")}


def interval_ms(interval: Interval) -> dict[str, float]:
    return {"low": interval.low * 1e3, "nominal": interval.nominal * 1e3, "high": interval.high * 1e3}
