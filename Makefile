# The verbs of this repository; CI runs the same ones. PYTHON is the interpreter of your environment.
PYTHON ?= python

.PHONY: format lint types test check bench

format:  ## rewrite the code in the house style
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:  ## style, imports, docstrings, layering
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:  ## mypy, strict
	$(PYTHON) -m mypy

test:  ## default tests: CPU, offline, minutes
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n auto --dist loadfile

check: lint types test  ## all of the above, changing nothing

bench:  ## what README's speed is compared by, in minutes; tables, and JSON in runs/benchmarks/
	$(PYTHON) -m benchmarks
