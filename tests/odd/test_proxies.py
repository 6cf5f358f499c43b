"""Proxies of the environment: everything that is fetched passes through them, and NO_PROXY leads round them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from randcond.data.inputs.fetch import fetch
from randcond.launch.errors import UserError
from tests.support.hub import small_hub, write_certificate
from tests.support.proxy import forward_proxy
from tests.support.web import plain as plain_server

# A new process, because libraries read proxies, certificates and HF_ENDPOINT when they are imported.
FETCH = """
import asyncio, sys
from pathlib import Path
from randcond.data.captions.sources import expand
from randcond.data.inputs.fetch import fetch
from randcond.data.texts.endpoint import Endpoint
from randcond.data.texts.sender import Sender
from randcond.model_zoo.checkpoints.hub_files import hub_file

async def ask(url):
    async with Sender(Endpoint(model="m", url=f"{url}/v1", retries=0), "key", asyncio.Event()) as sender:
        assert await sender.send("s", "u", 0)

out, listed, *servers = map(str, sys.argv[1:])
assert expand(f"filecache::{listed}/captions.csv")  # a chained address needs a server that lists its files
for number, url in enumerate(servers):
    fetch(f"{url}/a/file.bin", Path(out) / f"{number}.bin")
    expand(f"{url}/a/captions.csv")
    asyncio.run(ask(url))
hub_file("owner/model", "model_index.json")
"""


def fetch_all(out: Path, listed: str, servers: list[str], certificate: Path, **environment: str) -> None:
    """Fetches from each server in every way, and one file of the hub, which is the last server."""
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    settings = {"SSL_CERT_FILE": str(certificate), "HF_ENDPOINT": servers[-1], "HF_HOME": str(out / "hub")}
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", FETCH, str(out), listed, *servers],
        env={**clean, **settings, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.heavy
@pytest.mark.parametrize("upper", [False, True])
def test_all_that_is_fetched_passes_through_the_proxy(upper: bool, tmp_path: Path) -> None:
    certificate = write_certificate(tmp_path / "certificate.pem")
    (tmp_path / "files").mkdir()
    (tmp_path / "files/captions.csv").write_text("caption\na cat\n")
    with (
        plain_server(tmp_path / "files") as listed,
        forward_proxy() as (proxy, passed),
        small_hub() as (plain, _),
        small_hub(certificate) as (secure, there),
    ):
        host = proxy.removeprefix("http://")  # curl and others take a proxy without http://, so people write it
        names = {"http_proxy": host, "https_proxy": proxy}
        names = {name.upper() if upper else name: value for name, value in names.items()}
        fetch_all(tmp_path / "by", listed, [plain, secure], certificate, **names)
        tunnels = [each for each in passed if each == f"CONNECT {secure.removeprefix('https://')}"]
        requests = [each for each in passed if plain in each or listed in each]
        assert len(tunnels) >= 4 and len(requests) >= 4 and len(tunnels) + len(requests) == len(passed)
        assert any(listed in each for each in passed)
        assert any(each.startswith("POST") for each in requests) and any("model_index.json" in each for each in there)
        passed.clear()
        no_proxy = {"NO_PROXY" if upper else "no_proxy": "elsewhere.example,127.0.0.1"}
        fetch_all(tmp_path / "round", listed, [plain, secure], certificate, **names, **no_proxy)
        assert not passed


def test_a_proxy_that_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with forward_proxy(refuse=407) as (proxy, passed):
        for scheme in ("http", "https"):
            monkeypatch.setenv(f"{scheme}_proxy", proxy)
            with pytest.raises(UserError, match=r"a\.bin: the proxy refuses access \(407\); check http_proxy"):
                fetch(f"{scheme}://127.0.0.1:9/a.bin", tmp_path / "a.bin")
        assert [each.partition(" ")[0] for each in passed] == ["GET", "CONNECT"]
