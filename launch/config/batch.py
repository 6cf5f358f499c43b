"""How a global batch is cut over ranks and micro-batches, and the state over groups of ranks."""

from randcond.launch.config.engines import ENGINES, EngineKind
from randcond.launch.errors import UserError


def batch_shape(global_batch: int, ranks: int, micro_batch: int | None) -> tuple[int, int]:
    """(micro-batch, accumulation steps) that make the global batch exactly; raises UserError with the arithmetic."""
    if global_batch % ranks:
        raise UserError(
            f"train.global_batch: {global_batch} does not divide over {ranks} ranks "
            f"({global_batch} / {ranks} = {global_batch / ranks:.2f}); "
            f"take {global_batch // ranks * ranks or ranks} or {(global_batch // ranks + 1) * ranks}"
        )
    per_rank = global_batch // ranks
    micro = micro_batch or per_rank
    if per_rank % micro:
        raise UserError(
            f"engine.micro_batch: {micro} does not divide the {per_rank} samples of each rank "
            f"(train.global_batch {global_batch} / {ranks} ranks)"
        )
    return micro, per_rank // micro


def shard_group(kind: EngineKind, group: int | None, ranks: int, ranks_of_host: int) -> int:
    """Returns the number of ranks that share one replica of the training state.

    `group`: the setting `engine.shard_group`. Raises UserError if the groups don't divide the world size `ranks`.
    """
    if not ENGINES[kind].in_groups:
        return ranks
    size = group or ranks_of_host
    if ranks % size:
        origin = "" if group else f" (the ranks of one host: {ranks_of_host})"
        raise UserError(f"engine.shard_group: {size}{origin} does not divide the {ranks} ranks")
    return size
