"""The `randcond` command: stages of experiments, and tools in groups, on fire.

fire calls a command before it notices a flag it does not know, so words are checked against the signature first.
"""

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable

from randcond.launch.cluster.commands import STAGES, plan, show
from randcond.launch.cluster.jobs import job_script
from randcond.launch.cluster.place import Place
from randcond.launch.cluster.slurm import submit
from randcond.launch.cluster.supervise import run_steps, write_files
from randcond.launch.config.experiments import experiment_names, find_experiment, table_names, to_yaml
from randcond.launch.config.paths import EXPERIMENTS
from randcond.launch.config.tables import load_table, runs_of
from randcond.launch.errors import UserError
from randcond.launch.runtime.exit_codes import report_error
from randcond.launch.runtime.logs import start_console
from randcond.launch.runtime.processes import QUIET, name_accelerator

GROUPS = {  # tool group -> the module that holds its functions, imported when it is used
    "pool": "randcond.data.captions.pool_command",
    "cache": "randcond.data.cache.cache_command",
    "concepts": "randcond.data.concepts.concepts_command",
    "datafree": "randcond.data.texts.datafree_command",
    "eval": "randcond.eval.scores.eval_command",
}
TOOLS = {  # tool -> the module that holds the function of its name, imported when it is used
    "students": "randcond.model_zoo.students_command",
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
    launcher: str = "deepspeed",
    max_restarts: int = 0,
    grace: int = 120,
    master_addr: str | None = None,
    master_port: int | None = None,
    rdzv: str | None = None,
    sbatch: str = "",
    dry_run: bool = False,
) -> None:
    """Runs a stage of an experiment or a table; what is already done is kept, and interrupted work goes on.

    `randcond run` and `randcond launch` are the same.

    stage       pool    captions -> memory-mapped caption pool
                cache   teacher -> latents of the cached captions, in WebDataset shards
                train   shards + pool -> student, in diffusers format
                eval    student and teacher -> images -> scores
                report  scores -> Markdown, HTML, JSON and a contact sheet
                all     everything above, in this order
    experiment  a name (see `randcond --help`), or a YAML file of your own
    overrides   any key of the YAML: train.steps=100 conditioning.p=sigmoid "cache.exclude=[three,four]"

    --hostfile FILE  run on the hosts of a DeepSpeed host file (lines such as `node1 slots=8`)
    --nodes N        how many hosts: the first N of the host file, or of Slurm's or torchrun's
    --gpus N         ranks per host; without a host file: ranks on this machine (default: engine.processes)
    --launcher NAME  deepspeed (default); torchrun; slurm: writes an sbatch script and submits it
    --max-restarts N start a stage again, from its last checkpoint, when a rank or a host was lost
    --grace N        seconds a training has to save when it is asked to end; Slurm's notice before the limit (120)
    --master-addr A  deepspeed: the first host's address, where `hostname -I` names another one first
    --master-port N  deepspeed: the port there at which the hosts meet (29500)
    --rdzv HOST:PORT torchrun on several hosts (--nodes N): where they meet; give the same command on each
    --sbatch OPTIONS slurm: your site's options, e.g. --sbatch "--partition=gpu --time=24:00:00"
    --dry-run        print the resolved configuration and the commands, and do nothing

    SIGTERM or SIGUSR1 makes a training save its step and end with code 75: a scheduler's sign to queue it again.
    Ranks write logs of their own into RUN/logs.

    examples    randcond run all demo
                randcond run train demo-with train.steps=100 paths.run=runs/short
                randcond launch train demo-with --hostfile hosts --nodes 2 --gpus 8 --max-restarts 3
                randcond launch train demo --launcher slurm --nodes 2 --gpus 8 --sbatch "--partition=gpu"
                randcond run all demo --dry-run
    """
    place = Place(hostfile, nodes, gpus, launcher, rdzv, master_addr, master_port)
    steps = plan(stage, experiment, list(overrides), place)
    is_table = experiment in table_names()
    if sbatch and launcher != "slurm":
        raise UserError("--sbatch is for --launcher slurm")
    if dry_run:
        for each in runs_of(experiment, list(overrides)):
            print(f"# {each.experiment}{f', {each.config.replicate}' if each.config.replicate else ''}, resolved")
            print(to_yaml(each.config))
    if launcher == "slurm":
        if not gpus and any(step.distributed for step in steps):
            print(f"note: without --gpus the job asks for no GPU: {stage} on CPUs", file=sys.stderr)
        path, text = job_script(stage, experiment, list(overrides), place, steps, sbatch, max_restarts, grace)
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
        for step in steps:
            print(show(step))
        return
    if is_table and stage == "all":
        table = load_table(experiment)
        print(f"{table.title}\n\n{table.claim}\n\nIt takes {table.takes}, in {len(steps)} steps. Stop it whenever you")
        print("like (Ctrl-C): the same command goes on from there.", flush=True)
    run_steps(steps, max_restarts, grace)


def main(argv: list[str] | None = None) -> None:
    """Entry of the console script; exits 2 with one line on the user's mistake."""
    start_console()
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        _dispatch(words)
    except BrokenPipeError:
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        sys.exit(report_error(error))


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("--help", "-h", "help"):
        print(_overview())
        return
    name = words.pop(0)
    if name in ("run", "launch"):
        _call("randcond", run, words)
        return
    if name in TOOLS:
        for variable, value in QUIET.items():
            os.environ.setdefault(variable, value)
        name_accelerator()
        _call("randcond", getattr(importlib.import_module(TOOLS[name]), name), words)
        return
    if name not in GROUPS:
        raise UserError(
            f"unknown command {name!r}{_near(name, ['run', 'launch', *GROUPS, *TOOLS])}; see `randcond --help`"
        )
    tools = importlib.import_module(GROUPS[name])
    commands = {function.__name__: function for function in tools.COMMANDS}
    if not words or words[0] in ("--help", "-h"):
        print(inspect.getdoc(tools))
        for each, function in commands.items():
            first_line = (inspect.getdoc(function) or "").splitlines()[0]
            print(f"\n  randcond {name} {_usage(function, each)}\n      {first_line}")
        return
    command = words.pop(0)
    if command not in commands:
        raise UserError(f"unknown command {name} {command!r}{_near(command, list(commands))}")
    _call(f"randcond {name}", commands[command], words)


def _call(prefix: str, function: Callable[..., None], words: list[str]) -> None:
    """Checks the words against the function's signature, then lets fire parse and call."""
    usage = f"usage: {prefix} {_usage(function, function.__name__)}"
    if {"--help", "-h"} & set(words):
        print(f"{usage}\n\n{inspect.getdoc(function)}")
        return
    parameters = inspect.signature(function).parameters
    flags = {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
    required = [name for name, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty]
    checked, given = [], 0
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            checked.append(word)
            given += 1
            continue
        said, has_value, value = word.partition("=")
        name = said.lstrip("-")
        name = name.replace("-", "_")
        name = f"{name}_" if f"{name}_" in flags else name  # --from: no name for a parameter
        if name not in flags:
            raise UserError(f"unknown flag {word}{_near(name, list(flags))}; {usage}")
        if flags[name].annotation is bool:
            if has_value and value not in ("True", "False"):
                raise UserError(f"{said} takes no value; {usage}")
            value = value or "True"
        elif not has_value:
            value = next(rest, "")
            if not value or (value.startswith("-") and value.lstrip("-").partition("=")[0].replace("-", "_") in flags):
                way = f"; where {value!r} is the value: {said}={value!r}" if value else ""
                raise UserError(f"{said} needs a value{way}; {usage}")
        if "int" in str(flags[name].annotation):
            if not (value.isascii() and value.isdigit()):
                raise UserError(f"{said} needs a whole number, got {value!r}")
            value = str(int(value))  # 08 would stay text
        checked.append(f"--{name}={value}")
    if given < len(required):
        raise UserError(f"{required[given]} is missing; {usage}")
    many = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    places = sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters.values())
    if given > places and not many:
        raise UserError(f"{given - places} words too many; {usage}")

    import fire
    from fire.decorators import SetParseFn

    texts = [name for name, p in parameters.items() if "int" not in str(p.annotation) and p.annotation is not bool]
    parse = SetParseFn(str, *texts)(SetParseFn(str)(function) if many else function)
    if many:  # *words have no name that fire could be told of: their parser is the default one
        numbers = [name for name in flags if name not in texts]
        parse = SetParseFn(fire.parser.DefaultParseValue, *numbers)(parse)
    fire.Fire(parse, command=checked, name=prefix)


def _usage(function: Callable[..., None], name: str) -> str:
    words = [name]
    for parameter in inspect.signature(function).parameters.values():
        flag = f"--{parameter.name.strip('_').replace('_', '-')}"
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"[{parameter.name.upper()} ...]")
        elif parameter.kind is parameter.POSITIONAL_OR_KEYWORD:
            word = parameter.name.upper()
            words.append(word if parameter.default is parameter.empty else f"[{word}]")
        else:
            words.append(f"[{flag}]" if parameter.annotation is bool else f"[{flag} {parameter.name[0].upper()}]")
    return " ".join(words)


def _near(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0].replace('_', '-')!r}?" if near else ""


def _overview() -> str:
    tables = "\n".join(f"  {name:24}{load_table(name).title}" for name in table_names())
    own = sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))
    experiments = "\n".join(f"  {name:24}{_first_comment(name)}" for name in own)
    more = len(experiment_names()) - len(own)
    return f"""randcond: distils a text-to-image diffusion model into a small one, without images (Random Conditioning).

usage: randcond run STAGE EXPERIMENT [section.key=value ...] [--dry-run]     see `randcond run --help`
       randcond launch STAGE EXPERIMENT --hostfile FILE | --launcher slurm  the same, on many hosts
       randcond pool COMMAND ...                                            caption pools: build, info, sample, take
       randcond cache COMMAND ...                                           latent caches: verify, preview, subset
       randcond concepts COMMAND ...                                        unseen concepts: words, split, coco
       randcond datafree COMMAND ...                                        LLM captions: nouns, visual, prompts, sample
       randcond fetch NAME [--from URL|PATH] [--list]                       what the full-scale experiments read
       randcond eval COMMAND ...                                            statistics of real images: stats
       randcond report NAME ... [--out FOLDER]                              scores beside the paper's, as a page
       randcond plan [EXPERIMENT] [--gpu NAME] [--nodes N] [--sweep]        memory, time and GPU-hours, beforehand
       randcond tune EXPERIMENT [--what LIST] [--largest N]                 the batch sizes that fill this GPU
       randcond students [--teacher NAME] [--json]                          sizes and costs of every student rule
       randcond export EXPERIMENT [--out FOLDER] [--push OWNER/NAME]        a trained student, with its scores

stages: {" -> ".join(STAGES)}, or all

tables (several experiments in one report)
{tables}

experiments (launch/experiments/*.yaml; a YAML file of your own works too)
{experiments}
and {more} rows of the tables, in folders there; `randcond run all table1-row5` is one of them, by its table

start with   randcond run all demo              a student learns to draw a digit it never saw, on a CPU
             randcond run all demo --dry-run    what that would do"""


def _first_comment(name: str) -> str:
    line = find_experiment(name).read_text().splitlines()[0]
    return line.removeprefix("# ") if line.startswith("#") else ""


if __name__ == "__main__":
    main()
