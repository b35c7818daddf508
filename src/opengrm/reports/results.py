"""Result files: a measured result as the command that measured it wrote it (design rule 6).

{"name", "command", "commit", "versions", "machine", "headline": {key: number}, "rows": [...]}
"""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PACKAGES = ("opengrm", "numpy", "torch", "transformers", "tokenizers", "trl", "openvino-genai", "xllamacpp", "vllm")


def write_result(
    path: str | Path,
    *,
    headline: Mapping[str, float],
    rows: Sequence[Mapping[str, Any]],
    command: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Write `results/<name>.json`; the name is the file's stem.

    Args:
        path: where to write; the folder is made.
        headline: the few numbers that the result is quoted by.
        rows: every measured row, each with its n, interval and cost.
        command: how it was measured; this process's command line where None.
        notes: anything else a reader needs (settings, what was not measured and why).
    """
    path = Path(path)
    result: dict[str, Any] = {
        "name": path.stem,
        "command": command or command_line(),
        "commit": commit(),
        "versions": versions(),
        "machine": machine(),
        "headline": dict(headline),
        "rows": [dict(r) for r in rows],
    }
    if notes:
        result["notes"] = dict(notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    return path


def finite_json(text: str) -> Any:
    """JSON in which whatever is no finite number is not known: None. Raises ValueError where it is not JSON."""
    return json.loads(
        text,
        parse_constant=lambda _: None,
        parse_float=lambda digits: x if math.isfinite(x := float(digits)) else None,
    )


def command_line() -> str:
    """This process's command line with paths cut to what a reader can run from the repository's root."""
    program = Path(sys.argv[0])
    name = "opengrm" if program.name in ("opengrm", "__main__.py") else os.path.relpath(program)
    words = [name, *sys.argv[1:]]
    return shlex.join(words if name == "opengrm" else ["python", *words])


def commit() -> str | None:
    """The commit of the checkout this runs in, with "+changes" if tracked files differ; None outside git."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        # Results are written after one another: an earlier one must not mark the next as changed.
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno", "--", ":/", ":!/results"],
            cwd=here, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+changes" if dirty.stdout.strip() else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that decide a number, where they are installed."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """What this ran on: processor, usable cores, memory in GiB. No host names, no paths."""
    cpu = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (OSError, ValueError, AttributeError):
        memory = 0.0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": cpu, "cores": cores, "memory_gib": round(memory, 1), "system": platform.system()}
