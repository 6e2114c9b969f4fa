# make demo   build .venv and run the demonstration federation
# make test   build .venv with the test extras; ruff, mypy --strict, pytest
# make check  the quick subset: ruff, mypy, the tests that start no processes
# make venv   just the environment
# make proto  regenerate the gRPC stubs from the .proto
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
TEST_STAMP := $(VENV)/.installed-test
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO_ARGS ?=

.PHONY: venv demo test check proto clean

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

clean:
	rm -rf $(VENV)
