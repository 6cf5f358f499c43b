"""Writes a pipeline as people find it: all weights in one file, by the names of the original Stable Diffusion code."""

from typing import Any

import torch
from torch import Tensor

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def one_file(pipe: Any) -> dict[str, Tensor]:
    """Returns the tensors of a StableDiffusionPipeline or StableDiffusionXLPipeline by their original names."""
    tensors = {f"model.diffusion_model.{name}": value for name, value in _unet(pipe.unet).items()}
    tensors |= {f"first_stage_model.{name}": value for name, value in _vae(pipe.vae).items()}
    second = getattr(pipe, "text_encoder_2", None)
    if second is not None:
        tensors |= _clip(pipe.text_encoder, "conditioner.embedders.0.transformer.")
        tensors |= _open_clip(second, "conditioner.embedders.1.model.")
    elif pipe.text_encoder.config.hidden_act == "gelu":  # Stable Diffusion 2.x
        tensors |= _open_clip(pipe.text_encoder, "cond_stage_model.model.")
    else:
        tensors |= _clip(pipe.text_encoder, "cond_stage_model.transformer.")
    return {name: value.detach().clone().contiguous() for name, value in tensors.items()}


def _renamed(name: str, names: dict[str, str]) -> str:
    for new, old in names.items():
        if name.startswith(f"{new}."):
            return old + name[len(new) :]
    return name


def _unet(unet: Any) -> dict[str, Tensor]:
    layers = unet.config.layers_per_block
    found = {}
    for name, value in unet.state_dict().items():
        parts = name.split(".")
        if parts[0] == "mid_block":
            number = int(parts[2])
            place = "middle_block.1" if parts[1] == "attentions" else f"middle_block.{2 * number}"
            rest = ".".join(parts[3:])
            old = f"{place}.{_renamed(rest, _RESNET) if parts[1] == 'resnets' else rest}"
        elif parts[0] in ("down_blocks", "up_blocks"):
            stage, kind, number, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
            down = parts[0] == "down_blocks"
            each = layers + 1
            block = each * stage + number + (1 if down else 0)
            side = "input_blocks" if down else "output_blocks"
            if kind == "resnets":
                old = f"{side}.{block}.0.{_renamed(rest, _RESNET)}"
            elif kind == "attentions":
                old = f"{side}.{block}.1.{rest}"
            elif kind == "downsamplers":
                old = f"input_blocks.{each * (stage + 1)}.0.op.{rest.removeprefix('conv.')}"
            else:
                attention = hasattr(unet.up_blocks[stage], "attentions")
                old = f"output_blocks.{each * stage + layers}.{2 if attention else 1}.{rest}"
        else:
            old = _renamed(name, _ENDS)
        found[old] = value
    return found


def _vae(vae: Any) -> dict[str, Tensor]:
    stages = len(vae.config.block_out_channels)
    found = {}
    for name, value in vae.state_dict().items():
        parts = name.split(".")
        if len(parts) > 2 and parts[1] in ("down_blocks", "up_blocks"):
            stage = int(parts[2]) if parts[1] == "down_blocks" else stages - 1 - int(parts[2])
            rest = ".".join(parts[5:]).replace("conv_shortcut", "nin_shortcut")
            kind = {"resnets": f"block.{parts[4]}", "downsamplers": "downsample", "upsamplers": "upsample"}[parts[3]]
            old = f"{parts[0]}.{parts[1].removesuffix('_blocks')}.{stage}.{kind}.{rest}"
        elif len(parts) > 2 and parts[1] == "mid_block":
            rest = ".".join(parts[4:])
            if parts[2] == "attentions":
                old = f"{parts[0]}.mid.attn_1.{_renamed(rest, _VAE_ATTENTION)}"
                if value.ndim == 2:
                    value = value[:, :, None, None]
            else:
                old = f"{parts[0]}.mid.block_{int(parts[3]) + 1}.{rest}"
        else:
            old = name.replace("conv_norm_out", "norm_out")
        found[old] = value
    return found


def _clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    names = ((name.removeprefix("text_model."), value) for name, value in encoder.state_dict().items())
    return {f"{prefix}text_model.{name}": value for name, value in names}


def _open_clip(encoder: Any, prefix: str) -> dict[str, Tensor]:
    state = {name.removeprefix("text_model."): value for name, value in encoder.state_dict().items()}
    width = encoder.config.hidden_size
    found = {
        "token_embedding.weight": state["embeddings.token_embedding.weight"],
        "positional_embedding": state["embeddings.position_embedding.weight"],
        "ln_final.weight": state["final_layer_norm.weight"],
        "ln_final.bias": state["final_layer_norm.bias"],
        "text_projection": state["text_projection.weight"].T if "text_projection.weight" in state else torch.eye(width),
        "logit_scale": torch.tensor(1.0),
    }
    for number in range(encoder.config.num_hidden_layers):
        here, there = f"encoder.layers.{number}.", f"transformer.resblocks.{number}."
        for kind in ("weight", "bias"):
            found[f"{there}attn.in_proj_{kind}"] = torch.cat([state[f"{here}self_attn.{n}_proj.{kind}"] for n in "qkv"])
            for new, old in _CLIP.items():
                found[f"{there}{old}.{kind}"] = state[f"{here}{new}.{kind}"]
    return {f"{prefix}{name}": value for name, value in found.items()}
