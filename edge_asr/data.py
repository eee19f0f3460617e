"""Training data: manifests or torchaudio corpora -> a feature cache on disk -> augmented batches.

The cache holds log-mel features of every clip twice: as recorded, and heard in a simulated room. What can be done to
log-mel features at negligible cost (noise, gain, speed, vocal-tract warp, SpecAugment) is drawn anew for every batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edge_asr.audio import SAMPLE_RATE, load_audio
from edge_asr.errors import ManifestError
from edge_asr.features import HIGH_HZ, LOW_HZ, N_MEL, SILENCE, fbank

VARIANTS = ("dry", "room")
N_ROOMS = 256
FLOOR = (SILENCE, -12.5)  # log power of digital silence in a band, and of what a codec leaves there
NOISE_CLIP_FRAMES = 500  # 5 s, the length of an ESC-10 clip


@dataclass(frozen=True)
class Clip:
    """One utterance of a manifest; `first_frame`, `n_frames` locate it in the cache."""

    audio_filepath: str
    duration: float  # s
    text: str
    speaker: str = ""
    source: str = ""
    pronunciations: tuple[str, ...] = ()  # phones of each word of the text, where `edge-asr align` has found them
    first_frame: int = -1
    n_frames: int = -1


@dataclass(frozen=True)
class AugmentConfig:
    """What is drawn for each clip of each batch; probabilities in 0…1, levels in dB."""

    room: float = 0.25
    noise: float = 0.35
    snr_db: tuple[float, float] = (3.0, 25.0)
    gain_db: tuple[float, float] = (-15.0, 10.0)
    equaliser: float = 0.3  # another microphone: a smooth random gain over the mel bands
    equaliser_db: float = 4.0  # its standard deviation
    telephone: float = 0.1  # nothing left above a cutoff
    telephone_hz: tuple[float, float] = (3000.0, 4000.0)
    speed: tuple[float, float] = (0.9, 1.1)
    warp: tuple[float, float] = (0.92, 1.08)
    n_mel_masks: int = 2
    mel_mask: int = 20
    time_mask_frames: int = 40
    time_masks_per_s: float = 0.8
    time_mask_share: float = 0.1  # at most this part of a clip is hidden


def read_manifest(path: str | Path) -> list[Clip]:
    """Clips of a JSON-lines manifest (NeMo's keys); paths are relative to the manifest. Raises ManifestError."""
    path = Path(path)
    if not path.is_file():
        raise ManifestError(
            f"need a JSON-lines manifest, have no file {path}; give one object per line with "
            f"audio_filepath, duration and text"
        )
    clips = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            clips.append(
                Clip(
                    str(path.parent / row["audio_filepath"]),
                    float(row["duration"]),
                    row["text"],
                    str(row.get("speaker", "")),
                    str(row.get("source", "")),
                    tuple(row.get("pronunciations", ())),
                )
            )
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as problem:
            raise ManifestError(
                f"need audio_filepath, duration and text, have {line[:80]!r} in {path}:{number} "
                f"({problem}); mend or remove the line"
            ) from problem
    if not clips:
        raise ManifestError(f"need at least one clip, have an empty manifest {path}")
    return clips


# --- the cache ---------------------------------------------------------------------------------------------------


def simulate_rooms(n_rooms: int, seed: int) -> list[np.ndarray]:
    """Impulse responses of shoe-box rooms (image-source method, pyroomacoustics), direct path first, float32.

    2–8 m wide, reverberation time 0.15–0.6 s, talker 0.5–4 m from the microphone.
    """
    import pyroomacoustics

    rng = np.random.default_rng(seed)
    responses = []
    while len(responses) < n_rooms:
        size = np.array([rng.uniform(2.5, 8), rng.uniform(2.5, 7), rng.uniform(2.3, 3.5)])
        rt60 = rng.uniform(0.15, 0.6)
        microphone = size * rng.uniform(0.15, 0.85, 3)
        talker = microphone + rng.normal(size=3) * np.array([1.2, 1.2, 0.2])
        if np.any(talker < 0.2) or np.any(talker > size - 0.2):
            continue
        try:
            absorption, order = pyroomacoustics.inverse_sabine(rt60, size)
        except ValueError:  # this room cannot be so dry
            continue
        room = pyroomacoustics.ShoeBox(
            size, fs=SAMPLE_RATE, max_order=min(order, 12), materials=pyroomacoustics.Material(absorption)
        )
        room.add_source(talker)
        room.add_microphone(microphone)
        room.compute_rir()
        response = room.rir[0][0]
        response = response[int(np.argmax(np.abs(response))) :][:SAMPLE_RATE]  # direct path at 0: alignments stay
        responses.append((response / np.sqrt(np.sum(response**2))).astype(np.float32))
    return responses


def _clip_features(job: tuple[Clip, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    from scipy.signal import oaconvolve

    clip, response = job
    samples = load_audio(clip.audio_filepath)
    in_room = oaconvolve(samples, response)[: len(samples)].astype(np.float32)
    return fbank(samples).astype(np.float16), fbank(in_room).astype(np.float16)


def prepare(
    manifest: str | Path, cache: str | Path, noise_dir: str | Path | None = None, n_workers: int = 2, seed: int = 0
) -> list[Clip]:
    """Fill the cache folder with features of every clip (dry.f16, room.f16, noise.f16, clips.jsonl)."""
    from tqdm import tqdm

    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    clips = read_manifest(manifest)
    rng = np.random.default_rng(seed)
    rooms = simulate_rooms(N_ROOMS, seed)
    jobs = [(clip, rooms[rng.integers(N_ROOMS)]) for clip in clips]
    done, first_frame = [], 0
    with (
        ProcessPoolExecutor(n_workers) as pool,
        open(cache / "dry.f16", "wb") as dry,
        open(cache / "room.f16", "wb") as room,
    ):
        for clip, (features, in_room) in zip(
            clips, tqdm(pool.map(_clip_features, jobs, chunksize=16), total=len(jobs), unit="clip")
        ):
            features.tofile(dry)
            in_room.tofile(room)
            done.append(Clip(**{**asdict(clip), "first_frame": first_frame, "n_frames": len(features)}))
            first_frame += len(features)
    noises = sorted(Path(noise_dir).glob("*.*")) if noise_dir else []
    with open(cache / "noise.f16", "wb") as out:
        for path in noises:
            features = fbank(load_audio(path))
            features[np.arange(NOISE_CLIP_FRAMES) % len(features)].astype(np.float16).tofile(out)
    with open(cache / "clips.jsonl", "w", encoding="utf-8") as out:  # written last: its presence means complete
        out.writelines(json.dumps(asdict(clip)) + "\n" for clip in done)
    return done


# --- augmentation ------------------------------------------------------------------------------------------------


def resample_features(features: np.ndarray, speed: float, warp: float) -> np.ndarray:
    """Features as if spoken `speed` times as fast by a vocal tract `warp` times as short (linear interpolation)."""
    n_frames = max(1, round(len(features) / speed))
    at = np.minimum(np.arange(n_frames, dtype=np.float32) * speed, len(features) - 1)
    low = at.astype(np.int64)
    share = (at - low)[:, None]
    features = features[low] * (1 - share) + features[np.minimum(low + 1, len(features) - 1)] * share
    at = np.clip(np.arange(N_MEL, dtype=np.float32) * warp, 0, N_MEL - 1)
    low = at.astype(np.int64)
    share = at - low
    return features[:, low] * (1 - share) + features[:, np.minimum(low + 1, N_MEL - 1)] * share


def add_noise(features: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """Sum of the two powers in each mel band (their cross term has mean zero), noise scaled to `snr_db`."""
    signal_power = np.log(
        np.mean(np.exp(np.sort(features.mean(1))[len(features) // 2 :]))
    )  # of the louder half: speech
    noise_power = np.log(np.mean(np.exp(noise.mean(1))))
    noise = noise + (signal_power - noise_power - snr_db * np.log(10) / 10)
    return np.logaddexp(features, noise)


def mel_bin(hz: float) -> float:
    """The mel band, as a fraction of an index, whose centre is at a frequency."""
    low, high = (1127 * np.log1p(f / 700) for f in (LOW_HZ, SAMPLE_RATE / 2 + HIGH_HZ))
    return float((1127 * np.log1p(hz / 700) - low) / (high - low) * (N_MEL + 1) - 1)


def equalise(features: np.ndarray, deviation_db: float, rng: np.random.Generator) -> np.ndarray:
    """Features as another microphone gives them: six random gains over the bands, straight lines between them."""
    gains = rng.normal(0, deviation_db * np.log(10) / 10, 6)
    return features + np.interp(np.arange(N_MEL), np.linspace(0, N_MEL - 1, 6), gains).astype(np.float32)


def limit_band(features: np.ndarray, cutoff_hz: float, floor: float) -> np.ndarray:
    """Features after a low-pass filter with a steep edge; what is left above lies at `floor` (log power)."""
    over = np.clip(np.arange(N_MEL) - mel_bin(cutoff_hz), 0, None)
    return np.logaddexp(features - over.astype(np.float32) * 6, np.float32(floor))


def mask_features(features: np.ndarray, config: AugmentConfig, fill: np.ndarray, rng: np.random.Generator) -> None:
    """SpecAugment (Park et al. 2019) in place: bands and stretches replaced by the corpus mean `fill` (80,)."""
    for _ in range(config.n_mel_masks):
        width = int(rng.integers(0, config.mel_mask + 1))
        first = int(rng.integers(0, N_MEL - width + 1))
        features[:, first : first + width] = fill[first : first + width]
    n_frames = len(features)
    left = int(n_frames * config.time_mask_share)
    for _ in range(int(np.ceil(config.time_masks_per_s * n_frames / 100))):
        width = min(int(rng.integers(0, config.time_mask_frames + 1)), left)
        first = int(rng.integers(0, n_frames - width + 1))
        features[first : first + width] = fill
        left -= width


class FeatureSet:
    """Clips of a prepared cache with their token sequences; draws augmented batches.

    targets: one token-id array per clip. Arrays in a batch: x (N, T, 80) float32 padded with silence, n_frames (N,),
    targets (N, U) int64 padded with 0, n_targets (N,).
    """

    def __init__(self, cache: str | Path, augment: AugmentConfig | None = None) -> None:
        cache = Path(cache)
        if not (cache / "clips.jsonl").is_file():
            raise ManifestError(
                f"need a prepared feature cache, have no {cache / 'clips.jsonl'}; run edge-asr train --prepare first"
            )
        self.clips = [Clip(**json.loads(line)) for line in (cache / "clips.jsonl").read_text().splitlines()]
        self.features = {v: np.memmap(cache / f"{v}.f16", np.float16, "r").reshape(-1, N_MEL) for v in VARIANTS}
        noise = cache / "noise.f16"
        self.noise = (
            np.fromfile(noise, np.float16).reshape(-1, NOISE_CLIP_FRAMES, N_MEL).astype(np.float32)
            if noise.is_file() and noise.stat().st_size
            else None
        )
        self.augment = augment
        sample = self.features["dry"][:: max(1, len(self.features["dry"]) // 400_000)].astype(np.float32)
        self.mean, self.std = sample.mean(0), sample.std(0)

    def plain(self, clip: Clip, speed: float = 1.0) -> np.ndarray:
        """Features (T, 80) float32 of one clip as recorded, at another speed."""
        features = self.features["dry"][clip.first_frame : clip.first_frame + clip.n_frames].astype(np.float32)
        return features if speed == 1 else resample_features(features, speed, 1.0)

    def view(self, clip: Clip, speed: float, rng: np.random.Generator) -> np.ndarray:
        """Features (T, 80) float32 of one clip, augmented unless the set has no augmentation.

        Views at the same speed are the same speech, all else drawn anew: frame t is the same sound in each.
        """
        config = self.augment
        variant = "room" if config and rng.random() < config.room else "dry"
        features = self.features[variant][clip.first_frame : clip.first_frame + clip.n_frames].astype(np.float32)
        if config is None:
            return features
        features = resample_features(features, speed, rng.uniform(*config.warp))
        if self.noise is not None and rng.random() < config.noise:
            noise = self.noise[rng.integers(len(self.noise))]
            at = (rng.integers(NOISE_CLIP_FRAMES) + np.arange(len(features))) % NOISE_CLIP_FRAMES
            features = add_noise(features, noise[at], rng.uniform(*config.snr_db))
        if rng.random() < config.equaliser:
            features = equalise(features, config.equaliser_db, rng)
        features += rng.uniform(*config.gain_db) * np.float32(np.log(10) / 10)
        if rng.random() < config.telephone:
            floor = rng.uniform(*FLOOR) if rng.random() < 0.5 else FLOOR[0]
            features = limit_band(features, rng.uniform(*config.telephone_hz), floor)
        mask_features(features, config, self.mean, rng)
        return features

    def batches(
        self,
        targets: list[np.ndarray],
        batch_s: float,
        rng: np.random.Generator,
        max_s: float = 36.0,
        rank: int = 0,
        n_ranks: int = 1,
    ) -> Iterator[list[int]]:
        """One pass: clip indices in batches of at most `batch_s` padded seconds, similar lengths together."""
        indices = np.array([i for i, clip in enumerate(self.clips) if clip.n_frames <= max_s * 100 and len(targets[i])])
        lengths = np.array([self.clips[i].n_frames for i in indices]) * rng.uniform(0.93, 1.07, len(indices))
        batches, batch, longest = [], [], 0
        for i in indices[np.argsort(lengths)]:
            longest = max(longest, self.clips[i].n_frames)
            if batch and longest * (len(batch) + 1) > batch_s * 100:
                batches.append(batch)
                batch, longest = [], self.clips[i].n_frames
            batch.append(int(i))
        batches.append(batch)
        order = rng.permutation(len(batches))
        for k in order[: len(order) // n_ranks * n_ranks][rank::n_ranks]:
            yield batches[k]

    def collate(
        self,
        indices: list[int],
        targets: list[np.ndarray],
        rng: np.random.Generator,
        n_views: int = 1,
        undisturbed: bool = False,
    ) -> dict[str, np.ndarray]:
        """Draw and pad the clips of a batch; see the class for shapes. All first views come before all second ones.

        undisturbed: with the clips as recorded, at the speed of their views, as a further array of that name.
        """
        speeds = [rng.uniform(*self.augment.speed) if self.augment else 1.0 for _ in indices]
        chosen = [(self.clips[i], speed) for i, speed in zip(indices, speeds)]
        drawn = [self.view(*clip, rng) for _ in range(n_views) for clip in chosen]
        arrays = {"undisturbed": _padded([self.plain(*clip) for clip in chosen])} if undisturbed else {}
        indices = [*indices] * n_views
        n_frames = np.array([len(f) for f in drawn])
        n_targets = np.array([len(targets[i]) for i in indices])
        padded = np.zeros((len(indices), int(n_targets.max())), np.int64)
        for row, i in zip(padded, indices):
            row[: len(targets[i])] = targets[i]
        return {"x": _padded(drawn), "n_frames": n_frames, "targets": padded, "n_targets": n_targets, **arrays}


def _padded(rows: list[np.ndarray]) -> np.ndarray:
    """(N, T, 80), T a multiple of 4, silence where a row has ended."""
    x = np.full((len(rows), -(-max(map(len, rows)) // 4) * 4, N_MEL), SILENCE, np.float32)
    for row, features in zip(x, rows):
        row[: len(features)] = features
    return x
