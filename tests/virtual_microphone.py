"""A virtual microphone: a private PulseAudio whose null sink is heard by PortAudio through ALSA.

What is played into the sink is what the microphone hears, at real time. Nothing of the user's sound set-up is touched.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

TOOLS = ("pulseaudio", "pactl", "paplay")
ALSA_PLUGIN = "alsa-lib/libasound_module_pcm_pulse.so"
START_S = 20.0


def what_is_missing() -> str:
    """Empty where a virtual microphone can be made."""
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not [path for base in ("/usr/lib", "/usr/lib64") for path in Path(base).glob(f"**/{ALSA_PLUGIN}")]:
        missing.append("ALSA's pulse plugin")
    return f"{', '.join(missing)} (apt-get install pulseaudio pulseaudio-utils libasound2-plugins)" if missing else ""


class VirtualMicrophone:
    """A sound server in `folder`, which has to be private and have a short path."""

    def __init__(self, folder: Path, rate_hz: int = 48_000) -> None:
        self._rate_hz = rate_hz
        folder.mkdir(mode=0o700, exist_ok=True)
        alsa = folder / "asound.conf"
        alsa.write_text("pcm.!default { type pulse }\nctl.!default { type pulse }\n")
        private = {"XDG_RUNTIME_DIR": folder, "XDG_CONFIG_HOME": folder, "HOME": folder, "ALSA_CONFIG_PATH": alsa}
        self.environment = {**os.environ, **{name: str(path) for name, path in private.items()}}
        self.environment.pop("PULSE_SERVER", None)
        self._server: subprocess.Popen[bytes] | None = None

    def plug_in(self) -> None:
        command = [
            "pulseaudio", "--daemonize=no", "--exit-idle-time=-1", "--disable-shm=true", "-n",
            "--load=module-native-protocol-unix",
            f"--load=module-null-sink sink_name=mic rate={self._rate_hz}",
        ]  # fmt: skip
        self._server = subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while self._run("pactl", "set-default-source", "mic.monitor").returncode:
            if time.monotonic() > deadline or self._server.poll() is not None:
                raise RuntimeError(f"PulseAudio did not start (exit code {self._server.poll()})")
            time.sleep(0.1)
        self._run("pactl", "set-default-sink", "mic")

    def unplug(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
            self._server = None

    def play(self, path: Path) -> None:
        """Speak a file into the microphone; returns when it is over."""
        played = self._run("paplay", str(path))
        if played.returncode:
            raise RuntimeError(f"paplay {path}: {played.stderr}")

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def __enter__(self) -> Self:
        self.plug_in()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.unplug()
