"""Tests of export to the Hugging Face hub: the real client, and a small server in place of the hub."""

import base64
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.support import warm
from tests.support.demo import TINY
from tests.support.web import running


class Hub(BaseHTTPRequestHandler):
    """A hub with one repository. It implements what the client needs for files that are sent inside the commit."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        server.tokens.add(self.headers["Authorization"])
        url = f"http://127.0.0.1:{server.server_port}/me/student"
        if self.path == "/api/repos/create":
            server.created.append(json.loads(body))
            self._answer(
                {"url": f"http://127.0.0.1:{server.server_port}/me/student", "name": "me/student", "id": "me/student"}
            )
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = [{**file, "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer({"commitUrl": f"{url}/commit/1", "commitOid": "1", "success": True})
        else:
            self.send_error(404)

    def do_GET(self) -> None:
        self._answer({"id": "me/student", "sha": "0", "siblings": []})

    def _answer(self, data: Any) -> None:
        body = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.created, server.files, server.tokens = [], {}, set()
    with running(server):
        yield server


def test_export_pushes_the_folder_with_the_token_of_the_environment(world: Path, hub: Any) -> None:
    words = ["export", "demo-with", *TINY, "--out", "pushed", "--push", "me/student", "--private"]
    environment = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_TOKEN": "hf_secret"}
    done = warm.run([warm.Command("randcond.launch.cli", words, world, environment)])[0]
    assert done.returncode == 0, done.stderr
    assert "pushed to me/student" in done.stdout
    assert "hf_secret" not in done.stdout + done.stderr
    assert hub.created[0]["visibility"] == "private" and hub.tokens == {"Bearer hf_secret"}
    local = {str(path.relative_to(world / "pushed")) for path in (world / "pushed").rglob("*") if path.is_file()}
    assert set(hub.files) == local and "model_index.json" in local
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert hub.files[weights] == (world / "pushed" / weights).read_bytes()


def test_a_token_the_hub_refuses_is_an_error_and_the_folder_stays(world: Path) -> None:
    words = ["export", "demo-with", *TINY, "--out", "kept", "--push", "me/s"]
    environment = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_secret"}
    done = warm.run([warm.Command("randcond.launch.cli", words, world, environment)])[0]
    assert done.returncode == 2
    assert "upload to me/s failed" in done.stderr and "Traceback" not in done.stderr
    assert (world / "kept/model_index.json").is_file()
