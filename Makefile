# Two commands from a fresh clone: `make demo` and `make test`. Each makes the environment it needs, the first time, from
# packages of the versions in constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# Two PyTorch processes with two threads each run many times slower than one: tests run one thread a process.
TEST_THREADS := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo test lint types install clean

# Debian and Ubuntu keep venv in a package of its own: apt install python3-venv.
$(BIN)/pip:
	$(PYTHON) -m venv $(VENV)

# For use.
$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) -e ".[local,train,plots]"
	touch $@

# For work on the code: the same and what tests and lint need.
$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) -e ".[local,train,plots,parquet,gguf,dev]"
	touch $(VENV)/.installed $@

install: $(VENV)/.installed-dev

# For example: make demo DEMO="--count 40"
demo: $(VENV)/.installed
	$(BIN)/opengrm demo --output demo $(DEMO)

test: $(VENV)/.installed-dev lint types
	$(TEST_THREADS) $(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

# What the demo measured stays: remove demo/ by hand.
clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
