"""Why the configurations of a FLUX.2 klein folder don't suit a teacher."""

from collections.abc import Iterator
from pathlib import Path

from transformers import Qwen3Config

from randcond.launch.errors import UserError
from randcond.model_zoo.checkpoints.diffusers_folder import read_object
from randcond.model_zoo.families.base.family import Family
from randcond.model_zoo.families.faults.transformer import stored_configurations

TEXT_LAYERS = (9, 18, 27)  # the layers of Qwen3 that the transformer is given, the pipeline's default


def configuration_faults(family: Family, folder: Path, parts: list[str]) -> Iterator[str]:
    """Yields the faults of the configurations of a folder's networks."""
    where = f"{folder}/transformer/config.json"
    try:
        transformer, vae, [text] = stored_configurations(family, folder, {"text_encoder": Qwen3Config})
        index = read_object(folder / "model_index.json")
        tokenizer = read_object(folder / "tokenizer" / "tokenizer_config.json")
    except UserError as error:
        yield str(error)
        return
    expected = {
        "in_channels": 4 * vae.get("latent_channels", 32),
        "joint_attention_dim": len(TEXT_LAYERS) * text.hidden_size,
        "patch_size": 1,
        "guidance_embeds": False,
    }
    for key, value in expected.items():
        if transformer[key] != value:
            yield f"{where}: {key} is {transformer[key]}, expected {value}"
    if transformer["out_channels"] not in (None, transformer["in_channels"]):
        yield f"{where}: out_channels is {transformer['out_channels']}, expected {transformer['in_channels']}"
    if text.num_hidden_layers < TEXT_LAYERS[-1]:
        yield (
            f"{folder}/text_encoder/config.json: num_hidden_layers is {text.num_hidden_layers}, expected "
            f"{TEXT_LAYERS[-1]} or more"
        )
    if tuple(vae.get("patch_size", (2, 2))) != (2, 2):
        yield f"{folder}/vae/config.json: patch_size is {vae['patch_size']}, expected [2, 2]"
    if "chat_template" not in tokenizer and not (folder / "tokenizer" / "chat_template.jinja").is_file():
        yield f"{folder}/tokenizer: has no chat_template.jinja, which the pipeline puts captions in; copy it again"
    if index.get("is_distilled"):
        yield (
            f"{folder}/model_index.json: is_distilled is true: this model was distilled to few steps without guidance; "
            f"a teacher is a base model"
        )
