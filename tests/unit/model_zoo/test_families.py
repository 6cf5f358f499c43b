"""Each family shows its denoiser in training what the stock pipeline shows it in drawing."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, Flux2KleinPipeline

from randcond.data import __main__ as data
from randcond.data.stream.conditioning import Times, times_of
from randcond.eval import __main__ as evaluation
from randcond.launch.config.experiments import load_config
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.planning.costs import Sizes
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.export import trained_student
from randcond.model_zoo.families.faults.look import teacher_faults
from randcond.model_zoo.importing.model_folder import import_folder
from randcond.model_zoo.int8_products import Int8Product
from randcond.model_zoo.process.discrete_betas import DiscreteBetas
from randcond.model_zoo.process.levels import sd14_sigmas, sd14_time
from randcond.model_zoo.process.rectified_flow import RectifiedFlow
from randcond.model_zoo.sampler import decode, draw_latents, sampler_dtype
from randcond.model_zoo.students.features import FeatureTaps, TappedStudent
from randcond.model_zoo.students.registry import build_student, student_of
from randcond.model_zoo.teacher import Teacher
from randcond.model_zoo.text_encoding.options import TextOptions
from randcond.train import __main__ as train
from randcond.train.losses import feature_loss, output_loss
from tests.support import flow_teachers

CAPTIONS = ["A red <pad> cat on the table", "", "one two dog " * 60]  # <pad>: T5's padding, as a word
MAKERS: dict[str, Callable[..., Path]] = {
    "sd3": flow_teachers.sd3,
    "sd3 without T5": lambda folder: flow_teachers.sd3(folder, with_t5=False),
    "pixart": flow_teachers.pixart,
    "pixart alpha": flow_teachers.pixart_alpha,
    "klein": flow_teachers.klein,
}
PIXELS = 128  # of klein's images; its default is 1,024


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    return {name: make(root / name.replace(" ", "-")) for name, make in MAKERS.items()}


def stock_condition(pipe: Any) -> dict[str, torch.Tensor]:
    """Returns what the stock pipeline encodes the captions to."""
    if isinstance(pipe, Flux2KleinPipeline):
        return {"encoder_hidden_states": pipe.encode_prompt(CAPTIONS)[0]}
    if hasattr(pipe, "text_encoder_2"):
        text, _, pooled, _ = pipe.encode_prompt(CAPTIONS, None, None)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}
    text, mask, _, _ = pipe.encode_prompt(CAPTIONS)
    condition = {"encoder_hidden_states": text, "encoder_attention_mask": mask}
    if pipe.transformer.use_additional_conditions:
        condition |= {"resolution": torch.full((3, 2), 1024.0), "aspect_ratio": torch.ones(3, 1)}
    return condition


@torch.no_grad()
@pytest.mark.parametrize("name", MAKERS)
def test_a_teacher_is_shown_what_its_pipeline_shows_it(name: str, folders: dict[str, Path]) -> None:
    assert list(teacher_faults(folders[name])) == []
    absent = {"text_encoder_3": None, "tokenizer_3": None} if "without" in name else {}
    stock = DiffusionPipeline.from_pretrained(folders[name], **absent)
    stock.set_progress_bar_config(disable=True)
    teacher = Teacher.load(folders[name], "fp32", text=TextOptions(buckets=False))  # encodes the padding, too
    null = torch.tensor([not caption for caption in CAPTIONS])
    condition = teacher.encode(teacher.tokenizers(CAPTIONS), null)
    expected = stock_condition(stock)
    assert condition.keys() == expected.keys()
    assert all(torch.equal(condition[key], value) for key, value in expected.items())

    calls: list[tuple[dict[str, Any], torch.Tensor]] = []

    def note(module: Any, inputs: Any, options: dict[str, Any], output: Any) -> None:
        given = {**dict(zip(("hidden_states",), inputs, strict=False)), **options}
        calls.append((given, output[0]))

    steps: list[torch.Tensor] = []
    step = stock.scheduler.step
    stock.scheduler.step = lambda output, *args, **kwargs: steps.append(output) or step(output, *args, **kwargs)
    with stock.transformer.register_forward_hook(note, with_kwargs=True):
        generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
        options: dict[str, Any] = dict(teacher.family.call_options)
        options |= {"height": PIXELS, "width": PIXELS} if name == "klein" else {}
        settings: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent", **options}
        theirs = stock(prompt=CAPTIONS[:2], generator=generators, **settings).images
    own = {key: value[:2] for key, value in condition.items()}
    for (given, _), predicted in zip(calls, steps, strict=True):
        noised, timestep = given["hidden_states"], given["timestep"]
        if name == "klein":  # its pipeline works with tokens [B, h * w, C], and tells the transformer sigma
            side = PIXELS // 16
            noised, predicted = (each.mT.unflatten(2, (side, side)) for each in (noised, predicted))
            timestep = 1000 * timestep
        assert torch.allclose(denoise(teacher.denoiser, noised, timestep, own), predicted, atol=1e-6)
    pipe = teacher.pipeline("teacher")
    latents = draw_latents(pipe, CAPTIONS[:2], [1, 2], 2, 1.0, 2, options.get("height"))
    assert latents.shape[1:] == noised.shape[1:]
    if name == "klein":  # its pipeline returns the VAE's latents
        assert torch.allclose(decode(pipe, latents), pipe.vae.decode(theirs).sample.clamp(-1, 1), atol=1e-5)
        latents = teacher.family.to_vae(pipe, latents)
    assert torch.allclose(latents, theirs, atol=1e-5)


@pytest.mark.parametrize("name", MAKERS)
def test_noise_and_target_are_the_schedulers(name: str, folders: dict[str, Path]) -> None:
    teacher = Teacher.load(folders[name], "fp32")
    latents, noise = torch.randn(2, 3, *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    if isinstance(teacher.process, RectifiedFlow):
        timesteps = teacher.pipe.scheduler.timesteps[[0, 500, 999]]
        expected = teacher.pipe.scheduler.scale_noise(latents, timesteps, noise)
        target = noise - latents
    else:
        timesteps = torch.tensor([0, 500, 999])
        signal = teacher.pipe.scheduler.alphas_cumprod[timesteps].view(3, 1, 1, 1)
        expected, target = signal.sqrt() * latents + (1 - signal).sqrt() * noise, noise
    assert torch.allclose(teacher.add_noise(latents, noise, timesteps), expected, atol=1e-6)
    assert torch.equal(teacher.target(latents, noise, timesteps), target)


@pytest.mark.parametrize("name", ["sd3", "pixart"])
def test_a_depth_student_has_its_teachers_blocks(name: str, folders: dict[str, Path]) -> None:
    teacher = Teacher.load(folders[name], "fp32")
    theirs = teacher.denoiser.state_dict()
    student = student_of("depth-[0,3,5]", teacher.architecture)
    network = build_student("depth-[0,3,5]", teacher.architecture, 0, teacher.stored_denoiser())
    source = {"0": "0", "1": "3", "2": "5"}
    for key, tensor in network.state_dict().items():
        parts = key.split(".")
        if parts[0] == "transformer_blocks":
            parts[1] = source[parts[1]]
        assert torch.equal(tensor, theirs[".".join(parts)]), key
    blocks = {(theirs.split("[")[0], ours.split("[")[0]) for theirs, ours in student.pairs}
    assert blocks == {
        ("transformer_blocks.2", "transformer_blocks.0"),  # block 0 stands for 0, 1 and 2
        ("transformer_blocks.4", "transformer_blocks.1"),
        ("transformer_blocks.5", "transformer_blocks.2"),
    }
    assert student_of("depth-3", teacher.architecture).denoiser.config["num_layers"] == 3
    if name == "sd3":
        assert student.denoiser.config["dual_attention_layers"] == (0,)
        assert len(student.pairs) == 5  # image and text of two blocks, the image of the last


def test_a_depth_student_has_blocks_of_both_kinds(folders: dict[str, Path]) -> None:
    teacher = Teacher.load(folders["klein"], "fp32")
    theirs = teacher.denoiser.state_dict()
    student = student_of("depth-2+2", teacher.architecture)
    network = build_student("depth-2+2", teacher.architecture, 0, teacher.stored_denoiser())
    assert [len(network.transformer_blocks), len(network.single_transformer_blocks)] == [2, 2]
    source = {"transformer_blocks": ("0", "2"), "single_transformer_blocks": ("0", "3")}
    for key, tensor in network.state_dict().items():
        parts = key.split(".")
        if parts[0] in source:
            parts[1] = source[parts[0]][int(parts[1])]
        assert torch.equal(tensor, theirs[".".join(parts)]), key
    assert student.pairs == [  # block 0 of each kind stands for those up to the next one that was kept
        ("transformer_blocks.1[1]", "transformer_blocks.0[1]"),
        ("transformer_blocks.1[0]", "transformer_blocks.0[0]"),
        ("transformer_blocks.2[1]", "transformer_blocks.1[1]"),
        ("transformer_blocks.2[0]", "transformer_blocks.1[0]"),
        ("single_transformer_blocks.2", "single_transformer_blocks.0"),
        ("single_transformer_blocks.3", "single_transformer_blocks.1"),
    ]
    assert student_of("depth-[0,2,3,6]", teacher.architecture).pairs == student.pairs


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "rule"),
    [
        *((name, rule) for name in ("sd3", "pixart") for rule in ("depth-3", "width-0.5")),
        *(("klein", rule) for rule in ("depth-2+2", "width-0.5")),
    ],
)
def test_a_student_trains_and_its_features_meet(name: str, rule: str, folders: dict[str, Path]) -> None:
    teacher = Teacher.load(folders[name], "fp32")
    teacher.latent_side = 16  # klein's own latents are larger
    student = student_of(rule, teacher.architecture)
    network = build_student(rule, teacher.architecture, 1)
    module = TappedStudent(network, student, teacher.architecture)
    taps = FeatureTaps(teacher.denoiser, module.teacher_names)
    condition = teacher.encode(teacher.tokenizers(CAPTIONS[:2]))
    noised, timesteps = torch.randn(2, *teacher.latent_shape), torch.tensor([100, 900])
    with torch.no_grad():
        expected = denoise(teacher.denoiser, noised, timesteps, condition)
    theirs = taps.collect()

    def gradients() -> dict[str, torch.Tensor | None]:
        module.zero_grad()
        prediction, features = module(noised, timesteps, condition)
        terms = feature_loss(module.teacher_names, features, theirs)
        (output_loss(prediction, expected)["output"] + sum(terms.values())).backward()
        return {key: None if p.grad is None else p.grad.clone() for key, p in module.named_parameters()}

    plain = gradients()
    without = [key for key, gradient in plain.items() if gradient is None]
    assert not without, f"no gradient reaches {without[:3]}"
    network.enable_gradient_checkpointing()
    for key, gradient in gradients().items():
        assert torch.allclose(plain[key], gradient, atol=1e-5, rtol=1e-3), key  # type: ignore[arg-type]
    assert module.network is network and next(iter(module.state_dict())).startswith("transformer.")


@pytest.mark.heavy
@torch.no_grad()
@pytest.mark.parametrize(("name", "rule"), [("sd3", "depth-3"), ("pixart", "depth-3"), ("klein", "depth-2+2")])
def test_a_student_of_a_checkpoint_predicts_the_same(name: str, rule: str, folders: dict[str, Path]) -> None:
    """A checkpoint holds parameters. SD 3 and PixArt also have a table of positions."""
    teacher = Teacher.load(folders[name], "fp32")
    teacher.latent_side = 16
    network = build_student(rule, teacher.architecture, 1)
    again = trained_student(network, dict(network.named_parameters()), torch.float32)
    condition = teacher.encode(teacher.tokenizers(CAPTIONS[:2]))
    noised, timesteps = torch.randn(2, *teacher.latent_shape), torch.tensor([100, 900])
    ours, theirs = (denoise(each, noised, timesteps, condition) for each in (again, network))
    assert torch.equal(ours, theirs)


def test_what_a_depth_rule_cannot_do_is_said(folders: dict[str, Path]) -> None:
    sd3 = Teacher.load(folders["sd3"], "fp32").architecture
    for rule, said in (
        ("depth-7", "the teacher has 6 blocks; a student has 2 to 6 of them, got 7"),
        ("depth-1", "a student has 2 to 6 of them, got 1"),
        ("depth-[0,6]", r"student.keep: \[0, 6\]: the teacher's blocks are 0 to 5"),
        ("depth-[-1,5]", r"student.keep: \[-1, 5\]: the teacher's blocks are 0 to 5"),
        ("depth-[0,2,4]", r"the last block \(5\) must be kept"),
        ("depth-[2,0,5]", "expected rising numbers of blocks, each once"),
        ("block-base", "needs a teacher with a U-Net, but this one has a SD3Transformer2DModel"),
    ):
        with pytest.raises(UserError, match=said):
            student_of(rule, sd3)
    klein = Teacher.load(folders["klein"], "fp32").architecture
    for rule, said in (
        ("depth-3", r"the teacher has 3 \+ 4 blocks; say how many of each a student keeps, such as depth-2\+2"),
        ("depth-4+2", "the teacher has 3 blocks; a student has 2 to 3 of them, got 4"),
        ("depth-[0,1]", "keep at least one of the blocks 3 to 6, which are of a kind"),
    ):
        with pytest.raises(UserError, match=said):
            student_of(rule, klein)
    pixart = Teacher.load(folders["pixart"], "fp32").architecture
    assert student_of("depth-[0,2,4]", pixart).denoiser.config["num_layers"] == 3


FLOW = r"ddim is for discrete betas, .* trained by flow matching; use .*=teacher"
HUB = "teacher.path=stabilityai/stable-diffusion-3.5-medium"
PIXART = "teacher.path=PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"


@pytest.mark.parametrize(
    ("check", "words", "said"),
    [
        (data.check_cache, ["cache.sampler=ddim"], f"cache.sampler: {FLOW}"),
        (train.check, ["cache.sampler=ddim"], f"cache.sampler: {FLOW}"),
        (train.check, ["eval.sampler=ddim"], f"eval.sampler: {FLOW}"),
        (train.check, [HUB, "cache.sampler=ddim"], f"cache.sampler: {FLOW}"),
        (train.check, [HUB, "teacher.text_buckets=true"], "stable-diffusion-3.5-medium does not mask its text"),
        (train.check, [PIXART, "teacher.text_tokens=null", "train.timesteps=logit_normal"], "train.timesteps"),
        (train.check, ["engine.attention=flash"], "engine.attention: flash is for U-Nets"),
        (train.check, ["engine.channels_last=true"], "engine.channels_last: is for U-Nets"),
        (train.check, ["student.rule=width-0.9", "student.init=random"], "keeps all 4 heads; use at most 0.75"),
        (evaluation.check, ["eval.sampler=ddim"], f"eval.sampler: {FLOW}"),
        (evaluation.check, ["teacher.text_tokens=513"], "teacher.text_tokens: is 513, expected 1 to 512"),
        (data.check_cache, ["cache.resolution=36"], "cache.resolution: is 36, expected a multiple of 8"),
        (
            evaluation.check,
            ["eval.resolution=4096"],
            "eval.resolution: is 4096, but the teacher takes images of .* at m",
        ),
        (
            train.check,
            ["train.losses.frequency=1"],
            "train.losses.frequency: .* the features of a transformer are rows",
        ),
    ],
)
def test_what_does_not_suit_a_flow_teacher_is_named_in_the_check(
    check: Callable[[Config], None], words: list[str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        check(load_config("demo-flow-with", words))


def test_other_sizes_in_the_evaluation_are_told(caplog: pytest.LogCaptureFixture) -> None:
    train.check(load_config("demo-flow-with", ["cache.resolution=16", "eval.metrics=[]"]))
    said = caplog.text
    assert "eval.resolution: images are drawn with 32 pixels, but the student is trained on latents of 16" in said
    assert "eval.resolution=16 draws its own size" in said


def test_a_unets_text_has_one_length() -> None:
    with pytest.raises(
        UserError, match=r"teacher\.text_tokens: is 16, but the text of stable-diffusion has the length"
    ):
        train.check(load_config("demo-with", ["teacher.text_tokens=16"]))


@pytest.mark.heavy
@torch.no_grad()
def test_noise_is_drawn_in_fp32(folders: dict[str, Path]) -> None:
    """In bf16, torch's normal random numbers would have 256 levels."""
    for name in ("sd3", "pixart", "klein"):
        teacher = Teacher.load(folders[name], "bf16")
        pipe, seen = teacher.pipeline("teacher"), []
        handle = teacher.denoiser.register_forward_pre_hook(
            lambda module, given, options, seen=seen: seen.append(options.get("hidden_states", *given[:1])),
            with_kwargs=True,
        )
        draw_latents(pipe, ["a red cat"], [7], 1, 1.0, 1, PIXELS)
        handle.remove()
        side = PIXELS // teacher.pixels_per_latent
        noise = torch.randn(1, teacher.latent_shape[0], side, side, generator=torch.Generator().manual_seed(7))
        given = seen[0] if seen[0].dim() == 4 else seen[0].mT.unflatten(2, (side, side))
        assert torch.equal(given[:1], noise.bfloat16()), name
        assert sampler_dtype(pipe) == "pipeline, noise in fp32"


def test_a_language_model_gives_no_logits(folders: dict[str, Path]) -> None:
    text = Teacher.load(folders["klein"], "fp32").pipe.text_encoder
    assert text(torch.zeros(2, 5, dtype=torch.long)).logits.shape == (2, 5, 0)


@pytest.mark.heavy
def test_two_rules_are_counted_in_one_process(folders: dict[str, Path]) -> None:
    """Without and with activation checkpointing, on fake tensors; then the network runs on real ones."""
    for rule in ("depth-2+2", "depth-3+2"):
        costs = Sizes(str(folders["klein"]), rule, PIXELS, 16)
        whole, checkpointed = (costs.activations("fp32", each, 1.0) for each in (False, True))
        assert 0 < checkpointed < whole
    teacher = Teacher.load(folders["klein"], "fp32", text=TextOptions(16))
    teacher.latent_side = PIXELS // teacher.pixels_per_latent
    condition = teacher.encode(teacher.tokenizers(["a red cat"]))
    noised = torch.randn(1, *teacher.latent_shape)
    assert denoise(teacher.denoiser, noised, torch.tensor([500.0]), condition).isfinite().all()


@pytest.mark.heavy
@torch.no_grad()
@pytest.mark.parametrize(("name", "tokens", "length"), [
    ("sd3", None, 77 + 256), ("sd3", 16, 77 + 16), ("pixart", 16, 16), ("pixart alpha", None, 120), ("klein", 16, 16),
])  # fmt: skip
def test_costs_are_those_of_the_text_that_is_encoded(
    name: str, tokens: int | None, length: int, folders: dict[str, Path]
) -> None:
    teacher = Teacher.load(folders[name], "fp32", text=TextOptions(tokens, buckets=False if "pixart" in name else None))
    encoded = teacher.encode(teacher.tokenizers(["a cat"]))["encoder_hidden_states"]
    planned = Sizes(str(folders[name]), teacher.family.default_rule(teacher.architecture.config), None, tokens)
    assert encoded.shape[1] == length
    for architecture in (teacher.architecture, planned.networks.denoiser, planned.derived.denoiser):
        assert architecture.tokens in (length, None) and (architecture.tokens or teacher.family.tokens) == length


@pytest.mark.heavy
@pytest.mark.parametrize("name", MAKERS)
def test_a_teacher_multiplies_in_8_bits(name: str, folders: dict[str, Path]) -> None:
    """What modulates a block keeps its precision: it sees one row per sample."""
    teacher = Teacher.load(folders[name], "int8_dynamic", text=TextOptions(16))
    products = [module for module, layer in teacher.denoiser.named_modules() if isinstance(layer, Int8Product)]
    assert products and not any("norm" in module or "emb" in module for module in products)
    found = re.search(r"teacher in int8: .* by (\d+\.\d+)%", teacher.remark)
    assert found and 0 < float(found[1]) < 5


@pytest.mark.heavy
def test_the_error_of_8_bits_is_not_the_caches(folders: dict[str, Path]) -> None:
    plain, cached = (
        Teacher.load(folders["sd3"], "fp32", text=TextOptions(16, "int8", cache_gb=size)).remark for size in (0, 1)
    )
    assert plain == cached and "by 0.00%" not in plain


def test_levels_of_noise_are_the_published_ones() -> None:
    """t = 500, 900 and 999 of SD 1.4 have the sigmas 0.618, 0.893 and 0.936."""
    assert [round(float(sd14_sigmas()[t]), 3) for t in (500, 900, 999)] == [0.618, 0.893, 0.936]
    assert sd14_time(float(sd14_sigmas()[321])) == pytest.approx(0.321)


def test_a_level_is_never_above_1() -> None:
    for of, shift in ((of, shift) for of in ("time", "sigma", "noise") for shift in (0.5, 1.0, 3.0, 7.0)):
        level = RectifiedFlow().level(of, shift)
        assert all(0 <= level(t) <= 1 for t in RectifiedFlow().grid), (of, shift)


@pytest.mark.parametrize(
    ("of", "distribution", "shift", "share"),
    [
        ("sigma", "uniform", 1.0, 0.198),
        ("sigma", "logit_normal", 1.0, 0.136),
        ("sigma", "uniform", 3.0, 0.361),
        ("sigma", "logit_normal", 3.0, 0.326),
        ("time", "uniform", 3.0, 0.198),
        ("noise", "uniform", 1.0, 0.178),
        ("noise", "logit_normal", 1.0, 0.095),
        ("noise", "uniform", 3.0, 0.358),
        ("noise", "logit_normal", 3.0, 0.296),
    ],
)
def test_the_share_of_replaced_captions(of: str, distribution: str, shift: float, share: float) -> None:
    """The mean of exp(-5 (1 - u)) over the drawn timesteps."""
    flow = RectifiedFlow()
    times = Times(flow.draw(distribution, shift), "exponential", {}, flow.level(of, shift))
    assert times.expected_share() == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize(
    ("schedule", "of", "share"),
    [
        ("scaled_linear", "time", 0.198),  # SD 1.4
        ("scaled_linear", "noise", 0.198),
        ("linear", "time", 0.198),  # PixArt
        ("linear", "sigma", 0.412),
        ("linear", "noise", 0.423),
    ],
)
def test_the_share_of_replaced_captions_of_a_beta_schedule(schedule: str, of: str, share: float) -> None:
    betas = (0.00085, 0.012) if schedule == "scaled_linear" else (0.0001, 0.02)
    process = DiscreteBetas(DDPMScheduler(beta_schedule=schedule, beta_start=betas[0], beta_end=betas[1]))
    times = Times(process.draw("uniform", None), "exponential", {}, process.level(of, None))
    assert times.expected_share() == pytest.approx(share, abs=0.006)


def test_the_level_of_a_beta_schedule() -> None:
    pixart = DiscreteBetas(DDPMScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02))
    found = [pixart.level(of, None)(500) for of in ("time", "sigma", "noise")]
    assert found == pytest.approx([0.5, 0.775, 0.708], abs=5e-4)
    sd14 = DiscreteBetas(DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012))
    assert sd14.level("sigma", None)(500) == pytest.approx(0.618, abs=5e-4)
    for t in (0, 123, 500, 999):
        assert sd14.level("noise", None)(t) == pytest.approx(t / 1000, abs=1e-6)


def test_full_scale_transformers_replace_about_as_many_captions() -> None:
    for name, process in (("pixart-14-512", DiscreteBetas(DDPMScheduler())), ("sd35-12-1024", RectifiedFlow())):
        assert 0.17 < times_of(load_config(name), process).expected_share() < 0.21, name


def test_a_folder_of_fp16_variants_is_imported(folders: dict[str, Path], tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(folders["sd3"], dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "variants", variant="fp16")
    assert any("only in the variant fp16" in fault for fault in teacher_faults(tmp_path / "variants"))
    import_folder(tmp_path / "variants", tmp_path / "plain")
    assert list(teacher_faults(tmp_path / "plain")) == []
    ours, theirs = (Teacher.load(folder, "fp32") for folder in (tmp_path / "plain", folders["sd3"]))
    for name, value in theirs.denoiser.state_dict().items():
        assert torch.equal(ours.denoiser.state_dict()[name], value.half().float())
    with torch.no_grad():
        assert torch.allclose(ours.probe(), theirs.probe(), atol=0.05)
