"""Tests of the command line: help, dry runs, launch commands, and mistakes that are found before any work."""

import socket
import subprocess
from pathlib import Path

import pytest

from randcond.launch.cluster.commands import plan, with_free_port
from randcond.launch.cluster.place import Place
from randcond.train import dryrun
from tests.support.demo import randcond


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "train", "demo-with", "--dryrun"], "unknown flag --dryrun; did you mean '--dry-run'"),
        (["run", "train", "demo-with", "--gpu", "2"], "unknown flag --gpu; did you mean '--gpus'"),
        (["run", "train", "demo-with", "--gpus"], "--gpus needs a value"),
        (["run", "train", "demo-with", "--gpus", "two"], "whole number"),
        (["run", "trane", "demo-with"], "unknown stage 'trane'; did you mean 'train'?"),
        (["run", "xyz", "demo-with"], "unknown stage 'xyz'; known: check, pool, cache, train, eval, report, all"),
        (["run", "demo-with", "all"], "unknown stage 'demo-with'; the stage comes first: all demo-with"),
        (["run", "train"], "experiment is missing"),
        (["tune", "demo-with", "--largest", "0"], "--largest: must be at least 1, got 0"),
        (["run", "pool", "demo-with", "pool.source=[x]"], "pool.source: unknown key; did you mean 'sources'"),
        (["train", "mine.yaml"], "train is a stage: `randcond run train mine.yaml`"),
        (["run", "train", "demo-with", "train.lr", "=", "1"], "override 'train.lr' is not of the form"),
        (["rum", "train", "demo-with"], "unknown command 'rum'; did you mean 'run'"),
        (["pool", "bild", "out"], "unknown command pool 'bild'; did you mean 'build'"),
        (["pool", "build", "out", "x.txt", "--sorce", "y"], "unknown flag --sorce"),
        (["pool", "info", "out", "more"], "unexpected argument: 'more';"),
        (["run", "train", "demo-with", "--hostfile", "hots"], "--hostfile: no such file: hots"),
        (["run", "train", "demo-with", "--nodes", "2"], "--nodes needs a --hostfile"),
        (["run", "train", "demo-with", "--gpus", "0"], "must be at least 1"),
        (
            ["run", "all", "demo", "--launcher", "slurm", "--gpus", "1", "--sbatch", "-C 'x"],
            "--sbatch: No closing quotation",
        ),
        (["run", "all", "demo", "paths.run=runs/x"], "paths.run: the rows of demo differ in it"),
        (["run", "all", "demo", "conditioning.p=sigmoid"], "conditioning.p: the rows of demo differ in it"),
    ],
)
def test_a_misspelt_word_ends_before_any_file_is_written(tmp_path: Path, words: list[str], said: str) -> None:
    done = randcond(tmp_path, *words, code=2)
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_the_traceback_behind_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANDCOND_TRACEBACK", "1")
    done = randcond(tmp_path, "run", "trane", "demo-with", code=2)
    assert "Traceback" in done.stderr and "unknown stage 'trane'" in done.stderr


def test_a_check_prints_what_each_stage_takes_and_runs_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: digits\nname: mine\n")
    assert "no experiment file main.yaml; did you mean 'mine.yaml'?" in randcond(
        tmp_path, "run", "check", "main.yaml", code=2
    ).stderr  # fmt: skip
    (tmp_path / "mine.yaml").unlink()
    said = randcond(tmp_path, "run", "check", "demo").stdout
    assert "memory, GB" in said and "train demo-with" in said and "train demo-without" in said
    assert list(tmp_path.iterdir()) == []
    said = randcond(tmp_path, "run", "check", "demo", "teacher.path=nowhere", code=2).stderr
    assert "no teacher at nowhere" in said and "run the same command" not in said


def test_help_teaches(tmp_path: Path) -> None:
    overview = randcond(tmp_path, "--help").stdout
    assert "pool -> cache -> train -> eval -> report" in overview
    assert "demo-with" in overview
    assert "--dry-run" in randcond(tmp_path, "run", "--help").stdout
    assert "duplicate" in randcond(tmp_path, "pool", "build", "--help").stdout


def test_dry_run_prints_configuration_and_commands_and_writes_nothing(tmp_path: Path) -> None:
    said = randcond(tmp_path, "run", "--dry-run", "all", "demo", "train.steps=7", "--gpus", "4").stdout
    assert said.count("steps: 7\n") == 2
    assert said.count("--num_accelerators 4") == 5  # one cache, two trainings, two evaluations
    assert randcond(tmp_path, "run", "--dry-run", "all", "demo", "train.steps=7", "--gpus", "04").stdout == said
    assert "-m randcond.eval.report demo train.steps=7" in said
    assert list(tmp_path.iterdir()) == []


def test_dry_run_on_a_host_file(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("one slots=8\ntwo slots=8\n")
    words = ["run", "train", "demo-with", "--hostfile", "hosts", "--nodes", "2", "--gpus", "8", "--dry-run"]
    said = randcond(tmp_path, *words).stdout
    launched = "--hostfile hosts --force_multi --num_nodes 2 --num_gpus 8 --module randcond.train"
    assert f"{launched} runs/demo/with/launch/train.yaml" in said  # no argument that pdsh could split
    assert "--num_gpus 8 --master_port 29600 --module" in randcond(tmp_path, *words, "--master-port", "29600").stdout
    (tmp_path / "hosts").write_text("one slots=8\ntwo slots=4\n")
    hosts = str(tmp_path / "hosts")
    for place, ranks in (
        (Place(hosts), 12),
        (Place(hosts, nodes=1), 8),
        (Place(hosts, gpus=2), 4),
        (Place(launcher="slurm", nodes=3, gpus=8), 24),
        (Place(launcher="slurm", nodes=3), 3),
        (Place(gpus=3), 3),
    ):
        check, *_ = plan("all", "table1", [], place)  # the check before all work knows the world size
        assert check.label == "check" and check.command[-1] == f"--ranks={ranks}"
    check, *_ = plan("all", "table1", [], Place())
    assert "--ranks" not in check.command[-1]


def test_a_port_is_chosen_when_a_step_starts() -> None:
    """The plan has no port. Hours may pass before a step starts, and another program may take the port by then."""
    steps = plan("all", "demo", [], Place(gpus=2))
    assert [step.label for step in steps if step.needs_port] == [step.label for step in steps if step.distributed] != []
    for step in steps:
        assert "--master_port" not in step.command
        if step.needs_port:
            words = with_free_port(step).command
            at = words.index("--master_port")
            assert words[at + 2] == "--module" and words[:at] + words[at + 2 :] == step.command
            with socket.socket() as ours:
                ours.bind(("127.0.0.1", int(words[at + 1])))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--hostfile", "none"], "--hostfile: no such file: none"),
        (["--hostfile", "wrong"], "wrong, line 2: expected `name slots=8`, found 'two slots'"),
        (["--hostfile", "twice"], "twice, line 2: host one is listed twice"),
        (["--hostfile", "hosts", "--nodes", "3"], "--nodes: is 3, but hosts lists only 2 hosts"),
        (["--hostfile", "hosts", "--launcher", "slurm"], "--hostfile is for the deepspeed launcher"),
        (["--nodes", "2"], "--nodes needs a --hostfile"),
        (["--nodes", "2", "--launcher", "torchrun"], "needs --rdzv HOST:PORT"),
        (["--launcher", "torchrun", "--rdzv", "one:1"], "--rdzv goes with --launcher torchrun and --nodes"),
        (["--rdzv", "one:1"], "--rdzv goes with --launcher torchrun and --nodes"),
        (["--master-addr", "one"], "--master-addr and --master-port go with a --hostfile"),
        (["--hostfile", "hosts", "--gpus", "9"], "--gpus: is 9, but one has slots=8 in hosts"),
        (["--launcher", "mpi"], "--launcher: expected one of deepspeed, torchrun, slurm, got 'mpi'"),
        (["--sbatch", "--time=1"], "--sbatch is for --launcher slurm"),
        (["--gpus", "0"], "--nodes and --gpus must be at least 1"),
    ],
)
def test_a_wrong_place_is_named(tmp_path: Path, flags: list[str], said: str) -> None:
    (tmp_path / "hosts").write_text("# two of them\none slots=8\ntwo slots=8 # the other\n")
    (tmp_path / "wrong").write_text("one slots=8\ntwo slots\n")
    (tmp_path / "twice").write_text("one slots=8\none slots=8\n")
    assert said in randcond(tmp_path, "launch", "train", "demo-with", *flags, code=2).stderr


def test_a_job_script_resolves_and_bash_reads_it(tmp_path: Path) -> None:
    """The arms of a table become a job array. A path with quotes reaches srun as one argument."""
    words = [
        "launch",
        "train",
        "--launcher",
        "slurm",
        "--nodes",
        "2",
        "--gpus",
        "8",
        "--dry-run",
        "--max-restarts",
        "3",
    ]
    said = randcond(tmp_path, *words, "demo", "--sbatch", "--partition=gpu --time=24:00:00").stdout
    script = said[said.index("#!/bin/bash") :]
    for line in ("nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "array=0-1", "partition=gpu", "signal=USR1@120"):
        assert f"#SBATCH --{line}\n" in script
    assert "#SBATCH --requeue\n" in script and "-le 3 ]" in script
    assert "srun --kill-on-bad-exit=1 --wait=0 " in script  # finished ranks wait for the one that scores
    assert "#SBATCH --cpus-per-task=2\n" in script  # Slurm's default is 1, too few for loaders and writers
    more = randcond(tmp_path, *words, "demo", "--sbatch", "--cpus-per-gpu=12").stdout  # sbatch refuses both
    assert "#SBATCH --cpus-per-gpu=12\n" in more and "cpus-per-task" not in more
    pool = randcond(tmp_path, "launch", "pool", *words[2:], "demo").stdout  # one process, without a GPU
    assert "#SBATCH --nodes=1\n" in pool and "#SBATCH --ntasks-per-node=1\n" in pool and "gpus" not in pool
    without = [*words[:6], *words[8:]]
    assert (
        "--gpus" not in without
        and "without --gpus the job requests no GPU; train runs on CPUs" in randcond(tmp_path, *without, "demo").stderr
    )
    said = randcond(tmp_path, *words, "demo", "--sbatch", '--comment="two words"').stdout
    assert "#SBATCH '--comment=two words'\n" in said
    nothing = randcond(tmp_path, "launch", "train", "figureA", "--launcher", "slurm", "--dry-run", code=2)
    assert "nothing to run on a cluster" in nothing.stderr
    one = randcond(tmp_path, *words, "demo-with", 'paths.run=it\'s "one" run').stdout
    assert "--array" not in one
    (tmp_path / "job").write_text(one[one.index("#!/bin/bash") :])
    stubs = 'srun() { printf "%s\\n" "${@: -1}"; [[ "$*" == *dryrun* ]] || return 75; }; '
    stubs += "scontrol() { [ $1 = requeue ] && echo requeued $2; }; "
    run = f'{stubs} sleep() {{ :; }}; export SLURM_JOB_ID=7; . "{tmp_path / "job"}"'
    done = subprocess.run(["bash", "-c", run], capture_output=True, text=True)
    one_run = 'it\'s "one" run/launch/train.yaml'
    assert done.stdout.splitlines() == ["--ranks=16", one_run, "requeued 7"] and done.returncode == 75
    # A lost rank requeues the job at most three times; preemptions don't count. Of an array, only the task is requeued.
    (tmp_path / 'it\'s "one" run/launch').mkdir(parents=True, exist_ok=True)
    codes = []
    for code in (69, 75, 69, 69, 75, 69):
        stubs = f"srun() {{ return {code}; }}; scontrol() {{ echo $2; }}; sleep() {{ :; }}; SLURM_RESTART_COUNT=9"
        task = "SLURM_JOB_ID=9 SLURM_ARRAY_JOB_ID=9 SLURM_ARRAY_TASK_ID=1"
        run = f'cd() {{ :; }}; {stubs}; export {task}; . "{tmp_path / "job"}"'
        codes.append(subprocess.run(["bash", "-c", run], capture_output=True, text=True, cwd=tmp_path).stdout.strip())
    assert codes == ["9_1", "9_1", "9_1", "9_1", "9_1", ""]


def test_torchrun_starts_the_ranks(tmp_path: Path) -> None:
    words = ["launch", "train", "demo-with", "--launcher", "torchrun", "--dry-run", "--gpus", "4"]
    assert "torchrun --standalone --nproc-per-node=4 -m randcond.train demo-with" in randcond(tmp_path, *words).stdout
    said = randcond(tmp_path, *words, "--nodes", "2", "--rdzv", "one:29500").stdout
    assert "--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=one:29500" in said


def test_pool_tools(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a cat\n\n a  cat \nein Hühnerei\n")
    (tmp_path / "b.csv").write_text("id,caption\n1,a dog\n2,a cat\n")
    said = randcond(tmp_path, "pool", "build", "p", "a.txt", "b.csv").stdout
    assert "3 captions at p; dropped: 2 duplicate, 1 empty" in said
    assert "a.txt, b.csv" in randcond(tmp_path, "pool", "info", "p").stdout
    drawn = randcond(tmp_path, "pool", "sample", "p", "--n", "5").stdout.splitlines()
    assert sorted(drawn) == ["a cat", "a dog", "ein Hühnerei"]


def test_empty_or_missing_captions_end_before_any_artefact(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    for source, said in (
        ("empty.txt", "pool.sources: empty.txt contains no captions"),
        ("gone.txt", "gone.txt: no such file"),
    ):
        done = randcond(tmp_path, "run", "pool", "demo-with", f"pool.sources=[{source}]", code=2)
        assert said in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("eval.size=400", "eval.size: is 400, but the sources of eval.captions hold only 320 unseen captions"),
        ("cache.size=99999", "cache.size: is 99999, but the sources contain only 2880 captions (320 more"),
        ("cache.exclude=[tree]", "cache.exclude: no caption contains 'tree'"),
        ("train.global_batch=63", "63 does not divide over 2 ranks"),
        ("cache.size=50", "train.global_batch: 64 is larger than cache.size (50)"),
        ("teacher.path=/nowhere", "no teacher at /nowhere"),
    ],
)
def test_what_is_checked_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    """Runs the check that `run all` begins with, in this process."""
    monkeypatch.chdir(tmp_path)
    check, *_ = plan("all", "demo-with", [override], Place())
    with pytest.raises(SystemExit) as ended:
        dryrun.main(check.command[check.command.index("randcond.train.dryrun") + 1 :])
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_all_is_checked_before_anything_is_made(tmp_path: Path) -> None:
    done = randcond(tmp_path, "run", "all", "demo-with", "cache.size=99999", code=2)
    assert "cache.size: is 99999, but" in done.stderr and not (tmp_path / "runs").exists()
