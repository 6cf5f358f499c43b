"""What T2I-CompBench takes from a prompt with spaCy: noun phrases, the two objects, the prompt without adjectives.

In: a spaCy pipeline, given as a folder or as the name of an installed package (published: en_core_web_sm).
Out: strings.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from randcond.eval.features.network_weights import first_line
from randcond.launch.errors import UserError

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

NO_QUESTION = frozenset({"top", "the side", "the left", "the right"})  # noun phrases that name no object
MOST_PHRASES = 8

# For complex prompts only. "on the top of" is left out: no complex prompt has it.
PREPOSITIONS = frozenset({"on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near"})
LONGEST = 3  # words of the longest preposition
PROBE = "a red car on the left of the small table"


def pipeline_folder(name: str) -> Path:
    """Returns the folder of a spaCy pipeline: `name` itself, or the folder inside an installed package of that name.

    The package is not imported. Raises UserError, which tells how to install a pipeline, if there is none.
    """
    folder = Path(name)
    if (folder / "config.cfg").is_file():
        return folder
    spec = find_spec(name) if name.isidentifier() else None
    for root in (spec.submodule_search_locations or []) if spec else []:
        for config in sorted(Path(root).glob(f"{name}-*/config.cfg")):
            return config.parent
    raise UserError(
        f"{name}: is no folder with a spaCy pipeline (config.cfg) and no installed package with one; "
        f"`python -m spacy download en_core_web_sm` installs the published pipeline"
    )


def load_pipeline(folder: Path) -> "Language":
    """Loads an English spaCy pipeline from its folder.

    Raises UserError naming a folder that can't be loaded, or whose pipeline gives no parts of speech or noun phrases.
    """
    import spacy

    try:
        nlp = spacy.load(folder)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{folder}: can't be loaded as a spaCy pipeline ({first_line(error)})") from None
    problem = ""
    doc = nlp(PROBE)
    if nlp.lang != "en":
        problem = f"is for the language {nlp.lang!r}, but the prompts are English"
    elif not doc.has_annotation("POS"):
        problem = "gives no parts of speech: it needs a tagger with an attribute_ruler, or a morphologizer"
    elif not doc.has_annotation("DEP"):
        problem = "gives no noun phrases: it needs a parser"
    if problem:
        raise UserError(
            f"{folder}: {problem}; it has {', '.join(nlp.pipe_names) or 'no component'}; use en_core_web_sm"
        )
    return nlp


def noun_phrases(doc: "Doc") -> list[str]:
    """Returns the noun phrases that become questions for BLIP, at most 8, without those that name no object."""
    return [chunk.text for chunk in doc.noun_chunks if chunk.text not in NO_QUESTION][:MOST_PHRASES]


def outer_nouns(doc: "Doc") -> tuple[str, str] | None:
    """Returns the two objects of a spatial prompt: its first and its last noun; None if it has no noun.

    A single noun is returned twice. Proper nouns don't count.
    """
    nouns = [token.text for token in doc if token.pos_ == "NOUN"]
    return (nouns[0], nouns[-1]) if nouns else None


def nouns_around(doc: "Doc") -> tuple[str, str] | None:
    """Returns the two objects of a complex prompt: the nearest noun before its preposition and the nearest after it.

    Before the preposition, proper nouns count as nouns. After it, they count only if no common noun follows; the object
    is then the last word of the first run of proper nouns. Returns None if all prepositions of the prompt together do
    not give exactly two nouns: the published score is then 0.
    """
    objects: list[str] = []
    for start in range(len(doc)):
        lengths = (length for length in range(LONGEST, 0, -1) if doc[start : start + length].text in PREPOSITIONS)
        if (length := next(lengths, 0)) == 0:
            continue
        before = [token.text for token in doc[:start] if token.pos_ in ("NOUN", "PROPN")]
        after = [token for token in doc[start + length :] if token.pos_ in ("NOUN", "PROPN")]
        nouns = [token.text for token in after if token.pos_ == "NOUN"]
        run_ends = [token.text for token in after if token.i + 1 == len(doc) or doc[token.i + 1].pos_ != "PROPN"]
        objects += before[-1:] + (nouns or run_ends)[:1]
    return (objects[0], objects[1]) if len(objects) == 2 else None


def without_adjectives(doc: "Doc") -> str:
    """Returns a prompt without its adjectives. All tokens, also full stops and commas, are separated by one blank."""
    return " ".join(token.text for token in doc if token.pos_ != "ADJ")
