"""An environment without UTF-8, and file names that are not UTF-8: no traceback, and nothing is changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from randcond.data.captions.caption_file import Captions
from randcond.data.captions.pool import build
from randcond.eval.features.network_weights import fingerprint
from randcond.launch.errors import UserError
from randcond.launch.runtime.files import read_json, write_json, write_text
from randcond.model_zoo.checkpoints.fingerprint import folder_fingerprint
from tests.support.patience import HANG

TEXT = "é ± ✓ 漢"
ODD = os.fsdecode(b"caf\xe9")  # Latin-1: not UTF-8
CODE = """
import sys
from pathlib import Path
from randcond.launch.config.experiments import load_config, to_yaml
from randcond.launch.runtime.files import read_json, read_record, write_json, write_text
from randcond.launch.runtime.json_lines import lines_up_to
from randcond.launch.runtime.logs import log, start_console
start_console()
text = Path("text.txt").read_text(encoding="utf-8")
config = load_config("mine.yaml")
assert config.name == text and load_config("mine.yaml").cache.exclude == [text]
write_text(Path("config.yaml"), to_yaml(config))
assert load_config("config.yaml") == config
write_json(Path("facts.json"), {"name": text})
assert read_record(Path("facts.json"), "name") == {"name": text}
assert read_json(Path("raw.json")) == {"name": text}
assert lines_up_to(Path("lines.jsonl"), 5).read_text(encoding="utf-8").endswith("\\n")
write_text(Path("report.md"), text)
log.info(text)
log.error(text)
print(text)
print("done")
"""
ENVIRONMENTS = {
    "C": {"LC_ALL": "C"},
    "C without Python's UTF-8 mode": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a locale that does not exist": {"LC_ALL": "xx_XX.nothing", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "a console of Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "a console of ASCII": {"PYTHONIOENCODING": "ascii"},
    "no language at all": {"LC_ALL": "", "LANG": "", "LC_CTYPE": ""},
}


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_files_are_utf_8_whatever_the_environment_says(case: str, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "mine.yaml").write_text(f"base: demo-with\nname: {TEXT}\ncache: {{exclude: [{TEXT}]}}\n", "utf-8")
    (tmp_path / "raw.json").write_text(json.dumps({"name": TEXT}, ensure_ascii=False), "utf-8")
    (tmp_path / "lines.jsonl").write_text(json.dumps({"step": 1, "name": TEXT}, ensure_ascii=False) + "\n", "utf-8")
    environment = {**os.environ, **ENVIRONMENTS[case]}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=HANG)
    assert done.returncode == 0 and done.stdout.endswith(b"done\n"), done.stderr.decode(errors="replace")
    assert (tmp_path / "report.md").read_bytes() == TEXT.encode()


def test_a_pool_of_files_whose_names_are_not_utf_8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / f"{ODD}.txt").write_text("one\ntwo\n")
    (folder / f"{ODD}.csv").write_text("caption\nthree\n")
    manifest = build(tmp_path / "pool", [str(folder)])
    assert list(Captions(tmp_path / "pool/captions.arrow")) == ["three", "one", "two"]
    assert {source["name"] for source in manifest["sources"]} == {f"{ODD}.txt", f"{ODD}.csv"}
    assert build(tmp_path / "pool", [str(folder)]) == manifest  # read again, it is the same
    (folder / f"{ODD}.csv").write_bytes(b"caption\n\xff\n")
    with pytest.raises(UserError, match="not UTF-8"):
        build(tmp_path / "other", [str(folder)])
    assert read_json(tmp_path / "pool/manifest.json") == manifest
    capsys.readouterr()


def test_the_console_shows_such_names(tmp_path: Path) -> None:
    (tmp_path / f"{ODD}.txt").write_text("one\n")
    build(tmp_path / "pool", [str(tmp_path / f"{ODD}.txt")])
    code = (
        "from randcond.launch.runtime.logs import start_console; start_console()\n"
        "from randcond.data.captions.pool_command import info; info('pool')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, timeout=HANG)
    assert done.returncode == 0 and b"sources: caf" in done.stdout, done.stderr


def test_fingerprints_of_folders_with_such_names(tmp_path: Path) -> None:
    """The names count, and a name of UTF-8 counts as before."""
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text("{}")
    plain = folder_fingerprint(tmp_path), fingerprint(tmp_path / "unet")
    (tmp_path / f"unet/{ODD}.json").write_text("{}")
    odd = folder_fingerprint(tmp_path), fingerprint(tmp_path / "unet")
    assert odd[0] != plain[0] and odd[1] != plain[1]


def test_texts_with_parts_of_such_names_are_written(tmp_path: Path) -> None:
    write_text(tmp_path / "report.md", f"the images of {ODD}")
    assert (tmp_path / "report.md").read_text("utf-8") == "the images of caf\\udce9"
    write_json(tmp_path / "facts.json", {"name": ODD})
    assert read_json(tmp_path / "facts.json") == {"name": ODD}
