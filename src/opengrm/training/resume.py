"""What a killed stage of training goes on from: its newest whole checkpoint, and the metrics up to it."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole `checkpoint-<step>` of a Trainer. What a kill left half written is removed.

    The Trainer writes trainer_state.json last, so a folder without one that can be read is not whole; after a power
    cut a file before it can be short as well.
    """
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    for path in sorted(found, key=step_of, reverse=True):
        if _is_whole(path):
            return path
        shutil.rmtree(path, ignore_errors=True)
    return None


def _is_whole(checkpoint: Path) -> bool:
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return all(_weights_end(path) == path.stat().st_size for path in checkpoint.rglob("*.safetensors")) and all(
            zipfile.is_zipfile(path) for path in checkpoint.glob("*.pt")
        )
    except (OSError, ValueError, KeyError):
        return False


def _weights_end(path: Path) -> int:
    """Where a safetensors file ends by its own header."""
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
        tensors = json.loads(file.read(header))
    return 8 + header + max((t["data_offsets"][1] for name, t in tensors.items() if name != "__metadata__"), default=0)


def step_of(checkpoint: Path | None) -> int:
    """The step of a checkpoint's name; 0 for none."""
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def cut_metrics(path: Path, step: int) -> list[str]:
    """Drop the lines of a metrics file behind `step`, which are made again, and return those that stay.

    A line that a kill cut off is dropped too, and everything behind it.
    """
    kept: list[str] = []
    if not path.exists():
        return kept
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            later = json.loads(line)["step"] > step
        except ValueError:
            break
        if later:
            break
        kept.append(line)
    path.write_text("".join(f"{line}\n" for line in kept if step), encoding="utf-8")
    return kept if step else []
