"""How a global batch is cut over ranks and micro-batches."""


def batch_shape(global_batch: int, ranks: int, micro_batch: int | None) -> tuple[int, int]:
    """(micro-batch, accumulation steps) that make the global batch exactly; raises ValueError with the arithmetic."""
    if global_batch % ranks:
        raise ValueError(
            f"train.global_batch: {global_batch} does not divide over {ranks} ranks "
            f"({global_batch} / {ranks} = {global_batch / ranks:.2f}); "
            f"take {global_batch // ranks * ranks or ranks} or {(global_batch // ranks + 1) * ranks}"
        )
    per_rank = global_batch // ranks
    micro = micro_batch or per_rank
    if per_rank % micro:
        raise ValueError(
            f"engine.micro_batch: {micro} does not divide the {per_rank} samples of each rank "
            f"(train.global_batch {global_batch} / {ranks} ranks)"
        )
    return micro, per_rank // micro
