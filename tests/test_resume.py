"""Killed at any moment, a batch goes on: nothing lost, nothing done twice, and never half a file."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
import soundfile
from recordings import N_RECORDINGS, tree
from tones import speak
from tqdm import tqdm

from edge_asr import errors, outputs
from edge_asr.cli import main
from edge_asr.errors import OutputError, OutputFullError
from edge_asr.outputs import JOURNAL, PRIVATE, OutputFolder
from edge_asr.sources import Recording
from edge_asr.subtitles import Layout
from edge_asr.writers import WRITERS, Transcript

FORMATS = tuple(WRITERS)


@pytest.fixture
def arguments(tone_model):
    return ["transcribe", "--model", str(tone_model), "--output-format", "all", "--quiet", "--workers", "1"]


def journal(path) -> list[str]:
    """Keys in the order in which they were done; torn lines left out."""
    keys = []
    for line in (Path(path) / PRIVATE / JOURNAL).read_bytes().splitlines():
        with suppress(ValueError, TypeError):
            keys.append(json.loads(line)["key"])
    return keys


def n_lines(path) -> int:
    try:
        return (Path(path) / PRIVATE / JOURNAL).read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def run_apart(arguments: list[str]) -> None:
    """In a forked process; tqdm's lock is shared with the parent, and would stay taken where its holder is killed."""
    tqdm.set_lock(threading.RLock())
    main(arguments)


def test_killed_at_random_moments_a_batch_ends_as_an_undisturbed_one(recordings, arguments):
    assert main([*arguments, "--output-dir", "whole", "rec"]) == 0
    whole, rng = tree("whole"), random.Random(0)
    assert len(whole) == N_RECORDINGS * len(FORMATS)
    fork = multiprocessing.get_context("fork")
    for kill_after in (0, 1, 2, 4, 5, 7, 8, 10, 11, None):
        process = fork.Process(target=run_apart, args=([*arguments, "--output-dir", "out", "--resume", "rec"],))
        process.start()
        if kill_after is not None:
            while n_lines("out") < kill_after and process.is_alive():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.02))  # somewhere in the middle of hearing or writing the next
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert tree("out").items() <= whole.items()  # what is there is whole
    assert process.exitcode == 0
    assert tree("out") == whole
    done = journal("out")
    assert sorted(done) == sorted(journal("whole"))  # each exactly once
    assert [path.name for path in Path("out", PRIVATE).iterdir()] == [JOURNAL]


def test_workers_of_a_killed_batch_end_and_the_next_goes_on(recordings, arguments):
    command = [sys.executable, "-m", "edge_asr.cli", *arguments, "--workers", "2", "--output-dir", "out", "--resume"]
    with subprocess.Popen([*command, "rec"], start_new_session=True) as process:
        while n_lines("out") < 3 and process.poll() is None:
            time.sleep(0.005)
        process.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # the workers see the end of their pipe
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("workers live on")
    assert subprocess.run([*command, "rec"], check=True, timeout=300).returncode == 0
    assert len(tree("out")) == N_RECORDINGS * len(FORMATS)
    assert len(journal("out")) == len(set(journal("out"))) == N_RECORDINGS


def test_a_second_run_does_nothing_and_loads_no_model(recordings, arguments, capsys, monkeypatch):
    assert main([*arguments, "--output-dir", "out", "rec"]) == 0
    before = {p: p.stat().st_mtime_ns for p in Path("out").rglob("*") if p.is_file()}
    monkeypatch.setattr("edge_asr.recognizer.Recognizer.__init__", lambda *a, **k: pytest.fail("a model was loaded"))
    assert main([*arguments, "--output-dir", "out", "--resume", "rec"]) == 0
    assert {p: p.stat().st_mtime_ns for p in Path("out").rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("change", "n_again"),
    [
        (lambda: os.remove("out/1.srt"), 1),
        (lambda: Path("out/1.srt").write_text(""), 1),  # as a crash of the machine may leave it
        (lambda: os.utime("rec/1.wav"), 1),
        (lambda: soundfile.write("rec/1.wav", speak("one two"), 16_000), 1),
        (lambda: soundfile.write("rec/new.wav", speak("one two"), 16_000), 1),
        (lambda: Path("out/1.srt").write_text("corrected by hand"), 0),
        (lambda: shutil.rmtree("out/.edge-asr"), N_RECORDINGS),
        (lambda: None, 0),
    ],
    ids=["missing", "emptied", "touched", "changed", "new", "edited", "no journal", "nothing"],
)
def test_only_what_is_missing_or_stale_is_done_again(recordings, arguments, change, n_again):
    assert main([*arguments, "--output-dir", "out", "rec"]) == 0
    n_before = N_RECORDINGS
    change()
    if not Path("out", PRIVATE).exists():
        n_before = 0
    assert main([*arguments, "--output-dir", "out", "--resume", "rec"]) == 0
    assert len(journal("out")) - n_before == n_again
    assert len(tree("out")) == len(FORMATS) * (N_RECORDINGS + Path("rec/new.wav").exists())


def test_other_settings_or_formats_are_done_again_and_formats_add_up(recordings, arguments):
    def n_again(*more: str) -> int:
        n_before = len(journal("out")) if Path("out").exists() else 0
        assert main([*arguments, "--output-dir", "out", "--resume", *more, "rec"]) == 0
        return len(journal("out")) - n_before

    assert n_again("--output-format", "txt") == N_RECORDINGS
    assert n_again("--output-format", "srt") == N_RECORDINGS
    assert n_again("--output-format", "txt") == 0
    assert n_again("--output-format", "srt", "--max-line-width", "20") == N_RECORDINGS
    assert n_again("--output-format", "srt", "--max-line-width", "20", "--n-threads", "2", "--batch-size", "3") == 0
    assert n_again("--output-format", "srt", "--beam", "9") == N_RECORDINGS
    Path("phrases.txt").write_text("one two\n")
    assert n_again("--output-format", "srt", "--grammar", "phrases.txt") == N_RECORDINGS
    assert n_again("--output-format", "srt", "--grammar", "phrases.txt") == 0
    Path("phrases.txt").write_text("one three\n")
    assert n_again("--output-format", "srt", "--grammar", "phrases.txt") == N_RECORDINGS


# --- each single step -----------------------------------------------------------------------------------------------

RECORDINGS = [Recording(f"{i}.wav", f"{'deep/' * (i % 2)}{i}", 100 + i, 7) for i in range(4)]


class Killed(BaseException):
    """Stands for SIGKILL: nothing is cleaned up."""


def work(path: Path) -> None:
    with OutputFolder(path, FORMATS, Layout(), "settings") as folder:
        for recording in RECORDINGS:
            if folder.done_s(recording) is None:
                folder.save(recording, Transcript(recording.path, 1.5, []))


def kill_at(monkeypatch, step: int) -> list[int]:
    """Each way to change the disk, counted; at `step` the process is dead, having written half if it was writing."""
    count = [0]

    def dying(real, half=None):
        def call(*a, **k):
            count[0] += 1
            if count[0] > step:
                if count[0] == step + 1 and half is not None:
                    half(*a)
                raise Killed
            return real(*a, **k)

        return call

    write_bytes, write = Path.write_bytes, os.write
    monkeypatch.setattr(Path, "write_bytes", dying(write_bytes, lambda p, data: write_bytes(p, data[: len(data) // 2])))
    monkeypatch.setattr(Path, "replace", dying(Path.replace))
    monkeypatch.setattr(outputs.os, "write", dying(write, lambda fd, data: write(fd, data[: len(data) // 2])))
    return count


def test_dying_at_any_step_loses_nothing_and_does_nothing_twice(tmp_path, monkeypatch):
    work(tmp_path / "whole")
    whole = tree(tmp_path / "whole")
    for step in range(len(RECORDINGS) * (2 * len(FORMATS) + 1)):
        path = tmp_path / str(step)
        with monkeypatch.context() as patched:
            count = kill_at(patched, step)
            with pytest.raises(Killed):
                work(path)
            assert count[0] > step
        assert tree(path).items() <= whole.items()
        done = journal(path)
        work(path)
        assert tree(path) == whole
        assert journal(path)[: len(done)] == done
        assert sorted(journal(path)) == sorted(recording.key for recording in RECORDINGS)
        assert [p.name for p in (path / PRIVATE).iterdir()] == [JOURNAL]


def test_partial_outputs_of_living_processes_are_left_alone(tmp_path):
    with OutputFolder(tmp_path, ["txt"], Layout(), "") as folder:
        theirs = tmp_path / PRIVATE / f"{folder._host}-{os.getppid()}-1234-1.partial"
        theirs.touch()
    with OutputFolder(tmp_path, ["txt"], Layout(), ""):
        assert theirs.exists()


def test_a_journal_of_rubbish_counts_for_nothing(tmp_path):
    (tmp_path / PRIVATE).mkdir()
    entry = b'{"key": ["a"], "input": [1, 2], "settings": "", "outputs": {}, "duration": 1}'
    (tmp_path / PRIVATE / JOURNAL).write_bytes(b'\xff\x00{"key"\n[]\n' + entry + b'\n{"key": "0", "inp')
    for _ in range(2):
        work(tmp_path)
        assert journal(tmp_path) == [["a"], *(recording.key for recording in RECORDINGS)]


# --- disks ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 64 KiB, where one may be mounted."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_stops_the_batch_and_with_room_it_goes_on(recordings, arguments, small_disk, capsys):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(32_000))
    command = [word for word in arguments if word != "--quiet"] + ["--output-dir", str(small_disk), "--resume", "rec"]
    assert main(command) == OutputFullError.exit_code
    told = capsys.readouterr().err
    assert "go on with --resume" in told
    assert "not done" in told
    n_done = len(journal(small_disk))
    assert 0 <= n_done < N_RECORDINGS
    assert all(tree(small_disk)[f"{key}.{name}"] for key in journal(small_disk) for name in FORMATS)
    ballast.unlink()
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    assert main(command) == 0
    assert len(tree(small_disk)) == N_RECORDINGS * len(FORMATS)
    assert len(journal(small_disk)) == len(set(journal(small_disk))) == N_RECORDINGS


def test_a_file_system_that_is_read_only_is_told_before_the_model_is_loaded(recordings, arguments, small_disk, capsys):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert main([*arguments, "--output-dir", str(small_disk / "out"), "rec"]) == OutputFullError.exit_code
    assert "Read-only file system" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, OutputFullError), (errno.EDQUOT, OutputFullError), (errno.EACCES, OutputError)]
)
def test_what_the_disk_refuses_is_a_typed_error_and_leaves_no_partial_file(tmp_path, monkeypatch, number, kind):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    with OutputFolder(tmp_path, FORMATS, Layout(), "") as folder:
        monkeypatch.setattr(Path, "replace", refuse)
        with pytest.raises(OutputError, match="--output-dir") as caught:
            folder.save(RECORDINGS[0], Transcript("0.wav", 1.5, []))
    assert type(caught.value) is kind
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [JOURNAL]


@pytest.mark.skipif(os.name != "posix", reason="needs limits of a process")
def test_a_limit_on_the_size_of_files_is_a_typed_error(recordings, arguments):
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))"
    program = f"{limit}; from edge_asr.cli import main; sys.exit(main(sys.argv[1:]))"
    # greedy: a graph passes through a file of its own
    command = [sys.executable, "-c", program, *arguments, "--decoder", "greedy", "--output-dir", "out", "rec/1.wav"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == errors.OutputError.exit_code
    assert "File too large" in done.stderr
    assert all(len(text) < 300 for text in tree("out").values())
