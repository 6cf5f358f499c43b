"""Captions out of nothing, for distillation without any data (Table 3, row 3; supplement A).

Run the four commands in this order; OUT is one folder, a killed command goes on where it was:
nouns of WordNet -> those that can be seen, by a language model -> 128 prompts for each -> a balanced sample to cache.
Language models are given as `key=value` words, see `randcond datafree visual --help`.
"""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np

from randcond.data.captions.row_filter import clean_text
from randcond.data.texts.llm import Answer, Question, Unusable, ask, read_endpoint
from randcond.data.texts.wordnet import WordNet, find_wordnet
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import atomic_write, write_json, write_text

# Supplement A, word by word.
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
_VERDICT_TOKENS, _PROMPT_TOKENS = 40, 28  # of one answer and of one prompt, about
_ITEM = re.compile(r"^[\s*_]*\d+\s*[.):]+[*_]*\s+(.*\S)")


def nouns(out: str, *, depth: int = 14, wordnet: str = "") -> None:
    """Writes WordNet's nouns down to a depth below "entity" to OUT/nouns.txt; no proper names.

    --depth N         hypernyms up to "entity", on the shortest way (default 14, the paper's)
    --wordnet FOLDER  WordNet's files (default: $WNSEARCHDIR, Debian's wordnet-base, nltk's corpora)
    """
    found = WordNet(find_wordnet(wordnet)).nouns(depth)
    write_text(Path(out) / "nouns.txt", "\n".join(found) + "\n")
    print(f"{len(found):,} nouns, at most {depth} deep: {out}/nouns.txt")


def visual(out: str, *llm: str, dry_run: bool = False) -> None:
    """Asks which nouns a text-to-image model can show, and keeps them in OUT/visual.txt (the paper: about 17K).

    LLM  model=NAME (required) url=http://host/v1 key=VARIABLE concurrency=16 rpm=0 tpm=0 retries=10 timeout=120
         temperature= max_tokens= price_in= price_out= (US dollars per million tokens) max_cost=
         any OpenAI-compatible endpoint; its key comes from the environment ($OPENAI_API_KEY)
    --dry-run  prints how many questions are left and what they would cost

    example    randcond datafree visual runs/datafree model=gpt-3.5-turbo rpm=3000 price_in=0.5 price_out=1.5
    """
    wanted = _lines(Path(out) / "nouns.txt", "nouns")
    questions = {noun: Question(SYSTEM, VISUAL.format(noun=noun)) for noun in wanted}
    endpoint = read_endpoint(llm)
    journal = Path(out) / "visual.jsonl"
    kept = ask(endpoint, questions.values(), journal, read_verdict, _VERDICT_TOKENS, "visual nouns", dry_run)
    if dry_run:
        return
    shown = [noun for noun, question in questions.items() if kept.answers.get(question.id)]
    write_text(Path(out) / "visual.txt", "\n".join(shown) + "\n")
    unclear = sum(question.id in kept.unusable for question in questions.values())
    print(f"{len(shown):,} of {len(wanted):,} nouns can be seen: {out}/visual.txt")
    if unclear:
        print(
            f"{unclear:,} unclear, left out; their answers are in {journal}, without their lines they are asked again"
        )


def prompts(out: str, *llm: str, per_noun: int = 128, dry_run: bool = False) -> None:
    """Asks for prompts about each visual noun, and writes them to OUT/prompts.jsonl with their noun.

    LLM           as in `randcond datafree visual --help`
    --per-noun N  how many are asked for (default 128, the paper's: 2.2M in all)
    --dry-run     prints how many questions are left and what they would cost

    OUT/prompts.jsonl is a caption source: the pool's, with `pool.sources=[OUT/prompts.jsonl]`.
    """
    folder = Path(out)
    questions = {
        noun: Question(SYSTEM, PROMPTS.format(noun=noun, count=per_noun))
        for noun in _lines(folder / "visual.txt", "visual")
    }
    answer_tokens = _PROMPT_TOKENS * per_noun
    endpoint = read_endpoint(llm)
    journal = folder / "answers.jsonl"
    kept = ask(endpoint, questions.values(), journal, read_prompts, answer_tokens, "prompts", dry_run)
    if dry_run:
        return
    counts: Counter[str] = Counter()
    with atomic_write(folder / "prompts.jsonl") as aside, aside.open("w") as file:
        for noun, question in questions.items():
            found = kept.answers.get(question.id, [])[:per_noun]
            counts.update(nouns=bool(found), prompts=len(found), missing=per_noun - len(found))
            for caption in found:
                file.write(json.dumps({"caption": caption, "noun": noun}, ensure_ascii=False) + "\n")
    write_json(folder / "prompts.json", {"model": endpoint.model, "per_noun": per_noun, **counts})
    print(f"{counts['prompts']:,} prompts for {counts['nouns']:,} nouns, {counts['missing']:,} fewer than asked for")


def sample(out: str, *, n: int = 212_000, seed: int = 0) -> None:
    """Draws N prompts, as evenly over the nouns as they have any, to OUT/sample-N.jsonl: the captions to cache.

    example    randcond datafree sample runs/datafree --n 212000
    """
    folder = Path(out)
    if not (folder / "prompts.json").is_file():
        raise UserError(f"{folder}: no prompts.jsonl; run `randcond datafree prompts {out}` first")
    by_noun: dict[str, list[str]] = {}
    seen: set[str] = set()
    with (folder / "prompts.jsonl").open() as file:
        for entry in map(json.loads, file):
            if entry["caption"] not in seen:  # two nouns may have been given the same prompt
                seen.add(entry["caption"])
                by_noun.setdefault(entry["noun"], []).append(entry["caption"])
    if n > len(seen):
        raise UserError(f"--n: {n:,} asked for, {folder}/prompts.jsonl holds {len(seen):,} different prompts")
    random = np.random.default_rng(seed)
    shares = even_shares([len(found) for found in by_noun.values()], n, random)
    chosen = [
        {"caption": found[index], "noun": noun}
        for (noun, found), share in zip(by_noun.items(), shares, strict=True)
        for index in sorted(random.permutation(len(found))[:share].tolist())
    ]
    path = folder / f"sample-{n}.jsonl"
    write_text(path, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in chosen))
    print(f"{n:,} prompts, {min(shares)} to {max(shares)} of a noun: {path}")
    print(f"cache.captions=[{path}] cache.size={n} pool.sources=[{folder / 'prompts.jsonl'}]")


def even_shares(sizes: list[int], n: int, random: np.random.Generator) -> list[int]:
    """How many to take out of each of several groups so that n come together, none giving more than it has and the
    shares as equal as that allows; which ones give the odd one more is left to chance.
    """
    level = 0
    while sum(min(size, level + 1) for size in sizes) <= n:
        level += 1
        if level > max(sizes, default=0):
            break
    shares = [min(size, level) for size in sizes]
    more = [group for group, size in enumerate(sizes) if size > level]
    for group in random.permutation(more)[: n - sum(shares)].tolist():
        shares[group] += 1
    return shares


def read_verdict(question: Question, answer: Answer) -> bool:
    """Whether an answer begins with yes; raises Unusable when it begins with neither yes nor no."""
    word = re.match(r"[\W_]*(yes|no)\b", answer.text, re.IGNORECASE)
    if word is None:
        raise Unusable
    return word[1].lower() == "yes"


def read_prompts(question: Question, answer: Answer) -> list[str]:
    """The numbered lines of an answer, cleaned as captions are, without numbers, quotes and repetitions.

    The last line of one that was cut is half a prompt. Raises Unusable when there are none.
    """
    lines = answer.text.splitlines()[: -1 if answer.cut else None]
    items = [clean_text(match[1]).strip("\"'“”*_ ") for line in lines if (match := _ITEM.match(line))]
    if not (found := list(dict.fromkeys(filter(None, items)))):
        raise Unusable
    return found


def _lines(path: Path, before: str) -> list[str]:
    if not path.is_file():
        raise UserError(f"{path} is missing: run `randcond datafree {before} {path.parent}` first")
    return [line for line in path.read_text().splitlines() if line]


COMMANDS = (nouns, visual, prompts, sample)
