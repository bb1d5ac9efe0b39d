# make run    sets everything up, then serves on http://127.0.0.1:8080 with the sample documents
# make test   sets everything up, then passes every test
# make bench  measures, and writes a table, JSON and plots
# make faults kills, breaks disks, overloads and feeds huge files, at full size, and prints a table
# make fuzz   20,000 requests made up from the API's description; SEED=n repeats a run
# make docs-check     runs the commands and the code of the READMEs, and tells which it cannot run
# make release-check  builds the wheel, and asks it a first question where nothing else of this tree is

PYTHON ?= python3
DATA ?= data
MODELS ?= $(DATA)/models
GPU := $(shell nvidia-smi --list-gpus 2>/dev/null | head -n 1)

BIN := .venv/bin
ENGINE := .venv-engine/bin/python
PIP := -m pip --disable-pip-version-check install --quiet --progress-bar off

.PHONY: setup console run test test-fast lint bench egress faults fuzz mutants docs-check release-check dev test-packages test-clients clean

setup: .venv/.installed console .venv-engine/.installed $(MODELS)/.prepared

# The console's third-party scripts, pinned, from npm; without it the console says what is missing, and all else works.
console: .venv/.installed
	@$(BIN)/python -m app.console.scripts || true

run: setup
	$(BIN)/strongroom serve --samples data/samples

test: setup dev test-packages test-clients lint
	HF_HUB_OFFLINE=1 $(BIN)/pytest $(TRIES) -n auto --dist loadfile -m "not ($(ALONE))"
	HF_HUB_OFFLINE=1 $(BIN)/pytest $(TRIES) -m "($(ALONE)) and not long"

# TRIES="--reruns 1 -rsR" gives a failed test one more try and names those that took it: for machines that others use too,
# where clocks and kills are late. What is named there is to be looked at.
TRIES ?=

# What starts the engine, whole role processes or a backend's compiler takes all cores for itself.
ALONE := engine or processes or backends

# Without those and what else takes long, on all cores.
test-fast: dev $(MODELS)/.prepared
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n auto --dist loadfile -m "not ($(ALONE) or slow)"

lint: dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup dev
	$(BIN)/python -m tests.bench.peers.install
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.bench

# The same tests where only loopback leads anywhere; tells what was sent elsewhere.
egress: setup dev test-packages
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.egress -- $(BIN)/pytest -n auto --dist loadfile -m "not ($(ALONE))"
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.egress -- $(BIN)/pytest -m "$(ALONE)"

# Kills, failing disks, overload and the other faults at full size, and one table. Takes hours; SHARE=0.02 makes all of it shorter.
SHARE ?= 1
faults: setup dev test-packages
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.faults --share $(SHARE)

# Changes the modules that decide who sees what, one place at a time, and tells which share of that the tests notice.
mutants: dev
	HF_HUB_OFFLINE=1 $(BIN)/mutmut run
	$(BIN)/python -m tests.mutants

# CASES random requests, and chains of them. Its end tells the seed.
CASES ?= 20000
fuzz: dev $(MODELS)/.prepared
	HF_HUB_OFFLINE=1 $(BIN)/python -m tests.contracts.fuzz --cases $(CASES) $(if $(SEED),--seed $(SEED))

docs-check: setup dev
	HF_HUB_OFFLINE=1 $(BIN)/pytest tests/docs
	@$(BIN)/python -m tests.docs.commands

release-check: setup dev
	$(BIN)/python -m tests.release

dev: .venv/.dev

.venv/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Strongroom needs Python 3.11 or newer: make PYTHON=python3.11 setup")'
	@echo "Setting up .venv (some minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -c constraints.txt torch
	$(BIN)/python $(PIP) -c constraints.txt -e .
	@touch $@

.venv/.dev: .venv/.installed
	@echo "Adding the tools of the tests"
	$(BIN)/python $(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

# vLLM has an environment of its own: its pins are many, and differ between GPU and CPU.
.venv-engine/.installed: serving/engine-cpu.txt serving/engine-gpu.txt
	@echo "Setting up .venv-engine for $(if $(GPU),the GPU,the CPU) (some minutes the first time)"
	$(PYTHON) -m venv .venv-engine
ifneq ($(GPU),)
	$(ENGINE) $(PIP) -r serving/engine-gpu.txt
else
	$(ENGINE) $(PIP) torch==2.13.0
	$(ENGINE) $(PIP) --no-deps -r serving/engine-cpu.txt
endif
	@touch $@

$(MODELS)/.prepared: .venv/.installed .venv-engine/.installed serving/demo_models.py
	$(BIN)/python -m serving.demo_models --models-dir $(MODELS) --engine-python $(ENGINE)
	@touch $@

# A real PostgreSQL, proxy, SMB server and browser for the tests, and the programs that read scans and old Office files (100 MB);
# where there is no apt, they skip with the reason.
TEST_PACKAGES := postgresql haproxy samba strace chromium tesseract-ocr tesseract-ocr-eng libreoffice-writer-nogui libreoffice-impress-nogui

# Microsoft's own stand-in for Azure's storage, a program for node; where there is no npm, its tests skip.
AZURITE := 3.35.0

# The Model Context Protocol's own suite; later versions need a newer node than Debian's.
CONFORMANCE := 0.1.13

# Finds what keeps people from using a page.
AXE := 4.14.1

test-packages: .venv/.azurite .venv/.axe .venv/.conformance
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && ! dpkg --status $(TEST_PACKAGES) >/dev/null 2>&1; then \
		echo "Installing $(TEST_PACKAGES) for the tests"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(TEST_PACKAGES) >/dev/null; \
	fi

.venv/.azurite: .venv/.installed
	@if command -v npm >/dev/null; then \
		echo "Adding azurite for the tests"; \
		npm install --prefix .venv/azurite --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel error azurite@$(AZURITE) >/dev/null || echo "azurite could not be installed; its tests skip"; \
	fi
	@touch $@

.venv/.axe: .venv/.installed
	@if command -v npm >/dev/null; then \
		npm install --prefix .venv/axe --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel error axe-core@$(AXE) >/dev/null || echo "axe-core could not be installed; its tests skip"; \
	fi
	@touch $@

.venv/.conformance: .venv/.installed
	@if command -v npm >/dev/null; then \
		npm install --prefix .venv/conformance --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel error @modelcontextprotocol/conformance@$(CONFORMANCE) >/dev/null || echo "MCP's conformance suite could not be installed; its tests skip"; \
	fi
	@touch $@

# Other people's clients, in an environment of their own, as their pins are not ours; without npm, node's skip.
test-clients: .venv-clients/.installed

.venv-clients/.installed: tests/clients/requirements.txt tests/clients/package.json
	@echo "Adding other people's clients for the tests"
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/python $(PIP) -r tests/clients/requirements.txt
	@if command -v npm >/dev/null; then \
		mkdir -p .venv-clients/node && cp tests/clients/package.json .venv-clients/node/ && \
		npm install --prefix .venv-clients/node --ignore-scripts --no-audit --no-fund --no-package-lock --loglevel error >/dev/null || echo "node's clients could not be installed; their tests skip"; \
	fi
	@touch $@

clean:
	rm -rf .venv .venv-clients .venv-engine .bench build dist *.egg-info
