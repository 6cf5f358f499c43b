"""Imports a teacher: finds out what the source is, writes a plain diffusers folder, and looks whether it can teach."""

from pathlib import Path

from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write
from randcond.model_zoo.checkpoints.diffusers_folder import remove_local_paths
from randcond.model_zoo.families.faults.look import teacher_faults
from randcond.model_zoo.importing.model_folder import import_folder
from randcond.model_zoo.importing.older_libraries import for_older_libraries
from randcond.model_zoo.importing.single_file import SUFFIXES, import_file


def import_teacher(source: Path, target: Path, prediction: str = "", config: Path | None = None) -> list[str]:
    """Writes the model of a file or a folder to the folder `target`. Returns lines about what it is.

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
            if prediction or config:
                raise UserError(f"{source}: --prediction and --config are for models in one file; a folder says both")
            said = import_folder(source, folder)
        else:
            raise UserError(f"{source}: expected a file ({', '.join(SUFFIXES)}) or a folder with a model_index.json")
        for_older_libraries(folder)
        remove_local_paths([*folder.glob("*.json"), *folder.glob("*/*.json")])
        if faults := list(teacher_faults(folder)):
            lines = "\n".join(f"  {fault.replace(str(folder), str(target))}" for fault in faults)
            raise UserError(f"{source}: can't be a teacher:\n{lines}")
    return said
