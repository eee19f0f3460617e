"""Public corpora as manifests: what `torchaudio.datasets` knows and the disk already holds."""

from __future__ import annotations

import json
from pathlib import Path

from edge_asr.errors import ManifestError

DEFAULT_SUBSETS = {"LIBRISPEECH": "train-clean-100", "SPEECHCOMMANDS": "training"}


def corpus_to_manifest(name: str, root: str | Path, manifest: str | Path, subset: str = "") -> int:
    """Write a JSON-lines manifest of a corpus below `root`; returns the number of clips. Raises ManifestError.

    name: "LIBRISPEECH" (subset "train-clean-100" …) or "SPEECHCOMMANDS" (subset "training", "validation", "testing").
    """
    import soundfile
    import torchaudio.datasets

    name = name.upper()
    if name not in DEFAULT_SUBSETS:
        raise ManifestError(f"need one of {', '.join(DEFAULT_SUBSETS)}, have {name!r}; or write a JSON-lines manifest")
    subset = subset or DEFAULT_SUBSETS[name]
    try:
        if name == "LIBRISPEECH":
            corpus = torchaudio.datasets.LIBRISPEECH(str(root), url=subset)
        else:
            corpus = torchaudio.datasets.SPEECHCOMMANDS(str(root), subset=subset)
    except (RuntimeError, OSError) as problem:
        raise ManifestError(f"need {name} below {root}, have: {problem}; download and unpack it there") from problem
    with Path(manifest).open("w", encoding="utf-8") as out:
        for index in range(len(corpus)):
            file, _, text, speaker, *_ = corpus.get_metadata(index)  # file: relative to the unpacked archive
            audio = Path(corpus._archive, file).resolve()
            row = {"audio_filepath": str(audio), "duration": round(soundfile.info(str(audio)).duration, 3)}
            row |= {"text": str(text).lower(), "speaker": str(speaker), "source": name.lower()}
            out.write(json.dumps(row) + "\n")
    return len(corpus)


def resolve_manifest(given: str, folder: str | Path) -> Path:
    """The path of a manifest given by path, or as NAME:ROOT[:SUBSET] of a corpus, then written to `folder`."""
    name, _, rest = given.partition(":")
    if name.upper() not in DEFAULT_SUBSETS or not rest:
        return Path(given)
    root, _, subset = rest.partition(":")
    path = Path(folder) / f"{name.lower()}-{subset or DEFAULT_SUBSETS[name.upper()]}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    corpus_to_manifest(name, root, path, subset)
    return path
