"""The OpenVINO engine on a tiny checkpoint: near the model's own numbers, and the same text in any batch."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import build_checkpoint

pytest.importorskip("openvino_genai", reason="the extra 'openvino' is not installed")
pytest.importorskip("gguf", reason="the extra 'gguf' is not installed")
torch = pytest.importorskip("torch", reason="the extra 'local' is not installed")

from opengrm.engines.base import Completion, Request, Sampling  # noqa: E402
from opengrm.engines.fingerprint import fingerprint  # noqa: E402
from opengrm.engines.gguf import EXPORT_VERSION  # noqa: E402
from opengrm.engines.openvino import OpenVINOEngine  # noqa: E402
from opengrm.errors import EngineError  # noqa: E402
from opengrm.items import Message  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield build_checkpoint(tmp_path_factory.mktemp("models") / "tiny", "Qwen3", head_dim=32)
    patch.undo()


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[OpenVINOEngine]:
    with OpenVINOEngine(folder, threads=1, cache_gib=1) as opened:
        yield opened


def requests(count: int = 4, **settings: float) -> list[Request]:
    sampling = Sampling(temperature=settings.get("temperature", 1.0), max_tokens=16, logprobs=True)
    return [
        Request(number, (Message("user", f"Judge {number} 12 345 <|im_end|>" * 3),), (1, 2, 3), sampling)
        for number in range(count)
    ]


def by_place(found: Iterator[Completion]) -> dict[tuple[int, int], Completion]:
    return {(c.request, c.index): c for c in found}


def test_texts_do_not_depend_on_the_batch(engine: OpenVINOEngine, folder: Path) -> None:
    base = by_place(engine.generate(requests()))
    assert len(base) == 12
    assert all(c.error is None and c.completion_tokens for c in base.values())
    assert len({c.text for c in base.values()}) == 12
    with OpenVINOEngine(folder, threads=1, cache_gib=1, max_batch=2) as small:
        assert small.model == engine.model
        other = by_place(small.generate(requests()[::-1]))
    assert {key: c.token_ids for key, c in other.items()} == {key: c.token_ids for key, c in base.items()}


def test_logprobs_are_the_models_own(engine: OpenVINOEngine, folder: Path) -> None:
    """Half precision: within 0.02 of the float32 forward, at any temperature (they are of the unscaled model)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from opengrm.engines.chat import ChatTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    chat = ChatTokenizer(AutoTokenizer.from_pretrained(folder))
    (request,) = requests(1, temperature=0.6)
    prompt = chat.encode(request.messages)
    for completion in engine.generate([request]):
        ids = [*(completion.token_ids or ()), *[2] * (completion.finish == "stop")]
        assert completion.prompt_tokens == len(prompt)
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[range(len(ids)), ids]
        assert completion.logprobs == pytest.approx(expected.tolist(), abs=0.02)
        assert len(completion.pieces or ()) == len(ids)
        assert "".join(completion.pieces or ()) == completion.text
        assert completion.alternatives is None


def test_greedy_needs_no_seed(engine: OpenVINOEngine) -> None:
    found = by_place(engine.generate(requests(2, temperature=0)))
    assert len({found[0, index].token_ids for index in range(3)}) == 1


def test_prompts_that_do_not_fit_and_stopping_early(engine: OpenVINOEngine) -> None:
    long = Request(5, (Message("user", "word " * 600),), (1, 2), Sampling())
    found = list(engine.generate([long, *requests(1)]))
    refused = [c for c in found if c.request == 5]
    assert [(c.error or "")[:9] for c in refused] == ["too_long:"] * 2
    assert len(found) == 5
    running = engine.generate(requests())
    next(running)
    running.close()
    assert len(list(engine.generate(requests(1)))) == 3


@pytest.mark.parametrize("broken", ["step", "add_request"])
def test_a_failing_pipeline_says_so(engine: OpenVINOEngine, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Tidying up behind a failure may fail as well, and must not hide it."""

    class Broken:
        def __getattr__(self, name: str) -> object:
            if name == broken:
                raise RuntimeError(f"no memory in {name}\nlong trace")
            return getattr(whole, name)

    whole = engine._pipeline
    monkeypatch.setattr(engine, "_pipeline", Broken())
    with pytest.raises(EngineError, match=f"^OpenVINO failed: no memory in {broken}$"):
        list(engine.generate(requests()))
    monkeypatch.undo()
    while whole.has_non_finished_requests():
        whole.step()


def test_identity_and_the_kept_file_name_the_exporter(engine: OpenVINOEngine, folder: Path) -> None:
    assert engine.model == f"tiny@{fingerprint(folder)}-f16.{EXPORT_VERSION}"
    kept = Path(os.environ["XDG_CACHE_HOME"]) / "opengrm" / f"{engine.model}.gguf"
    assert kept.is_file()
    with OpenVINOEngine(folder, threads=1, cache_gib=1, chat_template_kwargs={"x": 1}) as other:
        assert other.model.startswith(f"{engine.model}-")
    assert list(kept.parent.iterdir()) == [kept]


def test_a_bare_gguf_file(engine: OpenVINOEngine, folder: Path, tmp_path: Path) -> None:
    from opengrm.engines.gguf import export_gguf

    file = export_gguf(folder, tmp_path / "judge.gguf", "q8_0")
    with OpenVINOEngine(file, threads=1, cache_gib=1) as opened:
        assert opened.model.startswith("judge@")
        (first,) = [c for c in opened.generate(requests(1)) if c.index == 0]
    assert first.error is None
    assert first.completion_tokens > 0


def test_a_bare_gguf_files_template(folder: Path, tmp_path: Path) -> None:
    """Its variables, its date, and the thought that it opens."""
    from opengrm.engines.gguf import export_gguf

    copied = shutil.copytree(folder, tmp_path / "m")
    template = (
        "{% if date_string is not defined %}{% set date_string = strftime_now('%Y') %}{% endif %}{{ date_string }} "
        "{{ mood }} {% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}<think>\n"
    )
    (copied / "chat_template.jinja").write_text(template)
    file = export_gguf(copied, tmp_path / "judge.gguf")
    with OpenVINOEngine(file, threads=1, cache_gib=1, chat_template_kwargs={"mood": "calm"}) as opened:
        asked = (Message("system", "Judge."), Message("user", "Which?"))
        shown = opened._pipeline.get_tokenizer().decode(list(opened._chat.encode(asked)))
        (done,) = opened.generate([Request(0, asked, (1,), Sampling(max_tokens=4))])
    # OpenVINO's reading of the tokenizer has its own idea of line ends.
    assert " ".join(shown.split()) == "26 Jul 2024 calm Judge. Which?<think>"
    assert done.text.startswith("<think>")


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no such file"):
        OpenVINOEngine(tmp_path / "x.gguf")
    (tmp_path / "y.gguf").write_bytes(b"nothing")
    with pytest.raises(EngineError, match="not a GGUF file"):
        OpenVINOEngine(tmp_path / "y.gguf")
