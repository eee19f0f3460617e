"""From paths, folders and patterns to recordings, and to names of outputs that never collide."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_asr import sources
from edge_asr.errors import AudioDirectoryError, AudioNotFoundError
from edge_asr.sources import find_recordings, portable, shown


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = "rec/b.wav rec/a.mp3 rec/notes.txt rec/.hidden.wav rec/mon/a.flac rec/mon/A1.WAV one.dat"
    for name in names.split():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")
    return tmp_path


def paths(*arguments: str) -> list[str]:
    return [recording.path for recording in find_recordings(arguments)[0]]


def keys(*arguments: str) -> dict[str, str]:
    return {recording.path: recording.key for recording in find_recordings(arguments)[0]}


def test_a_folder_means_the_recordings_in_it_and_below_in_order(tree):
    assert paths("rec") == ["rec/a.mp3", "rec/b.wav", "rec/mon/A1.WAV", "rec/mon/a.flac"]


def test_outputs_of_a_folder_keep_its_structure(tree):
    assert keys("rec/") == {"rec/a.mp3": "a", "rec/b.wav": "b", "rec/mon/A1.WAV": "mon/A1", "rec/mon/a.flac": "mon/a"}


def test_a_file_that_is_named_may_have_any_suffix(tree):
    assert keys("one.dat") == {"one.dat": "one"}


def test_a_pattern_in_quotes_is_what_the_shell_would_have_made_of_it(tree):
    assert paths("rec/*") == ["rec/a.mp3", "rec/b.wav", "rec/mon/A1.WAV", "rec/mon/a.flac"]
    assert paths("rec/**/*.flac") == ["rec/mon/a.flac"]
    assert paths("*.dat") == ["one.dat"]
    assert keys("rec/**/a.*") == {"rec/a.mp3": "a", "rec/mon/a.flac": "mon/a"}


def test_a_name_with_stars_and_brackets_that_exists_is_no_pattern(tree):
    Path("take [1]*.wav").write_bytes(b"x")
    assert paths("take [1]*.wav") == ["take [1]*.wav"]


def test_each_recording_is_taken_once_however_often_it_is_named(tree):
    assert paths("rec/b.wav", "rec", "./rec/b.wav") == ["rec/b.wav", "rec/a.mp3", "rec/mon/A1.WAV", "rec/mon/a.flac"]


def test_neighbours_of_one_stem_keep_their_suffixes(tree):
    Path("rec/a.wav").write_bytes(b"x")
    found = keys("rec")
    assert (found["rec/a.mp3"], found["rec/a.wav"], found["rec/b.wav"]) == ("a.mp3", "a.wav", "b")


def test_files_of_one_name_keep_their_folders(tree):
    Path("other").mkdir()
    Path("other/b.wav").write_bytes(b"x")
    assert keys("rec/b.wav", "other/b.wav") == {"rec/b.wav": "rec/b.wav", "other/b.wav": "other/b.wav"}
    assert keys("rec", "other")["rec/mon/a.flac"] == "mon/a"


folder_names = st.lists(st.sampled_from(["a", "b", "a.wav", "b.mp3"]), max_size=2)
file_names = st.sampled_from(["a.wav", "a.mp3", "a.wav.wav", "b.wav"])


@given(st.sets(st.builds(lambda folders, name: "/".join([*folders, name]), folder_names, file_names)), st.booleans())
def test_no_two_recordings_have_one_key(files, by_name):
    found = {
        f"/root/{file}": sources._Found(file, os.path.basename(file) if by_name else file) for file in sorted(files)
    }
    found_keys = sources._keys(found)
    assert len(set(found_keys.values())) == len(files)
    assert not any(os.path.isabs(key) or ".." in Path(key).parts for key in found_keys.values())


def test_loops_of_links_end_and_linked_folders_are_entered_once(tree):
    os.symlink("..", "rec/mon/up")
    os.symlink("mon", "rec/again")
    os.symlink("self", "rec/self")
    os.symlink("nowhere.wav", "rec/lost.wav")
    recordings, failures = find_recordings(["rec"])
    assert [recording.key for recording in recordings] == ["a", "b", "mon/A1", "mon/a"]
    assert [(failure.path, type(failure.error)) for failure in failures] == [("rec/lost.wav", AudioNotFoundError)]


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("gone.wav", AudioNotFoundError),
        ("null\0byte.wav", AudioNotFoundError),
        ("gone/*.wav", AudioNotFoundError),
        ("rec/*.txt?", AudioNotFoundError),
        ("empty", AudioDirectoryError),
        ("", AudioNotFoundError),
    ],
)
def test_what_leads_to_no_recording_is_a_failure_of_its_own_and_the_rest_are_found(tree, path, error):
    Path("empty").mkdir()
    recordings, failures = find_recordings([path, "one.dat"])
    assert [recording.path for recording in recordings] == ["one.dat"]
    assert [(failure.path, type(failure.error)) for failure in failures] == [(path, error)]
    assert failures[0].exit_code == error.exit_code


def test_a_folder_that_may_not_be_read_is_told_and_the_others_are_walked(tree, monkeypatch):
    scandir = os.scandir

    def forbidding(path):
        if os.fspath(path) == "rec/mon":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidding)
    recordings, failures = find_recordings(["rec"])
    assert [recording.path for recording in recordings] == ["rec/a.mp3", "rec/b.wav"]
    assert "rec/mon: cannot be opened (Permission denied)" in str(failures[0].error)


def test_names_are_shown_on_one_line_whatever_they_hold():
    assert shown("two\nlines \x1b[31m 🎙️ ünï.wav") == "two\\nlines \\x1b[31m 🎙️ ünï.wav"
    assert shown(os.fsdecode(b"caf\xe9.wav")) == "caf\\xe9.wav"
    assert portable(os.fsdecode(b"caf\xe9\n.wav")) == "caf\\xe9\n.wav"
