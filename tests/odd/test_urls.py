"""URLs and texts with secrets: what is left of them where they are written or printed."""

import logging
from pathlib import Path

import pytest
import yaml

from randcond.data.inputs.fetch import fill_in
from randcond.launch.cluster.commands import plan, show
from randcond.launch.cluster.jobs import job_script
from randcond.launch.cluster.place import Place
from randcond.launch.config.experiments import load_config, to_yaml
from randcond.launch.errors import UserError
from randcond.launch.runtime.logs import log
from randcond.launch.urls import HIDDEN, hide_secrets, remember_secret, show_url, veil, without_secrets

SHOWN = {  # URL -> how it is shown
    "https://host/a.csv": "https://host/a.csv",
    "https://me:pass@host/a.csv": "https://host/a.csv",
    "https://me@host/a.csv": "https://host/a.csv",
    "https://me:pass@host:8000/a.csv": "https://host:8000/a.csv",
    "https://host/a.csv?sig=x&b=c": "https://host/a.csv?...",
    "https://host/a.csv#top": "https://host/a.csv",
    "https://host/a.csv?sig=x#top": "https://host/a.csv?...",
    "https://me:p@ss@host/a@b.csv": "https://host/a@b.csv",
    "https://me:p/ss@host/a.csv": "https://host/a.csv",
    "https://me:p?ss@host/a.csv": "https://host/a.csv",
    "https://me:p#ss@host/a.csv?x": "https://host/a.csv?...",
    "https://me:@host/a.csv": "https://host/a.csv",
    "http://minio:9000/bucket/captions@2024.csv": "http://minio:9000/bucket/captions@2024.csv",
    "http://nas:8080/laion@v2/captions.csv": "http://nas:8080/laion@v2/captions.csv",
    "https://h/a.csv?accessToken=planted&v=${V}": "https://h/a.csv?...",
    "https://me:${PASS}@host/a.csv?sv=1&sig=${SIG}": "https://host/a.csv?...",
    "https://host/a@b.csv": "https://host/a@b.csv",
    "https://host:8000/@scope/a.csv": "https://host:8000/@scope/a.csv",
    "http://[::1]:8000/a.csv": "http://[::1]:8000/a.csv",
    "http://me:pass@[::1]:8000/a.csv": "http://[::1]:8000/a.csv",
    "HTTPS://me:pass@host/a.csv": "HTTPS://host/a.csv",
    "https://host?token=x": "https://host?...",
    "https://host/a.csv?...": "https://host/a.csv?...",
    "https://host/a b.csv?sig=x y": "https://host/a b.csv?...",
    "s3://bucket/a.csv": "s3://bucket/a.csv",
    "s3://key:secret@bucket/a.csv": "s3://bucket/a.csv",
    "s3://bucket/a.csv?X-Amz-Signature=x": "s3://bucket/a.csv?...",
    "s3://bucket/part-?.parquet": "s3://bucket/part-?.parquet",
    "gs://bucket/a#1.csv": "gs://bucket/a#1.csv",
    "az://container/a.csv?sv=1&sig=x": "az://container/a.csv?...",
    "abfs://container@account.dfs.core.windows.net/a.csv": "abfs://container@account.dfs.core.windows.net/a.csv",
    "ftp://me:pass@host/a.csv": "ftp://host/a.csv",
    "sftp://me@host/a.csv": "sftp://host/a.csv",
    "github://owner:repository@main/a.csv": "github://owner:repository@main/a.csv",
    "filecache::https://me:pass@host/a.csv?sig=x": "filecache::https://host/a.csv?...",
    "zip://a.csv::https://me:pass@host/a.zip?sig=x": "zip://a.csv::https://host/a.zip?...",
    "https://${USER}:${PASS}@host/a.csv?${QUERY}": "https://host/a.csv?...",
    "file:///data/a?b=c.csv": "file:///data/a?b=c.csv",
    "data/a?b=c@d.csv": "data/a?b=c@d.csv",
    "": "",
}
IN_TEXTS = {  # text -> what is left of it
    "got https://me:pass@host/a?sig=x, then nothing": "got https://host/a?..., then nothing",
    "https://me:pass@host/a.csv: no such file": "https://host/a.csv: no such file",
    "https://host/a?...: no such file (404)": "https://host/a?...: no such file (404)",
    "(see https://host/a?sig=x)": "(see https://host/a?...)",
    "401, url='http://me:pass@host/a?sig=x'": "401, url='http://host/a?...'",
    '{"url": "https://me:pass@host/a", "b": 1}': '{"url": "https://host/a", "b": 1}',
    "['https://host/a?x=1','https://me:pass@host/b']": "['https://host/a?...','https://host/b']",
    "<a href=https://host/a?sig=x>": "<a href=https://host/a?...>",
    "http_proxy=http://me:pass@proxy:3128": "http_proxy=http://proxy:3128",
    "http://proxy:3128, me@host": "http://proxy:3128, me@host",
    "write https://me:${PASS}@host/a?sv=1&sig=${SIG}.": "write https://me:${PASS}@host/a?sv=1&sig=${SIG}.",
    "https://me:planted${PASS}@host/a?sig=1&b=${B}": "https://host/a?...",
    "https://h/a?accessToken=planted&sv=${V}": "https://h/a?...",
    "at https://me:12/34@host/a.csv": "at https://host/a.csv",
    "at https://me:12#34@host:8000 now": "at https://host:8000 now",
    '{"a":"http://node1:8000/v1","b":"x@y"}': '{"a":"http://node1:8000/v1","b":"x@y"}',
    "url('http://127.0.0.1:8000',me@host)": "url('http://127.0.0.1:8000',me@host)",
    "sources:\n- https://host/a?sig=x\n- b.csv": "sources:\n- https://host/a?...\n- b.csv",
    "https://me:p/a?s#s@host/a failed": "https://host/a failed",
    "a :// b": "a :// b",
    "write https://${USER}:${PASS}@host/a?${QUERY} there": "write https://${USER}:${PASS}@host/a?${QUERY} there",
    "no address at all": "no address at all",
}


@pytest.mark.parametrize("url", SHOWN)
def test_a_url_is_shown_without_its_secrets(url: str) -> None:
    assert show_url(url) == SHOWN[url]
    assert show_url(show_url(url)) == SHOWN[url]


@pytest.mark.parametrize("text", IN_TEXTS)
def test_a_text_is_shown_without_the_secrets_of_its_urls(text: str) -> None:
    assert hide_secrets(text) == IN_TEXTS[text]
    assert hide_secrets(hide_secrets(text)) == IN_TEXTS[text]


def test_what_a_server_repeats_of_a_secret_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    fill_in("https://someone:planted%2Fpass@host/a.csv?file=captions&X-Amz-Signature=0123456789abcdef")
    remember_secret("planted-api-key")
    monkeypatch.setenv("HF_TOKEN", "hf_planted_token")
    for secret in ("planted%2Fpass", "planted/pass", "0123456789abcdef", "planted-api-key", "hf_planted_token"):
        assert hide_secrets(f"wrong: {secret}!") == f"wrong: {HIDDEN}!"
        assert str(UserError(f"wrong: {secret}!")) == f"wrong: {HIDDEN}!"
    assert hide_secrets("the file captions of someone") == "the file captions of someone"


def test_variables_in_a_url_are_filled_in_and_kept_in_configurations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ME", "me")
    monkeypatch.setenv("PASS", "planted-password")
    monkeypatch.setenv("QUERY", "sig=planted")
    address = "https://${ME}:${PASS}@host/a.csv?${QUERY}"
    assert fill_in(address) == "https://me:planted-password@host/a.csv?sig=planted"
    config = load_config("demo-with", [f'pool.sources=["{address}", "https://me:planted@host/b.csv?sig=planted"]'])
    text = to_yaml(config)
    assert yaml.safe_load(text)["pool"]["sources"] == [address, "https://host/b.csv?..."]
    environment: dict[str, str] = {}
    veiled = veil({"a": ["https://me:planted@host/b.csv?sig=1", address, "c.csv"]}, environment)
    assert "planted" not in str(veiled) and veiled["a"][1:] == [address, "c.csv"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fill_in(veiled["a"][0]) == "https://me:planted@host/b.csv?sig=1"


@pytest.mark.parametrize("query", ["?${QUERY}", "?sv=1&sig=${SIG}", "?sig=1&b=${SIG}", "?${QUERY}&download=true"])
@pytest.mark.parametrize("user", ["", "${ME}:${PASS}@", "me:${PASS}@", "me:planted${PASS}@", "${PASS}@"])
def test_a_url_with_variables_arrives_as_it_was_meant(user: str, query: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it was veiled, or written into a configuration."""
    values = {"ME": "someone", "PASS": "pass", "QUERY": "sig=1", "SIG": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    url = f"https://{user}host/a.csv{query}"
    meant = fill_in(url)
    assert not any(f"${{{name}}}" in meant for name in values)
    environment: dict[str, str] = {}
    veiled = veil(url, environment)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert fill_in(veiled) == meant
    written = show_url(url, keep_variables=True)
    assert ("planted" in user or "sig=1" in query) == (written != url)
    assert "planted" not in written + veiled and "sig=1" not in written + veiled


def test_ordinary_words_of_the_environment_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORT_KEY", "captions")
    monkeypatch.setenv("SSH_KEY", "/etc/passwd")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/Ab3dEfGh/lmNoPq+planted2")
    monkeypatch.setenv("API_KEY", "planted1")
    fill_in("sftp://researcher@host/a.csv")
    text = "captions of researcher, by /etc/passwd"
    assert hide_secrets(f"{text}: planted1") == f"{text}: {HIDDEN}"
    assert hide_secrets("key /Ab3dEfGh/lmNoPq+planted2 is wrong") == f"key {HIDDEN} is wrong"


def test_a_long_text_of_punctuation_is_read_in_one_pass() -> None:
    text = "https://host/" + "." * 200_000 + "a"
    assert hide_secrets(text) == text


def test_commands_hold_no_secret_and_other_hosts_refuse_one(tmp_path: Path) -> None:
    words = ['pool.sources=["https://me:planted@host/a.csv?sig=planted"]', "engine.processes=2"]
    for step in plan("all", "demo-with", words, Place()):
        assert "planted" not in show(step) + str(step.command) and set(step.environment.values()) == {
            "me:planted",
            "sig=planted",
        }
    (tmp_path / "hosts").write_text("here slots=2\n")
    for place in (Place(launcher="slurm"), Place(hostfile=str(tmp_path / "hosts"))):
        with pytest.raises(UserError, match=r"pool\.sources: https://host/a\.csv\?\.\.\. has a user") as raised:
            plan("train", "demo-with", words, place)
        assert "planted" not in str(raised.value)
        named = ['pool.sources=["https://${ME}:${PASS}@host/a.csv?${QUERY}"]']
        steps = plan("all", "demo-with", named, place)
        written = [text for step in steps for text in step.files.values()]
        assert written and all("https://${ME}:${PASS}@host/a.csv?${QUERY}" in text for text in written)
        job_script("all", "demo-with", named, place, steps, [], "", 0, 60)


def test_log_lines_of_libraries_and_tracebacks_hold_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError("https://me:planted@host/a?sig=planted is slow")
    except RuntimeError as error:
        log.critical("failed", exc_info=error)
    logging.getLogger("some.library").error("retrying %s", "https://me:planted@host/a?sig=planted")
    said = "".join(capsys.readouterr())
    assert "https://host/a?... is slow" in said and "planted" not in said


def test_stored_data_lose_urls_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A word of a manifest may also be somebody's password."""
    monkeypatch.setenv("PROJECT_KEY", "captions")
    stored = {"captions": 8, "sources": ["captions.csv", "https://me:planted@host/captions.csv?sig=planted"]}
    assert without_secrets(stored) == {"captions": 8, "sources": ["captions.csv", "https://host/captions.csv?..."]}


def test_each_url_of_a_list_without_blanks_is_shown_for_itself() -> None:
    assert hide_secrets("[https://a/x.csv,https://me:planted@b/y.csv") == "[https://a/x.csv,https://b/y.csv"
    assert hide_secrets("https://a/x?sig=1,https://me:planted@b/y") == "https://a/x?...,https://b/y"
    many = ",".join(f'"https://me:planted@h/{number}.parquet"' for number in range(2000))
    assert hide_secrets(many) == many.replace("me:planted@", "")
