"""`randcond export`: exports the student of a finished run as a diffusers folder, and uploads it to the hub."""

import os
from pathlib import Path

from randcond.eval.trained_runs import trained_student
from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, read_record
from randcond.launch.runtime.this_command import remember_experiment
from randcond.model_zoo.checkpoints.diffusers_folder import DTYPES
from randcond.model_zoo.export import copy_student
from randcond.train.state.model_card import model_card


def export(
    experiment: str,
    *overrides: str,
    out: str | None = None,
    weights: str | None = None,
    dtype: str = "fp32",
    push: str | None = None,
    private: bool = False,
) -> None:
    """Exports a trained student as a diffusers folder with a model card that contains its scores.

    experiment  a finished experiment
    overrides   the overrides of its run

    --out FOLDER       the folder to create (default: export/ in the run folder). With --push it may exist, if it
                       holds the same export.
    --weights KIND     raw or ema (default: eval.weights, the weights that are evaluated)
    --dtype TYPE       fp32, bf16 or fp16 (default: fp32). bf16 and fp16 cast all parts; with fp32, which the U-Net is
                       trained in, the other parts are the teacher's files as they are.
    --push OWNER/NAME  upload the folder to this hub repository; create it if it does not exist. The environment
                       variable HF_TOKEN must hold a token.
    --private          create the repository as private

    examples    randcond export demo-with --out my-student
                randcond export demo-with --weights raw --dtype fp16 --push me/my-student
    """
    remember_experiment(experiment, overrides)
    config = load_config(experiment, overrides)
    kind = weights or config.eval.weights
    if kind not in ("raw", "ema"):
        raise UserError(f"--weights: must be raw or ema, got {kind!r}")
    if dtype not in DTYPES:
        raise UserError(f"--dtype: must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if push and not os.environ.get("HF_TOKEN"):
        raise UserError("--push: HF_TOKEN is not set; set it to a token with write access")
    student = trained_student(config, kind)
    folder = Path(out) if out else Path(config.paths.run) / "export"
    run = Path(config.paths.run)
    trained = load_config(str(run / "config.yaml"))  # may differ from `config`
    steps = read_record(run / "train.json", "steps")["steps"]
    card = model_card(trained, kind, steps, student, dtype, student)
    same = (folder / "README.md").is_file() and (folder / "README.md").read_text(encoding="utf-8") == card
    if folder.exists() and not (push and same):
        raise UserError(f"--out: {folder} exists already; choose another folder, or remove it")
    if not folder.exists():
        with atomic_write(folder) as temporary:
            copy_student(temporary, student, card, None if dtype == "fp32" else DTYPES[dtype])
        print(f"exported {kind} weights in {dtype} to {folder}", flush=True)
    if push:
        _push(push, folder, private, f"randcond: {config.name}, {kind} weights")
        print(f"pushed to {push}", flush=True)


def _push(repository: str, folder: Path, private: bool, message: str) -> None:
    """Uploads the folder. Raises UserError with the reason if the upload fails; the folder stays."""
    from huggingface_hub import HfApi

    hub = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ["HF_TOKEN"])
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # errors of the hub client, or of the HTTP library it uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--push: upload to {repository} failed ({reason}); the export is at {folder}") from None
