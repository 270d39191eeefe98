# Every target makes its environment when it is missing, and does nothing for it when nothing changed.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: ci-deps demo test check fix bench soak

ci-deps: # system packages: a browser, for the tests that look at pages
	@command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; } >/dev/null || \
	  echo "no browser could be installed; the tests that need one are skipped"

demo: $(READY)
	$(BIN)/trainwell train demo

test: $(READY)
	$(BIN)/pytest -m "not slow" --numprocesses 2
	$(BIN)/pytest -m slow --numprocesses 2

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

soak: $(READY) # every promise of docs/reliability.md, at length; writes the page
	$(BIN)/python -m benchmarks.soak

bench: $(READY) # with the peers that are installed: pip install '.[bench]'
	@for file in $(filter-out benchmarks/browser.py benchmarks/fuzz.py benchmarks/mutants.py benchmarks/pictures.py benchmarks/report.py,$(wildcard benchmarks/*.py)); do $(BIN)/python $$file || exit 1; done
	$(BIN)/python -m benchmarks.report
	$(BIN)/python -m benchmarks.speed

# The last install is the book's own functions, an oracle for tests, without what else they ask for.
$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps llms-from-scratch
	@touch $@
