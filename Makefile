# Every command of the project. `make` alone lists them.

PYTHON ?= python3
ARGS ?=
PYTEST_ARGS ?=
LOCK_ARGS ?=
TORCH_INDEX ?=

VENV := .venv
PY := $(VENV)/bin/python
UV_INSTALL := $(VENV)/bin/uv pip install --python $(PY) --compile-bytecode
READY := $(VENV)/.ready
# Torch and torchvision go together: raise both, say `make lock`, measure again.
TORCH := torch==2.14.1
TORCHVISION := torchvision==0.29.1
# Its CPU build, 1 GB on disk instead of 6, where there is no driver for the other: on Linux, if PyTorch's index answers.
CPU_INDEX := https://download.pytorch.org/whl/cpu
DRIVER := $(wildcard /proc/driver/nvidia/version)$(shell command -v nvidia-smi 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help venv demo results test test-browser bench html kernel lint lock clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-13s %s\n", $$1, $$2}' Makefile
	@echo
	@echo '  ARGS="..."         goes to the command, as in: make results ARGS="--preset blog --data-root DIR"'
	@echo '  PYTEST_ARGS="..."  goes to pytest, as in: make test PYTEST_ARGS="-k model"'
	@echo '  PYTHON=python3.12  makes .venv with another Python (3.11 or newer)'
	@echo '  TORCH_INDEX=URL    takes torch from URL when .venv is made; the ordinary build, also without an NVIDIA driver:'
	@echo '                     https://pypi.org/simple'

venv: $(READY) ## make .venv and install everything at the versions of requirements.lock
	@echo "$(VENV) is ready: source $(VENV)/bin/activate"

demo: $(READY) ## train a small network, animate how it repairs a defect: results/demo/, two minutes on two CPU cores
	$(PY) -m vaeproj run 05 --preset demo
	@echo "Open results/demo/figures/projection.html in a browser; projection.gif beside it is the same, for slides."

results: $(READY) ## run notebooks 01 to 05 and write results/quick/
	$(PY) -m vaeproj run $(ARGS)

test: $(READY) ## run every test and every notebook, but for the browser tests
	$(PY) -m pytest -n 2 --dist loadfile -m "not browser" $(PYTEST_ARGS)

test-browser: $(READY) ## run the tests that drive panel, player and site in Chromium
	$(PY) -m pytest -m browser $(PYTEST_ARGS)

bench: $(READY) ## run the scripts of benchmarks/ one after another
	@set -e; for script in benchmarks/[!_]*.py; do echo "== $$script"; $(PY) "$$script" $(ARGS); done

html: $(READY) ## turn notebooks and page into a site that needs no network, results/site/index.html
	rm -rf build/site
	$(PY) -m sphinx -q -E -W --keep-going -d build/doctrees $(ARGS) docs build/site
	$(PY) -m vaeproj page --out build/site/page.html
	rm -rf results/site
	mv build/site results/site

kernel: ## compile page/kernel.c to WebAssembly, with clang and lld (Debian: apt install clang lld)
	clang --target=wasm32 -O2 -msimd128 -mbulk-memory -mnontrapping-fptoint -nostdlib -fvisibility=hidden -Wall -Wextra \
		-DSOURCE_SHA256="\"$$(sha256sum page/kernel.c | cut -c 1-64)\"" \
		-Wl,--no-entry,--export-dynamic,--strip-all -o page/kernel.wasm page/kernel.c
	chmod -x page/kernel.wasm

lint: $(READY) ## check style, format and types of code and notebooks
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

lock: ## pin the dependencies of pyproject.toml into requirements.lock (LOCK_ARGS=--upgrade for newer releases)
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	build/lock/bin/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 \
		-P $(TORCH) -P $(TORCHVISION) $(LOCK_ARGS) --quiet -o requirements.lock

clean: ## remove caches and build/; .venv, data/ and results/ stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name .venv -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "vaeproj needs Python 3.11 or newer and '$(PYTHON)' is $$($(PYTHON) --version 2>&1): pass PYTHON=, as in make PYTHON=python3.12."; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet uv
	@index="$(TORCH_INDEX)"; \
	if [ -z "$(TORCH_INDEX)$(DRIVER)" ] && [ "$$(uname)" = Linux ] && \
		$(PY) -c 'from urllib.request import urlopen; urlopen("$(CPU_INDEX)/torch/", timeout=5)' 2>/dev/null; \
	then index=$(CPU_INDEX); fi; \
	if [ "$$index" ]; then \
		echo "Torch from $$index"; \
		$(UV_INSTALL) --no-deps --index-url "$$index" $(TORCH) $(TORCHVISION); \
	else \
		echo "Torch's ordinary build, on Linux with CUDA: about 6 GB on disk"; \
	fi
	$(UV_INSTALL) -c requirements.lock -e '.[dev]'
	@touch $@
