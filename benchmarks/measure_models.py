"""Measure the shipped models on dev sets and write models/NAME/results.json and the model cards.

    python benchmarks/measure_models.py SPEECH_DIR [--models tcn-small …] [--workers 2]

SPEECH_DIR holds dev-clean.jsonl, dev-accent.jsonl, dev-commands.jsonl and dev-digits.jsonl. Figures are streamed in
chunks of 320 ms. Accuracy of a command or digit is the share of clips whose whole text is right.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from edge_asr.evaluate import evaluate
from edge_asr.model_files import read_config, seal

ROOT = Path(__file__).parent.parent
GRAMMARS = {"dev-commands": "commands", "dev-digits": "digits"}
FIGURES = ("clips", "words", "wer", "substitutions", "insertions", "deletions")

CREDITS = """\
| source | hours | speakers | licence | credit |
|---|---|---|---|---|
| LibriSpeech train-clean-100, train-clean-5 (parts) | 12.45 | 251 | CC BY 4.0 | Panayotov et al. 2015 |
| speechocean762 | 4.82 | 216 | CC BY 4.0 | Zhang et al. 2021 |
| Kathleen | 1.37 | 1 | CC0 | rhasspy dataset-voice-kathleen |
| African Storybook (English) | 1.14 | 2+ | CC BY | African Storybook / Global ASP |
| Speech Commands v2 (part) | 0.95 | 235 | CC BY 4.0 | Warden 2018 |
| LJSpeech (part) | 0.87 | 1 | public domain | Ito and Johnson 2017 |
| AN4 | 0.71 | 74 | CMU, any use with notice | CMU AN4 (census), 1991 |
| Alphanumeric Audio Dataset (part) | 0.33 | 44 | MIT | – |
| Common Voice English (part) | 0.06 | 4 | CC0 | Mozilla |
| Moonshine test assets | 0.06 | 2 | MIT | Moonshine |

Noise: ESC-10 (CC BY 3.0, K. Piczak). Rooms: simulated (pyroomacoustics). Language model: public-domain novels,
LibriSpeech transcripts (CC BY 4.0), SLURP and NLU-Evaluation (CC BY 4.0), CLINC150 (CC BY 3.0), Snips (CC0), Home
Assistant intents (CC BY 4.0). Pronunciations: CMUdict (Carnegie Mellon University, BSD) and a model trained on it.
"""


def measure(model: Path, speech: Path, workers: int) -> dict[str, Any]:
    """Every dev set with the model's graph, dev-clean in fp32 and greedy too, commands and digits with a grammar."""
    results: dict[str, Any] = {}

    def run(name: str, dev_set: str, **options: Any) -> None:
        figures, clips = evaluate(speech / f"{dev_set}.jsonl", {"model": str(model), **options}, workers=workers)
        exact = sum(result.text == result.clip.text for result in clips)
        results[name] = {key: figures[key] for key in FIGURES} | {"exact_percent": round(100 * exact / len(clips), 2)}
        print(model.name, name, json.dumps(results[name]), flush=True)

    for dev_set in ("dev-clean", "dev-accent", "dev-commands", "dev-digits"):
        run(dev_set, dev_set)
        if dev_set in GRAMMARS:
            run(
                f"{dev_set} with grammar",
                dev_set,
                grammar=str(ROOT / "samples" / "grammars" / f"{GRAMMARS[dev_set]}.txt"),
            )
    run("dev-clean fp32", "dev-clean", precision="fp32")
    return results


CARD = """\
# {name}

Streaming phone CTC encoder for English ({encoder}: {shape}).

- {parameters:.2f} M parameters; int8 {int8_mb:.2f} MB, fp32 (stored as fp16) {fp32_mb:.2f} MB
- delay: {lookahead_ms} ms look-ahead beside the chunk (320 ms by default); any chunk that is a multiple of 40 ms gives
  the same output
- decoding graph `{graph}`, acoustic scale {acoustic_scale}, beam {beam}
- int8: linear layers QDQ U8S8 per channel with static ranges, LSTM layers dynamic; left in fp32 on request:
  {fp32_nodes}; {changes} % of the greedy tokens differ from fp32's

## Figures

int8, streamed in chunks of 320 ms, except where the row says otherwise; `python benchmarks/measure_models.py`. The sets
are small development subsets (4 readers of LibriSpeech dev-clean, 18 Mandarin-accented speakers of speechocean762,
words of Speech Commands, Free Spoken Digits at 8 kHz), not the corpora's own test sets; searches were tuned here.

| set | clips | WER % | sub / ins / del | whole clip right % |
|---|---|---|---|---|
{rows}
## Training

{hours_heard} hours heard ({passes:.1f} passes over 22.8 hours) in {steps} steps, {hours_of_training} hours on one CPU
core shared with other work{started}; seed {seed}. {ctc_share:.0f} % of the run with CTC, then CTC-CRF with
{ctc_weight} CTC beside it; intermediate CTC {aux_weight}; Muon {muon_lr} and AdamW {adam_lr}, linear decay to zero;
averaged weights. {note}
Augmentation at the end of the run: `{augment}`.

## Data and licences

{credits}
## What it is bad at

Strong accents, children, far or noisy microphones, names and words outside the vocabulary of its graph, single short
words without a grammar. It knows English only, writes lower case without punctuation, and spells numbers out.
"""


def card(model: Path, results: dict[str, Any]) -> str:
    """The model card in Markdown, from the export's report, the training metadata and the measured figures."""
    import onnx

    config = read_config(model)
    metadata = {p.key: p.value for p in onnx.load(model / "encoder.int8.onnx").metadata_props}
    training, report = json.loads(metadata["training"]), config["export"]
    counts = ("substitutions", "insertions", "deletions")
    rows = [
        f"| {name} | {row['clips']} | {row['wer']:.1f} | {' / '.join(str(row[c]) for c in counts)} "
        f"| {row['exact_percent']:.1f} |\n"
        for name, row in results.items()
    ]
    return CARD.format(
        name=model.name,
        encoder=metadata["encoder"],
        shape=", ".join(f"{k} {v}" for k, v in json.loads(metadata["config"]).items()),
        parameters=report["parameters"] / 1e6,
        int8_mb=report["int8_bytes"] / 1e6,
        fp32_mb=report["fp32_bytes"] / 1e6,
        lookahead_ms=10 * int(metadata["lookahead_frames"]),
        graph=config["graph"],
        **config["decoder"],
        fp32_nodes=", ".join(json.loads(metadata.get("fp32_nodes", "[]"))) or "none",
        changes=report["int8_token_changes_percent"],
        rows="".join(rows),
        passes=training["hours_heard"] / 22.77,
        started=f", starting from the weights of {training['init']}" if training["init"] else "",
        ctc_share=100 * training["crf_from"],
        note=config.get("training_note", ""),
        credits=CREDITS,
        **{k: v for k, v in training.items() if k not in ("passes", "init", "crf_from", "batch_s")},
    )


def write_wer(model: Path, results: dict[str, Any]) -> None:
    """Put the measured error rates into both encoder files, so that each says on its own what it can do."""
    import onnx

    for name in ("encoder.onnx", "encoder.int8.onnx"):
        encoder = onnx.load(model / name)
        for entry in encoder.metadata_props:
            if entry.key == "wer":
                entry.value = json.dumps({k: row["wer"] for k, row in results.items()})
        onnx.save(encoder, model / name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("speech", type=Path, help="folder with the dev manifests")
    parser.add_argument("--models", nargs="+", default=["tcn-small", "lstm-small", "attention-small"])
    parser.add_argument("--folder", type=Path, default=ROOT / "models")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--card-only", action="store_true", help="write the card again from results.json")
    arguments = parser.parse_args()
    for name in arguments.models:
        model = arguments.folder / name
        if not arguments.card_only:
            results = measure(model, arguments.speech, arguments.workers)
            (model / "results.json").write_text(json.dumps(results, indent=2) + "\n")
            write_wer(model, results)
            seal(model)
        results = json.loads((model / "results.json").read_text())
        (model / "README.md").write_text(card(model, results))


if __name__ == "__main__":
    main()
