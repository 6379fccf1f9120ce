# make demo: the whole job on simulated images.   make test: all tests except the slow ones.
# Each of them is enough in a fresh clone.

NEW_ENOUGH := -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11; do $$p $(NEW_ENOUGH) && { echo $$p; break; }; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Bytecode is compiled on all cores, which pip does not do: each of Ray's workers imports torch and
# diffusers, in 31 s without bytecode and in 11 s with it. Files for other Pythons fail to compile,
# which does not matter; libraries' own tests are left out.
COMPILE := $(BIN)/python -m compileall -q -j 0 -x /tests/ .venv/lib >/dev/null 2>&1 || true
export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test slow chaos unit bench lint format readers docs clean

demo: .venv/runtime
	$(BIN)/busray demo

# Each process of a test has one thread, because threads of processes that share cores wait for each
# other with a busy loop.
test slow chaos unit: export OMP_NUM_THREADS = 1
test slow chaos unit: export OPENBLAS_NUM_THREADS = 1

# Two processes: one runs the tests that start Ray, one after the other; the other takes file after
# file (tests/conftest.py).
test: .venv/dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

slow: .venv/dev
	$(BIN)/python -m pytest -m slow

chaos: .venv/dev
	$(BIN)/python -m pytest tests/chaos -m "slow or not slow"

unit: .venv/dev
	$(BIN)/python -m pytest tests/unit

# Ours and others' programs in turn, some 40 minutes: benchmarks/speed.md. BUSI=FOLDER has its check
# read real images. On a machine with a GPU: `python -m benchmarks.speed gpu`.
bench: .venv/dev
	$(BIN)/python -m benchmarks.speed $(if $(BUSI),--busi $(BUSI))

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "busray needs Python 3.11 or later: make PYTHON=/path/to/python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/runtime: .venv/bin/python pyproject.toml constraints.txt requirements-inception.txt requirements-classifier.txt
	@echo "installing into .venv: some 6 GB, a few minutes"
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[s3]'
	$(PIP) install --quiet --no-deps -r requirements-inception.txt -r requirements-classifier.txt
	@$(COMPILE)
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt requirements-inception.txt requirements-classifier.txt
	@echo "installing into .venv: some 6 GB, a few minutes"
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[dev]'
	$(PIP) install --quiet --no-deps -r requirements-inception.txt -r requirements-classifier.txt
	@$(COMPILE)
	@touch .venv/runtime $@

# Readers that no one here wrote open what busray writes: benchmarks/compatibility.md. torch and
# torchvision are borrowed from .venv; busray is not there.
READERS := build/readers
readers: .venv/dev
	rm -rf $(READERS)/corpora && mkdir -p $(READERS)
	$(BIN)/python -m tools.readers.write $(READERS)/corpora
	$(BIN)/python -m venv $(READERS)/venv
	$(READERS)/venv/bin/python -m pip install --quiet -r tools/readers/requirements.txt
	ls -d $(abspath .venv)/lib/python3*/site-packages > $$(ls -d $(READERS)/venv/lib/python3*/site-packages)/torch.pth
	HF_HOME=$(abspath $(READERS))/hf $(READERS)/venv/bin/python tools/readers/read.py $(READERS)/corpora benchmarks/compatibility.md

# The documentation as a site, build/docs/index.html. Material's note on its successor is no warning of
# ours.
docs: .venv/docs
	$(BIN)/python -m tools.docs_site build/docs-source
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

.venv/docs: .venv/runtime
	$(PIP) install --quiet --no-compile -c constraints.txt -e '.[docs]'
	@touch $@

clean:
	rm -rf .venv runs build dist .pytest_cache .ruff_cache .import_linter_cache
