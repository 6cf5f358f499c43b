"""randcond eval: what evaluations are compared with. The evaluation itself is `randcond run eval EXPERIMENT`."""

from pathlib import Path

from randcond.eval.scores.real_images import statistics_of_folder
from randcond.launch.config.parsing import read_settings
from randcond.launch.config.sections import Eval


def stats(images: str, out: str, *settings: str, splits: str = "", png: bool = False, size: int = 256) -> None:
    """Makes the statistics of a folder of real images that FID, KID and FD-DINOv2 compare with, whole and by split.

    images          a folder of images, whatever is below it
    out             the folder of the statistics: SPLIT.npz (mu, sigma), for eval.statistics
    settings        of the `eval:` section: metrics=[fid,fd-dinov2] fid=pytorch-fid inception=FILE dino=FOLDER batch=32

    --splits FOLDER lists of file names by split (seen.csv, unseen.csv, as `randcond concepts coco` writes them);
                    all.npz is of all images of the folder, or of all.csv where there is one
    --size N        pixels of the side that each image is resized to, aspect not kept (default 256; 0: as it is)
    --png           no JPEG after the resize (default: JPEG of Pillow's default quality, as the paper's protocol)

    Stop it and go on whenever; several of the same command at once, on any hosts that share the folder, share the work.

    examples        randcond eval stats inputs/coco-images/val2014 runs/coco
                    randcond eval stats inputs/coco-images/val2014 runs/coco-split --splits inputs/coco-animals
    """
    ev = read_settings(Eval, list(settings))
    written = statistics_of_folder(Path(images), Path(out), ev, Path(splits) if splits else None, size or None, not png)
    for path, count in written.items():
        print(f"{path}: {count} images")


COMMANDS = (stats,)
