"""How long a training takes on 1 to 1,024 devices: a model of data parallelism, held against published runs.

    python -m benchmarks.plan --images_per_second=2790 --batch_per_device=256 [--network_bandwidth=50] [--json]
    python -m benchmarks.plan --check

The single-device speed must be a measured one. A step of N devices takes

    step = batch / images_per_second + exposed,   exposed = max(0, all_reduce - overlap · backward) + last bucket

with backward = 2/3 of the step (twice the forward's arithmetic). Gradients are first summed over the devices of a node,
then over the nodes, then spread again. A ring over n members sends 2 (n-1)/n of the bytes in 2 (n-1) messages
(Patarasuk and Yuan 2009); a pair of trees sends 2 of the bytes in 2 log2 n messages (Sanders et al. 2009). The faster
one is taken unless --algorithm says which. BN's small messages count as latency alone. What the model leaves out:
stragglers, input, checkpoints, evaluation, congestion. So it says what the network allows at best.
"""

import argparse
import dataclasses
import json
import math

IMAGENET_IMAGES = 1_281_167
RESNET50_PARAMETERS = 25_557_032
# Sum and sum of squares over each of ResNet-50's 53 BN layers, forward and backward, under sync-BN.
BN_MESSAGES = 4 * 53
BACKWARD_SHARE = 2 / 3


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The hardware. Bandwidths in 1e9 bytes per second and direction, latencies in 1e-6 seconds.

    link_bandwidth: of one device within its node. network_bandwidth: of one node to the others, over all its cards.
    """

    devices_per_node: int = 8
    link_bandwidth: float = 300.0
    network_bandwidth: float = 50.0
    link_latency: float = 3.0
    network_latency: float = 10.0


@dataclasses.dataclass(frozen=True)
class Job:
    """The training. images_per_second: measured on one device at batch_per_device.

    gradient_bytes: of one parameter's gradient on the wire. overlap: share of the backward pass during which gradients
    can travel. buckets: messages that a gradient is cut into; the last can only start when the backward pass is over.
    sync_bn: whether BN statistics are summed over all devices too.
    """

    images_per_second: float
    batch_per_device: int
    parameters: int = RESNET50_PARAMETERS
    gradient_bytes: float = 4.0
    overlap: float = 0.9
    buckets: int = 10
    sync_bn: bool = True
    algorithm: str = "best"


def ring(members: int, size: float, bandwidth: float, latency: float) -> float:
    """Seconds of an all-reduce of `size` bytes over a ring; bandwidth in bytes per second, latency in seconds."""
    if members == 1:
        return 0.0
    return 2 * (members - 1) / members * size / bandwidth + 2 * (members - 1) * latency


def tree(members: int, size: float, bandwidth: float, latency: float) -> float:
    """The same over two trees that each carry half (each node is a leaf in one of them)."""
    if members == 1:
        return 0.0
    return 2 * size / bandwidth + 2 * math.log2(members) * latency


def all_reduce(devices: int, size: float, cluster: Cluster, algorithm: str) -> float:
    """Seconds to sum `size` bytes over `devices`: within each node, then between nodes."""
    ways = {"ring": [ring], "tree": [tree], "best": [ring, tree]}[algorithm]
    local = min(devices, cluster.devices_per_node)
    nodes = math.ceil(devices / cluster.devices_per_node)
    fastest = lambda members, gbps, us: min(way(members, size, gbps * 1e9, us * 1e-6) for way in ways)  # noqa: E731
    within = fastest(local, cluster.link_bandwidth, cluster.link_latency)
    return within + fastest(nodes, cluster.network_bandwidth, cluster.network_latency)


def step_seconds(devices: int, job: Job, cluster: Cluster) -> float:
    """Seconds of one train step."""
    alone = job.batch_per_device / job.images_per_second
    if devices == 1:
        return alone
    size = job.parameters * job.gradient_bytes
    gradients = all_reduce(devices, size, cluster, job.algorithm)
    last = all_reduce(devices, size / job.buckets, cluster, job.algorithm)
    hidden = job.overlap * BACKWARD_SHARE * alone
    statistics = BN_MESSAGES * all_reduce(devices, 0.0, cluster, job.algorithm) if job.sync_bn else 0.0
    return alone + max(last, gradients - hidden) + statistics


@dataclasses.dataclass(frozen=True)
class Row:
    """The plan for one number of devices. input_gigabytes: read per second by each node. price: of the training."""

    devices: int
    global_batch: int
    step_milliseconds: float
    images_per_second: float
    efficiency: float
    epoch_seconds: float
    training_hours: float
    input_gigabytes: float
    price: float | None


def plan(
    devices: int,
    job: Job,
    cluster: Cluster,
    *,
    epochs: float = 90.0,
    images: int = IMAGENET_IMAGES,
    image_bytes: float = 110_000.0,
    price_per_hour: float | None = None,
) -> Row:
    """Speed, time and input for `devices` devices; image_bytes: of an average file; price_per_hour: of one device."""
    seconds = step_seconds(devices, job, cluster)
    rate = devices * job.batch_per_device / seconds
    hours = epochs * images / rate / 3600
    nodes = math.ceil(devices / cluster.devices_per_node)
    return Row(
        devices=devices,
        global_batch=devices * job.batch_per_device,
        step_milliseconds=1e3 * seconds,
        images_per_second=rate,
        efficiency=rate / (devices * job.images_per_second),
        epoch_seconds=images / rate,
        training_hours=hours,
        input_gigabytes=rate / nodes * image_bytes / 1e9,
        price=None if price_per_hour is None else hours * devices * price_per_hour,
    )


@dataclasses.dataclass(frozen=True)
class Published:
    """A published run: what it reports, and what the model says of it."""

    name: str
    quantity: str
    published: float
    predicted: float

    @property
    def error(self) -> float:
        """Predicted over published, less 1."""
        return self.predicted / self.published - 1


def published_runs() -> list[Published]:
    """The model beside what others report; sources in the names.

    Goyal et al. 2017: 8 P100 to a server, 50 Gbit/s Ethernet, batch 32 a device, BN per device, about 90 % efficiency
    from 8 to 256 devices, 90 epochs in one hour on 256: from the hour, 125 images/s a device there, hence 139 at 8.
    Latencies and the bandwidth within a server are our guesses for that hardware; they move the result by under 1 %.
    """
    servers = Cluster(8, link_bandwidth=20.0, network_bandwidth=6.25, link_latency=10.0, network_latency=50.0)
    goyal = Job(images_per_second=139.0, batch_per_device=32, sync_bn=False)
    small, large = plan(8, goyal, servers), plan(256, goyal, servers)
    mlperf = plan(8, Job(7162.0, 408, gradient_bytes=2.0, sync_bn=False), Cluster(), epochs=36.0)
    return [
        Published(
            "Goyal et al. 2017, 8 to 256 P100",
            "efficiency",
            0.90,
            large.images_per_second / small.images_per_second / 32,
        ),
        Published("Goyal et al. 2017, 256 P100, 90 epochs", "hours", 1.0, large.training_hours),
        # The speed is that of eight together: no communication is left to predict, the time is.
        Published("MLPerf v4.0, 8 H100, 36 epochs", "minutes", 13.3, 60 * mlperf.training_hours),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images_per_second", type=float, help="of one device, measured (benchmarks/step.py, gpu.py)")
    parser.add_argument("--batch_per_device", type=int, default=256)
    parser.add_argument("--parameters", type=int, default=RESNET50_PARAMETERS)
    parser.add_argument("--gradient_bytes", type=float, default=4.0, help="of one parameter's gradient (default: 4)")
    parser.add_argument("--overlap", type=float, default=0.9, help="share of the backward pass that hides messages")
    parser.add_argument("--algorithm", choices=("best", "ring", "tree"), default="best")
    parser.add_argument("--local_bn", action="store_true", help="BN statistics per device: no messages for them")
    for field in dataclasses.fields(Cluster):
        parser.add_argument(f"--{field.name}", type=type(field.default), default=field.default)
    parser.add_argument("--epochs", type=float, default=90.0)
    parser.add_argument("--images", type=int, default=IMAGENET_IMAGES)
    parser.add_argument("--image_bytes", type=float, default=110_000.0)
    parser.add_argument("--price_per_hour", type=float, help="of one device")
    parser.add_argument("--devices", type=int, nargs="+", default=[2**power for power in range(11)])
    parser.add_argument("--check", action="store_true", help="the model beside published runs, and no plan")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        report_check(arguments.json)
        return
    if not arguments.images_per_second or arguments.images_per_second <= 0:
        parser.error("--images_per_second: give the measured speed of one device")
    if min(arguments.devices) < 1 or arguments.batch_per_device < 1:
        parser.error("--devices and --batch_per_device must be at least 1")
    report_plan(arguments)


def report_check(as_json: bool) -> None:
    runs = published_runs()
    if as_json:
        print(json.dumps([{**dataclasses.asdict(run), "error": run.error} for run in runs]))
        return
    print("| published run | quantity | published | predicted | error |\n| --- | --- | --- | --- | --- |")
    for run in runs:
        print(f"| {run.name} | {run.quantity} | {run.published:g} | {run.predicted:.3g} | {run.error:+.1%} |")


def report_plan(arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    cluster = Cluster(**{field.name: given[field.name] for field in dataclasses.fields(Cluster)})
    job = Job(
        images_per_second=arguments.images_per_second,
        batch_per_device=arguments.batch_per_device,
        parameters=arguments.parameters,
        gradient_bytes=arguments.gradient_bytes,
        overlap=arguments.overlap,
        sync_bn=not arguments.local_bn,
        algorithm=arguments.algorithm,
    )
    extra = {name: given[name] for name in ("epochs", "images", "image_bytes", "price_per_hour")}
    rows = [plan(devices, job, cluster, **extra) for devices in arguments.devices]
    if arguments.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows]))
        return
    print("| devices | global batch | step ms | images/s | efficiency | s/epoch | hours | GB/s read per node | price |")
    print("| --- " * 9 + "|")
    for row in rows:
        price = "" if row.price is None else f"{row.price:,.0f}"
        print(
            f"| {row.devices:,} | {row.global_batch:,} | {row.step_milliseconds:.1f} | {row.images_per_second:,.0f} | "
            f"{row.efficiency:.1%} | {row.epoch_seconds:,.1f} | {row.training_hours:,.2f} | "
            f"{row.input_gigabytes:.2f} | {price} |"
        )


if __name__ == "__main__":
    main()
