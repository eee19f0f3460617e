"""Devices as PortAudio shows them, opened as they are; every refusal names its remedy."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest
from fake_microphone import FakeSounddevice

from edge_asr import microphone
from edge_asr.errors import DependencyError, MicrophoneError
from edge_asr.microphone import Microphone, find_device, list_devices

DEBIAN, UBUNTU, FEDORA = {"ID": "debian"}, {"ID": "ubuntu", "ID_LIKE": "debian"}, {"ID": "fedora"}
NO_SUCH_RATE, NO_SUCH_CHANNELS, BUSY, BROKEN = -9997, -9998, -9985, -9999


@pytest.fixture
def portaudio(monkeypatch):
    """Install a look-alike of sounddevice; returns the function that makes it."""

    def install(*inputs: tuple[str, int, int], **options) -> FakeSounddevice:
        fake = FakeSounddevice(list(inputs or [("Built-in", 1, 44_100)]), **options)
        monkeypatch.setitem(sys.modules, "sounddevice", fake)
        return fake

    return install


@pytest.fixture
def on_system(monkeypatch):
    def choose(platform: str, release: dict[str, str] | None = None) -> None:
        monkeypatch.setattr(sys, "platform", platform)

        def os_release() -> dict[str, str]:
            if release is None:
                raise OSError("no /etc/os-release")
            return release

        monkeypatch.setattr(microphone.platform, "freedesktop_os_release", os_release)

    return choose


def test_only_devices_that_record_are_listed_and_the_default_is_marked(portaudio):
    portaudio(("Speakers", 0, 48_000), ("Webcam", 1, 48_000), ("USB Audio", 2, 44_100), default=2)
    assert [(d.index, d.name, d.host_api, d.n_channels, d.rate_hz, d.is_default) for d in list_devices()] == [
        (1, "Webcam", "Fake API", 1, 48_000, False),
        (2, "USB Audio", "Fake API", 2, 44_100, True),
    ]


@pytest.mark.parametrize(
    ("wanted", "index"), [(None, 2), (1, 1), ("1", 1), ("webcam", 1), ("AUDIO", 2), ("usb audio", 2), ("u", 2)]
)
def test_a_device_is_found_by_index_part_of_its_name_or_as_the_default(portaudio, wanted, index):
    portaudio(("Speakers", 0, 48_000), ("Webcam", 1, 48_000), ("USB Audio", 2, 44_100), default=2)
    assert find_device(wanted).index == index


def test_a_system_without_a_default_gives_its_first_device(portaudio):
    portaudio(("Speakers", 0, 48_000), ("Webcam", 1, 48_000), default=-1)
    assert find_device().name == "Webcam"


def test_a_name_that_fits_nothing_or_too_much_lists_what_there_is(portaudio):
    portaudio(("USB Webcam", 1, 48_000), ("USB Headset", 2, 44_100), default=-1)
    with pytest.raises(MicrophoneError, match=r"no microphone 'radio'.*0: USB Webcam.*1: USB Headset"):
        find_device("radio")
    with pytest.raises(MicrophoneError, match="'usb' fits 2 microphones"):
        find_device("usb")
    with pytest.raises(MicrophoneError, match="no microphone 7"):
        find_device(7)


def test_one_device_under_several_host_apis_is_not_ambiguous(portaudio):
    portaudio(("Headset", 1, 44_100), ("Headset", 1, 48_000), default=-1)
    assert find_device("headset").index == 0


def test_a_device_with_16_khz_is_opened_with_it(portaudio):
    fake = portaudio()
    opened = Microphone()
    assert (opened.rate_hz, opened.n_channels) == (16_000, 1)
    assert fake.streams[0].settings["blocksize"] == 160
    assert not fake.streams[0].active
    opened.start()
    assert fake.streams[0].active
    opened.close()
    assert fake.streams[0].closed


@pytest.mark.parametrize("own_rate_hz", [48_000, 44_100, 96_000])
def test_a_device_without_16_khz_is_opened_at_its_own_rate(portaudio, own_rate_hz):
    portaudio(("USB", 1, own_rate_hz), refuse=lambda rate, channels: NO_SUCH_RATE if rate != own_rate_hz else 0)
    opened = Microphone()
    assert opened.rate_hz == own_rate_hz
    assert opened.ring.capacity_samples == 10 * own_rate_hz


def test_a_device_whose_default_rate_is_a_lie_is_opened_at_a_common_one(portaudio):
    portaudio(("USB", 1, 22_050), refuse=lambda rate, channels: NO_SUCH_RATE if rate != 44_100 else 0)
    assert Microphone().rate_hz == 44_100


@pytest.mark.parametrize("n_channels", [2, 4, 8])
def test_a_device_without_mono_is_averaged(portaudio, n_channels):
    fake = portaudio(("Array", n_channels, 48_000), refuse=lambda rate, n: NO_SUCH_CHANNELS if n != n_channels else 0)
    opened = Microphone()
    assert opened.n_channels == n_channels
    frames = np.random.default_rng(1).standard_normal((160, n_channels)).astype(np.float32)
    for _ in range(3):
        fake.streams[0].deliver(frames)
    heard = opened.ring.read().samples
    np.testing.assert_allclose(heard, np.tile(frames.mean(axis=1), 3), atol=1e-6)


def test_the_callback_copies_so_that_the_driver_may_reuse_its_buffer(portaudio):
    fake = portaudio()
    opened = Microphone()
    buffer = np.full((160, 1), 0.5, np.float32)
    fake.streams[0].deliver(buffer)
    buffer[:] = -1
    assert np.all(opened.ring.read().samples == 0.5)


def test_overflows_that_the_driver_reports_are_counted(portaudio):
    fake = portaudio()
    opened = Microphone()
    for overflow in (False, True, False, True):
        fake.streams[0].deliver(np.zeros((160, 1), np.float32), overflow)
    assert opened.n_overflows == 2
    assert opened.ring.n_captured == 640


@pytest.mark.parametrize(
    ("platform", "release", "remedy"),
    [
        ("linux", DEBIAN, "fuser -v"),
        ("linux", FEDORA, "pipewire"),
        ("darwin", None, "coreaudiod"),
        ("win32", None, "exclusive mode"),
    ],
)
def test_a_busy_device_is_an_error_that_says_what_to_do(portaudio, on_system, platform, release, remedy):
    on_system(platform, release)
    portaudio(refuse=lambda rate, channels: BUSY)
    with pytest.raises(MicrophoneError, match="'Built-in' is in use by another program") as caught:
        Microphone()
    assert remedy in str(caught.value)
    assert caught.value.exit_code == 51


@pytest.mark.parametrize(
    ("platform", "release", "remedy"),
    [
        ("linux", DEBIAN, "arecord -l"),
        ("linux", UBUNTU, "usermod -aG audio"),
        ("linux", FEDORA, "dnf install pipewire-alsa"),
        ("linux", {"ID": "arch"}, "Fedora: plug"),
        ("linux", None, "Debian, Ubuntu: plug"),
        ("darwin", None, "Privacy & Security > Microphone"),
        ("win32", None, "Privacy & security > Microphone"),
    ],
)
def test_a_machine_without_a_microphone_is_told_what_to_do(portaudio, on_system, platform, release, remedy):
    on_system(platform, release)
    portaudio(("Speakers", 0, 48_000))
    with pytest.raises(MicrophoneError, match="needs a microphone, this machine shows none") as caught:
        Microphone()
    assert remedy in str(caught.value)


@pytest.mark.parametrize(
    ("platform", "release", "remedy"),
    [
        ("linux", DEBIAN, "apt install libportaudio2"),
        ("linux", FEDORA, "dnf install portaudio"),
        ("darwin", None, "brew install portaudio"),
        ("win32", None, "pip install --force-reinstall sounddevice"),
    ],
)
def test_a_missing_portaudio_is_told_how_to_get_it(monkeypatch, on_system, platform, release, remedy):
    on_system(platform, release)
    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)

    class NoPortAudio:
        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.setattr(sys, "meta_path", [NoPortAudio(), *sys.meta_path])
    with pytest.raises(DependencyError, match="PortAudio library not found") as caught:
        list_devices()
    assert remedy in str(caught.value)
    assert caught.value.exit_code == 6


def test_a_missing_sounddevice_is_told_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(DependencyError, match=r"pip install 'edge-asr\[mic\]'"):
        list_devices()


def test_a_device_that_refuses_everything_says_what_was_tried(portaudio):
    portaudio(("Odd", 2, 44_100), refuse=lambda rate, channels: NO_SUCH_RATE)
    with pytest.raises(MicrophoneError, match=r"refuses every setting tried \(16000 Hz × 1, 16000 Hz × 2, 44100 Hz"):
        Microphone()


def test_another_failure_of_the_driver_is_passed_on(portaudio):
    portaudio(refuse=lambda rate, channels: BROKEN)
    with pytest.raises(MicrophoneError, match="cannot be opened"):
        Microphone()


def test_a_stream_that_ends_by_itself_is_an_unplugged_device(portaudio):
    fake = portaudio()
    opened = Microphone()
    opened.start()
    opened.wait(0)
    fake.streams[0].active = False
    with pytest.raises(MicrophoneError, match="was it unplugged"):
        opened.wait(0)


def test_a_stream_that_sends_nothing_is_an_unplugged_device(portaudio, monkeypatch):
    portaudio()
    opened = Microphone()
    opened.start()
    monkeypatch.setattr(opened, "now_s", lambda: opened._started_s + 5.5)
    with pytest.raises(MicrophoneError, match="sent nothing for 6 s"):
        opened.wait(0)


def test_a_device_that_comes_back_at_another_index_is_found_by_its_name(portaudio):
    fake = portaudio(("Webcam", 1, 48_000), ("USB", 1, 44_100))
    opened = Microphone(1)
    opened.start()
    fake.streams[0].deliver(np.zeros((160, 1), np.float32))
    fake.inputs = [("USB", 1, 44_100)]
    opened.reopen()
    assert opened.device.index == 0
    assert opened.ring.n_captured == 0
    assert fake.streams[0].closed
    assert fake.streams[1].active
    assert fake.n_rescans == 0
    opened.close()


def test_devices_are_looked_for_again_unless_another_microphone_is_open(portaudio):
    gc.collect()  # the microphones of other tests
    fake = portaudio(("Webcam", 1, 48_000), ("USB", 1, 44_100))
    other, opened = Microphone(0), Microphone(1)
    fake.inputs = [("Webcam", 1, 48_000)]
    with pytest.raises(MicrophoneError, match="no microphone 'USB'"):
        opened.reopen()
    assert fake.n_rescans == 0
    other.close()
    with pytest.raises(MicrophoneError, match="no microphone 'USB'"):
        opened.reopen()
    assert fake.n_rescans == 1


def test_the_driver_s_chatter_is_kept_from_the_terminal(portaudio, capfd):
    def chatter(rate_hz: int, n_channels: int) -> int:
        os.write(2, b"ALSA lib pcm.c: Unknown PCM\n")
        return 0

    portaudio(refuse=chatter)
    Microphone()
    assert capfd.readouterr().err == ""


def test_the_microphone_s_modules_load_without_sounddevice():
    program = "import sys; import edge_asr.listen; print(sorted({'sounddevice', 'torch', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
