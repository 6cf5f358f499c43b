"""The evaluation stage: teacher and student draw the same captions by the same seeds, and are scored.

Out: `paths.reference` (the teacher's images and scores, shared) and `paths.run`/eval-raw or eval-ema (the student's).
"""

from pathlib import Path

from diffusers import StableDiffusionPipeline, UNet2DConditionModel

from randcond.data.digits.judge import Judge
from randcond.data.files import write_json
from randcond.data.ranks import device
from randcond.eval.generate import choose_prompts, generate, load_chunks, protocol
from randcond.eval.score import score
from randcond.launch.config import Config, eval_folder, resolve_path
from randcond.model_zoo.teacher import Teacher, folder_fingerprint


def run(config: Config) -> None:
    """Draws and scores what is missing; every rank takes its share of the chunks.

    Raises ValueError when the student is not trained yet.
    """
    prompts = choose_prompts(config)
    judge = Judge.load()
    teacher = Teacher.load(resolve_path(config.teacher.path), config.teacher.dtype, device())
    student = student_folder(config)
    unet = UNet2DConditionModel.from_pretrained(student / "unet", dtype=teacher.dtype, use_safetensors=True)
    arms: list[tuple[str, Path, StableDiffusionPipeline, Path]] = [
        ("teacher", Path(config.paths.reference), teacher.pipeline(config.eval.sampler), teacher.folder),
        ("student", eval_folder(config), teacher.pipeline(config.eval.sampler, unet.eval().to(device())), student),
    ]
    for what, out, pipe, network in arms:
        made_of = protocol(config, folder_fingerprint(network))
        if (out / "scores.json").is_file() and (out / "plan.json").is_file():
            generate(config, pipe, prompts, judge, out, made_of, what)  # nothing to draw: checks that it is the same
            continue
        if not generate(config, pipe, prompts, judge, out, made_of, f"drawing ({what})"):
            continue  # another rank draws the last chunk, and scores
        drawn = load_chunks(out, len(prompts.captions), config.eval.batch)
        scores = score(prompts, drawn["read"], drawn["features"], judge)
        write_json(out / "scores.json", {"protocol": made_of, "splits": scores})
        line = ", ".join(f"{split} digits {values['digit_accuracy']:.1%}" for split, values in scores.items())
        print(f"eval: {what}: {line}", flush=True)


def student_folder(config: Config) -> Path:
    """The exported student whose weights the experiment scores; raises ValueError when there is none."""
    folder = Path(config.paths.run) / ("student_ema" if config.eval.weights == "ema" else "student")
    if not (Path(config.paths.run) / "train.json").is_file() or not folder.is_dir():
        raise ValueError(f"no trained student at {folder}: train it with `randcond run train {config.name}`")
    return folder
