"""The planner: predictions match the engines, and a plan that does not fit says what makes it fit."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from randcond.launch.config.engines import EngineKind, shard_group
from randcond.launch.config.experiments import load_config, to_yaml
from randcond.launch.config.gpus import Gpu, find_gpu
from randcond.launch.config.sections import Config
from randcond.launch.errors import UserError
from randcond.launch.planning import cards
from randcond.launch.planning.costs import Cluster, Sizes, counted, sharding
from randcond.launch.planning.fitting import fits, knobs, largest_micro_batch, training_memory
from randcond.launch.planning.plan_command import _reached, curve_table
from randcond.launch.planning.planner import curve, plan, sweep
from randcond.launch.planning.step_time import (
    StepTime,
    full_share,
    hiding_share,
    idle_seconds,
    ring_traffic,
    step_traffic,
)
from randcond.model_zoo.checkpoints.diffusers_folder import DTYPES
from randcond.model_zoo.cost.flops import denoiser_cost
from randcond.model_zoo.cost.gpu_occupancy import forward_work
from randcond.model_zoo.cost.memory import COMPARED_BYTES, Sharding, state_memory
from randcond.model_zoo.networks import denoiser_of
from randcond.train.losses import feature_loss, frequency_loss, spatial_loss
from tests.support import warm
from tests.support.demo import on_ranks, randcond

SD = ["teacher.path=sd-v1-4", "teacher.dtype=bf16", "student.rule=block-base", "engine.precision=bf16"]
ENGINES = {
    "zero-1": ["engine.zero_stage=1"],
    "zero-2": ["engine.zero_stage=2"],
    "zero-3": ["engine.zero_stage=3"],
    "fsdp-full": ["engine.kind=fsdp"],
}
SMALL = ["train.optimizer=adamw_8bit", "engine.ema=cpu"]
SHAPES = (("bf16", 2), ("fp32", 2), ("bf16", 4))  # precision, ranks
CASES = [
    ("zero-1", "bf16", 1, SMALL),
    *((kind, precision, ranks, []) for kind in ENGINES for precision, ranks in SHAPES),
    *((kind, "bf16", 2, SMALL) for kind in ENGINES),
    ("zero-2", "fp32", 2, ["engine.ema=off"]),
]


@pytest.fixture(scope="module")
def sizes() -> Sizes:
    return counted(load_config("demo-with", SD))


def paper(*words: str) -> Config:
    return load_config("demo-with", [*SD, "train.global_batch=256", *words])


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "precision", "ranks", "options"), CASES)
def test_an_engine_takes_and_sends_what_is_predicted(
    kind: str, precision: str, ranks: int, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Memory (weights, gradients, masters, moments, EMA, buckets) and traffic of a step are within 5% of a real run."""
    words = [*ENGINES[kind], f"engine.precision={precision}", "train.global_batch=8", "engine.micro_batch=1", *options]
    words += ["eval.weights=raw"]
    config, cluster = load_config("demo-with", words), Cluster(find_gpu("h200"), nodes=1, per_node=ranks)
    how, found = sharding(config, cluster), counted(config)
    assert how.kind == kind
    predicted = {
        "resident": state_memory(found.shapes, found.blocks, how).resident,
        "sent": step_traffic(config, found, cluster).sent,
    }
    done = warm.run(on_ranks(ranks, "tests.support.footprint", ["demo-with", *words], tmp_path))
    assert [each.returncode for each in done] == [0] * ranks, done[0].stderr
    measured = json.loads(done[0].stdout.splitlines()[-1])
    measured.pop("peak")  # one sample: most of it are the gradients that grow while activations are freed
    with capsys.disabled():
        print(f"\n{kind}, {precision}, {ranks} ranks {' '.join(options)}:", end="")
        for what, size in measured.items():
            print(f" {what} {size / 1e6:.1f} MB, predicted {predicted[what] / 1e6:.1f}", end=";")
    for what, size in measured.items():
        assert predicted[what] == pytest.approx(size, rel=0.05), what


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("zero-1", "bf16"),
        *(pytest.param("fsdp-full", precision, marks=pytest.mark.slow) for precision in ("bf16", "fp32")),
    ],
)
def test_the_chosen_micro_batch_takes_the_memory_that_is_predicted(
    kind: str, precision: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The peak of a real step is within 10 % of the prediction, which is within what the card has.

    ZeRO-1 in fp32 is left out: without accumulation its gradients grow while the activations are freed, so that the
    prediction is 16 % above the peak.
    """
    words = [*ENGINES[kind], f"engine.precision={precision}", "train.global_batch=128"]
    config = load_config("demo-with", words)
    found = counted(config)
    memory_gb = 0.3 if precision == "bf16" else 0.5
    cluster = Cluster(replace(find_gpu("h200"), memory_gb=memory_gb, overhead_gb=0.0), nodes=1, per_node=1)
    micro = largest_micro_batch(config, found, cluster)
    assert micro is not None and 16 <= micro < 128
    words.append(f"engine.micro_batch={micro}")
    memory = training_memory(load_config("demo-with", words), found, cluster)
    # The measurement leaves the frozen networks out.
    predicted = sum(memory.values()) - memory["teacher denoiser"] - memory["text encoders and VAE"]
    done = warm.run(on_ranks(1, "tests.support.footprint", ["demo-with", *words], tmp_path))
    assert done[0].returncode == 0, done[0].stderr
    peak = json.loads(done[0].stdout.splitlines()[-1])["peak"]
    with capsys.disabled():
        print(f"\n{kind}, {precision}: micro-batch {micro}, peak {peak / 1e6:.1f} MB, predicted {predicted / 1e6:.1f}")
    assert predicted == pytest.approx(peak, rel=0.10)


CARDS = {"rtx4060": 8, "rtx4070": 12, "rtx4080": 16, "rtx4090": 24, "a100-40": 40, "h100": 80, "h200": 141}


@pytest.mark.parametrize("name", [*CARDS, "11GB,27TFLOPS", "48gb,90tflops"])
def test_the_largest_micro_batch_fits_a_card_and_the_next_does_not(name: str, sizes: Sizes) -> None:
    cluster = Cluster(find_gpu(name), nodes=1, per_node=1)
    config, micro = paper(), largest_micro_batch(paper(), sizes, cluster)
    if micro is None:
        assert not plan(config, sizes, cluster, 0.25).fits
        return
    found = plan(config, sizes, cluster, 0.25)
    assert found.fits and (found.micro_batch, found.micro_batch * found.accumulation) == (micro, 256)
    larger = paper(f"engine.micro_batch={2 * micro}")
    assert micro == 256 or not fits(training_memory(larger, sizes, cluster), cluster)


@pytest.mark.slow
def test_the_table_of_cards_says_what_the_plans_say() -> None:
    text = (Path(__file__).parents[3] / "docs/planning.md").read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    table = {cells[1]: cells[2:] for cells in rows if len(cells) == 5 and cells[0].isdigit()}
    assert tuple(table) == cards.CARDS
    for place, (name, teacher) in enumerate([("b-base", "sd-v1-4"), ("c-micro", "sd-v1-4"), ("koala-700m", "sdxl")]):
        config = load_config(name, [f"teacher.path={teacher}"])
        for row in cards.card_plans(config, counted(config), 0.25):
            said = f"{row.samples_per_second:.3g}{'*' if row.settings else ''}" if row.micro_batch else "-"
            assert table[row.card][place] == said, (name, row)


@pytest.mark.parametrize("name", ["rtx5060", "0GB,5TFLOPS", "8GB,-5TFLOPS"])
def test_an_unknown_card_is_refused_with_the_way_to_describe_it(name: str) -> None:
    with pytest.raises(UserError, match=r"known: .*rtx4090.*11GB,27TFLOPS"):
        find_gpu(name)


def test_shares_follow_the_ranks() -> None:
    shapes, blocks = [(1000, 1000), (4, 10)], [1_000_040]
    total = 1_000_040
    for kind, weights in (("zero-1", total), ("zero-2", total), ("zero-3", 1_000_000 // 8 + 40 // 8 + 40)):
        state = state_memory(shapes, blocks, Sharding(EngineKind(kind), ranks=8))
        assert (state.weights, state.optimizer) == (2 * weights, 16 * total // 8)
    fsdp = state_memory(shapes, blocks, Sharding(EngineKind.FSDP_FULL, 8))
    assert fsdp.optimizer == 16 * (125 * 1000 + 1 * 10)  # FSDP2 divides whole rows
    hybrid = Sharding(EngineKind.FSDP_HYBRID, ranks=64, group=8)
    assert state_memory(shapes, blocks, hybrid) == state_memory(shapes, blocks, replace(hybrid, ranks=8))


def test_a_ring_leaves_a_host_once(sizes: Sizes) -> None:
    """On four hosts of eight GPUs, each network card carries an eighth of the traffic of the ring.

    With hybrid sharding, each GPU sends its share to its replicas over its own card.
    """
    gpu = find_gpu("h200")
    four = Cluster(gpu, nodes=4, per_node=8)
    full = step_traffic(paper("engine.kind=fsdp", "engine.micro_batch=8"), sizes, four)
    assert full.sent == pytest.approx(8 * sizes.trained * 31 / 32)
    assert full.seconds == pytest.approx(full.sent / 8 / (1e9 * gpu.across_gb_s))
    hybrid = step_traffic(paper("engine.kind=fsdp", "engine.sharding=hybrid", "engine.micro_batch=8"), sizes, four)
    inside, across = 8 * sizes.trained * 7 / 8, 8 * sizes.trained / 8 * 3 / 4
    assert hybrid.sent == pytest.approx(inside + across)
    assert hybrid.seconds == pytest.approx(inside / (1e9 * gpu.within_gb_s) + across / (1e9 * gpu.across_gb_s))
    assert step_traffic(paper(), sizes, Cluster(gpu, 1, 1)).sent == 0


def test_traffic_hides_beneath_the_students_passes(sizes: Sizes) -> None:
    assert StepTime(arithmetic=8, idle=2, traffic=6, overlap=0.5).whole == 11
    assert StepTime(arithmetic=8, idle=2, traffic=4, overlap=0.5).whole == 10
    assert hiding_share(paper("engine.zero_stage=2"), sizes) == 0
    teacher, student = sizes.teacher.flop, sizes.student.flop
    expected = 3 * student / (teacher + 3 * student)
    assert hiding_share(paper("engine.zero_stage=3"), sizes) == pytest.approx(expected)
    redone = paper("engine.zero_stage=3", "engine.activation_checkpointing=true")
    assert hiding_share(redone, sizes) == pytest.approx(4 * student / (teacher + 4 * student))
    assert hiding_share(paper("engine.kind=fsdp", "engine.teacher=sharded"), sizes) == 1


def test_what_does_not_fit_is_said_with_the_knob(sizes: Sizes) -> None:
    small = Cluster(find_gpu("rtx4090"), nodes=1, per_node=8)
    config = paper()  # 32 samples per GPU
    assert not fits(training_memory(config, sizes, small), small)
    found = dict(knobs(config, sizes, small))
    assert "engine.micro_batch=16" in found and "engine.activation_checkpointing=true" in found
    assert "engine.micro_batch=8" not in found  # only the largest that fits is listed
    for words in found:
        assert fits(training_memory(paper(*words.split()), sizes, small), small)


def test_what_makes_it_fit_goes_from_harmless_to_costly(sizes: Sizes) -> None:
    """On one GPU: what changes no result comes before what rounds. Together, no more is proposed than is needed."""

    def found(gpu_gb: float, *words: str) -> list[str]:
        cluster, config = Cluster(Gpu(100, gpu_gb, 100, 10, 100), 1, 1), paper("train.global_batch=1", *words)
        rows = knobs(config, sizes, cluster)
        for override, gb in rows:
            memory = training_memory(paper("train.global_batch=1", *words, *override.split()), sizes, cluster)
            assert fits(memory, cluster) and gb == pytest.approx(sum(memory.values()) / 1e9)
        return [override for override, _ in rows]

    needed = sum(training_memory(paper("train.global_batch=1"), sizes, Cluster(find_gpu("h200"), 1, 1)).values()) / 1e9
    ema, moments, teacher = "engine.ema=cpu", "train.optimizer=adamw_8bit", "teacher.dtype=int8"
    fsdp = "engine.kind=fsdp engine.sharding=full"  # makes the bf16 weights and gradients block by block
    assert found(needed / 0.95 - 0.1)[-4:] == [ema, fsdp, moments, teacher]
    assert found(needed / 0.95 - 1) == [ema, moments]
    steps = ["engine.activation_checkpointing=true", ema, fsdp, moments, teacher]  # each next one is added last
    for missing in (4, 6, 7):
        assert any([" ".join(steps[:count])] == found(needed / 0.95 - missing) for count in range(2, 6)), missing


def test_a_teacher_in_int8_takes_what_is_counted(sizes: Sizes) -> None:
    """Nearly all of SD 1.4's U-Net takes one byte per weight: convolutions, which hold two thirds of them, too."""
    memory = {
        dtype: training_memory(paper(f"teacher.dtype={dtype}"), sizes, Cluster(find_gpu("h200"), 1, 1))
        for dtype in ("bf16", "int8")
    }
    for part, share in (("teacher denoiser", 0.51), ("text encoders and VAE", 0.85)):
        assert memory["int8"][part] / memory["bf16"][part] == pytest.approx(share, abs=0.02), part
    others = memory["bf16"].keys() - {"teacher denoiser", "text encoders and VAE"}
    assert all(memory["int8"][part] == memory["bf16"][part] for part in others)


def test_a_plan_adds_up(sizes: Sizes) -> None:
    eight = Cluster(find_gpu("h200"), nodes=1, per_node=8)
    words = ["train.steps=1000", "cache.size=80", "cache.shard_size=10", "cache.batch=10"]
    words += ["eval.size=80", "eval.batch=10"]
    found = plan(paper(*words), sizes, eight, 0.5)
    assert sum(found.memory_gb.values()) == pytest.approx(found.needed_gb) and found.fits
    train = found.stages["train"]
    flop = (sizes.teacher.flop + 3 * sizes.student.flop) * 256_000
    assert train.samples == 256_000
    assert found.arithmetic_seconds == pytest.approx(flop / 1000 / 8 / (989e12 * 0.5))
    assert train.gpu_hours == pytest.approx(1000 * found.step_seconds * 8 / 3600)
    one = plan(paper(*words), sizes, replace(eight, per_node=1), 0.5)
    assert one.stages["cache"].gpu_hours == pytest.approx(found.stages["cache"].gpu_hours)
    # 72 GPUs are no faster for 8 shards than 8 GPUs.
    many = plan(paper(*words, "train.global_batch=288"), sizes, Cluster(eight.gpu, 9, 8), 0.5)
    assert many.stages["cache"].hours == pytest.approx(found.stages["cache"].hours)


def test_both_splits_are_drawn_however_the_unseen_are_named(sizes: Sizes) -> None:
    eight = Cluster(find_gpu("h200"), nodes=1, per_node=8)
    for words in (["cache.exclude=[cat]"], ["eval.unseen=list.csv"], ["cache.exclude=[cat]", "eval.unseen=list.csv"]):
        found = plan(paper("eval.size=1000", *words), sizes, eight, 0.5)
        assert found.stages["eval"].samples == 2000


def test_what_makes_it_fit_is_said_of_a_teacher_in_a_graph_too(sizes: Sizes) -> None:
    small = Cluster(Gpu(100, 7, 100, 10, 100), 1, 8)
    graph = paper(
        "engine.compile=whole", "engine.teacher_graph=true", "engine.teacher_fp8=true", "engine.micro_batch=32"
    )
    found = [words for words, _ in plan(graph, sizes, small, 0.25).knobs]
    assert found and all("teacher_graph=false" in words for words in found if "teacher=sharded" in words)
    assert any("teacher=sharded" in words for words in found)


@pytest.mark.heavy
def test_a_plan_follows_the_size_of_the_images(sizes: Sizes) -> None:
    real = ["cache.captions=[]", "cache.images=photos"]
    cluster = Cluster(find_gpu("h200"), 1, 8)
    plans = {}
    for pixels in (512, 1024):
        config = paper(*real, f"cache.resolution={pixels}", f"eval.resolution={pixels}")
        plans[pixels] = plan(config, counted(config), cluster, 0.25)
    usual = plan(paper(*real), sizes, cluster, 0.25)
    assert plans[512].memory_gb == usual.memory_gb and plans[512].stages == usual.stages
    grown = plans[1024].memory_gb["activations"] / usual.memory_gb["activations"]
    assert 3.9 < grown < 4.1
    assert plans[1024].arithmetic_seconds > 4 * usual.arithmetic_seconds  # attention grows with the square of the size
    assert plans[1024].stages["eval"].hours > 4 * usual.stages["eval"].hours


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_losses_keep_what_is_counted(precision: str) -> None:
    latents, names = torch.randn(2, 4, 64, 64), ["f"]
    losses = {
        "feature": lambda ours, theirs: feature_loss(names, ours, theirs),
        "spatial": lambda ours, theirs: spatial_loss(names, ours, theirs),
        "frequency": lambda ours, theirs: frequency_loss(names, ours, theirs, latents),
    }
    expected = COMPARED_BYTES[precision]
    assert losses.keys() == expected.keys()
    for name, loss in losses.items():
        ours = torch.randn(2, 8, 32, 32, dtype=DTYPES[precision], requires_grad=True)
        theirs = torch.randn_like(ours).detach()
        saved = {}

        def keep(tensor: torch.Tensor, saved: dict[int, object] = saved) -> torch.Tensor:
            saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
            return tensor

        with saved_tensors_hooks(keep, lambda tensor: tensor):
            terms = loss([ours], [theirs])
        held = sum(storage.nbytes() for key, storage in saved.items() if key != ours.untyped_storage()._cdata)
        assert held / ours.numel() == pytest.approx(expected[name], rel=0.05), name
        assert len(terms) == 1


def test_a_hybrids_groups_divide_the_ranks(sizes: Sizes) -> None:
    config = paper("engine.kind=fsdp", "engine.sharding=hybrid", "engine.shard_group=24")
    with pytest.raises(UserError, match=r"engine\.shard_group: 24 does not divide the 32 ranks"):
        plan(config, sizes, Cluster(find_gpu("h200"), 4, 8), 0.25)
    swept = sweep(config, sizes, find_gpu("h200"), 8, 0.25)
    assert {row.gpus for row in swept} >= {8, 16} and "fsdp-hybrid" not in {row.engine for row in swept}
    assert shard_group(EngineKind.FSDP_HYBRID, None, 8, 4) == 4 and shard_group(EngineKind.FSDP_FULL, 3, 8, 4) == 8
    with pytest.raises(UserError, match=r"engine\.shard_group: 8 \(the ranks of one host: 8\) does not divide"):
        shard_group(EngineKind.FSDP_HYBRID, None, 12, 8)


def test_a_runs_mfu_is_of_what_it_computed(tmp_path: Path) -> None:
    """The MFU in the log does not count recomputed passes.

    With activation checkpointing, the student's forward pass is computed twice.
    """
    (tmp_path / "metrics.jsonl").write_text('{"step": 10, "mfu": 0.3}\n')
    reached = {}
    for checkpointing in ("false", "true"):
        config = paper(f"engine.activation_checkpointing={checkpointing}")
        (tmp_path / "config.yaml").write_text(to_yaml(config))
        reached[checkpointing] = _reached(tmp_path)
    assert reached["false"] == 0.3 and 1.2 < reached["true"] / 0.3 < 1.25


def test_the_sweep_goes_to_1024_gpus(sizes: Sizes) -> None:
    rows = sweep(paper("train.global_batch=4096"), sizes, find_gpu("h200"), per_node=8, efficiency=0.3)
    assert {row.gpus for row in rows} == {8 * 2**power for power in range(8)}
    assert {row.engine for row in rows} == {"zero-1", "zero-2", "zero-3", "fsdp-full", "fsdp-hybrid"}
    assert all(row.gpus * row.micro_batch * row.accumulation == 4096 for row in rows)
    by = {(row.gpus, row.engine, row.micro_batch): row for row in rows}
    # More GPUs: less arithmetic each, no less traffic.
    assert by[1024, "zero-1", 4].arithmetic_seconds < by[8, "zero-1", 4].arithmetic_seconds / 100
    assert by[1024, "zero-1", 4].traffic_gb > by[8, "zero-1", 4].traffic_gb


@pytest.mark.heavy
def test_the_command(tmp_path: Path) -> None:
    words = ["train.global_batch=256", "engine.micro_batch=32", "--gpu", "rtx4090"]
    said = randcond(tmp_path, "plan", "demo-with", *SD, *words).stdout
    assert "DOES NOT FIT" in said and "fits with  engine." in said and "GPU-hours" in said
    (tmp_path / "run").mkdir()
    lines = '{"step": 1, "mfu": 0.31}\n{"step": 2, "mfu": NaN}\n{"step": 3, "m'  # the last one was cut off by a kill
    (tmp_path / "run/metrics.jsonl").write_text(lines)
    (tmp_path / "run/config.yaml").write_text(to_yaml(load_config("demo-with")))
    words = ["plan", "demo", "--efficiency", "run", "--gpus", "1", "--json"]
    arms = json.loads(randcond(tmp_path, *words).stdout)
    assert [arm["experiment"] for arm in arms] == ["demo-without", "demo-with"] and arms[0]["efficiency"] == 0.31
    for wrong, named in (
        (["--gpu", "h300"], "known: a100-40"),
        (["--efficiency", "2"], "at most 1"),
        (["--efficiency", "runs/none"], "or a run's folder"),
        (["--gpus", "7"], "does not divide over 7 ranks"),
    ):
        assert named in randcond(tmp_path, "plan", "demo-with", *wrong, code=2).stderr


# GPUs -> micro-batch, samples/s per GPU, relative tolerance of the prediction.
MLPERF = {8: (64, 126.6, 1e-6), 64: (16, 110.2, 0.01), 512: (4, 73.5, 0.05), 1024: (2, 48.8, 0.15)}


@pytest.mark.heavy
def test_small_batches_wear_a_gpu_out_as_in_mlperf() -> None:
    """Predicted speeds match MLPerf Training v4.0's Stable Diffusion on H100s, with an all-reduce in fp16.

    The published speeds are those of undisturbed blocks of the logs.
    """
    unet = denoiser_of("sd-v2-1").at(64)
    cost, forward, gpu = (
        denoiser_cost(unet),
        forward_work(unet),
        find_gpu("h100"),
    )
    flop, efficiency = 3 * cost.flop, 1.0
    for gpus, (micro, published, within) in MLPERF.items():
        traffic = ring_traffic(gpus, 2 * 2 * cost.parameters * (gpus - 1) / gpus, Cluster(gpu, gpus // 8, 8)).seconds
        if gpus == 8:  # gives the efficiency for all cases
            efficiency = flop * micro / (micro / published - traffic) / (1e12 * gpu.tflops)
            assert 0.30 < efficiency < 0.32
        arithmetic = flop * micro / (1e12 * gpu.tflops * efficiency)
        share = full_share(None, forward, micro, gpu)
        idle = idle_seconds(arithmetic, share, 3 * forward.kernels, micro, gpu.shortest_kernel)
        predicted = micro / (arithmetic + idle + traffic)
        print(f"{gpus} GPUs: {predicted:.1f} samples/s per GPU predicted, {published} published")
        assert predicted == pytest.approx(published, rel=within), gpus


def test_the_curve_says_where_more_gpus_are_badly_used(capsys: pytest.CaptureFixture[str], sizes: Sizes) -> None:
    rows = curve(paper("train.global_batch=256"), sizes, find_gpu("h200"), per_node=8, efficiency=0.3)
    assert [row.gpus for row in rows] == [2**power for power in range(9)]  # no more GPUs than samples
    each = [row.samples_per_second / row.gpus for row in rows]
    assert all(before >= after for before, after in itertools.pairwise(each))
    assert rows[0].filled == 1 and rows[-1].filled < 0.9 and rows[-1].micro_batch == 1
    table = curve_table(paper("train.global_batch=256"), rows, "h200", "given")
    assert "From 64 GPUs on (micro-batch 4), a GPU does less than 80%" in table
