"""Teachers of your own: import a checkpoint, and look whether a folder can be a teacher.

examples
  randcond teacher import my-model.safetensors my-model
  randcond teacher check my-model
"""

import shlex
from pathlib import Path

from randcond.launch.errors import UserError


def import_(source: str, folder: str, *, prediction: str = "", config: str = "", rest: str = "") -> None:
    """Makes a plain diffusers folder, which can be a teacher, out of what you have. Needs no network.

    source        one file (.safetensors, .ckpt, .pt, .bin) of Stable Diffusion 1.x, 2.x or SDXL, a diffusers folder
                  whose weights are sharded, only fp16 or bf16, or .bin, or the folder of a denoiser alone
    folder        the new folder
    --prediction  epsilon or v_prediction: what the model predicts. A file of Stable Diffusion 2.x does not say it.
    --config      a diffusers folder whose JSON files describe a file of other sizes than the published ones
    --rest        for a denoiser alone (a fine-tuned U-Net or transformer): the pipeline that has the other parts, a
                  diffusers folder or a hub id, which is downloaded

    Weights keep their values. A file whose parts differ in dtype becomes fp32. Of a pickled file (.ckpt, .bin) only
    tensors are read, in another process.

    examples
      randcond teacher import my-model.safetensors my-model
      randcond teacher import v2-1.ckpt my-model --prediction v_prediction
      randcond teacher import checkpoint-5000/unet my-model --rest CompVis/stable-diffusion-v1-4
    """
    _check_exists(source)
    from randcond.train.tools.import_teacher import import_teacher

    said = import_teacher(Path(source), Path(folder), prediction, Path(config) if config else None, rest)
    for line in said:
        print(line)
    print(f"{folder}: can be a teacher: teacher.path={folder}")


def check(folder: str) -> None:
    """Says in seconds whether a diffusers folder can be a teacher, and if not, why. Loads no weights.

    Every stage checks a local teacher in the same way before it begins.
    """
    if len(Path(folder).parts) != 2:  # owner/name is a hub id
        _check_exists(folder)
    from randcond.model_zoo.families.faults.look import teacher_faults
    from randcond.train.tools.teacher_facts import teacher_facts

    if faults := list(teacher_faults(Path(folder))):
        lines = "\n".join(f"  {fault}" for fault in faults)
        raise UserError(f"{folder} can't be a teacher:\n{lines}")
    print(f"{folder}: can be a teacher")
    for name, fact in teacher_facts(Path(folder)).items():
        print(f"  {name:12}{fact}")
    print(f"next: {shlex.join(['randcond', 'init', 'mine.yaml', '--teacher', folder, '--captions', 'CAPTIONS.txt'])}")


def _check_exists(path: str) -> None:
    """Raises UserError if there is no such file or folder, before torch is imported."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file or folder")


COMMANDS = (import_, check)
