"""The sections of an experiment's YAML, their defaults, and what contradicts itself in them.

A leaf without torch, read on login nodes; `launch/config.py` fills it from files and the command line.
"""

import dataclasses
import operator
from typing import Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


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

    size: int = 0  # N: how many captions are drawn, or images encoded
    used: int | None = None  # the first so many of them are trained on (Figure 7); null: all
    captions: list[str] = dataclasses.field(default_factory=list)  # caption sources: txt, csv, jsonl or parquet files
    images: str | None = None  # instead of captions: an image folder with captions, or WebDataset tars of pairs
    resolution: int | None = None  # pixels of an image's shorter side before its middle is encoded; null: the teacher's
    exclude: list[str] = dataclasses.field(default_factory=list)  # words whose captions get no image (Table 2)
    seed: int = 0
    sampler: Literal["ddim", "teacher"] = "ddim"
    steps: int = 25
    guidance: float = 7.5
    batch: int = 32  # compute batch: fixed chunks by caption id, the last one padded
    compile: Literal["none", "blocks", "whole"] = "none"  # torch.compile of the drawing U-Net; whole: the decoder's too
    shard_size: int = 1024  # samples in one WebDataset shard
    local: str = "~/.cache/randcond"  # where the shards of a cache on a server (paths.cache: a URL) are copied to
    local_gb: float = 50.0  # room for them; where all have room, samples come in any order, else window by window


@dataclass(frozen=True, config=STRICT)
class Pool:
    """The extra texts of the caption pool; the pool is the cached captions plus these."""

    sources: list[str] = dataclasses.field(default_factory=list)  # files, folders, globs or URLs: parquet, csv, ...
    size: int | None = None  # how many of their captions are taken, by chance (Table B); null: all
    whole: str = ""  # where the pool of all of them is kept that several experiments take theirs from
    seed: int = 0  # of that choice: the same seed's larger choice holds the smaller one
    also: list[str] = dataclasses.field(default_factory=list)  # sources that are taken whole beside them (Table 2)
    excluded_only: bool = False  # only captions that name a word of cache.exclude (Table 2, row 2)
    min_length: int = 1  # characters of a caption
    max_length: int = 1000  # 0: any
    nsfw: list[str] = dataclasses.field(default_factory=list)  # accepted values of column NSFW, e.g. [UNLIKELY]
    min_similarity: float = 0.0  # of column similarity (LAION: CLIP's, of caption and image); 0: not asked for
    min_width: int = 0  # of column WIDTH, pixels of the image
    min_height: int = 0

    @property
    def read(self) -> list[str]:
        """The sources that captions are taken from: none where none is to be taken."""
        return [] if self.size == 0 else self.sources


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
    keep_every: int = 0  # steps whose multiples are kept for good, a multiple of checkpoint_every; 0: none
    sample_every: int = 10_000  # steps between teacher-student sample grids; 0 turns them off
    eval_every: int = 0  # steps between evaluations by the `eval:` section (supplement K: 25,000); 0 turns them off
    eval_size: int | None = None  # captions of each split then; null: as many as eval.size
    eval_weights: list[Literal["raw", "ema"]] = dataclasses.field(default_factory=lambda: ["raw", "ema"])
    skip_nonfinite: int = 0  # how many steps whose gradient is not finite are left out before one stops the run
    log_samples: bool = False  # which samples each step saw: samples/rank-NNNN.jsonl
    profile: list[int] = dataclasses.field(default_factory=list)  # [first, last] step of a torch profiler trace

    @property
    def kept_for_good(self) -> int:
        """How many checkpoints stay beside the newest ones."""
        return self.steps // self.keep_every if self.keep_every else 0

    @property
    def evaluations(self) -> int:
        """How many times weights are evaluated while training."""
        return self.steps // self.eval_every * len(self.eval_weights) if self.eval_every else 0


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
    attention: Literal["auto", "sdpa", "flash", "cudnn", "efficient", "xformers"] = "auto"  # auto: by a race at start
    # torch.compile of U-Nets: the repeated transformer blocks, or the whole as one graph (the fastest, after minutes)
    compile: Literal["none", "blocks", "whole"] = "none"
    teacher_graph: bool = False  # the teacher, compiled whole, is replayed as one CUDA graph
    teacher_fp8: bool = False  # its linear layers multiply in fp8, at an error that the log tells
    channels_last: bool = False  # images as [B, h, w, C] in memory, as tensor cores take them
    activation_checkpointing: bool = False  # less memory for a third more student compute
    teacher: Literal["replicated", "sharded"] = "replicated"  # sharded: by FSDP2, where it does not fit beside the rest
    heartbeat: float = 60.0  # seconds without a sign of life from a rank that end the job
    timeout: float = 1800.0  # seconds without progress of any rank that end the job: compilation takes minutes
    peak_tflops: float | None = None  # dense bf16 rate of one GPU, for MFU; null: known by the GPU's name


@dataclass(frozen=True, config=STRICT)
class CompBench:
    """T2I-CompBench (Table D): its prompts, and the networks that score them, by folder or hub id (owner/name@rev)."""

    lists: str | None = None  # the folder of its prompt lists (`randcond fetch compbench`); null: not evaluated
    categories: list[str] = dataclasses.field(
        default_factory=lambda: ["color", "shape", "texture", "spatial", "non_spatial", "complex"]
    )
    images: int = 10  # of each prompt
    blip: str = "Salesforce/blip-vqa-capfilt-large@refs/pr/7"  # where its safetensors are: the hub's converter's
    clip: str = "timm/vit_base_patch32_clip_224.openai"
    detector: str = "google/owlv2-base-patch16-ensemble"
    spacy: str = "en_core_web_sm"
    batch: int = 16


@dataclass(frozen=True, config=STRICT)
class Eval:
    """Generation and scoring: which networks draw which captions how, and what is measured."""

    captions: list[str] = dataclasses.field(default_factory=list)  # caption sources
    unseen: str | None = None  # a list of those that count as unseen, beside those naming a word of cache.exclude
    size: int | None = None  # captions drawn from each of seen and unseen, in a seeded order; null: all, as listed
    # [teacher] alone: a published model is scored as it is, nothing is trained
    of: list[Literal["teacher", "student"]] = dataclasses.field(default_factory=lambda: ["teacher", "student"])
    protocol: str = "paper"  # a name in launch/protocols.py: paper, bk-sdm, sdxl, native
    sampler: Literal["ddim", "pndm", "euler", "dpm++", "teacher"] | None = None  # null: the protocol's
    steps: int | None = None
    guidance: float | None = None
    resolution: int | None = None  # pixels of a drawn image's side; null: the model's own
    batch: int = 32  # compute batch: fixed chunks by caption number, the last one padded
    compile: Literal["none", "blocks", "whole"] = "none"  # as of the cache
    seed: int = 1
    weights: Literal["raw", "ema"] = "raw"
    metrics: list[str] = dataclasses.field(default_factory=lambda: ["fid", "is", "clip"])  # names in eval/metrics.py
    statistics: str | None = None  # of real images (`randcond eval stats`): a folder with SPLIT.npz, or one .npz
    inception: str = "inputs/inception/weights-inception-2015-12-05-6726825d.pth"  # .pth or .safetensors
    fid: Literal["torch-fidelity", "pytorch-fid"] = "torch-fidelity"  # whose port of Inception gives FID's features
    clip: str = "ViT-g-14"  # an open_clip model
    clip_weights: str = "laion2b_s34b_b88k"  # its tag, or a file
    dino: str = "facebook/dinov2-large"  # a transformers folder or hub id, for fd-dinov2
    grid: list[str] = dataclasses.field(default_factory=list)  # sources of captions drawn for the report only
    compbench: CompBench = CompBench()
    shown: int = 12  # captions of each split whose images are kept for the contact sheet
    save: Literal["none", "shards", "files"] = "none"  # all images, too: WebDataset tars, or a file each


@dataclass(frozen=True, config=STRICT)
class Paths:
    """Where artefacts are kept; relative paths start at the working directory."""

    reference: str  # the teacher's evaluation, shared by every experiment of the same protocol
    run: str = ""
    cache: str = ""
    pool: str = ""


@dataclass(frozen=True, config=STRICT)
class Config:
    """One experiment, resolved."""

    name: str
    teacher: Teacher
    eval: Eval
    paths: Paths
    replicate: str = ""  # which of a table's repetitions (launch/tables/*.yaml, replicates); {replicate} in paths
    student: Student = Student()
    cache: Cache = Cache()
    pool: Pool = Pool()
    conditioning: Conditioning = Conditioning()
    train: Train = Train()
    engine: Engine = Engine()
    # skip: damaged shards, images and caption files are left out and counted
    on_error: Literal["stop", "skip"] = "stop"

    @property
    def home(self) -> str:
        """The folder of what belongs to this experiment alone."""
        return self.paths.run or self.paths.reference

    @property
    def trains(self) -> bool:
        """Whether there is a student; else a published model is evaluated as it is (Table 4's other systems)."""
        return "student" in self.eval.of

    def __post_init__(self) -> None:
        self._check_ranges()
        if self.cache.used is not None and self.cache.used > self.cache.size:
            raise ValueError(f"cache.used: {self.cache.used} of cache.size={self.cache.size} latents")
        if self.pool.excluded_only and not self.cache.exclude:
            raise ValueError("pool.excluded_only: cache.exclude names no word")
        if self.pool.size and not self.pool.whole:
            raise ValueError("pool.whole: is missing; where is the pool kept that pool.size captions are taken from?")
        if not self.eval.of:
            raise ValueError("eval.of: teacher, student or both")
        for name in ("run", "cache", "pool") if self.trains else ():
            if not getattr(self.paths, name):
                raise ValueError(f"paths.{name}: is missing")
        if self.engine.kind == "deepspeed" and self.engine.zero_stage == 0 and self.engine.precision == "bf16":
            raise ValueError(
                "engine.zero_stage: DeepSpeed's stage 0 would add up gradients in bf16; "
                "take stage 1 (the same numbers, less memory), or engine.precision=fp32"
            )
        if not any(vars(self.train.losses).values()):
            raise ValueError("train.losses: every weight is 0, nothing would be learned")
        if self.train.skip_nonfinite and self.engine.kind == "deepspeed" and self.engine.zero_stage == 0:
            raise ValueError("train.skip_nonfinite: DeepSpeed's stage 0 can't leave a step out; take stage 1 or fsdp")
        if self.train.profile and not (
            len(self.train.profile) == 2 and 1 <= self.train.profile[0] <= self.train.profile[1]
        ):
            raise ValueError(f"train.profile: [first, last] step of the trace, got {self.train.profile}")
        if self.engine.teacher_graph and self.engine.compile != "whole":
            raise ValueError("engine.teacher_graph: a graph is of the whole network: needs engine.compile=whole")
        if self.engine.teacher == "sharded" and (self.engine.teacher_graph or self.engine.teacher_fp8):
            raise ValueError("engine.teacher: a sharded one can't be one CUDA graph, nor in fp8")
        if self.trains and bool(self.cache.captions) == bool(self.cache.images):
            raise ValueError(
                "cache.captions: captions to draw or cache.images, real ones to encode: give one of the two"
            )
        if self.train.keep_every % self.train.checkpoint_every:
            raise ValueError(
                f"train.keep_every: a multiple of train.checkpoint_every ({self.train.checkpoint_every}), of whose "
                f"checkpoints it keeps some; got {self.train.keep_every}"
            )
        if len(self.train.betas) != 2:
            raise ValueError(f"train.betas: two numbers, got {self.train.betas}")
        if self.cache.shard_size % self.cache.batch:
            raise ValueError(
                f"cache.shard_size: must be a multiple of cache.batch ({self.cache.batch}), "
                f"so that no compute batch crosses a shard; got {self.cache.shard_size}"
            )

    def _check_ranges(self) -> None:
        """Raises ValueError naming a number that is too small or too large to mean anything (null: not set)."""
        at_least = {
            1: """cache.used cache.resolution cache.steps cache.batch cache.shard_size train.steps train.global_batch
                train.log_every train.checkpoint_every train.keep_checkpoints train.eval_size engine.processes
                engine.threads engine.micro_batch engine.shard_group engine.heartbeat engine.timeout eval.size
                eval.steps eval.resolution eval.batch eval.compbench.images eval.compbench.batch""",
            0: """cache.local_gb pool.size pool.min_length pool.max_length pool.min_similarity pool.min_width
                pool.min_height train.lr train.warmup train.weight_decay train.eps train.grad_clip train.workers
                train.keep_every train.sample_every train.eval_every train.skip_nonfinite train.losses.output
                train.losses.feature train.losses.task train.losses.spatial train.losses.frequency train.seed
                student.seed cache.seed pool.seed eval.seed eval.shown""",
        }
        least = {key: number for number, keys in at_least.items() for key in keys.split()}
        for key, number in (least | ({"cache.size": 1} if self.trains else {})).items():
            value = operator.attrgetter(key)(self)
            if value is not None and value < number:
                raise ValueError(f"{key}: must be at least {number}, got {value}")
        shares = [("conditioning.null", self.conditioning.null), ("train.ema_decay", self.train.ema_decay)]
        for key, share in shares + [("train.betas", beta) for beta in self.train.betas]:
            if not 0 <= share <= 1:
                raise ValueError(f"{key}: between 0 and 1, got {share}")
        if self.engine.peak_tflops is not None and self.engine.peak_tflops <= 0:
            raise ValueError(f"engine.peak_tflops: a rate above 0, got {self.engine.peak_tflops}")
