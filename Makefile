# randcond: `make help` lists the targets.
# Variables: VENV (default .venv), PYTHON, ARGS (section.key=value ...), and where to run: HOSTFILE, NODES,
# GPUS (ranks per host), LAUNCHER (deepspeed, torchrun, slurm), RESTARTS, SBATCH (your site's options).
# WORKERS: processes that make test runs in.
VENV ?= .venv
PYTHON ?= python3
WORKERS ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PACKAGES := randcond.launch randcond.model_zoo randcond.data randcond.train randcond.eval

EXPERIMENTS := $(sort $(basename $(notdir $(wildcard launch/experiments/*.yaml launch/experiments/*/*.yaml))))
EXPERIMENTS := $(filter-out $(basename $(notdir $(wildcard launch/experiments/base/*.yaml))),$(EXPERIMENTS))
TABLES := $(sort $(basename $(notdir $(wildcard launch/tables/*.yaml launch/tables/*/*.yaml))))
TABLES := $(filter-out $(basename $(notdir $(wildcard launch/tables/base/*.yaml))),$(TABLES))
WHERE := $(if $(HOSTFILE),--hostfile $(HOSTFILE)) $(if $(NODES),--nodes $(NODES)) $(if $(GPUS),--gpus $(GPUS)) \
  $(if $(LAUNCHER),--launcher $(LAUNCHER)) $(if $(RESTARTS),--max-restarts $(RESTARTS)) $(if $(SBATCH),--sbatch "$(SBATCH)")

.DEFAULT_GOAL := help
.PHONY: help setup quick test coverage test-all test-endurance test-hosts test-slurm lint format dryrun plan mini mini-results bench bench-start bench-scaling bench-data bench-eval tensorboard docs layout digits-teacher $(EXPERIMENTS) $(TABLES)

help: ## this list
	@echo "make TARGET [HOSTFILE=hosts] [NODES=n] [GPUS=ranks per host] [LAUNCHER=deepspeed|torchrun|slurm] [RESTARTS=n]"
	@echo "            [SBATCH='options of your site'] [VENV=.venv] [ARGS='section.key=value ...']"
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  %-22s%s\n", $$1, $$2}'
	@echo
	@echo "tables (several experiments, one report):"
	@for f in $$(ls launch/tables/*.yaml launch/tables/*/*.yaml | grep -v /base/); do printf '  %-22s%s\n' "$$(basename $$f .yaml)" "$$(sed -n 's/^title: //p' $$f)"; done
	@echo "one row of a table: table1-row5, table3-row2, ...; experiments (pool, cache, train, eval, report):"
	@for f in $$(ls launch/experiments/*.yaml launch/experiments/*/*.yaml | grep -v /base/); do printf '  %-36s%s\n' "$$(basename $$f .yaml)" "$$(sed -n '1s/^# //p' $$f)"; done

setup: $(READY) ## install everything into VENV (done by the other targets when missing)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) launch/prerequisites.py $(VENV)
	@echo "setting up $(VENV): a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock setuptools wheel # build deepspeed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
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

mini: $(READY) ## the paper in miniature, all its tables one after the other: most of a day on two cores
	@for table in $(MINI); do $(BIN)/randcond run all $$table $(WHERE) $(ARGS) || exit $$?; done

mini-results: $(READY) ## keep the reports of the demo and the tables in miniature that are done in launch/tables/results
	@$(BIN)/python -m randcond.eval.report.miniature_results runs runs/mini launch/tables/results

plan: $(READY) ## GPU-hours and disk of every table of the paper, before anyone starts
	@$(BIN)/randcond plan $(ARGS)

NOT_HERE := not slow and not gpu and not hosts and not slurm
QUICK := tests/unit tests/stages/test_older_artefacts.py # of these, the tests without the marker heavy
SPREAD := -n $(WORKERS) --dist worksteal # a process that is done takes tests from the other

quick: $(READY) ## the tests that tell most, two minutes on two cores
	$(BIN)/python -m pytest $(QUICK) $(SPREAD) -m "quick and $(NOT_HERE)" $(ARGS)

test: $(READY) ## the tests that guard a change, 15 minutes on two cores
	$(BIN)/python -m pytest $(SPREAD) -m "$(NOT_HERE)" $(ARGS)

coverage: $(READY) ## how much of the code `make quick` runs, by file
	$(BIN)/python -m pytest $(QUICK) $(SPREAD) -m "quick and $(NOT_HERE)" --cov --cov-report=term $(ARGS)

test-all: $(READY) ## every test that can run on this machine (as root: those on two hosts and Slurm too, which it installs)
	$(BIN)/python -m pytest $(if $(filter 0,$(shell id -u)),,-m "not hosts and not slurm") $(ARGS)

test-endurance: $(READY) ## loss curves on every engine, ten random kill -9, engines and ranks changed on the way, the EMA
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

format: $(READY) ## let ruff put the code in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

dryrun: $(READY) ## resolve and check every experiment, run none
	$(BIN)/python -m randcond.train.dryrun

# ARGS are for a bench's first part; who asks for help gets that of all its parts, and no timing.
HELP := $(filter -h --help,$(ARGS))

bench: $(READY) ## the training step beside the published recipe's and a bare one, caching and evaluation beside the stock tools
	$(BIN)/python -m tests.bench.step $(ARGS)
	$(BIN)/python -m tests.bench.draw $(HELP)
	$(BIN)/python -m tests.bench.evaluation --images 96 --many 0 $(HELP)

bench-start: $(READY) ## what one waits for before the first step, by part
	$(BIN)/python -m tests.bench.startup $(ARGS)

bench-scaling: $(READY) ## what of its traffic each engine hides on two ranks, and the planner's curves to 1,024 GPUs
	$(BIN)/python -m tests.bench.overlap $(ARGS)

bench-data: $(READY) ## 20M captions beside a pandas column, the stream beside a file per latent
	$(BIN)/python -m tests.bench.pool $(ARGS)
	$(BIN)/python -m tests.bench.loader $(HELP)

bench-eval: $(READY) ## evaluation's part of make bench, and its memory over 10,000 images
	$(BIN)/python -m tests.bench.evaluation $(ARGS)

tensorboard: $(READY) ## watch the runs
	$(BIN)/tensorboard --logdir runs

docs: $(READY) ## the API reference, out of docstrings and types, into runs/api
	PYTHONWARNINGS=ignore::UserWarning $(BIN)/pdoc -o runs/api $(PACKAGES)
	@echo "open runs/api/index.html"

layout: $(READY) ## docs/layout.md, the tree of the packages, out of docstrings
	@$(BIN)/python -m tests.support.layout

digits-teacher: $(READY) ## train the embedded teacher and judge from nothing into runs/digits-teacher
	$(BIN)/python -m randcond.data.digits.train_teacher runs/digits-teacher
