"""What the articles claim of recurrent, convolutional and attending encoders, held against what was measured here.

No verdict is written by hand: each follows from results.json and config.json, and says so where they cannot decide,
above all where the models were not trained alike. Differences of word error rates carry a 95 % interval from resampling
the clips in pairs (Bisani and Ney 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from edge_asr.measured import CHUNKS_MS, Model, ancestors, stamps

HOLDS, PARTLY, FAILS, OPEN = "holds here", "holds in part", "does not hold here", "cannot be said from these models"
SAME_SIZE = 0.05  # relative difference of parameters within which encoders are compared
SAME_HOURS = 0.05
INT8_LIMIT = 0.02
FAINT = 0.01  # of a disturbance's first effect: a reach that is there, but weak
LATE_S = 20.0  # beyond convolutions of these sizes, and 500 steps of a recurrence
N_RESAMPLES = 2000


@dataclass(frozen=True)
class Claim:
    """A claim, the verdict of the data, and the data."""

    title: str
    claim: str
    verdict: str
    evidence: list[str]


def claims(models: Sequence[Model]) -> list[Claim]:
    """All claims, in the order of the page."""
    same = of_one_size(models)
    return [
        bandwidth(models),
        fewer_errors(
            same,
            ("tcn", "lstm"),
            "Convolutions beat recurrence",
            "A TCN with the parameters, data and schedule of an LSTM makes fewer errors (Bai, Kolter and Koltun 2018).",
        ),
        fewer_errors(
            same,
            ("attention", "tcn"),
            "Attention to the past beats convolutions alone",
            "Gated convolutions with hierarchical attention between them make fewer errors than as many parameters of "
            "convolutions.",
        ),
        reach(models),
        profit(models),
        chunks(models),
        quantisation(models),
    ]


# --- what makes a comparison fair ----------------------------------------------------------------------------------


def of_one_size(models: Sequence[Model]) -> list[Model]:
    """The largest group of models with nearly the same number of parameters."""
    groups = [
        [m for m in models if m.parameters and one.parameters <= m.parameters <= (1 + SAME_SIZE) * one.parameters]
        for one in models
        if one.parameters
    ]
    return max(groups, key=len, default=[])


def comparable(models: Sequence[Model]) -> list[Model]:
    """The models of one size that were trained alike, if they are of two kinds at least; else all of that size."""
    sized = of_one_size(models)
    groups = [[m for m in sized if m is one or not training_differences([one, m])] for one in sized]
    alike = [group for group in groups if len({m.encoder for m in group}) > 1 and not training_differences(group)]
    return max(alike, key=len, default=sized)


def training_differences(models: Sequence[Model]) -> list[str]:
    """In which ways models were not trained alike, from the records of their training; empty where they were."""
    unknown = [m.name for m in models if not m.training]
    known = [m for m in models if m.training]
    found = [f"nothing is recorded of the training of {', '.join(unknown)}"] if unknown else []
    hours = {m.name: m.training["heard_h_in_all"] for m in known}
    if known and max(hours.values()) > (1 + SAME_HOURS) * min(hours.values()):
        found.append("hours heard in all: " + listed(hours))
    origins = {m.name: [run.get("encoder", "unknown") for run in ancestors(m.training)] for m in known}
    borrowed = {name: kinds for name, kinds in origins.items() if set(kinds) - {kind_of(known, name)}}
    for name in borrowed:
        found.append(f"{name} started from the weights of another encoder ({', '.join(borrowed[name])})")
    if len({len(kinds) for kinds in origins.values()}) > 1:
        found.append("runs one after another: " + listed({name: len(kinds) + 1 for name, kinds in origins.items()}))
    for part in ("schedule", "augment"):
        plans = [m.training.get(part, {}) for m in known]
        keys = sorted({key for plan in plans for key in plan})  # older records lack what was nothing then
        differing = [key for key in keys if len({repr(plan.get(key) or None) for plan in plans}) > 1]
        if differing:
            found.append(f"{part} of the last run: {', '.join(key.replace('_', ' ') for key in differing)} differ")
    teachers = {m.name: m.training.get("teacher", {}).get("name", "nobody") for m in known}
    if len(set(teachers.values())) > 1:
        found.append("taught by: " + listed(teachers))
    return found


def kind_of(models: Sequence[Model], name: str) -> str:
    return next(m.encoder for m in models if m.name == name)


def training_note(models: Sequence[Model]) -> str:
    """Which models of one size were trained alike, and how others of it were not; empty where there are no two."""
    sized, group = of_one_size(models), comparable(models)
    if len(group) < 2:
        return ""
    names, differences = ", ".join(m.name for m in group), training_differences(group)
    if differences:
        return f"Not a comparison of encoders alone: {names} were not trained alike: {'; '.join(differences)}."
    note = f"{names} were trained alike: the same schedule, augmentation and hours."
    for other in (m for m in sized if m not in group):
        note += f" {other.name}, of the same size, was not: {'; '.join(training_differences([group[0], other]))}."
    return note


def stale_notes(models: Sequence[Model]) -> list[str]:
    """Models whose figures belong to an earlier export or graph."""
    return [
        f"{m.name}: measured with other weights or another graph than lie there now: {', '.join(m.stale)}."
        for m in models
        if m.stale
    ]


def notes(models: Sequence[Model]) -> list[str]:
    """What a reader must know beside the table."""
    found = [training_note(models)] if training_note(models) else []
    found += stale_notes(models)
    thinned = sorted({row["every"] for m in models for row in m.results.get("rows", {}).values() if row["every"] > 1})
    if thinned:
        found.append(
            f"Chunk sizes and long recordings of some models were measured on every {thinned[-1]}th clip; in brackets "
            "the rate of chunks of 320 ms, each clip from silence, on the same clips."
        )
    found.append(
        "Speeds are CPU time, taken clip by clip in turn, on machines that did other work too: trust the ratios of one "
        "run more than the figures. The sets are small development subsets on which the search was tuned."
    )
    for line in stamps(models):
        machine, load = line["machine"], line["load"]
        busy = f", load {load[0]:g} to {load[1]:g}" if load else ""
        when = line["first"][:10] if line["first"][:10] == line["last"][:10] else f"{line['first']} to {line['last']}"
        found.append(f"{line['model']}: {when}, {machine['cpu']}, {machine['cores']} cores{busy}; {line['command']}")
    return found


def listed(values: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:,g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items()
    )


# --- differences of error rates ------------------------------------------------------------------------------------


def paired_difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """(WER of second − first, low, high) in points over the clips of both rows; None where they share none."""
    if "clip_errors" not in first or "clip_errors" not in second or first["dev_set"] != second["dev_set"]:
        return None
    step = max(first["every"], second["every"])
    if step % first["every"] or step % second["every"]:
        return None
    one, two = (np.array(row["clip_errors"][:: step // row["every"]]) for row in (first, second))
    words = np.array(first["clip_words"][:: step // first["every"]])
    if len(one) != len(two) or not words.sum():
        return None
    chosen = np.random.default_rng(0).integers(0, len(words), (N_RESAMPLES, len(words)))
    totals = words[chosen].sum(axis=1)
    resampled = 100 * (two - one)[chosen].sum(axis=1)[totals > 0] / totals[totals > 0]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return float(100 * (two - one).sum() / words.sum()), float(low), float(high)


def said(difference: tuple[float, float, float]) -> str:
    value, low, high = difference
    return f"{value:+.2f} points of WER (95 %: {low:+.2f} to {high:+.2f})"


# --- the claims ----------------------------------------------------------------------------------------------------


def ns_per_mac(model: Model, chunk_ms: int) -> float | None:
    """CPU time of the encoder for one multiply-add, in nanoseconds."""
    time, macs = model.speed(chunk_ms).get("encoder_rtf_cpu"), model.cost(chunk_ms).get("macs_per_s")
    return 1e9 * time / macs if time and macs else None


def bandwidth(models: Sequence[Model]) -> Claim:
    """Bytes for each multiply-add, counted; and whether the time follows, measured."""
    counted = [m for m in models if m.cost().get("macs_per_s")]
    recurrent = [m for m in counted if m.cost()["reread_bytes_per_s"]]
    others = [m for m in counted if m not in recurrent]
    evidence = []
    for m in counted:
        weights = {ms: c["weight_bytes_per_s"] / c["macs_per_s"] for ms in CHUNKS_MS if (c := m.cost(ms))}
        line = f"{m.name}: weight bytes per multiply-add " + ", ".join(
            f"{v:.3f} at {ms} ms" for ms, v in weights.items()
        )
        line += f"; with state and activations {m.bytes_per_mac():.3f} at 320 ms"
        times = {ms: t for ms in CHUNKS_MS if (t := ns_per_mac(m, ms)) is not None}
        if times:
            line += "; CPU time per multiply-add " + ", ".join(f"{t:.4f} ns at {ms} ms" for ms, t in times.items())
        evidence.append(line)
    verdict = OPEN
    if recurrent and others:
        in_bytes = min(map(weights_per_mac, recurrent)) > max(map(weights_per_mac, others))
        paces = [[t for m in group if (t := ns_per_mac(m, 320)) is not None] for group in (recurrent, others)]
        in_time = all(paces) and min(paces[0]) > max(paces[1])
        verdict = HOLDS if in_bytes and in_time else PARTLY if in_bytes or in_time else FAILS
        evidence.append(
            f"the recurrence reads {'the most' if in_bytes else 'no more'} weights for a multiply-add"
            + (f", and it {'is' if in_time else 'is not'} the slowest for one on this machine" if all(paces) else "")
        )
    return Claim(
        "A recurrence waits for memory",
        "An LSTM reads its recurrent weights again at every step, so at batch one it moves about a byte for each "
        "multiply-add whatever the chunk; convolutions and attention use a weight once for all vectors of a chunk. "
        "(Whether that costs time depends on whether the weights stay in the cache.)",
        verdict,
        evidence,
    )


def weights_per_mac(model: Model) -> float:
    return model.cost()["weight_bytes_per_s"] / model.cost()["macs_per_s"]


def fewer_errors(models: Sequence[Model], kinds: tuple[str, str], title: str, claim: str) -> Claim:
    """Does the first kind err less than the second? Of one size, the two most alike in training, on the same clips."""
    pairs = product(*([m for m in models if m.encoder == kind] for kind in kinds))
    first, second = min(pairs, key=lambda pair: len(training_differences(pair)), default=(None, None))
    if first is None or second is None:
        return Claim(title, claim, OPEN, [])
    verdict, evidence = OPEN, []
    for name in ("dev-clean", "dev-accent"):
        difference = paired_difference(second.row(name), first.row(name))
        if difference is None:
            continue
        evidence.append(f"{name}: {first.name} against {second.name} {said(difference)}")
        if name == "dev-clean":
            verdict = HOLDS if difference[2] < 0 else FAILS if difference[1] > 0 else OPEN
    differences = training_differences([first, second])
    better, other = (first, second) if verdict == HOLDS else (second, first)
    hours = [m.training.get("heard_h_in_all", 0.0) for m in (better, other)]
    if differences and not 0 < hours[0] <= hours[1]:  # with less training the better one would still be better
        verdict = OPEN
    return Claim(title, claim, verdict, evidence + [f"not trained alike: {d}" for d in differences])


def effects(model: Model) -> list[tuple[float, float]]:
    """(seconds since, mean divergence in nats) after 320 ms of a recording were exchanged; empty where not measured."""
    found = model.results.get("memory", {}).get("influence", {})
    pairs = zip(found.get("from_s", ()), found.get("divergence_nats", ()))
    return [(since, effect) for since, effect in pairs if effect is not None]


def reach(models: Sequence[Model]) -> Claim:
    """How far back a sound still counts."""
    known = [(m, effects(m)) for m in models if effects(m) and effects(m)[0][1]]
    late = {m.name: max((e for since, e in found if since >= LATE_S), default=0.0) for m, found in known}
    attending = {m.name: found[0][1] for m, found in known if m.encoder == "attention"}
    others = [late[m.name] for m, _ in known if m.encoder != "attention"]
    verdict = OPEN
    if attending and others:
        best = max(attending, key=late.__getitem__)
        strong = late[best] >= FAINT * attending[best]
        verdict = FAILS if late[best] <= max(others) else HOLDS if strong else PARTLY
    evidence = []
    for m, found in known:
        curve = ", ".join(f"{effect:.2g} from {since:g} s" for since, effect in found)
        share = 100 * late[m.name] / found[0][1]
        evidence.append(f"{m.name}: after {LATE_S:g} s {share:.2g} % of the first effect is left; in nats {curve}")
    evidence.append(
        "by construction a sound ten seconds back passes 250 steps of an LSTM, two of the attention (its summary, then "
        "the query), and is nowhere for a TCN whose dilated layers do not see so far"
    )
    return Claim(
        "A short path reaches further",
        "Attention over recent vectors and summaries puts all of the past a few steps away, where an LSTM must carry "
        "it through every step and a TCN ends with its receptive field. Measured: 320 ms of a recording are exchanged, "
        f"and the effect on later emissions is followed: who has most of it left after {LATE_S:g} s? (Less than a "
        "hundredth of the first effect counts as holding in part: it is there, but faint.)",
        verdict,
        evidence,
    )


def profit(models: Sequence[Model]) -> Claim:
    """Does what is remembered over clips help? The same clips with the state kept and with the state reset."""
    differences = [
        (m, d) for m in models if (d := paired_difference(m.row("dev-clean"), m.row("dev-clean long recordings")))
    ]
    attending = [d for m, d in differences if m.encoder == "attention"]
    helped = [d for d in attending if d[2] < 0]
    return Claim(
        "A long memory makes fewer errors",
        "An encoder that has heard a speaker for minutes should know the voice. Measured: the clips of each speaker "
        "as one recording with the state kept, against each clip from silence; the search begins anew each time.",
        OPEN if not attending else HOLDS if helped else FAILS,
        [f"{m.name}: keeping the state {said(d)}" for m, d in differences],
    )


def chunks(models: Sequence[Model]) -> Claim:
    """Is the text free of the chunk size?"""
    evidence, worst = [], 0.0
    for m in models:
        parts = []
        for ms in CHUNKS_MS:
            row = m.at_chunk(ms)
            difference = paired_difference(m.at_chunk(320), row) if ms != 320 else None
            if difference:
                worst = max(worst, abs(difference[0]))
                parts.append(
                    f"{ms} ms {difference[0]:+.2f} points, "
                    f"{row['same_emissions_as_320_ms']} of {row['clips']} clips bit for bit the same"
                )
        if parts:
            evidence.append(f"{m.name} against 320 ms: {'; '.join(parts)}")
    return Claim(
        "The chunk changes the delay, not the words",
        "The same model serves chunks of 80 to 640 ms: offline is one long chunk. (int8 LSTMs take their ranges from "
        "each chunk, so theirs may differ by roundings.)",
        OPEN if not evidence else HOLDS if worst <= 0.2 else FAILS,
        evidence,
    )


def quantisation(models: Sequence[Model]) -> Claim:
    """What int8 costs."""
    evidence, ratios = [], []
    for m in models:
        int8, fp32 = m.row("dev-clean"), m.row("dev-clean fp32")
        difference = paired_difference(fp32, int8)
        if difference:
            ratios.append(int8["wer"] / fp32["wer"] - 1 if fp32["wer"] else 0.0)
            evidence.append(f"{m.name}: int8 against fp32 {said(difference)}, {100 * ratios[-1]:+.1f} % relative")
    return Claim(
        "int8 costs nothing",
        f"Eight bits cost at most {100 * INT8_LIMIT:g} % of the errors.",
        OPEN if not ratios else HOLDS if max(ratios) <= INT8_LIMIT else FAILS,
        evidence,
    )
