"""The digits world: its captions, its handwriting, and the teacher and judge that ship with it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from transformers import CLIPTokenizer

from randcond.data.digits import world
from randcond.data.digits.judge import Judge
from randcond.data.digits.t5 import LENGTH
from randcond.data.digits.tokenizer import build_tokenizer
from randcond.data.digits.train_parts import accuracy, held_out
from randcond.launch.config.paths import PACKAGE
from randcond.launch.errors import UserError
from randcond.model_zoo.families.faults.look import teacher_faults
from randcond.model_zoo.sampler import caption_seed, decode, draw_latents
from randcond.model_zoo.teacher import Teacher
from randcond.model_zoo.text_encoding.options import TextOptions

TEACHER = PACKAGE / "data" / "digits" / "models" / "teacher"
FLOW_TEACHER = PACKAGE / "data" / "digits" / "models" / "flow-teacher"


def test_the_shipped_caption_list_is_the_world() -> None:
    shipped = (PACKAGE / "data" / "digits" / "captions.txt").read_text().splitlines()
    assert shipped == [caption.text for caption in world.all_captions()]
    assert len(set(shipped)) == 3200


def test_every_caption_reads_back() -> None:
    assert all(world.read_label(caption.text) == caption for caption in world.all_captions())
    with pytest.raises(UserError, match="names 0 digits"):
        world.read_label("a red cat on a navy background")
    with pytest.raises(UserError, match="names 2 digits"):
        world.read_label("a red three or four on a navy background")


def test_held_out_handwriting_is_not_in_the_training_split() -> None:
    train, _ = world.load_glyphs("train")
    held, _ = world.load_glyphs("held_out")
    assert (len(train), len(held)) == (1437, 360)
    seen = {glyph.numpy().tobytes() for glyph in train}
    assert not any(glyph.numpy().tobytes() in seen for glyph in held)


def test_the_judge_reads_handwriting_it_never_saw() -> None:
    images, labels = held_out(1000)
    shares = accuracy(Judge.load().classify(images)[0], labels)
    assert shares["digit"] > 0.97 and shares["colour"] > 0.99 and shares["background"] > 0.99


def test_every_word_is_one_token_and_the_shipped_tokenizer_is_the_built_one() -> None:
    built, shipped = build_tokenizer(), CLIPTokenizer.from_pretrained(TEACHER / "tokenizer")
    for caption in world.all_captions()[::37]:
        assert len(built.tokenize(caption.text)) == len(caption.text.split())
    texts = [caption.text for caption in world.all_captions()]
    ids = built(texts, padding="max_length").input_ids
    assert np.array_equal(ids, shipped(texts, padding="max_length").input_ids)
    assert built.tokenize("zürich")[-1].endswith("</w>")  # any other word is split into bytes


def test_the_teacher_is_an_ordinary_diffusers_folder() -> None:
    assert sum(path.stat().st_size for path in TEACHER.rglob("*") if path.is_file()) <= 20e6
    assert {path.suffix for path in TEACHER.rglob("*") if path.is_file()} <= {".json", ".safetensors", ".md", ".txt"}
    pipe = StableDiffusionPipeline.from_pretrained(TEACHER)
    config = pipe.unet.config
    assert (len(config.block_out_channels), config.layers_per_block) == (4, 2)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    image = pipe("a red three on a navy background", num_inference_steps=4).images[0]
    assert image.size == (32, 32)


@pytest.mark.heavy
def test_the_teacher_draws_what_it_is_told() -> None:
    teacher, judge = Teacher.load(TEACHER, "fp32"), Judge.load()
    captions = world.all_captions()[::64]
    pipe = teacher.pipeline("ddim")
    seeds = [caption_seed(7, number) for number in range(len(captions))]
    images = decode(pipe, draw_latents(pipe, [c.text for c in captions], seeds, 25, 3.0, len(captions)))
    wanted = torch.tensor([[c.digit, c.colour, c.background] for c in captions])
    shares = accuracy(judge.classify(images)[0], wanted)
    assert min(shares.values()) >= 0.94


def test_the_flow_teacher_is_an_ordinary_diffusers_folder() -> None:
    assert sum(path.stat().st_size for path in FLOW_TEACHER.rglob("*") if path.is_file()) <= 12e6
    assert {path.suffix for path in FLOW_TEACHER.rglob("*") if path.is_file()} <= {
        ".json",
        ".safetensors",
        ".md",
        ".txt",
    }
    assert list(teacher_faults(FLOW_TEACHER)) == []
    pipe = StableDiffusion3Pipeline.from_pretrained(FLOW_TEACHER)
    assert pipe.transformer.config.num_layers == 8
    image = pipe("a red three on a navy background", num_inference_steps=4, max_sequence_length=LENGTH).images[0]
    assert image.size == (32, 32)


@pytest.mark.heavy
def test_the_flow_teacher_draws_what_it_is_told() -> None:
    teacher, judge = Teacher.load(FLOW_TEACHER, "fp32", text=TextOptions(LENGTH)), Judge.load()
    captions = world.all_captions()[::64]
    pipe = teacher.pipeline("teacher")
    seeds = [caption_seed(7, number) for number in range(len(captions))]
    drawn = draw_latents(pipe, [c.text for c in captions], seeds, 25, 3.0, len(captions), None, LENGTH)
    wanted = torch.tensor([[c.digit, c.colour, c.background] for c in captions])
    shares = accuracy(judge.classify(decode(pipe, drawn))[0], wanted)
    assert min(shares.values()) >= 0.94


def test_a_missing_teacher_is_named() -> None:
    with pytest.raises(UserError, match=r"no teacher at /nowhere/at/all: expected a diffusers folder"):
        Teacher.load(Path("/nowhere/at/all"))
