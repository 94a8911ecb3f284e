# `make test` and `make demo` do all set-up themselves; see tools/setup_env.py.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKERS ?= auto

.PHONY: setup lint test demo clean

setup:
	@$(PYTHON) tools/setup_env.py --venv $(VENV)

lint: setup
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# One thread a worker: the models are toys, more threads only get in each other's way.
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal

demo: setup
	$(VENV)/bin/python tools/demo.py

clean:
	rm -rf $(VENV) data work_dirs build *.egg-info
