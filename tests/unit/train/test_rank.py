"""`randcond students rank`: the change of each block is what a plain loop over the blocks finds."""

import json
from pathlib import Path

import pytest
import torch

from randcond.data.cache import caching
from randcond.launch.cli import main
from randcond.launch.config.experiments import load_config
from randcond.model_zoo.denoiser.block_change import BlockChanges, most_changing
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.families.base.family import Stack
from randcond.model_zoo.teacher import Teacher
from tests.support import flow_teachers


@torch.no_grad()
@pytest.mark.parametrize(
    ("maker", "blocks"), [(flow_teachers.sd3, 6), (flow_teachers.pixart, 6), (flow_teachers.klein, 7)]
)
def test_the_change_of_a_block_is_that_of_its_image_tokens(maker: object, blocks: int, tmp_path: Path) -> None:
    teacher = Teacher.load(maker(tmp_path / "teacher"), "fp32")  # type: ignore[operator]
    teacher.latent_side = 16
    stack = teacher.family.stack(teacher.architecture.config)
    assert stack is not None
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def note(module: object, inputs: tuple, options: dict, output: object) -> None:
        given = options.get("hidden_states", inputs[0] if inputs else None)
        seen.append((given, output[-1] if isinstance(output, tuple) else output))

    handles = [each.register_forward_hook(note, with_kwargs=True) for each in teacher.family.blocks(teacher.denoiser)]
    found = BlockChanges(teacher.denoiser, stack)
    condition = teacher.encode(teacher.tokenizers(["a red cat", "one two"]))
    for timesteps in (torch.tensor([10, 500]), torch.tensor([700, 999])):
        denoise(teacher.denoiser, torch.randn(2, *teacher.latent_shape), timesteps, condition)
    assert len(seen) == 2 * blocks and len(handles) == blocks
    expected = torch.zeros(blocks)
    for number, (before, after) in enumerate(seen):
        for one, other in zip(before, after, strict=True):  # the samples
            expected[number % blocks] += ((other - one).norm() / one.norm()) ** 2 / 4
    assert found.means() == pytest.approx(expected.tolist(), rel=1e-4)


def test_the_first_and_the_last_of_each_kind_stay() -> None:
    changes = [0.1, 0.9, 0.2, 0.3, 0.0, 0.5, 0.4, 0.6]
    one = Stack(("",) * 8, (("",),) * 8, (8,))
    assert most_changing(changes, one, (4,)) == [0, 1, 5, 7]
    two = Stack(("",) * 8, (("",),) * 8, (3, 5))
    assert most_changing(changes, two, (2, 3)) == [0, 2, 3, 5, 7]


def test_blocks_are_ranked_on_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flow_teachers.sd3(tmp_path / "teacher")
    (tmp_path / "captions.txt").write_text("".join(f"{word}\n" for word in flow_teachers.WORDS))
    (tmp_path / "mine.yaml").write_text(
        "teacher: {path: teacher, dtype: fp32, text_tokens: 16}\nstudent: {rule: depth-3}\n"
        "cache: {captions: [captions.txt], size: 8, batch: 4, shard_size: 8, steps: 1, sampler: teacher}\n"
        "eval: {captions: [captions.txt], sampler: teacher}\n"
        "paths: {cache: cache, run: run, pool: pool, reference: teacher-images}\n"
    )
    words = ["students", "rank", "mine.yaml", "--samples", "9", "--batch", "4"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "no complete cache at cache" in capsys.readouterr().err
    caching.run(load_config("mine.yaml"))
    main([*words, "--out", "rank.json"])
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "rank.json").read_text())
    assert len(found["changes"]) == 6 and len(found["keep"]) == 3
    assert found["samples"] == 8  # all that the cache has
    assert {0, 5} < set(found["keep"])
    middle = max(range(1, 5), key=lambda number: found["changes"][number])
    assert found["keep"] == [0, middle, 5]
    assert f"proposed: student.rule=depth-3 'student.keep=[0,{middle},5]'" in said and said.count("kept") == 3


def test_what_can_not_be_ranked_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["demo-with"], "demo-with: the teacher has a U-Net; its blocks differ, so block rules name them instead"),
        (["demo-flow-with", "--samples", "0"], "--samples: must be at least 1, got 0"),
        (["demo-flow-with", "student.rule=depth-9"], "the teacher has 8 blocks; a student has 2 to 8 of them, got 9"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["students", "rank", *words])
        assert ended.value.code == 2
        assert said in capsys.readouterr().err
