# make run    sets everything up, then serves on http://127.0.0.1:8080 with the sample documents
# make test   sets everything up, then passes every test
# make bench  measures, and writes a table, JSON and plots

PYTHON ?= python3
DATA ?= data
MODELS ?= $(DATA)/models
GPU := $(shell nvidia-smi --list-gpus 2>/dev/null | head -n 1)

BIN := .venv/bin
ENGINE := .venv-engine/bin/python
PIP := -m pip --disable-pip-version-check install --quiet --progress-bar off

.PHONY: setup run test test-fast lint bench dev test-packages clean

setup: .venv/.installed .venv-engine/.installed $(MODELS)/.prepared

run: setup
	$(BIN)/strongroom serve --samples data/samples

test: setup dev test-packages lint
	HF_HUB_OFFLINE=1 $(BIN)/pytest -n auto --dist loadfile -m "not ($(ALONE))"
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "$(ALONE)"

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

# A real PostgreSQL for the tests, and the programs that read scans and old Office files (100 MB); where there is no
# apt, they skip with the reason.
TEST_PACKAGES := postgresql tesseract-ocr tesseract-ocr-eng libreoffice-writer-nogui libreoffice-impress-nogui

test-packages:
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && ! dpkg --status $(TEST_PACKAGES) >/dev/null 2>&1; then \
		echo "Installing $(TEST_PACKAGES) for the tests"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $(TEST_PACKAGES) >/dev/null; \
	fi

clean:
	rm -rf .venv .venv-engine .bench build dist *.egg-info
