"""A stage of training on disk: begun with which settings, and done or not.

`begin` writes the settings a stage is begun with, and refuses to go on with others. A stage is done when its summary
is there; it is written last. Both are small JSON files that a person can read.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any

from opengrm.errors import UsageError

PATIENCE = timedelta(hours=12)  # of processes that wait for what the first prepares (torch's own is 10 minutes)
# Settings that change how a result is come by, not which one: a run that goes on may have others, so that what did
# not fit into memory, or was seen too seldom, can be mended.
FREE = frozenset(
    {"micro_batch", "sample_batch", "checkpointing", "save_every", "log_every", "eval_every",
     "report_to", "trust_remote_code", "vllm_url"}
)  # fmt: skip


def begin(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a stage's settings to `path`, or see that it was begun with the same ones (but for those of `FREE`).

    Raises:
        UsageError: it was begun with other settings; the message names them.
    """
    make_folder(path.parent)
    asked = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, asked)
        return
    begun = read_json(path)
    if other := list(differing(begun, asked)):
        raise UsageError(f"{path.parent}: begun with other settings ({'; '.join(other)}): choose another folder")


def differing(begun: Any, asked: Any, place: str = "") -> Iterator[str]:
    """What differs between two trees of settings as JSON gives them, but for `FREE`.

    A setting that is not there and one that is off or empty are the same: an older version did not write it.
    """
    if isinstance(begun, Mapping) and isinstance(asked, Mapping):
        for key in {**begun, **asked}:
            if key not in FREE:
                yield from differing(begun.get(key), asked.get(key), f"{place}.{key}" if place else key)
    elif begun != asked and (begun or asked):
        yield f"{place} {begun!r}, now {asked!r}"


def read_json(path: Path) -> dict[str, Any] | None:
    """The summary of a stage, or None where it is not done.

    Raises:
        UsageError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path}: damaged ({error}): restore it, or choose another folder") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: damaged (no JSON object): restore it, or choose another folder")
    return value


def make_folder(path: Path) -> None:
    """Make a stage's folder.

    Raises:
        UsageError: it is a file.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file, expected a folder")
    path.mkdir(parents=True, exist_ok=True)


def check_finite(settings: Any) -> None:
    """See that no number of a settings class is infinite or not a number: comparisons let NaN pass.

    Raises:
        ValueError: it names the setting.
    """
    for each in fields(settings):
        value = getattr(settings, each.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{each.name} is {value}, expected a finite number")


def check_reporters(names: Sequence[str]) -> None:
    """See that transformers can report to these trackers.

    Raises:
        UsageError: one is not installed, or not known.
    """
    from transformers.integrations import integration_utils

    available: Any = integration_utils.get_available_reporting_integrations
    if missing := sorted(set(names) - set(available())):
        raise UsageError(f"cannot report to {', '.join(missing)}: not installed, or not a reporter that TRL knows")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object that appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # several processes may write the same
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


def has_bfloat16() -> bool:
    """Whether training computes in bfloat16 unless told otherwise: on a GPU that has it, where that is the device.

    GPUs before Ampere only emulate it, without kernels for attention.
    """
    import torch
    from accelerate import PartialState

    return bool(PartialState().device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False))


def is_main() -> bool:
    """Whether this is the only process or the first of several, before anything is set up between them."""
    return int(os.environ.get("RANK", "0")) == 0


class Pace:
    """Lets a line through every few seconds."""

    def __init__(self, say: Callable[[str], None], seconds: float = 20.0) -> None:
        self._say, self._seconds, self._last = say, seconds, time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._say(line)
