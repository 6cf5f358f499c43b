"""Completes the documentation while MkDocs builds it (mkdocs.yml): references, kept reports, links that leave docs/.

Adds reference/keys.md from the comments in launch/config/sections.py, reference/commands.md from every command's
`--help`, a page for each room of the packages from its docstrings, and the kept reports of launch/tables/results.
A link to any other file outside docs/ becomes plain text, because the site does not hold it.
"""

import contextlib
import dataclasses
import io
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from randcond.launch.cli import GROUPS, TOOLS, main
from randcond.launch.command_stubs import commands_of
from randcond.launch.keys import Key, all_keys, yaml_value

ROOT = Path(__file__).parents[2]
PACKAGES = ("launch", "model_zoo", "data", "train", "eval")
RESULTS = ROOT / "launch" / "tables" / "results"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_startup(command: str, dirty: bool) -> None:
    """Makes a folder `randcond` that holds the packages alone, for the API reference.

    mkdocstrings looks for it when it reads the configuration, which is later.
    """
    folder = ROOT / "build" / "docs" / "randcond"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").touch()
    for name in PACKAGES:
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(ROOT / name, folder))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages and the kept reports."""
    pages = {"reference/keys.md": keys(), "reference/commands.md": commands(), **api()}
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    for path in sorted(RESULTS.rglob("*")):
        if path.suffix in (".md", ".png"):
            uri = path.relative_to(RESULTS.parent).as_posix()
            files.append(File(uri, str(RESULTS.parent), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Points the links of a page to the pages of the site.

    In a search, the questions of the home page stand before the guide, references and kept reports behind it. They have
    more pages than it, and shorter titles.
    """
    if page.is_homepage:
        page.meta["search"] = {"boost": 20}
    elif page.file.src_uri.startswith(("reference/", "results/")):
        page.meta["search"] = {"boost": 0.01}
    source = page.file.abs_src_path
    if source is None:  # a generated page
        return markdown
    known = {Path(file.abs_src_path).resolve(): file.src_uri for file in files if file.abs_src_path}

    def pointed(match: re.Match[str]) -> str:
        picture, text, target, anchor = match.group(1), match.group(2), match.group(3), match.group(4) or ""
        if "://" in target or target.startswith("mailto:"):
            return match.group(0)
        there = (Path(source).parent / target).resolve()
        uri = known.get(there) or known.get(there / "README.md")
        if uri is None:  # MkDocs warns of a file that does not exist
            return text if there.exists() else match.group(0)
        return f"{picture}[{text}]({os.path.relpath(uri, Path(page.file.src_uri).parent)}{anchor})"

    return LINK.sub(pointed, markdown)


def keys() -> str:
    """Returns the reference of an experiment's keys, a table per section."""
    lines = [
        "# Keys of an experiment",
        "",
        "Every key of an experiment's YAML. On the command line: `section.key=value`. `randcond config KEY` shows one.",
    ]
    sections: dict[str, list[Key]] = {}
    for key in all_keys():
        sections.setdefault(key.name.rpartition(".")[0], []).append(key)
    for section in sorted(sections, key=lambda name: (name.partition(".")[0], name)):
        lines += ["", f"## {section or 'Top level'}", "", "| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [row(key) for key in sections[section]]
    return "\n".join(lines) + "\n"


def row(key: Key) -> str:
    """Returns a key as a row of a Markdown table."""
    default = "must be given" if key.default is dataclasses.MISSING else f"`{yaml_value(key.default)}`"
    return "| " + " | ".join(map(cell, (f"`{key.name.rpartition('.')[2]}`", key.kind, default, key.meaning))) + " |"


def cell(text: str) -> str:
    """Returns a text as a cell of a Markdown table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def commands() -> str:
    """Returns the help of every command."""
    inner = [[group, name] for group, module in GROUPS.items() for name in commands_of(module)]
    tools = [["students", "rank"] if name == "rank" else [name] for name in TOOLS]
    parts = ["# Commands", "", "What `--help` says of each command."]
    for words in [["run"], *tools, *inner]:
        parts += ["", f"## randcond {' '.join(words)}", "", "```text", helped(words), "```"]
    return "\n".join(parts) + "\n"


def helped(words: list[str]) -> str:
    """Returns what a command's --help prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return out.getvalue().strip()


def api() -> dict[str, str]:
    """Returns a page for each package and each of its rooms, and a list of them."""
    rooms = [f"randcond.{name}" for name in PACKAGES]
    for name in PACKAGES:
        found = sorted((ROOT / name).rglob("__init__.py"))
        rooms += [
            f"randcond.{'.'.join(path.parent.relative_to(ROOT).parts)}" for path in found if path.parent.name != name
        ]
    listed = sorted(rooms)
    pages = {f"reference/api/{room}.md": page_of(room, listed) for room in listed}
    lines = [f"- [{room}](api/{room}.md)" for room in listed]
    return {"reference/api.md": "# API\n\nFrom docstrings and types.\n\n" + "\n".join(lines) + "\n", **pages}


def page_of(room: str, rooms: list[str]) -> str:
    """Returns the page of one room: its modules, without those of the rooms inside."""
    folder = ROOT.joinpath(*room.split(".")[1:])
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    lines: list[Any] = [f"# {room}", ""]
    for module in modules:
        lines += [f"::: {room}.{module}", ""]
    inside = [each for each in rooms if each.rpartition(".")[0] == room]
    lines += [f"- [{each}]({each}.md)" for each in inside]
    return "\n".join(lines) + "\n"
