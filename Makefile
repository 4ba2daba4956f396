# Everything runs in .venv, which the first target that needs it creates. `make help` lists the targets.
PYTHON ?= python3
# One torch for development; any torch >= 2.10 works. For another build: make test TORCH="torch ..."
TORCH ?= torch==2.13.0
# PyPI has no torchvision for a CPU-only PyTorch, so it is installed without dependencies, into a separate folder.
TORCHVISION ?= torchvision==0.28.0
RUN := .venv/bin/python
READY := .venv/.ready
TESTED := .venv/.tested
RESULTS := benchmarks/results
# The ops that have a C++ kernel.
CPU_OPS := $(basename $(notdir $(filter-out csrc/build_info.cpp,$(wildcard csrc/*.cpp))))

.PHONY: help demo test check lint types docs bench gpu asan fuzz kills clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 10

demo: $(READY) ## generate data, draw its training targets, measure speed, train a detector
	.venv/bin/detops demo

# A quick run: make test ARGS="-m 'not slow'"
test: $(TESTED) ## run the tests, on up to 4 cores
	DETOPS_TORCHVISION=$(CURDIR)/.venv/torchvision $(RUN) -m pytest --numprocesses auto --maxprocesses 4 \
		--dist loadfile --durations 15 $(ARGS)

check: $(READY) lint types docs test ## everything that a change must pass

lint: $(READY) ## format, lint, workflows, and the floors of the layout
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.venv/bin/check-jsonschema -q --builtin-schema vendor.dependabot .github/dependabot.yml
	.venv/bin/lint-imports

types: $(READY) ## check the types
	.venv/bin/mypy

docs: $(READY) ## build the documentation site into build/docs
	$(RUN) -m sphinx -W --keep-going -q -b html -d build/doctrees docs build/docs
	@echo "build/docs/index.html"

bench: $(READY) ## measure on the CPU; results go to benchmarks/results
	$(RUN) -m detops.apps.bench --device cpu --out $(RESULTS)

# Uses the machine's own Python with its torch and triton, and installs nothing. Missing packages are reported and make
# it fail, but the rest runs. Also: ARCHIVE=FILE, ACCV=FOLDER of ACCV-Lab's sources, ARGS="--minutes 5".
gpu: OUT ?= out/gpu
gpu: ## tests and benchmarks on this machine's GPU; results go to out/gpu, or to OUT
	PYTHONPATH=src $(PYTHON) -m detops.apps.bench.gpu --out $(OUT) $(if $(ARCHIVE),--archive $(ARCHIVE)) \
		$(if $(ACCV),--accv $(ACCV)) $(ARGS)

fuzz: $(READY) ## give damaged data sets to the commands: make fuzz MINUTES=30
	$(RUN) tools/fuzz.py $(or $(MINUTES),1)

# Python itself is not built with the sanitizer, so its runtime comes first; Python leaks by design.
asan: $(READY) ## run the C++ kernels' tests under AddressSanitizer and UBSan
	DETOPS_ASAN=1 $(RUN) tools/kernels.py build/asan
	DETOPS_LIBRARY=$$(echo build/asan/detops/_C*.so) ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		$(RUN) -m pytest -q -s -p no:cacheprovider $(CPU_OPS:%=tests/ops/test_%.py) -k "not triton and not portable"

kills: $(READY) ## kill the commands at random moments and continue: make kills MINUTES=30
	$(RUN) -W ignore tools/kills.py --minutes $(or $(MINUTES),5)

clean: ## remove the files that the targets made
	rm -rf .venv build out src/*.egg-info src/detops/_C*

$(READY): pyproject.toml setup.py $(wildcard csrc/* tools/*)
	test -d .venv || $(PYTHON) -m venv .venv
	$(RUN) -m pip install --quiet --upgrade "setuptools>=77" wheel
	$(RUN) -m pip install --quiet "$(TORCH)"
	$(RUN) -m pip install --quiet --no-build-isolation --editable ".[dev,docs]"
	touch $@

# Packages that some tests need beside the extra dev; these tests are skipped if one cannot be installed.
$(TESTED): $(READY)
	$(RUN) -m pip install --quiet --no-deps --target .venv/torchvision "$(TORCHVISION)" || echo "no torchvision"
	$(RUN) -m pip install --quiet --no-deps --target .venv/torchvision timm huggingface_hub safetensors || echo "no timm"
	$(RUN) -m pip install --quiet "ray[data]>=2.40" || echo "no Ray"
	$(RUN) -m pip install --quiet onnx onnxruntime onnxscript || echo "no ONNX"
	$(RUN) -m pip install --quiet "scipy>=1.11" "transformers>=5.24" || echo "no SciPy, no Transformers"
	$(RUN) -m pip install --quiet --no-deps av faster-coco-eval hotcoco || echo "no videos, no other COCO evaluation"
	touch $@
