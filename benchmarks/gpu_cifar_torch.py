"""torch's loops over CIFAR-10 for benchmarks/gpu_cifar.py: fed by a DataLoader, or with all images on the device."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu_parts import of_torch
from benchmarks.part_processes import wait_for_turn

# Images a step; of a measurement, seconds after which it stops.
BATCH, MEASURED_SECONDS = 128, 3.0


def torch_peer(arrays: Path, small: bool, *, compiled: bool, resident: bool = False) -> dict[str, Any]:
    """Images/s of torch's loop over epochs of CIFAR-10, from images in memory to updates."""
    import torch

    from benchmarks.torch_twin import TorchResNet
    from input_pipeline.resident import read_arrays

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    sizes, width, batch = ((1,), 8, 32) if small else ((3, 3, 3), 16, BATCH)
    network: Any = TorchResNet("basic", sizes, width=width, num_classes=10, stem="cifar")
    network = network.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4, fused=device == "cuda")
    mean = torch.tensor([123.675, 116.28, 103.53], device=device).view(1, 3, 1, 1)
    std = torch.tensor([58.395, 57.12, 57.375], device=device).view(1, 3, 1, 1)

    def forward(pixels: Any) -> Any:
        with torch.autocast(device, dtype=torch.bfloat16):
            return network(((pixels.float() - mean) / std).contiguous(memory_format=torch.channels_last))

    run = torch.compile(forward, mode="max-autotune") if compiled else forward
    train = read_arrays(arrays, 32).splits["train"]
    images, labels = torch.from_numpy(train.images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(train.labels)
    batches = batches_on_device if resident else batches_of_loader
    warm, seconds = (2, 0.5) if small else (100, MEASURED_SECONDS)
    finish: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None
    entered, done, begun, compile_seconds = time.perf_counter(), 0, 0.0, 0.0
    for pixels, targets in batches(images, labels.long(), batch, device):
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(run(pixels).float(), targets).backward()
        optimizer.step()
        done += 1
        if not compile_seconds:
            finish()
            compile_seconds = time.perf_counter() - entered
            wait_for_turn()
        if not begun and done >= warm:
            finish()
            done, begun = 0, time.perf_counter()
        elif begun and time.perf_counter() - begun > seconds:
            break
    finish()
    took = time.perf_counter() - begun
    return {
        "batch_size": batch,
        "images_per_second": done * batch / took,
        "step_milliseconds": 1e3 * took / done,
        "measured_steps": done,
        "compile_seconds": compile_seconds,
        "workers": 0 if resident else os.cpu_count(),
        **of_torch(),
    }


def batches_of_loader(images: Any, labels: Any, batch: int, device: str) -> Iterator[tuple[Any, Any]]:
    """Epochs of a shuffled DataLoader whose workers, one a core, pad by 4, crop and flip each image."""
    import torch

    class Varied(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[Any, Any]:
            image = torch.nn.functional.pad(images[index], (4, 4, 4, 4))
            top, left, mirrored = torch.randint(0, 9, (3,)).tolist()
            image = image[:, top : top + 32, left : left + 32]
            return image.flip(-1) if mirrored < 4.5 else image, labels[index]

    loader = torch.utils.data.DataLoader(
        Varied(), batch, shuffle=True, drop_last=True, num_workers=os.cpu_count() or 1, persistent_workers=True,
        pin_memory=device == "cuda", prefetch_factor=4,
    )  # fmt: skip
    while True:
        for pixels, targets in loader:
            yield pixels.to(device, non_blocking=True), targets.to(device, non_blocking=True)


def batches_on_device(images: Any, labels: Any, batch: int, device: str) -> Iterator[tuple[Any, Any]]:
    """The same with all images on the device, where each batch is cropped and flipped at once."""
    import torch

    padded, labels = torch.nn.functional.pad(images, (4, 4, 4, 4)).to(device), labels.to(device)
    places = torch.arange(32, device=device)
    while True:
        order = torch.randperm(len(labels), device=device)
        for start in range(0, len(labels) - batch + 1, batch):
            index = order[start : start + batch]
            top, left = torch.randint(0, 9, (2, batch, 1), device=device)
            columns = left + torch.where(torch.rand(batch, 1, device=device) < 0.5, places, 31 - places)
            rows = (top + places)[:, None, :, None]
            channels = torch.arange(3, device=device)[None, :, None, None]
            yield padded[index[:, None, None, None], channels, rows, columns[:, None, None, :]], labels[index]
