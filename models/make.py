"""Make a shipped model from the manifests: align, train, export, measure, card.

    python models/make.py tcn-small SPEECH_DIR           # or: all
    python models/make.py all SPEECH_DIR --dry-run       # only print the commands

SPEECH_DIR holds train.jsonl, dev-*.jsonl and noise/. A shipped model tells which pronunciation of each word was said,
for all to train on. The arguments of each model stand in models/recipes.toml. Every step goes on where it was stopped:
a run resumes from its last checkpoint, a finished run is not trained again, and what was measured with the same encoder
is kept. The graphs are built by models/build_graphs.py.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edge_asr.errors import EdgeAsrError, TrainingError, UsageError
from edge_asr.model_files import read_config

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "models" / "recipes.toml"
STEPS = ("align", "train", "export", "measure", "compare")
ALIGNED = "train-aligned.jsonl"  # in the folder of the runs
Command = list[str]


def read_recipes(path: Path = RECIPES) -> dict[str, dict[str, Any]]:
    """Name of a model -> its tables `stages` (training arguments of each run), `align`, `export` and `decoder`."""
    tables = tomllib.loads(path.read_text(encoding="utf-8"))
    recipes = {}
    for name, own in tables["models"].items():
        own = merged(tables["models"][own["like"]], own) if "like" in own else dict(own)
        own.pop("like", None)
        stages = own.pop("stages", [{}])
        align, export, decoder = ({**tables[t], **own.pop(t, {})} for t in ("align", "export", "decoder"))
        recipes[name] = {
            "stages": [merged(merged(tables["train"], own), stage) for stage in stages],
            "align": align,
            "export": export,
            "decoder": decoder,
        }
    return recipes


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` over `below`, tables inside too."""
    out = dict(below)
    for key, value in above.items():
        out[key] = {**out.get(key, {}), **value} if isinstance(value, Mapping) else value
    return out


def flags(arguments: Mapping[str, Any], prefix: str = "--") -> Command:
    """Arguments as `edge-asr train` takes them."""
    out: Command = []
    for name, value in arguments.items():
        flag = prefix + (name if "." in prefix else name.replace("_", "-"))
        if name == "encoder_options":
            out += [flag, json.dumps(value)]
        elif isinstance(value, Mapping):
            out += flags(value, f"{flag}.")
        else:
            out += [flag, *(str(v) for v in (value if isinstance(value, list) else [value]))]
    return out


def align_command(recipe: Mapping[str, Any], speech: Path, runs: Path) -> Command:
    """The training manifest with the pronunciations that were said, and without clips that do not fit their text."""
    return [
        sys.executable, "-m", "edge_asr.cli", "align", "--manifest", str(speech / "train.jsonl"),
        "--out", str(runs / ALIGNED), *flags(recipe["align"]),
    ]  # fmt: skip


def train_commands(name: str, recipe: Mapping[str, Any], speech: Path, runs: Path, n_processes: int) -> list[Command]:
    """One command for each stage; the last one's folder has the model's name."""
    program = [sys.executable, "-m", "edge_asr.train"]
    if n_processes > 1:
        program = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_processes}",
                   "-m", "edge_asr.train"]  # fmt: skip
    data = {"manifest": runs / ALIGNED, "dev": speech / "dev-clean.jsonl", "noise": speech / "noise"}
    n_stages = len(recipe["stages"])
    outs = [runs / (name if i == n_stages - 1 else f"{name}-{i + 1}") for i in range(n_stages)]
    commands = []
    for i, stage in enumerate(recipe["stages"]):
        init = {"init": outs[i - 1] / "final.pt"} if i else {}
        commands.append([*program, *flags({**data, **init, "out": outs[i], **stage})])
    return commands


def train(command: Command) -> None:
    """Run or resume one stage; a finished one is kept, if it was made by the same command."""
    out = Path(command[command.index("--out") + 1])
    record, text = out / "command.txt", shlex.join(command[1:]) + "\n"
    if record.is_file() and record.read_text(encoding="utf-8") != text:
        raise TrainingError(
            f"{out}: was trained by another recipe (see {record}), models/recipes.toml has changed; "
            "give another --runs, or remove the folder"
        )
    if (out / "final.pt").is_file() and record.is_file():
        return
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(text, encoding="utf-8")
    run(command)


def export_command(name: str, recipe: Mapping[str, Any], speech: Path, runs: Path, folder: Path) -> Command:
    exclude = recipe["export"]["exclude"]
    return [
        sys.executable, "-m", "edge_asr.cli", "export", str(runs / name / "final.pt"), str(folder / name),
        "--calibration", str(speech / "train.jsonl"), "--graph", recipe["export"]["graph"],
        *(["--exclude", *exclude] if exclude else []),
    ]  # fmt: skip


def set_decoder(model: Path, decoder: Mapping[str, Any]) -> None:
    """Write the settings of the search into the model's configuration."""
    config = read_config(model) | {"decoder": dict(decoder)}
    (model / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def run(command: Command) -> None:
    print("$ " + shlex.join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        raise TrainingError(
            f"need {shlex.join(command[1:4])} … to end with 0, it ended with {done.returncode}; see above"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="a model of models/recipes.toml, or all")
    parser.add_argument("speech", type=Path, help="folder with the manifests")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs", help="folder of the training runs")
    parser.add_argument("--folder", type=Path, default=ROOT / "models", help="folder of the finished models")
    parser.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    parser.add_argument("--processes", type=int, default=1, help="training processes (torchrun)")
    parser.add_argument("--quick", action="store_true", help="measure chunk sizes on every fourth clip")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    arguments = parser.parse_args(argv)
    try:
        recipes = read_recipes()
        if arguments.name not in (*recipes, "all"):
            raise UsageError(f"need a model of {RECIPES.name} ({', '.join(recipes)}) or all, have {arguments.name!r}")
        names = list(recipes) if arguments.name == "all" else [arguments.name]
        for name in names:
            make(name, recipes[name], arguments)
        finish(names, arguments)
    except EdgeAsrError as error:
        print(f"make.py: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def make(name: str, recipe: Mapping[str, Any], arguments: argparse.Namespace) -> None:
    """Train and export one model."""
    speech, runs = arguments.speech.resolve(), arguments.runs.resolve()
    if "align" in arguments.steps and not (runs / ALIGNED).is_file():
        command = align_command(recipe, speech, runs)
        print(shlex.join(command)) if arguments.dry_run else run(command)
    if "train" in arguments.steps:
        for command in train_commands(name, recipe, speech, runs, arguments.processes):
            print(shlex.join(command)) if arguments.dry_run else train(command)
    if "export" in arguments.steps:
        command = export_command(name, recipe, speech, runs, arguments.folder.resolve())
        if arguments.dry_run:
            print(shlex.join(command))
            return
        run(command)
        set_decoder(arguments.folder / name, recipe["decoder"])


def finish(names: list[str], arguments: argparse.Namespace) -> None:
    """Measure the models together, so that their speeds have peers, write their cards, and compare all."""
    measure = [
        sys.executable, str(ROOT / "benchmarks" / "measure_models.py"), str(arguments.speech.resolve()),
        "--folder", str(arguments.folder.resolve()), "--models", *names, *(["--quick"] if arguments.quick else []),
    ]  # fmt: skip
    compare = [sys.executable, "-m", "edge_asr.cli", "compare", "--out", "docs/comparison", "--readme", "README.md"]
    for step, command in (("measure", measure), ("compare", compare)):
        if step in arguments.steps:
            print(shlex.join(command)) if arguments.dry_run else run(command)


if __name__ == "__main__":
    sys.exit(main())
