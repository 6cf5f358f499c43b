"""What T2I-CompBench takes out of a prompt by spaCy: noun phrases, the two objects, the prompt without adjectives.

In: a spaCy pipeline (a folder, or the name of an installed one; published: en_core_web_sm). Out: plain strings.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from randcond.eval.scores.network_weights import first_line
from randcond.launch.errors import UserError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

NO_QUESTION = frozenset({"top", "the side", "the left", "the right"})  # phrases that name no thing
MOST_PHRASES = 8

# Only in complex prompts; not "on the top of", which none of them has.
PREPOSITIONS = frozenset({"on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"})
LONGEST = 3  # words of a preposition
PROBE = "a red car on the left of the small table"


def pipeline_folder(name: str) -> Path:
    """The folder of a spaCy pipeline: itself, or that of an installed package, which is not imported for it.

    Raises UserError saying how to get one when there is none.
    """
    folder = Path(name)
    if (folder / "config.cfg").is_file():
        return folder
    spec = find_spec(name) if name.isidentifier() else None
    for root in (spec.submodule_search_locations or []) if spec else []:
        for config in sorted(Path(root).glob(f"{name}-*/config.cfg")):
            return config.parent
    raise UserError(
        f"{name}: no folder with a spaCy pipeline (config.cfg), and none of that name is installed; "
        f"`python -m spacy download en_core_web_sm` installs the published one"
    )


def load_pipeline(folder: Path) -> "Language":
    """Loads an English spaCy pipeline from its folder.

    Raises UserError naming a folder that does not load, or whose pipeline gives no parts of speech or no noun phrases.
    """
    import spacy

    try:
        nlp = spacy.load(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: not a spaCy pipeline that loads ({first_line(error)})") from None
    wrong = ""
    doc = nlp(PROBE)
    if nlp.lang != "en":
        wrong = f"is for the language {nlp.lang!r}, and the prompts are English"
    elif not doc.has_annotation("POS"):
        wrong = "gives no parts of speech: it needs a tagger with an attribute_ruler, or a morphologizer"
    elif not doc.has_annotation("DEP"):
        wrong = "gives no noun phrases: it needs a parser"
    if wrong:
        raise UserError(f"{folder}: {wrong}; it has {', '.join(nlp.pipe_names) or 'no component'}; take en_core_web_sm")
    return nlp


def noun_phrases(doc: "Doc") -> list[str]:
    """The noun phrases that become questions for BLIP, at most 8, without those that name no thing."""
    return [chunk.text for chunk in doc.noun_chunks if chunk.text not in NO_QUESTION][:MOST_PHRASES]


def outer_nouns(doc: "Doc") -> tuple[str, str] | None:
    """The two objects of a spatial prompt: its first and its last noun (the same, when it has one); None without any.

    Proper nouns don't count.
    """
    nouns = [token.text for token in doc if token.pos_ == "NOUN"]
    return (nouns[0], nouns[-1]) if nouns else None


def nouns_around(doc: "Doc") -> tuple[str, str] | None:
    """The two objects of a complex prompt: the nearest nouns before and after its preposition.

    Before it a proper noun counts like a noun; after it only where no noun follows, and then the last of the first
    run of them. None when all prepositions together give anything but two: the published score is then 0.
    """
    found = []
    for start in range(len(doc)):
        lengths = (length for length in range(LONGEST, 0, -1) if doc[start : start + length].text in PREPOSITIONS)
        if (length := next(lengths, 0)) == 0:
            continue
        before = [token.text for token in doc[:start] if token.pos_ in ("NOUN", "PROPN")]
        after = [token for token in doc[start + length :] if token.pos_ in ("NOUN", "PROPN")]
        nouns = [token.text for token in after if token.pos_ == "NOUN"]
        ends = [token.text for token in after if token.i + 1 == len(doc) or doc[token.i + 1].pos_ != "PROPN"]
        found += before[-1:] + (nouns or ends)[:1]
    return (found[0], found[1]) if len(found) == 2 else None


def without_adjectives(doc: "Doc") -> str:
    """The words of a prompt that are no adjectives, with one blank between any two (full stops and commas, too)."""
    return " ".join(token.text for token in doc if token.pos_ != "ADJ")
