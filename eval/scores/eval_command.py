"""`randcond eval stats`: statistics of real images. The evaluation itself is `randcond run eval EXPERIMENT`."""

from pathlib import Path

from randcond.eval.scores.real_images import statistics_of_folder
from randcond.launch.config.parsing import read_settings
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError
from randcond.launch.install.extras import need


def stats(
    images: str,
    out: str,
    *settings: str,
    splits: str = "",
    png: bool = False,
    size: int = 256,
    on_error: str = "stop",
) -> None:
    """Computes the statistics of a folder of real images that FID, KID, CMMD, ... compare with, for each split.

    images          a folder of images, with its subfolders (docs/data.md: which files are read, and how)
    out             folder for the statistics: SPLIT.npz (mu, sigma); set eval.statistics to it
    settings        of the `eval:` section: metrics=[fid,fd-dinov2] fid=pytorch-fid inception=FILE dino=FOLDER batch=32

    --splits FOLDER lists of file names, one per split: seen.csv, unseen.csv (`randcond concepts coco` writes them).
                    all.npz covers all images of the folder, or those of all.csv if there is one
    --size N        resize every image to N x N pixels, aspect ratio not kept (default 256; at most 2048;
                    0: do not resize, which needs more memory for large images)
    --png           no JPEG after the resize (default: JPEG at Pillow's default quality, as in the paper's protocol)
    --on-error skip leave out images that can't be used; they are counted (default stop: the first one is an error)

    You can stop the command and start it again: it resumes. You can run it several times at once, on any hosts that
    share the folder: the processes share the work.

    examples        randcond eval stats inputs/coco-images/val2014 runs/coco
                    randcond eval stats inputs/coco-images/val2014 runs/coco-split --splits inputs/coco-animals
    """
    need("eval", "randcond eval stats")
    ev = read_settings(Eval, list(settings))
    if on_error not in ("stop", "skip"):
        raise UserError(f"--on-error: is {on_error!r}, expected stop or skip")
    folder, lists = Path(images), Path(splits) if splits else None
    written = statistics_of_folder(folder, Path(out), ev, lists, size or None, not png, on_error)
    for path, count in written.items():
        print(f"{path}: {count} images")


COMMANDS = (stats,)
