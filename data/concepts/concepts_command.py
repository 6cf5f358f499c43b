"""Tools for unseen concepts: make a word list, split captions into seen and unseen, split COCO's captions."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from randcond.data.captions.caption_lists import read_unique
from randcond.data.concepts.coco import split_coco
from randcond.data.concepts.judge import Judge
from randcond.data.concepts.words import ANIMALS, WordList, read_words
from randcond.data.texts.endpoint import read_endpoint
from randcond.data.texts.wordnet import WordNet, find_wordnet
from randcond.launch.config.paths import resolve_path, resolve_sources
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import write_json, write_text
from randcond.launch.urls import show_url


def words(out: str, *concept: str, wordnet: str = "") -> None:
    """Writes a list of words for one or more concepts to the file OUT: WordNet's hyponyms and their plurals.

    A word is included if its most frequent sense is a kind of the concept. Review the list before you use it: captions
    use some words in another sense. The list of animals that comes with randcond was made this way and then reviewed.

    --wordnet FOLDER  folder of WordNet's files (default: $WNSEARCHDIR, inputs/wordnet, or where Debian or nltk put it)

    example    randcond concepts words vehicles.txt vehicle
    """
    if not concept:
        raise UserError("CONCEPT is missing: give at least one noun, for example vehicle")
    nouns = WordNet(find_wordnet(wordnet))
    singular = set().union(*map(nouns.under, concept))
    word_list = sorted({word.lower() for word in (*singular, *map(nouns.plural, singular))})
    write_text(Path(out), "\n".join([f"# WordNet's kinds of {', '.join(concept)}, with plurals", *word_list]) + "\n")
    print(f"{len(word_list):,} words: {out}")


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
    """Splits the captions of SOURCE into OUT/seen.txt and OUT/unseen.txt by a concept, as in supplement J.

    There are up to three stages. Each stage checks only the captions that the stages before it found to be seen:
    1. A list of words.
    2. A language model, if LLM is given.
    3. BLIP's captions of the images, checked by stages 1 and 2, if --blip is given.
    OUT/captions.jsonl records the verdict for each caption: whether it is unseen, found by which stage and which word.
    To resume a killed command, run it again. To add a stage later, run the command again with that stage's arguments.

    LLM                 language model, as model=NAME url=... rpm=...; see `randcond datafree visual --help`
    --words FILE        list of words, one per line (default: 9,600 words for animals); see `randcond concepts words`
    --concept NOUN      concept that the language model looks for (default: animal)
    --plural NOUN       its plural (default: animals)
    --per-question N    number of captions in one question to the language model (default: 20)
    --blip MODEL        BLIP captioning model, a folder or hub id, e.g. Salesforce/blip-image-captioning-large
    --cache FOLDER      latent cache with the images, drawn or real; required with --blip
    --teacher PATH      teacher whose VAE decodes the cache; required with --blip
    --dry-run           print the estimated cost of the language model's stage and stop

    examples    randcond concepts split runs/animals captions.parquet
                randcond concepts split runs/animals captions.parquet model=gpt-3.5-turbo price_in=0.5 price_out=1.5
    """
    folder = Path(out)
    if bool(blip) != bool(cache) or bool(blip) != bool(teacher):
        raise UserError("--blip, --cache and --teacher must be given together")
    endpoint = read_endpoint(llm) if llm else None
    captions, dropped = read_unique(resolve_sources([source]))
    word_list = read_words(Path(words)) if words else read_words(ANIMALS)
    judge = Judge(endpoint, folder / "judge.jsonl", concept, plural, per_question) if endpoint else None
    verdicts: dict[str, dict[str, Any]] = {caption: {"unseen": False} for caption in captions}
    _mark_unseen(verdicts, {caption: [caption] for caption in captions}, word_list, judge, "", dry_run)
    if dry_run:
        return
    if blip:
        from randcond.data.concepts.blip import describe_images

        seen = {caption for caption, verdict in verdicts.items() if not verdict["unseen"]}
        blip_captions = describe_images(Path(cache), seen, resolve_path(teacher), blip, folder / "blip.jsonl")
        for caption, texts in blip_captions.items():
            verdicts[caption]["blip"] = texts
        _mark_unseen(verdicts, blip_captions, word_list, judge, "blip, ", dry_run)
    _write(
        folder, verdicts, {"source": show_url(source), "words": len(word_list), "concept": concept, "dropped": dropped}
    )


def _mark_unseen(
    verdicts: dict[str, dict[str, Any]],
    texts: dict[str, list[str]],
    words: WordList,
    judge: Judge | None,
    stage: str,
    dry_run: bool,
) -> None:
    """Updates the verdicts of captions whose texts show the concept, by the words and then by the language model.

    `texts`: caption -> the texts to check for it: the caption itself, or BLIP's captions of its images.
    """
    remaining = {}
    for caption, caption_texts in texts.items():
        if word := next(filter(None, map(words.find, caption_texts)), None):
            verdicts[caption] |= {"unseen": True, "by": f"{stage}words", "word": word}
        else:
            remaining[caption] = caption_texts
    if judge is None:
        return
    opinions = judge.judge(
        list(dict.fromkeys(text for caption_texts in remaining.values() for text in caption_texts)),
        f"{stage}judge",
        dry_run,
    )
    for caption, caption_texts in remaining.items():
        answers = [opinions[text] for text in caption_texts]
        if yes := next((answer for answer in answers if answer and answer.unseen), None):
            verdicts[caption] |= {"unseen": True, "by": f"{stage}judge", "word": yes.word}
        elif None in answers:  # in doubt a caption is unseen, so that no image of the concept gets into the cache
            verdicts[caption] |= {"unseen": True, "by": f"{stage}unclear", "word": ""}


def _write(folder: Path, verdicts: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    lines = (json.dumps({"caption": caption, **verdict}, ensure_ascii=False) for caption, verdict in verdicts.items())
    write_text(folder / "captions.jsonl", "\n".join(lines) + "\n")
    for name, unseen in (("seen", False), ("unseen", True)):
        captions = [caption for caption, verdict in verdicts.items() if verdict["unseen"] == unseen]
        write_text(folder / f"{name}.txt", "".join(f"{caption}\n" for caption in captions))
    counts = Counter(verdict.get("by", "seen") for verdict in verdicts.values())
    write_json(folder / "split.json", {**facts, "captions": len(verdicts), **counts})
    for reason, number in counts.most_common():
        print(f"{number:>12,}  {number / len(verdicts):6.1%}  {'seen' if reason == 'seen' else f'unseen, by {reason}'}")
    print(f"cache.captions=[{folder / 'seen.txt'}] pool.sources=[{folder / 'unseen.txt'}]")


def coco(
    annotations: str, out: str, *, supercategory: str = "animal", prompts: str = "", dataset: str = "val2014"
) -> None:
    """Splits COCO's captions into OUT/seen.csv and OUT/unseen.csv by the objects in their images (Table 2).

    Also writes all captions to OUT/all.csv. ANNOTATIONS is the folder with instances_val2014.json and
    captions_val2014.json. Download it with `randcond fetch coco-annotations`.

    --supercategory NAME  an image is unseen if it shows an object of this supercategory (default: animal, which is in
                          8,265 of 40,504 images)
    --prompts FILE        csv with file_name and caption (e.g. BK-SDM's 30K); an image that it does not list gets its
                          first caption by annotation id
    --dataset NAME        COCO split in the file names (default: val2014)
    """
    counts = split_coco(Path(annotations), Path(out), supercategory, Path(prompts) if prompts else None, dataset)
    print(f"{counts['all']:,} captions: {counts['seen']:,} seen, {counts['unseen']:,} unseen: {out}")


COMMANDS = (words, split, coco)
