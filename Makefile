# Two commands do everything on a fresh Linux machine with Python 3.11 or newer:
#   make demo    runs the main job, on real processes
#   make test    static checks, then all tests
# and make test-torch the tests that need PyTorch, in an environment of their own (the CPU build, 190 MB).
PYTHON ?= python3
VENV := .venv
WORKERS ?= 5
BIN := $(VENV)/bin
TORCH_VENV := .venv-torch
TORCH := torch==2.13.0

.PHONY: demo test test-torch record-cases check pods prometheus chromium screenshots soak bench lock clean
.DELETE_ON_ERROR:
# What tests start by the thousand is not to compile its modules each time, whatever the caller's environment says.
unexport PYTHONDONTWRITEBYTECODE

$(VENV)/.installed: pyproject.toml sidecar/version.py
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "rankguard needs Python 3.11 or newer: make PYTHON=python3.12 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/rankguard demo

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# What the tests with real pods need of this machine: podman and two images. Says why where there can be none.
pods: $(VENV)/.installed
	$(BIN)/python tests/pods/prepare.py

# Prometheus and promtool for the tests of metrics and alerts: Debian's, unpacked into the cache. Says why where not.
prometheus: $(VENV)/.installed
	$(BIN)/python tests/prometheus/prepare_prometheus.py

# A real browser for the tests of the page: Debian's. Says why where there can be none.
chromium: $(VENV)/.installed
	$(BIN)/python tests/page/prepare_chromium.py

# The pictures in docs/images, from incidents that real runs leave.
screenshots: chromium
	$(BIN)/python tests/page/take_screenshots.py docs/images

# Ten minutes of failures in real pods; SOAK="--seconds 3600 --pods 4 --seed 7" says otherwise.
soak: pods
	PYTHONPATH=tests $(BIN)/python tests/pods/soak.py $(SOAK)

# Most of a test is waiting for processes, so there are more workers than processors. On a fresh machine the checks take
# a processor and the preparations a network, so they go side by side; the preparations all want apt. The page's
# tests come last: a browser gives up what it is loading when a pod's network comes or goes.
test: $(VENV)/.installed
	$(MAKE) --jobs=2 check prepared
	$(BIN)/pytest -n $(WORKERS) --dist worksteal --ignore=tests/page; others=$$?; \
	  $(BIN)/pytest -n 3 --dist loadfile tests/page && exit $$others

.PHONY: prepared
prepared: pods
	$(BIN)/python tests/prometheus/prepare_prometheus.py
	$(BIN)/python tests/page/prepare_chromium.py

$(TORCH_VENV)/.installed: pyproject.toml sidecar/version.py
	$(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]' '$(TORCH)'
	touch $@

test-torch: $(TORCH_VENV)/.installed
	$(TORCH_VENV)/bin/pytest tests/pytorch

# Makes the recordings of tests/analysis anew, from real ranks on gloo; NAMES="lock abort" for some of them.
record-cases: $(TORCH_VENV)/.installed
	$(TORCH_VENV)/bin/python tests/analysis/record_cases.py $(NAMES)

# What the image installs, with hashes. The packages left out are aiohttp's, which only kubernetes.aio imports.
lock:
	$(PYTHON) -m pip install --quiet --disable-pip-version-check uv
	echo setuptools | uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  --upgrade --output-file requirements-build.lock -
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade \
	  $(foreach name,aiohttp aiohttp-retry aiosignal aiohappyeyeballs attrs frozenlist multidict propcache yarl,--no-emit-package $(name)) \
	  --output-file requirements.lock pyproject.toml

.PHONY: renew-chart
# What the chart's tests compare with: the objects of the default values, and the table of the values.
renew-chart: $(VENV)/.installed
	RENEW=1 $(BIN)/pytest tests/charts -k 'the_default_is_what_it_was or the_readme_has_every_value'

bench: $(VENV)/.installed
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) $(TORCH_VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# The chart and the sidecar in the cluster that KUBECONFIG names: tests/e2e/README.md. E2E="-k deaths" for a part.
.PHONY: e2e
e2e: $(VENV)/.installed
	@test -n "$$KUBECONFIG" || { echo 'make e2e: set KUBECONFIG to the cluster that is to be used'; exit 2; }
	$(BIN)/pytest tests/e2e $(E2E)

# Whatever KUBECONFIG says: no other target touches a cluster.
test: override export KUBECONFIG =
