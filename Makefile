# `make test` and `make demo` do all set-up themselves; see tools/setup_env.py.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKERS ?= auto
# Warnings are errors with the default stack only: those of old versions are nobody's to mend.
STACK_PYTEST = bin/python -m pytest -W default
# What needs neither compiled operators nor other packages' models to compare with. Left out below:
# what needs toolkits, and half precision on a CPU, which torch 2.1 lacks.
STACK_TESTS = tests/stacks/test_networks.py tests/layers tests/necks tests/test_complexity.py \
	tests/test_registry.py tests/checkpoints/test_reading.py tests/checkpoints/test_rules.py \
	tests/checkpoints/test_values.py

.PHONY: setup setup-lite setup-originals lint test test-lite test-originals demo docs clean

setup:
	@$(PYTHON) tools/setup_env.py --venv $(VENV)

setup-lite:
	@$(PYTHON) tools/setup_env.py --stack lite --venv $(VENV)-lite

setup-originals:
	@$(PYTHON) tools/setup_env.py --stack originals --venv $(VENV)-originals

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# torch 2.1 was built up to Python 3.11.
ifeq ($(shell $(PYTHON) -c 'import sys; print(sys.version_info < (3, 12))'), True)
test: test-lite
endif

# One thread a worker: the models are toys, more threads only get in each other's way.
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal

# The oldest supported torch, without mmcv's operators.
test-lite: setup-lite
	OMP_NUM_THREADS=1 $(VENV)-lite/$(STACK_PYTEST) -n $(WORKERS) $(STACK_TESTS) \
		-k 'not every_toolkit and not overflow_under_autocast'

# The original toolkits beside torch 2.1; compiles their mmcv once.
test-originals: setup-originals
	OMP_NUM_THREADS=1 $(VENV)-originals/$(STACK_PYTEST) -n $(WORKERS) $(STACK_TESTS) \
		tests/stacks/test_toolkits.py -k 'not overflow_under_autocast'

demo: setup
	$(VENV)/bin/python -m demo

# The site, in build/docs/index.html; every warning is an error.
docs: setup
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python -r requirements/docs.txt
	$(VENV)/bin/python -m sphinx -W --keep-going -q docs build/docs

clean:
	rm -rf $(VENV) $(VENV)-lite $(VENV)-originals data work_dirs build dist *.egg-info
