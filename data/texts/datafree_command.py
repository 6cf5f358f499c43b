"""Generates captions with a language model, for distillation without any data (Table 3, row 3; supplement A).

Run these commands in order, with the same folder OUT:
1. nouns: list WordNet's nouns.
2. visual: keep the nouns that an image can show, as a language model judges.
3. prompts: generate 128 prompts for each noun with a language model.
4. sample: draw a sample of the prompts, balanced over the nouns, for the latent cache.
To resume a killed command, run it again. `randcond datafree visual --help` explains how to name a language model.
"""

import json
from collections import Counter
from pathlib import Path

import numpy as np

from randcond.data.rows.columns import CAPTION, Column
from randcond.data.rows.tables import read_lines, read_table
from randcond.data.texts.answers import read_prompts, read_verdict
from randcond.data.texts.endpoint import read_endpoint
from randcond.data.texts.journal import Journal
from randcond.data.texts.llm import Question, ask
from randcond.data.texts.wordnet import WordNet, find_wordnet
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, write_json, write_text

# The prompts of supplement A, word for word.
SYSTEM = "You are a helpful assistant."
VISUAL = (
    "Can a text-to-image model clearly visualize '{noun}'? It must be a noun. "
    "Answer 'yes' or 'no' and give a brief explanation.\n\nInput: '{noun}'"
)
PROMPTS = (
    "Generate {count} visually rich prompts focused on the noun '{noun}', ensuring each prompt is strictly distinct "
    "and cannot overlap in style, setting, or composition. Please return only the prompts on separate lines with "
    "numbering.\n\nInput: '{noun}'"
)
_VERDICT_TOKENS, _PROMPT_TOKENS = 40, 28  # approximate number of tokens of one yes/no answer, and of one prompt


def nouns(out: str, *, depth: int = 14, wordnet: str = "") -> None:
    """Writes WordNet's nouns, without proper names, to OUT/nouns.txt.

    --depth N         maximum number of hyponym steps from "entity" to a noun (default: 14, as in the paper)
    --wordnet FOLDER  folder of WordNet's files (default: $WNSEARCHDIR, inputs/wordnet, or where Debian or nltk put it)
    """
    noun_list = WordNet(find_wordnet(wordnet)).nouns(depth)
    write_text(Path(out) / "nouns.txt", "\n".join(noun_list) + "\n")
    print(f"{len(noun_list):,} nouns of depth {depth} or less: {out}/nouns.txt")


def visual(out: str, *llm: str, dry_run: bool = False) -> None:
    """Asks a language model which nouns an image can show, and writes them to OUT/visual.txt (paper: about 17K).

    LLM        any OpenAI-compatible endpoint, as key=value arguments:
               model=NAME          required
               url=URL             base URL, e.g. http://localhost:8000/v1 (default: $OPENAI_BASE_URL, or OpenAI)
               key=VARIABLE        environment variable with the API key (default: OPENAI_API_KEY)
               concurrency=N       maximum number of open requests (default: 16)
               rpm=N tpm=N         maximum requests and tokens per minute (default: 0, no limit)
               retries=N           retries of a failed request (default: 10)
               timeout=SECONDS     time limit of a whole answer (default: 120)
               temperature=X max_tokens=N   (default: the model's)
               price_in=X price_out=X       US dollars per million tokens of questions and of answers
               max_cost=X          stop before the first question if the estimate is above X US dollars
               max_unusable=X      stop if more than this share of the first 100 questions has no usable answer
                                   (default: 0.5; 1: never)
    --dry-run  print the number of remaining questions and their estimated cost, and stop

    example    randcond datafree visual runs/datafree model=gpt-3.5-turbo rpm=3000 price_in=0.5 price_out=1.5
    """
    noun_list = _lines(Path(out) / "nouns.txt", "nouns")
    questions = {noun: Question(SYSTEM, VISUAL.format(noun=noun)) for noun in noun_list}
    endpoint = read_endpoint(llm)
    journal = Path(out) / "visual.jsonl"
    verdicts = ask(endpoint, questions.values(), journal, read_verdict, _VERDICT_TOKENS, "visual nouns", dry_run)
    if dry_run:
        return
    visual_nouns = [noun for noun, question in questions.items() if verdicts.answers.get(question.id)]
    write_text(Path(out) / "visual.txt", "\n".join(visual_nouns) + "\n")
    print(f"{len(visual_nouns):,} of {len(noun_list):,} nouns are visual: {out}/visual.txt")
    _say_what_is_missing(verdicts, questions, "are left out")


def prompts(out: str, *llm: str, per_noun: int = 128, dry_run: bool = False) -> None:
    """Asks a language model for prompts about each visual noun, and writes them with their noun to OUT/prompts.jsonl.

    LLM           language model, as model=NAME url=... rpm=...; see `randcond datafree visual --help`
    --per-noun N  number of prompts per noun (default: 128, as in the paper, which gives 2.2M in total)
    --dry-run     print the number of remaining questions and their estimated cost, and stop

    OUT/prompts.jsonl is a caption source. To use it as extra texts, set pool.sources=[OUT/prompts.jsonl].
    """
    folder = Path(out)
    questions = {
        noun: Question(SYSTEM, PROMPTS.format(noun=noun, count=per_noun))
        for noun in _lines(folder / "visual.txt", "visual")
    }
    answer_tokens = _PROMPT_TOKENS * per_noun
    endpoint = read_endpoint(llm)
    journal = folder / "answers.jsonl"
    outcomes = ask(endpoint, questions.values(), journal, read_prompts, answer_tokens, "prompts", dry_run)
    if dry_run:
        return
    counts: Counter[str] = Counter()
    with atomic_write(folder / "prompts.jsonl") as temporary, temporary.open("w") as file:
        for noun, question in questions.items():
            noun_prompts = outcomes.answers.get(question.id, [])[:per_noun]
            counts.update(nouns=bool(noun_prompts), prompts=len(noun_prompts), missing=per_noun - len(noun_prompts))
            for caption in noun_prompts:
                file.write(json.dumps({"caption": caption, "noun": noun}, ensure_ascii=False) + "\n")
    write_json(folder / "prompts.json", {"model": endpoint.model, "per_noun": per_noun, **counts})
    print(f"{counts['prompts']:,} prompts for {counts['nouns']:,} nouns, {counts['missing']:,} fewer than requested")
    _say_what_is_missing(outcomes, questions, "have no prompts")


def sample(out: str, *, n: int = 212_000, seed: int = 0) -> None:
    """Draws a random sample of N prompts, balanced over the nouns, and writes it to OUT/sample-N.jsonl.

    These are the captions for the latent cache.

    --n N      number of prompts (default: 212000)
    --seed N   random seed (default: 0)

    example    randcond datafree sample runs/datafree --n 212000
    """
    folder = Path(out)
    if not (folder / "prompts.json").is_file():
        raise UserError(f"{folder}: no prompts.jsonl; run `randcond datafree prompts {out}` first")
    by_noun: dict[str, list[str]] = {}
    seen: set[str] = set()
    for row in read_table(folder / "prompts.jsonl", {"caption": CAPTION, "noun": Column(("noun",))}):
        caption, noun = row.values["caption"], row.values["noun"]
        if caption not in seen:  # the model may give the same prompt for two nouns
            seen.add(caption)
            by_noun.setdefault(noun, []).append(caption)
    if n > len(seen):
        raise UserError(f"--n: is {n:,}, but {folder}/prompts.jsonl contains only {len(seen):,} distinct prompts")
    random = np.random.default_rng(seed)
    shares = even_shares([len(captions) for captions in by_noun.values()], n, random)
    chosen = [
        {"caption": captions[index], "noun": noun}
        for (noun, captions), share in zip(by_noun.items(), shares, strict=True)
        for index in sorted(random.permutation(len(captions))[:share].tolist())
    ]
    path = folder / f"sample-{n}.jsonl"
    write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in chosen))
    print(f"{n:,} prompts, {min(shares)} to {max(shares)} per noun: {path}")
    print(f"cache.captions=[{path}] cache.size={n} pool.sources=[{folder / 'prompts.jsonl'}]")


def even_shares(sizes: list[int], n: int, random: np.random.Generator) -> list[int]:
    """Divides n as evenly as possible over groups of the given sizes. Returns how many to take from each group.

    No group gives more than its size. Groups that give one more than others are chosen at random.
    """
    level = 0
    while sum(min(size, level + 1) for size in sizes) <= n:
        level += 1
        if level > max(sizes, default=0):
            break
    shares = [min(size, level) for size in sizes]
    larger = [group for group, size in enumerate(sizes) if size > level]
    for group in random.permutation(larger)[: n - sum(shares)].tolist():
        shares[group] += 1
    return shares


def _say_what_is_missing(outcomes: Journal, questions: dict[str, Question], they: str) -> None:
    """Prints how many nouns got no usable answer. `questions`: noun -> question. `they`: what follows for them."""
    unusable = sum(question.id in outcomes.unusable for question in questions.values())
    refused = sum(question.id in outcomes.refused for question in questions.values())
    if unusable or refused:
        print(
            f"{unusable + refused:,} nouns {they}: {unusable:,} got no usable answer, {refused:,} were refused; to ask "
            f"again, remove their lines (unusable, refused) from {outcomes.path}"
        )


def _lines(path: Path, command: str) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path} is missing: run `randcond datafree {command} {path.parent}` first")
    return [line.strip() for line in read_lines(path) if line.strip()]


COMMANDS = (nouns, visual, prompts, sample)
