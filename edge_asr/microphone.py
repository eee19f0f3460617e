"""A microphone through PortAudio (sounddevice): find it, open it at a rate it has, fill a ring from its callback.

sounddevice is imported when a microphone is asked for, so that the rest of the package works without it.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np

from edge_asr.audio import SAMPLE_RATE
from edge_asr.capture import BLOCK_MS, DEFAULT_RING_S, Capture
from edge_asr.errors import DependencyError, MicrophoneError
from edge_asr.ring import Policy

FALLBACK_RATES_HZ = (48_000, 44_100)  # after 16 kHz and the device's own default
# Asked of the driver. A callback needs Python's lock, which the search of a chunk holds for some milliseconds, on a
# slow device for up to 100: the driver's buffer has to cover that.
DRIVER_LATENCY_S = 0.1
STALL_S = 5.0  # without a callback: the device is gone; a Bluetooth headset may take two seconds to wake up
MAX_TAIL_S = 0.3  # waited at the end for what the driver still holds

# PortAudio's error codes (portaudio.h)
_NO_SUCH_RATE, _NO_SUCH_CHANNELS, _NO_SUCH_FORMAT, _INVALID_DEVICE, _BUSY = -9997, -9998, -9994, -9996, -9985

_REMEDIES: dict[str, dict[str, str]] = {
    "no sounddevice": dict.fromkeys(("debian", "fedora", "macos", "windows"), "pip install 'edge-asr[mic]'"),
    "no portaudio": {
        "debian": "sudo apt install libportaudio2",
        "fedora": "sudo dnf install portaudio",
        "macos": "pip install --force-reinstall sounddevice (its wheel carries PortAudio), or brew install portaudio",
        "windows": "pip install --force-reinstall sounddevice (its wheel carries PortAudio)",
    },
    "no device": {
        "debian": "plug one in and look for it with arecord -l (package alsa-utils); if root sees it and you do not, "
        "sudo usermod -aG audio $USER; for PulseAudio or PipeWire sudo apt install libasound2-plugins; "
        "in a container pass --device /dev/snd",
        "fedora": "plug one in and look for it with arecord -l (package alsa-utils); for PipeWire "
        "sudo dnf install pipewire-alsa; in a container pass --device /dev/snd",
        "macos": "plug one in, and allow the terminal in System Settings > Privacy & Security > Microphone",
        "windows": "plug one in, enable it in Settings > System > Sound, and allow desktop apps in "
        "Settings > Privacy & security > Microphone",
    },
    "busy": {
        "debian": "find the program with: fuser -v /dev/snd/* (package psmisc) and end it, or choose the device "
        "pulse or default, which programs can share",
        "fedora": "find the program with: fuser -v /dev/snd/* (package psmisc) and end it, or choose the device "
        "pipewire or default, which programs can share",
        "macos": "quit the program that uses it, or: sudo killall coreaudiod",
        "windows": "close the program that uses it, or switch off 'exclusive mode' in the device's properties",
    },
}


@dataclass(frozen=True)
class Device:
    """One input device as PortAudio lists it."""

    index: int
    name: str
    host_api: str  # ALSA, Core Audio, Windows WASAPI …
    n_channels: int
    rate_hz: int  # its own default
    is_default: bool


def list_devices() -> list[Device]:
    """The devices that can record. Raises: DependencyError, MicrophoneError where there is none."""
    sounddevice = _sounddevice()
    try:
        apis = [api["name"] for api in sounddevice.query_hostapis()]
        default = sounddevice.default.device[0]
        listed = list(enumerate(sounddevice.query_devices()))
    except sounddevice.PortAudioError as error:
        raise MicrophoneError(f"the audio devices cannot be listed ({error}); {_remedy('no device')}") from error
    found = [
        Device(
            index, entry["name"], apis[entry["hostapi"]], entry["max_input_channels"],
            round(entry["default_samplerate"]), index == default,
        )
        for index, entry in listed
        if entry["max_input_channels"] > 0
    ]  # fmt: skip
    if not found:
        raise MicrophoneError(f"needs a microphone, this machine shows none; {_remedy('no device')}")
    return found


def find_device(wanted: int | str | None = None) -> Device:
    """By index, by a part of the name in any case, or the default. Raises: DependencyError, MicrophoneError."""
    devices = list_devices()
    known = "; ".join(f"{device.index}: {device.name} ({device.host_api})" for device in devices)
    if wanted is None:
        return next((device for device in devices if device.is_default), devices[0])
    if isinstance(wanted, int) or wanted.isdecimal():
        matches = [device for device in devices if device.index == int(wanted)]
    else:
        matches = [device for device in devices if wanted.casefold() in device.name.casefold()]
        exact = [device for device in matches if device.name.casefold() == wanted.casefold()]
        matches = exact or matches
    if not matches:
        raise MicrophoneError(f"no microphone {wanted!r}; this machine has {known}")
    preferred = [device for device in matches if device.is_default]
    if len({device.name for device in matches}) > 1 and not preferred:
        raise MicrophoneError(f"{wanted!r} fits {len(matches)} microphones; name one of {known}")
    return (preferred or matches)[0]  # one name under several host APIs: PortAudio lists its favourite first


class Microphone(Capture):
    """A recording device; opened by the constructor, heard from `start` on.

    device:  index, part of a name, or None for the default
    ring_s:  how long the consumer may stall before samples are lost
    policy:  what happens then: "drop-oldest" or "fail"
    A device without 16 kHz is opened at a rate that it has, one without a mono mode with all its channels, which are
    averaged. Raises: DependencyError, MicrophoneError.
    """

    _opened: ClassVar[WeakSet[Microphone]] = WeakSet()  # PortAudio's state, which is the process's, seen from here

    def __init__(
        self,
        device: int | str | None = None,
        ring_s: float = DEFAULT_RING_S,
        policy: Policy = "drop-oldest",
        driver_latency_s: float = DRIVER_LATENCY_S,
    ) -> None:
        super().__init__(SAMPLE_RATE, ring_s, policy)
        self._wanted = device
        self._driver_latency_s = driver_latency_s
        self._stopped = False
        self._open()
        if isinstance(self._wanted, int) or str(self._wanted).isdecimal():
            self._wanted = self.device.name  # indices change when devices come and go

    @property
    def is_over(self) -> bool:
        return self._stopped

    def start(self) -> None:
        if self._stream.active:
            return
        try:
            self._stream.start()
        except _sounddevice().PortAudioError as error:
            raise _open_error(self.device, error) from error
        self._started_s = self.now_s()

    def stop(self) -> None:
        if self._stopped:
            return
        if self._stream.active:
            self.pause(min(self.latency_s, MAX_TAIL_S))
        self._stopped = True
        self._stream.close(ignore_errors=True)
        self._opened.discard(self)

    def wait(self, seconds: float) -> None:
        self.pause(seconds)
        if self._stopped:
            return
        silent_s = self.now_s() - max(self._started_s, self.last_arrival_s if self._n_blocks else 0.0)
        if not self._stream.active or silent_s > STALL_S:
            what = "stopped" if silent_s <= STALL_S else f"sent nothing for {silent_s:.0f} s"
            raise MicrophoneError(f"microphone {self.device.name!r} {what}; was it unplugged? Plug it in again")

    def reopen(self) -> None:
        self._stream.close(ignore_errors=True)
        self._opened.discard(self)
        try:
            self._open()
        except MicrophoneError:
            if self._opened:  # looking again would end the other microphones of this process
                raise
            _rescan(_sounddevice())
            self._open()
        self.start()

    def _open(self) -> None:
        sounddevice = _sounddevice()
        self.device = find_device(self._wanted)
        self.name = self.device.name
        refused: Exception | None = None
        for rate_hz, n_channels in _settings_to_try(self.device):
            try:
                with _driver_muted():
                    self._stream = sounddevice.InputStream(
                        device=self.device.index,
                        samplerate=rate_hz,
                        channels=n_channels,
                        dtype="float32",
                        blocksize=rate_hz * BLOCK_MS // 1000,
                        latency=self._driver_latency_s,
                        callback=self._on_audio,
                    )
            except sounddevice.PortAudioError as error:
                if _code(error) not in (_NO_SUCH_RATE, _NO_SUCH_CHANNELS, _NO_SUCH_FORMAT):
                    raise _open_error(self.device, error) from error
                refused = error
                continue
            self._opened.add(self)
            self._restart(rate_hz)
            self.n_channels = n_channels
            self.latency_s = self._stream.latency
            self._weights = np.full(n_channels, 1 / n_channels, np.float32)
            self._mono = np.zeros(rate_hz * BLOCK_MS // 1000, np.float32)
            self._started_s = self.now_s()
            return
        raise _open_error(self.device, refused)

    def _on_audio(self, frames: np.ndarray, n_frames: int, time_info: object, status: Any) -> None:
        """frames: (n, channels). On PortAudio's own thread, which must never wait: copy and return."""
        if status.input_overflow:
            self.n_overflows += 1
        if self.n_channels == 1:
            self.push(frames[:, 0])
        else:
            self.push(np.dot(frames, self._weights, out=self._mono[:n_frames]))


def _settings_to_try(device: Device) -> list[tuple[int, int]]:
    """(rate, channels), best first: what the model wants, then what the device has."""
    rates = dict.fromkeys((SAMPLE_RATE, device.rate_hz, *FALLBACK_RATES_HZ))
    channels = dict.fromkeys((1, min(2, device.n_channels), device.n_channels))
    return [(rate_hz, n_channels) for rate_hz in rates for n_channels in channels]


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ModuleNotFoundError as error:
        raise DependencyError(f"a microphone needs the package {error.name}; {_remedy('no sounddevice')}") from error
    except OSError as error:  # sounddevice's way to say that it finds no libportaudio
        raise DependencyError(
            f"a microphone needs the PortAudio library ({error}); {_remedy('no portaudio')}"
        ) from error
    return sounddevice


@contextmanager
def _driver_muted() -> Iterator[None]:
    """ALSA and PortAudio print each refused setting to the process's stderr; what matters comes as an exception."""
    try:
        kept = os.dup(2)
    except OSError:  # stderr is closed
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _rescan(sounddevice: ModuleType) -> None:
    """Let PortAudio look for devices again, which it does only as it starts; sounddevice has no public call for it."""
    sounddevice._terminate()
    sounddevice._initialize()


def _open_error(device: Device, error: Exception | None) -> MicrophoneError:
    if _code(error) == _BUSY:
        return MicrophoneError(f"microphone {device.name!r} is in use by another program; {_remedy('busy')}")
    if _code(error) in (_NO_SUCH_RATE, _NO_SUCH_CHANNELS, _NO_SUCH_FORMAT):
        tried = ", ".join(f"{rate_hz} Hz × {n}" for rate_hz, n in _settings_to_try(device))
        return MicrophoneError(
            f"microphone {device.name!r} refuses every setting tried ({tried}); choose another with --device"
        )
    return MicrophoneError(f"microphone {device.name!r} cannot be opened ({error}); {_remedy('no device')}")


def _code(error: Exception | None) -> int | None:
    """PortAudio's code in sounddevice.PortAudioError(message, code, …)."""
    return error.args[1] if error is not None and len(error.args) > 1 else None


def _remedy(problem: str) -> str:
    """What to do about it on this system; on a Linux that is neither Debian's nor Fedora's kin, on both."""
    remedies = _REMEDIES[problem]
    if sys.platform == "darwin":
        return remedies["macos"]
    if sys.platform == "win32":
        return remedies["windows"]
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    kin = f"{release.get('ID', '')} {release.get('ID_LIKE', '')}".split()
    for name, families in (("debian", {"debian", "ubuntu"}), ("fedora", {"fedora", "rhel", "centos"})):
        if families & set(kin):
            return remedies[name]
    if remedies["debian"] == remedies["fedora"]:
        return remedies["debian"]
    return f"Debian, Ubuntu: {remedies['debian']}. Fedora: {remedies['fedora']}"
