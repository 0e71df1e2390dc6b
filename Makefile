# Two commands: `make app` and `make test`. Both do all their own set-up; a second run installs nothing again.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CUDA_VENV := .venv-cuda
# Two, whatever the machine has: tests of the real starter take the memory of one. The order is that of tests/conftest.py.
WORKERS := --numprocesses 2 --dist loadgroup --no-loadscope-reorder
APT := DEBIAN_FRONTEND=noninteractive apt-get

# What eslint needs; Debian 12 has 18.20.
NODE_18 := node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major > 18 || (major == 18 && minor >= 18) ? 0 : 1)' 2>/dev/null && npm --version >/dev/null 2>&1

.PHONY: app test check test-js setup setup-dev setup-js browser lint audit gpu-check fake-gpu-check clean

app: setup
	$(BIN)/python app.py --open

test: setup-dev browser test-js
	$(BIN)/python -m pytest $(WORKERS) $(ARGS)

# For the work between two commits: what needs no browser, starter, compiler or process of its own.
check: lint test-js
	$(BIN)/python -m pytest $(WORKERS) -m "not (gpu or browser or starter or compiles or processes)" $(ARGS)

# The page's JavaScript, as far as it needs no browser.
test-js: setup-js
	node --test $$(find tests -name '*.test.js')

lint: setup-dev setup-js
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive jetmoe studio app.py
	$(BIN)/python -m tests.docs_cli --check
	node_modules/.bin/eslint --max-warnings 0 .

# Known holes of what is installed. Apart from `make lint`, because it asks a service on the net.
audit: setup-dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(BIN)/pip-audit --requirement requirements.txt

# Runs on the system's Python, whose torch knows the GPU; writes tests/benchmarks/results/gpu-<card>-<date>.md.
gpu-check:
	$(PYTHON) -m tests.gpu.check

# The path of a GPU on fake CUDA tensors, without one. Its environment, with a CUDA build of torch, takes 6 GB.
fake-gpu-check: $(CUDA_VENV)/.installed
	$(CUDA_VENV)/bin/python -m pytest -m gpu tests/gpu

$(CUDA_VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv --clear $(CUDA_VENV)
	$(CUDA_VENV)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.11.0 -r requirements-dev.txt
	touch $@

setup: $(VENV)/.installed

setup-dev: $(VENV)/.installed-dev

setup-js: node_modules/.installed

# A stamp is only written after everything before it worked, so a broken half is made again by the next run.
$(VENV)/.installed: requirements.txt | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "JetMoE Studio needs Python 3.11 or 3.12; name one with: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV) || { \
		[ "$$(id -u)" = 0 ] && $(APT) update -qq && $(APT) install -y -qq python3-venv && \
		$(PYTHON) -m venv --clear $(VENV); } || \
		{ echo "Making $(VENV) failed; install the package python3-venv and run make again." >&2; exit 2; }
	touch $@

node_modules/.installed: package.json package-lock.json .npmrc
	@{ $(NODE_18); } || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		$(APT) update -qq && $(APT) install -y -qq nodejs npm && $(NODE_18); } || \
		{ echo "The linters need Node.js 18.18 or newer with npm: install both and run make again." >&2; exit 2; }
	npm ci --no-audit --no-fund --silent
	touch $@

browser:
	@[ -n "$$CHROMIUM" ] || { command -v chromium && command -v chromium-headless-shell; } >/dev/null || { \
		[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
		$(APT) update -qq && $(APT) install -y -qq chromium chromium-headless-shell fonts-noto-color-emoji; } || \
		{ echo "The tests need a browser: install chromium and chromium-headless-shell, or set CHROMIUM=/path/to/chromium." >&2; exit 2; }

clean:
	rm -rf $(VENV) $(CUDA_VENV) node_modules
