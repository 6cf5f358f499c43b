"""`randcond init`: writes an experiment for your own teacher that fits your GPU and your time."""

import sys
from pathlib import Path

from randcond.data.captions.local_files import expand_local
from randcond.launch.config.gpus import find_gpu
from randcond.launch.config.paths import is_url, resolve_sources
from randcond.launch.errors import UserError

FEWEST = "fewest"  # --hours: a run to try everything


def init(
    file: str = "mine.yaml",
    *,
    teacher: str = "",
    captions: str = "",
    gpu: str = "",
    hours: str = "24",
    student: str = "",
    size: int | None = None,
    force: bool = False,
) -> None:
    """Writes an experiment's YAML file for your own teacher. Then `randcond run all FILE` is all there is to type.

    file         the YAML file to write (default: mine.yaml)

    --teacher T   the model to distil: a diffusers folder or a hub id of Stable Diffusion 1.x, 2.x, SDXL, 3 or 3.5,
                  PixArt-alpha or -Sigma, or FLUX.2 klein.
                  `randcond teacher import` makes such a folder out of a single file
    --captions F  caption files (txt, csv, tsv, jsonl, parquet), separated by commas: the latents are drawn for some of
                  them, and all of them replace captions during training
    --gpu NAME    the GPU to plan for, e.g. rtx4090, or 11GB,27TFLOPS for any other (default: this machine's)
    --hours H     the time for all stages together (default: 24); fewest: as little as makes sense, to try everything
    --student R   a student rule, see `randcond students` (default: block-base, of SDXL koala-700m, of a
                  transformer half of its blocks, of FLUX.2 all blocks of two streams and half of the others)
    --size N      pixels of an image's side (default: the teacher's own size); FLUX.2 klein and SD 3.5 also draw
                  at 512, in a quarter of the time of 1,024. PixArt-Sigma has a model of its own for it,
                  PixArt-alpha/PixArt-Sigma-XL-2-512-MS
    --force       overwrite FILE

    Chooses the number of latents, the batch and the steps for these hours, and settings that save memory if it would
    not fit otherwise. The file says what every line does, and the predicted memory, hours and disk space. Beside it,
    writes the schema with which editors complete the keys. Asks for the teacher and the captions if they are not given
    and the command runs in a terminal.

    examples
      randcond init mine.yaml --teacher my-model --captions captions.csv,more.txt
      randcond init mine.yaml --teacher my-model --captions captions.csv --gpu rtx4070 --hours 8
      randcond init try.yaml --teacher my-model --captions captions.csv --hours fewest
    """
    path = Path(file)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"{file}: must end with .yaml, because `randcond run` takes such files")
    if path.is_dir():
        raise UserError(f"{file}: is a folder; give the name of a file")
    if path.exists() and not force:
        raise UserError(f"{file}: exists already; give another name, or --force to overwrite it")
    teacher = teacher or _ask("teacher", "The model to distil (a diffusers folder or a hub id)")
    captions = captions or _ask("captions", "Caption files, separated by commas")
    sources = [source.strip() for source in captions.split(",") if source.strip()]
    try:
        budget = None if hours == FEWEST else float(hours)
    except ValueError:
        budget = 0.0
    if budget is not None and not 0 < budget < 1e6:
        raise UserError(f"--hours: expected a number above 0, or {FEWEST}; got {hours!r}")

    # Before torch is imported, which takes seconds.
    if gpu:
        find_gpu(gpu)
    for source in resolve_sources(sources):
        if not is_url(source) and expand_local(source, lambda file: True) is None:
            raise UserError(f"--captions: there is no {source}")
    from randcond.train.tools.write_experiment import write_experiment

    print(write_experiment(path, teacher, sources, gpu, budget, student, size))


def _ask(flag: str, question: str) -> str:
    """Asks a question if the command runs in a terminal. Raises UserError naming the flag if it does not."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UserError(f"--{flag} is missing; see `randcond init --help`")
    answer = input(f"{question}: ").strip()
    if not answer:
        raise UserError(f"--{flag} is missing; see `randcond init --help`")
    return answer
