# Everything from a fresh clone: `make demo`, `make test`. Other targets: `make help`.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint bench preflight clean train-two-workers

VENV := .venv
PYTHON := $(VENV)/bin/python
# TensorFlow 2.15 starts with three "errors" about CUDA factories that mean nothing; real ones reach Python as exceptions.
export TF_CPP_MIN_LOG_LEVEL ?= 3
export PYTHONPATH := $(CURDIR)

help:  ## this list
	@echo "AdvProp in TensorFlow. make <target>, where <target> is"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/installed  ## train a small network three ways on handwritten digits; report in runs/demo/report.html
	$(PYTHON) -m efficientnet_advprop.demo --config=configs/digits.py

train-two-workers: $(VENV)/installed  ## two processes train together, one is killed, both go on: same bits (some minutes)
	$(PYTHON) examples/train_two_workers.py

test: $(VENV)/installed  ## all tests but the slow ones
	$(PYTHON) -m pytest -q -m "not slow" --numprocesses=2 --dist=loadfile

test-slow: $(VENV)/installed  ## the slow tests
	$(PYTHON) -m pytest -q -m slow

lint: $(VENV)/installed  ## style, format and types: ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

bench: $(VENV)/installed  ## the measurements; they want an otherwise idle machine
	@for script in benchmarks/*.py; do echo "== $$script"; $(PYTHON) "$$script" || exit 1; done

# make preflight PREFLIGHT="--config=configs/advprop.py:b7 --topology=v3:2x2 --find_batch_size"; docs/preflight.md
PREFLIGHT ?= --config=configs/advprop.py:b0 --topology=v3:2x2 --replica_batch_size=32

preflight: $(VENV)/installed $(VENV)-preflight/installed  ## compile a training step for a TPU, without a TPU: PREFLIGHT="--config=…"
	$(PYTHON) -m tpu_utils.preflight --compiler_python=$(VENV)-preflight/bin/python $(PREFLIGHT)

clean:  ## remove the virtual environments, runs and caches
	rm -rf $(VENV) $(VENV)-preflight runs .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, made anew when the pins change. A version's shim may exist without the version: a candidate counts if it runs.
$(VENV)/installed: requirements.txt
	@for candidate in $${PYTHON_FOR_VENV:-} python3.11 python3.10 python3 python; do \
	    if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] not in ((3, 10), (3, 11)))' >/dev/null 2>&1; then \
	        found=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No working Python 3.10 or 3.11 with the venv module was found, and TensorFlow 2.15 needs one of them." >&2; \
	    echo "Install python3.11 and its venv package, or name an interpreter: make PYTHON_FOR_VENV=/path/to/python3.11 ..." >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with $$($$found --version) ($$found)"; \
	rm -rf $(VENV) && $$found -m venv $(VENV)
	@echo "Installing the $$(grep -c == requirements.txt) packages of requirements.txt (about 600 MB, a few minutes) ..."
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --progress-bar off -r requirements.txt
	@$(PYTHON) -c 'import tensorflow as tf; print("Installed: TensorFlow", tf.__version__)'
	@touch $@

# The TPU's compiler, which cannot share an environment with TensorFlow 2.15.
$(VENV)-preflight/installed: requirements-preflight.txt
	@for candidate in $${PYTHON_FOR_PREFLIGHT:-} python3.11 python3.12 python3.13 python3.14 python3; do \
	    if $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	        found=$$candidate; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No working Python 3.11 or later with the venv module was found, and the TPU's compiler needs one." >&2; \
	    echo "Install one, or name it: make preflight PYTHON_FOR_PREFLIGHT=/path/to/python3.12" >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV)-preflight with $$($$found --version) ($$found) and the TPU's compiler (about 1 GB) ..."; \
	rm -rf $(VENV)-preflight && $$found -m venv $(VENV)-preflight
	@$(VENV)-preflight/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off -r requirements-preflight.txt
	@touch $@
