"""The networks of an experiment, ready to train: student and projectors initialised, taps on, attention chosen."""

from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from randcond.launch.config.batch import batch_shape
from randcond.launch.config.sections import Config
from randcond.launch.config.sections import Engine as EngineSection
from randcond.launch.runtime.files import read_json, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.cost.flops import training_flop, unet_cost
from randcond.model_zoo.denoiser.configuration import plain_config
from randcond.model_zoo.kernels.attention import Choice, Use, choice_from, choose_attention, set_attention, summary
from randcond.model_zoo.kernels.compilation import compile_network, compile_text
from randcond.model_zoo.students.features import TappedStudent
from randcond.model_zoo.students.registry import build_student, find_rule
from randcond.model_zoo.teacher import Teacher
from randcond.train.engine import Engine
from randcond.train.step import DistillationStep


def build_step(config: Config, teacher: Teacher) -> tuple[TappedStudent, DistillationStep]:
    """The module the engine trains, and the step that compares it with the teacher.

    Raises UserError when the student's rule does not apply to the teacher.
    """
    student, train, options = config.student, config.train, config.engine
    weights = teacher.stored_unet() if student.init == "teacher" else None
    unet = build_student(student.rule, plain_config(teacher.unet.config), student.seed, weights)
    module = TappedStudent(unet, teacher.unet, find_rule(student.rule), student.seed).to(device())
    zero_null = config.conditioning.null_embedding == "teacher"
    layout = options.channels_last, options.teacher_graph
    distil = DistillationStep(
        teacher, module.teacher_names, asdict(train.losses), train.global_batch, zero_null, *layout
    )
    return module, distil


def flop_per_sample(teacher: Teacher, student: UNet2DConditionModel) -> int:
    """Floating-point operations of distilling one sample, from the two configurations, at the size of its latents."""
    size = {"sample_size": teacher.latent_shape[-1]}
    costs = (unet_cost(type(unet), {**plain_config(unet.config), **size}) for unet in (teacher.unet, student))
    return training_flop(*costs)


def choose_kernels(config: Config, teacher: Teacher, unet: UNet2DConditionModel, engine: Engine, folder: Path) -> None:
    """Attention backends, memory formats, checkpointing and compilation, before the first forward.

    The first rank chooses for all; the run keeps the choice (attention.json), so that a resumed run goes on with the
    kernels it began with, on such a device and compiled alike.
    """
    kept = folder / "attention.json"
    options = config.engine
    micro, _ = batch_shape(config.train.global_batch, engine.ranks, options.micro_batch)
    networks = {"teacher": (teacher.unet, teacher.dtype), "student": (unet, engine.dtype)}
    chosen: dict[str, list[Choice]] = {}
    if engine.rank == 0:
        stored = read_json(kept) if kept.is_file() else {}
        one_graph = options.compile == "whole"
        of = {
            "wanted": options.attention,
            "device": torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "cpu",
            "one_graph": one_graph,
            "networks": [teacher.fingerprint, config.student.rule, *(str(dtype) for _, dtype in networks.values())],
        }
        if stored.get("of") == of:
            chosen = {what: [choice_from(entry) for entry in stored[what]] for what in networks}
        else:
            for what, (network, dtype) in networks.items():
                use = Use(dtype, engine.device, micro, what == "student", one_graph)
                chosen[what] = choose_attention(network, options.attention, use)
            plain = {what: [asdict(choice) for choice in choices] for what, choices in chosen.items()}
            write_json(kept, {"of": of, **plain})
        for what, choices in chosen.items():
            log.info(f"attention of the {what}: {summary(choices)}")
    chosen = engine.broadcast(chosen)
    for what, (network, _) in networks.items():
        set_attention(network, chosen[what])
    said = speed_up(options, teacher, unet)
    if engine.rank == 0 and said:
        log.info(said)


def speed_up(options: EngineSection, teacher: Teacher, student: UNet2DConditionModel) -> str:
    """Memory formats, checkpointing and compilation of teacher and student; what the log should say of it."""
    if (
        options.channels_last and options.teacher == "replicated"
    ):  # sharded weights lie as FSDP keeps them: inputs decide
        teacher.unet.to(memory_format=torch.channels_last)
    if options.activation_checkpointing:
        student.enable_gradient_checkpointing()
    if options.compile == "none":
        return ""
    # What gathers weights block by block runs between the blocks: no graph can hold it.
    gathered = {
        "teacher": options.teacher == "sharded",
        "student": options.kind == "fsdp" or options.zero_stage == 3,
    }
    how = {name: "blocks" if in_parts else options.compile for name, in_parts in gathered.items()}
    compile_network(teacher.unet, how["teacher"], options.teacher_graph)
    compile_network(student, how["student"])
    if options.compile == "whole":
        compile_text(teacher.text_encoders)
    return f"compiled: teacher {how['teacher']}, student {how['student']}; the first step waits for it"
