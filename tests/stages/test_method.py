"""Recomputes the method by hand: captions that samples are shown, losses, optimizer steps and EMA."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline

from randcond.data.captions.caption_file import Captions
from randcond.data.stream.batch import Batch
from randcond.data.stream.conditioning import Times
from randcond.data.stream.stream import CaptionPool, Stream
from randcond.launch.config.experiments import load_config
from randcond.launch.config.paths import resolve_path
from randcond.launch.config.sections import Config
from randcond.model_zoo.sampler import caption_seed
from randcond.model_zoo.students.registry import student_of
from randcond.model_zoo.teacher import Teacher
from randcond.train.build import build_step
from randcond.train.state.checkpoint import StoredCheckpoint
from tests.support.demo import TINY, randcond
from tests.support.latents import ddpm_times, opened
from tests.support.runs import metrics, samples

STEPS = 5
RECIPE = [
    "student.rule=channel-micro",
    f"train.steps={STEPS}",
    "train.warmup=3",
    "train.betas=[0.8,0.95]",
    "train.eps=1e-3",
    "train.weight_decay=0.3",
    "train.grad_clip=0.5",
    "train.ema_decay=0.3",
    "train.log_every=1",
    "train.log_samples=true",
    "train.sample_every=0",
    "train.checkpoint_every=1",
    f"train.keep_checkpoints={STEPS}",
    "conditioning.p=constant",
    "conditioning.p_args={value: 0.6}",
    "conditioning.null=0.3",
    "paths.run=runs/recipe",
]


@pytest.fixture(scope="module")
def recipe(world: Path) -> Path:
    """Trains a few steps on two ranks with settings that all differ from the defaults. Returns the run."""
    randcond(world, "run", "train", "demo-with", *TINY, *RECIPE)
    return world / "runs/recipe"


def config_of(world: Path, *words: str) -> Config:
    paths = [f"paths.{name}={world / 'runs/demo' / name}" for name in ("cache", "pool")]
    return load_config("demo-with", [*TINY, *words, *paths])


def stream_of(config: Config, times: Times, null: float) -> Stream:
    cache = opened(Path(config.paths.cache))
    pool = CaptionPool(cache.captions, Captions(Path(config.paths.pool) / "captions.arrow"))
    tokenizers = Teacher.load(resolve_path(config.teacher.path), "fp32").tokenizers
    return Stream(cache, pool, times, null, tokenizers, config.train.seed)


def token_ids(teacher: Teacher, captions: list[str]) -> torch.Tensor:
    """Returns token ids [B, L] by the tokenizer and the settings of the published pipeline."""
    tokenizer = teacher.pipe.tokenizer
    longest = {"padding": "max_length", "max_length": tokenizer.model_max_length, "truncation": True}
    return tokenizer(captions, return_tensors="pt", **longest).input_ids


def test_a_run_sees_what_its_conditioning_says(world: Path, recipe: Path) -> None:
    config = config_of(world, *RECIPE)
    stream = stream_of(config, ddpm_times("constant", value=0.6), 0.3)
    size = config.train.global_batch
    seen = samples(recipe)
    assert sorted(seen) == list(range(1, STEPS + 1))
    for step, rows in seen.items():
        wanted = [stream[position] for position in range((step - 1) * size, step * size)]
        names = ("key", "timesteps", "noise_seed", "caption_id")
        assert rows == [tuple(sample[name] for name in names) for sample in wanted]
    shares = [line["replaced_share"] for line in metrics(recipe)]
    draws = [stream.draw(position).replaced for position in range(STEPS * size)]
    assert shares == pytest.approx([sum(draws[i * size : (i + 1) * size]) / size for i in range(STEPS)])


def test_the_demo_replaces_as_its_exponential_says(world: Path) -> None:
    config = config_of(world)
    stream = stream_of(config, ddpm_times(), 0.1)
    lines, size = metrics(world / "runs/demo/with"), config.train.global_batch
    assert lines[-1]["step"] == config.train.steps
    for line in lines:
        window = range((line["step"] - config.train.log_every) * size, line["step"] * size)
        share = sum(stream.draw(position).replaced for position in window) / len(window)
        assert line["replaced_share"] == pytest.approx(share), line["step"]
    assert any(line["replaced_share"] for line in lines)


@pytest.mark.parametrize("p", ["none", "constant"])
def test_a_replaced_sample_is_shown_with_the_words_of_its_caption(world: Path, p: str) -> None:
    config = config_of(world)
    stream = stream_of(config, ddpm_times(p, **({"value": 1.0} if p == "constant" else {})), 0.1)
    cached, extra = list(stream.pool.cached), list(stream.pool.extra)
    drawn = [stream[position] for position in range(200)]
    batch = stream.collate(drawn)
    teacher = Teacher.load(resolve_path(config.teacher.path), "fp32")
    for row, sample in enumerate(drawn):
        words = [*cached, *extra][sample["caption_id"]] if not sample["null"] else ""
        assert sample["caption"] == words
        assert batch.token_ids["token_ids"][row].tolist() == token_ids(teacher, [words])[0].tolist()
    of_the_pool = {sample["caption_id"] for sample in drawn if not sample["null"]}
    assert (max(of_the_pool) >= len(cached)) == (p == "constant")


def test_null_captions_and_replacement_know_nothing_of_each_other(world: Path) -> None:
    stream = stream_of(config_of(world), ddpm_times("constant", value=0.3), 0.2)
    draws = [stream.draw(position) for position in range(20_000)]
    for null in (True, False):
        among = [draw.replaced for draw in draws if draw.null == null]
        assert abs(sum(among) - 0.3 * len(among)) <= 4 * np.sqrt(0.21 * len(among))


def test_a_latent_is_what_the_stock_pipeline_draws_of_its_caption(world: Path) -> None:
    config = config_of(world)
    cache, asked = opened(Path(config.paths.cache)), config.cache
    pipe = StableDiffusionPipeline.from_pretrained(resolve_path(config.teacher.path), safety_checker=None)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    ids = [0, 1, 2, 40, 95]
    drawn = pipe(
        [cache.captions[number] for number in ids],
        num_inference_steps=asked.steps,
        guidance_scale=asked.guidance,
        generator=[torch.Generator().manual_seed(caption_seed(asked.seed, number)) for number in ids],
        output_type="latent",
    ).images
    held = {own: values for values, own in (cache.pair(index) for index in range(len(cache)))}
    for latent, number in zip(drawn, ids, strict=True):
        assert np.abs(latent.numpy() - held[number]).max() < 5e-3 * latent.abs().max(), number


def test_the_step_weighs_what_teacher_and_student_say_of_one_input() -> None:
    """Recomputes Eq. 1, Eq. 2 and the denoising loss of unreplaced samples with hooks and formulas of its own."""
    config = load_config("demo-with", ["student.rule=channel-tiny", "train.losses.task=0.5", "train.global_batch=4"])
    teacher = Teacher.load(resolve_path(config.teacher.path), "fp32")
    module, distil = build_step(config, teacher)
    generator = torch.Generator().manual_seed(0)
    captions = ["a red three on a white background", "a blue two", "a green seven", "a red one"]
    t, null = torch.tensor([10, 400, 700, 990]), torch.tensor([False, True, False, False])
    shown = ["" if nothing else caption for caption, nothing in zip(captions, null.tolist(), strict=True)]
    batch = Batch(  # as the stream makes them
        latents=torch.randn(4, *teacher.latent_shape, generator=generator),
        token_ids=teacher.tokenizers(shown),
        key=torch.arange(4),
        caption_id=torch.arange(4),
        timesteps=t,
        noise_seed=torch.tensor([1, 2, 3, 4]),
        replaced=torch.tensor([False, False, True, True]),
        null=null,
        unreplaced_in_batch=2,
    )
    with torch.no_grad():
        losses = distil(module, batch, torch.float32)

    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2, 3, 4)]
    noise = torch.stack([torch.randn(teacher.latent_shape, generator=each) for each in seeds])
    kept = DDIMScheduler.from_pretrained(resolve_path(config.teacher.path), subfolder="scheduler").alphas_cumprod
    alpha = kept[t].view(-1, 1, 1, 1)
    noised = alpha.sqrt() * batch.latents + (1 - alpha).sqrt() * noise
    seen: dict[str, torch.Tensor] = {}

    def watch(network: torch.nn.Module, whose: str, name: str) -> None:
        def keep(_: object, __: object, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            seen[whose + name] = output[0] if isinstance(output, tuple) else output

        network.get_submodule(name).register_forward_hook(keep)

    names = student_of("channel-tiny", teacher.architecture).pairs
    pairs = [(theirs, ours, project) for (theirs, ours), project in zip(names, module.projectors, strict=True)]
    for theirs, ours, _ in pairs:
        watch(teacher.denoiser, "teacher", theirs)
        watch(module.network, "student", ours)
    with torch.no_grad():
        text = teacher.pipe.text_encoder(token_ids(teacher, shown))[0]
        wanted, given = (unet(noised, t, text, return_dict=False)[0] for unet in (teacher.denoiser, module.network))
        feature = sum(
            (project(seen["student" + ours]) - seen["teacher" + theirs]).square().mean()
            for theirs, ours, project in pairs
        )
    output = (given - wanted).square().mean()
    task = (given - noise)[:2].square().mean()  # rows 0 and 1 keep their captions
    assert len(pairs) == 9
    for name, value in (("output", output), ("feature", feature), ("task", task)):
        assert float(losses.terms[name]) == pytest.approx(float(value), rel=1e-5), name
    assert float(losses.total) == pytest.approx(float(output + feature + 0.5 * task), rel=1e-5)


def test_the_optimizer_is_the_recipes_adamw_and_the_ema_has_its_ceiling(world: Path, recipe: Path) -> None:
    """Recomputes every step from the checkpoints in double precision. The gradient follows from the first moment."""
    config = config_of(world, *RECIPE)
    teacher = Teacher.load(resolve_path(config.teacher.path), "fp32")
    module, _ = build_step(config, teacher)
    before = {name: p.detach().double() for name, p in module.named_parameters()}
    moments = {kind: {name: torch.zeros_like(p) for name, p in before.items()} for kind in ("exp_avg", "exp_avg_sq")}
    ema = dict(before)
    train, lines = config.train, {line["step"]: line for line in metrics(recipe)}
    clipped = 0
    for step in range(1, STEPS + 1):
        stored = StoredCheckpoint(recipe / f"checkpoints/step-{step:08d}")
        after, m, v, kept = (
            {name: value.double() for name, value in stored.full(kind).items()}
            for kind in ("weights", "exp_avg", "exp_avg_sq", "ema")
        )
        lr = train.lr * min(1.0, step / train.warmup)
        assert lines[step]["lr"] == pytest.approx(lr)
        one, two = train.betas
        gradient = {name: (m[name] - one * moments["exp_avg"][name]) / (1 - one) for name in m}
        norm = float(torch.stack([each.norm() for each in gradient.values()]).norm())
        assert norm == pytest.approx(min(lines[step]["grad_norm"], train.grad_clip), rel=1e-4)
        clipped += lines[step]["grad_norm"] > train.grad_clip
        decay = min(train.ema_decay, (1 + step) / (10 + step))
        for name, value in after.items():
            second = two * moments["exp_avg_sq"][name] + (1 - two) * gradient[name].square()
            assert torch.allclose(v[name], second, rtol=1e-3, atol=1e-6 * float(second.max())), name
            root = (v[name] / (1 - two**step)).sqrt() + train.eps
            moved = before[name] * (1 - lr * train.weight_decay) - lr * m[name] / (1 - one**step) / root
            assert torch.allclose(value, moved, rtol=1e-5, atol=1e-7), name
            ema[name] = decay * ema[name] + (1 - decay) * value
            assert torch.allclose(kept[name], ema[name], rtol=1e-5, atol=1e-7), name
        before, moments = after, {"exp_avg": m, "exp_avg_sq": v}
    assert clipped and decay == train.ema_decay < (1 + STEPS) / (10 + STEPS)
