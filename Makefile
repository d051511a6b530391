# make sandbox   set up and train on the embedded task     make test   the tests     make lint   style, types, layers
SHELL := /bin/bash
PYTHON ?= python3.11
EXTRAS ?= cpu,test
RUN ?= runs/sandbox
RECIPE ?= examples/sandbox.yaml
# Much of a test's time is a wait for processes that start, and a file's tests share what they start. Which files come
# first, tests/conftest.py says.
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STUBS := build/stubs
# Extras are part of the stamp's name, so that changing them installs again.
comma := ,
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
FIND_STUBS := $(if $(findstring cpu,$(EXTRAS)),--find-links $(STUBS))

.PHONY: env sandbox test lint

env: $(STAMP)

$(STAMP): setup.py tools/environment/constraints.txt tools/environment/stub_wheels.py
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)  # pip comes last: an interrupted one is made again
	$(BIN)/python tools/environment/stub_wheels.py $(STUBS)
	$(BIN)/pip install --quiet $(FIND_STUBS) -c tools/environment/constraints.txt -e '.[$(EXTRAS)]'
	touch $@

sandbox: env
	@if [ -n "$$(ls -A '$(RUN)' 2>/dev/null)" ] && [ -z "$(RESUME)" ]; then \
	  echo "$(RUN) holds an earlier run: continue it with 'make sandbox RESUME=1', or keep it and use RUN=another/directory" >&2; \
	  exit 1; \
	fi
	$(BIN)/mcgrpo train $(RECIPE) run.dir='$(RUN)' $(if $(RESUME),--resume)

test: env
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
