"""FSDP2 in one process on a CPU: the reference model in layers, and a head in float32 under bfloat16."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

SCRIPT = """
import sys
from types import SimpleNamespace

import torch
import transformers
from accelerate.utils import FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

sys.path.insert(0, sys.argv[1])
from tiny_models import build_model
from opengrm.engines.classifier import float_head
from opengrm.training.grpo import shard_by_layer

torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
ids = torch.tensor([[1, 2, 3, 4]])

plugin = FullyShardedDataParallelPlugin(
    fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True,
    cpu_ram_efficient_loading=False,
)
accelerator = SimpleNamespace(
    state=SimpleNamespace(fsdp_plugin=plugin), device=torch.device("cpu"), is_main_process=True,
    torch_device_mesh=None, mixed_precision="no",
)
model = build_model("Qwen3")
before = model(ids).logits
sharded = shard_by_layer(model, accelerator, None)
assert all(isinstance(layer, FSDPModule) for layer in sharded.model.layers)
assert torch.allclose(sharded(ids).logits, before, atol=1e-6)

config = build_model("Qwen3").config
config.num_labels, config.pad_token_id = 1, 0
classifier = transformers.Qwen3ForSequenceClassification(config)
float_head(classifier)
policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
for layer in classifier.model.layers:
    fully_shard(layer, mp_policy=policy)
fully_shard(classifier, mp_policy=policy)
loss = classifier(ids).logits.sum()
assert loss.dtype == torch.float32
loss.backward()
assert classifier.score.weight.grad is not None
print("held")
"""


def test_sharded_models(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    words = [sys.executable, str(tmp_path / "script.py"), str(Path(__file__).parent)]
    done = subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.stdout.strip() == "held", done.stderr[-3000:]
