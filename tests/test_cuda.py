"""On a CUDA GPU: OPENGRM_CUDA=1 pytest tests/test_cuda.py. Everywhere else (also with a GPU) these are skipped.

The kernels of the sampling loop, against the same on a CPU. And one short run of every trainer, in bfloat16 as a GPU
has it: tests of other files, which ask nothing of it that rounding can change.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch", reason="the extra 'local' is not installed")
pytest.importorskip("trl", reason="the extra 'train' is not installed")

from test_cli import run  # noqa: E402
from test_cloud_training import (  # noqa: E402
    test_from_items_to_verdicts,
    test_the_critic_learns_the_oracles_critiques_in_one_epoch,
)
from test_meta_training import test_trains_and_writes_an_ordinary_folder  # noqa: E402
from test_preference_training import (  # noqa: E402
    test_bradley_terry_trains_and_writes_an_ordinary_folder,
    test_pair_rm_trains_and_names_its_template,
)
from test_rft import base, test_the_result_is_an_ordinary_folder, trained  # noqa: E402
from test_rl import (  # noqa: E402
    checkpoint,
    test_command_line,
    test_lora_is_merged_into_an_ordinary_checkpoint,
    test_the_reward_climbs,
    test_training_in_bfloat16,
)
from test_scalar_scoring import test_shared_prompts_change_no_score  # noqa: E402
from test_transformers_engine import FAST, collect, random_prompts  # noqa: E402
from tiny_models import build_model  # noqa: E402

from opengrm.engines.base import Sampling  # noqa: E402
from opengrm.engines.decoding import Job  # noqa: E402
from opengrm.engines.shared_prefix import attention_and_lse  # noqa: E402

__all__ = [
    "base",
    "checkpoint",
    "run",
    "test_bradley_terry_trains_and_writes_an_ordinary_folder",
    "test_command_line",
    "test_from_items_to_verdicts",
    "test_lora_is_merged_into_an_ordinary_checkpoint",
    "test_pair_rm_trains_and_names_its_template",
    "test_shared_prompts_change_no_score",
    "test_the_critic_learns_the_oracles_critiques_in_one_epoch",
    "test_the_result_is_an_ordinary_folder",
    "test_the_reward_climbs",
    "test_training_in_bfloat16",
    "test_trains_and_writes_an_ordinary_folder",
    "trained",
]  # fmt: skip

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device, or not asked for")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("queries", "keys", "skipped"), [(1, 1, 0), (2, 37, 5), (4, 700, 600), (70, 129, 0)])
def test_attention_of_cuda_devices(dtype: str, queries: int, keys: int, skipped: int) -> None:
    """Keys and masks are views that begin anywhere, as the loop's are."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    query, key, value = (torch.randn(3, 2, n, 64, device="cuda", dtype=kind) for n in (queries, keys + 7, keys + 7))
    key, value = key[:, :, 7:], value[:, :, 7:]
    held = torch.zeros(3, 1, 1, keys + 7, device="cuda", dtype=kind)
    held[0, ..., : 7 + skipped] = float("-inf")
    for mask in (None, held[..., 7:]):
        out, lse = attention_and_lse(query, key, value, 0.125, mask)
        scores = query.double() @ key.double().transpose(-1, -2) * 0.125 + (0 if mask is None else mask.double())
        assert torch.allclose(lse.double(), scores.logsumexp(-1), atol=1e-4 if dtype == "float32" else 1e-2)
        exact = scores.softmax(-1) @ value.double()
        assert (out - exact).abs().max() <= 10 * torch.finfo(kind).eps * exact.abs().max()
        assert out.dtype == kind


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Qwen3Moe"])
def test_decoding_on_a_cuda_device(family: str) -> None:
    model = build_model(family, **FAST[family])
    jobs = [Job(t, p, (1, 2), Sampling(0, max_tokens=20)) for t, p in enumerate(random_prompts(9, 25, 13, 24, 23))]
    expected = collect(model, jobs, max_batch=4)
    model = model.to("cuda")
    for shared in (True, False):
        found = collect(model, jobs, max_batch=4, fast=shared)
        assert {k: s.token_ids for k, s in found.items()} == {k: s.token_ids for k, s in expected.items()}
