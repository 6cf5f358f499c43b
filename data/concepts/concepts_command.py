"""Tools for unseen concepts: split captions into seen and unseen ones, and COCO's evaluation captions likewise."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from randcond.data.captions.caption_lists import read_unique
from randcond.data.concepts.coco import split_coco
from randcond.data.concepts.judge import Judge
from randcond.data.concepts.words import ANIMALS, WordList, read_words
from randcond.data.texts.llm import read_endpoint
from randcond.data.texts.wordnet import WordNet, find_wordnet
from randcond.launch.config.paths import resolve_path, resolve_sources
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json, write_text


def words(out: str, *concept: str, wordnet: str = "") -> None:
    """Writes the words for one or more concepts, WordNet's kinds of them with their plurals, to the file OUT.

    A kind counts when that is the word's most frequent sense. Read the list before you use it: some words are in
    captions for another reason. The animals that come with randcond were made so, and read.

    --wordnet FOLDER  WordNet's files (default: $WNSEARCHDIR, Debian's wordnet-base, nltk's corpora)

    example    randcond concepts words vehicles.txt vehicle
    """
    if not concept:
        raise UserError("no CONCEPT given, e.g. vehicle")
    nouns = WordNet(find_wordnet(wordnet))
    found = set().union(*map(nouns.under, concept))
    listed = sorted({word.lower() for word in (*found, *map(nouns.plural, found))})
    write_text(Path(out), "\n".join([f"# WordNet's kinds of {', '.join(concept)}, with plurals", *listed]) + "\n")
    print(f"{len(listed):,} words: {out}")


def split(
    out: str,
    source: str,
    *llm: str,
    words: str = "",
    concept: str = "animal",
    plural: str = "animals",
    per_question: int = 20,
    cache: str = "",
    teacher: str = "",
    blip: str = "",
    dry_run: bool = False,
) -> None:
    """Splits the captions of SOURCE by a concept into OUT/seen.txt and OUT/unseen.txt, as supplement J does.

    Up to three stages, each on what the ones before let pass; each goes on where it was killed, and a later call may
    add one: a list of words; a language model; BLIP's captions of the images, judged by the same two.
    OUT/captions.jsonl keeps every verdict beside its caption: unseen, by which stage, for which word.

    LLM           asks a model: model=NAME url=... rpm=..., as in `randcond datafree visual --help`
    --words FILE  one word a line (default: animals, 9,600 words; `randcond concepts words` makes others)
    --concept, --plural  what the model is asked about (animal, animals)
    --per-question N     captions asked about at once (20)
    --cache FOLDER --teacher PATH --blip MODEL  a latent cache, the teacher whose VAE decodes it, a BLIP captioning
                  model (a folder or hub id, Salesforce/blip-image-captioning-large); real images: a cache of them
    --dry-run     what the language model's stage would cost

    examples    randcond concepts split runs/animals captions.parquet
                randcond concepts split runs/animals captions.parquet model=gpt-3.5-turbo price_in=0.5 price_out=1.5
    """
    folder = Path(out)
    if bool(blip) != bool(cache) or bool(blip) != bool(teacher):
        raise UserError("--blip, --cache and --teacher belong together")
    captions, dropped = read_unique(resolve_sources([source]))
    listed = read_words(Path(words)) if words else read_words(ANIMALS)
    judge = Judge(read_endpoint(llm), folder / "judge.jsonl", concept, plural, per_question) if llm else None
    verdicts: dict[str, dict[str, Any]] = {caption: {"unseen": False} for caption in captions}
    _pass(verdicts, {caption: [caption] for caption in captions}, listed, judge, "", dry_run)
    if dry_run:
        return
    if blip:
        from randcond.data.concepts.blip import describe_images

        seen = {caption for caption, verdict in verdicts.items() if not verdict["unseen"]}
        shown = describe_images(Path(cache), seen, resolve_path(teacher), blip, folder / "blip.jsonl")
        for caption, texts in shown.items():
            verdicts[caption]["blip"] = texts
        _pass(verdicts, shown, listed, judge, "blip, ", dry_run)
    _write(folder, verdicts, {"source": source, "words": len(listed), "concept": concept, "dropped": dropped})


def _pass(
    verdicts: dict[str, dict[str, Any]],
    texts: dict[str, list[str]],
    words: WordList,
    judge: Judge | None,
    stage: str,
    dry_run: bool,
) -> None:
    """Judges captions by texts about them, by words and then by the model, and notes what is unseen."""
    left = {}
    for caption, each in texts.items():
        if word := next(filter(None, map(words.find, each)), None):
            verdicts[caption] |= {"unseen": True, "by": f"{stage}words", "word": word}
        else:
            left[caption] = each
    if judge is None:
        return
    opinions = judge.judge(
        list(dict.fromkeys(text for each in left.values() for text in each)), f"{stage}judge", dry_run
    )
    for caption, each in left.items():
        said = [opinions[text] for text in each]
        if yes := next((verdict for verdict in said if verdict and verdict.unseen), None):
            verdicts[caption] |= {"unseen": True, "by": f"{stage}judge", "word": yes.word}
        elif None in said:  # no image of it is drawn: seen is what surely is
            verdicts[caption] |= {"unseen": True, "by": f"{stage}unclear", "word": ""}


def _write(folder: Path, verdicts: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    lines = (json.dumps({"caption": caption, **verdict}, ensure_ascii=False) for caption, verdict in verdicts.items())
    write_text(folder / "captions.jsonl", "\n".join(lines) + "\n")
    for name, unseen in (("seen", False), ("unseen", True)):
        part = [caption for caption, verdict in verdicts.items() if verdict["unseen"] == unseen]
        write_text(folder / f"{name}.txt", "".join(f"{caption}\n" for caption in part))
    by = Counter(verdict.get("by", "seen") for verdict in verdicts.values())
    write_json(folder / "split.json", {**facts, "captions": len(verdicts), **by})
    for reason, number in by.most_common():
        print(f"{number:>12,}  {number / len(verdicts):6.1%}  {'seen' if reason == 'seen' else f'unseen, by {reason}'}")
    print(f"cache.captions=[{folder / 'seen.txt'}] pool.sources=[{folder / 'unseen.txt'}]")


def coco(
    annotations: str, out: str, *, supercategory: str = "animal", prompts: str = "", dataset: str = "val2014"
) -> None:
    """Splits COCO's captions by what their images show into OUT/seen.csv, unseen.csv and all.csv (Table 2).

    ANNOTATIONS is the folder of instances_val2014.json and captions_val2014.json (`randcond fetch coco-annotations`).

    --supercategory NAME  of the objects that make an image unseen (default animal: 8,265 of 40,504 images)
    --prompts FILE        captions to take where it names the image, a csv with file_name and caption (BK-SDM's 30K);
                          else each image's first by annotation id
    --dataset NAME        (default val2014)
    """
    counts = split_coco(Path(annotations), Path(out), supercategory, Path(prompts) if prompts else None, dataset)
    print(f"{counts['all']:,} captions: {counts['seen']:,} seen, {counts['unseen']:,} unseen: {out}")


COMMANDS = (words, split, coco)
