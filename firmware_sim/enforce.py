"""The true recogniser under real limits on this machine, beside the prediction.

The child loads the libraries, notes what they take, limits its data segment (RLIMIT_DATA) to that plus what the device
would let speech have, and then transcribes. A graph that is mapped lies outside the data segment; it is taken off the
limit, with all its pages. A CPU quota comes from a cgroup where one can be made. What the host
process takes is host memory with Python and x86 libraries in it: it is printed as such and never as device RAM.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from edge_asr.errors import EdgeAsrError
from firmware_sim.errors import EnforcementError
from firmware_sim.hearing import HOP_MS, read_audio, transcribe
from firmware_sim.verdict import Assessment

QUOTA_PERIOD_US = 100_000
TIMEOUT_S = 600
CGROUP_V2 = Path("/sys/fs/cgroup")
CGROUP_V1_CPU = Path("/sys/fs/cgroup/cpu")


@dataclass(frozen=True)
class Enforced:
    """What happened under the limit. `host_*` is memory of this process on this machine, not of the device."""

    allowance_bytes: int
    predicted_bytes: int
    predicted_to_fit: bool
    survived: bool
    outcome: str
    host_baseline_bytes: int
    host_grown_bytes: int
    host_peak_rss_bytes: int
    cpu_s: float
    wall_s: float
    audio_s: float
    cpu_quota: str
    text: str
    same_runtime: bool  # the device runs onnxruntime too; otherwise the limit is right and the kernels are others

    @property
    def agrees(self) -> bool:
        return self.survived == self.predicted_to_fit


def enforce(a: Assessment, audio: Path, cpu_share: float | None = None) -> Enforced:
    """Run the recogniser with the RAM that the device leaves to speech.

    Raises EnforcementError where the child cannot be started, told its limits, or read."""
    if a.model.directory is None:
        raise EnforcementError("need a model directory to enforce limits, have a single .onnx file; give its folder")
    if cpu_share is not None and not 0 < cpu_share <= 1:
        raise EnforcementError(f"need a CPU share above 0 and at most 1, have {cpu_share}")
    reserve = sum(entry.n_bytes for entry in a.ram.entries if entry.label == "system reserve")
    allowance = a.ram.budget_bytes - reserve
    predicted = a.ram.used_bytes - reserve
    job = {
        "model": str(a.model.directory),
        "precision": a.model.precision,
        "chunk_ms": a.model.chunk_frames * HOP_MS,
        "audio": str(audio),
        "allowance_bytes": max(allowance, 0),
    }
    with quota(cpu_share) as (join, described):
        report, outcome, wall_s = run_child(job, join)
    return Enforced(
        allowance_bytes=allowance,
        predicted_bytes=predicted,
        predicted_to_fit=a.ram.is_kept,
        survived=outcome == "finished",
        outcome=outcome,
        host_baseline_bytes=report.get("baseline_bytes", 0),
        host_grown_bytes=report.get("grown_bytes", 0),
        host_peak_rss_bytes=report.get("peak_rss_bytes", 0),
        cpu_s=report.get("cpu_s", 0.0),
        wall_s=wall_s,
        audio_s=report.get("audio_s", 0.0),
        cpu_quota=described,
        text=report.get("text", ""),
        same_runtime=a.target.name == "onnxruntime",
    )


def run_child(job: dict[str, object], join: Path | None) -> tuple[dict, str, float]:
    """(last report, outcome, wall seconds) of the limited process."""
    command = [sys.executable, "-m", "firmware_sim.enforce"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    begin = time.monotonic()
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        if join is not None:
            join.write_text(str(child.pid))
        out, err = child.communicate(json.dumps(job), timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return {}, f"stopped after {TIMEOUT_S} s", time.monotonic() - begin
    except OSError as error:
        raise EnforcementError(f"cannot run the recogniser under limits: {error}; check cgroup rights") from error
    report: dict = {}
    for line in out.splitlines():
        try:
            report |= json.loads(line)
        except ValueError:
            continue  # a library's own chatter
    return report, outcome_of(child.returncode, report, err), time.monotonic() - begin


def outcome_of(code: int, report: dict, err: str) -> str:
    """`finished`, or why it did not."""
    if code == 0 and "text" in report:
        return "finished"
    if "refused" in report:
        return f"refused: {report['refused']}"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    lines = err.strip().splitlines()
    return f"failed: {lines[-1][:200]}" if lines else f"failed with code {code}"


@contextmanager
def quota(cpu_share: float | None) -> Iterator[tuple[Path | None, str]]:
    """(file to write a process id to, description) of a CPU quota; none where no cgroup can be made."""
    if cpu_share is None:
        yield None, "none asked for"
        return
    name = f"firmware-sim-{os.getpid()}"
    limit = int(cpu_share * QUOTA_PERIOD_US)
    if (CGROUP_V2 / "cgroup.controllers").is_file():
        group, settings = CGROUP_V2 / name, {"cpu.max": f"{limit} {QUOTA_PERIOD_US}"}
    else:
        group, settings = (
            CGROUP_V1_CPU / name,
            {"cpu.cfs_period_us": str(QUOTA_PERIOD_US), "cpu.cfs_quota_us": str(limit)},
        )
    try:
        group.mkdir()
        for key, value in settings.items():
            (group / key).write_text(value)
    except OSError as error:
        yield None, f"not available here ({error.strerror})"
        return
    try:
        yield group / "cgroup.procs", f"{cpu_share:.0%} of a core by cgroup"
    finally:
        group.rmdir()


def status_bytes(key: str) -> int:
    """A size from /proc/self/status, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":")), 0)


def mapped_graph_bytes() -> int:
    """Size of the memory files that this process has mapped: a graph's, whether or not its pages were visited."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return 0
    spans = [line.split()[0].split("-") for line in lines if "/memfd:graph" in line]
    return sum(int(high, 16) - int(low, 16) for low, high in spans)


def child_main() -> int:
    """The limited process: read the job, limit, transcribe, report as JSON lines."""
    job = json.loads(sys.stdin.read())
    from edge_asr.recognizer import Recognizer

    samples = read_audio(job["audio"])
    baseline = status_bytes("VmData")
    print(json.dumps({"baseline_bytes": baseline, "audio_s": len(samples) / 16000}), flush=True)
    limit = baseline + job["allowance_bytes"]
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        recognizer = Recognizer(job["model"], precision=job["precision"], chunk_ms=job["chunk_ms"])
        graph_bytes = mapped_graph_bytes()
        if graph_bytes > job["allowance_bytes"]:
            raise MemoryError
        resource.setrlimit(resource.RLIMIT_DATA, (limit - graph_bytes, limit - graph_bytes))
        text = transcribe(recognizer, samples)
    except MemoryError:
        print(json.dumps({"refused": "out of memory"}), flush=True)
        return 1
    except (EdgeAsrError, RuntimeError) as error:
        print(json.dumps({"refused": str(error)[:300]}), flush=True)
        return 1
    usage = resource.getrusage(resource.RUSAGE_SELF)
    report = {
        "grown_bytes": status_bytes("VmData") - baseline + graph_bytes,
        "peak_rss_bytes": status_bytes("VmHWM") - status_bytes("RssShmem") + graph_bytes,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "text": text,
    }
    print(json.dumps(report), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(child_main())
