"""A small hub for tests: it serves files of some models and refuses others, with the headers of the real one."""

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote

from tests.support.web import running

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REFUSALS = {  # model -> status, X-Error-Code, X-Error-Message
    "owner/gated": (403, "GatedRepo", "Access to model owner/gated is restricted."),
    "owner/gated-401": (401, "GatedRepo", "Access to model owner/gated-401 is restricted."),
    "owner/private": (401, "RepoNotFound", "Invalid username or password."),
    "owner/none": (404, "RepoNotFound", "Repository not found"),
    "owner/bad-token": (401, "", "Invalid credentials in Authorization header"),
    "owner/forbidden": (403, "", "Your token lacks the right to read."),
    "owner/busy": (503, "", ""),
    "owner/no-config": (404, "EntryNotFound", "Entry not found"),
}


@contextmanager
def small_hub(certificate: Path | None = None) -> Iterator[tuple[str, list[str]]]:
    """Runs the server. Yields its address and the requests so far. It has one model, owner/model, of one file.

    `certificate`: a file with certificate and key, for https.
    """
    requests: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            model = "/".join(self.path.removeprefix("/api/models").split("/")[1:3])
            if model in REFUSALS:
                status, code, message = REFUSALS[model]
                headers = {"X-Error-Code": code, "X-Error-Message": message, "X-Repo-Commit": COMMIT}
                self._answer(status, b"refused", {name: value for name, value in headers.items() if value})
            else:
                self._answer(200, b"{}", {"ETag": '"0a"', "X-Repo-Commit": COMMIT})

        do_HEAD = do_POST = do_GET

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            if self.command == "POST":
                self.rfile.read(int(self.headers["Content-Length"]))
                choice = {"index": 0, "message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"}
                body = json.dumps(
                    {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
                ).encode()
                headers = {"Content-Type": "application/json"}
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        with running(server):
            yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}", requests


@contextmanager
def hub_of(models: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Runs a hub that serves folders. Yields its address and the requests so far. `models`: hub id -> folder."""
    requests: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(f"{self.command} {self.path}")
            words = unquote(self.path).partition("?")[0].removeprefix("/api/models").split("/")
            name, rest = "/".join(words[1:3]), words[3:]
            commit = sha1(name.encode()).hexdigest()
            headers = {"X-Repo-Commit": commit}
            if name not in models:
                self._answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            elif self.path.startswith("/api/"):
                files = sorted(path for path in models[name].rglob("*") if path.is_file())
                names = [path.relative_to(models[name]).as_posix() for path in files]
                siblings = [{"rfilename": each} for each in names]
                facts = {"_id": "0", "id": name, "modelId": name, "sha": commit, "siblings": siblings, "tags": []}
                tree = [
                    {"type": "file", "path": each, "size": path.stat().st_size, "oid": sha1(each.encode()).hexdigest()}
                    for each, path in zip(names, files, strict=True)
                ]
                body = json.dumps(tree if rest[:1] == ["tree"] else facts).encode()
                self._answer(200, body, {"Content-Type": "application/json", **headers})
            elif (path := models[name] / "/".join(rest[2:])).is_file():  # resolve, the revision, the file
                content = path.read_bytes()
                self._answer(200, content, {"ETag": f'"{sha256(content).hexdigest()}"', **headers})
            else:
                self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no entry", **headers})

        do_HEAD = do_GET

        def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server, running(server):
        yield f"http://127.0.0.1:{server.server_address[1]}", requests


def write_certificate(path: Path) -> Path:
    """Writes a certificate of 127.0.0.1, signed by itself, and its key into one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_bytes(certificate.public_bytes(pem) + secret)
    return path
