"""Servers that want a password, move files elsewhere or refuse, and addresses that are none."""

import base64
from pathlib import Path

import pytest

from randcond.data.captions.caption_lists import read_unique
from randcond.data.captions.sources import expand, identify
from randcond.data.inputs.fetch import fetch
from randcond.launch.errors import UserError
from tests.odd.server_cases import DATA, PAGE
from tests.support.web import Request, reply, scripted

pytestmark = pytest.mark.usefixtures("short_waits")

BASIC = "Basic " + base64.b64encode(b"me:planted-password").decode()


@pytest.mark.parametrize("way", ["the address", "~/.netrc"])
def test_a_redirect_to_another_host_goes_without_credentials(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine localhost login me password planted-password\n")
    monkeypatch.setenv("NETRC", str(netrc) if way == "~/.netrc" else "/nowhere")
    with scripted(lambda request: reply(DATA)) as (other, there):
        moved = {"/same": "/file.bin", "/other": f"{other}/file.bin"}

        def answer(request: Request) -> bytes:
            if request.headers.get("authorization") != BASIC:
                return reply(b"", 401)
            to = moved.get(request.path)
            cookie = {"Set_Cookie": "session=planted; Path=/"}
            return reply(b"", 302, Location=to, **cookie) if to else reply(DATA)

        with scripted(answer) as (first, here):
            port = first.rpartition(":")[2]
            user = "me:planted-password@" if way == "the address" else ""
            for path in ("same", "other"):
                assert fetch(f"http://{user}localhost:{port}/{path}", tmp_path / path).read_bytes() == DATA
    assert [request.path for request in here] == ["/same", "/file.bin", "/other"]
    assert {"authorization", "cookie"} & set(there[0].headers) == set() and len(there) == 1


def test_a_wrong_password_is_said_once_without_it(tmp_path: Path) -> None:
    with scripted(lambda request: reply(PAGE, 401, Content_Type="text/html")) as (url, requests):
        address = url.replace("://", "://me:planted-password@") + "/a.csv?sig=planted-query"
        for read in (lambda: expand(address), lambda: identify(address), lambda: read_unique([address])):
            with pytest.raises(UserError, match=r"/a\.csv\?\.\.\.: the server refuses access \(401\)") as raised:
                read()
            assert "planted" not in str(raised.value)
    assert len(requests) == 6  # each HEAD and GET once


def test_an_address_that_is_none_is_an_error_at_once(tmp_path: Path) -> None:
    for address in ("http://me:planted/pass@host/a.csv", "http://[::1/a.csv"):
        with pytest.raises(UserError) as raised:
            fetch(address, tmp_path / "a.csv")
        assert "planted" not in str(raised.value)
    with pytest.raises(UserError, match=r"query of this address was taken off .*\$\{NAME\}"):
        fetch("http://127.0.0.1:9/a.csv?...", tmp_path / "a.csv")
    with pytest.raises(UserError, match="environment variable RANDCOND_NOT_SET is not set"):
        fetch("http://127.0.0.1:9/a.csv?${RANDCOND_NOT_SET}", tmp_path / "a.csv")


def test_a_folder_of_files_that_needs_a_password(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()

    def answer(request: Request) -> bytes:
        if request.headers.get("authorization") != BASIC:
            return reply(b"", 401)
        if request.path == "/x/":
            return reply(b'<a href="a.csv">a</a> <a href="b.txt">b</a>', Content_Type="text/html")
        files = {"/x/a.csv": b"caption\none\n", "/x/b.txt": b"two\n"}
        return reply(files[request.path]) if request.path in files else reply(b"", 404)

    with scripted(answer) as (url, _):
        assert read_unique([url.replace("://", "://me:planted-password@") + "/x/"])[0] == ["one", "two"]
        with pytest.raises(UserError, match=r"/x/: the server refuses access \(401\)"):
            read_unique([f"{url}/x/"])
