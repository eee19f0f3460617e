"""The batch on a Ray cluster of two local workers: same files, same resume, and a death harms one file only."""

import gc
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from recordings import N_RECORDINGS, tree

import edge_asr
from edge_asr.errors import AudioEmptyError, ModelDamagedError, UsageError, WorkerError
from edge_asr.progress import Summary

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray: pip install 'edge-asr[ray]'"),
    pytest.mark.filterwarnings("ignore"),  # Ray leaves files and processes to the garbage collector
]


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray.get_runtime_context().gcs_address
    ray.shutdown()
    gc.collect()  # here, where its warnings are expected


def journal(path) -> list[str]:
    try:
        text = (Path(path) / ".edge-asr" / "journal.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line)["key"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def transcribe(model, output_dir, path="rec", **options) -> Summary:
    chosen = {"output_format": "all", "engine": "ray", "workers": 2, "batch_size": 2, "quiet": True, **options}
    return edge_asr.transcribe_files(path, model=model, output_dir=output_dir, **chosen)


def test_a_cluster_that_is_not_there_is_told_at_once(tone_model, recordings):
    with pytest.raises(WorkerError, match="cannot reach it"):
        transcribe(tone_model, "out", ray_address="127.0.0.1:1")
    with pytest.raises(UsageError, match="HOST:PORT"):
        transcribe(tone_model, "out", ray_address="ray://127.0.0.1:10001")


def test_a_cluster_writes_the_same_files_as_one_machine_and_resumes(cluster, tone_model, recordings):
    (recordings / "rec" / "empty.wav").touch()
    transcribe(tone_model, "local", engine="local", workers=1)
    summary = transcribe(tone_model, "out")
    assert (summary.n_done, [type(f.error) for f in summary.failures]) == (N_RECORDINGS, [AudioEmptyError])
    assert tree("out") == tree("local")
    os.remove("out/1.srt")
    summary = transcribe(tone_model, "out", resume=True)
    assert (summary.n_done, summary.n_skipped) == (1, N_RECORDINGS - 1)
    assert tree("out") == tree("local")


def test_a_killed_batch_on_a_cluster_goes_on(cluster, tone_model, recordings):
    command = [
        sys.executable, "-W", "ignore", "-m", "edge_asr.cli", "transcribe", "rec", "--model", str(tone_model),
        "--engine", "ray", "--ray-address", cluster, "--workers", "1", "--batch-size", "1", "--output-dir", "out",
    ]  # fmt: skip
    with subprocess.Popen(command) as process:
        while not journal("out") and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
    n_done = len(journal("out"))
    assert n_done
    summary = transcribe(tone_model, "out", output_format="txt", resume=True)
    assert (summary.n_done, summary.n_skipped) == (N_RECORDINGS - n_done, n_done)
    assert len(tree("out")) == len(set(journal("out"))) == len(journal("out")) == N_RECORDINGS


def test_a_file_that_kills_its_worker_is_found_and_the_rest_is_done(cluster, tone_model, recordings, monkeypatch):
    from edge_asr import ray_engine

    class Mortal(ray_engine._Worker):
        def hear(self, options, files, number, batch_size):
            from edge_asr import ray_engine as module

            real = module.transcribe_files

            def dying(recognizer, sources, n_streams):
                def checked():
                    for source in sources:
                        if source.endswith("deadly.wav"):
                            os._exit(9)
                        yield source

                return real(recognizer, checked(), n_streams)

            module.transcribe_files = dying
            yield from ray_engine._Worker.hear(self, options, files, number, batch_size)

    monkeypatch.setattr(ray_engine, "_Worker", Mortal)
    shutil.copy("rec/1.wav", "rec/deadly.wav")
    summary = transcribe(tone_model, "out")
    assert [(failure.path, type(failure.error)) for failure in summary.failures] == [("rec/deadly.wav", WorkerError)]
    assert summary.n_done == N_RECORDINGS


def test_what_concerns_all_files_is_raised_as_on_one_machine(cluster, tone_model, recordings):
    shutil.copytree(tone_model, "models/tones")
    shutil.copytree(tone_model / "../graphs", "models/graphs")
    (recordings / "models" / "tones" / "tokens.txt").write_text("damaged")
    with pytest.raises(ModelDamagedError, match=r"tokens\.txt"):
        transcribe("models/tones", "out")
