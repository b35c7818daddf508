"""A stage of training on disk: begun with which settings, and done or not.

`begin` writes the settings a stage is begun with, and refuses to go on with others. A stage is done when its summary
is there; it is written last. Both are small JSON files that a person can read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from opengrm.errors import UsageError

PATIENCE = timedelta(hours=12)  # of processes that wait for what the first prepares (torch's own is 10 minutes)


def begin(path: Path, settings: Mapping[str, Any]) -> None:
    """Write a stage's settings to `path`, or see that it was begun with the same ones.

    Raises:
        UsageError: it was begun with other settings; the message names them.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    asked = json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, asked)
        return
    begun = json.loads(path.read_text(encoding="utf-8"))
    other = [f"{k} {begun.get(k)!r}, now {asked.get(k)!r}" for k in {**begun, **asked} if begun.get(k) != asked.get(k)]
    if other:
        raise UsageError(f"{path.parent}: begun with other settings ({'; '.join(other)}): choose another folder")


def read_json(path: Path) -> dict[str, Any] | None:
    """The summary of a stage, or None where it is not done."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object that appears whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")  # several processes may write the same
    part.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, path)


class Pace:
    """Lets a line through every few seconds."""

    def __init__(self, say: Callable[[str], None], seconds: float = 20.0) -> None:
        self._say, self._seconds, self._last = say, seconds, time.monotonic()

    def __call__(self, line: str) -> None:
        if time.monotonic() - self._last >= self._seconds:
            self._last = time.monotonic()
            self._say(line)
