# One environment (.venv), set up once: `make test` on a machine with Python >= 3.11, pip and a C++17 compiler.
# Without a compiler the package still installs; the PyTorch reference is used instead of the C++ kernels.
PYTHON ?= python3
TORCH  ?= torch==2.13.0
# Where PyTorch does not bring its own.
TRITON ?= triton~=3.6.0
VENV   ?= .venv
NVCC   ?= nvcc

BIN     := $(VENV)/bin
TOOLS   := $(VENV)/tools.stamp
READY   := $(VENV)/ready.stamp
SOURCES := setup.py CMakeLists.txt $(shell find csrc -type f)
CPP     := $(shell find csrc python_tests/cuda_emulation -type f \( -name '*.h' -o -name '*.cuh' -o -name '*.cpp' -o -name '*.cu' \) 2>/dev/null)

.PHONY: help venv demo test test-all test-long bench evidence lint format build wheel sanitize cuda-check gpu clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

venv: $(READY)  ## set up .venv with PyTorch, this package (editable) and the development tools

# PyTorch and tools: again only when pyproject.toml changes.
$(TOOLS): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12" % sys.version_info[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("triton"))' || $(BIN)/python -m pip install --quiet '$(TRITON)'
	@$(BIN)/python -c 'import tomllib; file = tomllib.load(open("pyproject.toml", "rb")); project = file["project"]; extras = project["optional-dependencies"]; \
	  print(*file["build-system"]["requires"], *project["dependencies"], *extras["dev"], *extras["video"], *extras["train"], sep="\n")' > $(VENV)/tools.txt
	$(BIN)/python -m pip install --quiet --requirement $(VENV)/tools.txt
	@touch $@

# The C++ module: only what has changed is compiled. pip's own build environment would be a new folder every time, for
# which everything is compiled anew, and pip hides what a build prints.
$(READY): $(TOOLS) $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	@touch $@

demo: $(READY)  ## videos of both bundled models, a continuation of a real clip, into outputs/demo/
	$(BIN)/python -m ardiff_engine.demo --out outputs/demo

# A run starts hundreds of processes: without byte code each of them would compile the package again.
test test-all test-long: export PYTHONDONTWRITEBYTECODE :=

test: $(READY)  ## run the tests, each kind of fault once, in minutes
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-all: $(READY)  ## run every test in all its variants, and the fuzzers; tests that need a GPU are skipped where there is none
	ARDIFF_TESTS=all $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-long: $(READY)  ## what test-all runs and test does not
	ARDIFF_TESTS=long $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

bench: $(READY)  ## run the CPU benchmarks (pytest-benchmark), print one table and write build/bench.json
	@mkdir -p build
	$(BIN)/ardiff bench --json build/bench.json

evidence: $(READY)  ## make every table of docs/evidence.md again; trains for hours, and goes on where it was stopped
	$(BIN)/python -m tools.evidence

lint: $(READY)  ## ruff, ruff format, mypy and clang-format, all as checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(if $(CPP),$(BIN)/clang-format --dry-run --Werror $(CPP))

format: $(READY)  ## rewrite Python and C++ files in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CPP),$(BIN)/clang-format -i $(CPP))

build: $(TOOLS)  ## rebuild the native module in place, keeping object files (for work on csrc/)
	$(BIN)/python setup.py build_ext --inplace

wheel: $(TOOLS)  ## build a wheel into dist/ that installs without a compiler on any Linux of its tag (manylinux)
	rm -rf build/wheel
	ARDIFF_REQUIRE_NATIVE=1 $(BIN)/python -m build --no-isolation --outdir build/wheel
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl

sanitize: $(READY)  ## build the C++ kernels with address and undefined-behaviour sanitizers, in build/sanitize, and run the op tests on them
	$(BIN)/python tools/sanitize.py

cuda-check:  ## compile all CUDA and Triton kernels for sm_80 and sm_90, with nvcc and NVRTC; needs nvcc and .venv, no GPU
	$(PYTHON) tools/cuda_check.py --nvcc $(NVCC)
	@python=$$(test -x $(BIN)/python && echo $(BIN)/python || echo $(PYTHON)); \
	if $$python -c 'import torch, ardiff_engine._C' 2>/dev/null; then echo "$$python tools/nvrtc_check.py"; $$python tools/nvrtc_check.py || exit 1; \
	else echo "cuda-check: NVRTC LEFT OUT: $$python has no torch or no native module; make venv builds it"; fi; \
	if $$python -c 'import torch, triton' 2>/dev/null; then echo "$$python tools/triton_check.py"; $$python tools/triton_check.py; \
	else echo "cuda-check: Triton kernels LEFT OUT: $$python has no torch and triton; make venv installs them"; fi

# In the environment of PYTHON as it is, with its own PyTorch: nothing is fetched or installed.
gpu:  ## on a machine with an NVIDIA GPU: build with CUDA, run the tests marked gpu, the benchmarks and the sanitizer
	@$(PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make gpu needs an NVIDIA GPU and a CUDA build of PyTorch; torch " + torch.__version__ + " sees none")'
	@$(PYTHON) -c 'import hypothesis, numpy, pybind11, pytest, pytest_benchmark, safetensors, setuptools, tqdm'
	ARDIFF_CUDA=1 $(PYTHON) setup.py --quiet build_ext --inplace
	$(PYTHON) -m ardiff_engine.info
	$(PYTHON) tools/gpu_record.py

clean:  ## remove build products (not .venv, not outputs/)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f ardiff_engine/_C*.so $(READY)
	find ardiff_engine python_tests benchmarks examples tools -name __pycache__ -type d -prune -exec rm -rf {} +
