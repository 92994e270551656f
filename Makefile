# make demo    trains the hybrid on handwritten digits; makes the environment first, where there is none
# make test    runs the tests, on the CPU, in two processes; ARGS="-k merge" for some of them, JOBS=8 for more processes
#              HYBRIDMERGE_PRECISION=bf16 make test runs them in bf16, on any processor
# make test-all runs those, too, that take long: before a release, and after a change to what they test
# make test-bf16 runs the tests that depend on precision in bf16
# make test-cuda runs the tests of CUDA, on a machine that has it
# make lint    checks the code and its format with ruff, and types with mypy
# make install makes the environment in .venv; PYTHON=python3.12 chooses the interpreter
# make clean   deletes the environment and caches; runs/ and data/ stay

PYTHON ?= python3
VENV := .venv
JOBS ?= 2
MARK ?= not slow
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-all test-bf16 test-cuda lint clean

install: $(STAMP)

demo: $(STAMP)
	$(BIN)/python tools/train.py --cfg digits/hybrid name=demo-$$(date +%Y%m%d-%H%M%S)

test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 --durations=10 -m '$(MARK)' $(ARGS)

test-all:
	$(MAKE) test MARK=

test-bf16:
	HYBRIDMERGE_PRECISION=bf16 $(MAKE) test MARK='precision and not slow'

test-cuda: $(STAMP)
	$(BIN)/python -m pytest -q -n 8 tests/cuda $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Again whenever setup.py changes. pip 21.3 is the first that installs a project with a pyproject.toml as editable.
$(STAMP): setup.py
	@command -v $(PYTHON) >/dev/null || { \
	  echo "error: $(PYTHON) is not installed; install Python 3.10 or newer, or name one: make PYTHON=python3.12" >&2; \
	  exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; \
	  v >= (3, 10) or sys.exit("error: $(PYTHON) is Python %d.%d, which is older than 3.10; name a newer one: make PYTHON=python3.12" % v[:2])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) has no venv module; on Debian or Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install 'pip>=21.3'
	$(BIN)/python -m pip install -e '.[workbench,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find engine models tests tools -type d -name __pycache__ -prune -exec rm -rf {} +
