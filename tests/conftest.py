"""Shared fixtures: where the real recorded data lies, if it is here at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Numbers are compared to many places, and what two processes train on one GPU is refused by NCCL: the tests are for
# CPUs, wherever they run, and those of tests/test_cuda.py ask for the GPU.
if not os.environ.get("OPENGRM_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

settings.register_profile("untimed", deadline=None)  # no test may fail because the machine is busy
settings.load_profile("untimed")


def find_data_dir() -> Path | None:
    """`$OPENGRM_DATA`, else `shared/data` beside the repository, else None."""
    candidates = [os.environ.get("OPENGRM_DATA"), Path(__file__).resolve().parents[2] / "shared" / "data"]
    return next((Path(c) for c in candidates if c and Path(c).is_dir()), None)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    found = find_data_dir()
    if found is None:
        pytest.skip("no recorded data: set OPENGRM_DATA to the folder that holds it")
    return found
