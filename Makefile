# One file of commands; `make help` lists them. Everything that they make lies in .venv and outputs.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help install system-packages demo check test chaos large bench lock clean

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
# One stamp per interpreter: another PYTHON makes a new .venv.
STAMP := $(VENV)/.installed-$(notdir $(PYTHON))
ONE_BY_ONE := tests/ray_cluster tests/deployments tests/end_to_end tests/service tests/load_tests tests/bulk_jobs

help: ## List the commands
	@sed -En 's/^([a-z-]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 24

install: system-packages $(STAMP) ## Make .venv with the live-avatar command, all extras and the test tools

$(STAMP): pyproject.toml constraints.txt
	@fail() { echo "make install: $$1" >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || fail \
		"$(PYTHON) is $$($(PYTHON) --version 2> /dev/null || echo missing), but 3.11 or newer is needed; install one and name it: make $(MAKECMDGOALS) PYTHON=python3.12"
	echo "Setting up $(VENV) (some minutes the first time) ..."
	clear=--clear; if [[ -e $@ ]]; then clear=; fi  # half an installation, or another Python's, is of no use
	$(PYTHON) -m venv $$clear $(VENV) || fail \
		"$(PYTHON) cannot make a virtual environment; install its venv module (Debian and Ubuntu: apt-get install python3-venv)"
	$(PIP) install --constraint constraints.txt setuptools
	$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[all,dev]'
	touch $@

system-packages: # What the tests need of the system: installed when that is allowed, else named
	@command -v kubectl > /dev/null || echo "Please install kubectl 1.27 or newer: tests/k8s need it." >&2
	missing=$$(for tool in ffmpeg espeak-ng curl; do command -v $$tool > /dev/null || echo $$tool; done)
	if [[ -z $$missing ]]; then exit; fi
	as_root=; if [[ $$EUID != 0 ]]; then as_root="sudo -n"; fi
	if command -v apt-get > /dev/null && $$as_root true 2> /dev/null; then
		echo "Installing" $$missing "..."
		$$as_root apt-get -qq update && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes \
			--no-install-recommends $$missing > /dev/null && exit
	fi
	echo "Please install" $$missing "with the system's package manager: tests need it, rendering does not." >&2

demo: install ## Start the service with the tiny model, send it the built-in samples, save the video, stop
	@$(BIN)/live-avatar demo --out outputs/demo.mp4

check: install ## Lint, format, types and import contracts
	@$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

test: install check ## Run all that CI runs: check, then the tests, those with many processes last and one by one
	@export OMP_NUM_THREADS=1
	$(BIN)/pytest --numprocesses $(WORKERS) --dist loadfile $(ONE_BY_ONE:%=--ignore %)
	$(BIN)/pytest $(ONE_BY_ONE)

chaos: install ## Kill, freeze and starve every rank of gangs in every way, redeploy a fleet at work; some minutes
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m chaos

large: install ## Plan a million rows, measure memory over hundreds; some minutes
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m large

bench: install ## Time the parts of a video, gangs, admission, service and a bulk job, score plan; more than half an hour
	@$(BIN)/python -m serve_app.engine.bench --size 128*128 256*256
	$(BIN)/python load_tests/bench_encoding.py
	$(BIN)/python -m load_tests.bench_gang
	$(BIN)/python load_tests/bench_admission.py
	OMP_NUM_THREADS=1 $(BIN)/python -m load_tests.bench_service
	OMP_NUM_THREADS=1 $(BIN)/python -m load_tests.bench_bulk
	OMP_NUM_THREADS=1 $(BIN)/python -m load_tests.bench_budgets --workers $(WORKERS)

lock: install ## Pin in constraints.txt what .venv holds now
	@# Without what torch brings for the GPU: it differs from machine to machine.
	$(PIP) freeze --all --exclude-editable --exclude pip | sed -E 's/\+[^ ]*$$//; /^(nvidia|cuda|triton)\b/d' > $(VENV)/constraints.txt
	mv $(VENV)/constraints.txt constraints.txt
	touch $(STAMP)

clean: ## Remove .venv, caches and rendered videos
	rm -rf $(VENV) outputs build dist *.egg-info .{mypy,ruff,pytest,import_linter}_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
