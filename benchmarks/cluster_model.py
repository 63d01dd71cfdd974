"""A model of data parallelism: how long a step takes on N devices, held against published runs.

    step = batch / images_per_second + max(last bucket, all_reduce - overlap · backward) + statistics

with backward = 2/3 of the step (twice the forward's arithmetic). Gradients are summed over the devices of a node, then
over the nodes, then spread again. A ring over n members sends 2 (n-1)/n of the bytes in 2 (n-1) messages (Patarasuk and
Yuan 2009); a pair of trees sends 2 of the bytes in 2 log2 n messages (Sanders et al. 2009). The faster one is taken
unless the job says which. Under sync-BN every BN layer sends two messages that nothing hides, one forward and one
backward, each of two numbers a channel: what the compiled step holds (tests/train/test_devices.py). What the model
leaves out: stragglers, slow input, checkpoints, evaluation, congestion. So it says what the network allows at best.
"""

import dataclasses
import math

IMAGENET_IMAGES = 1_281_167
RESNET50_PARAMETERS = 25_557_032
# ResNet-50's layers of batch normalisation and their channels.
RESNET50_NORMS, RESNET50_CHANNELS = 53, 26_560
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
    sync_bn: whether BN statistics are summed over all devices too. norms: layers of BN. channels: theirs in
    all.
    """

    images_per_second: float
    batch_per_device: int
    parameters: int = RESNET50_PARAMETERS
    gradient_bytes: float = 4.0
    overlap: float = 0.9
    buckets: int = 10
    sync_bn: bool = True
    norms: int = RESNET50_NORMS
    channels: int = RESNET50_CHANNELS
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
    return alone + max(last, gradients - hidden) + statistics_seconds(devices, job, cluster)


def statistics_seconds(devices: int, job: Job, cluster: Cluster) -> float:
    """Seconds for sync-BN's messages: per layer one forward and one backward, of two float32 a channel."""
    if not (job.sync_bn and job.norms):
        return 0.0
    return 2 * job.norms * all_reduce(devices, 8 * job.channels / job.norms, cluster, job.algorithm)


@dataclasses.dataclass(frozen=True)
class Row:
    """The plan for one number of devices. input_gigabytes: read per second by each node.

    epoch_price, price: of an epoch and of the training, in the currency of price_per_hour.
    """

    devices: int
    global_batch: int
    step_milliseconds: float
    images_per_second: float
    efficiency: float
    epoch_seconds: float
    training_hours: float
    input_gigabytes: float
    epoch_price: float | None
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
    price = None if price_per_hour is None else hours * devices * price_per_hour
    return Row(
        devices=devices,
        global_batch=devices * job.batch_per_device,
        step_milliseconds=1e3 * seconds,
        images_per_second=rate,
        efficiency=rate / (devices * job.images_per_second),
        epoch_seconds=images / rate,
        training_hours=hours,
        input_gigabytes=rate / nodes * image_bytes / 1e9,
        epoch_price=None if price is None else price / epochs,
        price=price,
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
    """The model beside what others report.

    Goyal et al. 2017: 8 P100 to a server, 50 Gbit/s Ethernet, batch 32 a device, BN per device; 29 hours for 90 epochs
    on 8, one hour on 256, about 90 % efficiency between them. The 29 hours give the speed (138 images/s a device), the
    rest is predicted. Akiba et al. 2017: 1,024 P100, 8 to a server, InfiniBand FDR, batch 32 a device, 90 epochs in 15
    minutes; predicted from the same speed of a P100, though their program was another. Latencies and the bandwidth
    within a server are our guesses for that hardware; they move the results by under 1 %.
    """
    ethernet = Cluster(8, link_bandwidth=20.0, network_bandwidth=6.25, link_latency=10.0, network_latency=50.0)
    infiniband = dataclasses.replace(ethernet, network_bandwidth=7.0, network_latency=10.0)
    p100 = Job(90 * IMAGENET_IMAGES / (29 * 3600) / 8, batch_per_device=32, sync_bn=False)
    small, large = plan(8, p100, ethernet), plan(256, p100, ethernet)
    huge = plan(1024, p100, infiniband)
    mlperf = plan(8, Job(7162.0, 408, gradient_bytes=2.0, sync_bn=False), Cluster(), epochs=36.0)
    efficiency = large.images_per_second / small.images_per_second / 32
    return [
        Published("Goyal et al. 2017, 8 to 256 P100", "efficiency", 0.90, efficiency),
        Published("Goyal et al. 2017, 256 P100, 90 epochs", "hours", 1.0, large.training_hours),
        Published("Akiba et al. 2017, 1,024 P100, 90 epochs", "minutes", 15.0, 60 * huge.training_hours),
        # The speed is that of eight together: no communication is left to predict, the time is.
        Published("MLPerf v4.0, 8 H100, 36 epochs", "minutes", 13.3, 60 * mlperf.training_hours),
    ]
