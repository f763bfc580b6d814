# `make demo` and `make test` need only git, make and Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
LOCK   := tests/requirements.lock
DEMO   := demo
DOCKER := docker
TOOLS  := .venv-lint
UV     := .venv-uv
RELEASES := 4
VERSION := 0.1.0
BASE_IMAGE := debian:trixie-slim
IMAGE_TAG := $(VERSION)
CSI_JOB   := $(BIN)/csi-job
DEMO_DATA := --labels $(DEMO)/data/labels.csv --images $(DEMO)/data/images
DEMO_WORK := --work $(DEMO)/results --config examples/demo.yaml
.DEFAULT_GOAL := help
.PHONY: help setup demo test faults check lint lint-cluster types lock wheel wheel-smoke chart image image-smoke image-size sbom schema values manifests e2e bench-study bench-search bench-gpu clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY) ## Phantoms, cache, search, final model and evaluation, into demo/
	$(CSI_JOB) phantoms $(DEMO)/data --num-images 160
	$(CSI_JOB) cache build $(DEMO_DATA) $(DEMO_WORK)
	$(CSI_JOB) hyperopt $(DEMO_DATA) $(DEMO_WORK) --n-trials 8
	$(CSI_JOB) train-optimized --hyperparams $(DEMO)/results/models/hyperopt/csi_optimization_best_params.json \
	  $(DEMO_WORK) --candidates 2 --seeds 2
	$(CSI_JOB) eval $(DEMO_WORK)
	$(CSI_JOB) evaluate --model-path $(DEMO)/results/models/optimized_model.safetensors $(DEMO_WORK)
	@echo
	@echo "Results: $(DEMO)/results/models; start with hyperopt/csi_optimization_report.html"
	@echo "Your own data: $(BIN)/csi-job hyperopt --labels TABLE.csv --images FOLDER --work RESULTS --n-trials 50"

test: $(READY) ## Run the tests
	@$(BIN)/pytest --ignore=tests/e2e -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --durations 10

faults: $(READY) ## Run the fault tests at full size; FAULTS_ARGS=--help lists options
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults.harness $(FAULTS_ARGS)

check: lint types test ## Lint, types, tests

lint: $(READY) ## Style and format
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

lint-cluster: $(TOOLS)/.ready ## Dockerfile, chart and manifests, by hadolint, checkov and kube-score
	@sh tests/linters/lint.sh $(TOOLS)/bin

# In a separate environment, since checkov pins what csi-job needs newer; kube-score is a Go program.
$(TOOLS)/.ready: tests/linters/requirements.lock tests/linters/go.mod tests/linters/go.sum | $(READY)
	@command -v go >/dev/null || { echo "kube-score is built with Go 1.24 or newer; install it and run make again" >&2; exit 1; }
	@echo "Installing the locked linters into $(TOOLS)"
	@$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(TOOLS)
	@$(BIN)/uv pip sync --quiet --python $(TOOLS)/bin/python --require-hashes tests/linters/requirements.lock
	@cd tests/linters && go build -buildvcs=false -o $(CURDIR)/$(TOOLS)/bin/kube-score github.com/zegl/kube-score/cmd/kube-score
	@touch $@

types: $(READY) ## Types, strict
	@$(BIN)/mypy

setup: $(READY) ## Install everything from the lock files into .venv

$(READY): $(LOCK) image/bootstrap.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Python 3.11 or newer is needed, got $$($(PYTHON) --version 2>&1); install one and run: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv or ensurepip; install them (Debian, Ubuntu: apt-get install python3-venv) and run make again" >&2; exit 1; }
	@test -x $(BIN)/python || if $(PYTHON) -c 'import sys; sys.exit(sys.version_info >= (3, 15))'; then $(PYTHON) -m venv $(VENV); else \
	  echo "python-gdcm and others have no wheels for Python 3.15 or newer yet: uv looks for Python 3.14, or fetches it"; \
	  $(PYTHON) -m venv $(UV) && $(UV)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r image/bootstrap.lock && \
	  UV_PYTHON_INSTALL_DIR=$(CURDIR)/$(UV)/python $(UV)/bin/uv venv --quiet --seed --python 3.14 $(VENV) || { \
	  echo "Python 3.11 to 3.14 is needed, got $$($(PYTHON) --version 2>&1); install one and run: make PYTHON=python3.14 $(MAKECMDGOALS)" >&2; exit 1; }; fi
	@echo "Installing the locked packages into $(VENV) (about 6 GB with torch; once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r image/bootstrap.lock
	@$(BIN)/uv pip sync --python $(BIN)/python --compile-bytecode --require-hashes $(LOCK)
	@$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m compileall -q csi_job
	@touch $@

lock: $(READY) ## Regenerate the lock files within pyproject.toml's bounds
	@sh image/lock.sh $(BIN)/uv

wheel: $(READY) ## Build the wheel into dist/
	@rm -rf dist && $(BIN)/python -m hatchling build -t wheel -d dist

wheel-smoke: wheel ## Install the wheel into a fresh environment and try it there
	@sh tests/wheel/smoke.sh dist/csi_job-$(VERSION)-py3-none-any.whl $(BIN)/uv $(BIN)/python

chart: ## Package the chart into dist/; PUSH=oci://REGISTRY/PATH also pushes it (PUSH_FLAGS: options of helm push)
	@helm lint --quiet --strict --set demo.enabled=true helm
	@helm package helm --destination dist --version $(VERSION) --app-version $(VERSION)
	@test -z "$(PUSH)" || helm push dist/csi-job-$(VERSION).tgz $(PUSH) $(PUSH_FLAGS)

image: ## Build the image csi-job:$(IMAGE_TAG) with Docker (IMAGE_FLAGS: more options of docker build)
	@DOCKER_BUILDKIT=1 $(DOCKER) build $(IMAGE_FLAGS) --network=host \
	  --build-arg VERSION=$(VERSION) --build-arg BASE_IMAGE=$(BASE_IMAGE) \
	  --build-arg COMMIT=$$(git rev-parse HEAD) --tag csi-job:$(IMAGE_TAG) .

image-smoke: ## Try the image: read-only root, another user, torch.compile
	@DOCKER=$(DOCKER) sh image/smoke.sh csi-job:$(IMAGE_TAG)

image-size: ## The image's size by layer and by content
	@DOCKER=$(DOCKER) sh image/size.sh csi-job:$(IMAGE_TAG)

sbom: $(TOOLS)/.ready ## The image's bill of materials (CycloneDX), into csi-job-$(IMAGE_TAG).cdx.json
	@DOCKER=$(DOCKER) $(TOOLS)/bin/python image/sbom.py csi-job:$(IMAGE_TAG) csi-job-$(IMAGE_TAG).cdx.json

schema: $(READY) ## Regenerate helm/values.schema.json from the settings
	@$(BIN)/python -m csi_job.cluster.chart_values > helm/values.schema.json

values: $(READY) ## Regenerate docs/values.md from the chart's values.yaml
	@$(BIN)/python -m tests.chart.values_page > docs/values.md

manifests: ## Regenerate the plain manifests in k8s/ from the chart
	@sh k8s/render.sh k8s

e2e: $(READY) ## Drive a real cluster (KUBECONFIG) with the image E2E_IMAGE, which its nodes must have
	@$(BIN)/pytest tests/e2e -rs -n $(RELEASES) --dist load --maxschedchunk 1 --durations=0 --durations-min=5

bench-study: $(READY) ## Measure what a trial costs the database, and how workers scale, compared with stock Optuna
	@$(BIN)/python -W ignore -m benchmarks.study_trial
	@$(BIN)/python -W ignore -m benchmarks.study_scale
	@$(BIN)/python -W ignore -m benchmarks.study_scale --sqlite

bench-search: $(READY) ## Replay search strategies on recorded learning curves (half an hour of one core)
	@OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.search_replay $(if $(OPTUNAHUB),--optunahub $(OPTUNAHUB))

bench-gpu: $(READY) ## Measure training and predicting on the GPU, beside timm's recipe (if installed) and a plain loop
	@$(BIN)/python -W ignore -m benchmarks.gpu
	@$(BIN)/python -W ignore -m benchmarks.predict
	@$(BIN)/python -W ignore -m benchmarks.trial_gap

clean: ## Remove the environments and demo/
	rm -rf $(VENV) $(TOOLS) $(UV) $(DEMO)
