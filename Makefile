# randcond: `make help` lists the targets.
# Variables: VENV (default .venv), PYTHON, ARGS (section.key=value ...), and where to run: HOSTFILE, NODES,
# GPUS (ranks per host), LAUNCHER (deepspeed, torchrun, slurm), RESTARTS, SBATCH (your site's options).
# WORKERS: number of processes of make quick and make test. For setup: TORCH_INDEX (the address of an index that torch
# and torchvision come from) and UV (the uv that installs; empty: pip), which launch/install/packages.py reads.
VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 3
ifneq ($(words $(VENV)),1)
$(error VENV=$(VENV): a folder without spaces is needed; relative to this one, so that this one may have spaces in its path)
endif
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := randcond.launch randcond.model_zoo randcond.data randcond.train randcond.eval

EXPERIMENTS := $(sort $(basename $(notdir $(wildcard launch/experiments/*.yaml launch/experiments/*/*.yaml))))
EXPERIMENTS := $(filter-out $(basename $(notdir $(wildcard launch/experiments/base/*.yaml))),$(EXPERIMENTS))
TABLES := $(sort $(basename $(notdir $(wildcard launch/tables/*.yaml launch/tables/*/*.yaml))))
TABLES := $(filter-out $(basename $(notdir $(wildcard launch/tables/base/*.yaml))),$(TABLES))
WHERE := $(if $(HOSTFILE),--hostfile "$(HOSTFILE)") $(if $(NODES),--nodes $(NODES)) $(if $(GPUS),--gpus $(GPUS)) \
  $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(if $(RESTARTS),--max-restarts $(RESTARTS)) $(if $(SBATCH),--sbatch "$(SBATCH)")

.DEFAULT_GOAL := help
.PHONY: help setup packages always quick test coverage test-all test-endurance test-hosts test-slurm lint format dryrun plan mini beyond mini-results bench bench-gpu bench-start bench-scaling bench-data bench-eval tensorboard docs gallery layout digits-flow-teacher digits-teacher $(EXPERIMENTS) $(TABLES)

help: ## this list
	@echo "make TARGET [HOSTFILE=hosts] [NODES=n] [GPUS=ranks per host] [LAUNCHER=deepspeed|torchrun|slurm] [RESTARTS=n]"
	@echo "            [SBATCH='options of your site'] [VENV=.venv] [ARGS='section.key=value ...']"
	@echo "make setup [PYTHON=python3] [TORCH_INDEX=URL of PyTorch's CPU builds] [UV=]    see docs/install.md"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-22s%s\n", $$1, $$2}'
	@echo
	@echo "tables (several experiments, one report):"
	@for f in $$(ls launch/tables/*.yaml launch/tables/*/*.yaml | grep -v /base/); do printf '  %-22s%s\n' "$$(basename $$f .yaml)" "$$(sed -n 's/^title: //p' $$f)"; done
	@echo "one row of a table: table1-row5, table3-row2, ...; experiments (pool, cache, train, eval, report):"
	@for f in $$(ls launch/experiments/*.yaml launch/experiments/*/*.yaml | grep -v /base/); do printf '  %-36s%s\n' "$$(basename $$f .yaml)" "$$(sed -n '1s/^# //p' $$f)"; done

setup: $(READY) ## install everything into VENV (the other targets do this if it is missing)

packages: $(VENV)/.packages ## the part of setup that does not depend on our code: the packages of requirements.lock

$(VENV)/.packages: requirements.lock $(if $(TORCH_INDEX),always)
	@$(PYTHON) launch/install/prerequisites.py $(VENV)
	@$(PYTHON) launch/install/packages.py $(VENV)
	@touch $@

$(READY): $(VENV)/.packages pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m randcond.train.engine.build_ops
	@touch $@

$(TABLES) $(EXPERIMENTS): $(READY)
	@$(BIN)/randcond run all $@ $(WHERE) $(ARGS)

define ROW # one row of a table, by its number
$(1)-row%: $$(READY)
	@$$(BIN)/randcond run all $$@ $$(WHERE) $$(ARGS)
endef
$(foreach table,$(TABLES),$(eval $(call ROW,$(table))))

MINI := mini-fig3 mini-fig2 mini-table1 mini-table2 mini-table3 mini-tableE mini-tableG mini-fig7 mini-tableB mini-tableC mini-tableC-teacher mini-table1-fresh mini-tableC-fresh

mini: $(READY) ## all miniature tables of the paper, one after another: most of a day on two cores
	@for table in $(MINI); do $(BIN)/randcond run all $$table $(WHERE) $(ARGS) || exit $$?; done

BEYOND := beyond-unet beyond-students beyond-width beyond-p beyond-noise beyond-shift beyond-features beyond-pool

beyond: $(READY) ## all miniature tables beyond the paper, one after another: most of a day on two cores
	@for table in $(BEYOND); do $(BIN)/randcond run all $$table $(WHERE) $(ARGS) || exit $$?; done

mini-results: $(READY) ## copy the finished reports of the demo and the miniature tables to launch/tables/results
	@$(BIN)/python -m randcond.eval.report.miniature_results runs runs/mini launch/tables/results

plan: $(READY) ## predict GPU-hours and disk space of every table of the paper
	@$(BIN)/randcond plan $(ARGS)

NOT_HERE := not slow and not gpu and not hosts and not slurm
QUICK := tests/unit tests/stages/test_older_artefacts.py # of these, the tests without the marker heavy
SPREAD := -n $(WORKERS) --dist worksteal # one process more than cores: some tests wait. An idle one takes tests over

quick: $(READY) ## the most informative tests, two minutes on two cores
	$(BIN)/python -m pytest $(QUICK) $(SPREAD) -m "quick and $(NOT_HERE)" $(ARGS)

test: $(READY) ## the tests for every change, less than 15 minutes on two cores
	$(BIN)/python -m pytest $(SPREAD) -m "$(NOT_HERE)" $(ARGS)

coverage: $(READY) ## share of the code that `make quick` runs, by file
	$(BIN)/python -m pytest $(QUICK) $(SPREAD) -m "quick and $(NOT_HERE)" --cov --cov-report=term $(ARGS)

test-all: $(READY) ## every test that can run on this machine (as root also on two hosts and Slurm; installs what they need)
	$(BIN)/python -m pytest $(if $(filter 0,$(shell id -u)),,-m "not hosts and not slurm") $(ARGS)

test-endurance: $(READY) ## loss curves on every engine, ten random kill -9, changes of engine and ranks during a run, the EMA
	$(BIN)/python -m pytest tests/faults/test_endurance.py $(ARGS)

test-hosts: $(READY) ## two hosts on this machine: deepspeed over ssh, a killed rank, a cut link (as root)
	$(BIN)/python -m pytest -m hosts $(ARGS)

test-slurm: $(READY) ## a Slurm cluster on this machine: submit, requeue, finish (as root)
	$(BIN)/python -m pytest -m slurm $(ARGS)

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p build/typing && ln -sfn ../.. build/typing/randcond # mypy does not follow the editable installation
	MYPYPATH=build/typing $(BIN)/mypy $(addprefix -p ,$(PACKAGES))

format: $(READY) ## fix and format the code with ruff
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dryrun: $(READY) ## resolve and check every experiment without running it
	$(BIN)/python -m randcond.train.dryrun

# ARGS go to the first part of a bench. With --help, all its parts print their help, and none measures anything.
HELP := $(filter -h --help,$(ARGS))

bench: $(READY) ## compare the training step with the published recipe's and a bare one, caching and evaluation with the stock tools
	$(BIN)/python -m tests.bench.step $(ARGS)
	$(BIN)/python -m tests.bench.draw $(HELP)
	$(BIN)/python -m tests.bench.evaluation --images 96 --many 0 $(HELP)

bench-gpu: $(READY) ## what only a GPU shows, the most useful figures first, in 15 minutes; the same command continues
	$(BIN)/python -m tests.bench.gpu $(ARGS)

bench-start: $(READY) ## the time to the first step, by part
	$(BIN)/python -m tests.bench.startup $(ARGS)

bench-scaling: $(READY) ## the share of its traffic that each engine hides on two ranks, and the planner's curves to 1,024 GPUs
	$(BIN)/python -m tests.bench.overlap $(ARGS)

bench-data: $(READY) ## compare a pool of 20M captions with a pandas column, and the stream with one file per latent
	$(BIN)/python -m tests.bench.pool $(ARGS)
	$(BIN)/python -m tests.bench.loader $(HELP)

bench-eval: $(READY) ## the evaluation part of make bench, and its memory over 10,000 images
	$(BIN)/python -m tests.bench.evaluation $(ARGS)

tensorboard: $(READY) ## show the runs in TensorBoard
	$(BIN)/tensorboard --logdir runs

docs: $(READY) ## build the documentation's site into build/site; checks every link and anchor
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean $(ARGS)
	@echo "open build/site/index.html, or read it while you write: $(BIN)/python -m mkdocs serve"

gallery: $(READY) ## take the screenshots of docs/gallery.md from a finished `make demo`; needs Debian's chromium
	$(BIN)/python docs/site/gallery.py runs/demo docs/gallery

layout: $(READY) ## write docs/layout.md, the tree of the packages, from docstrings
	@$(BIN)/python -m tests.support.layout

digits-flow-teacher: $(READY) ## train the embedded flow-matching teacher from random weights, into runs/digits-flow-teacher
	$(BIN)/python -m randcond.data.digits.train_flow_teacher runs/digits-flow-teacher

digits-teacher: $(READY) ## train the embedded teacher and judge from random weights, into runs/digits-teacher
	$(BIN)/python -m randcond.data.digits.train_teacher runs/digits-teacher
