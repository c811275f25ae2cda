# README's two commands are `make demo` and `make test`; both work on a bare machine with Python 3.11.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# bytecode is made at first import, and only for what is imported
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
export OMP_NUM_THREADS ?= 2
export TOKENIZERS_PARALLELISM := false
# without bytecode every process compiles its libraries anew, for 15 seconds
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup core demo test check fmt lint types docs bench test-slow test-ui test-gpu test-cluster test-kills world-claim ci clean

$(VENV)/core.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/dev.stamp: $(VENV)/core.stamp
	$(PIP) -e '.[dev]'
	touch $@

core: $(VENV)/core.stamp
setup: $(VENV)/dev.stamp

demo: core
	$(BIN)/efface demo

# two processes of one thread each: the networks of the tests are too small for more threads
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadscope

test-slow: setup
	$(BIN)/python -m pytest -m slow || test $$? -eq 5

test-ui: setup
	$(BIN)/python -m pytest -m ui || test $$? -eq 5

test-gpu: setup
	$(BIN)/python -m pytest -m gpu || test $$? -eq 5

test-kills: setup
	$(BIN)/python -m pytest -m kills -s || test $$? -eq 5

# Ray is no part of the usual setup: it is installed when this is asked for
test-cluster: setup
	$(PIP) -e '.[ray]'
	$(BIN)/python -m pytest -m cluster || test $$? -eq 5

lint: setup
	$(BIN)/ruff check src tests docs benchmarks
	$(BIN)/ruff format --check src tests docs benchmarks

fmt: setup
	$(BIN)/ruff check --fix src tests docs benchmarks
	$(BIN)/ruff format src tests docs benchmarks

types: setup
	$(BIN)/basedpyright

check: lint types test

docs: setup
	$(BIN)/python docs/render.py runs/demo/report.html

bench: setup
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/seed_methods.py

world-claim: setup
	$(BIN)/python benchmarks/world_claim.py

# The slow tests are cut into ten fixed parts by the hash of their names; one part runs in CI.
ci: test
	EFFACE_SLOW_PART=8 $(BIN)/python -m pytest -m slow --no-header || test $$? -eq 5

clean:
	rm -rf runs .pytest_cache .ruff_cache
