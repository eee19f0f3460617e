"""Memory of batch transcription: whether it grows with the length of a file, and what a second worker adds.

    python benchmarks/batch_memory.py --graph models/graphs/device --hours 1 10

Speech-like sound is generated as it is read, so that ten hours need no disk. Every row is a process of its own: its
peak resident memory (RSS), the same with the pages of the mapped graph that it has not visited (they are in memory all
the same), and at the end the part that is its own or shared in proportion (PSS). Then workers: the sum
of their PSS, beside the same number of processes that each load for themselves. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

BARS_MB = {"general": 300, "device": 120}
RATE_HZ = 16_000


class Speechlike:
    """A file of so many hours that exists only while it is read: real speech, over and over, at changing loudness."""

    damage = None
    n_replaced = 0

    def __init__(self, hours: float) -> None:
        from edge_asr.audio import load_audio

        samples = Path(__file__).parent.parent / "samples"
        self._clips = [load_audio(path) for path in sorted(samples.glob("*.wav"))]
        self._n_wanted = int(hours * 3600 * RATE_HZ)
        self.n_samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        rng = np.random.default_rng(0)
        while self.n_samples < self._n_wanted:
            clip = self._clips[rng.integers(len(self._clips))] * np.float32(rng.uniform(0.3, 1))
            for first in range(0, len(clip), RATE_HZ):
                block = clip[first : first + RATE_HZ][: self._n_wanted - self.n_samples]
                if len(block):
                    self.n_samples += len(block)
                    yield block

    def close(self) -> None:
        pass


def status(field: str) -> float:
    """MB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / 1e6


def unvisited_graph() -> float:
    """MB of mapped graphs that do not count to this process, because no search has been there."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in lines if "/memfd:graph" in line]
    mapped = sum(int(high, 16) - int(low, 16) for low, high in spans) / 1e6
    return max(0.0, mapped - status("RssShmem")) if spans else 0.0


def pss(process: int | str = "self") -> float:
    """MB of a process, shared pages divided by the number of those who share them."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def one_file(options: dict[str, Any], hours: float) -> None:
    """The child of a row: one file of that length through one worker."""
    from edge_asr import batch
    from edge_asr.recognizer import Recognizer

    batch.AudioFile = lambda source: Speechlike(hours)
    recognizer = Recognizer(**options)
    loaded_mb = status("VmRSS")
    (result,) = batch.transcribe_files(recognizer, ["speech"], 1)
    if result.error is not None:
        raise result.error
    peak_mb = status("VmHWM")
    figures = {"hours": hours, "loaded_mb": loaded_mb, "peak_rss_mb": peak_mb, "pss_mb": pss()}
    figures["peak_with_whole_graph_mb"] = peak_mb + unvisited_graph()
    print(json.dumps({**figures, "words": sum(len(segment.words) for segment in result.segments)}))


def workers(options: dict[str, Any], n_workers: int, minutes: float) -> None:
    """The child of the last rows: PSS of workers and of their parent while all of them transcribe."""
    import multiprocessing

    from edge_asr import batch

    batch.AudioFile = lambda source: Speechlike(minutes / 60)
    results = batch.run_workers(options, [f"speech {i}" for i in range(2 * n_workers)], n_workers, 1)
    next(results)
    children = [process.pid for process in multiprocessing.active_children()]
    print(json.dumps({"workers": n_workers, "pss_mb": [pss(child) for child in children], "parent_pss_mb": pss()}))
    results.close()


def child(*arguments: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--graph", type=Path, help="a graph's folder, instead of the model's own")
    parser.add_argument("--decoder", choices=("graph", "greedy"))
    parser.add_argument("--beam", type=float)
    parser.add_argument("--hours", type=float, nargs="*", default=[0.05, 0.2], help="lengths of the file")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1, help="length of the files of the workers; 0: no workers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    named = {name: getattr(arguments, name) for name in ("model", "graph", "decoder", "beam")}
    options = {"chunk_ms": None, **{name: value for name, value in named.items() if value is not None}}
    if arguments.child == "file":
        return one_file(options, arguments.hours[0])
    if arguments.child == "workers":
        return workers(options, arguments.workers, arguments.minutes)

    passed = [part for part in sys.argv[1:] if part]
    report: dict[str, Any] = {"files": [], "workers": None}
    print(f"{'hours':>6}{'loaded':>9}{'peak RSS':>10}{'+ graph':>9}{'PSS':>7}  MB{'words':>9}{'× real time':>13}")
    for hours in arguments.hours:
        began = time.perf_counter()
        row = child(*passed, "--child", "file", "--hours", str(hours))
        speed = hours * 3600 / (time.perf_counter() - began)
        report["files"].append(row)
        sizes = row["loaded_mb"], row["peak_rss_mb"], row["peak_with_whole_graph_mb"], row["pss_mb"]
        cells = "".join(f"{size:{width}.0f}" for size, width in zip(sizes, (9, 10, 9, 7), strict=True))
        print(f"{hours:6.2f}{cells}{row['words']:13}{speed:13.0f}", flush=True)
    if arguments.graph is not None and arguments.graph.name in BARS_MB:
        print(f"bar for the {arguments.graph.name} graph: {BARS_MB[arguments.graph.name]} MB")
    if arguments.minutes:
        row = report["workers"] = child(*passed, "--child", "workers")
        total = sum(row["pss_mb"]) + row["parent_pss_mb"]
        each = " + ".join(f"{mb:.0f}" for mb in row["pss_mb"])
        print(f"{row['workers']} workers: PSS {each} MB, and {row['parent_pss_mb']:.0f} of the parent: {total:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    main()
