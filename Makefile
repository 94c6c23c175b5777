# Every target sets up what it needs; PIP_ARGS passes options to pip (an index for CUDA or CPU builds of torch, say).
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup quickstart test test-fast lint check figures docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "drpo-bench needs Python 3.11+: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

quickstart: $(STAMP)
	$(BIN)/drpo-bench run quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

figures: $(STAMP)
	@for directory in $$(ls -d results/*/ 2>/dev/null); do \
		test -e $$directory/summary.csv -o -d $$directory/runs || continue; \
		$(BIN)/drpo-bench report $$directory || exit 1; \
	done

docs: $(STAMP)
	$(BIN)/python -m drpo_bench.losses.docpage docs/losses.md
	$(BIN)/drpo-bench losses plot --out docs/figures
	rm -f docs/figures/weights*.pdf docs/figures/weights*.csv docs/figures/weights.md

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
