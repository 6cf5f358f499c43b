"""Models of human preference: PickScore and ImageReward. (HPSv2.1 is an open_clip model: open_clip_models.py.)"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from randcond.eval.features.network_weights import (
    TRANSFORMERS_FILES,
    find_weights,
    fingerprint,
    first_line,
    load_network,
    model_folder,
    read_tensors,
    settings_fingerprint,
    tensors_fingerprint,
)
from randcond.eval.images.extractor import Extractor, Features
from randcond.eval.images.protocol_images import to_picture
from randcond.launch.config.sections import Eval
from randcond.launch.errors import UserError

PICKSCORE_FILES = (*TRANSFORMERS_FILES, "preprocessor_config.json", "tokenizer_config.json")
BERT_FILES = ("vocab.txt",)
_TOKENS = 77  # of a caption, for PickScore
_BLIP_TOKENS = 35  # of a caption, for ImageReward
_HEAD = 64  # width of an attention head, in both halves of ImageReward's BLIP
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072  # of ImageReward's raw scores
_EXTRA_TOKENS = 2  # BLIP's vocabulary is BERT's and two tokens that captions never have


def load_pickscore(ev: Eval, device: torch.device | str) -> Extractor:
    """PickScore (arXiv:2305.01569): CLIP's cosine between image and caption times its scale: feature pickscore [n]."""
    from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

    try:
        folder = model_folder(ev.pickscore, PICKSCORE_FILES)
        model, processor = load_network(CLIPModel, CLIPImageProcessorPil, folder, ("clip",))
    except UserError as error:
        raise UserError(f"eval.pickscore: {error}") from None
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model.to(device)

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Features:
        pixels = processor(images=[to_picture(image) for image in images], return_tensors="pt").pixel_values
        texts = tokenizer(captions, padding=True, truncation=True, max_length=_TOKENS, return_tensors="pt")
        logits = model(pixel_values=pixels.to(device), **texts.to(device)).logits_per_image  # [n, n]
        return {"pickscore": logits.diagonal().float().cpu()}

    return Extractor(f"pickscore {settings_fingerprint(folder)} {tensors_fingerprint(model)}", 0, read)


class _ImageReward(nn.Module):
    """ImageReward (arXiv:2304.05977): BLIP reads image and caption together, a small network scores what it read.

    The networks are imscore's. Their sizes are those of the weights.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        from imscore.imreward.bert import BertModel
        from imscore.imreward.model import MLP
        from imscore.imreward.vit import VisionTransformer
        from transformers import BertConfig

        super().__init__()
        vision, text = "blip.visual_encoder", "blip.text_encoder"
        patch, width = tensors[f"{vision}.patch_embed.proj.weight"].shape[-1], tensors[f"{vision}.norm.weight"].numel()
        side = patch * round((tensors[f"{vision}.pos_embed"].shape[1] - 1) ** 0.5)
        vocabulary, hidden = tensors[f"{text}.embeddings.word_embeddings.weight"].shape
        config = BertConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=_layers(tensors, f"{text}.encoder.layer."),
            num_attention_heads=hidden // _HEAD,
            intermediate_size=tensors[f"{text}.encoder.layer.0.intermediate.dense.weight"].shape[0],
            max_position_embeddings=tensors[f"{text}.embeddings.position_embeddings.weight"].shape[0],
            encoder_width=width,
            add_cross_attention=True,
        )
        self.side, self.vocabulary = side, vocabulary
        depth = _layers(tensors, f"{vision}.blocks.")
        image_encoder = VisionTransformer(side, patch, embed_dim=width, depth=depth, num_heads=width // _HEAD)
        self.blip = nn.ModuleDict({"visual_encoder": image_encoder, "text_encoder": BertModel(config=config)})
        self.mlp = MLP(hidden)
        # A file has more, such as the projections of BLIP's own training, and may lack the buffer of position ids.
        self.load_state_dict(tensors, strict=False)
        if missing := sorted({name for name, _ in self.named_parameters()} - tensors.keys()):
            raise KeyError(f"{missing[0]} is missing")

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the rewards [n]. pixels [n, 3, side, side], token ids and mask int64 [n, 35]."""
        seen = self.blip["visual_encoder"](pixels)  # [n, tokens, d]
        everywhere = torch.ones(seen.shape[:2], device=seen.device, dtype=torch.bool)
        read = self.blip["text_encoder"](
            ids, attention_mask=mask, encoder_hidden_states=seen, encoder_attention_mask=everywhere
        )
        return (self.mlp(read[:, 0, :])[:, 0] - _MEAN) / _STD


def load_imagereward(ev: Eval, device: torch.device | str) -> Extractor:
    """ImageReward's normalised reward: feature imagereward [n]."""
    from torchvision.transforms import v2
    from transformers import BertTokenizer

    key = "eval.imagereward"
    path = find_weights(ev.imagereward, key)
    try:
        model = _ImageReward(read_tensors(path, key)).to(device).eval().requires_grad_(False)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{key}: {path}: does not hold the weights of ImageReward ({first_line(error)})") from None
    tokenizer, folder = _bert_tokenizer(ev.bert, BertTokenizer, model.vocabulary)
    prepare = v2.Compose(
        [
            v2.Resize(model.side, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(model.side),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
        ]
    )

    @torch.no_grad()
    def read(images: Tensor, captions: list[str]) -> Features:
        pixels = torch.stack([prepare(to_picture(image)) for image in images]).to(device)
        texts = tokenizer(
            captions, padding="max_length", truncation=True, max_length=_BLIP_TOKENS, return_tensors="pt"
        ).to(device)
        return {"imagereward": model(pixels, texts.input_ids, texts.attention_mask).float().cpu()}

    return Extractor(f"imagereward {fingerprint(folder, suffixes=('.txt',))} {tensors_fingerprint(model)}", 0, read)


def _bert_tokenizer(source: str, kind: Any, vocabulary: int) -> tuple[Any, Path]:
    """Loads BERT's tokenizer and returns it with its folder. Raises UserError if its vocabulary is another one."""
    try:
        folder = model_folder(source, BERT_FILES)
    except UserError as error:
        raise UserError(f"eval.bert: {error}") from None
    tokenizer = kind(vocab=str(folder / "vocab.txt"))
    if len(tokenizer) + _EXTRA_TOKENS != vocabulary:
        raise UserError(
            f"eval.bert: {source} has {len(tokenizer)} tokens, expected {vocabulary - _EXTRA_TOKENS}, as those of "
            f"eval.imagereward"
        )
    return tokenizer, folder


def _layers(tensors: dict[str, Tensor], prefix: str) -> int:
    """Returns the number of layers whose tensors begin with a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in tensors if name.startswith(prefix)})
