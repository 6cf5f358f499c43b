"""The evaluation stage: teacher and student draw the same captions by the same seeds, and are scored.

Out: `paths.reference` (the teacher's images and scores, shared) and `paths.run`/eval-raw or eval-ema (the student's).
"""

from pathlib import Path

from diffusers import DiffusionPipeline

from randcond.data.digits.judge import Judge
from randcond.data.files import write_json
from randcond.data.ranks import device, rank
from randcond.eval.generate import choose_prompts, generate, load_chunks, protocol
from randcond.eval.score import score
from randcond.launch.config import Config, eval_folder, resolve_path, student_folder
from randcond.launch.logs import say_everywhere
from randcond.model_zoo.export import load_unet
from randcond.model_zoo.teacher import Teacher, folder_fingerprint


def run(config: Config) -> None:
    """Draws and scores what is missing; every rank takes its share of the chunks.

    Raises ValueError when the student is not trained yet.
    """
    prompts = choose_prompts(config)
    judge = Judge.load()
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    student = trained_student(config, config.eval.weights)
    unet = load_unet(student / "unet", teacher.dtype)
    arms: list[tuple[str, Path, DiffusionPipeline, Path]] = [
        ("teacher", Path(config.paths.reference), teacher.pipeline(config.eval.sampler), teacher.folder),
        ("student", eval_folder(config), teacher.pipeline(config.eval.sampler, unet.to(device())), student),
    ]
    for what, out, pipe, network in arms:
        made_of = protocol(config, folder_fingerprint(network))
        if (out / "scores.json").is_file() and (out / "plan.json").is_file():
            generate(config, pipe, prompts, judge, out, made_of, what)  # nothing to draw: checks that it is the same
            continue
        generate(config, pipe, prompts, judge, out, made_of, f"drawing ({what})")
        if rank() != 0:
            continue
        drawn = load_chunks(out, len(prompts.captions), config.eval.batch)
        scores = score(prompts, drawn["read"], drawn["features"], judge)
        write_json(out / "scores.json", {"protocol": made_of, "splits": scores})
        line = ", ".join(f"{split} digits {values['digit_accuracy']:.1%}" for split, values in scores.items())
        say_everywhere(f"eval: {what}: {line}")


def trained_student(config: Config, weights: str) -> Path:
    """The exported student of a finished run; raises ValueError when there is none."""
    folder = student_folder(config, weights)
    if not (Path(config.paths.run) / "train.json").is_file() or not folder.is_dir():
        raise ValueError(f"no trained student at {folder}: train it with `randcond run train {config.name}`")
    return folder
