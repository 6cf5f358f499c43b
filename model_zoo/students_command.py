"""`randcond students`: lists the student rules with their sizes and costs, for published or custom teachers."""

import json as json_library
from collections.abc import Iterator
from typing import Any

from tqdm import tqdm

from randcond.launch.errors import UserError
from randcond.model_zoo.cost.flops import denoiser_cost
from randcond.model_zoo.cost.student_rows import cost_columns, shape_columns, student_row
from randcond.model_zoo.denoiser.architecture import Architecture
from randcond.model_zoo.networks import denoiser_of
from randcond.model_zoo.students.registry import listed_rules

DEFAULT_MICRO_BATCH = {"sdxl": 8}  # as in the paper; 64 for all other teachers


def students(
    *,
    teacher: str | None = None,
    rule: str | None = None,
    micro_batch: int | None = None,
    zero_stage: int = 1,
    ranks: int = 1,
    json: bool = False,
) -> None:
    """Prints the students of a teacher: parameters, MACs, training TFLOP and memory. No weights are needed.

    --teacher NAME     sd-v1-4, sd-v2-1, sdxl, pixart-sigma, pixart-sigma-512, sd35-medium, flux2-klein-4b, a diffusers
                       folder or a hub id
                       (default: sd-v1-4 and sdxl)
    --rule NAME        print this rule only, for example block-base or channel-0.65
    --micro-batch N    samples per GPU in one forward pass, for the activation memory (default: 64; 8 for sdxl and
                       transformers)
    --zero-stage N     ZeRO stage that shards the training state: 1, 2 or 3 (default: 1)
    --ranks N          number of GPUs that the training state is sharded over (default: 1)
    --json             print one JSON list instead of tables

    MACs: convolutions and linear layers in one call with batch 1 and the teacher's text length (77
    tokens; 300 to 512 of transformers); attention products are separate.
    Memory: GB per GPU for both denoisers, in bf16 with fp32 master weights, AdamW and EMA; no text encoders.

    examples    randcond students
                randcond students --teacher sdxl --rule koala-700m --ranks 8
                randcond students --teacher my-teacher --json
    """
    if not 1 <= zero_stage <= 3:
        raise UserError(f"--zero-stage: must be 1, 2 or 3, got {zero_stage}")
    for flag, value in (("--ranks", ranks), ("--micro-batch", micro_batch)):
        if value is not None and value < 1:
            raise UserError(f"{flag}: must be at least 1, got {value}")
    names = [teacher] if teacher else ["sd-v1-4", "sdxl"]
    all_rows = []
    for name in names:
        denoiser = denoiser_of(name)
        micro = micro_batch or DEFAULT_MICRO_BATCH.get(name, 8 if denoiser.family.stack(denoiser.config) else 64)
        rows = list(_rows(name, denoiser, rule, micro, zero_stage, ranks))
        all_rows += rows
        if not json:
            print(_table(rows, micro, zero_stage, ranks))
    if json:
        print(json_library.dumps(all_rows, indent=1))


def _rows(
    name: str, denoiser: Architecture, rule: str | None, micro_batch: int, zero_stage: int, ranks: int
) -> Iterator[dict[str, Any]]:
    """Yields the teacher's row, then one row per rule.

    The row of a rule that does not apply to the teacher holds the reason instead of sizes.
    """
    cost = denoiser_cost(denoiser)
    yield {"teacher": name, "name": "teacher", "summary": "", **shape_columns(denoiser), **cost_columns(cost)}
    for student in tqdm(
        [rule] if rule else listed_rules(denoiser), desc=name, unit="student", leave=False, disable=None
    ):
        try:
            row = student_row(student, denoiser, cost, micro_batch, zero_stage, ranks)
            yield {"teacher": name, "micro_batch": micro_batch, **row}
        except UserError as error:
            if rule:
                raise
            yield {"teacher": name, "name": student, "does_not_apply": str(error)}


def _shape(row: dict[str, Any]) -> list[str]:
    """Returns the cells for channels, layers and the mid block; of a transformer for its width and its blocks."""
    if "blocks" in row:
        return [str(row["width"]), str(row["blocks"])]
    depth = row["transformer_layers_per_block"]
    depths = str(depth) if isinstance(depth, int) else f"({' '.join(map(str, depth))})"
    layers = str(row["layers_per_block"]) + ("" if depth == 1 else f" x {depths}")
    return [" ".join(map(str, row["block_out_channels"])), layers, "yes" if row["mid_block"] else "no"]


def _number(value: float, digits: int = 1) -> str:
    """Returns a number with some digits after the point, or with its first digit if they would all be 0.

    >>> _number(859.52), _number(0.0), _number(0.0123)
    ('859.5', '0.0', '0.01')
    """
    return f"{value:.{digits}f}" if value == 0 or round(value, digits) else f"{value:.1g}"


def _table(rows: list[dict[str, Any]], micro_batch: int, zero_stage: int, ranks: int) -> str:
    """Formats rows as aligned columns. The rules that do not apply follow below, with their reasons."""
    header = ["", *(["width", "blocks"] if "blocks" in rows[0] else ["channels", "layers", "mid"])]
    header += ["params M", "MACs G", "attention G", "TFLOP/sample"]
    header += ["teacher GB", "weights", "gradients", "optimizer", "buffers", "transient", "activations", "sum"]
    lines, notes = [header], []
    for row in rows:
        if "does_not_apply" in row:
            # Without its advice to use another rule: that one may be in this list, too.
            reason = row["does_not_apply"].removeprefix("student.rule: ").partition("; use ")[0]
            notes.append(f"  does not apply: {reason}")
            continue
        line = [row["name"], *_shape(row)]
        line += [_number(row[key]) for key in ("parameters_m", "macs_g", "attention_macs_g")]
        if memory := row.get("memory_gb"):
            line += [_number(row["training_tflop_per_sample"], 2)]
            line += [_number(value) for value in [*memory.values(), sum(memory.values())]]
        lines.append(line + [""] * (len(header) - len(line)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = [
        "  ".join(f"{cell:>{w}}" if i else f"{cell:<{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    setting = f"micro-batch {micro_batch}, ZeRO-{zero_stage}, {ranks} GPU{'' if ranks == 1 else 's'}"
    return "\n".join([f"{rows[0]['teacher']} (memory per GPU with {setting})", *text, *notes, ""])
