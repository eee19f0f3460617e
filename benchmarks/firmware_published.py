"""The simulator against published results, and its own speed: one table for each claim, everything from the repository.

python benchmarks/firmware_published.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "firmware"))

from graphs import save, wakeword

from firmware_sim.cost import cost_graph
from firmware_sim.device import load_device
from firmware_sim.graph import load_graph
from firmware_sim.latency import Interval
from firmware_sim.ledger import arena_buffers, weight_storage
from firmware_sim.planner import plan_arena
from firmware_sim.published import leave_cell_out, leave_one_out, load_published, predict_duties
from firmware_sim.scenario import ChunkLoad, Scenario
from firmware_sim.simulator import simulate
from firmware_sim.target import load_target


def main() -> None:
    published = load_published()
    with tempfile.TemporaryDirectory() as folder:
        graph = load_graph(save(wakeword(), Path(folder) / "wakeword.onnx"))
    ops, target = cost_graph(graph), load_target("st-edge-ai")
    plan = plan_arena(arena_buffers(graph, ops, target), target.alignment)
    macs = sum(op.macs + op.bias_elements for op in ops) + 15 * 3
    report = published["wakeword_report"]
    print(f"{report['source']}\n{'':28}{'published':>12}{'here':>12}")
    bound = f"(lower bound {plan.lower_bound_bytes:,})"
    print(f"{'activations, bytes':28}{report['activation_bytes']:12,}{plan.arena_bytes:12,}  {bound}")
    print(f"{'weights, bytes':28}{report['weight_bytes']:12,}{weight_storage(graph)[0]:12,}")
    print(f"{'MACs, as ST counts them':28}{report['macs']:12,}{macs:12,}\n")

    print("MLPerf Tiny v1.3 streaming wakeword: duty from the board's other clock")
    print(f"{'':32}{'published':>10}{'here':>10}{'error':>9}")
    for duty in predict_duties(load_device("stm32h743"), ops, plan.arena_bytes):
        name = f"{duty.board} @{duty.clock_hz / 1e6:.0f} MHz"
        print(f"{name:32}{duty.duty:10.5f}{duty.predicted:10.5f}{100 * duty.error:+8.2f} %")

    mcunet = published["mcunet"]
    cells = leave_cell_out(mcunet["latency_ms"], mcunet["million_macs"])
    print(f"\n{mcunet['source']}: error of predicting a network that was left out")
    print(f"{'':14}{'from MACs alone':>24}{'given other runtimes':>24}")
    print(f"{'':14}" + 2 * f"{'mean':>12}{'worst':>12}")
    for runtime, row in mcunet["latency_ms"].items():
        alone = np.abs(leave_one_out([mcunet["million_macs"][name] for name in row], list(row.values())))
        given = np.abs(list(cells[runtime].values()))
        figures = (alone.mean(), alone.max(), given.mean(), given.max())
        print(f"{runtime:14}" + "".join(f"{100 * figure:10.1f} %" for figure in figures))

    device = load_device("echo-dot-3")
    load = ChunkLoad(5120, tuple(Interval(0.02, 0.03, 0.05) for _ in device.points))
    begin = time.process_time()
    run = simulate(device, load, Scenario(duration_s=3600))
    seconds = time.process_time() - begin
    print(f"\none hour of audio on {device.name}, {len(run.jobs):,} chunks: {seconds:.1f} s of CPU")


if __name__ == "__main__":
    main()
