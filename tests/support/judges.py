"""Makes a vision-language judge of Qwen3-VL's kind with random weights, in the published format."""

from pathlib import Path

import torch
from transformers import (
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from tests.support.flow_teachers import qwen_tokenizer

_MARKS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
_CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def judge_folder(folder: Path) -> Path:
    """Saves a small judge whose weights are in several files; returns `folder`."""
    torch.manual_seed(0)
    tokenizer = qwen_tokenizer()
    tokenizer.add_tokens(_MARKS, special_tokens=True)
    start, end, image, video = tokenizer.convert_tokens_to_ids(_MARKS)
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 5e6},
        },
        vision_config={
            "depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32,
            "patch_size": 8, "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
        },
        image_token_id=image, video_token_id=video, vision_start_token_id=start, vision_end_token_id=end,
    )  # fmt: skip
    model = Qwen3VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)  # so that answers differ between images
    model.save_pretrained(folder, max_shard_size="100KB")
    size = {"shortest_edge": 16 * 16, "longest_edge": 64 * 64}
    images = Qwen2VLImageProcessorPil(patch_size=8, merge_size=2, size=size)
    Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(patch_size=8), chat_template=_CHAT).save_pretrained(
        folder
    )
    return folder
