"""Checks README.md and docs/*.md: commands run, tables agree with their sources, links are valid."""

import json
import re
import shlex
import subprocess
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from safetensors.torch import save_file

from randcond.launch.config.experiments import table_row
from randcond.launch.config.gpus import GPUS
from randcond.model_zoo.export import export_student
from randcond.model_zoo.networks import denoiser_of
from randcond.model_zoo.students.registry import build_student
from randcond.model_zoo.teacher import Teacher
from tests.support import layout, shaped, warm
from tests.support.demo import randcond
from tests.support.ldm import one_file

ROOT = Path(__file__).parents[2]
PACKAGES = ("launch", "model_zoo", "data", "train", "eval")
README = ROOT / "README.md"
PAGES = {path: path.read_text() for path in (README, *sorted((ROOT / "docs").glob("*.md")))}
PROSE = {path: re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE) for path, text in PAGES.items()}
COMMANDS = list(  # each once
    dict.fromkeys(
        line.split("  #")[0].strip()
        for text in PAGES.values()
        for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    )
)
TARGETS = [line for line in COMMANDS if line.startswith("make")]
RANDCOND = [line for line in COMMANDS if line.startswith(".venv/bin/randcond")]
EXPORTS = [line for line in RANDCOND if line.split()[1] == "export"]
MODULES = [line for line in COMMANDS if "-m randcond" in line or "--module" in line]
INSTALLS = [line for line in COMMANDS if line.split()[0] in ("pip", "docker", "apptainer")]
PUSHES = [line for line in COMMANDS if line.startswith("HF_TOKEN=")]  # test_export.py pushes to a hub


def page_with(words: str) -> tuple[Path, str]:
    """Returns the only page that contains these words, and its text."""
    found = [(path, text) for path, text in PAGES.items() if words in text]
    assert len(found) == 1, f"{words!r} is in {[str(path.relative_to(ROOT)) for path, _ in found]}"
    return found[0]


def anchors(text: str) -> set[str]:
    """Returns the anchors that GitHub gives to the headings of a page."""
    seen: Counter[str] = Counter()
    names = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        name = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()).replace(" ", "-")
        names.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    assert sorted(COMMANDS) == sorted({*TARGETS, *RANDCOND, *MODULES, *PUSHES, *INSTALLS})


@pytest.mark.parametrize("line", TARGETS)
def test_make_targets_exist(line: str) -> None:
    done = subprocess.run([*shlex.split(line), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for word in shlex.split(line):
        assert not re.search(r"-row\d+$", word) or table_row(word)  # the target is a pattern, so make takes any number


def run(folder: Path, *words: str, module: str = "randcond.launch.cli") -> subprocess.CompletedProcess[str]:
    """Runs `python -m MODULE WORDS` in a folder."""
    return warm.run([warm.Command(module, list(words), folder)])[0]


OWN = ("mine.yaml", "try.yaml")  # experiments of a person's own model
STUDENT = "runs/mine/run/student_ema"


def own_model(words: list[str], folder: Path) -> list[str]:
    """Makes what a line about a person's own model needs: a tiny checkpoint in place of theirs. Returns more flags."""
    made = shaped.build("sd-v1-4", folder / ("config" if "import" in words else "my-model"))
    (folder / "captions.csv").write_text("caption\n" + "\n".join(f"{number} red cats" for number in range(100)))
    if "import" in words:
        save_file(one_file(Teacher.load(made, "fp32").pipe), folder / "my-model.safetensors")
        return ["--config", "config"]  # a file of the published sizes needs none
    if STUDENT in words:
        student = build_student("block-base", denoiser_of(str(made)), 0)
        export_student(folder / STUDENT, student, made, "")
    if words[0] == "run":
        flags = ["--teacher", "my-model", "--captions", "captions.csv"]
        assert run(folder, "init", next(word for word in words if word in OWN), *flags).returncode == 0
    return []


@pytest.mark.parametrize("line", EXPORTS)
def test_export_lines_run(line: str, world: Path) -> None:
    """The folder `world` has a student."""
    done = run(world, *shlex.split(line)[1:])
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", [line for line in RANDCOND if line not in EXPORTS])
def test_randcond_lines_run(line: str, tmp_path: Path) -> None:
    """`run` lines run as dry runs, `students` for one rule, all others in full. The folder looks like the root."""
    words = shlex.split(line)[1:]
    if words[0] == "run" and not {"--help", "--dry-run"} & set(words):
        words.append("--dry-run")
    if words[:2] == ["students", "rank"]:
        small = ["cache.size=8", "cache.batch=8", "cache.shard_size=8", "cache.steps=1"]
        randcond(tmp_path, "run", "cache", words[2], *small)
        words += [*small, "--samples", "4"]
    elif words[0] == "students" and "--rule" not in words:  # test_students.py tests the whole list
        rules = {"sd35-medium": "depth-12", "flux2-klein-4b": "depth-5+10"}
        words += ["--rule", next((rule for teacher, rule in rules.items() if teacher in words), "block-base")]
    (tmp_path / "data").symlink_to(ROOT / "data")
    if {"my-model", STUDENT, *OWN} & set(words):
        words += own_model(words, tmp_path)
    if "hosts" in words:
        (tmp_path / "hosts").write_text("node1 slots=8\nnode2 slots=8\n")
    if words[:2] in (["pool", "sample"], ["pool", "take"]):
        run(tmp_path, "pool", "build", words[2], "data/digits/captions.txt")
    done = run(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("line", PUSHES)
def test_flags_of_pushes_exist(line: str) -> None:
    words = shlex.split(line)[1:]
    text = run(ROOT, *words[1:2], "--help").stdout
    assert words[0] == ".venv/bin/randcond"
    assert {word for word in words if word.startswith("--")} <= set(re.findall(r"--[a-z]+", text))


@pytest.mark.parametrize("line", INSTALLS)
def test_what_is_installed_exists(line: str) -> None:
    """test_wheel.py installs a wheel. Here: extras, files and recipes of the lines exist, and `randcond` lines run."""
    words = shlex.split(line)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(re.findall(r"\[([a-z,]+)\]", line)) <= set(extras)
    for flag in {"-c", "--file"} & set(words):
        assert (ROOT / words[words.index(flag) + 1]).is_file()
    if words[:2] == ["apptainer", "build"]:
        assert (ROOT / words[-1]).is_file()
    if "run" in words[2:]:  # the last `run` is ours
        done = run(ROOT, *words[len(words) - 1 - words[::-1].index("run") :], "--dry-run")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", MODULES)
def test_stages_by_hand_resolve(line: str, tmp_path: Path) -> None:
    """The module accepts the words that follow it on the line. The launcher is left out."""
    words = shlex.split(line)
    marker = "--module" if "--module" in words else "-m"
    module, *rest = words[words.index(marker) + 1 :]
    report = module == "randcond.eval.report"  # has no dry run; it fails because nothing is evaluated here
    done = run(tmp_path, *rest, *([] if report else ["--dry-run"]), module=module)
    assert done.returncode == (2 if report else 0), done.stderr
    assert not report or "scores.json: run `randcond run eval" in done.stderr


def test_the_tree_is_what_the_docstrings_say() -> None:
    assert layout.PAGE.read_text() == layout.page(), "run `make layout`"


def test_quoted_messages_are_ours() -> None:
    """Each message in the first column of docs/troubleshooting.md is a part of a string in the packages."""
    _, text = page_with("# Troubleshooting\n")
    rows = [line.split("|")[1] for line in text.split("\n## ")[0].splitlines() if line.startswith("| `")]
    sources = [path.read_text() for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    sources = [re.sub(r'"\s+f?"', "", source) for source in sources]  # joins strings over several lines
    messages = [message for row in rows for message in re.findall(r"`([^`]+)`", row) if " " in message]
    assert len(messages) >= 5
    for message in messages:
        assert message.startswith("randcond ") or any(message in source for source in sources), message


def test_the_map_names_every_room() -> None:
    text = README.read_text().split("## Map")[1].split("\n## ")[0]
    named = set(re.findall(r"\]\(([^)]+)\)", text))
    rooms = {path.parent for package in PACKAGES for path in (ROOT / package).glob("*/__init__.py")}
    assert {str(room.relative_to(ROOT)) for room in rooms} <= named
    assert len(text.strip().splitlines()) <= 20  # 18 rows and the head


ONE_GPU = re.findall(r"\(`--gpu (\S+)`\) (\| .* \|)$", README.read_text(), re.MULTILINE)


@pytest.mark.heavy
@pytest.mark.parametrize(("gpu", "row"), ONE_GPU, ids=lambda text: text.split()[0])
def test_the_readme_says_what_init_predicts(gpu: str, row: str, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("caption\n" + "".join(f"a photo of {n}\n" for n in range(200_000)))
    words = ["--teacher", "CompVis/stable-diffusion-v1-4", "--captions", "captions.csv", "--hours", "24", "--gpu", gpu]
    said = run(tmp_path, "init", "mine.yaml", *words).stdout
    student, latents, steps, samples, hours = re.match(  # type: ignore[union-attr]
        r"mine.yaml: (\S+), (\S+) latents, (\S+) steps of (\d+); about (\d+) hours on", said
    ).groups()
    memory = re.search(r"train (\S+ GB) of memory", (tmp_path / "mine.yaml").read_text())
    assert memory and row == f"| {student} | {latents} | {steps} of {samples} | {memory[1]} | {hours} |"


def test_the_rows_of_one_gpu() -> None:
    assert [gpu for gpu, _ in ONE_GPU] == ["rtx4090", "a100-80"]


def test_the_readme_is_short() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 220
    assert len(text.encode()) <= 18_000


def test_the_readme_and_the_index_link_every_page() -> None:
    pages = {path.relative_to(ROOT) for path in PAGES if path != README}
    linked = set(re.findall(r"\]\((docs/[^)#]+\.md)\)", README.read_text()))
    assert linked == {str(page) for page in pages}
    index = set(re.findall(r"(?<!!)\[[^\]]*\]\(([^)#]+\.md)\)", (ROOT / "docs/README.md").read_text()))
    assert index == {page.name for page in pages} - {"README.md"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PROSE[path]):
        if re.match(r"https?:", target):
            continue
        file, _, anchor = target.partition("#")
        to = (path.parent / file).resolve() if file else path
        assert to.exists() and to.is_relative_to(ROOT), f"{path.relative_to(ROOT)} links {target}"
        assert not anchor or anchor in anchors(PROSE.get(to, to.read_text())), f"{path.relative_to(ROOT)}: {target}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    for name in re.findall(r"`((?:launch|model_zoo|data|train|eval|tests)/[\w./-]+)`", PROSE[path]):
        assert (ROOT / name).exists(), f"{path.relative_to(ROOT)} names {name}"
    for name in re.findall(r"`package:([^`]+)`", PROSE[path]):
        assert (ROOT / name).is_file(), f"{path.relative_to(ROOT)} names {name}"


def test_names_to_add_to_stand_where_it_says() -> None:
    """For each `NAME` (`file.py`) in docs/extending.md, the file defines the name."""
    pairs = re.findall(r"`(\w+)` \(`([\w/]+\.py)`", " ".join(page_with("# Extending\n")[1].split()))
    assert len(pairs) >= 4
    for name, file in pairs:
        assert re.search(rf"^(class )?{name}\b", (ROOT / file).read_text(), re.MULTILINE), f"{name} in {file}"


def test_nothing_is_said_twice() -> None:
    said = Counter(
        " ".join(sentence.split())
        for text in PROSE.values()
        for block in text.split("\n\n")
        for sentence in (block.splitlines() if block.startswith("|") else re.split(r"(?<=[.:;]) ", block))
        if len(sentence) > 40
    )
    assert [sentence for sentence, count in said.items() if count > 1] == []


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert [citation[key] for key in ("title", "version", "license")] == [
        project[key] for key in ("name", "version", "license")
    ]
    readme = " ".join(re.sub("[`*]", "", README.read_text()).split())
    assert all(sentence in readme for sentence in citation["abstract"].strip().split(". "))
    assert citation["preferred-citation"]["title"] in readme
    assert f"## [{project['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_demo_table_says_what_its_report_says() -> None:
    _, text = page_with("| training seconds |")
    lines = text.split("| training seconds |")[1].split("\n\n")[0].splitlines()[2:]
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
    said = " ".join(text.split())
    assert f"the student without draws {first}s ({often / count:.0%}) and {second}s ({less / count:.0%})" in said
    assert f"{count} unseen and {images['seen']} seen captions" in said


@pytest.mark.parametrize(("head", "least"), [("| what the paper finds", 10), ("| what a transformer shows", 5)])
def test_a_table_in_miniature_says_what_its_reports_say(head: str, least: int) -> None:
    page, text = page_with(head)
    lines = text.split(head)[1].split("\n\n")[0].splitlines()[2:]
    assert len(lines) >= least
    report = ""
    for line in lines:
        finds, levels, difference, verdict = (cell.strip() for cell in line.strip("|").split("|"))
        for path in re.findall(r"\]\(([^)]+)\)", finds):  # a row without a link is of the report above
            report = (page.parent / path).read_text()
        assert f"| {difference} | {verdict} |" in report, line
        numbers = re.findall(r"\d+(?:\.\d+)?", levels)
        for number in numbers:
            assert f" {number}%" in report or f" {number} ±" in report, f"{number} of {line}"
        if numbers:  # the difference is b - a; or of b - a and d - c, the mean or the difference
            a, b, *others = map(float, numbers)
            c, d = others or (a, b)
            told = abs(float(difference.split(" ± ")[0]))
            made = [abs(b - a + d - c) / 2, abs((b - a) - (d - c))]
            assert min(abs(each - told) for each in made) < 0.16, line  # the numbers are rounded


def test_the_seeds_of_the_flow_demo_say_what_their_reports_say() -> None:
    rows = (
        page_with("| demo-flow, digits right |")[1]
        .split("| demo-flow, digits right |")[1]
        .split("\n\n")[0]
        .splitlines()[2:]
    )
    kept = ROOT / "launch/tables/results"
    paths = [kept / "demo-flow/report.json", *sorted((kept / "demo-flow-seeds").glob("*.json"))]
    assert len(rows) == len(paths) == 3
    readme = README.read_text()
    for number, (row, path) in enumerate(zip(rows, paths, strict=True)):
        report = json.loads(path.read_text())
        seeds = {config["train"]["seed"] for config in report["configurations"].values()}
        assert seeds == {number}
        without, with_ = (report["arms"][arm]["digit_accuracy"] for arm in ("without", "with"))
        cells = [f"{100 * without[split]:.1f} → {100 * with_[split]:.1f} %" for split in ("unseen", "seen")]
        assert row.strip("|").split(" | ")[1:] == [cells[0], cells[1] + " "]
        assert all(f"{100 * each['unseen']:.1f} " in readme for each in (without, with_))


def test_the_claims_are_counted_as_the_reports_count_them() -> None:
    counted = re.search(
        r"(\d+) tests of its claims were written down before the runs \(.*?\): (\d+) are reproduced, "
        r"(\d+) are within noise, (\d+) are not reproduced\. (\d+) more were written down afterwards: "
        r"(\d+) are within noise, (\d+) are not",
        " ".join(page_with("claims were written down")[1].split()),
    )
    assert counted
    kept = (ROOT / "launch/tables/results/README.md").read_text()
    form = "{1} reproduced, {2} within noise, {3} not reproduced, of {0} claims"
    assert form.format(*counted.groups()[:4]) + " asked beforehand" in kept
    assert form.format(counted.group(5), "0", *counted.groups()[5:]) + "." in kept


def test_the_claim_about_transformers_is_its_reports() -> None:
    said = " ".join(README.read_text().split())
    link = "launch/tables/results/beyond/beyond-students/report.md"
    text = said.partition("It carries over to")[2].partition(link)[0]
    pairs = re.findall(r"from (\d+\.\d) to (\d+\.\d) % .*?\(([+-]\d+\.\d ± \d+\.\d)", text)
    report = (ROOT / link).read_text()
    assert len(pairs) == 2
    for before, after, difference in pairs:
        assert f"| {before}% ±" in report and f"| {after}% ±" in report and f"| {difference} | holds |" in report


def test_the_claim_about_p_is_its_reports() -> None:
    said = " ".join(README.read_text().split())
    links = [f"launch/tables/results/beyond/beyond-{name}/report.md" for name in ("p", "noise")]
    found = re.search(
        r"Each of (\w+) helps, .*? [Aa] linear one .*? does better .*?, by (\d+\.\d ± \d+\.\d) points", said
    )
    assert found and all(link in said for link in links)
    reports = "".join((ROOT / link).read_text() for link in links)
    assert found.group(1) == "ten" and len(re.findall(r"^\| .* helps \|.*\| holds \|$", reports, re.MULTILINE)) == 10
    assert re.search(rf"linear does better than exponential, of sigma .*\+{found.group(2)} \| holds", reports)


def test_the_speed_table_says_what_its_records_say() -> None:
    head = "share of the matmul rate: ours, bare, published |"
    rows = page_with(head)[1].split(head)[1].split("\n\n")[0].splitlines()[2:]
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


def test_the_time_to_a_first_step_is_its_record() -> None:
    found = json.loads((ROOT / "tests/bench/record/startup.json").read_text())["found"]
    whole = {way: parts["whole"]["median"] for way, parts in found["training"].items()}
    said = " ".join(page_with("- **Start-up.**")[1].split())
    assert f"`randcond --help` takes {found['--help']['median']:.1f} s." in said
    assert f"its first step {whole['forked']:.1f} s after the command" in said
    assert f"with `--launcher deepspeed` after {whole['deepspeed']:.1f} s" in said


def test_the_claim_of_speed_is_its_records() -> None:
    found = json.loads((ROOT / "tests/bench/record/step-b-base.json").read_text())["found"]
    share = found["ours"]["share_of_matmul_rate"]
    sheet = share * found["matmul_tflops"] / GPUS["h200"].tflops
    said = " ".join(README.read_text().split())
    speed = f"{found['ours']['samples_per_s']:.0f} samples/s"
    assert f"{speed}, {share:.0%} of the card's measured bf16 rate".replace("%", " %") in said
    assert f"of its peak (an H200 reached {sheet:.0%},".replace("%", " %") in said
