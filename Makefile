# make demo    trains a prompt, transfers it, shows the gain
# make test    all tests
# make check   lint, types, architecture, fast tests

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-programs test-modules check check-lower-bounds clean

# Installed once; again when the dependencies change.
$(VENV)/demo.stamp: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e .
	touch $@

$(VENV)/test.stamp: $(VENV)/demo.stamp
	$(BIN)/pip install --quiet -e '.[test]'
	touch $@

demo: $(VENV)/demo.stamp
	$(BIN)/python -m prompt_tuning.demo

check: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m 'not slow'

# In two halves side by side: programs, which wait for processes, and modules.
test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) --jobs=2 test-programs test-modules

test-programs: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/*_test.py

test-modules: $(VENV)/test.stamp
	$(BIN)/python -m pytest tests/t5x tests/prompt_tuning

check-lower-bounds:
	$(PYTHON) -m venv $(VENV)-lower
	$(VENV)-lower/bin/pip install --quiet -c tests/lower_bounds.txt -e '.[test]'
	$(VENV)-lower/bin/python -m pytest -m 'not slow'

clean:
	rm -rf $(VENV) $(VENV)-lower build dist *.egg-info demo_output
