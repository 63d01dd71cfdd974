"""How long a training takes on 1 to 1,024 devices: speed, time, bytes to read and price, from one device's speed.

    python -m benchmarks.plan --images_per_second=2790 --batch_per_device=256 [--model=resnet50] [--price_per_hour=2.5]
    python -m benchmarks.plan --results=benchmarks/results/gpu_DEVICE.json      # speed and batch as measured there
    python -m benchmarks.plan --check                                           # the model beside published runs

The single-device speed must be a measured one. The gradients are those of the real network, whose parameters and BN
layers are counted. The model, and what it leaves out: benchmarks/cluster_model.py.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

from benchmarks.cluster_model import IMAGENET_IMAGES, Cluster, Job, plan, published_runs
from input_pipeline.errors import InputError, printable
from resnet import command


def main() -> int:
    parser = command.Parser(__doc__)
    parser.add_argument("--images_per_second", type=float, help="of one device, measured")
    parser.add_argument("--batch_per_device", type=int, help="at which it was measured (default: 256)")
    parser.add_argument("--results", help="take both from a file of benchmarks.step, .gpu or .scaling")
    parser.add_argument("--model", default="resnet50", help="whose parameters and BN layers are counted")
    parser.add_argument("--gradient_bytes", type=float, default=4.0, help="of one parameter's gradient (default: 4)")
    parser.add_argument("--overlap", type=float, default=0.9, help="share of the backward pass that hides messages")
    parser.add_argument("--buckets", type=int, default=10, help="messages that the gradient is cut into")
    parser.add_argument("--algorithm", choices=("best", "ring", "tree"), default="best")
    parser.add_argument("--local_bn", action="store_true", help="BN statistics per device: no messages for them")
    for field in dataclasses.fields(Cluster):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--epochs", type=float, default=90.0)
    parser.add_argument("--images", type=int, default=IMAGENET_IMAGES)
    parser.add_argument("--image_bytes", type=float, default=110_000.0, help="of an average file")
    parser.add_argument("--price_per_hour", type=float, help="of one device")
    parser.add_argument("--devices", type=int, nargs="+", default=[2**power for power in range(11)])
    parser.add_argument("--check", action="store_true", help="the model beside published runs, and no plan")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        report_check(arguments.json)
        return 0
    if arguments.results:
        arguments.images_per_second, arguments.batch_per_device = measured(Path(arguments.results))
    arguments.batch_per_device = 256 if arguments.batch_per_device is None else arguments.batch_per_device
    if arguments.images_per_second is None:
        raise InputError("give the measured speed of one device: --images_per_second or --results")
    check_ranges(vars(arguments))
    report_plan(arguments)
    return 0


def check_ranges(given: dict[str, Any]) -> None:
    """Raise InputError that names the first number that cannot be."""
    positive = ("images_per_second", "gradient_bytes", "link_bandwidth", "network_bandwidth", "epochs", "image_bytes")
    counts = ("batch_per_device", "buckets", "devices_per_node", "images")
    for name in (*positive, *counts):
        if not 0 < given[name] < math.inf:
            raise InputError(f"--{name}={given[name]} must be above 0")
    for name in ("link_latency", "network_latency", "price_per_hour"):
        if given[name] is not None and not 0 <= given[name] < math.inf:
            raise InputError(f"--{name}={given[name]} must be at least 0")
    if not 0 <= given["overlap"] <= 1:
        raise InputError(f"--overlap={given['overlap']} must be from 0 to 1")
    if min(given["devices"]) < 1:
        raise InputError(f"--devices={min(given['devices'])} must be at least 1")


def measured(file: Path) -> tuple[float, int]:
    """(images per second, batch) of our train step on one device, from a file of benchmarks.step, .gpu or .scaling.

    Raises InputError for a file that holds no such figure.
    """
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("benchmark") == "step":
            return float(record["images_per_second"]["ours"]["train"]), int(record["batch_size"])
        rows = record["rows"]
        if record.get("benchmark") == "scaling":
            row = next(row for row in rows if row["devices"] == 1)
            return float(row["images_per_second"]), int(row["global_batch"])
        # Of several batches the fastest.
        ours = [row for row in rows if row["part"] == "ours" and "images_per_second" in row]
        row = max(ours, key=lambda row: row["images_per_second"])
        return float(row["images_per_second"]), int(row["batch_size"])
    except OSError as error:
        raise InputError(f"--results={printable(str(file))}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise InputError(
            f"--results={printable(str(file))} holds no train step of ours on one device; give a file that "
            "benchmarks.step, benchmarks.gpu or benchmarks.scaling wrote"
        ) from error


def network_sizes(model: str) -> tuple[int, int, int]:
    """(parameters, layers of BN, their channels in all) of a named network. Raises SpecError for an unknown name."""
    import jax

    from resnet.model.network import ResNet, initialise
    from resnet.model.variants import variant

    network = ResNet(variant(model).spec)
    size = network.spec.total_stride
    shapes = jax.eval_shape(lambda key: initialise(network, key, size), jax.random.key(0))
    means = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes["batch_stats"]) if "mean" in str(path[-1])
    ]
    count = lambda leaves: sum(math.prod(leaf.shape) for leaf in leaves)  # noqa: E731
    return count(jax.tree.leaves(shapes["params"])), len(means), count(means)


def report_check(as_json: bool) -> None:
    """Print the model beside published runs."""
    runs = published_runs()
    if as_json:
        print(json.dumps([{**dataclasses.asdict(run), "error": run.error} for run in runs]))
        return
    print("| published run | quantity | published | predicted | error |\n| --- | --- | --- | --- | --- |")
    for run in runs:
        print(f"| {run.name} | {run.quantity} | {run.published:g} | {run.predicted:.3g} | {run.error:+.1%} |")


def report_plan(arguments: argparse.Namespace) -> None:
    """Print the plan for each number of devices."""
    given = vars(arguments)
    cluster = Cluster(**{field.name: given[field.name] for field in dataclasses.fields(Cluster)})
    parameters, norms, channels = network_sizes(arguments.model)
    job = Job(
        images_per_second=arguments.images_per_second,
        batch_per_device=arguments.batch_per_device,
        parameters=parameters,
        gradient_bytes=arguments.gradient_bytes,
        overlap=arguments.overlap,
        buckets=arguments.buckets,
        norms=norms,
        channels=channels,
        sync_bn=not arguments.local_bn,
        algorithm=arguments.algorithm,
    )
    extra = {name: given[name] for name in ("epochs", "images", "image_bytes", "price_per_hour")}
    rows = [plan(devices, job, cluster, **extra) for devices in arguments.devices]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    print(
        f"{arguments.model}: {parameters:,} parameters, {parameters * job.gradient_bytes / 1e6:,.1f} MB of gradients, "
        f"{norms} BN layers; {job.images_per_second:,.1f} images/s on one device at batch {job.batch_per_device}\n"
    )
    priced = arguments.price_per_hour is not None
    names = ["devices", "global batch", "step ms", "images/s", "efficiency", "s/epoch"]
    names += [f"hours for {arguments.epochs:g} epochs", "GB/s read per node"]
    names += ["price of an epoch", "price in all"] if priced else []
    print(f"| {' | '.join(names)} |\n" + "| --- " * len(names) + "|")
    for row in rows:
        cells = [f"{row.devices:,}", f"{row.global_batch:,}", f"{row.step_milliseconds:,.1f}"]
        cells += [f"{row.images_per_second:,.0f}", f"{row.efficiency:.1%}", f"{row.epoch_seconds:,.1f}"]
        cells += [f"{row.training_hours:,.2f}", f"{row.input_gigabytes:.2f}"]
        cells += [f"{row.epoch_price:,.2f}", f"{row.price:,.0f}"] if priced else []
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    command.run(main)
