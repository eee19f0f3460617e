"""firmware-sim run | devices | sweep | compare | calibrate | enforce.

stdout carries the result (a screen, or one JSON object), stderr status and errors. Exit code 0: every budget is kept;
80 … 84: the first broken one of operator, flash, RAM, deadline, heat; other codes: the error's own, see
`firmware_sim.errors` and `edge_asr.errors`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_asr.errors import EdgeAsrError, UsageError
from edge_asr.model_files import installed_models
from firmware_sim.device import Device, device_names, load_device
from firmware_sim.model import Model, load_model
from firmware_sim.results import as_dict
from firmware_sim.verdict import EXIT_CODES, Assessment, Setup, assess

SIZE_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9, "ki": 2.0**10, "mi": 2.0**20, "gi": 2.0**30}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return options.command(options)
    except EdgeAsrError as error:
        print(f"firmware-sim: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of the pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130


def build_parser() -> argparse.ArgumentParser:
    codes = ", ".join(f"{code} {name}" for name, code in EXIT_CODES.items())
    parser = argparse.ArgumentParser(
        prog="firmware-sim",
        description="Does a streaming model keep a device's budgets? What breaks first, and how sure is that?",
        epilog=f"exit codes of broken budgets: {codes}",
    )
    commands = parser.add_subparsers(required=True, metavar="command")
    run = commands.add_parser("run", help="one model on one device: ledgers, time, simulated run, verdict")
    run.set_defaults(command=run_command)
    run.add_argument("model", help="model directory, installed model's name, or one .onnx file")
    run.add_argument("--device", required=True, help="device name (see `firmware-sim devices`) or a .toml profile")
    run.add_argument("--audio", type=Path, help="recording to simulate and to transcribe with the samples that survive")
    add_model_options(run)
    add_setup_options(run)
    run.add_argument("--json", action="store_true", help="print one JSON object")
    run.add_argument("--report", type=Path, metavar="OUT.html", help="write a self-contained page with plots")
    run.add_argument(
        "--enforce", action="store_true", help="also run the true recogniser under the RAM limit (needs --audio)"
    )
    run.add_argument("--cpu-share", type=float, help="with --enforce: share of one host core, 0 … 1")

    devices = commands.add_parser("devices", help="list the profiles, or one profile with sources")
    devices.set_defaults(command=devices_command)
    devices.add_argument("device", nargs="?", help="show every figure of this one")
    devices.add_argument("--json", action="store_true")

    sweep = commands.add_parser("sweep", help="chunk size × clock × background load: where does it break?")
    sweep.set_defaults(command=sweep_command)
    sweep.add_argument("model")
    sweep.add_argument("--device", required=True)
    sweep.add_argument("--chunks", default="80,160,320,640", help="chunk sizes in ms, comma separated")
    sweep.add_argument("--clocks", default="1,0.75,0.5,0.25", help="shares of the top clock, comma separated")
    sweep.add_argument("--loads", default="0,0.2,0.4,0.6", help="further background loads of the core, comma separated")
    add_model_options(sweep, chunk=False)
    add_setup_options(sweep)
    sweep.add_argument("--json", action="store_true")

    compare = commands.add_parser("compare", help="models × devices in one table")
    compare.set_defaults(command=compare_command)
    compare.add_argument("models", nargs="+")
    compare.add_argument("--devices", default="", help="comma separated; all shipped ones but host if left out")
    add_model_options(compare)
    add_setup_options(compare)
    compare.add_argument("--json", action="store_true")
    compare.add_argument("--report", type=Path, metavar="OUT.html", help="write a page with one roofline per device")

    calibrate = commands.add_parser("calibrate", help="fit the host profile to onnxruntime on this machine")
    calibrate.set_defaults(command=calibrate_command)
    calibrate.add_argument(
        "models",
        nargs="*",
        help="models that the fit does not see: the error is reported on them (default: all installed)",
    )
    calibrate.add_argument("--out", type=Path, default=Path("host.toml"), help="profile to write (default: host.toml)")
    calibrate.add_argument("--repeats", type=int, default=15, help="interleaved rounds; the fastest of each counts")
    calibrate.add_argument("--json", action="store_true")
    return parser


def add_model_options(parser: argparse.ArgumentParser, chunk: bool = True) -> None:
    parser.add_argument("--precision", choices=("int8", "fp32"), default="int8")
    if chunk:
        parser.add_argument("--chunk-ms", type=int, help="audio per chunk, a multiple of 40 (default: the model's)")
    parser.add_argument(
        "--dim", action="append", default=[], metavar="NAME=N", help="resolve an open dimension of the graph"
    )


def add_setup_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--clock-mhz", type=float, help="top clock (default: the device's)")
    parser.add_argument("--ring-ms", type=float, default=2000.0, help="ring buffer (default: 2000)")
    parser.add_argument("--deadline-ms", type=float, help="time allowed per chunk (default: the chunk's length)")
    parser.add_argument("--background", type=float, default=0.0, help="further load of the core, 0 … 1")
    parser.add_argument(
        "--background-bandwidth", default="0", metavar="BYTES/S", help="further memory traffic, e.g. 200M"
    )
    parser.add_argument("--flash-budget", metavar="BYTES", help="e.g. 8M or 2Mi (default: the device's)")
    parser.add_argument("--ram-budget", metavar="BYTES")
    parser.add_argument("--alias-state", action="store_true", help="the runtime updates streaming states in place")
    parser.add_argument("--governor", choices=("ondemand", "performance"), default="ondemand")
    parser.add_argument("--seconds", type=float, default=60.0, help="simulated audio (default: 60)")
    parser.add_argument("--seed", type=int, default=0)


def run_command(options: argparse.Namespace) -> int:
    from firmware_sim.screen import make_console, show

    device, model = pick_device(options), pick_model(options.model, options, options.chunk_ms)
    if options.enforce and options.audio is None:
        raise UsageError("need a recording to enforce limits on, have none; give --audio FILE")
    samples, heard, enforced = None, None, None
    if options.audio is not None:
        from firmware_sim.hearing import hear, open_recognizer, read_audio

        samples = read_audio(options.audio)
    a = assess(model, device, setup_of(options, None if samples is None else len(samples)))
    if samples is not None:
        heard = hear(open_recognizer(model), samples, a.run.gaps)
    if options.enforce:
        from firmware_sim.enforce import enforce

        enforced = enforce(a, options.audio, options.cpu_share)
    if options.report:
        from firmware_sim.report import write_report

        write_report(options.report, a, heard, enforced)
        print(f"firmware-sim: wrote {options.report}", file=sys.stderr)
    if options.json:
        extra = {"heard": None if heard is None else vars(heard) | {"word_error_percent": heard.word_error_percent}}
        extra["enforced"] = None if enforced is None else vars(enforced)
        print(json.dumps(as_dict(a) | extra, indent=1))
    else:
        show(make_console(), a, heard, enforced)
    return a.exit_code


def devices_command(options: argparse.Namespace) -> int:
    from firmware_sim.screen import device_table, figure_table, make_console

    if options.device:
        device = load_device(options.device)
        if options.json:
            print(json.dumps({key: vars(figure) for key, figure in device.figures.items()}, indent=1))
        else:
            make_console().print(figure_table(device))
        return 0
    devices = [load_device(name) for name in device_names()]
    if options.json:
        print(json.dumps([{"name": d.name, "title": d.title, "runtime": d.runtime} for d in devices], indent=1))
    else:
        make_console().print(device_table(devices))
    return 0


def sweep_command(options: argparse.Namespace) -> int:
    from firmware_sim.screen import make_console
    from firmware_sim.sweep import sweep, sweep_tables

    device = pick_device(options)
    chunks = [int(c) for c in numbers(options.chunks, "--chunks")]
    models = [pick_model(options.model, options, chunk) for chunk in chunks]
    cells = sweep(
        models, device, numbers(options.clocks, "--clocks"), numbers(options.loads, "--loads"), setup_of(options)
    )
    if options.json:
        print(json.dumps([vars(cell) for cell in cells], indent=1))
    else:
        console = make_console()
        for table in sweep_tables(cells, device):
            console.print(table)
    return 0


def compare_command(options: argparse.Namespace) -> int:
    from firmware_sim.screen import make_console
    from firmware_sim.sweep import compare_table

    names = [n for n in options.devices.split(",") if n] or [n for n in device_names() if n != "host"]
    devices = [with_clock(load_device(name.strip()), options.clock_mhz) for name in names]
    models = [pick_model(name, options, options.chunk_ms) for name in options.models]
    setup = setup_of(options)
    rows: list[Assessment] = [assess(model, device, setup) for device in devices for model in models]
    if options.report:
        from firmware_sim.report import write_comparison

        write_comparison(options.report, rows)
        print(f"firmware-sim: wrote {options.report}", file=sys.stderr)
    if options.json:
        keep = (
            "verdict",
            "broken",
            "exit_code",
            "model",
            "device",
            "latency_ms",
            "flash",
            "ram",
            "basis",
            "first_to_break",
        )
        print(json.dumps([{key: as_dict(a)[key] for key in keep} for a in rows], indent=1))
    else:
        make_console().print(compare_table(rows))
    return 0


def calibrate_command(options: argparse.Namespace) -> int:
    from firmware_sim.calibrate import calibrate, calibration_table, write_profile
    from firmware_sim.screen import make_console

    if options.repeats < 1:
        raise UsageError(f"need at least one round of measurements, have --repeats {options.repeats}")
    models = options.models or [str(path) for path in installed_models().values()]
    result = calibrate(models, options.repeats, progress=lambda line: print(line, file=sys.stderr))
    write_profile(options.out, result)
    print(f"firmware-sim: wrote {options.out}; use it with --device {options.out}", file=sys.stderr)
    if options.json:
        print(json.dumps(result.as_dict(), indent=1))
    else:
        make_console().print(calibration_table(result))
    return 0


def pick_device(options: argparse.Namespace) -> Device:
    return with_clock(load_device(options.device), options.clock_mhz)


def with_clock(device: Device, clock_mhz: float | None) -> Device:
    return device if clock_mhz is None else device.with_value("cpu.clock_hz", clock_mhz * 1e6)


def pick_model(name: str, options: argparse.Namespace, chunk_ms: int | None) -> Model:
    return load_model(name, options.precision, chunk_ms, dims_of(options.dim))


def dims_of(entries: Sequence[str]) -> dict[str, int]:
    """`NAME=N` pairs. Raises UsageError."""
    dims = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if not name or not value.isdigit() or int(value) < 1:
            raise UsageError(f"need --dim NAME=N with N above zero, have {entry!r}")
        dims[name] = int(value)
    return dims


def setup_of(options: argparse.Namespace, n_samples: int | None = None) -> Setup:
    return Setup(
        ring_s=options.ring_ms / 1e3,
        deadline_ms=options.deadline_ms,
        background_load=options.background,
        background_bytes_per_s=size_of(options.background_bandwidth, "--background-bandwidth") or 0.0,
        alias_state=options.alias_state,
        flash_budget=size_of(options.flash_budget, "--flash-budget"),
        ram_budget=size_of(options.ram_budget, "--ram-budget"),
        seconds=options.seconds,
        n_samples=n_samples,
        governor=options.governor,
        seed=options.seed,
    )


def size_of(text: str | None, option: str) -> float | None:
    """Bytes from `8M`, `2Mi`, `1.5e6`. Raises UsageError for anything else."""
    if text is None:
        return None
    number = text.strip().lower().removesuffix("b").rstrip("kmgi")
    unit = text.strip().lower().removesuffix("b")[len(number) :]
    try:
        return float(number) * (SIZE_UNITS[unit] if unit else 1.0)
    except (ValueError, KeyError) as error:
        raise UsageError(f"need {option} as bytes such as 8M or 2Mi, have {text!r}") from error


def numbers(text: str, option: str) -> list[float]:
    """A comma separated list of numbers. Raises UsageError."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise UsageError(f"need {option} as numbers with commas, have {text!r}") from error
    if not found:
        raise UsageError(f"need at least one number for {option}, have none")
    return found


if __name__ == "__main__":
    sys.exit(main())
