# Everything from a fresh clone: `make demo`, `make test`. Other targets: `make help`.
# TensorFlow comes in three stacks (docs/stacks.md): tf215, tf221 and tpu. The Python that is found decides; `make STACK=tf221 test` asks for one.
# A fourth one, keras3, is for the models of Keras 3 alone: TensorFlow and JAX; its tests run once per backend.
.DEFAULT_GOAL := help
.PHONY: help demo test test-slow test-stacks check-tpu-stack lint bench preflight clean train-two-workers

STACK :=
VENV := .venv$(addprefix -,$(STACK))
PYTHON := $(VENV)/bin/python
OUTBUILDINGS := ./advprop_experiments ./advprop_preflight
# TensorFlow starts with three "errors" about CUDA factories that mean nothing; real ones reach Python as exceptions.
export TF_CPP_MIN_LOG_LEVEL ?= 3

help:  ## this list
	@echo "AdvProp in TensorFlow. make <target>, where <target> is"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/package  ## train a small network three ways on handwritten digits; report in runs/demo/report.html
	$(PYTHON) -m efficientnet_advprop.demo --config=configs/demo.py

train-two-workers: $(VENV)/package  ## two processes train together, one is killed, both go on: same bits (some minutes)
	$(PYTHON) examples/train_two_workers.py

ifeq ($(STACK),keras3)
BACKENDS := tensorflow jax
test: $(VENV)/package
	@for backend in $(BACKENDS); do \
	    KERAS_BACKEND=$$backend $(PYTHON) -m pytest -q -m "not slow" --numprocesses=2 tests/efficientnet_advprop/keras3 || exit 1; \
	done
else
test: $(VENV)/package  ## all tests but the slow ones
	$(PYTHON) -m pytest -q -m "not slow" --numprocesses=2 --dist=loadfile
endif

test-slow: $(VENV)/package  ## the slow tests
	$(PYTHON) -m pytest -q -m slow

test-stacks:  ## all tests but the slow ones on every stack, each in an environment of its own
	@$(MAKE) STACK=tf215 test
	@$(MAKE) STACK=tf221 test
	@$(MAKE) STACK=keras3 test
	.venv-keras3/bin/python -m pip install --quiet torch==2.13.0
	@$(MAKE) STACK=keras3 BACKENDS=torch test
	OTHER_PYTHON=.venv-tf215/bin/python .venv-tf221/bin/python -m pytest -q -m slow tests/test_stack_exchange.py
	@$(MAKE) check-tpu-stack

# The variables: without the first TensorFlow asks Google Cloud's metadata server about its TPU, thirty times, and ends the
# process; without the second one alone of the two processes that run the tests could load the TPU's runtime.
check-tpu-stack:  ## what a TPU VM has, on a machine without a TPU: its CPU passes the tests, --strategy=tpu reaches the driver
	@TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=1 $(MAKE) STACK=tpu test

lint: $(VENV)/package  ## style, format and types: ruff and mypy
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy

# make bench BENCH=benchmarks/train_step.py
BENCH ?= $(filter-out %/harness.py,$(wildcard benchmarks/*.py))

bench: $(VENV)/package  ## the measurements, hours of an otherwise idle machine; one of them: BENCH=benchmarks/train_step.py
	@for script in $(BENCH); do echo "== $$script"; $(PYTHON) "$$script" || exit 1; done

# make preflight PREFLIGHT="--config=configs/advprop.py:b7 --topology=v3:2x2 --find_batch_size"; docs/launching.md
PREFLIGHT ?= --config=configs/advprop.py:b0 --topology=v3:2x2 --replica_batch_size=32

preflight: $(VENV)/package .venv-preflight/installed  ## compile a training step for a TPU, without a TPU: PREFLIGHT="--config=…"
	$(PYTHON) -m efficientnet_advprop.preflight --compiler_python=.venv-preflight/bin/python $(PREFLIGHT)

clean:  ## remove the virtual environments, runs and caches
	rm -rf .venv .venv-* runs .pytest_cache .ruff_cache .mypy_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The environment, made anew when the pins change. A version's shim may exist without the version: a candidate counts if it runs.
# --no-deps: the pins are complete, and on a TPU VM the requirements of some would overwrite the TPU's TensorFlow.
PYTHONS := $(if $(filter tf221 tpu keras3,$(STACK)),python3.13 python3.12 python3.11 python3.10,python3.11 python3.10 python3.13 python3.12)

$(VENV)/installed: requirements.txt requirements-tf221.txt requirements-tpu.txt requirements-keras3.txt
	@for candidate in $${PYTHON_FOR_VENV:-} $(PYTHONS) python3 python; do \
	    version=$$($$candidate -c 'import sys, venv, ensurepip; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
	    seen="$$seen $$candidate is $$version;"; \
	    case "$(STACK):$$version" in \
	        :3.10 | :3.11 | tf215:3.10 | tf215:3.11) stack="TensorFlow 2.15"; pins=requirements.txt;; \
	        :3.12 | :3.13 | tf221:3.1[0-3]) stack="TensorFlow 2.21 with tf-keras"; pins=requirements-tf221.txt;; \
	        keras3:3.1[1-3]) stack="Keras 3 on TensorFlow and JAX"; pins=requirements-keras3.txt;; \
	        tpu:3.1[0-3]) stack="tensorflow-tpu 2.20 with tf-keras"; pins=requirements-tpu.txt;; \
	        *) continue;; \
	    esac; \
	    found=$$candidate; break; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No Python for $(or $(STACK),TensorFlow) with the venv module was found:$${seen:- none at all}." \
	        "TensorFlow 2.15 (tf215) takes 3.10 or 3.11, TensorFlow 2.21 (tf221) and tensorflow-tpu (tpu) 3.10 to 3.13, keras3 3.11 to 3.13." \
	        "Install python3.13 and its venv package, or name one: make PYTHON_FOR_VENV=/path/to/python3.13 ..." >&2; \
	    exit 1; \
	fi; \
	echo "Making $(VENV) with Python $$version ($$found): $$stack, $$(grep -c == $$pins) packages of $$pins (1 to 2 GB, a few minutes) ..."; \
	rm -rf $(VENV) && $$found -m venv $(VENV) && \
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --progress-bar off --no-deps -r $$pins
	@TPU_SKIP_MDS_QUERY=1 $(PYTHON) -c 'import efficientnet_advprop.keras2, tensorflow as tf; print("Installed: TensorFlow", tf.__version__)'
	@touch $@

# The package itself and its outbuildings, editable, so that every program of the repository runs from any folder.
$(VENV)/package: $(VENV)/installed pyproject.toml setup.py $(wildcard advprop_*/pyproject.toml)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation $(addprefix -e ,. $(OUTBUILDINGS))
	@touch $@

# The TPU's compiler, which cannot share an environment with TensorFlow 2.15.
.venv-preflight/installed: requirements-preflight.txt
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
	echo "Making .venv-preflight with $$($$found --version) ($$found) and the TPU's compiler (about 1 GB) ..."; \
	rm -rf .venv-preflight && $$found -m venv .venv-preflight
	@.venv-preflight/bin/python -m pip install --quiet --disable-pip-version-check --progress-bar off -r requirements-preflight.txt
	@touch $@
