"""Tests `randcond datafree visual` with a real LLM server, `transformers serve`, over interruptions."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support import warm

NOUNS = [f"noun{number}" for number in range(30)]


def make_model(folder: Path) -> None:
    """Saves a Llama that answers "yes" and stops. Its weights fix which token follows which."""
    vocabulary = {sign: number for number, sign in enumerate(sorted(ByteLevel.alphabet()))}
    vocabulary |= {"<s>": len(vocabulary), "</s>": len(vocabulary) + 1}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    fast.save_pretrained(folder)
    size = len(vocabulary)
    config = LlamaConfig(
        vocab_size=size, hidden_size=264, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=size - 2, eos_token_id=size - 1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(264)[:size])
        model.lm_head.weight.zero_()
        newline = tokenizer.encode("\n").ids[0]
        chain = [newline, *tokenizer.encode("yes").ids, size - 1]
        for here, then in pairwise(chain):
            model.lm_head.weight[then, here] = 10.0
    model.save_pretrained(folder)


class Server:
    """A `transformers serve` process on a free port. Its log lists the requests that it answered."""

    def __init__(self, log: Path) -> None:
        self.log = log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", "--host", "127.0.0.1"]
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--device", "cpu"],
                stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"}, start_new_session=True,
            )  # fmt: skip
        for _ in range(120):
            assert self.process.poll() is None, self.log.read_text()
            try:
                urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2)
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(self.log.read_text())

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def answered(self) -> int:
        return len(re.findall(r'POST /v1/chat/completions HTTP/1.1" 200', self.log.read_text()))


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path / "serve.log")
    yield running
    running.kill()


def test_nouns_are_judged_by_a_real_server_over_kills_of_both_sides(server: Server, tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/nouns.txt").write_text("\n".join(NOUNS) + "\n")
    words = ["datafree", "visual", "out", f"model={tmp_path / 'model'}", f"url=http://127.0.0.1:{server.port}/v1"]
    words += ["concurrency=1", "temperature=0.0", "max_tokens=8"]

    def begin(upto: int) -> warm.Process:
        asking = warm.Process(warm.Command("randcond.launch.cli", words, tmp_path))
        while server.answered() < upto:
            assert asking.poll() is None, asking.communicate()
            time.sleep(0.02)
        return asking

    asking = begin(8)
    asking.send_signal(signal.SIGINT)
    assert asking.wait() == 130
    done = server.answered()
    asking = begin(done + 5)
    server.kill()
    server.start()
    assert asking.wait() == 0, asking.communicate()
    assert (tmp_path / "out/visual.txt").read_text().split() == NOUNS
    assert len(NOUNS) <= server.answered() <= len(NOUNS) + 1  # the kill may cut off one answer
