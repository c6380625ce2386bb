# Two commands do everything on a machine with Python 3.11 and pip: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt

.PHONY: demo test lint docs hostile wheel wheel-newest wheel-oldest clean

demo: $(VENV)/.app
	$(BIN)/pof demo

test: lint $(VENV)/.compiled
	$(BIN)/pytest -n 2 --dist worksteal

lint: $(VENV)/.all
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The pip that comes with Python 3.11 takes a minute longer to find out what to install.
$(VENV)/.pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip==26.3
	touch $@

# The demo needs the application; tests, documentation and releases need their tools too.
$(VENV)/.app: pyproject.toml constraints.txt | $(VENV)/.pip
	$(INSTALL) -e '.[app]'
	touch $@

$(VENV)/.all: pyproject.toml constraints.txt | $(VENV)/.pip
	$(INSTALL) -e '.[app,dev,docs]'
	touch $(VENV)/.app $@

# On all cores, and without what nothing here imports: pip does it on one, for a third of its time.
$(VENV)/.compiled: $(VENV)/.all
	$(BIN)/python -m compileall -qq -j 0 \
		-x '/tests?/|/transformers/models/[^_]|/ray/(rllib|serve|tune)/|/pip/|/py312_' $(VENV)/lib
	touch $@

# MkDocs 1.x and its theme print banners about MkDocs 2; constraints.txt keeps 1.x.
docs: $(VENV)/.all
	$(BIN)/python scripts/gallery.py build/gallery
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true $(BIN)/mkdocs build --strict

# Bad inputs, kills, damaged states, processes that disagree; not in CI.  HOSTILE="--only kills --seed 1" for a part.
hostile: $(VENV)/.all
	OMP_NUM_THREADS=1 $(BIN)/python -m scripts.hostile --out build/hostile.json $(HOSTILE)

wheel: $(VENV)/.all
	rm -rf dist
	$(BIN)/python -m build --outdir dist .

# An empty environment with the wheel and its own dependencies, then what the library does without the `app` extra.
# Each fetches several GB, the oldest torch with its CUDA libraries.
wheel-newest wheel-oldest: wheel
	rm -rf build/$@
	$(PYTHON) -m venv build/$@
	build/$@/bin/pip install --quiet --disable-pip-version-check \
		$(if $(findstring oldest,$@),-c scripts/oldest.txt) dist/*.whl
	build/$@/bin/python scripts/wheel_smoke.py

clean:
	rm -rf $(VENV) build dist site
