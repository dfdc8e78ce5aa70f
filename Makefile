# Everything is set up by the targets themselves: a fresh machine needs Python 3.11 or newer and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
OUT ?= demo

.PHONY: demo test test-all wheel-check check site clean

demo: .venv/ready
	$(BIN)/depthjepa demo --out $(OUT)

# Two processes of one thread each: on small shapes more threads only wait for one another.
test: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# With the slow tests, and the demo at its full size in a folder that goes away.
test-all: check
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m ""
	out=$$(mktemp -d) && $(MAKE) demo OUT=$$out && test -s $$out/report.html && rm -r $$out

# The wheel without extras, in an environment of its own: a folder that is not there yet, or a passing one by default.
wheel-check:
	tools/wheel_check.sh $(PYTHON) $(ENVIRONMENT)

# Format, lint and types; the floor test (tests/test_floors.py) runs with the tests.
check: .venv/ready
	$(BIN)/ruff check src tests tools
	$(BIN)/ruff format --check src tests tools
	$(BIN)/mypy

# The pages as a site in site/, to read with any browser; its search wants a server: `python -m http.server -d site`.
site: .venv/ready
	$(BIN)/python -m mkdocs build --strict

.venv/ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[all]'
	touch $@

clean:
	rm -rf .venv
