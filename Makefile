# Everything is set up by itself on a machine with Python 3.10 or newer.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: help setup demo gpu-check test-fast test lint docs clean

help:  ## show this
	@sed -n 's/^\([a-z-]*\):.*## /make \1\t/p' Makefile

setup: $(INSTALLED)  ## create .venv and install the project, its extras and detectron2

$(INSTALLED): pyproject.toml constraints.txt tools/install_detectron2.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "error: $(PYTHON) is older than 3.10; say make PYTHON=python3.11 ..."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "error: $(PYTHON) cannot make virtual environments; on Debian, apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install -q -c constraints.txt setuptools wheel torch torchvision
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[detectron2,lightly-train,onnx,docs,dev]'
	$(BIN)/python tools/install_detectron2.py
	@touch $@

demo: $(INSTALLED)  ## learn from unlabelled images, then detect: minutes on two cores (QUICK=1: three at most)
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

clean:  ## remove .venv and caches; runs/ stays
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build *.egg-info
