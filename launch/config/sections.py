"""The sections of an experiment's YAML: keys, types and defaults.

Each key declares which artefacts depend on it (`OfRun`, `OfCache`, ...; see config/identity.py). Ranges and
contradictions are checked in config/contradictions.py. Imports no torch, because login nodes read configurations.
"""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from randcond.launch.config.contradictions import check_config
from randcond.launch.config.engines import (
    ENGINES,
    Compile,
    EmaPlace,
    EngineCompile,
    EngineKind,
    EngineSpec,
    Switch,
    engine_kind,
)
from randcond.launch.config.identity import (
    ByContent,
    Decides,
    Free,
    OfCache,
    OfDrawnCache,
    OfEvaluation,
    OfLoss,
    OfPool,
    OfRun,
    OfShards,
)

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _list(*items: Any) -> Any:
    """Returns a field whose default is a list of these items."""
    return dataclasses.field(default_factory=lambda: list(items))


@dataclass(frozen=True, config=STRICT)
class Teacher:
    """The frozen diffusion model that is distilled."""

    # A diffusers folder, a hub id (owner/name), or package:... for a folder that ships with randcond.
    path: ByContent[str]
    # of the teacher's weights and activations. int8: weights in 8 bits, activations in bf16. int8_dynamic: linear
    # layers also multiply in 8 bits, which is fast on tensor cores if it is compiled.
    dtype: Annotated[Literal["fp32", "bf16", "int8", "int8_dynamic"], Decides(("run", "shards", "evaluation"))] = "bf16"
    # Length of the text in tokens, where the pipeline leaves it open (max_sequence_length: T5's text in SD 3 and
    # PixArt, Qwen3's in FLUX.2); null: the pipeline's default.
    text_tokens: ByContent[int | None] = None
    # of the text encoders; int8: weights in 8 bits, about half the memory; int8_dynamic: products, too; null: as dtype
    text_dtype: ByContent[Literal["int8", "int8_dynamic"] | None] = None
    # Where the text encoders' weights stay. cpu: in the host's memory; each layer is copied when it is
    # needed, which saves GPU memory and costs time.
    text_device: Free[Literal["device", "cpu"]] = "device"
    # Encode captions of similar length together, without most of their padding. null: where the teacher masks its text
    # (PixArt), as it changes nothing there.
    text_buckets: Free[bool | None] = None
    # GB of host memory per rank for the encodings of captions that were seen before. It pays where the pool is small.
    text_cache_gb: Free[float] = 0.0

    @property
    def in_8_bits(self) -> bool:
        """True if the denoiser and the text encoders store their weights in 8 bits."""
        return self.dtype in ("int8", "int8_dynamic")

    @property
    def text_in_8_bits(self) -> bool:
        """True if the text encoders store their weights in 8 bits."""
        return self.in_8_bits or self.text_dtype is not None

    @property
    def text_facts(self) -> dict[str, Any]:
        """The settings of the text encoders that artefacts depend on."""
        return {"text_tokens": self.text_tokens, "text_dtype": self.text_dtype}


NO_TEXT_FACTS = Teacher(path="").text_facts  # what artefacts without these settings were made with


@dataclass(frozen=True, config=STRICT)
class Student:
    """The small denoiser that is trained."""

    rule: OfRun[str] = "block-base"  # a student rule; `randcond students` lists them
    # Numbers of the teacher's blocks that a student of a depth rule has, from 0; null: evenly spaced ones.
    keep: OfRun[list[int] | None] = None
    # Where the weights start: random, teacher (a copy of its weights), or the folder of an earlier student, such as
    # RUN/student_ema.
    init: OfRun[str] = "teacher"
    seed: OfRun[int] = 0  # seed of the random initialisation
    start_from: ByContent[str] = ""  # the older way to name the folder of an earlier student; init does the same

    @property
    def full_rule(self) -> str:
        """The rule, with the blocks that `keep` names: `depth-4` or `depth-[0,2,5,7]`."""
        return self.rule if self.keep is None else f"depth-[{','.join(map(str, self.keep))}]"

    @property
    def earlier(self) -> str:
        """The folder of the earlier student that training starts from, "" if there is none."""
        return self.start_from or ("" if self.init in ("random", "teacher") else self.init)


@dataclass(frozen=True, config=STRICT)
class Cache:
    """N captions whose latents the teacher draws once (paper Sec. 3.2), or N real images (Table 1, rows 3 and 6)."""

    size: OfCache[int] = 0  # N: number of latents
    used: ByContent[int | None] = None  # number of latents to train on, the first ones (Figure 7); null: all
    captions: ByContent[list[str]] = _list()  # caption sources: txt, csv, tsv, jsonl or parquet files
    images: ByContent[str | None] = None  # instead of captions: a folder of captioned images, or WebDataset tars
    # Pixels of an image's side: drawn so, or scaled and cropped to it (real images). null: the teacher's resolution.
    resolution: OfCache[int | None] = None
    exclude: OfCache[list[str]] = _list()  # captions that contain one of these words get no latent (Table 2)
    seed: OfCache[int] = 0  # of the noise that the latents are drawn from
    sampler: OfDrawnCache[Literal["ddim", "teacher"]] = "ddim"  # teacher: the one that the checkpoint ships with
    steps: OfDrawnCache[int] = 25  # sampling steps per latent
    guidance: OfDrawnCache[float] = 7.5  # scale of classifier-free guidance
    # compute batch: fixed chunks by caption number, the last one is padded; null: the largest that fits the device
    batch: OfShards[int | None] = None
    compile: OfShards[Compile] = "none"  # compile the denoiser; whole: the VAE decoder too
    shard_size: OfShards[int] = 1024  # samples per WebDataset shard
    local: Free[str] = "~/.cache/randcond"  # where shards of a remote cache (paths.cache is a URL) are copied to
    local_gb: Free[float] = 50.0  # disk space for these copies, GB; if all shards fit, samples come in any order


@dataclass(frozen=True, config=STRICT)
class Pool:
    """The extra texts of the caption pool. The pool is the cached captions plus these."""

    sources: ByContent[list[str]] = _list()  # files, folders, globs or URLs: parquet, csv, tsv, jsonl, txt
    size: OfPool[int | None] = None  # number of captions chosen at random from the sources (Table B); null: all
    whole: Free[str] = ""  # with pool.size: folder of the full pool, which several experiments share
    seed: OfPool[int] = 0  # seed of that choice; with one seed, a larger choice contains a smaller one
    also: ByContent[list[str]] = _list()  # more sources, whose captions are all used (Table 2)
    excluded_only: OfPool[bool] = False  # use only captions that contain a word of cache.exclude (Table 2, row 2)
    min_length: OfPool[int] = 1  # characters per caption
    max_length: OfPool[int] = 1000  # characters per caption; 0: no limit
    nsfw: OfPool[list[str]] = _list()  # accepted values of the column NSFW, e.g. [UNLIKELY]
    min_similarity: OfPool[float] = 0.0  # of the column similarity (LAION: CLIP, caption to image); 0: no limit
    min_width: OfPool[int] = 0  # smallest value of the column WIDTH: pixels of the image
    min_height: OfPool[int] = 0  # smallest value of the column HEIGHT: pixels of the image

    @property
    def read(self) -> list[str]:
        """The sources to read captions from; none if `size` is 0."""
        return [] if self.size == 0 else self.sources


@dataclass(frozen=True, config=STRICT)
class Conditioning:
    """Random conditioning (paper Sec. 3.3): which caption a noised latent is shown with."""

    # p(t) of Table C, with u = t/T: exponential exp(-lam (1 - u)), mirrored exp(-lam (1 - max(u, 1 - u))), linear u,
    # sigmoid 1 / (1 + exp(-slope (u - centre))), constant value, none 0.
    p: OfRun[str] = "exponential"
    # Arguments of p(t). Their defaults: {lam: 5}, {slope: 20, centre: 0.7}, {value: 0.5}.
    p_args: OfRun[dict[str, float]] = dataclasses.field(default_factory=dict)
    # What p is a function of. time: t/T; sigma: the share of noise in x_t; noise: t/T of SD 1.4's timestep with the
    # same signal-to-noise ratio.
    of: OfRun[Literal["time", "sigma", "noise"]] = "time"
    null: OfRun[float] = 0.1  # share of null captions, chosen after the replacement
    # The condition of a null caption. teacher: the unconditional input of its own pipeline (SDXL: zeros);
    # empty: the encoding of "".
    null_embedding: OfRun[Literal["teacher", "empty"]] = "teacher"


@dataclass(frozen=True, config=STRICT)
class Losses:
    """Weights of the losses in train/losses.py. A weight of 0 leaves a loss out."""

    output: OfLoss[float] = 1.0  # Eq. 1
    feature: OfLoss[float] = 1.0  # Eq. 2
    task: OfLoss[float] = 0.0  # L_DDPM on the pairs that kept their own caption
    spatial: OfLoss[float] = 0.0  # SLIM's L_spatial
    frequency: OfLoss[float] = 0.0  # SLIM's L_freq


@dataclass(frozen=True, config=STRICT)
class Train:
    """Optimisation (paper Sec. 4.2)."""

    steps: Free[int] = 125_000  # optimizer steps
    global_batch: OfRun[int] = 256  # samples per optimizer step, on all ranks together
    optimizer: OfRun[Literal["adamw", "adamw_8bit"]] = "adamw"  # adamw_8bit: moments of 2 instead of 8 bytes
    lr: OfRun[float] = 5e-5  # learning rate of AdamW, the largest of the schedule
    # The learning rate after the warm-up. constant: the paper's; cosine, linear: it decays until the last step;
    # wsd: it is constant, then decays linearly in the last steps (train.decay).
    schedule: OfRun[Literal["constant", "cosine", "linear", "wsd"]] = "constant"
    warmup: OfRun[int] = 0  # steps of linear warm-up
    decay: OfRun[float] = 0.1  # schedule wsd: the share of train.steps in which the learning rate decays
    min_lr: OfRun[float] = 0.0  # where a decay ends, as a share of train.lr
    betas: OfRun[list[float]] = _list(0.9, 0.999)  # of AdamW
    weight_decay: OfRun[float] = 1e-2  # of AdamW
    eps: OfRun[float] = 1e-8  # of AdamW
    # How timesteps are drawn. logit_normal: only of a flow-matching teacher, whose middle ones it draws more often.
    timesteps: OfRun[Literal["uniform", "logit_normal"]] = "uniform"
    shift: OfRun[float | None] = None  # of a flow's timesteps: above 1, noisier ones are drawn more often; null: 1
    grad_clip: OfRun[float] = 1.0  # largest gradient norm; 0: no clipping
    ema_decay: OfRun[float] = 0.9999  # the upper limit of min(ema_decay, (1 + n) / (10 + n)) at step n
    losses: Losses = dataclasses.field(default_factory=Losses)
    # The distance of Eq. 2. plain: the paper's; normalised: over the variance of each feature of the teacher; masked:
    # without the teacher's values beyond two standard deviations. Transformers have features of very different sizes.
    feature_loss: OfRun[Literal["plain", "normalised", "masked"]] = "plain"
    seed: OfRun[int] = 0  # of noise, timesteps, replaced captions and the order of samples
    workers: Free[int] = 2  # loader processes per rank
    log_every: Free[int] = 50  # steps
    checkpoint_every: Free[int] = 25_000  # steps
    keep_checkpoints: Free[int] = 3  # number of newest checkpoints to keep
    keep_every: Free[int] = 0  # keep checkpoints at multiples of this step forever; 0: none
    sample_every: Free[int] = 10_000  # steps between teacher-student sample grids; 0: none
    eval_every: Free[int] = 0  # steps between evaluations by the `eval:` section (supplement K: 25,000); 0: none
    eval_size: Free[int | None] = None  # captions of each split in these evaluations; null: eval.size
    # the student's weights that are evaluated while training
    eval_weights: Free[list[Literal["raw", "ema"]]] = _list("raw", "ema")
    skip_nonfinite: Free[int] = 0  # steps with a NaN or infinite gradient to skip before the run stops
    log_samples: Free[bool] = False  # log the samples of every step to samples/rank-NNNN.jsonl
    profile: Free[list[int]] = _list()  # [first, last] step of a torch profiler trace

    @property
    def kept_for_good(self) -> int:
        """Number of checkpoints that `keep_every` keeps beside the newest ones."""
        return self.steps // self.keep_every if self.keep_every else 0

    @property
    def evaluations(self) -> int:
        """Number of evaluations during training. Raw and EMA weights count separately."""
        return self.steps // self.eval_every * len(self.eval_weights) if self.eval_every else 0


@dataclass(frozen=True, config=STRICT)
class Engine:
    """How a step is distributed and computed."""

    kind: Free[Literal["deepspeed", "fsdp"]] = "deepspeed"  # DeepSpeed's ZeRO, or torch's FSDP2
    zero_stage: Free[Literal[0, 1, 2, 3]] = 1  # deepspeed shards: 0 nothing, 1 optimizer, 2 + gradients, 3 + weights
    sharding: Free[Literal["full", "grad_op", "hybrid"]] = "full"  # fsdp: as ZeRO-3, as ZeRO-2, ZeRO-3 within groups
    shard_group: Free[int | None] = None  # fsdp hybrid: ranks per group; null: the ranks of one host
    # of the student's forward and backward pass; fp32 master weights always
    precision: OfRun[Literal["fp32", "bf16"]] = "bf16"
    processes: Free[int] = 1  # ranks on this machine if no host file is given
    threads: Annotated[int | None, Decides(("content",))] = None  # CPU threads per rank; null: torch's default
    micro_batch: Free[int | None] = None  # samples per rank and forward; null: the largest that fits the device
    attention: Free[Literal["auto", "sdpa", "flash", "cudnn", "efficient", "xformers"]] = "auto"  # auto: the fastest
    # Compile teacher and student; whole is the fastest, after minutes of compilation. auto: whole on a GPU.
    compile: Free[EngineCompile] = "none"
    # replay the teacher as one CUDA graph; needs compile: whole. auto: where it works
    teacher_graph: Free[Switch] = False
    teacher_fp8: OfRun[bool] = False  # the teacher's linear layers multiply in fp8; the log reports the error
    text_ahead: Free[bool] = True  # encode the next captions beside the backward pass, on a CUDA stream of their own
    channels_last: Free[Switch] = False  # memory format [B, h, w, C], which tensor cores prefer; auto: U-Nets on a GPU
    activation_checkpointing: Free[bool] = False  # saves memory, costs a third more student compute
    teacher: Free[Literal["replicated", "sharded"]] = "replicated"  # sharded: by FSDP2, to save memory
    ema: Free[EmaPlace] = "device"  # where the EMA weights are; off: there are none
    heartbeat: Free[float] = 60.0  # seconds of silence from a rank that end the job
    timeout: Free[float] = 1800.0  # seconds without progress on any rank that end the job; compilation takes minutes
    peak_tflops: Free[float | None] = None  # dense bf16 TFLOP/s of one GPU, for MFU; null: looked up by the GPU's name

    @property
    def engine_kind(self) -> EngineKind:
        """The engine that `kind`, `zero_stage` and `sharding` select together."""
        return engine_kind(self.kind, self.zero_stage, self.sharding)

    @property
    def spec(self) -> EngineSpec:
        """What that engine can do."""
        return ENGINES[self.engine_kind]


@dataclass(frozen=True, config=STRICT)
class CompBench:
    """T2I-CompBench (Table D): its prompts, and the networks that score them: folders or hub ids (owner/name@rev)."""

    lists: ByContent[str | None] = None  # folder of its prompt lists (`randcond fetch compbench`); null: not evaluated
    # the prompt lists that are drawn and scored
    categories: Free[list[str]] = _list("color", "shape", "texture", "spatial", "non_spatial", "complex")
    images: ByContent[int] = 10  # images per prompt
    blip: ByContent[str] = "Salesforce/blip-vqa-capfilt-large@refs/pr/7"  # the revision that has safetensors
    clip: ByContent[str] = "timm/vit_base_patch32_clip_224.openai"  # scores the non-spatial prompts
    detector: ByContent[str] = "google/owlv2-base-patch16-ensemble"  # finds the objects of the spatial prompts
    spacy: ByContent[str] = "en_core_web_sm"  # finds the nouns of a prompt
    batch: Free[int] = 16  # images that a network scores at once


@dataclass(frozen=True, config=STRICT)
class GenEval:
    """GenEval: its prompts, and the networks that score them: folders or hub ids."""

    prompts: ByContent[str | None] = None  # evaluation_metadata.jsonl (`randcond fetch geneval`); null: not evaluated
    images: ByContent[int] = 4  # images per prompt
    detector: ByContent[str] = "facebook/mask2former-swin-small-coco-instance"  # finds objects
    clip: ByContent[str] = "timm/vit_large_patch14_clip_224.openai"  # tells their colours


@dataclass(frozen=True, config=STRICT)
class GenEval2:
    """GenEval 2: its prompts with questions, and the vision-language model that answers them."""

    prompts: ByContent[str | None] = None  # geneval2_data.jsonl (`randcond fetch geneval2`); null: not evaluated
    size: ByContent[int | None] = None  # the first so many of its 800 prompts; null: all
    judge: ByContent[str] = "Qwen/Qwen3-VL-8B-Instruct"  # a transformers folder or hub id; the published scores' judge


@dataclass(frozen=True, config=STRICT)
class Eval:
    """Generation and scoring: which networks draw which captions, by which protocol, and which metrics."""

    captions: ByContent[list[str]] = _list()  # caption sources
    unseen: ByContent[str | None] = None  # file of unseen captions, in addition to those with a word of cache.exclude
    size: ByContent[int | None] = None  # captions of each split (seen, unseen), in a seeded random order; null: all
    of: Free[list[Literal["teacher", "student"]]] = _list("teacher", "student")  # [teacher]: nothing is trained
    protocol: OfEvaluation[str] = "paper"  # a name in launch/config/protocols.py: paper, bk-sdm, sdxl, lcm, native
    # null: the protocol's
    sampler: OfEvaluation[Literal["ddim", "pndm", "euler", "dpm++", "lcm", "teacher"] | None] = None
    steps: OfEvaluation[int | None] = None  # null: the protocol's
    guidance: OfEvaluation[float | None] = None  # null: the protocol's
    resolution: OfEvaluation[int | None] = None  # pixels of an image's side; null: the model's own
    batch: OfEvaluation[int | None] = None  # compute batch, as cache.batch; null: the largest that fits the device
    compile: OfEvaluation[Compile] = "none"  # as cache.compile
    seed: OfEvaluation[int] = 1  # of the noise that images are drawn from
    weights: OfEvaluation[Literal["raw", "ema"]] = "raw"  # the student's weights that are evaluated
    # fid, is, clip, kid, precision-recall, fd-dinov2, cmmd, dino-mmd, hps, pickscore, imagereward; digits (the embedded
    # world). []: pictures only
    metrics: ByContent[list[str]] = _list("fid", "is", "clip")
    statistics: ByContent[str | None] = None  # of real images (`randcond eval stats`): a folder of SPLIT.npz, or a file
    inception: ByContent[str] = "inputs/inception/weights-inception-2015-12-05-6726825d.pth"  # .pth or .safetensors
    # the port of Inception that computes FID features
    fid: ByContent[Literal["torch-fidelity", "pytorch-fid"]] = "torch-fidelity"
    clip: ByContent[str] = "ViT-g-14"  # an open_clip model
    clip_weights: ByContent[str] = "laion2b_s34b_b88k"  # tag of its weights, or a file
    dino: ByContent[str] = "facebook/dinov2-large"  # a transformers folder or hub id, for fd-dinov2 and dino-mmd
    cmmd: ByContent[str] = "timm/vit_large_patch14_clip_336.openai"  # the CLIP of cmmd: an open_clip folder or hub id
    hps: ByContent[str] = "RE-N-Y/hpsv21"  # weights of HPSv2.1: a hub id, or a .safetensors or .pt file
    pickscore: ByContent[str] = "yuvalkirstain/PickScore_v1"  # a transformers folder or hub id
    imagereward: ByContent[str] = "RE-N-Y/ImageReward"  # weights: a hub id, or a .safetensors or .pt file
    bert: ByContent[str] = "google-bert/bert-base-uncased"  # the tokenizer of imagereward: a folder or hub id
    grid: Free[list[str]] = _list()  # caption sources drawn for the report only, not scored
    compbench: CompBench = CompBench()
    geneval: GenEval = GenEval()
    geneval2: GenEval2 = GenEval2()
    cost: Free[bool] = True  # measure seconds and memory per image
    shown: Free[int] = 12  # captions of each split whose images are kept for the contact sheet
    save: Free[Literal["none", "shards", "files"]] = "none"  # keep all images: WebDataset tars, or one file each


@dataclass(frozen=True, config=STRICT)
class Watch:
    """Where a training's values and sample grids go, besides metrics.jsonl in its folder."""

    # what the values and sample grids of a training are sent to
    sinks: Free[list[Literal["tensorboard", "wandb", "mlflow"]]] = _list("tensorboard")
    project: Free[str] = "randcond"  # W&B's project, MLflow's experiment


@dataclass(frozen=True, config=STRICT)
class Paths:
    """Where artefacts are kept. Relative paths start at the working directory."""

    reference: Free[str]  # the teacher's evaluation, shared by all experiments with the same protocol
    run: Free[str] = ""  # folder of the training: checkpoints, metrics, the student
    cache: Free[str] = ""  # folder of the latents, or a URL of a finished cache
    pool: Free[str] = ""  # folder of the caption pool


@dataclass(frozen=True, config=STRICT)
class Config:
    """One experiment, resolved."""

    name: Free[str]  # name of the experiment; by default its file's
    teacher: Teacher
    eval: Eval
    paths: Paths
    replicate: Free[str] = ""  # a table's repetition (launch/tables/*.yaml, replicates); {replicate} in paths
    student: Student = Student()
    cache: Cache = Cache()
    pool: Pool = Pool()
    conditioning: Conditioning = Conditioning()
    train: Train = Train()
    engine: Engine = Engine()
    watch: Watch = Watch()
    # skip: leave out damaged shards, images, caption files and rows of them, and count them
    on_error: Free[Literal["stop", "skip"]] = "stop"

    @property
    def home(self) -> str:
        """The folder that only this experiment uses."""
        return self.paths.run or self.paths.reference

    @property
    def trains(self) -> bool:
        """False if there is no student: a published model is evaluated unchanged (Table 4's other systems)."""
        return "student" in self.eval.of

    def __post_init__(self) -> None:
        check_config(self)  # raises ValueError, because pydantic collects it; `parse` turns it into a UserError
