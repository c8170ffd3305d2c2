# Everything is set up by itself on a machine with Python 3.10 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help setup demo gpu-check test-fast test lint docs clean

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile

setup: $(INSTALLED)  ## create .venv and install the project, its extras and detectron2

$(INSTALLED): pyproject.toml setup.py constraints.txt tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; say make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "error: $(PYTHON) cannot make virtual environments; on Debian, apt-get install python3-venv"; exit 1; }
	@echo "On Linux about 6.8 GB go into .venv, most of it CUDA's libraries that torch brings; minutes, by the network's speed."
	@echo "For the CPU alone: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup"
	@echo "1 of 3: torch"
	$(BIN)/python -m pip install -c constraints.txt setuptools wheel torch torchvision
	@echo "2 of 3: this project and what it needs"
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[detectron2,lightly-train,onnx,docs,dev]'
	@echo "3 of 3: detectron2"
	$(BIN)/python tools/install_detectron2.py
	@touch $@
	@echo "Installed. Next: source .venv/bin/activate"

demo: $(INSTALLED)  ## learn from unlabelled images, then detect: 12 minutes on two cores (QUICK=1: one)
	$(BIN)/python tools/demo.py $(if $(QUICK),--quick)

gpu-check: $(INSTALLED)  ## compare and time everything on a GPU: ten minutes, no network (CPU=1: rehearse at toy size)
	$(BIN)/python tools/benchmark.py gpu-check $(if $(CPU),--cpu) --out runs/gpu_check.json
	MOCO_TEST_DEVICE=$(if $(CPU),cpu,cuda) $(BIN)/python -m pytest -q -n 0 tests/methods/test_traces.py

test-fast: $(INSTALLED)  ## run the tests that take less than a minute together
	$(BIN)/python -m pytest -q -m fast

test: $(INSTALLED)  ## run the tests
	$(BIN)/python -m pytest

lint: $(INSTALLED)  ## run ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  ## build the documentation into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q
	@echo "written: site/; look at it with: $(BIN)/python -m http.server -d site, then open http://localhost:8000"

clean:  ## remove .venv, the site and caches; runs/ stays
	rm -rf .venv site .pytest_cache .ruff_cache .mypy_cache build *.egg-info
