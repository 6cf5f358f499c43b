"""The networks of an experiment, ready to train: student and projectors initialised, taps on, attention chosen."""

from dataclasses import asdict
from pathlib import Path

from diffusers import UNet2DConditionModel

from randcond.data.files import read_json, write_json
from randcond.data.ranks import device
from randcond.launch.batch import batch_shape
from randcond.launch.config import Config
from randcond.model_zoo.attention import Choice, choice_from, choose_attention, set_attention, summary
from randcond.model_zoo.cost import training_flop, unet_cost
from randcond.model_zoo.features import TappedStudent
from randcond.model_zoo.students import build_student, find_rule, plain_config
from randcond.model_zoo.teacher import Teacher
from randcond.train.engine import Engine
from randcond.train.step import DistillationStep


def build_step(config: Config, teacher: Teacher) -> tuple[TappedStudent, DistillationStep]:
    """The module the engine trains, and the step that compares it with the teacher.

    Raises ValueError when the student's rule does not apply to the teacher.
    """
    student, train = config.student, config.train
    weights = teacher.stored_unet() if student.init == "teacher" else None
    unet = build_student(student.rule, plain_config(teacher.unet.config), student.seed, weights)
    module = TappedStudent(unet, teacher.unet, find_rule(student.rule), student.seed).to(device())
    zero_null = config.conditioning.null_embedding == "teacher"
    distil = DistillationStep(teacher, module.teacher_names, asdict(train.losses), train.global_batch, zero_null)

    return module, distil


def flop_per_sample(teacher: UNet2DConditionModel, student: UNet2DConditionModel) -> int:
    """Floating-point operations of distilling one sample, from the two configurations."""
    return training_flop(*(unet_cost(type(unet), plain_config(unet.config)) for unet in (teacher, student)))


def settle(config: Config, teacher: Teacher, unet: UNet2DConditionModel, engine: Engine, folder: Path) -> None:
    """Attention backends, checkpointing and compilation, before the first forward.

    The first rank chooses for all; the run keeps the choice (attention.json), so that a resumed run goes on with the
    kernels it began with.
    """
    kept = folder / "attention.json"
    options = config.engine
    micro, _ = batch_shape(config.train.global_batch, engine.ranks, options.micro_batch)
    networks = {"teacher": (teacher.unet, teacher.dtype), "student": (unet, engine.dtype)}
    chosen: dict[str, list[Choice]] = {}
    if engine.rank == 0:
        stored = read_json(kept) if kept.is_file() else {}
        if stored.get("wanted") == options.attention:
            chosen = {what: [choice_from(entry) for entry in stored[what]] for what in networks}
        else:
            for what, (network, dtype) in networks.items():
                trains = what == "student"
                chosen[what] = choose_attention(network, options.attention, dtype, engine.device, micro, trains)
            plain = {what: [asdict(choice) for choice in choices] for what, choices in chosen.items()}
            write_json(kept, {"wanted": options.attention, **plain})
        for what, choices in chosen.items():
            print(f"attention of the {what}: {summary(choices)}", flush=True)
    chosen = engine.broadcast(chosen)
    for what, (network, _) in networks.items():
        set_attention(network, chosen[what])
    if options.activation_checkpointing:
        unet.enable_gradient_checkpointing()
    if options.compile:  # after the taps: hooks that come later would be ignored
        teacher.unet.compile_repeated_blocks()
        unet.compile_repeated_blocks()
