"""Texts as vectors: an encoder's last hidden states, averaged over the tokens and scaled to length 1.

That is how sentence encoders such as all-MiniLM-L6-v2 are read (Reimers and Gurevych, arXiv:1908.10084). Nothing is
trained here: vectors are computed once, and whatever is trained on them (`training/meta_head.py`) costs seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from opengrm.engines.checkpoints import find_model, first_line
from opengrm.engines.classifier import padded
from opengrm.engines.fingerprint import fingerprint
from opengrm.errors import EngineError, MissingExtra

Floats32 = npt.NDArray[np.float32]


class TextVectors:
    """An encoder that this process loads, in float32 on the CPU.

    Attributes:
        model: name and fingerprint of the weights.
        max_tokens: most tokens that are read of a text, special ones included; of a longer one, its end.

    Args:
        model: "all-minilm-l6-v2", a folder or a hub id.
        max_tokens: see above.
        batch: most texts in a batch; they are sorted by length, so that little is padded.

    Raises:
        EngineError: there is no such model, or it is no encoder.
        MissingExtra: torch or transformers is not installed.
    """

    def __init__(self, model: str | Path, *, max_tokens: int = 256, batch: int = 16) -> None:
        try:
            import torch
            import transformers
        except ImportError:
            raise MissingExtra("reading texts with an encoder", "local") from None
        folder, name = find_model(model)
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._tokenizer.truncation_side = "left"
            loaded: Any = transformers.AutoModel.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
            )
        except Exception as error:
            raise EngineError(f"{model}: cannot load this encoder: {first_line(error)}") from None
        self._model = loaded.eval()
        self.model = f"{name}@{fingerprint(folder)}"
        self.max_tokens, self._batch = max_tokens, batch

    def encode(self, texts: Sequence[str]) -> Floats32:
        """One vector of length 1 for each text, shape [texts, width]; equal texts get equal vectors."""
        import torch

        ids = [self._ids(text) for text in texts]
        vectors = np.zeros((len(texts), int(self._model.config.hidden_size)), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: (len(ids[i]), ids[i]))
        for start in range(0, len(order), self._batch):
            some = order[start : start + self._batch]
            inputs = padded([ids[i] for i in some], self._tokenizer.pad_token_id or 0)
            with torch.inference_mode():
                hidden_BTD = self._model(**inputs).last_hidden_state
            mask_BT1 = inputs["attention_mask"][..., None].to(hidden_BTD.dtype)
            mean_BD = (hidden_BTD * mask_BT1).sum(dim=1) / mask_BT1.sum(dim=1)
            vectors[some] = torch.nn.functional.normalize(mean_BD, dim=1).numpy()
        return vectors

    def _ids(self, text: str) -> list[int]:
        """The end of the text between the tokenizer's special tokens."""
        found = self._tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        return [int(token) for token in found]
