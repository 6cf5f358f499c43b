"""The README's commands are true: targets exist, `randcond` lines resolve, the tree names every file."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from randcond.launch.config.experiments import table_row

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("  #")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith("make")])
def test_make_targets_exist(line: str) -> None:
    done = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in shlex.split(line):
        assert not re.search(r"-row\d+$", word) or table_row(word)  # a target is a pattern: make takes any number


@pytest.mark.parametrize("line", [line for line in COMMANDS if line.startswith(".venv/bin/randcond")])
def test_randcond_lines_run(line: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """`run` lines dry, `students` for one rule, the others in full, in a folder that looks like the root."""
    words = shlex.split(line)[1:]
    if words[0] == "run" and not {"--help", "--dry-run"} & set(words):
        words.append("--dry-run")
    if words[0] == "students" and "--rule" not in words:  # the whole list is test_students.py's
        words += ["--rule", "block-base"]
    if words[0] == "export":  # of a student: where the tiny demo has run
        tmp_path = request.getfixturevalue("world")
    else:
        (tmp_path / "data").symlink_to(ROOT / "data")
    command = [sys.executable, "-m", "randcond.launch.cli"]
    if words[:2] in (["pool", "sample"], ["pool", "take"]):
        subprocess.run([*command, "pool", "build", words[2], "data/digits/captions.txt"], cwd=tmp_path, check=True)
    done = subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", [line for line in COMMANDS if "-m randcond" in line or "--module" in line])
def test_stages_by_hand_resolve(line: str, tmp_path: Path) -> None:
    """The part after the launcher: the module takes these words."""
    words = shlex.split(line)
    marker = "--module" if "--module" in words else "-m"
    module, *rest = words[words.index(marker) + 1 :]
    report = module == "randcond.eval.report"  # which knows no dry run: of what is named nothing is evaluated here
    command = [sys.executable, "-m", module, *rest, *([] if report else ["--dry-run"])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == (2 if report else 0), done.stderr
    assert not report or "scores.json: run `randcond run eval" in done.stderr


def test_the_tree_names_every_file_once() -> None:
    tree = TEXT.split("## What is where")[1].split("```")[1]
    named, folder = set(), ""
    for line in tree.strip().splitlines():
        name = line.split()[0]
        if not line.startswith(" "):
            folder = name
        else:
            named.add(folder + name)
    for name in named:
        assert (ROOT / name).exists(), f"the README's tree names {name}"
    for package in ("launch", "model_zoo", "data", "train", "eval"):
        for path in (ROOT / package).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            assert path.name.startswith("__") or name in named, f"the README's tree lacks {name}"


def test_the_demo_table_says_what_its_report_says() -> None:
    lines = TEXT.split("| training seconds |")[1].split("\n\n")[0].splitlines()[2:]
    arms = json.loads((ROOT / "launch/tables/results/demo/report.json").read_text())["arms"]
    assert len(lines) == 3
    for line, found in zip(lines, arms.values(), strict=True):
        right, colour, distance = (found[score] for score in ("digit_accuracy", "colour_accuracy", "frechet_judge"))
        scores = [
            f"{right['unseen']:.1%}",
            f"{right['seen']:.1%}",
            f"{colour['unseen']:.1%}",
            f"{distance['unseen']:,.0f}",
        ]
        facts = [found.get("conditioning", ""), *scores, f"{found['steps']:,}", f"{found['seconds']:,.0f}"]
        assert [cell.strip() for cell in line.strip("|").split("|")][1:] == facts
    drawn, images = arms["without"]["digits_drawn"]["unseen"], arms["without"]["images"]
    (first, often), (second, less) = sorted(drawn.items(), key=lambda item: -item[1])[:2]
    count = images["unseen"]
    said = " ".join(TEXT.split())
    assert f"the student without draws {first}s ({often / count:.0%}) and {second}s ({less / count:.0%})" in said
    assert f"{count} unseen and {images['seen']} seen captions" in said


def test_the_table_in_miniature_says_what_its_reports_say() -> None:
    lines = TEXT.split("| what the paper finds")[1].split("\n\n")[0].splitlines()[2:]
    report = ""
    for line in lines:
        finds, levels, difference, verdict = (cell.strip() for cell in line.strip("|").split("|"))
        for path in re.findall(r"\]\(([^)]+)\)", finds):  # a row without a link is of the table above
            report = (ROOT / path).read_text()
        assert f"| {difference} | {verdict} |" in report, line
        numbers = re.findall(r"\d+(?:\.\d+)?", levels)
        for number in numbers:
            assert f" {number}%" in report or f" {number} ±" in report, f"{number} of {line}"
        if numbers:  # of which the difference is one, or the mean of two, or what one is more than the other
            a, b, *others = map(float, numbers)
            c, d = others or (a, b)
            told = abs(float(difference.split(" ± ")[0]))
            made = [abs(b - a + d - c) / 2, abs((b - a) - (d - c))]
            assert min(abs(each - told) for each in made) < 0.16, line  # of rounded numbers
    counted = re.search(
        r"Of (\d+) claims asked beforehand (\d+) are reproduced, (\d+) within noise and (\d+) not reproduced; "
        r"of (\d+) asked afterwards none, (\d+) and (\d+)\.",
        " ".join(TEXT.split()),
    )
    assert counted and len(lines) > 10
    page = (ROOT / "launch/tables/results/README.md").read_text()
    form = "{1} reproduced, {2} within noise, {3} not reproduced, of {0} claims"
    assert form.format(*counted.groups()[:4]) + " asked beforehand" in page
    assert form.format(counted.group(5), "0", *counted.groups()[5:]) + "." in page


def test_the_speed_table_says_what_its_records_say() -> None:
    rows = TEXT.split("share of the matmul rate: ours, bare, published |")[1].split("\n\n")[0].splitlines()[2:]
    files = {"embedded world": "world", "mid-size U-Net": "mid", "B-Base": "b-base", "B-Tiny": "b-tiny"}
    files["C-Micro"] = "c-micro"
    assert len(rows) == len(files)
    for row in rows:
        name, *cells = row.strip("|").split("|")
        path = ROOT / f"tests/bench/record/step-{files[name.split(',')[0].strip()]}.json"
        found = json.loads(path.read_text())["found"]
        beside = {key.removesuffix(" / ours"): facts for key, facts in found.items() if " / " in key}
        told = {key: "{median:.3f} ({low:.3f} to {high:.3f})".format(**facts) for key, facts in beside.items()}
        here = "published" in told
        if here:
            recipe = "bf16 {published}, fp32 {published, fp32}; 16 at once: bf16 {published, 16 at once}"
        else:
            recipe = "16 at once: fp16 {published, 16 at once, all autocast}"
        shown = [found[key] for key in ("ours", "bare", "published" if here else "published, 16 at once, all autocast")]
        shares = ", ".join(f"{100 * each['share_of_matmul_rate']:.1f}" for each in shown)
        wanted = [f"{found['ours']['samples_per_s']:.1f}", told["ours / bare"], recipe.format_map(told)]
        assert [cell.strip() for cell in cells[:3]] == wanted, name
        rate = "" if here else f" (of {found['matmul_tflops']:.0f}"
        assert cells[3].strip().startswith(f"{shares} %{rate}"), name
