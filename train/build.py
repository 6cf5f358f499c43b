"""Builds the networks of an experiment and prepares them for training.

Initialises the student and its projectors, adds the feature taps, and chooses the attention backends.
"""

from dataclasses import asdict, replace
from pathlib import Path

import torch
from diffusers import ModelMixin

from randcond.launch.config.engines import batch_shape
from randcond.launch.config.sections import Config
from randcond.launch.config.sections import Engine as EngineSection
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_record, write_json
from randcond.launch.runtime.logs import log
from randcond.launch.runtime.ranks import device
from randcond.model_zoo.checkpoints.diffusers_folder import class_name
from randcond.model_zoo.checkpoints.stored_tensors import StoredTensors
from randcond.model_zoo.cost.flops import denoiser_cost, training_flop
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.export import check_shapes, shapes
from randcond.model_zoo.families.registry import family_of
from randcond.model_zoo.kernels.attention import Choice, Use, choice_from, choose_attention, set_attention, summary
from randcond.model_zoo.kernels.compilation import compile_network, compile_text
from randcond.model_zoo.students.features import TappedStudent
from randcond.model_zoo.students.registry import build_student, student_of
from randcond.model_zoo.teacher import Teacher
from randcond.train.engine import Engine
from randcond.train.step import DistillationStep


def build_step(config: Config, teacher: Teacher) -> tuple[TappedStudent, DistillationStep]:
    """Returns the module that the engine trains, and the step that compares it with the teacher.

    Raises UserError if the student rule does not apply to the teacher.
    """
    student, train, options = config.student, config.train, config.engine
    weights = teacher.stored_denoiser() if student.init == "teacher" else None
    network = build_student(student.full_rule, teacher.architecture, student.seed, weights)
    if student.earlier:
        load_student(network, Path(student.earlier))
    derived = student_of(student.full_rule, teacher.architecture)
    module = TappedStudent(network, derived, teacher.architecture, student.seed).to(device())
    zero_null = config.conditioning.null_embedding == "teacher"
    layout = options.channels_last is True, options.teacher_graph is True, train.feature_loss
    distil = DistillationStep(
        teacher, module.teacher_names, asdict(train.losses), train.global_batch, zero_null, *layout
    )
    return module, distil


def load_student(network: ModelMixin, folder: Path) -> None:
    """Fills a student with the weights of an earlier one, in place.

    Raises UserError if the folder holds no student, or one of another architecture.
    """
    check_start(network, folder)
    network.load_state_dict(dict(StoredTensors(folder / family_of(type(network)).part)), strict=True)


def check_start(network: ModelMixin, folder: Path) -> None:
    """Raises UserError if a folder does not hold an earlier student of the architecture of `network`.

    Loads no weights. `network`: may be on the meta device.
    """
    part = folder / family_of(type(network)).part
    if not (part / "config.json").is_file():
        raise UserError(f"student.init: no exported student at {folder}; expected a folder like RUN/student")
    found, expected = class_name(part / "config.json"), type(network).__name__
    if found != expected:
        raise UserError(
            f"student.init: {part}/config.json: _class_name is {found}, but student.rule gives {expected}; "
            f"use the student.rule of that student"
        )
    check_shapes(shapes(network.state_dict()), StoredTensors(part).shapes(), f"student.init: {folder}")


def flop_per_sample(teacher: Teacher, student: ModelMixin) -> int:
    """Returns the floating-point operations of one training sample, at the teacher's latent size.

    Counts the forward of the teacher, and the forward and backward of the student, from their configurations.
    """
    side = teacher.latent_shape[-1]
    large = teacher.architecture
    small = replace(Architecture.of(student), tokens=large.tokens)
    costs = (denoiser_cost(each.at(side)) for each in (large, small))
    return training_flop(*costs)


def choose_kernels(config: Config, teacher: Teacher, student: ModelMixin, engine: Engine, folder: Path) -> None:
    """Sets attention backends, memory formats, activation checkpointing and compilation. Call before the first forward.

    Rank 0 chooses the attention backends for all ranks and stores the choice in attention.json in the run folder
    `folder`. A resumed run reuses the stored choice if engine.attention, engine.compile, the device and the networks
    are the same.
    """
    stored_path = folder / "attention.json"
    options = config.engine
    micro, _ = batch_shape(config.train.global_batch, engine.ranks, options.micro_batch)
    networks = {"teacher": (teacher.denoiser, teacher.dtype), "student": (student, engine.dtype)}
    chosen: dict[str, list[Choice]] = {}
    if engine.rank == 0:
        stored = read_record(stored_path) if stored_path.is_file() else {}
        one_graph = options.compile == "whole"
        depends_on = {
            "wanted": options.attention,
            "device": torch.cuda.get_device_name(engine.device) if engine.device.type == "cuda" else "cpu",
            "one_graph": one_graph,
            "networks": [
                teacher.fingerprint,
                config.student.full_rule,
                *(str(dtype) for _, dtype in networks.values()),
            ],
        }
        if stored.get("of") == depends_on:
            chosen = {name: [choice_from(entry) for entry in stored[name]] for name in networks}
        else:
            for name, (network, dtype) in networks.items():
                use = Use(dtype, engine.device, micro, name == "student", one_graph)
                chosen[name] = choose_attention(network, options.attention, use)
            as_json = {name: [asdict(choice) for choice in choices] for name, choices in chosen.items()}
            write_json(stored_path, {"of": depends_on, **as_json})
        for name, choices in chosen.items():
            log.info(f"attention of the {name}: {summary(choices)}")
    chosen = engine.broadcast(chosen)
    for name, (network, _) in networks.items():
        set_attention(network, chosen[name])
    message = apply_speed_options(options, teacher, student)
    if engine.rank == 0 and message:
        log.info(message)


def apply_speed_options(options: EngineSection, teacher: Teacher, student: ModelMixin) -> str:
    """Sets memory formats, activation checkpointing and compilation. Returns a line for the log, or ""."""
    # FSDP chooses the memory layout of sharded weights. A sharded teacher gets channels-last inputs only.
    if options.channels_last is True and options.teacher == "replicated":
        teacher.denoiser.to(memory_format=torch.channels_last)
    if options.activation_checkpointing:
        student.enable_gradient_checkpointing()
    if options.compile == "none":
        return ""
    # Sharded weights are gathered between the blocks, and a single graph can't contain that.
    gathered_by_block = {
        "teacher": options.teacher == "sharded",
        "student": options.spec.gathers_blocks,
    }
    how = {name: "blocks" if by_block else options.compile for name, by_block in gathered_by_block.items()}
    compile_network(teacher.denoiser, how["teacher"], options.teacher_graph is True)
    compile_network(student, how["student"])
    text = ""
    if options.compile == "whole" and teacher.has_buckets:
        text = ", text encoder not (its batches have many shapes)"  # each shape would be compiled
    elif options.compile == "whole":
        compile_text(teacher.text_encoders)
        teacher.text_is_compiled = True
    return (
        f"compiled: teacher {how['teacher']}, student {how['student']}{text}; compilation takes place in the first step"
    )
