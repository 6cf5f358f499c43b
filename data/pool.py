"""The caption pool's extra texts: caption files -> one memory-mapped Arrow file with a manifest.

In: `pool.sources`. Out: `paths.pool`/captions.arrow and manifest.json (sources, counts, what was dropped).
"""

from pathlib import Path
from typing import Any

from randcond.data.captions import Captions, read_unique, write_captions
from randcond.data.files import check_same, read_json, sha256, write_json

FORMAT = 1


def build(out: Path, sources: list[Path]) -> dict[str, Any]:
    """Builds the pool at `out` from caption files and returns its manifest; a finished one is left as it is.

    Raises ValueError when a source is bad, or when `out` holds a pool of other sources.
    """
    missing = [str(source) for source in sources if not source.is_file()]
    if missing:
        raise ValueError(f"pool.sources: no such file: {', '.join(missing)}")
    made_of = {"format": FORMAT, "sources": [{"name": source.name, "sha256": sha256(source)} for source in sources]}
    manifest_path = out / "manifest.json"
    if manifest_path.is_file():
        manifest = read_json(manifest_path)
        check_same(manifest, made_of, f"the pool at {out}", "Remove it, or give another paths.pool.")
        return manifest
    captions, dropped = read_unique(sources)
    write_captions(out / "captions.arrow", captions)
    manifest = {**made_of, "captions": len(captions), "dropped": dropped, "sha256": sha256(out / "captions.arrow")}
    write_json(manifest_path, manifest)
    return manifest


def open_pool(folder: Path) -> Captions:
    """The extra texts of a built pool; raises ValueError naming a folder that is unfinished or of another format."""
    manifest_path = folder / "manifest.json"
    if not manifest_path.is_file():
        raise ValueError(f"no caption pool at {folder}: build it with `randcond run pool EXPERIMENT`")
    manifest = read_json(manifest_path)
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"the pool at {folder} has format {manifest.get('format')}, this version reads {FORMAT}: rebuild"
        )
    captions = Captions(folder / "captions.arrow")
    if len(captions) != manifest["captions"]:
        raise ValueError(
            f"the pool at {folder} holds {len(captions)} captions, its manifest says {manifest['captions']}"
        )
    return captions
