# `make demo` and `make test` are all a fresh machine needs; each target makes .venv from the lock by itself.
PYTHON ?= python3.11
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
LOCK := requirements-$(VERSION).lock
ifeq ($(wildcard $(LOCK)),)
$(error vidgen has locks for Python 3.11 and 3.12, not for $(PYTHON); try make PYTHON=python3.12)
endif
PLAN_LOCK := requirements-plan-$(VERSION).lock
STAMP := .venv/stamp-$(VERSION)-$(shell cat $(LOCK) setup.py 2>/dev/null | cksum | cut -d' ' -f1)
BIN := .venv/bin
WORKERS ?= 2

.PHONY: setup compilers demo scores scores-imagen-video test soak lint bench head-to-head plans lock clean

setup: $(STAMP)

$(STAMP): $(LOCK) setup.py
	rm -rf .venv
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement $(LOCK)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

compilers: $(STAMP)  ## those for TPUs and GPUs, 1.5 GB: what `vidgen plan` compiles with
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $(PLAN_LOCK)

lock:  ## new versions and hashes for both Pythons; needs uv and both interpreters on the PATH
	for v in 3.11 3.12; do uv pip compile setup.py --extra dev --upgrade --generate-hashes --no-annotate --no-header \
	  --quiet --python $$(command -v python$$v) --output-file requirements-$$v.lock || exit 1; \
	  uv pip compile setup.py --extra plan-tpu --extra plan-gpu --constraint requirements-$$v.lock --generate-hashes \
	  --no-annotate --no-header --quiet --python $$(command -v python$$v) \
	  | awk '/^[a-z]/ {keep = /^(libtpu|jax-cuda|nvidia-cudnn)/} keep' > requirements-plan-$$v.lock || exit 1; done

demo: $(STAMP)
	$(BIN)/python launch/demo.py

scores: $(STAMP)
	$(BIN)/python launch/scores.py

scores-imagen-video: $(STAMP)
	$(BIN)/python launch/scores_imagen_video.py

test: $(STAMP)
	$(BIN)/pytest -n $(WORKERS) tests

soak: $(STAMP)
	VIDGEN_SOAK=1 $(BIN)/pytest tests -m soak

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright

bench: $(STAMP)
	$(BIN)/vidgen data build data/shapes_world.py:single --out runs/bench/data --count 1024
	$(BIN)/vidgen bench --data runs/bench/data --warmup 20 --json runs/bench/bench.json

head-to-head:  ## against torch on the CPU; Python 3.11
	$(PYTHON) -m venv .venv-oracle
	.venv-oracle/bin/pip install --quiet --editable '.[data,oracle]' einops tqdm
	.venv-oracle/bin/pip install --quiet --no-deps imagen-pytorch==2.1.0
	.venv-oracle/bin/python -m vidgen.dist.flags .venv-oracle/bin/python benchmarks/wan.py --works forward --json benchmarks/results/wan_forward.json
	.venv-oracle/bin/python -m vidgen.dist.flags .venv-oracle/bin/python benchmarks/wan.py --works train --json benchmarks/results/wan_train.json
	.venv-oracle/bin/python -m vidgen.dist.flags .venv-oracle/bin/python benchmarks/features.py --json benchmarks/results/i3d_features.json
	.venv-oracle/bin/python -m vidgen.dist.flags .venv-oracle/bin/python benchmarks/encoders.py --json benchmarks/results/t5_encoder.json
	.venv-oracle/bin/python -m vidgen.dist.flags .venv-oracle/bin/python benchmarks/unet3d.py --works train --json benchmarks/results/unet3d_train.json

plans: compilers
	for f in configs/*/*.plans.json; do $(BIN)/vidgen plan --recorded $$f || exit 1; done

clean:
	rm -rf .venv build *.egg-info
