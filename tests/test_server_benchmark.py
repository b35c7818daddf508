"""The benchmark of real servers: what is not installed is a row that says so, not a gap."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")


def test_a_server_that_is_not_installed_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "servers.py"
    spec = importlib.util.spec_from_file_location("benchmark_servers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    found = list(module.servers(tmp_path, tmp_path, 1, None))
    rows = [module.measured(server, [], 1, 1, [], tmp_path / "log") for server in found]
    assert [row["server"].split()[0] for row in rows] == ["llama-server"] * 2 + ["transformers"] * 2 + ["vLLM"]
    assert all(row["error"].startswith("not measured: ") and row["starts"] is False for row in rows)
    assert "xllamacpp is not installed" in rows[0]["error"]
