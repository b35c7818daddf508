"""What identifies a model in every judgment's key: the files, and the settings, that decide its text."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opengrm.errors import UsageError
from opengrm.items import content_hash

_WHOLE = 64 * 2**20  # files up to this size are hashed whole
_BLOCK = 64 * 2**10
_BLOCKS = 64  # evenly spaced blocks of a larger file, its first and last included
_ENDINGS = (".json", ".safetensors", ".model", ".txt", ".jinja", ".gguf", ".py")


def fingerprint(path: Path) -> str:
    """First 12 hex digits of a SHA-256 over names, sizes and contents of a model folder's (or GGUF file's) files.

    Counted are configuration, tokenizer, chat template and weights, by relative name; not the folder's own name, nor
    what else lies in it (licences, logs, trainer state). Of a file over 64 MiB the size and 64 blocks of 64 KiB are
    read, so that fifty gigabytes take well under a second: a change that leaves all of those blocks as they are, in a
    file of the same size, is not seen. Second copies of the weights in another format (`consolidated*`, `original/`)
    are not loaded and do not count.
    """
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if _counts(f, path))
    total = hashlib.sha256()
    for file in files:
        name = "" if file == path else file.relative_to(path).as_posix()
        total.update(f"{name}\0{file.stat().st_size}\0{_digest(file)}\n".encode())
    return total.hexdigest()[:12]


def identity(name: str, fingerprint: str, settings: str, chat_template_kwargs: Mapping[str, Any] | None) -> str:
    """`name@fingerprint-settings`, and a short hash of the chat template's variables where any are set.

    Whatever changes the text of a sample belongs in here, precision above all: equal keys mean equal judgments.
    """
    parts = [f"{name}@{fingerprint}", settings]
    if chat_template_kwargs:
        parts.append(short_hash("chat_template_kwargs", chat_template_kwargs))
    return "-".join(part for part in parts if part)


def short_hash(name: str, *settings: object) -> str:
    """First 8 hex digits of the settings' content hash.

    Raises:
        UsageError: they cannot be written as JSON; `name` is what the message calls them.
    """
    try:
        return content_hash(*settings)[:8]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} cannot be written as JSON: {error}") from None


def _counts(file: Path, root: Path) -> bool:
    inside = file.relative_to(root).parts
    if any(part.startswith((".", "checkpoint-", "__pycache__", "consolidated")) for part in inside):
        return False
    if inside[0] == "original":
        return False
    return file.suffix in _ENDINGS and file.name not in ("trainer_state.json", "README.txt") and file.is_file()


def _digest(file: Path) -> str:
    size = file.stat().st_size
    content = hashlib.sha256()
    with file.open("rb") as stream:
        if size <= _WHOLE:
            while block := stream.read(2**20):
                content.update(block)
        else:
            for number in range(_BLOCKS):
                stream.seek((size - _BLOCK) * number // (_BLOCKS - 1))
                content.update(stream.read(_BLOCK))
    return content.hexdigest()
