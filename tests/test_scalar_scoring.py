"""Quick scoring is plain scoring: shared prompts and sorted batches against one conversation at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from test_meta_classifier import build_classifier  # noqa: E402

from opengrm.engines.classifier import Classifier, Reading  # noqa: E402
from opengrm.errors import EngineError  # noqa: E402
from opengrm.items import Item, Message  # noqa: E402
from opengrm.judges.bradley_terry import BradleyTerry  # noqa: E402
from opengrm.judges.pair_rm import PairRM  # noqa: E402
from opengrm.templates.pair import PairTemplate  # noqa: E402

ITEMS = [
    Item(
        (
            Message("user", f"Query {i} " + "in many words " * 8 * (i % 3)),
            Message("assistant", "A"),
            Message("user", "B"),
        ),
        tuple(f"response {j} " + "word " * ((3 * i + 5 * j) % 11) for j in range(4 + i % 3)),
        id=f"q{i}",
    )
    for i in range(5)
]


@pytest.mark.parametrize("family", ["Qwen3", "Llama"])
def test_shared_prompts_change_no_score(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Within 1e-5 before rounding, of responses and of pairs; rounding is to 4 decimals."""
    folder = build_classifier(tmp_path, family)
    with Classifier(folder) as quick:
        rounded = [judgment.scores for _, (judgment,) in BradleyTerry(quick).judge(ITEMS, 1)]
    monkeypatch.setattr("opengrm.engines.classifier._DECIMALS", 12)
    monkeypatch.setattr("opengrm.judges.pair_rm._DECIMALS", 12)
    with Classifier(folder) as quick, Classifier(folder, share_prompts=False, max_batch=1) as plain:
        batches: list[int] = []
        layout = quick._batches
        monkeypatch.setattr(quick, "_batches", lambda ids: [batches.append(len(b)) or b for b in layout(ids)])
        for judge_of in (BradleyTerry, lambda reader: PairRM(reader, PairTemplate("pair-compact"))):
            found = [judgment.scores for _, (judgment,) in judge_of(quick).judge(ITEMS, 1)]
            wanted = [judgment.scores for _, (judgment,) in judge_of(plain).judge(ITEMS, 1)]
            for one, other in zip(found, wanted, strict=True):
                assert one == pytest.approx(other, abs=1e-5)
            if judge_of is BradleyTerry:
                assert [tuple(round(score, 4) for score in scores) for scores in found] == rounded
        assert max(batches) > 20  # together they were read


def test_what_a_reading_says(tmp_path: Path) -> None:
    with Classifier(build_classifier(tmp_path, "Qwen3")) as reader:
        conversations = [(*ITEMS[0].prompt, Message("assistant", text)) for text in ("a", "b", "a", "word " * 600)]
        found = reader.read(conversations)
        assert found[0] == found[2]
        assert found[3].logit is None
        assert found[3].tokens > 600
        assert reader.score(conversations) == [reading.logit for reading in found]
        # What the prompts are called does not matter.
        assert reader.read(conversations, ["x"] * 4)[0].logit == pytest.approx(found[0].logit, abs=1.1e-4)
        assert isinstance(found[0], Reading)


@pytest.mark.parametrize("value", [-5, 0, True, "16", 16.0, float("nan")])
def test_a_cut_that_is_no_number_of_tokens_is_refused(tmp_path: Path, value: object) -> None:
    folder = build_classifier(tmp_path, "Qwen3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "truncates": True, "truncates_to": value}))
    with pytest.raises(EngineError, match=r"config\.json: truncates_to is .*, expected an integer of at least 1"):
        Classifier(folder)
