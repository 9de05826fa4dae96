# Two commands: `make demo` and `make test`. Both make the same virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PARITY ?= .parity-venv

.PHONY: demo test test-slow parity format clean

demo: $(VENV)/.demo
	$(BIN)/fewlabel demo

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	OMP_NUM_THREADS=1 $(BIN)/pytest

test-slow: $(VENV)/.dev
	$(BIN)/pytest -m slow

# Writes the fixtures of tests/sam/test_convert.py anew with the original packages of SAM and SAM 2, and compares.
parity: $(PARITY)/.ready $(VENV)/.dev
	OMP_NUM_THREADS=1 $(PARITY)/bin/python tests/parity/make_fixtures.py
	OMP_NUM_THREADS=1 $(PARITY)/bin/python tests/parity/build_mobile.py tests/sam/fixtures/mobile_encoder.safetensors
	OMP_NUM_THREADS=1 $(BIN)/pytest tests/sam/test_convert.py tests/sam/test_mobile.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(PARITY) runs

# The package is installed in place, so an edited source file needs no new install.
$(VENV)/.demo: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.demo

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'fewlabel needs Python 3.11 or newer; set PYTHON=')"
	$(PYTHON) -m venv $(VENV)

# The original packages need torchvision, which must never enter $(VENV): transformers would pick it up. Of two of them
# pip must not ask for more: torchvision would fetch a CUDA build of torch, sam2 would build itself against another one.
$(PARITY)/.ready: tests/parity/requirements.txt tests/parity/originals.txt
	$(PYTHON) -m venv $(PARITY)
	echo '*' > $(PARITY)/.gitignore
	$(PARITY)/bin/python -m pip install --quiet --requirement tests/parity/requirements.txt
	SAM2_BUILD_CUDA=0 $(PARITY)/bin/python -m pip install --quiet --no-deps --no-build-isolation \
		--requirement tests/parity/originals.txt
	touch $@
