"""Imports a teacher: finds out what the source is, writes a plain diffusers folder, and looks whether it can teach."""

from pathlib import Path

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write
from randcond.model_zoo.checkpoints.diffusers_folder import remove_local_paths
from randcond.model_zoo.checkpoints.hub import local_folder
from randcond.model_zoo.families.faults.look import teacher_faults
from randcond.model_zoo.importing.model_folder import denoiser_folder, import_denoiser, import_folder
from randcond.model_zoo.importing.older_libraries import for_older_libraries
from randcond.model_zoo.importing.single_file import SUFFIXES, import_file


def import_teacher(
    source: Path, target: Path, prediction: str = "", config: Path | None = None, rest: str = ""
) -> list[str]:
    """Writes the model of a file or a folder to the folder `target`. Returns lines about what it is.

    `rest`: the pipeline of a denoiser that comes alone, a diffusers folder or a hub id.
    Nothing is left in `target` if this fails. Raises UserError naming the source if it can't be a teacher, or if
    `target` exists.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; give another FOLDER")
    if prediction not in ("", "epsilon", "v_prediction"):
        raise UserError(f"--prediction: got {prediction!r}, expected epsilon or v_prediction")
    with atomic_write(target) as folder:
        if source.is_file() and source.suffix in SUFFIXES:
            said = import_file(source, folder, prediction, config)
        elif (source / "model_index.json").is_file():
            if prediction or config or rest:
                raise UserError(
                    f"{source}: --prediction and --config are for models in one file, --rest is for a denoiser alone; "
                    f"this folder has it all"
                )
            said = import_folder(source, folder)
        elif denoiser := denoiser_folder(source):
            if not rest:
                raise UserError(
                    f"{denoiser}: a denoiser alone; --rest PIPELINE names the diffusers folder or hub id that has the "
                    f"other parts"
                )
            said = import_denoiser(denoiser, local_folder(rest), folder)
        else:
            raise UserError(
                f"{source}: expected a file ({', '.join(SUFFIXES)}), a folder with a model_index.json, or a denoiser's "
                f"folder"
            )
        for_older_libraries(folder)
        remove_local_paths([*folder.glob("*.json"), *folder.glob("*/*.json")])
        if faults := list(teacher_faults(folder)):
            lines = "\n".join(f"  {fault.replace(str(folder), str(target))}" for fault in faults)
            raise UserError(f"{source}: can't be a teacher:\n{lines}")
    return said
