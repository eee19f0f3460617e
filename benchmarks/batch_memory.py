"""Memory of batch transcription: whether it grows with the length of files, and what a second worker adds.

    python benchmarks/batch_memory.py --graph models/graphs/device --hours 1 10

Speech-like sound is generated as it is read, so that ten hours need no disk; a worker hears as many files at a time as
by default. Every row is a process of its own, with its own bytecode, as pip leaves an installed program. Its figures:
the most that was resident while it loaded, with the whole graph, whose pages are in memory from then on; the most that
was resident afterwards (peak RSS); that with the pages of the graph that no search has visited; and at the end the part
that is its own or shared in proportion (PSS). The bar is for the larger of the two with the whole graph. Then workers:
the sum of their PSS, beside the same number of processes that each load for themselves. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edge_asr.engines import files_at_a_time
from edge_asr.model_files import DEFAULT_MODEL

BARS_MB = {"general": 300, "device": 120}
RATE_HZ = 16_000


class Speechlike:
    """A file of so many hours that exists only while it is read: real speech, over and over, at changing loudness."""

    damage = None
    n_replaced = 0

    def __init__(self, hours: float, block_ms: int) -> None:
        self._block_ms = block_ms
        self._clips = sorted((Path(__file__).parent.parent / "samples").glob("*.wav"))
        self._n_wanted = int(hours * 3600 * RATE_HZ)
        self.n_samples = 0

    def __iter__(self) -> Iterator[np.ndarray]:
        from edge_asr.audio import read_blocks

        rng = random.Random(0)  # numpy's would bring OpenSSL and 5 MB into what is measured
        while self.n_samples < self._n_wanted:
            clip, loudness = rng.choice(self._clips), np.float32(rng.uniform(0.3, 1))
            for block in read_blocks(clip, self._block_ms):
                block = block[: self._n_wanted - self.n_samples] * loudness
                if len(block):
                    self.n_samples += len(block)
                    yield block

    def close(self) -> None:
        pass


def status(field: str) -> float:
    """MB of a field of /proc/self/status."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024 / 1e6


def mapped_graph() -> float:
    """MB of mapped graphs."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
    spans = [line.split()[0].split("-") for line in lines if "/memfd:graph" in line]
    return sum(int(high, 16) - int(low, 16) for low, high in spans) / 1e6


def pss(process: int | str = "self") -> float:
    """MB of a process, shared pages divided by the number of those who share them."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6


def one_worker(options: dict[str, Any], hours: float, n_streams: int) -> None:
    """The child of a row: files of that length through one worker, all at a time."""
    from edge_asr import batch, transcribe_command  # noqa: F401 (the second is in memory as well)

    batch.AudioFile = lambda source, block_ms: Speechlike(hours, block_ms)
    results = batch.run_workers(options, [f"speech {i}" for i in range(n_streams)], 1, n_streams)
    loading_mb, loaded_mb, graph_mb = status("VmHWM"), status("VmRSS"), mapped_graph()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak from now on
    n_words, visited_mb = 0, 0.0
    for result in results:
        if result.error is not None:
            raise result.error
        n_words += sum(len(segment.words) for segment in result.segments)
        visited_mb = max(visited_mb, status("RssShmem"))  # the last result takes the graph with it
    peak_mb = status("VmHWM")
    figures = {"hours": hours, "streams": n_streams, "loaded_mb": loaded_mb, "loading_rss_mb": loading_mb}
    figures |= {"peak_rss_mb": peak_mb, "pss_mb": pss(), "graph_mb": graph_mb, "words": n_words}
    figures["loading_with_whole_graph_mb"] = loading_mb + graph_mb
    figures["peak_with_whole_graph_mb"] = peak_mb + max(0.0, graph_mb - visited_mb)
    print(json.dumps(figures))


def workers(options: dict[str, Any], n_workers: int, minutes: float) -> None:
    """The child of the last rows: PSS of workers and of their parent while all of them transcribe."""
    import multiprocessing

    from edge_asr import batch

    batch.AudioFile = lambda source, block_ms: Speechlike(minutes / 60, block_ms)
    results = batch.run_workers(options, [f"speech {i}" for i in range(2 * n_workers)], n_workers, 1)
    next(results)
    children = [process.pid for process in multiprocessing.active_children()]
    print(json.dumps({"workers": n_workers, "pss_mb": [pss(child) for child in children], "parent_pss_mb": pss()}))
    results.close()


def child(*arguments: str) -> dict[str, Any]:
    import subprocess  # not in the children, whose memory counts
    import tempfile

    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as bytecode:
        for _ in range(2):  # the first run compiles
            done = subprocess.run(
                [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True, check=True,
                env={**environment, "PYTHONPYCACHEPREFIX": bytecode},
            )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--graph", type=Path, help="a graph's folder, instead of the model's own")
    parser.add_argument("--decoder", choices=("graph", "greedy"))
    parser.add_argument("--beam", type=float)
    parser.add_argument("--hours", type=float, nargs="*", default=[0.05, 0.2], help="lengths of the file")
    parser.add_argument("--streams", type=int, help="files that a worker hears at a time")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--minutes", type=float, default=1, help="length of the files of the workers; 0: no workers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    named = {name: getattr(arguments, name) for name in ("model", "graph", "decoder", "beam")}
    options = {"chunk_ms": None, **{name: value for name, value in named.items() if value is not None}}
    if arguments.child == "file":
        n_streams = arguments.streams or files_at_a_time({"model": DEFAULT_MODEL, **options})
        return one_worker(options, arguments.hours[0], n_streams)
    if arguments.child == "workers":
        return workers(options, arguments.workers, arguments.minutes)

    passed = [part for part in sys.argv[1:] if part]
    report: dict[str, Any] = {"files": [], "workers": None}
    print(f"{'hours':>6}{'loading + graph':>17}{'loaded':>8}{'peak RSS':>10}{'+ graph':>9}{'PSS':>6}  MB{'words':>9}")
    for hours in arguments.hours:
        row = child(*passed, "--child", "file", "--hours", str(hours))
        report["files"].append(row)
        names = ("loading_with_whole_graph", "loaded", "peak_rss", "peak_with_whole_graph", "pss")
        cells = "".join(f"{row[f'{name}_mb']:{width}.1f}" for name, width in zip(names, (17, 8, 10, 9, 6), strict=True))
        print(f"{hours:6.2f}{cells}{row['words']:13}", flush=True)
    if arguments.graph is not None and arguments.graph.name in BARS_MB:
        most = max(max(row["loading_with_whole_graph_mb"], row["peak_with_whole_graph_mb"]) for row in report["files"])
        print(f"{most:.1f} MB with the {arguments.graph.name} graph (bar: {BARS_MB[arguments.graph.name]})")
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
