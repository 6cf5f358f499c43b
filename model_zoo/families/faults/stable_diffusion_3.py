"""Why the configurations of a Stable Diffusion 3 folder don't suit a teacher."""

from collections.abc import Iterator
from pathlib import Path

from transformers import CLIPTextConfig, T5Config

from randcond.launch.errors import UserError
from randcond.model_zoo.families.base.family import Family
from randcond.model_zoo.families.faults.transformer import stored_configurations


def configuration_faults(family: Family, folder: Path, parts: list[str]) -> Iterator[str]:
    """Yields the faults of the configurations of a folder's networks."""
    where = f"{folder}/transformer/config.json"
    kinds = {"text_encoder": CLIPTextConfig, "text_encoder_2": CLIPTextConfig, "text_encoder_3": T5Config}
    try:
        texts = {part: kind for part, kind in kinds.items() if part in parts}
        transformer, vae, found = stored_configurations(family, folder, texts)
    except UserError as error:
        yield str(error)
        return
    clips, t5 = found[:2], found[2:]
    expected = {
        "pooled_projection_dim": sum(clip.projection_dim for clip in clips),
        "in_channels": vae.get("latent_channels", 4),
        "out_channels": transformer["in_channels"],
        "caption_projection_dim": transformer["num_attention_heads"] * transformer["attention_head_dim"],
    }
    for key, value in expected.items():
        if transformer[key] != value:
            yield f"{where}: {key} is {transformer[key]}, expected {value} as in the other parts"
    width = transformer["joint_attention_dim"]
    if t5 and t5[0].d_model != width:
        yield f"{where}: joint_attention_dim is {width}, but T5 gives {t5[0].d_model}"
    if (both := sum(clip.hidden_size for clip in clips)) > width:
        yield f"{where}: joint_attention_dim is {width}, but the two CLIPs give {both}"
    if vae.get("shift_factor") is None:
        yield f"{folder}/vae/config.json: shift_factor is missing; the pipeline adds it to latents"
    for key in ("latents_mean", "latents_std"):
        if vae.get(key) is not None:
            yield f"{folder}/vae/config.json: {key} is {vae[key]}, which the pipeline does not use; expected null"
