"""Checkpoints: orbax behind one door. A step's folder holds `variables` (what evaluation uses), `training` (what only
the next step needs) and `meta` (JSON: network, classes, preprocessing contract, configuration, progress).
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from input_pipeline.contract import Contract
from input_pipeline.errors import InputError, printable
from resnet.model.errors import SpecError
from resnet.model.network import ResNet, initialise
from resnet.model.spec import ResNetSpec
from resnet.train import stored_meta
from resnet.train.state import TrainState, Variables

FOLDER = "checkpoints"
FORMAT = 1
# What a disk says when it does not take a file; in orbax' errors it stands behind paths of any length.
DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)


@dataclasses.dataclass(frozen=True)
class Meta:
    """What a checkpoint says of itself.

    spec: the network. class_names: one per output. contract: how pixels become inputs. image_size, resize_shorter: the
    evaluation crop. step: steps done. config: the flat configuration ({} for converted weights). progress: the loop's
    notes (best step and so on). fingerprint: the dataset's ('' for converted weights).
    """

    spec: ResNetSpec
    class_names: tuple[str, ...]
    contract: Contract
    image_size: int
    resize_shorter: float
    step: int = 0
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    progress: dict[str, Any] = dataclasses.field(default_factory=dict)
    fingerprint: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` is the inverse."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"spec": dataclasses.asdict(self.spec), "contract": self.contract.to_json(), "format": FORMAT}
        return fields

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> "Meta":
        """The inverse of `to_json`. Raises InputError for another format and for anything that no `to_json` writes."""
        if not isinstance(stored, dict) or stored.get("format") != FORMAT:
            raise InputError(
                "the checkpoint was written in another format than this version reads; use the version that wrote it"
            )
        fields = stored_meta.check({name: value for name, value in stored.items() if name != "format"})
        try:
            spec = ResNetSpec(**fields["spec"] | {"stage_sizes": tuple(fields["spec"]["stage_sizes"])})
        except (TypeError, SpecError) as error:  # TypeError: a field that it has not.
            raise stored_meta.fault(printable(str(error)[:200])) from error
        contract = Contract.from_json(fields["contract"])
        return cls(**fields | {"spec": spec, "contract": contract, "class_names": tuple(fields["class_names"])})


class Checkpoints:
    """The checkpoints of one run under WORKDIR/checkpoints: the newest `keep` and the best one stay. A context manager.

    Saving is asynchronous: `save` returns when the state is copied, `wait` when it is on disk. `sign` is +1 where a
    higher metric is better, -1 where a lower one is.
    """

    def __init__(self, workdir: Path, *, keep: int, sign: int) -> None:
        best = preservation.BestN(
            get_metric_fn=lambda metrics: sign * metrics["best"], n=1, keep_checkpoints_without_metrics=False
        )
        policy = preservation.AnyPreservationPolicy([preservation.LatestN(keep), best])
        options = ocp.CheckpointManagerOptions(preservation_policy=policy, create=True)
        self._manager = ocp.CheckpointManager((workdir / FOLDER).absolute(), options=options)

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, meta: Meta, metric: float | None) -> None:
        """Save under `meta.step`; `metric` is the validation figure that decides what is best (None: not evaluated)."""
        variables, training = divide(state)
        arguments = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            training=ocp.args.StandardSave(training),
            meta=ocp.args.JsonSave(meta.to_json()),
        )
        metrics = None if metric is None else {"best": metric}
        if meta.step in self._manager.all_steps():
            # A signal during the evaluation of this step had it saved without a metric; orbax does not overwrite.
            self.wait()
            self._manager.delete(meta.step)
        with self._writing():
            self._manager.save(meta.step, args=arguments, metrics=metrics, force=True)

    def restore(self, step: int, like: TrainState, sharding: jax.sharding.Sharding) -> tuple[TrainState, Meta]:
        """The state and meta of a step; `like` gives structure, shapes and dtypes, all arrays come with `sharding`.

        Raises InputError that names the step's folder when it cannot be read.
        """
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), like)
        variables, training = divide(abstract)
        arguments = ocp.args.Composite(
            variables=ocp.args.StandardRestore(variables),
            training=ocp.args.StandardRestore(training),
            meta=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=arguments)
            meta = Meta.from_json(restored["meta"])
        except Exception as error:  # Any: for a torn array orbax raises a bare Exception.
            folder = self._manager.directory / str(step)
            raise InputError(
                f"{printable(str(folder))}: the checkpoint cannot be read ({reason(error)}); remove this folder to "
                "go on from the checkpoint before it"
            ) from error
        return unite(restored["variables"], restored["training"]), meta

    def wait(self) -> None:
        """Return when everything saved is on disk. Raises InputError for what could not be written meanwhile."""
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the folder. Raises as `wait` does."""
        with self._writing():
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        # The first error is the one to tell: on a full disk, closing fails again.
        with contextlib.suppress(*((InputError,) if error else ())):
            self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what orbax raises (in `save` or, for an earlier save, in any later call) into an InputError."""
        try:
            yield
        except (OSError, ValueError) as error:
            raise InputError(
                f"{printable(str(self._manager.directory))}: a checkpoint could not be written ({reason(error)}); mend "
                "that, and the same command goes on from the last whole one"
            ) from error


def divide(state: TrainState) -> tuple[Variables, dict[str, Any]]:
    """(variables that evaluation uses, everything else): together exactly the state, nothing twice."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    newest = {"params": fields.pop("params"), "batch_stats": fields.pop("batch_stats")}
    averages = fields.pop("ema")
    return (averages, fields | {"newest": newest}) if averages else (newest, fields)


def unite(variables: Variables, training: dict[str, Any]) -> TrainState:
    """The inverse of `divide`."""
    rest = dict(training)
    newest = rest.pop("newest", None)
    averages = variables if newest else {}
    return TrainState(**(newest or variables), ema=averages, **rest)


def load(checkpoint: str | Path) -> tuple[Variables, Meta]:
    """Variables and meta of a run's workdir (its best checkpoint), one step's folder, or converted weights.

    Raises InputError that names the folder when it is none of these or cannot be read.
    """
    folder = find_step(Path(checkpoint).absolute())
    stored_meta.check_files(folder)
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        meta = Meta.from_json(checkpointer.restore(folder, ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
        arguments = ocp.args.StandardRestore(abstract_variables(meta))
        variables = checkpointer.restore(folder, ocp.args.Composite(variables=arguments))["variables"]
    except Exception as error:  # Any: for a torn array orbax raises a bare Exception.
        raise InputError(
            f"{printable(str(folder))}: the checkpoint cannot be read ({reason(error)}); take another step's folder"
        ) from error
    return variables, meta


def reason(error: Exception) -> str:
    """What the system refused, where that is told, else the first line of what orbax says: it goes on for pages."""
    text = str(error.__cause__ or error)
    refused = [words for number in DISK_REFUSALS if (words := os.strerror(number)) in text]
    if refused:
        return refused[0]
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return printable(lines[0][:200]) if lines else type(error).__name__


def save_converted(folder: Path, variables: Variables, meta: Meta) -> None:
    """Write variables and meta as a step's folder that `load` reads; `folder` comes into being whole or not at all.

    Raises InputError when something stands there already or the disk refuses.
    """
    folder = folder.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{printable(str(folder))}: exists already; name another folder or remove it")
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        arguments = ocp.args.Composite(
            variables=ocp.args.StandardSave(jax.tree.map(jnp.asarray, variables)),
            meta=ocp.args.JsonSave(meta.to_json()),
        )
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(temporary / "step", arguments)
        # Onto nothing or an empty folder; the rename is atomic.
        (temporary / "step").rename(folder)
    except OSError as error:
        reason = printable(error.strerror or str(error))
        raise InputError(f"{printable(str(folder))}: cannot be written ({reason})") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def find_step(folder: Path) -> Path:
    """The step folder that `folder` means. Raises InputError when there is none."""
    if (folder / "variables").is_dir():
        return folder
    root = folder / FOLDER
    steps = (
        sorted((int(entry.name) for entry in root.iterdir() if entry.name.isdigit()), reverse=True)
        if root.is_dir()
        else []
    )
    if not steps:
        raise InputError(
            f"{printable(str(folder))}: no checkpoint here; give a run's workdir, a step's folder or converted weights"
        )
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    newest = root / str(steps[0])
    try:
        stored = checkpointer.restore(newest, ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        best = stored["progress"].get("best_step")
    except Exception as error:  # Any: for a torn array orbax raises a bare Exception.
        raise InputError(
            f"{printable(str(newest))}: the newest checkpoint cannot be read; name another step's folder"
        ) from error
    return root / str(best) if best in steps else newest


def abstract_variables(meta: Meta) -> Variables:
    """Shapes and dtypes of the variables of the network that `meta` describes, on this process' first device."""
    network = ResNet(meta.spec, backend=jax.lax.conv_general_dilated)
    shapes = jax.eval_shape(lambda key: initialise(network, key, meta.spec.total_stride), jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=device), shapes)
