"""Odd configurations: YAML that grows or nests without end, surprising numbers, keys and tags."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError

BASE = "base: demo-with\n"
LAUGHS = "a0: &a0 [1, 1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
MANY = ", ".join(["1"] * 1000)

# id -> a YAML file, what the error says after its name
REFUSED: dict[str, tuple[str | bytes, str]] = {
    "aliases of aliases (a billion laughs)": (LAUGHS, "line 6: more than 100,000 values, counting what each alias"),
    "a long list many times": (
        f"long: &long [{MANY}]\nall: [{', '.join(['*long'] * 200)}]\n",
        "line 2: more than 100,000 values",
    ),
    "an alias inside its own value": ("a: &a [*a]\n", r"line 1: \*a does not stand for a complete value before it"),
    "an alias of nothing": ("a: *b\n", r"line 1: \*b does not stand for"),
    "merge keys": ("a: &a {x: 1}\nb:\n  <<: *a\n", "line 3: merge keys"),
    "merge keys of merge keys": ("a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}\n", "line 2: merge keys"),
    "lists in lists": ("a: " + "[" * 100_000, "line 1: lists and mappings are nested deeper than 20 levels"),
    "mappings in mappings": ("{a: " * 50_000, "nested deeper than 20 levels"),
    "dashes behind dashes": ("- " * 50_000 + "x", "nested deeper than 20 levels"),
    "questions behind questions": ("? " * 50_000 + "x", "nested deeper than 20 levels"),
    "more than a million bytes": ("# " + "x" * 1_000_000, "has 1,000,002 bytes, more than 1,000,000"),
    "a hundred thousand keys": ("".join(f"k{n}: 1\n" for n in range(60_000)), "more than 100,000 values"),
    "a key twice": (BASE + "train:\n  steps: 1\n  lr: 1\n  steps: 2\n", "line 5: key 'steps' is written twice"),
    "a key twice, once in quotes": (
        BASE + 'conditioning: {null: 0.1, "null": 0.2}\n',
        "line 2: key 'null' is written twice",
    ),
    "a list as a key": (BASE + "? [a, b]\n: 1\n", "line 2: a key must be a word"),
    "a mapping as a key": (BASE + "{a: 1}: 2\n", "line 2: a key must be a word"),
    "a number as a key": (BASE + "7: 1\n", "7: unknown key"),
    "a key with dots": (BASE + "train.steps: 1\n", r"train\.steps: unknown key"),
    "a Python object": ("a: !!python/object/apply:os.system [ls]\n", "line 1: the tag !!python/object/apply:os.system"),
    "a Python name": ("a: !!python/name:os.system\n", "line 1: the tag !!python/name:os.system is not read"),
    "binary data": ("a: !!binary aGVsbG8=\n", "line 1: the tag !!binary is not read"),
    "a set": ("a: !!set {x, y}\n", "line 1: the tag !!set is not read"),
    "two documents": (BASE + "---\nname: two\n", "expected a single document"),
    "a tab as indentation": (BASE + "train:\n\tsteps: 1\n", "line 3"),
    "a list that is not closed": (BASE + "eval: {of: [teacher\n", "line 3"),
    "a NUL character": (BASE + "name: a\0b\n", "can't be read|control characters|special characters"),
    "UTF-16": ((BASE + "name: é\n").encode("utf-16"), "is not UTF-8"),
    "Latin-1": ((BASE + "name: é\n").encode("latin-1"), "is not UTF-8"),
    "an empty file": ("", "expected `key: value` lines, found NoneType"),
    "a word": ("demo", "expected `key: value` lines, found str"),
    "a list": ("- demo", "expected `key: value` lines, found list"),
    "an octal number": (BASE + "train: {steps: 010}\n", r"train\.steps: .*integer.*got '010'"),
    "a number to the base 60": (BASE + "train: {steps: 1:30}\n", r"train\.steps: .*integer.*got '1:30'"),
    "a fraction to the base 60": (BASE + "train: {lr: 1:30.5}\n", r"train\.lr: .*number.*got '1:30\.5'"),
    "a date as a number": (BASE + "train: {steps: 2001-01-01}\n", r"train\.steps: .*integer.*got '2001-01-01'"),
    "a number of 30 digits": (
        BASE + f"train: {{seed: {10**30}}}\n",
        r"train\.seed: must be at most 9223372036854775807",
    ),
    "a number of 5,000 digits": (BASE + f"train: {{seed: {'1' * 5000}}}\n", "can't be read: .*4300"),
    "not a number": (BASE + "train: {lr: .nan}\n", r"train\.lr: .*finite number"),
    "infinite": (BASE + "train: {lr: -.inf}\n", r"train\.lr: .*finite number"),
    "a section that is a list": (BASE + "train: [1]\n", r"train: .*object"),
    "a base that is a mapping": ("base: {a: 1}\n", "base: expected a name or a list of names"),
    "a lone surrogate": (BASE + 'name: "\\ud800"\n', "line 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_such_yaml_is_refused_with_file_and_place(case: str, tmp_path: Path) -> None:
    content, message = REFUSED[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"(?s)mine\.yaml.*({message})") as error:
        load_config(str(path))
    assert len(str(error.value)) < 1000


HOSTILE = [
    case for case, (content, _) in REFUSED.items() if len(content) > 500 or case.startswith(("aliases", "merge"))
]


@pytest.mark.heavy
def test_hostile_yaml_is_refused_within_bounds_of_memory_and_time(tmp_path: Path) -> None:
    """All of it in one process, which may take 2 GB more memory than it starts with, and 20 s of CPU time."""
    code = (
        "import resource, sys; from randcond.launch.config.experiments import load_config\n"
        "from randcond.launch.errors import UserError\n"
        "at_start = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (at_start + 2 * 10**9,) * 2)\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n"
        "        load_config(path)\n"
        "    except UserError:\n"
        "        print('refused')\n"
    )
    paths = [tmp_path / f"{number}.yaml" for number in range(len(HOSTILE))]
    for path, case in zip(paths, HOSTILE, strict=True):
        content, _ = REFUSED[case]
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    command = [sys.executable, "-c", code, *map(str, paths)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_CPU, (20, 20))  # noqa: E731
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["refused"] * len(HOSTILE)


# id -> overrides, what the error says
OVERRIDES: dict[str, tuple[str, str]] = {
    "a key of a thousand parts": (".".join(["a"] * 1000) + "=1", "a key has at most 20 parts, this one has 1000"),
    "lists in lists": ("train.steps=" + "[" * 10_000, "nested deeper than 20 levels"),
    "an alias bomb": (f"train.betas=[&a [{MANY}], {', '.join(['*a'] * 200)}]", "more than 100,000 values"),
    "an octal number": ("train.steps=010", "got '010'"),
    "a surrogate": ("name=\udcff", "can't be read"),
    "no key": ("=5", "unknown key"),
}


@pytest.mark.parametrize("case", OVERRIDES)
def test_such_overrides_are_refused(case: str) -> None:
    override, message = OVERRIDES[case]
    with pytest.raises(UserError, match=message) as error:
        load_config("demo-with", [override])
    assert len(str(error.value)) < 2000


def test_texts_and_numbers_are_what_is_written(tmp_path: Path) -> None:
    """Words that YAML 1.1 reads as octal numbers, times and dates stay words. A bounded number of aliases is read."""
    path = tmp_path / "mine.yaml"
    path.write_text(
        BASE + "name: =\ncache: {exclude: &words [007, 12:30, 2001-1-1, '010', 1e, 0x]}\n"
        "train: {steps: 1_000, lr: 5e-5, seed: 0x10, betas: [.5, 0.]}\nconditioning: {null: 0.25}\n"
        "pool: {also: *words}\n"
    )
    config = load_config(str(path), ["train.log_samples=yes"])
    assert config.name == "=" and config.conditioning.null == 0.25 and config.train.log_samples is True
    assert config.cache.exclude == config.pool.also == ["007", "12:30", "2001-1-1", "010", "1e", "0x"]
    assert (config.train.steps, config.train.lr, config.train.seed) == (1000, 5e-5, 16)
    assert config.train.betas == [0.5, 0.0]
