# make demo   build .venv and run the demonstration federation
# make test   build .venv with the test extras; ruff, mypy --strict, pytest
# make check  the quick subset: ruff, mypy, the tests that start no processes
# make fuzz   one minute of mutated update files against the codec (FUZZ_SECONDS); needs atheris
# make nightly  the same for half an hour, and the server under two thousand requests
# make soak   just the latter (SOAK_REQUESTS)
# make venv   just the environment
# make proto  regenerate the gRPC stubs from the .proto
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
FUZZ_STAMP := $(VENV)/.installed-fuzz
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO_ARGS ?=
FUZZ_SECONDS ?= 60
FUZZ := build/fuzz
SOAK_REQUESTS ?= 2000

.PHONY: venv demo test check proto fuzz soak nightly clean

venv: $(STAMP)

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: saw no $(PYTHON), wanted Python 3.11; install it or name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# torch comes first: unpinned, its default build on Linux drags in several GB of CUDA libraries.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) "torch==$$(sed -n 's/^torch==//p' constraints.txt)"
	$(PIP) --editable ".[demo]"
	@touch $@

$(TEST_STAMP): $(STAMP)
	$(PIP) --editable ".[test]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/motet demo $(DEMO_ARGS)

check: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q -m "not slow"

test: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q --numprocesses 2 --dist loadfile

proto: $(TEST_STAMP)
	$(BIN)/python -m grpc_tools.protoc --proto_path=protocols --python_out=protocols --pyi_out=protocols \
	  --grpc_python_out=protocols protocols/motet/protocols/transfer/expert_transfer.proto

$(FUZZ_STAMP): $(TEST_STAMP)
	@$(PIP) --editable ".[fuzz]" || { \
	  echo "make: atheris cannot be installed here, so nothing was fuzzed; it has wheels for CPython 3.11 on Linux x86-64" >&2; exit 1; }
	@touch $@

fuzz: $(FUZZ_STAMP)
	@mkdir -p $(FUZZ)/found $(FUZZ)/tmp
	$(BIN)/python tests/fuzz/seed_corpus.py $(FUZZ)/seeds
	TMPDIR=$(FUZZ)/tmp $(BIN)/python tests/fuzz/fuzz_update.py -max_total_time=$(FUZZ_SECONDS) -timeout=20 -rss_limit_mb=512 \
	  -verbosity=0 -print_final_stats=1 -artifact_prefix=$(FUZZ)/ $(FUZZ)/found $(FUZZ)/seeds

soak: $(TEST_STAMP)
	MOTET_SOAK_REQUESTS=$(SOAK_REQUESTS) $(BIN)/pytest -q tests/serving/test_soak.py

nightly: FUZZ_SECONDS := 1800
nightly: fuzz soak

clean:
	rm -rf $(VENV)
