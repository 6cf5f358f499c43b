"""`randcond fetch --from` a signed address: several files under one query, pages with links, names that clash."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from randcond.data.inputs import fetch_command
from randcond.data.inputs.catalogue import Input
from randcond.launch.errors import UserError
from tests.support.web import Request, reply, scripted

pytestmark = pytest.mark.usefixtures("short_waits")
SIGNED = "sig=planted-secret"
TWO = Input("two files", ["https://other/x/a.txt", "https://other/x/b.txt"])
ONE = Input("one file", ["https://other/x/a.txt"])
PAGE = Input("what a page links to", ["https://other/x/"], pattern="part-*.txt")
BOTH = {"a.txt": b"one", "b.txt": b"two"}
PARTS = {"part-1.txt": b"one", "part-2.txt": b"two"}


def links(*targets: str) -> bytes:
    return reply("".join(f"<a class=x href='{each}'>x</a>" for each in targets).encode(), Content_Type="text/html")


@dataclass(frozen=True)
class Case:
    """An input, the address given by --from, what the server has, and the files that must come of it or the error."""

    entry: Input
    address: str
    has: dict[str, bytes]  # path with its query -> the answer
    outcome: dict[str, bytes] | str


ANSWERS = {name: reply(data) for name, data in {**BOTH, **PARTS}.items()}
CASES = {
    "a signed folder of two files": Case(
        TWO, f"/f?{SIGNED}", {f"/f/{name}?{SIGNED}": ANSWERS[name] for name in BOTH}, BOTH
    ),
    "a signed folder with a slash": Case(
        TWO, f"/f/?{SIGNED}", {f"/f/{name}?{SIGNED}": ANSWERS[name] for name in BOTH}, BOTH
    ),
    "a signed file for two": Case(
        TWO,
        f"/f/a.txt?{SIGNED}",
        {f"/f/a.txt?{SIGNED}": ANSWERS["a.txt"]},
        r"expected a folder with 2 files, but .*/f/a\.txt\?\.\.\. does not contain .*/a\.txt/a\.txt\?\.\.\. .*\(404\)",
    ),
    "a signed file": Case(ONE, f"/f/a.txt?{SIGNED}", {f"/f/a.txt?{SIGNED}": ANSWERS["a.txt"]}, {"a.txt": b"one"}),
    "a signed file of another name": Case(
        ONE, f"/get?id=7&{SIGNED}", {f"/get?id=7&{SIGNED}": ANSWERS["a.txt"]}, {"a.txt": b"one"}
    ),
    "a signed folder of one file": Case(
        ONE, f"/f?{SIGNED}", {f"/f/a.txt?{SIGNED}": ANSWERS["a.txt"]}, {"a.txt": b"one"}
    ),
    "a server with its page for everything": Case(
        ONE,
        f"/get.php?{SIGNED}",
        {
            f"/get.php?{SIGNED}": ANSWERS["a.txt"],
            f"/get.php/a.txt?{SIGNED}": reply(b"<html>no", Content_Type="text/html"),
        },
        {"a.txt": b"one"},
    ),
    "a signed page with plain links": Case(
        PAGE,
        f"/f?{SIGNED}",
        {
            f"/f?{SIGNED}": links("part-1.txt", "/f/part-2.txt", "../", "?C=N", "x.txt", "mailto:part-3.txt"),
            **{f"/f/{name}?{SIGNED}": ANSWERS[name] for name in PARTS},
        },
        PARTS,
    ),
    "a signed page whose links are signed": Case(
        PAGE,
        f"/f/?{SIGNED}",
        {
            f"/f/?{SIGNED}": links("part-1.txt?sig=1", "part-2.txt?sig=2", "part-2.txt?sig=2#top"),
            "/f/part-1.txt?sig=1": ANSWERS["part-1.txt"],
            "/f/part-2.txt?sig=2": ANSWERS["part-2.txt"],
        },
        PARTS,
    ),
    "a page with a link that is no address": Case(
        PAGE,
        "/f/",
        {"/f/": links("http://[x", "part-1.txt", "part-2.txt"), **{f"/f/{n}": ANSWERS[n] for n in PARTS}},
        PARTS,
    ),
    "a page that comes in pieces": Case(
        PAGE,
        "/f/",
        {
            "/f/": links(*(f"x{n}.txt" for n in range(20_000)), "part-1.txt", "part-2.txt"),
            **{f"/f/{n}": ANSWERS[n] for n in PARTS},
        },
        PARTS,
    ),
    "a page by its name": Case(
        PAGE,
        "/f/index.html",
        {
            "/f/index.html": links("part-1.txt", "part-2.txt"),
            **{f"/f/{name}": ANSWERS[name] for name in PARTS},
        },
        PARTS,
    ),
    "a page without a query": Case(
        PAGE, "/f", {"/f/": links("part-1.txt", "./part-2.txt"), **{f"/f/{n}": ANSWERS[n] for n in PARTS}}, PARTS
    ),
    "two links of one name": Case(
        PAGE,
        "/f/",
        {"/f/": links("part-1.txt?v=1", "part-1.txt?v=2")},
        r"/f/part-1\.txt\?\.\.\.: two addresses that differ in their folder or query have the name part-1\.txt",
    ),
    "a page without such links": Case(PAGE, f"/f/?{SIGNED}", {f"/f/?{SIGNED}": links("x.txt")}, r"lists no file part-"),
    "a page that is refused": Case(
        PAGE, f"/f/?{SIGNED}", {f"/f/?{SIGNED}": reply(b"", 403)}, r"refuses access \(403\)"
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_files_come_from_a_signed_address(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_command, "known_inputs", lambda: {"mine": case.entry})

    def answer(request: Request) -> bytes:
        return case.has.get(request.path, reply(b"", 404))

    with scripted(answer) as (url, _):
        if isinstance(case.outcome, str):
            with pytest.raises(UserError, match=case.outcome) as raised:
                fetch_command.fetch("mine", from_=url + case.address, to=str(tmp_path))
            assert "planted" not in str(raised.value)
            return
        fetch_command.fetch("mine", from_=url + case.address, to=str(tmp_path))
    found = {path.name: path.read_bytes() for path in (tmp_path / "mine").glob("*.txt")}
    assert found == case.outcome
    assert "planted" not in (tmp_path / "mine/fetched.json").read_text()
