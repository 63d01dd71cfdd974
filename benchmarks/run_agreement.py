"""In what two runs differ: their figures and the parameters and statistics that they end with."""

from pathlib import Path

import numpy as np

# What a clock or a neighbour decides.
CLOCK = ("images_per_second", "data_wait", "device_memory")


def differences(one: Path, other: Path) -> list[str]:
    """What differs between two runs' workdirs, in words; [] where nothing does, to the last bit."""
    # Here, not above: it imports jax.
    import jax

    from resnet.train.checkpoints import load
    from resnet.train.writers import read_metrics

    mine, theirs = (
        [{key: value for key, value in line.items() if key not in CLOCK} for line in read_metrics(run)]
        for run in (one, other)
    )
    found = []
    if mine != theirs:
        pairs = zip(mine, theirs, strict=False)
        first = next((left["step"] for left, right in pairs if left != right), None)
        found.append(f"figures from step {first} on" if first is not None else "the number of lines")
    apart = 0.0
    (variables, meta), (others, meta_of_other) = load(last_step(one)), load(last_step(other))
    if meta.step != meta_of_other.step:
        return [*found, f"steps {meta.step} and {meta_of_other.step}"]
    for left, right in zip(jax.tree.leaves(variables), jax.tree.leaves(others), strict=True):
        left, right = np.asarray(left), np.asarray(right)
        if not np.array_equal(left, right, equal_nan=True):
            apart = max(apart, float(np.abs(left - right).max() / max(np.abs(left).max(), 1e-12)))
    if apart:
        found.append(f"parameters by up to {apart:.1e} of a leaf's largest")
    return found


def last_step(workdir: Path) -> Path:
    """The folder of a run's newest checkpoint."""
    folders = [folder for folder in (workdir / "checkpoints").iterdir() if folder.name.isdigit()]
    return max(folders, key=lambda folder: int(folder.name))
