# Everything a newcomer needs: `make lab` and `make test`. Each target makes .venv when it is missing.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
ROOT := $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.PHONY: help lab app nvflare flower test test-all wheel notebooks bench lint lock

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 18

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 5))' || \
	  { echo "Python 3.11.5 or newer is needed; name one: make PYTHON=/path/to/python3 lab"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	$(BIN)/python -c 'from fedlab.engine import warm; print(f"compiled in {warm():.0f} s")'
	@touch $@

lab: $(READY)  ## make the environment and open the first lesson in JupyterLab
	$(BIN)/jupyter lab --ip=127.0.0.1 $(ROOT) --LabApp.default_url=/lab/tree/notebooks/01_local_training.ipynb

app: $(READY)  ## serve the workbench alone, without a notebook around it
	$(BIN)/fedlab app notebooks

nvflare: $(READY)  ## start NVFLARE with two sites on this machine, in an environment of its own, behind one socket
	$(BIN)/python -m deploy.nvflare start

flower: $(READY)  ## start Flower with two sites on this machine, in an environment of its own, behind one socket
	$(BIN)/python -m deploy.flower start

test: $(READY) lint  ## make the environment and run all that CI runs
	$(BIN)/python -m pytest

test-all: test  ## all that `test` runs, the wheel installed elsewhere, Flower in NVFLARE's place, what cards claim over 3 seeds, and every pair of parts composed, which takes hours
	$(BIN)/python -m pytest -n0 tests/installed.py tests/nodes/swapped.py
	RECOVERY=1 $(BIN)/python -m pytest -n0 tests/nodes/test_relay.py
	SEEDS=3 $(BIN)/python -m pytest -n0 tests/workbench/test_claims.py
	$(BIN)/python benchmarks/composition.py

wheel: $(READY)  ## build the wheel and the source distribution in dist
	$(BIN)/python -c 'from setuptools import build_meta as build; build.build_sdist("dist"); build.build_wheel("dist")'

notebooks: $(READY)  ## run every lesson from the top and store its outputs
	$(BIN)/python tests/store_outputs.py

bench: $(READY)  ## measure speed, peers, the view and quality; writes benchmarks/results and the tables of the documents
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/cores.py
	$(BIN)/python benchmarks/roofline.py
	$(BIN)/python benchmarks/sweeps.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/architecture.py
	$(BIN)/python benchmarks/peers.py
	$(BIN)/python benchmarks/ials.py
	$(BIN)/python benchmarks/reading.py
	$(BIN)/python benchmarks/where.py
	$(BIN)/python benchmarks/gpu.py
	$(BIN)/python benchmarks/workbench.py
	$(BIN)/python benchmarks/aggregation.py
	$(BIN)/python benchmarks/asynchronous.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/best.py
	$(BIN)/python benchmarks/truth.py --seeds 3
	$(BIN)/python benchmarks/language.py
	$(BIN)/python benchmarks/cold.py
	$(BIN)/python benchmarks/tuning.py
	$(BIN)/python benchmarks/sequences.py
	$(BIN)/python benchmarks/meta.py
	$(BIN)/python benchmarks/known.py
	$(BIN)/python benchmarks/privacy.py
	$(BIN)/python benchmarks/secure_sums.py
	$(BIN)/python benchmarks/attacks.py
	$(BIN)/python benchmarks/audit.py
	$(BIN)/python benchmarks/codes.py
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python benchmarks/nodes.py
	[ "$$(id -u)" != 0 ] || $(BIN)/python benchmarks/links.py
	$(BIN)/python benchmarks/ledger.py
	$(BIN)/python benchmarks/fuzzing.py
	$(BIN)/python benchmarks/tables.py

lint: $(READY)  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lock: $(READY)  ## write down the versions in .venv, so that every install gets the same
	$(BIN)/python -m pip freeze --all --exclude-editable | sed -E 's/\+cpu$$//' | grep -viE '^(nvidia|cuda|triton|pip=)' > constraints.txt
