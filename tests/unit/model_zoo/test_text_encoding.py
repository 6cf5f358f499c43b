"""Captions in length buckets, out of a cache, with weights in 8 bits or in the host's memory: the same conditions."""

from pathlib import Path

import pytest
import torch

from randcond.launch.errors import UserError
from randcond.model_zoo.denoiser.forward import denoise
from randcond.model_zoo.families.base.family import Condition
from randcond.model_zoo.teacher import Teacher
from randcond.model_zoo.text_encoding.condition_cache import CHUNK, ConditionCache, in_chunks
from randcond.model_zoo.text_encoding.duplicates import once_each
from randcond.model_zoo.text_encoding.options import TextOptions
from tests.support import flow_teachers

CAPTIONS = [
    "one two dog " * 60, "a red cat", "", "the blue dog on the table", "photo of " * 20, "a cat", "in and with " * 14,
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flow_teachers.pixart(tmp_path_factory.mktemp("pixart") / "teacher")


def encoded(teacher: Teacher, captions: list[str]) -> Condition:
    return teacher.encode(teacher.tokenizers(captions), torch.tensor([not caption for caption in captions]))


@torch.no_grad()
def test_length_buckets_change_nothing_that_the_teacher_sees(folder: Path) -> None:
    whole = Teacher.load(folder, "fp32", text=TextOptions(buckets=False))
    teacher = Teacher.load(folder, "fp32")
    shapes: list[torch.Size] = []
    teacher.pipe.text_encoder.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape))
    ours, theirs = encoded(teacher, CAPTIONS), encoded(whole, CAPTIONS)
    mask = theirs["encoder_attention_mask"]
    assert torch.equal(ours["encoder_attention_mask"], mask)
    hidden = ours["encoder_hidden_states"]
    assert hidden.shape == theirs["encoder_hidden_states"].shape
    assert torch.allclose(hidden[mask == 1], theirs["encoder_hidden_states"][mask == 1], atol=1e-6)
    assert [shape[1] for shape in shapes] == [32, 64, 300] and sum(shape[0] for shape in shapes) == len(CAPTIONS)
    noised = torch.randn(len(CAPTIONS), *teacher.latent_shape, generator=torch.Generator().manual_seed(0))
    timesteps = torch.linspace(1, 999, len(CAPTIONS)).long()
    predicted = [denoise(teacher.denoiser, noised, timesteps, each) for each in (ours, theirs)]
    assert torch.allclose(*predicted, atol=1e-6)


def test_captions_of_one_length_keep_their_order(folder: Path) -> None:
    teacher = Teacher.load(folder, "fp32")
    together = encoded(teacher, ["a cat", "one dog"])["encoder_hidden_states"]
    alone = torch.cat([encoded(teacher, [caption])["encoder_hidden_states"] for caption in ("a cat", "one dog")])
    assert torch.allclose(together, alone, atol=1e-6)


def test_buckets_need_a_mask(folder: Path, tmp_path: Path) -> None:
    unmasked = flow_teachers.sd3(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"teacher\.text_buckets: .* does not mask its text: the padding changes its"):
        Teacher.load(unmasked, "fp32", text=TextOptions(buckets=True))
    assert Teacher.load(folder, "fp32", text=TextOptions(buckets=True)).has_buckets
    assert not Teacher.load(unmasked, "fp32").has_buckets


def test_a_language_model_reads_each_caption_once(tmp_path: Path) -> None:
    teacher = Teacher.load(flow_teachers.sd3(tmp_path / "teacher"), "fp32")
    counts: list[int] = []
    teacher.pipe.text_encoder_3.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    captions = ["a cat", "", "one dog", "", "a cat", ""]
    found = encoded(teacher, captions)
    assert counts == [3]
    alone = [encoded(teacher, [caption]) for caption in captions]
    for key, value in found.items():
        assert torch.allclose(value, torch.cat([each[key] for each in alone]), atol=1e-6), key
    teacher.text_is_compiled = True
    counts.clear()
    encoded(teacher, captions)
    assert counts == [6]  # a compiled encoder would be compiled again for another number of captions


def test_each_caption_is_encoded_once_in_its_order() -> None:
    given: list[list[int]] = []

    def encode(ids: list[torch.Tensor], null: torch.Tensor | None) -> Condition:
        assert null is not None
        given.append(ids[0][:, 0].tolist())
        return {"hidden": ids[0] * 10 + null[:, None]}

    first = torch.tensor([[7], [3], [7], [9], [3], [7]])
    null = torch.tensor([False, False, True, False, False, False])  # the third is another caption than the first
    found = once_each(encode, [first, 2 * first], null, torch.device("cpu"))
    assert given == [[7, 3, 7, 9]] and found["hidden"].flatten().tolist() == [70, 30, 71, 90, 30, 70]


@pytest.mark.parametrize("family", ["pixart", "sd3"])
def test_a_condition_out_of_the_cache_has_the_bits_of_a_new_one(family: str, folder: Path, tmp_path: Path) -> None:
    path = folder if family == "pixart" else flow_teachers.sd3(tmp_path / "teacher")
    plain, one, other = (Teacher.load(path, "fp32", text=TextOptions(cache_gb=gb)) for gb in (0, 1, 1))
    runs: list[int] = []
    one.text_encoders[0].register_forward_hook(lambda *_: runs.append(1))
    first = encoded(one, CAPTIONS)
    times = len(runs)
    again = encoded(one, CAPTIONS[::-1])
    assert len(runs) == times, "encoded again"
    encoded(other, CAPTIONS[3:5])  # another history
    later = encoded(other, CAPTIONS)
    expected = encoded(plain, CAPTIONS)
    for key, value in first.items():
        assert torch.equal(again[key], value.flip(0)) and torch.equal(later[key], value)
        assert torch.allclose(value, expected[key], atol=1e-6)


def test_the_cache_is_bounded_and_keeps_what_was_used_last() -> None:
    encodings: list[int] = []

    def encode(ids: list[torch.Tensor], null: torch.Tensor | None) -> Condition:
        encodings.extend(ids[0][:, 0].tolist())
        return {"hidden": ids[0].float()}

    def ask(*numbers: int) -> list[int]:
        """Returns which of the captions were encoded."""
        encodings.clear()
        ids = torch.tensor(numbers)[:, None].expand(-1, 25).contiguous()
        found = cache(encode, [ids], None, torch.device("cpu"))
        assert torch.equal(found["hidden"], ids.float())
        return sorted(set(encodings))

    cache = ConditionCache(limit=350)  # three captions of 100 bytes
    assert ask(1, 2, 1) == [1, 2]
    assert ask(3) == [3] and ask(1) == []
    assert ask(4) == [4]  # 2 leaves
    assert ask(1, 3, 4) == [] and ask(2) == [2] and cache.bytes == 300
    assert ask(1, 2, 3, 4, 5) == [1, 5] and cache.bytes == 300  # more than it holds, all at once


def test_chunks_have_one_size() -> None:
    sizes: list[int] = []

    def encode(ids: list[torch.Tensor], null: torch.Tensor | None) -> Condition:
        assert null is not None and torch.equal(null, ids[0][:, 0] % 2 == 0)
        sizes.append(len(ids[0]))
        return {"hidden": ids[0].float()}

    for count in (1, CHUNK, CHUNK + 3):
        ids = torch.arange(count)[:, None].expand(-1, 4)
        sizes.clear()
        assert torch.equal(in_chunks(encode, [ids], ids[:, 0] % 2 == 0)["hidden"], ids.float())
        assert set(sizes) == {CHUNK} and len(sizes) == -(-count // CHUNK)


@torch.no_grad()
def test_offloaded_text_encoders_give_the_same_bits(folder: Path) -> None:
    here, away = (Teacher.load(folder, "fp32", text=TextOptions(offload=offload)) for offload in (False, True))
    for key, value in encoded(here, CAPTIONS).items():
        assert torch.equal(encoded(away, CAPTIONS)[key], value)


def test_text_encoders_in_8_bits_tell_their_error(folder: Path) -> None:
    teacher = Teacher.load(folder, "fp32", text=TextOptions(dtype="int8"))
    assert "text encoders in int8: " in teacher.remark and "changes the teacher's predictions by" in teacher.remark
    plain = Teacher.load(folder, "fp32")
    assert all(p.dtype is torch.float32 for p in teacher.denoiser.parameters())
    ours, theirs = (encoded(each, CAPTIONS)["encoder_hidden_states"] for each in (teacher, plain))
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.03
