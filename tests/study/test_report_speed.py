"""How fast a run was: peaks of devices, and what of a step is counted."""

import html
from pathlib import Path

import pytest

from configs.default import get_config
from resnet.study.report_page import page
from resnet.study.report_speed import peak_flops, speed_of
from resnet.study.run_record import RunRecord, plain
from resnet.train.configuration import flatten


def a_run() -> RunRecord:
    """One that is under way, in bfloat16 on an H100."""
    config = {key: plain(value) for key, value in flatten(get_config()).items()}
    config |= {"model.name": "cifar_resnet20", "data.image_size": 32, "run.dtype": "bfloat16"}
    line = {"kind": "train", "epoch": 1.0, "step": 1, "loss": 1.0, "top1": 0.5, "lr": 0.1, "images_per_second": 9.0}
    device = {"device": "NVIDIA H100 80GB HBM3", "devices": 1}
    return RunRecord(Path("run"), config, device, ("a", "b"), [line, {**line, "step": 2}], None)


@pytest.mark.parametrize(
    ("device", "dtype", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 9.895e14),
        ("NVIDIA H100 PCIe", "bfloat16", 7.56e14),
        ("NVIDIA H100 NVL", "bfloat16", 8.35e14),
        ("NVIDIA H200", "bfloat16", 9.895e14),
        ("NVIDIA H200 NVL", "bfloat16", 8.35e14),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 3.12e14),
        ("NVIDIA A100-SXM4-40GB", "float32", None),
        ("NVIDIA L40", "bfloat16", None),
        ("TPU v6e", "bfloat16", 9.18e14),
        ("TPU v6 lite", "bfloat16", 9.18e14),
        ("TPU v5", "bfloat16", 4.59e14),
        ("TPU v5 lite", "bfloat16", 1.97e14),
        ("TPU v4 lite", "bfloat16", 1.38e14),
        ("TPU v4", "bfloat16", 2.75e14),
        ("cpu", "bfloat16", None),
    ],
)
def test_peaks_are_of_the_very_device(device, dtype, peak):
    record = a_run()
    record.provenance["device"], record.config["run.dtype"] = device, dtype
    assert peak_flops(record) == peak


@pytest.mark.parametrize(
    ("config", "flops", "activations", "note"),
    [
        ({}, True, 1, ""),
        ({"optim.accumulation": 2}, True, 2, ""),
        ({"run.remat": "block"}, True, 0, "run.remat=block"),
        ({"transfer.mode": "probe"}, False, 0, "a probe"),
        ({"transfer.mode": "finetune", "transfer.unfreeze": ["layer4@1"]}, False, 0, "transfer.unfreeze"),
    ],
)
def test_what_a_step_does_not_do_is_not_counted(config, flops, activations, note):
    record = a_run()
    whole = record.counts.activation_bytes(record.config["data.batch_size"], "bfloat16")
    record.config.update(config)
    speed = speed_of(record)
    assert (speed.training_flops is not None, speed.mfu is not None) == (flops, flops)
    assert speed.activation_bytes == (whole // activations if activations else None)
    assert speed.parameters == record.counts.parameters
    assert note in " ".join(speed.notes)
    assert bool(note) == bool(speed.notes)
    text = page(record)
    assert all(html.escape(each) in text for each in speed.notes)
    assert "No utilisation: the peak" not in text


def test_a_single_line_which_includes_compilation_gives_no_rate():
    record = a_run()
    record.lines[0]["images_per_second"], record.lines[1]["images_per_second"] = 1.25, 80.5
    assert speed_of(record).images_per_second == 80.5
    text = page(record)
    assert "images per second, median" in text
    assert "Training speed" in text
    del record.lines[1]
    speed = speed_of(record)
    assert (speed.images_per_second, speed.slowest, speed.fastest, speed.data_wait, speed.mfu) == (None,) * 5
    assert speed.parameters == record.counts.parameters
    text = page(record)
    assert "only one training line, which includes compilation" in text
    for absent in ("images per second, median", "5th to 95th", "waiting for data", "Training speed", "No utilisation"):
        assert absent not in text


def test_activations_of_several_devices_are_those_of_all():
    record = a_run()
    assert "on all devices together" not in page(record)
    record.provenance["devices"] = 8
    assert "kept by a step, on all devices together (counted)" in page(record)
