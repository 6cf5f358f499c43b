"""One experiment = one strict YAML: dataclasses, composition of bases, overrides, errors that name the key.

In: an experiment's name or file and `key=value` overrides. Out: a frozen `Config`.
A leaf: imports nothing of ours and no torch, so that a login node reads a configuration in a fraction of a second.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

PACKAGE = Path(__file__).resolve().parent.parent
EXPERIMENTS = PACKAGE / "launch" / "experiments"
TABLES = PACKAGE / "launch" / "tables"

STRICT = ConfigDict(extra="forbid", strict=True)
Settings = TypeVar("Settings")


@dataclass(frozen=True, config=STRICT)
class Teacher:
    """The frozen diffusion model that is distilled."""

    path: str  # a diffusers folder, a hub id, or package:... for one that ships with randcond
    dtype: Literal["fp32", "bf16"] = "bf16"


@dataclass(frozen=True, config=STRICT)
class Student:
    """The small U-Net that is trained."""

    rule: str = "block-base"  # a name in model_zoo/students.py, see `randcond students`
    init: Literal["random", "teacher"] = "teacher"
    seed: int = 0  # of the random initialisation


@dataclass(frozen=True, config=STRICT)
class Cache:
    """N captions whose latents the teacher draws once (paper Sec. 3.2), or N real images (Table 1, rows 3 and 6)."""

    size: int  # N: how many captions are drawn, or images encoded
    captions: list[str] = dataclasses.field(default_factory=list)  # caption sources: txt, csv, jsonl or parquet files
    images: str | None = None  # instead of captions: an image folder with captions, or WebDataset tars of pairs
    resolution: int | None = None  # pixels of an image's shorter side before its middle is encoded; null: the teacher's
    exclude: list[str] = dataclasses.field(default_factory=list)  # words whose captions get no image (Table 2)
    seed: int = 0
    sampler: Literal["ddim", "teacher"] = "ddim"
    steps: int = 25
    guidance: float = 7.5
    batch: int = 32  # compute batch: fixed chunks by caption id, the last one padded
    shard_size: int = 1024  # samples in one WebDataset shard
    local: str = "~/.cache/randcond"  # where the shards of a cache on a server (paths.cache: a URL) are copied to
    local_gb: float = 50.0  # room for them; where all have room, samples come in any order, else window by window


@dataclass(frozen=True, config=STRICT)
class Pool:
    """The extra texts of the caption pool; the pool is the cached captions plus these."""

    sources: list[str] = dataclasses.field(default_factory=list)  # files, folders, globs or URLs: parquet, csv, ...
    min_length: int = 1  # characters of a caption
    max_length: int = 1000  # 0: any
    nsfw: list[str] = dataclasses.field(default_factory=list)  # accepted values of column NSFW, e.g. [UNLIKELY]
    min_similarity: float = 0.0  # of column similarity (LAION: CLIP's, of caption and image); 0: not asked for
    min_width: int = 0  # of column WIDTH, pixels of the image
    min_height: int = 0


@dataclass(frozen=True, config=STRICT)
class Conditioning:
    """Random conditioning (paper Sec. 3.3): which caption a noised latent is shown with."""

    p: str = "exponential"  # p(t) of Table C: a name in data/conditioning.py
    p_args: dict[str, float] = dataclasses.field(default_factory=dict)  # its parameters, e.g. {lam: 5}
    null: float = 0.1  # share of empty captions, drawn after the replacement
    # teacher: what its pipeline takes as unconditional (SDXL: zeros); empty: the encoding of ""
    null_embedding: Literal["teacher", "empty"] = "teacher"


@dataclass(frozen=True, config=STRICT)
class Losses:
    """Weights of the losses in train/losses.py; 0 leaves one out."""

    output: float = 1.0  # Eq. 1
    feature: float = 1.0  # Eq. 2
    task: float = 0.0  # L_DDPM on the pairs that kept their caption
    spatial: float = 0.0  # SLIM's L_spatial
    frequency: float = 0.0  # SLIM's L_freq


@dataclass(frozen=True, config=STRICT)
class Train:
    """Optimisation (paper Sec. 4.2)."""

    steps: int = 125_000
    global_batch: int = 256
    lr: float = 5e-5
    warmup: int = 0
    betas: list[float] = dataclasses.field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 1e-2
    eps: float = 1e-8
    grad_clip: float = 1.0  # largest norm of the gradient; 0: as it is
    ema_decay: float = 0.9999  # the ceiling of min(ema_decay, (1 + n) / (10 + n))
    losses: Losses = dataclasses.field(default_factory=Losses)
    seed: int = 0
    workers: int = 2  # loader processes per rank
    log_every: int = 50
    checkpoint_every: int = 25_000
    keep_checkpoints: int = 3  # the newest ones
    keep_every: int = 0  # steps whose multiples are kept for good; 0: none
    sample_every: int = 10_000  # steps between teacher-student sample grids; 0 turns them off
    skip_nonfinite: int = 0  # how many steps whose gradient is not finite are left out before one stops the run
    log_samples: bool = False  # which samples each step saw: samples/rank-NNNN.jsonl
    profile: list[int] = dataclasses.field(default_factory=list)  # [first, last] step of a torch profiler trace


@dataclass(frozen=True, config=STRICT)
class Engine:
    """How the step is distributed."""

    kind: Literal["deepspeed", "fsdp"] = "deepspeed"
    zero_stage: Literal[0, 1, 2, 3] = 1  # deepspeed: what is sharded: nothing, optimizer, + gradients, + weights
    sharding: Literal["full", "grad_op", "hybrid"] = "full"  # fsdp: as ZeRO-3, as ZeRO-2, ZeRO-3 within groups
    shard_group: int | None = None  # ranks of one group of a hybrid; null: those of one host
    precision: Literal["fp32", "bf16"] = "bf16"
    processes: int = 1  # ranks on this machine when no host file is given
    threads: int | None = None  # CPU threads per rank; null leaves torch's default
    micro_batch: int | None = None  # samples per rank and forward; null: global_batch / ranks
    attention: Literal["auto", "sdpa", "xformers"] = "auto"  # auto: the faster of the two, by a probe at start
    compile: bool = False  # torch.compile of the repeated transformer blocks
    activation_checkpointing: bool = False  # less memory for a third more student compute
    teacher: Literal["replicated", "sharded"] = "replicated"  # sharded: by FSDP2, where it does not fit beside the rest
    heartbeat: float = 60.0  # seconds without a sign of life from a rank that end the job
    timeout: float = 1800.0  # seconds without progress of any rank that end the job: compilation takes minutes
    peak_tflops: float | None = None  # dense bf16 rate of one GPU, for MFU; null: known by the GPU's name


@dataclass(frozen=True, config=STRICT)
class Eval:
    """Generation and scoring of a trained student and its teacher."""

    captions: list[str]  # caption sources; captions naming a word of cache.exclude count as unseen
    size: int = 200  # captions drawn from each of seen and unseen
    sampler: Literal["ddim", "teacher"] = "ddim"
    steps: int = 25
    guidance: float = 7.5
    batch: int = 32
    seed: int = 1
    weights: Literal["raw", "ema"] = "raw"


@dataclass(frozen=True, config=STRICT)
class Paths:
    """Where artefacts are kept; relative paths start at the working directory."""

    cache: str
    pool: str
    run: str
    reference: str  # the teacher's evaluation, shared by every experiment of the same protocol


@dataclass(frozen=True, config=STRICT)
class Config:
    """One experiment, resolved."""

    name: str
    teacher: Teacher
    student: Student
    cache: Cache
    pool: Pool
    conditioning: Conditioning
    train: Train
    engine: Engine
    eval: Eval
    paths: Paths
    on_error: Literal["stop", "skip"] = (
        "stop"  # skip: damaged shards, images and caption files are left out and counted
    )

    def __post_init__(self) -> None:
        positive = {
            "cache.size": self.cache.size,
            "cache.steps": self.cache.steps,
            "cache.batch": self.cache.batch,
            "cache.shard_size": self.cache.shard_size,
            "train.steps": self.train.steps,
            "train.global_batch": self.train.global_batch,
            "train.log_every": self.train.log_every,
            "train.checkpoint_every": self.train.checkpoint_every,
            "train.keep_checkpoints": self.train.keep_checkpoints,
            "engine.processes": self.engine.processes,
            "eval.size": self.eval.size,
            "eval.steps": self.eval.steps,
            "eval.batch": self.eval.batch,
        }
        for key, value in positive.items():
            if value < 1:
                raise ValueError(f"{key}: must be at least 1, got {value}")
        if self.engine.kind == "deepspeed" and self.engine.zero_stage == 0 and self.engine.precision == "bf16":
            raise ValueError(
                "engine.zero_stage: DeepSpeed's stage 0 would add up gradients in bf16; "
                "take stage 1 (the same numbers, less memory), or engine.precision=fp32"
            )
        if self.engine.micro_batch is not None and self.engine.micro_batch < 1:
            raise ValueError(f"engine.micro_batch: must be at least 1 or null, got {self.engine.micro_batch}")
        if not 0 <= self.conditioning.null <= 1:
            raise ValueError(f"conditioning.null: a share between 0 and 1, got {self.conditioning.null}")
        weights = dataclasses.asdict(self.train.losses)  # type: ignore[call-overload]
        for name, weight in weights.items():
            if not weight >= 0:
                raise ValueError(f"train.losses.{name}: a weight must be at least 0, got {weight}")
        if not any(weights.values()):
            raise ValueError("train.losses: every weight is 0, nothing would be learned")
        if self.train.skip_nonfinite and self.engine.kind == "deepspeed" and self.engine.zero_stage == 0:
            raise ValueError("train.skip_nonfinite: DeepSpeed's stage 0 can't leave a step out; take stage 1 or fsdp")
        if self.train.profile and not (
            len(self.train.profile) == 2 and 1 <= self.train.profile[0] <= self.train.profile[1]
        ):
            raise ValueError(f"train.profile: [first, last] step of the trace, got {self.train.profile}")
        for name, seconds in (("heartbeat", self.engine.heartbeat), ("timeout", self.engine.timeout)):
            if seconds < 1:
                raise ValueError(f"engine.{name}: at least a second, got {seconds}")
        if self.train.grad_clip < 0:
            raise ValueError(f"train.grad_clip: a norm, or 0 for none, got {self.train.grad_clip}")
        if bool(self.cache.captions) == bool(self.cache.images):
            raise ValueError(
                "cache.captions: captions to draw or cache.images, real ones to encode: give one of the two"
            )
        if len(self.train.betas) != 2:
            raise ValueError(f"train.betas: two numbers, got {self.train.betas}")
        if self.cache.shard_size % self.cache.batch:
            raise ValueError(
                f"cache.shard_size: must be a multiple of cache.batch ({self.cache.batch}), "
                f"so that no compute batch crosses a shard; got {self.cache.shard_size}"
            )


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats (PyYAML reads 5e-5 as a string), and a key written twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise ValueError(f"line {node.start_mark.line + 1}: key {key!r} is written twice")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping; raises ValueError naming the file when it is broken or no mapping."""
    try:
        data = yaml.load(path.read_text(), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(data, dict):
        raise ValueError(f"{path}: expected `key: value` lines, found {type(data).__name__}")
    return data


def experiment_names() -> list[str]:
    """The experiments that ship with randcond, one per launch/experiments/*.yaml."""
    return sorted(path.stem for path in EXPERIMENTS.glob("*.yaml"))


def table_names() -> list[str]:
    """The tables (sets of experiments compared in one report), one per launch/tables/*.yaml."""
    return sorted(path.stem for path in TABLES.glob("*.yaml"))


def find_experiment(name: str) -> Path:
    """The YAML file of an experiment given by name or by path; raises ValueError with the nearest names."""
    given = Path(name)
    if given.suffix in {".yaml", ".yml"}:
        if given.is_file():
            return given
        raise ValueError(f"no experiment file {name}")
    path = EXPERIMENTS / f"{name}.yaml"
    if name in table_names():
        arms = ", ".join(load_table(name).arms.values())
        raise ValueError(f"{name} is a table: `randcond run` takes it, a single stage takes its experiments: {arms}")
    if not path.is_file():
        raise ValueError(f"unknown experiment {name!r}{_suggest(name, experiment_names())}")
    return path


@dataclasses.dataclass(frozen=True)
class Table:
    """Experiments whose scores stand in one report."""

    name: str
    title: str
    claim: str  # what the table shows, in a sentence or two
    takes: str  # how long it takes, on what
    report: str  # the folder of its report
    next: list[str]  # commands to try after it
    arms: dict[str, str]  # row name -> experiment


def load_table(name: str) -> Table:
    """A table of launch/tables by name; raises ValueError when its keys are wrong."""
    path = TABLES / f"{name}.yaml"
    data = {"name": name, **read_yaml(path)}
    fields = {field.name for field in dataclasses.fields(Table)}
    if set(data) != fields:
        wrong = sorted(set(data) ^ fields)
        raise ValueError(f"{path}: keys must be {sorted(fields - {'name'})}; wrong or missing: {wrong}")
    return Table(**data)


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key, anything else above replaces what is below."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _compose(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The file over its bases; `base:` names one file or a list, relative to this file or to experiments/base."""
    if path in seen:
        raise ValueError(f"{path}: is its own base, by way of {seen[-1]}")
    data = read_yaml(path)
    bases = data.pop("base", [])
    below: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        places = [path.parent / f"{base}.yaml", EXPERIMENTS / "base" / f"{base}.yaml"]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise ValueError(f"{path}: base {base!r} not found; looked for {' and '.join(map(str, places))}")
        below = _merge(below, _compose(found, (*seen, path)))
    return _merge(below, data)


def load_config(name: str, overrides: Sequence[str] = ()) -> Config:
    """Resolves an experiment and its `section.key=value` overrides; raises ValueError naming file and key."""
    path = find_experiment(name)
    data = _compose(path)
    data.setdefault("name", path.stem)
    where = str(path)
    for override in overrides:
        data = _merge(data, _read_override(override, "section.key=value, e.g. train.steps=100"))
        where = f"{path} and the command line"
    return _parse(Config, data, where)


def read_settings(kind: type[Settings], words: Sequence[str]) -> Settings:
    """A tool's settings out of `key=value` words, as strict as an experiment's; raises ValueError naming the key."""
    data: dict[str, Any] = {}
    for word in words:
        data = _merge(data, _read_override(word, "key=value"))
    return _parse(kind, data, "the command line")


def _read_override(word: str, form: str) -> dict[str, Any]:
    key, found, text = word.partition("=")
    if not found:
        raise ValueError(f"override {word!r} is not of the form {form}")
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"override {word!r}: {error}") from None
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def _parse(kind: type[Settings], data: dict[str, Any], where: str) -> Settings:
    try:
        # Strict mode takes nested mappings only from JSON.
        return TypeAdapter(kind).validate_json(json.dumps(data, default=str))
    except ValidationError as error:
        raise ValueError("\n".join(_explain(kind, problem, where) for problem in error.errors())) from None


def _explain(kind: Any, problem: Any, where: str) -> str:
    """One pydantic error as a line that names file and key and says what would do."""
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "unexpected_keyword_argument":
        section: Any = kind
        for part in problem["loc"][:-1]:
            section = {field.name: field.type for field in dataclasses.fields(section)}[str(part)]
        known = [field.name for field in dataclasses.fields(section)]
        return f"{where}: {key}: unknown key{_suggest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"{where}: {key}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where}: {key}: {message}, got {problem['input']!r}" if key else f"{where}: {message}"


def _suggest(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(known)}"


def load_arms(name: str, overrides: Sequence[str] = ()) -> dict[str, Config]:
    """The experiments of a table by name, each with the overrides.

    Raises ValueError naming an override of a key in which the arms differ: it would make them one.
    """
    experiments = list(load_table(name).arms.values())
    plain = [to_dict(load_config(experiment)) for experiment in experiments]
    for override in overrides:
        section, _, key = override.partition("=")[0].partition(".")
        values = [arm.get(section, {}).get(key) for arm in plain if isinstance(arm.get(section), dict)]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{section}.{key} is what the arms of {name} differ in; override it for one of its experiments: "
                f"{', '.join(experiments)}"
            )
    return {experiment: load_config(experiment, overrides) for experiment in experiments}


def to_dict(config: Config) -> dict[str, Any]:
    """The resolved configuration as plain data, in the order of the sections."""
    return dataclasses.asdict(config)  # type: ignore[call-overload]


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML; it loads back to the same configuration."""
    return yaml.safe_dump(to_dict(config), sort_keys=False)


def eval_folder(config: Config, weights: str | None = None) -> Path:
    """Where the student's evaluation is kept: raw and EMA weights apart (default: those of `eval.weights`)."""
    return Path(config.paths.run) / f"eval-{weights or config.eval.weights}"


def student_folder(config: Config, weights: str) -> Path:
    """Where a run exports its student with raw or ema weights."""
    return Path(config.paths.run) / {"raw": "student", "ema": "student_ema"}[weights]


def resolve_path(path: str) -> Path:
    """A path of the configuration; `package:` stands for the folder randcond is installed in."""
    if path.startswith("package:"):
        return PACKAGE / path.removeprefix("package:")
    return Path(path)


def is_url(path: str) -> bool:
    """Whether a path is an address that fsspec opens (http, s3, ...)."""
    return "://" in path


def resolve_sources(sources: Sequence[str]) -> list[str]:
    """Caption sources of the configuration: URLs as they are, `package:` as in `resolve_path`."""
    return [str(resolve_path(source)) if source.startswith("package:") else source for source in sources]
