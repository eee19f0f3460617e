"""Write models/NAME/README.md from config.json and results.json: python benchmarks/model_card.py [NAME …]

Nothing in a card is written by hand but models/CREDITS.md, the data and their licences.
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.model_files import read_config

ROOT = Path(__file__).parent.parent
LENGTHS_S = (0, 5, 10, 20, 1e9)  # edges of the bins of utterances by length
N_WORDS = 8

CARD = """\
# {name}

Streaming phone CTC encoder for English ({encoder}: {shape}).

- {parameters:.2f} M parameters; int8 {int8_mb:.2f} MB, fp32 (stored as fp16) {fp32_mb:.2f} MB
- delay: {lookahead_ms} ms look-ahead beside the chunk (320 ms by default); any chunk that is a multiple of 40 ms gives
  the same output
- decoding graph `{graph}`, {decoder}
- int8: linear layers QDQ U8S8 per channel with static ranges, LSTM layers dynamic; left in fp32: {fp32_nodes};
  {changes} % of the greedy tokens of calibration clips differ from fp32's
{cost}
## Figures

int8, streamed in chunks of 320 ms, with the model's graph, except where the row says otherwise. The sets are small
development subsets (4 readers of LibriSpeech dev-clean, 18 Mandarin-accented speakers of speechocean762, words of
Speech Commands, Free Spoken Digits at 8 kHz), not the corpora's own test sets; searches were tuned here.

| set | clips | WER % | sub / ins / del | whole clip right % |
|---|---|---|---|---|
{rows}

{measured}

## Training

{training}

## Data and licences

{credits}
## What it is bad at

{weaknesses}
By construction: it knows English only, writes lower case without punctuation, spells numbers out, and knows no word
outside the vocabulary of its graph.
"""


def card(name: str, config: dict[str, Any], results: dict[str, Any], credits: str) -> str:
    """The model card in Markdown."""
    report, rows = config["export"], results["rows"]
    counts = ("substitutions", "insertions", "deletions")
    lines = [
        f"| {title} | {row['clips']} | {row['wer']:.1f} | {' / '.join(str(row[c]) for c in counts)} "
        f"| {row['exact_percent']:.1f} |"
        for title, row in rows.items()
    ]
    return CARD.format(
        name=name,
        encoder=config["encoder"],
        shape=", ".join(f"{k} {v}" for k, v in config.get("encoder_config", {}).items()),
        parameters=report["parameters"] / 1e6,
        int8_mb=report["int8_bytes"] / 1e6,
        fp32_mb=report["fp32_bytes"] / 1e6,
        lookahead_ms=10 * config.get("lookahead_frames", 0),
        graph=config.get("graph", "none"),
        decoder=", ".join(f"{k.replace('_', ' ')} {v}" for k, v in config.get("decoder", {}).items()),
        fp32_nodes=", ".join(report.get("fp32_nodes", [])) or "nothing",
        changes=report["int8_token_changes_percent"],
        cost=cost_lines(results),
        rows="\n".join(lines),
        measured=measured_line(rows),
        training=training_text(config.get("training"), config.get("training_note", "")),
        credits=credits,
        weaknesses=weaknesses(rows),
    )


def cost_lines(results: dict[str, Any]) -> str:
    """What it computes and moves, and how long that took."""
    text = ""
    cost = results.get("cost", {}).get("int8 320 ms")
    if cost:
        moved = sum(cost[f"{part}_bytes_per_s"] for part in ("weight", "state", "activation"))
        text += (
            f"- {cost['macs_per_s'] / 1e6:.1f} M multiply-adds and {moved / 1e6:.1f} MB moved per second of audio at "
            f"320 ms; state of a stream {cost['state_bytes'] / 1e3:.1f} kB\n"
        )
    speed = results.get("speed", {}).get("run")
    if speed:
        chunk, machine = speed["chunks"]["320"], speed["measured"]["machine"]
        peer = chunk["ratio_to_pocketsphinx"]
        text += (
            f"- {chunk['rtf_cpu']:.4f} CPU seconds per second of audio (encoder {chunk['encoder_rtf_cpu']:.4f}), "
            f"{chunk['chunk_cpu_ms']['p99']:.1f} ms of CPU for all but 1 % of the chunks of 320 ms, on one core of a "
            f"shared {machine['cpu']}"
            + (f"; {peer:.3f} of what PocketSphinx took for the same clips in the same run\n" if peer else "\n")
        )
    return text


def measured_line(rows: dict[str, Any]) -> str:
    dates = sorted(row["measured"]["date"] for row in rows.values())
    stamp = next(iter(rows.values()))["measured"]
    return f"Measured {dates[0][:10]} on {stamp['machine']['cpu']} by `{stamp['command']}`."


def training_text(record: dict[str, Any] | None, note: str) -> str:
    """Hours, epochs, speed, seed and schedule of the run and of the runs before it."""
    if record is None:
        return "The export says nothing about it."
    text, earlier = run_text(record), record.get("started_from")
    while earlier:
        text += f"\n\nIt started from the weights of `{earlier['run']}`"
        text += f" ({earlier['encoder']}). " + run_text(earlier) if "steps" in earlier else ", whose record is lost."
        earlier = earlier.get("started_from")
    if record["heard_h_in_all"] != record["heard_h"]:
        text += f"\n\n{record['heard_h_in_all']} hours heard in all."
    return text + (f" {note}" if note else "")


def run_text(run: dict[str, Any]) -> str:
    plan = run["schedule"]
    machine = f" on {run['machine']['cpu']}" if run.get("machine") else ""
    processes = f", {run['n_processes']} processes" if run.get("n_processes") else ""
    chosen = f" ({run['weights']})" if run.get("weights", "last") != "last" else ""
    beside = ""
    if weight := plan.get("consistency_weight"):
        beside = f"; two views of each clip drawn to each other, {weight}"
    if teacher := run.get("teacher"):
        beside += f"; drawn to what {teacher['name']} hears in the undisturbed clip, {teacher['weight']}"
    return (
        f"{run['heard_h']} hours heard ({plan['passes']} passes over the data) in {run['steps']} steps and "
        f"{run['spent_h']} hours{machine}{processes}: {run['x_real_time']} × real time; seed {run['seed']}. "
        f"{100 * plan['crf_from']:.0f} % of the run with CTC, then CTC-CRF with {plan['ctc_weight']} CTC beside it; "
        f"intermediate CTC {plan['aux_weight']}{beside}; Muon {plan['muon_lr']} and AdamW {plan['adam_lr']}, linear "
        f"decay to zero; averaged weights{chosen}. Augmentation: "
        + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in run["augment"].items())
        + "."
    )


def weaknesses(rows: dict[str, Any]) -> str:
    """Measured: where the errors are, by set, by speaker, by length and by word."""
    lines = []
    clean, accent = rows.get("dev-clean"), rows.get("dev-accent")
    if clean and accent:
        lines.append(f"- accents: {accent['wer']:.1f} % WER on dev-accent against {clean['wer']:.1f} % on dev-clean")
    for name, row in (("dev-clean", clean), ("dev-accent", accent)):
        if row and len(row.get("speakers", ())) > 1:
            rates = sorted(100 * errors / max(words, 1) for _, words, errors in row["speakers"].values())
            lines.append(
                f"- speakers: from {rates[0]:.1f} to {rates[-1]:.1f} % WER over the {len(rates)} of {name} "
                f"(median {np.median(rates):.1f})"
            )
    if clean and "clip_s" in clean:
        lines.append("- utterances by length (dev-clean): " + ", ".join(by_length(clean)))
    for name in ("dev-commands", "dev-digits"):
        free, bound = rows.get(name), rows.get(f"{name} with grammar")
        if free and bound:
            lines.append(
                f"- single words of {name} without a grammar: {free['exact_percent']:.1f} % right, "
                f"with one {bound['exact_percent']:.1f} %"
            )
    for name in ("dev-clean", "dev-commands with grammar", "dev-digits with grammar"):
        if rows.get(name, {}).get("worst_words"):
            words = [f"{word} {missed}/{said}" for word, said, missed in rows[name]["worst_words"][:N_WORDS]]
            lines.append(f"- most often misheard in {name}: {', '.join(words)}")
    return "\n".join(lines) + "\n" if lines else "Not measured.\n"


def by_length(row: dict[str, Any]) -> list[str]:
    seconds, words, errors = (np.array(row[f"clip_{key}"]) for key in ("s", "words", "errors"))
    parts = []
    for low, high in pairwise(LENGTHS_S):
        chosen = (seconds >= low) & (seconds < high)
        if words[chosen].sum():
            label = f"{low}–{high} s" if high < 1e9 else f"over {low} s"
            parts.append(f"{label} {100 * errors[chosen].sum() / words[chosen].sum():.1f} %")
    return parts


def write(model: Path) -> None:
    results = json.loads((model / "results.json").read_text(encoding="utf-8"))
    credits = (ROOT / "models" / "CREDITS.md").read_text(encoding="utf-8")
    (model / "README.md").write_text(card(model.name, read_config(model), results, credits), encoding="utf-8")


def main(argv: list[str]) -> None:
    for name in argv or [path.parent.name for path in sorted((ROOT / "models").glob("*/results.json"))]:
        write(ROOT / "models" / name)


if __name__ == "__main__":
    main(sys.argv[1:])
