"""The `randcond` command: runs stages of experiments, and tools."""

import importlib
import inspect
import os
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import version

from randcond.launch.arguments import call, usage_of
from randcond.launch.cluster.commands import CHOICES, STAGES, check_before, plan, show
from randcond.launch.cluster.jobs import job_script
from randcond.launch.cluster.place import Place
from randcond.launch.cluster.slurm import submit
from randcond.launch.cluster.supervise import run_steps, write_files
from randcond.launch.command_stubs import commands_of, docstring_of
from randcond.launch.config.experiments import experiment_names, table_names, to_yaml
from randcond.launch.config.parsing import near
from randcond.launch.config.paths import EXPERIMENTS
from randcond.launch.config.tables import load_table, runs_of
from randcond.launch.errors import UserError
from randcond.launch.list_command import first_comment
from randcond.launch.machine.launcher_ranks import forget_ranks
from randcond.launch.machine.user_folders import give_user_folders
from randcond.launch.runtime.exit_codes import INTERRUPTED, report_error
from randcond.launch.runtime.logs import PROGRESS, log, start_console
from randcond.launch.runtime.processes import QUIET, name_accelerator
from randcond.launch.runtime.this_command import remember_words

GROUPS = {  # tool group -> module with its functions, imported on use
    "teacher": "randcond.train.tools.teacher_command",
    "pool": "randcond.data.captions.pool_command",
    "cache": "randcond.data.cache.cache_command",
    "concepts": "randcond.data.concepts.concepts_command",
    "datafree": "randcond.data.texts.datafree_command",
    "eval": "randcond.eval.scores.eval_command",
}
TOOLS = {  # tool -> module with the function of the same name, imported on use
    "init": "randcond.train.tools.init_command",
    "config": "randcond.launch.config_command",
    "list": "randcond.launch.list_command",
    "completion": "randcond.launch.completion_command",
    "students": "randcond.model_zoo.students_command",
    "rank": "randcond.train.tools.rank_command",  # called as `randcond students rank`
    "export": "randcond.train.tools.export_command",
    "plan": "randcond.launch.planning.plan_command",
    "tune": "randcond.train.tools.tune_command",
    "fetch": "randcond.data.inputs.fetch_command",
    "report": "randcond.eval.report.report_command",
}


def run(
    stage: str,
    experiment: str,
    *overrides: str,
    hostfile: str | None = None,
    nodes: int | None = None,
    gpus: int | None = None,
    launcher: str | None = None,
    max_restarts: int = 0,
    grace: int = 120,
    master_addr: str | None = None,
    master_port: int | None = None,
    rdzv: str | None = None,
    sbatch: str = "",
    dry_run: bool = False,
) -> None:
    """Runs a stage of an experiment or a table. Finished work is kept, and interrupted work continues.

    `randcond run` and `randcond launch` are the same command.

    stage       check   everything that the stages need is there and fits; prints the memory, disk and time of each
                pool    captions -> memory-mapped caption pool
                cache   teacher -> latents of the cached captions, in WebDataset shards
                train   shards + pool -> student, in diffusers format
                eval    student and teacher -> images -> scores
                report  scores -> Markdown, HTML, JSON and a contact sheet
                all     all of these, in this order; work that is done is not repeated
    experiment  a name (see `randcond --help`), or your own YAML file
    overrides   any key of the YAML: train.steps=100 conditioning.p=sigmoid "cache.exclude=[three,four]"

    --hostfile FILE  run on the hosts of a DeepSpeed host file (lines such as `node1 slots=8`)
    --nodes N        number of hosts; with a host file: its first N
    --gpus N         ranks per host; without a host file: ranks on this machine (default: engine.processes)
    --launcher NAME  deepspeed (default), torchrun, or slurm, which writes an sbatch script and submits it; without
                     it, stages on this machine's CPU are forked from one process that has imported the libraries
    --max-restarts N restart a stage from its last checkpoint, at most N times, if a rank or a host is lost
    --grace N        seconds that a preempted training has to save (default 120); slurm: the training is preempted
                     this long before the time limit
    --master-addr A  deepspeed: address of the first host, if the first one that `hostname -I` prints is wrong
    --master-port N  deepspeed: port of the first host at which the ranks meet (default 29500)
    --rdzv HOST:PORT torchrun on several hosts (--nodes N): the rendezvous; run the same command on each host
    --sbatch OPTIONS slurm: options of your site, e.g. --sbatch "--partition=gpu --time=24:00:00"
    --dry-run        print the resolved configuration and the commands, and run nothing

    On SIGTERM or SIGUSR1 a training saves its current step and ends with exit code 75, so that a scheduler can requeue
    it. Each rank writes its own log file below RUN/logs.

    examples    randcond run all demo
                randcond run train demo-with train.steps=100 paths.run=runs/short
                randcond launch train demo-with --hostfile hosts --nodes 2 --gpus 8 --max-restarts 3
                randcond launch train demo --launcher slurm --nodes 2 --gpus 8 --sbatch "--partition=gpu"
                randcond run all demo --dry-run
    """
    place = Place(
        hostfile, nodes, gpus, launcher or "deepspeed", rdzv, master_addr, master_port, may_fork=launcher is None
    )
    steps = plan(stage, experiment, list(overrides), place)
    checks = check_before(stage, steps, place, experiment, list(overrides))
    is_table = experiment in table_names()
    if sbatch and launcher != "slurm":
        raise UserError("--sbatch is for --launcher slurm")
    if dry_run:
        for each in runs_of(experiment, list(overrides)):
            print(f"# {each.experiment}{f', {each.config.replicate}' if each.config.replicate else ''}, resolved")
            print(to_yaml(each.config))
    if launcher == "slurm":
        if not gpus and any(step.distributed for step in steps):
            print(f"note: without --gpus the job requests no GPU; {stage} runs on CPUs", file=sys.stderr)
        path, text = job_script(stage, experiment, list(overrides), place, steps, checks, sbatch, max_restarts, grace)
        if dry_run:
            print(f"# sbatch {path}\n{text}")
            return
        write_files({path: text})
        for step in steps:
            write_files(step.files)
        submit(path)
        return
    if dry_run:
        print("# commands")
        for step in [*checks, *steps]:
            print(show(step))
        return
    if is_table and stage == "all":
        table = load_table(experiment)
        print(
            f"{table.title}\n\n{table.claim}\n\nTime: {table.takes}. Steps: {len(steps)}. You can stop it at any time"
        )
        print("(Ctrl-C). The same command continues from there.", flush=True)
    if note := give_user_folders():
        log.info(note)
    run_steps([*checks, *steps], max_restarts, grace)


def main(argv: list[str] | None = None) -> None:
    """Entry point of the console script. Exits with code 2 and one line on a user's mistake."""
    start_console()
    words = list(sys.argv[1:] if argv is None else argv)
    remember_words(words)
    try:
        _dispatch(words)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        sys.exit(report_error(error))


def _dispatch(words: list[str]) -> None:
    """Finds the command that the arguments name, and calls it. Raises UserError if there is none."""
    if not words or words[0] in ("--help", "-h", "help"):
        print(_overview())
        return
    if words[0] in ("--version", "-V", "version"):
        print(f"randcond {version('randcond')}")
        return
    name = words.pop(0)
    if name in ("run", "launch"):
        call("randcond", run, words)
        return
    program = "randcond"
    if name == "students" and words[:1] == ["rank"]:
        program, name = "randcond students", words.pop(0)
    if name in TOOLS:
        function = commands_of(TOOLS[name])[name]
        call(program, function, words, lambda: _loaded(TOOLS[name], function.__name__))
        return
    if name in CHOICES and name not in GROUPS:
        raise UserError(f"{name} is a stage: `randcond run {shlex.join([name, *words])}`")
    if name not in GROUPS:
        raise UserError(
            f"unknown command {name!r}{near(name, ['run', 'launch', *GROUPS, *TOOLS])}; see `randcond --help`"
        )
    commands = commands_of(GROUPS[name])
    if not words or words[0] in ("--help", "-h"):
        print(docstring_of(GROUPS[name]))
        for each, function in commands.items():
            first_line = (inspect.getdoc(function) or "").splitlines()[0]
            print(f"\n  randcond {name} {usage_of(function, each)}\n      {first_line}")
        return
    command = words.pop(0)
    if command not in commands:
        raise UserError(f"unknown command {name} {command!r}{near(command, list(commands))}")
    function = commands[command]
    call(f"randcond {name}", function, words, lambda: _loaded(GROUPS[name], function.__name__))


def _loaded(module: str, function: str) -> Callable[..., None]:
    """Imports a command."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    forget_ranks(os.environ)  # a tool is one process, also in the shell of a job with several ranks
    if note := give_user_folders():
        log.info(note, extra=PROGRESS)  # not among the output, which may be piped
    name_accelerator()
    found: Callable[..., None] = getattr(importlib.import_module(module), function)
    return found


def _overview() -> str:
    """Returns the text of `randcond --help`."""
    tables = "\n".join(f"  {name:24}{load_table(name).title}" for name in table_names())
    own = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    experiments = "\n".join(f"  {name:24}{first_comment(name)}" for name in own)
    more = len(experiment_names()) - len(own)
    return f"""randcond: distils a text-to-image diffusion model into a small one, without images (Random Conditioning).

usage: randcond run STAGE EXPERIMENT [section.key=value ...] [--dry-run]     see `randcond run --help`
       randcond launch STAGE EXPERIMENT --hostfile FILE | --launcher slurm  the same command, on many hosts
       randcond init [FILE] [--teacher T] [--captions F] [--hours H]        writes an experiment for your own teacher
       randcond teacher COMMAND ...                                         teachers of your own: import, check
       randcond pool COMMAND ...                                            caption pools: build, info, sample, take
       randcond cache COMMAND ...                                           latent caches: verify, preview, subset
       randcond concepts COMMAND ...                                        unseen concepts: words, split, coco
       randcond datafree COMMAND ...                                        LLM captions: nouns, visual, prompts, sample
       randcond fetch NAME [--from URL|PATH] [--list]                       downloads inputs of full-scale experiments
       randcond eval COMMAND ...                                            statistics of real images: stats
       randcond report NAME ... [--out FOLDER]                              scores beside the paper's, as a page
       randcond plan [EXPERIMENT] [--gpu NAME] [--nodes N] [--sweep]        predicts memory, time and GPU-hours
       randcond tune EXPERIMENT [--what LIST] [--largest N]                 finds the batch sizes that fill this GPU
       randcond students [--teacher NAME] [--json]                          sizes and costs of every student rule
       randcond students rank EXPERIMENT                                    which blocks of a transformer matter most
       randcond list [WORD]                                                 experiments and tables, one a line
       randcond config [KEY] [--schema]                                     keys: type, default, meaning; JSON schema
       randcond export EXPERIMENT [--out FOLDER] [--push OWNER/NAME]        exports a trained student with its scores
       randcond completion bash|zsh                                         a script that completes all this in a shell

stages: {" -> ".join(STAGES)}; or all, or check

tables (several experiments in one report)
{tables}

experiments (launch/experiments/*.yaml; your own YAML file works, too)
{experiments}
and {more} more in its subfolders: the rows of the tables. `randcond run all table1-row5` runs a row by its number.

start with   randcond run all demo              a student learns to draw a digit it never saw, on a CPU
             randcond run all demo --dry-run    prints what that would do"""


if __name__ == "__main__":
    main()
