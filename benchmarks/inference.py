"""Inference of ResNet-50 at 224 px, float32: ours, and what one would pick instead, interleaved in one run.

    python -m benchmarks.inference [--rounds=9] [--peers=ours,torch_folded,onnxruntime] [--out=FILE]

Claim: one image at a time and 32 at a time, at least as fast as torch with batch norms folded. All peers have the same
weights and answer the same images; before anything is timed their probabilities are held against ours. Each gets
uint8[B, 224, 224, 3] and gives float32[B, 1000]; what it does to the pixels is inside the time, for all alike. A round
asks each peer once, so that a noisy machine disturbs all alike; medians are quoted. Each peer is a process of its own
(benchmarks/processes.py).

Peers: `ours` is what `predict` calls; `unfolded` the same network with its norms; `linen` that on lax' own convolution:
a plain flax ResNet; `torch` and `torch_folded` eager and channels_last, the latter with torch's own folding
(torch.nn.utils.fusion); `torch_compiled` the latter under torch.compile; `onnxruntime` our ONNX export; `keras`
keras.applications.ResNet50 on TensorFlow (its v1 network: 3.86 instead of 4.09 GMAC).

Tried for ours and left out (two cores with AVX-512): Winograd for 3×3 (see convolution_forms): 59 ms for one image
where XLA's forms took 26; im2col on 7 px maps for four and eight images: within the noise; fewer images at a time (see
`resnet.study.inference.best_batch`); with kernels laid out before the call (onednn_prepared), 1×1 convolutions cut by
pixels, so that a map of 7 rows makes two equal halves: 43.2 to 45.4 ms, without it 44.3 to 45.3. One image, alone and
warm, is answered at nearly the rate of 32 (41 and 39 ms an image at best, 2026-11-26), which is that of the
convolutions; after a rest, as here, some ms later, for XLA's threads sleep between calls.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import processes, record

SIZE = 224
Answer = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peers", default="ours,unfolded,linen,torch,torch_folded,torch_compiled,onnxruntime")
    parser.add_argument("--batches", default="1,32", help="images at a time (default: 1,32)")
    parser.add_argument("--out", default="", help="the JSON file (default: benchmarks/results/inference_DEVICE.json)")
    arguments = parser.parse_args()
    sizes = [int(size) for size in arguments.batches.split(",")]
    peers: dict[str, processes.Work] = {}
    left_out: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        expected = Path(folder) / "probabilities.npy"
        np.save(expected, jax_peer("linen")(Network())(images_of(max(sizes))))
        for name in arguments.peers.split(","):
            start = time.perf_counter()
            try:
                peers[name] = processes.start("benchmarks.inference", "peer", name, str(expected), arguments.batches)[1]
            except ImportError as error:
                left_out[name] = f"{error.name} is not installed"
                print(f"{name}: left out, {error.name} is not installed (./run.sh setup bench)")
                continue
            print(f"{name}: compiled and checked after {time.perf_counter() - start:.1f} s", flush=True)
        seconds = measure(peers, sizes, arguments.rounds)
    report(arguments, seconds, left_out)


def made(name: str, expected: str, batches: str) -> tuple[processes.Reply, processes.Work]:
    """A peer's process: nothing to say first; for each number of images, asked for as a word, the seconds it took."""
    probabilities = np.load(expected)
    images = images_of(len(probabilities))
    ask = MAKERS[name](Network())
    for size in map(int, batches.split(",")):
        check(name, ask(images[:size]), probabilities[:size])

    def answer(word: str) -> processes.Reply:
        start = time.perf_counter()
        ask(images[: int(word)])
        return {"seconds": time.perf_counter() - start}

    return {}, answer


def images_of(count: int) -> np.ndarray:
    """uint8[count, 224, 224, 3], the same in every process."""
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


class Network:
    """ResNet-50 with drawn weights and statistics, as each peer wants it."""

    def __init__(self) -> None:
        import jax

        from input_pipeline.contract import contract_by_name
        from input_pipeline.crops import Crop
        from resnet.model.network import ResNet, initialise
        from resnet.model.variants import variant
        from resnet.study.inference import Model
        from resnet.train.meta import Meta

        spec = variant("resnet50").spec
        drawn = jax.device_get(initialise(ResNet(spec), jax.random.key(0), SIZE))
        generator = np.random.default_rng(1)
        statistics = jax.tree.map(
            lambda x: x + generator.uniform(0, 0.1, x.shape).astype(x.dtype), drawn["batch_stats"]
        )
        contract = contract_by_name("torch")
        names = tuple(map(str, range(spec.num_classes)))
        meta = Meta(spec, names, contract, SIZE, contract.resize_shorter)
        crop = Crop("none", SIZE, resize_shorter=contract.resize_shorter)
        self.model = Model(ResNet(spec), {"params": drawn["params"], "batch_stats": statistics}, meta, crop)


def check(name: str, found: np.ndarray, expected: np.ndarray) -> None:
    """Nothing is timed that computes something else. Keras' network has weights of its own."""
    if name != "keras":
        np.testing.assert_allclose(found, expected, atol=1e-4 * expected.max(), err_msg=name)


def jax_peer(kind: str) -> Callable[[Network], Answer]:
    def make(network: Network) -> Answer:
        import jax

        from resnet.study.inference import answer

        model = network.model
        if kind == "ours":
            return model.probabilities
        backend = jax.lax.conv_general_dilated if kind == "linen" else model.network.backend
        function = jax.jit(answer(model.network.clone(backend=backend), model.meta.contract))
        variables = jax.device_put(model.variables)
        return lambda images: jax.device_get(function(variables, images))

    return make


def torch_peer(*, folded: bool = False, compiled: bool = False) -> Callable[[Network], Answer]:
    def make(network: Network) -> Answer:
        import torch

        from benchmarks.torch_twin import TorchResNet
        from resnet.weights import mapping, names

        torch.set_num_threads(os.cpu_count() or 1)
        twin: Any = TorchResNet()
        tensors = mapping.from_variables(network.model.variables, network.model.meta.spec, names.TORCH, has_head=True)
        # Not strict: it lacks the counters of batches, which nothing reads.
        twin.load_state_dict({name: torch.from_numpy(array) for name, array in tensors.items()}, strict=False)
        twin.eval()
        if folded:
            fold_torch(twin)
        twin.to(memory_format=torch.channels_last)
        contract = network.model.meta.contract
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (contract.mean, contract.std))
        forward = torch.compile(twin) if compiled else twin

        def ask(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                # NHWC bytes seen as NCHW are channels_last as they are.
                pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
                return torch.softmax(forward((pixels * contract.scale - mean) / std), 1).numpy()

        return ask

    return make


def fold_torch(module: Any) -> None:
    """Fold every batch norm by torch.nn.utils.fusion; what stood there becomes an identity."""
    import torch
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    pairs = [("0", "1")] if isinstance(module, torch.nn.Sequential) else [(f"conv{n}", f"bn{n}") for n in (1, 2, 3)]
    for convolution, norm in pairs:
        found: list[Any] = [getattr(module, name, None) for name in (convolution, norm)]
        if isinstance(found[0], torch.nn.Conv2d) and isinstance(found[1], torch.nn.BatchNorm2d):
            setattr(module, convolution, fuse_conv_bn_eval(found[0], found[1]))
            setattr(module, norm, torch.nn.Identity())
    for child in module.children():
        fold_torch(child)


def onnxruntime_peer(network: Network) -> Answer:
    import onnxruntime  # noqa: F401

    from resnet.study import export_onnx
    from resnet.study.export_program import make_program

    with tempfile.TemporaryDirectory() as folder:
        export_onnx.write(make_program(network.model, {}), Path(folder))
        return export_onnx.load(Path(folder))


def keras_peer(network: Network) -> Answer:
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import keras

    net = keras.applications.ResNet50(weights=None, input_shape=(SIZE, SIZE, 3))
    return lambda images: net.predict_on_batch(images.astype(np.float32) / 255)


MAKERS: dict[str, Callable[[Network], Answer]] = {
    "ours": jax_peer("ours"),
    "unfolded": jax_peer("unfolded"),
    "linen": jax_peer("linen"),
    "torch": torch_peer(),
    "torch_folded": torch_peer(folded=True),
    "torch_compiled": torch_peer(folded=True, compiled=True),
    "onnxruntime": onnxruntime_peer,
    "keras": keras_peer,
}


def measure(peers: dict[str, processes.Work], sizes: list[int], rounds: int) -> dict[str, dict[int, list[float]]]:
    """Seconds of each answer; of single images several a round, because they are short."""
    seconds: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in peers}
    for _ in range(rounds):
        for size in sizes:
            for name, ask in peers.items():
                # Once untimed: whoever ran before has filled the caches, and torch's threads spin on for a while.
                ask(str(size))
                for _ in range(max(1, 8 // size)):
                    seconds[name][size].append(ask(str(size))["seconds"])
    return seconds


def report(arguments: argparse.Namespace, seconds: dict[str, dict[int, list[float]]], left_out: dict[str, str]) -> None:
    """Print the table and write the record."""
    medians = {name: {size: statistics.median(taken) for size, taken in of.items()} for name, of in seconds.items()}
    print(
        f"\nResNet-50, {SIZE} px, float32, medians of {arguments.rounds} rounds (ratio: ours is this many times as "
        "fast)"
    )
    sizes = list(next(iter(medians.values())))
    print(" " * 16 + "".join(f"{f'batch {size}':>26}" for size in sizes))
    for name, of in medians.items():
        cells = []
        for size, taken in of.items():
            ratio = taken / medians["ours"][size] if "ours" in medians else float("nan")
            cells.append(f"{taken * 1e3:9.1f} ms {size / taken:6.1f}/s {ratio:5.2f}")
        print(f"{name:16}" + "".join(f"{cell:>26}" for cell in cells))
    record.write(
        "inference",
        {
            "image_size": SIZE,
            "rounds": arguments.rounds,
            "left_out": left_out,
            "milliseconds": {name: {size: taken * 1e3 for size, taken in of.items()} for name, of in medians.items()},
            "images_per_second": {
                name: {size: size / taken for size, taken in of.items()} for name, of in medians.items()
            },
            "ours_over": {
                name: {size: taken / medians["ours"][size] for size, taken in of.items()}
                for name, of in medians.items()
                if "ours" in medians
            },
            "seconds": seconds,
        },
        arguments.out,
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        processes.serve(lambda: made(*sys.argv[2:]), keep_memory=sys.argv[2] == "ours")
    else:
        main()
