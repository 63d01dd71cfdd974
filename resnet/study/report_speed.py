"""How fast a run was, and how much of its accelerator it used."""

import dataclasses
import re

import numpy as np

from input_pipeline.errors import InputError, printable
from resnet.model.errors import SpecError
from resnet.study.run_record import RunRecord

# Dense bfloat16 peak in FLOP/s of one device, by a part of what jax calls its kind; the makers' data sheets (NVIDIA's
# give the sparse one, which is twice that). The more particular name stands first.
PEAKS = {
    "GB200": 2.5e15,
    "B200": 2.25e15,
    "H200 NVL": 8.35e14,
    "H200": 9.895e14,
    "H100 NVL": 8.35e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.895e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
    "TPU v6e": 9.18e14,
    "TPU v6 lite": 9.18e14,
    "TPU v5p": 4.59e14,
    "TPU v5e": 1.97e14,
    "TPU v5 lite": 1.97e14,
    # jax' word for the v5p; the more particular ones stand above.
    "TPU v5": 4.59e14,
    "TPU v4 lite": 1.38e14,
    "TPU v4": 2.75e14,
    "TPU v3": 6.15e13,
}
ONE_LINE = "No images per second: the run has only one training line, which includes compilation."


@dataclasses.dataclass(frozen=True)
class Speed:
    """Figures of the training lines, the first left out (it holds the compilation).

    images_per_second: the median; slowest, fastest: the 5th and 95th percentile. data_wait: mean share of the time in
    which the device waited for images. None of the four where there is but one line. training_flops: of one image; None
    where the network cannot be counted or a step does less than what is counted. activation_bytes: what a step keeps
    from forward to backward at a time, on all devices together, counted, not measured; None likewise. mfu: model FLOPs
    over the devices' peak, None where the peak is not known, the run was not in bfloat16, or the FLOPs or the rate are
    not known. device_memory: most bytes in use on a device, measured; None where it does not tell. notes: why what is
    None for the run's own sake is.
    """

    images_per_second: float | None
    slowest: float | None
    fastest: float | None
    data_wait: float | None
    training_flops: int | None
    multiply_adds: int | None
    parameters: int | None
    activation_bytes: int | None
    mfu: float | None
    device_memory: int | None
    notes: tuple[str, ...]


def speed_of(run: RunRecord) -> Speed | None:
    """The run's speed; None before its first training line."""
    lines = [line for line in run.of_kind("train") if line.get("images_per_second")]
    if not lines:
        return None
    steady = lines[1:]
    rates = np.array([line["images_per_second"] for line in steady], np.float64)
    waits = [line["data_wait"] for line in steady if line.get("data_wait") is not None]
    slowest = median = fastest = None
    if steady:
        slowest, median, fastest = (float(rate) for rate in np.percentile(rates, (5, 50, 95)))
    partial, again = learns_in_part(run), computes_again(run)
    flops = parameters = multiply_adds = memory = None
    try:
        counts = run.counts
        parameters, multiply_adds = counts.parameters, counts.multiply_adds
        flops = None if partial else counts.training_flops
        # The parts of an accumulated batch run one after the other.
        at_once = run.config["data.batch_size"] // run.config["optim.accumulation"]
        memory = None if partial or again else counts.activation_bytes(at_once, run.config["run.dtype"])
    except (InputError, SpecError, KeyError):  # A network of another version's making.
        pass
    peak = peak_flops(run)
    return Speed(
        images_per_second=median,
        slowest=slowest,
        fastest=fastest,
        data_wait=float(np.mean(waits)) if waits else None,
        training_flops=flops,
        multiply_adds=multiply_adds,
        parameters=parameters,
        activation_bytes=memory,
        mfu=median * flops / peak if median and flops and peak else None,
        device_memory=max((int(line["device_memory"]) for line in lines if line.get("device_memory")), default=None),
        notes=tuple(filter(None, ("" if steady else ONE_LINE, partial, again))),
    )


def learns_in_part(run: RunRecord) -> str:
    """Why a training step of the run is not that of the whole network, which is counted; '' where it is."""
    if run.config["transfer.mode"] == "probe":
        what = "a probe trains the head alone, on features that are computed once"
    elif run.config["transfer.unfreeze"]:
        what = "parts of the network were frozen (transfer.unfreeze)"
    else:
        return ""
    return f"No training FLOPs, utilisation or activations: {what}; counts are for networks that learn as a whole."


def computes_again(run: RunRecord) -> str:
    """Why a training step of the run keeps less than what is counted; '' where it does not."""
    remat = run.config["run.remat"]
    if remat == "none":
        return ""
    return f"No activations: with run.remat={printable(str(remat))} a step computes them again instead of keeping them."


def peak_flops(run: RunRecord) -> float | None:
    """The bfloat16 peak of all the run's devices together; None where it is not known or another dtype ran."""
    kind = str(run.provenance.get("device", ""))
    if run.config.get("run.dtype") != "bfloat16":
        return None
    one = next((peak for name, peak in PEAKS.items() if re.search(rf"\b{name}\b", kind)), None)
    return one * int(run.provenance.get("devices", 1)) if one else None
