"""What the records of benchmarks/results say of us beside others, one line a peer, with the bar where one is set.

The bars are issue 8's: what we are to reach beside each peer. Of records of one benchmark, setting and machine the
newest counts. A comparison that somebody is to make and nobody has made yet stands there as 'not measured yet'.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks import gpu
from benchmarks.record import Record

NOT_YET = "not measured yet"
TITLES = {
    "linen": "plain flax",
    "torch": "torch, eager",
    "torch_compiled": "torch.compile",
    "torch_graphs": "torch.compile(reduce-overhead)",
    "torch_folded": "torch, BN folded",
    "torch_folded_compiled": "torch.compile, BN folded",
    "keras": "Keras on TensorFlow",
    "onnxruntime": "onnxruntime, our export",
    "unfolded": "ours, BN not folded",
    "torch_loader": "torch's DataLoader",
    "tf_data": "plain tf.data",
    "decode": "bare decoding",
    "synthetic": "a batch that is there already",
}
NETWORKS = {"resnet50": "ResNet-50", "cifar_resnet20": "CIFAR ResNet-20", "cifar_resnet110": "CIFAR ResNet-110"}


@dataclass(frozen=True)
class Bar:
    """What ours / theirs is to be: at least `ratio`, or at most where less is better."""

    ratio: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.ratio:g}"

    def met(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio


@dataclass(frozen=True)
class Comparison:
    """One figure of ours beside a peer's, both in `unit`; None where it is missing: `note` says why."""

    what: str
    unit: str
    ours: float | None
    peer: str
    theirs: float | None
    bar: Bar | None = None
    note: str = ""
    date: str = ""
    device: str = ""

    @property
    def ratio(self) -> float | None:
        return self.ours / self.theirs if self.ours is not None and self.theirs else None

    @property
    def verdict(self) -> str:
        """The bar and whether it is met: '≥ 4, missed'."""
        if self.bar is None:
            return ""
        return str(self.bar) if self.ratio is None else f"{self.bar}, {'met' if self.bar.met(self.ratio) else 'missed'}"


# (network, side of the images) -> peer -> bar, of the train and the evaluation step.
STEP_BARS: dict[tuple[str, int], dict[str, Bar]] = {
    ("resnet50", 64): {"torch": Bar(1), "torch_compiled": Bar(1), "linen": Bar(4), "keras": Bar(2.5)},
    ("resnet50", 224): {"torch": Bar(1), "torch_compiled": Bar(1), "linen": Bar(4), "keras": Bar(1.5)},
    ("cifar_resnet20", 32): {"torch": Bar(1), "torch_compiled": Bar(1)},
}
COMPILE_BAR = Bar(0.5, at_most=True)
# Seconds in which a network's train step is to be compiled, whatever others take.
COMPILE_MOST_SECONDS = {"cifar_resnet110": 20.0}
INFERENCE_BARS = {"torch_folded": Bar(1)}
# Set for photographs; other data get none.
FEED_BARS = {"torch": Bar(2.4), "tf_data": Bar(2.5), "keras": Bar(3), "decode": Bar(0.7)}
PHOTOGRAPHS = ("flower_photos", "flower_mosaics")
TRAINED_BAR = Bar(0.95)
# Set for max-autotune; what takes a minute to compile is to be beaten by as much.
GPU_BARS = {name: Bar(1.3) for name in ("torch_compiled", "torch_graphs", "torch_compiled_eval", "torch_graphs_eval")}
# Training of ResNet-50, images/s of one H100: who published it, and the bar beside it.
PUBLISHED = (
    ("PyTorch, published by Lambda for one H100", 2790.0, Bar(1)),
    ("MLPerf v4.0, each of 8 H100, fp16 (aimed at)", 7162.0, Bar(1)),
)
MEMORY_BAR = Bar(1, at_most=True)
CIFAR_BAR = Bar(10)
_ON_H100 = "ResNet-50, 224 px, bfloat16"
# (benchmark, part that is missing) -> what it is to show, the peer, the bar.
NOT_MEASURED = {
    ("gpu", "torch_compiled"): (f"{_ON_H100}, train step on an H100", "torch.compile(max-autotune)", Bar(1.3)),
    ("gpu", "torch_compiled_eval"): (
        f"{_ON_H100}, inference on an H100, batch 1 and 256",
        "torch.compile(max-autotune)",
        Bar(1.3),
    ),
    ("gpu", "torch"): (f"{_ON_H100}, peak memory at batch 256", "torch", MEMORY_BAR),
    ("gpu", "ours_resident"): (f"{_ON_H100}, training on an H100, resident", "a batch that is there", TRAINED_BAR),
    ("gpu_cifar", "torch"): ("CIFAR ResNet-20, batch 128, training on a GPU", "torch with its DataLoader", CIFAR_BAR),
}


def newest(records: Iterable[Record]) -> list[Record]:
    """Of records of the same benchmark, setting and kind of machine the last one made."""
    found: dict[tuple[Any, ...], Record] = {}
    for record in sorted(records, key=lambda record: (record.date, record.file.name)):
        figures = record.figures
        setting = (figures.get("model", "resnet50"), figures.get("image_size"), figures.get("data"))
        found[record.benchmark, record.machine, *setting] = record
    return sorted(found.values(), key=lambda record: (record.benchmark, record.file.name))


def compared(records: Iterable[Record]) -> list[Comparison]:
    """All comparisons in records that hold any, then those that are not made yet."""
    chosen = newest(records)
    rows = [row for benchmark, of in OF.items() for each in chosen if each.benchmark == benchmark for row in of(each)]
    parts = {
        (record.benchmark, row.get("part"))
        for record in chosen
        if not record.figures.get("small")
        for row in record.figures.get("rows", ())
        if isinstance(row, dict) and "images_per_second" in row
    }
    missing = (each for part, each in NOT_MEASURED.items() if part not in parts)
    return rows + [Comparison(what, "images/s", None, peer, None, bar, NOT_YET) for what, peer, bar in missing]


def title(name: str) -> str:
    return TITLES.get(name, name)


def feed_title(name: str) -> str:
    """A feed's: torch's is its DataLoader."""
    return title("torch_loader" if name == "torch" else name)


def left_out(record: Record, what: str, unit: str, ours: float | None) -> Iterator[Comparison]:
    """A line for each peer that did not take part."""
    for peer, reason in record.figures.get("left_out", {}).items():
        yield Comparison(what, unit, ours, title(peer), None, None, reason, record.date, record.device)


def step(record: Record) -> Iterator[Comparison]:
    figures = record.figures
    model, size = figures.get("model", "resnet50"), figures["image_size"]
    bars, where = STEP_BARS.get((model, size), {}), (record.date, record.device)
    rates, compiled = figures["images_per_second"], figures.get("compile_seconds", {})
    for kind, word in (("train", "train step"), ("eval", "evaluation step")):
        what = f"{NETWORKS.get(model, model)}, {size} px, batch {figures['batch_size']}, {word}"
        ours = rates.get("ours", {}).get(kind)
        for peer, rate in rates.items():
            if peer != "ours":
                yield Comparison(what, "images/s", ours, title(peer), rate[kind], bars.get(peer), "", *where)
        if ours is not None:
            yield from left_out(record, what, "images/s", ours)
    what = f"{NETWORKS.get(model, model)}, {size} px, train step compiled"
    ours = compiled.get("ours", {}).get("train", {}).get("wall")
    if ours is not None and "linen" in compiled:
        theirs = compiled["linen"]["train"]["wall"]
        yield Comparison(what, "s", ours, title("linen"), theirs, COMPILE_BAR, "", *where)
    if ours is not None and model in COMPILE_MOST_SECONDS:
        yield Comparison(what, "s", ours, "the bar", COMPILE_MOST_SECONDS[model], Bar(1, at_most=True), "", *where)


def inference(record: Record) -> Iterator[Comparison]:
    figures = record.figures
    rates = figures["images_per_second"]
    for batch, ours in rates.get("ours", {}).items():
        what = f"ResNet-50, {figures['image_size']} px, inference, batch {batch}"
        for peer, of in rates.items():
            if peer != "ours":
                bar, name = INFERENCE_BARS.get(peer), "torch_folded_compiled" if peer == "torch_compiled" else peer
                yield Comparison(what, "images/s", ours, title(name), of[batch], bar, "", record.date, record.device)
        yield from left_out(record, what, "images/s", ours)


def feed(record: Record) -> Iterator[Comparison]:
    figures, where = record.figures, (record.date, record.device)
    bars = FEED_BARS if figures["data"] in PHOTOGRAPHS else {}
    data = f"{figures['data']} ({figures['mean_width']:.0f}×{figures['mean_height']:.0f} px)"
    fed, trained = figures["fed_images_per_second"], figures["trained_images_per_second"]
    what = f"feed, {data} at {figures['image_size']} px, stream"
    for peer, rate in fed.items():
        if peer not in ("stream", "resident") and "stream" in fed:
            yield Comparison(what, "images/s", fed["stream"], feed_title(peer), rate, bars.get(peer), "", *where)
    if "stream" in fed:
        yield from left_out(record, what, "images/s", fed["stream"])
    for name in ("stream", "resident"):
        if name in trained:
            what = f"training {figures['model']}, {data} at {figures['image_size']} px, {name}"
            peer, theirs = title("synthetic"), trained["synthetic"]
            yield Comparison(what, "images/s", trained[name], peer, theirs, TRAINED_BAR, "", *where)


def probe_keras(record: Record) -> Iterator[Comparison]:
    figures = record.figures
    what = f"probe, {figures['images']['train']} images at {figures['image_size']} px, {figures['epochs']} epochs"
    median = figures["median"]
    yield Comparison(what, "s", median["ours"], title("keras"), median["keras"], None, "", record.date, record.device)


def gpu_parts(record: Record) -> Iterator[Comparison]:
    """Of benchmarks/gpu.py: the train step at its best batch, the shares of the bounds, memory, inference."""
    figures, where = record.figures, (record.date, record.device)
    if figures.get("small"):
        return
    rows = [row for row in figures["rows"] if "images_per_second" in row]
    ceilings = next((row for row in figures["rows"] if "copy_bytes_per_second" in row), None)
    best = lambda *parts: max(  # noqa: E731
        (row for row in rows if row["part"] in parts), key=lambda row: row["images_per_second"], default=None
    )
    ours = best("ours", "ours_scan")
    if ours is not None:
        what, rate = f"ResNet-50, 224 px, bfloat16, train step, batch {ours['batch_size']}", ours["images_per_second"]
        what = noted(what, ours)
        for part in ("torch_compiled", "torch_graphs", "torch"):
            if (peer := best(part)) is not None:
                name = f"{title(part)}, batch {peer['batch_size']}"
                yield Comparison(
                    what, "images/s", rate, name, peer["images_per_second"], GPU_BARS.get(part), "", *where
                )
        for name, published, bar in PUBLISHED if "H100" in record.device else ():
            yield Comparison(what, "images/s", rate, name, published, bar, "", *where)
        for name, bound in gpu.bounds(ceilings).items() if ceilings else ():
            yield Comparison(what, "images/s", rate, f"bound: {name}", bound, None, "", *where)
    of = {(row["part"], row["batch_size"]): row for row in rows}
    for batch, part in itertools.product((1, 256), ("torch_compiled", "torch_graphs")):
        mine, peer = of.get(("ours_eval", batch)), of.get((f"{part}_eval", batch))
        if mine and peer:
            what = noted(f"ResNet-50, 224 px, bfloat16, inference, batch {batch}", mine)
            rates, bar = (mine["images_per_second"], peer["images_per_second"]), GPU_BARS[f"{part}_eval"]
            yield Comparison(what, "images/s", rates[0], title(part), rates[1], bar, "", *where)
    fed, there = of.get(("ours_resident", 256)), of.get(("ours", 256))
    if fed and there:
        what, peer = "ResNet-50, 224 px, bfloat16, training, batch 256, resident", title("synthetic")
        rates = fed["images_per_second"], there["images_per_second"]
        yield Comparison(what, "images/s", rates[0], peer, rates[1], TRAINED_BAR, "", *where)
    for part in ("torch_compiled", "torch_graphs", "torch"):
        mine, peer = of.get(("ours", 256)), of.get((part, 256))
        if mine and peer and mine.get("peak_bytes") and peer.get("peak_bytes"):
            what, sizes = (
                "peak memory of the train step, batch 256",
                (mine["peak_bytes"] / 1e9, peer["peak_bytes"] / 1e9),
            )
            yield Comparison(what, "GB", sizes[0], title(part), sizes[1], MEMORY_BAR, "", *where)


def noted(what: str, row: dict[str, Any]) -> str:
    """`what`, with what a row was measured with that the code does not do today, where the row says so."""
    return f"{what}, {row['with']}" if "with" in row else what


def gpu_cifar(record: Record) -> Iterator[Comparison]:
    """Of benchmarks/gpu_cifar.py: ours beside torch's loops over the same images."""
    rows = {row["part"]: row for row in record.figures["rows"] if "images_per_second" in row}
    if record.figures.get("small") or "ours" not in rows:
        return
    what, rate = "CIFAR ResNet-20, batch 128, bfloat16, training", rows["ours"]["images_per_second"]
    what = noted(what, rows["ours"])
    peers = {"torch": "torch with its DataLoader", "torch_compiled": "torch.compile with a DataLoader"}
    for part, peer in peers.items():
        if part in rows:
            theirs = rows[part]["images_per_second"]
            yield Comparison(what, "images/s", rate, peer, theirs, CIFAR_BAR, "", record.date, record.device)


# In the order of the table.
OF: dict[str, Callable[[Record], Iterator[Comparison]]] = {
    "step": step,
    "inference": inference,
    "feed": feed,
    "probe_keras": probe_keras,
    "gpu": gpu_parts,
    "gpu_cifar": gpu_cifar,
}
