# Two commands: `make quickstart` and `make test`. Both build the environment first if it is not there.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
GOLDEN := $(BIN)/python -m pytest -q tests/test_golden.py

.PHONY: quickstart test test-all test-golden lint clean

quickstart: $(READY)
	$(BIN)/python -m exp fit --config configs/quickstart.yaml

# Two processes, each with files of its own, in the order that tests/conftest.py gives them.
test: $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(READY)
	$(BIN)/python -m pytest -q -m "not slurm"

# The recorded vectors with the instructions of other processors, and so with other orders of summation.
test-golden: $(READY)
	MKL_CBWR=COMPATIBLE $(GOLDEN)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(GOLDEN)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(GOLDEN)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv *.egg-info .pytest_cache .mypy_cache .ruff_cache
