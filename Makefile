# `make test` and `make demo` do all set-up themselves; see tools/setup_env.py.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKERS ?= auto

.PHONY: setup lint test demo docs clean

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

# The site, in build/docs/index.html; every warning is an error.
docs: setup
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python -r requirements/docs.txt
	$(VENV)/bin/python -m sphinx -W --keep-going -q docs build/docs

clean:
	rm -rf $(VENV) data work_dirs build *.egg-info
