"""Checkpoints, saved and restored with orbax, which only this file and `structure` call.

A step's folder holds `variables` (what evaluation uses), `training` (what only the next step needs), `meta` (JSON:
network, classes, preprocessing contract, configuration, progress) and, beside them, the manifest by which damage is
seen (`integrity`).
"""

import contextlib
import dataclasses
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as preservation

from input_pipeline.disk import amount
from input_pipeline.errors import InputError, printable
from resnet.model.network import ResNet, initialise
from resnet.model.spec import ResNetSpec
from resnet.out_of_memory import out_of_memory
from resnet.train import hosts, integrity, stored_meta, structure
from resnet.train.meta import Meta, OtherCode, Progress, check_progress
from resnet.train.state import TrainState, Variables, divide, unite
from resnet.train.workdir import ABLATION

FOLDER = "checkpoints"
# What a disk says when it does not take a file; in orbax' errors it stands behind paths of any length.
DISK_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
# Orbax' limit for one save, which it takes from the wall clock: at its default of 20 minutes a clock that is set right
# in mid-save would end the run. A century is no limit.
SAVE_SECONDS = 100 * 365 * 24 * 3600


class Damaged(InputError):
    """A checkpoint that is not what was written, or is gone."""


@dataclasses.dataclass
class Best:
    """Keeps the checkpoint of one step: the best on the validation split, as the loop says.

    Orbax' own BestN forgets the metrics of earlier processes (0.12.8 writes them down only where best_fn is set): after
    a resume it deleted the best checkpoint.
    """

    step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        """bool per checkpoint, oldest first; orbax deletes those that no policy wants."""
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one run under WORKDIR/checkpoints: the newest `keep` and the best one stay. A context manager.

    Saving is asynchronous: `save` returns when the state is copied, `wait` when it is on disk.
    """

    def __init__(self, workdir: Path, *, keep: int) -> None:
        """Look over what lies there: `set_aside` has a line for each damaged checkpoint that was moved out of the way.

        Raises InputError when the folder cannot be read or written.
        """
        self._root = (workdir / FOLDER).absolute()
        self._saving, self._bytes, self._best = 0, 0, Best()
        options = ocp.CheckpointManagerOptions(
            preservation_policy=preservation.AnyPreservationPolicy([preservation.LatestN(keep), self._best]),
            create=True,
            async_options=ocp.AsyncOptions(
                timeout_secs=SAVE_SECONDS,
                post_finalization_callback=self._seal,
                # Done in threads, they wait for each other by the wall clock: a jump of it hung or failed the save.
                create_directories_asynchronously=False,
            ),
        )
        with self._writing():
            self.set_aside: list[str] = hosts.by_primary(lambda: integrity.tidy(self._root)) or []
            self._manager = ocp.CheckpointManager(self._root, options=options)

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def look_again(self) -> None:
        """List the folder anew."""
        self._manager.reload()

    def fault(self, step: int) -> str | None:
        """What is wrong with the checkpoint of a step, None for a whole one."""
        return integrity.fault(self._root / str(step))

    def place(self, step: int) -> str:
        """Its folder, to be printed."""
        return printable(str(self._root / str(step)))

    def save(self, state: TrainState, meta: Meta) -> None:
        """Save under `meta.step`; what `meta.progress` names as its best_step is kept."""
        variables, training = divide(state)
        arguments = ocp.args.Composite(
            variables=ocp.args.StandardSave(variables),
            training=ocp.args.StandardSave(training),
            meta=ocp.args.JsonSave(meta.to_json()),
        )
        # The save before this one: its manifest is made under the step that is noted here.
        self.wait()
        self._best.step = meta.progress.get("best_step")
        self._saving, self._bytes = meta.step, sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        with self._writing():
            if meta.step in self._manager.all_steps():
                # A signal during this step's evaluation had it saved without its figures, and orbax does not overwrite.
                # It steps aside until the new one is whole: it may be the only one.
                hosts.by_primary(lambda: integrity.begin_replacing(self._root, meta.step))
                self._manager.reload()
            # Orbax copies the state to the host by ways that a guard takes for hidden ones. On a GPU a run, which saves
            # under one, was refused its first checkpoint; of a CPU's memory a guard sees no copy.
            with jax.transfer_guard("allow"):
                self._manager.save(meta.step, args=arguments, force=True)

    def _seal(self) -> None:
        """Write the manifest of the save that is under way. Orbax calls this when all is written but the final name."""
        if not hosts.primary():
            return
        (folder,) = self._root.glob(f"{self._saving}.orbax-checkpoint-tmp*")
        integrity.seal(folder)

    def restore(
        self, step: int, like: TrainState, shardings: Any, progress: type = Progress
    ) -> tuple[TrainState, Meta]:
        """The state and meta of a step; `like` gives structure, shapes and dtypes.

        shardings: a tree of shardings like `like`, or one for all. progress: the dataclass that meta.progress is of.

        Raises Damaged when the step's folder is gone or not what was written, InputError when it cannot be read or has
        a state of another structure.
        """
        if why := self.fault(step):
            raise Damaged(f"{self.place(step)}: the checkpoint is damaged ({why})")
        stored_meta.check_files(self._root / str(step))
        shape = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
        abstract = jax.tree.map(shape, like, jax.tree.broadcast(shardings, like))
        variables, training = divide(abstract)
        arguments = ocp.args.Composite(
            variables=ocp.args.StandardRestore(variables),
            training=ocp.args.StandardRestore(training),
            meta=ocp.args.JsonRestore(),
        )
        try:
            restored = self._manager.restore(step, args=arguments)
            meta = Meta.from_json(restored["meta"])
            check_progress(meta.progress, progress)
        except OtherCode as error:
            # Moved away one by one, all would be lost: all of a run are of one network.
            raise InputError(f"{self.place(step)}: {error}") from error
        except Exception as error:  # Any: for a torn array orbax raises a bare Exception.
            if out_of_memory(error):
                raise
            stored = {"variables": variables, "training": training}
            if told := structure.difference(self._root / str(step), stored):
                # Those before it are alike: moved away one by one, all would be lost.
                raise InputError(
                    f"{self.place(step)}: the checkpoint is of another network or optimizer than this code builds ("
                    f"{told}); resume with the code that wrote it, or give --workdir a new folder"
                ) from error
            raise InputError(
                f"{self.place(step)}: the checkpoint cannot be read ({reason(error)}); move this folder away to resume "
                "from the checkpoint before it"
            ) from error
        return unite(restored["variables"], restored["training"]), meta

    def wait(self) -> None:
        """Return when everything saved is on disk. Raises InputError for what could not be written meanwhile."""
        with self._writing():
            self._manager.wait_until_finished()
            hosts.by_primary(lambda: integrity.finish_replacing(self._root))
            integrity.sync_folder(self._root)

    def close(self) -> None:
        """Wait, then let go of the folder. Raises as `wait` does."""
        with self._writing():
            self._manager.close()
            hosts.by_primary(lambda: integrity.finish_replacing(self._root))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error and hosts.several():
            # Closing waits for all processes, and one that fails is to leave them.
            return
        # The first error is the one to tell: on a full disk, closing fails again.
        with contextlib.suppress(*((InputError,) if error else ())):
            self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn what orbax raises (in `save` or, for an earlier save, in any later call) into an InputError."""
        try:
            yield
        except (OSError, ValueError) as error:
            why = reason(error)
            if why == os.strerror(errno.ENOSPC) and self._bytes:
                free = shutil.disk_usage(self._root).free
                why += f": a checkpoint takes {amount(self._bytes)}, the disk has {amount(free)} free"
            raise InputError(
                f"{printable(str(self._root))}: a checkpoint could not be written ({why}); fix that and run the same "
                "command to resume from the last complete one"
            ) from error


def room_needed(workdir: Path, *, keep: int, total_steps: int, state_bytes: int) -> int:
    """Bytes that a run in `workdir` still needs: the newest `keep`, the best and the one being written make keep + 2.

    Those that are there already have their room; a run that is done needs none.
    """
    steps = integrity.step_numbers(workdir / FOLDER)
    return 0 if total_steps in steps else max(1, keep + 2 - len(steps)) * state_bytes


def load(checkpoint: str | Path) -> tuple[Variables, Meta]:
    """Variables and meta of a run's workdir (its best checkpoint), one step's folder, or converted weights.

    Raises InputError that names the folder when it is none of these or cannot be read, and what JAX raises where it has
    no device, or one without memory.
    """
    jax.local_devices()  # Here, where the lack of one is not taken for a fault of the checkpoint.
    folder = find_step(Path(checkpoint).absolute())
    if why := integrity.fault(folder):
        raise InputError(f"{printable(str(folder))}: the checkpoint cannot be read ({why}); use another step's folder")
    stored_meta.check_files(folder)
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    try:
        meta = Meta.from_json(checkpointer.restore(folder, ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
        arguments = ocp.args.StandardRestore(abstract_variables(meta.spec))
        variables = checkpointer.restore(folder, ocp.args.Composite(variables=arguments))["variables"]
    except OtherCode as error:
        # Nor can another step's: all of a run are of one network.
        raise InputError(f"{printable(str(folder))}: {error}") from error
    except Exception as error:  # Any: for a torn array orbax raises a bare Exception.
        if out_of_memory(error):
            raise
        raise InputError(
            f"{printable(str(folder))}: the checkpoint cannot be read ({reason(error)}); use another step's folder"
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
        raise InputError(f"{printable(str(folder))}: already exists; name another folder or remove it")
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
        integrity.seal(temporary / "step")
        # Onto nothing or an empty folder; the rename is atomic.
        (temporary / "step").rename(folder)
    except (OSError, ValueError) as error:  # ValueError: tensorstore's, of a full disk.
        raise InputError(f"{printable(str(folder))}: cannot be written ({reason(error)})") from error
    finally:
        if temporary:
            shutil.rmtree(temporary, ignore_errors=True)


def find_step(folder: Path) -> Path:
    """The step folder that `folder` means. Raises InputError when there is none."""
    if (folder / "variables").is_dir():
        return folder
    root = folder / FOLDER
    steps = integrity.step_numbers(root)
    if not steps:
        told = "no checkpoint here; give a run's workdir, a step's folder or converted weights"
        if (folder / ABLATION).is_file():
            told = "an ablation's folder; give one of its weights/NAME/seed_S, which --keep_weights writes"
        raise InputError(f"{printable(str(folder))}: {told}")
    checkpointer = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    for step in steps:
        if integrity.fault(root / str(step), deep=False):
            continue
        stored_meta.check_files(root / str(step))
        try:
            stored = checkpointer.restore(root / str(step), ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
            best = stored["progress"].get("best_step")
        except Exception:  # Any: for torn content orbax raises a bare Exception.
            continue
        return root / str(best) if best in steps else root / str(step)
    raise InputError(f"{printable(str(root))}: none of the checkpoints can be read; restore one of them")


def newest_meta(workdir: Path) -> Meta | None:
    """What the newest checkpoint of a run's folder says of itself; None without one that can be read.

    Raises OtherCode, naming the checkpoint, for a network that this code does not know.
    """
    root = workdir / FOLDER
    for folder in (root / str(step) for step in integrity.step_numbers(root)):
        try:
            stored_meta.check_files(folder)
            with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(folder, ocp.args.Composite(meta=ocp.args.JsonRestore()))
            return Meta.from_json(restored["meta"])
        except OtherCode as error:
            raise OtherCode(f"{printable(str(folder))}: {error}") from error
        except Exception:  # Any: for torn content orbax raises a bare Exception.
            continue
    return None


def abstract_variables(spec: ResNetSpec) -> Variables:
    """Shapes and dtypes of the variables of the network that `spec` describes, on this process' first device."""
    network = ResNet(spec, backend=jax.lax.conv_general_dilated)
    shapes = jax.eval_shape(lambda key: initialise(network, key, spec.total_stride), jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.float32, sharding=device), shapes)
