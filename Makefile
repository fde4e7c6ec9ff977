# Everything runs in .venv, which these targets make themselves: all they need is make and Python 3.11, 3.12 or 3.13.
# To choose the interpreter: make test PYTHON=/path/to/python3.12

PYTHON ?= python3 python3.13 python3.12 python3.11
BIN := .venv/bin
TORCH ?= torch==2.13.0
# The tests that also run with JAX and PyTorch as Keras's backend.
BACKEND_TESTS ?= $(wildcard tests/ops tests/models tests/test_backends.py)
# Those that TensorFlow's oneDNN kernels could change, which it takes by itself on processors with AVX-512 or AMX.
ONEDNN_TESTS ?= $(wildcard tests/ops tests/models tests/test_backend*.py tests/test_training.py tests/test_run_folder.py \
  tests/test_inference.py tests/test_check.py tests/test_classification.py)
# Two processes: more than two cores would be idle most of the time, and each takes up to 6 GB.
PYTEST_ARGS ?= -n 2

export TF_CPP_MIN_LOG_LEVEL ?= 3
# pip's own news is of no interest here.
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.DELETE_ON_ERROR:
.PHONY: help install install-backends test test-backends test-onednn lint format demo clean

help:
	@echo "make demo           draw pictures, train, detect, evaluate: a few minutes"
	@echo "make test           the tests, with TensorFlow"
	@echo "make test-backends  the tests of ops, models and backends with JAX and with PyTorch"
	@echo "make test-onednn    the tests of models and training, with TensorFlow's oneDNN kernels on"
	@echo "make lint           ruff check and ruff format --check"
	@echo "make format         let ruff mend what it can"
	@echo "make clean          remove .venv, demo and caches"

install: .venv/installed
install-backends: .venv/installed-backends

# The first interpreter of PYTHON that has a right version and can make environments.
.venv/installed: pyproject.toml
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  for python in $(PYTHON); do \
	    if $$python -c "import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))" 2>/dev/null; \
	    then echo "making .venv with $$($$python --version)"; exec $$python -m venv --clear .venv; fi; \
	  done; \
	  echo "No Python 3.11 to 3.13 with the venv and ensurepip modules among: $(PYTHON)." >&2; \
	  echo "Install one (Debian and Ubuntu: apt install python3-venv) or name it: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi
	$(BIN)/python -m pip install -qq --editable ".[test]"
	@touch $@

.venv/installed-backends: .venv/installed
	$(BIN)/python -m pip install -qq --editable ".[jax]" "$(TORCH)"
	@touch $@

test: .venv/installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# The test that is left out turns oneDNN on by itself.
test-onednn: .venv/installed
	TF_ENABLE_ONEDNN_OPTS=1 $(BIN)/python -m pytest $(ONEDNN_TESTS) $(PYTEST_ARGS) --ignore=tests/models/test_unwritten_memory.py

# Nearly all of JAX's time is compilation of what runs once: with little optimisation a quarter of it is saved.
test-backends: .venv/installed-backends
	@test -n "$(strip $(BACKEND_TESTS))" || { echo "no tests to run with other backends" >&2; exit 1; }
	@set -e; for backend in jax torch; do \
	  echo "== Keras on $$backend: $(BACKEND_TESTS)"; \
	  KERAS_BACKEND=$$backend JAX_DISABLE_MOST_OPTIMIZATIONS=1 \
	  $(BIN)/python -m pytest -m "not tensorflow" $(BACKEND_TESTS) $(PYTEST_ARGS); \
	done

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

demo: .venv/installed
	$(BIN)/python examples/draw_shapes.py demo/shapes
	rm -rf demo/run demo/detections
	$(BIN)/frcnn train -p demo/shapes/train.txt --validation demo/shapes/test.txt \
	  --config config/demo.yaml --output demo/run
	$(BIN)/frcnn detect -p demo/shapes/test --run demo/run --output demo/detections
	$(BIN)/frcnn evaluate --run demo/run -p demo/shapes/test.txt
	@echo "The pictures with their detections are in demo/detections/pictures, the trained detector in demo/run."

clean:
	rm -rf .venv demo build *.egg-info .pytest_cache .ruff_cache .hypothesis
