"""`randcond export`: a finished run's student as a diffusers folder with its scores, and onto the hub if asked."""

import os
import shutil
from pathlib import Path

import torch

from randcond.eval.stage import trained_student
from randcond.launch.config.experiments import load_config
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write
from randcond.model_zoo.diffusers_folder import DTYPES
from randcond.model_zoo.export import export_student, load_unet
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
    """Exports a trained student with its model card and scores, loadable by diffusers' own pipelines.

    experiment  a finished experiment, with the overrides it was run with

    --out FOLDER       where to (default: export/ in the run's folder); a new one, or for --push the same export
    --weights KIND     raw or ema (default: eval.weights, those the scores are of)
    --dtype TYPE       fp32, bf16 or fp16 (default: fp32)
    --push OWNER/NAME  uploads the folder to this hub repository, made if missing; the token comes from HF_TOKEN
    --private          makes that repository private

    examples    randcond export demo-with --out my-student
                randcond export demo-with --weights raw --dtype fp16 --push me/my-student
    """
    config = load_config(experiment, overrides)
    kind = weights or config.eval.weights
    if kind not in ("raw", "ema"):
        raise UserError(f"--weights: raw or ema, got {kind!r}")
    if dtype not in DTYPES:
        raise UserError(f"--dtype: one of {', '.join(DTYPES)}, got {dtype!r}")
    if push and not os.environ.get("HF_TOKEN"):
        raise UserError("--push: no HF_TOKEN in the environment; put a token with write access there")
    student = trained_student(config, kind)
    folder = Path(out) if out else Path(config.paths.run) / "export"
    trained = load_config(str(Path(config.paths.run) / "config.yaml"))  # as it was run, whatever is asked for now
    card = model_card(trained, kind, trained.train.steps, dtype, student)
    same = (folder / "README.md").is_file() and (folder / "README.md").read_text() == card
    if folder.exists() and not (push and same):
        raise UserError(f"--out: {folder} exists already; remove it, or give another folder")
    if not folder.exists():
        with atomic_write(folder) as aside:
            if dtype == "fp32":
                shutil.copytree(student, aside)
                (aside / "README.md").write_text(card)
            else:
                export_student(aside, load_unet(student / "unet", torch.float32), student, card, DTYPES[dtype])
        print(f"exported {kind} weights in {dtype} to {folder}", flush=True)
    if push:
        _push(push, folder, private, f"randcond: {config.name}, {kind} weights")
        print(f"pushed to {push}", flush=True)


def _push(repository: str, folder: Path, private: bool, message: str) -> None:
    """Uploads the folder; raises UserError saying what the hub answered, and that the folder is there."""
    from huggingface_hub import HfApi

    hub = HfApi(token=os.environ["HF_TOKEN"])
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except Exception as error:  # the client's own errors, or those of whichever HTTP library it uses
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"--push: the hub did not take {repository} ({reason}); the export is at {folder}") from None
