"""What the processes of a run must have alike: configuration, code, data, weights, one folder, the same checkpoint.

JAX asks for none of it. With other images on one host a run went on to its end, every example of that host the wrong
one; with other programs the processes wait for each other for ever.
"""

import json
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax

from input_pipeline.errors import InputError, printable
from input_pipeline.sources import Source
from resnet.train import code_digests, hosts
from resnet.train.checkpoints import Checkpoints, Damaged
from resnet.train.configuration import PLACES, differences, differences_line
from resnet.train.integrity import ABSENT
from resnet.train.pretrained import Pretrained
from resnet.train.recalibration import ALONE
from resnet.train.transfer import Transfer
from resnet.train.verdict import store
from resnet.train.workdir import LOCK

Seen = TypeVar("Seen")
# Keys that change nothing of what the devices compute together: where things lie, and what one process does by itself.
OWN = (*PLACES, "data.threads", "run.hang_timeout", "run.writers")
FACTS, TOKEN, NEWEST, WHOLE = "resnet/facts", "resnet/token", "resnet/newest", "resnet/whole/"
# A process that is still reading its data is not late, and one that died ends all (`peers`).
PATIENT_MILLISECONDS = 24 * 3600 * 1000
# NFS lets a client believe for a minute (acdirmax) that a file is not there.
FOLDER_SECONDS = 65.0


def check_transfer(transfer: Transfer, *, begun: bool) -> None:
    """Raise InputError, in one of several processes, for what only a process alone does; alone, do nothing.

    begun: whether the run's folder is there; statistics that were recalibrated then need no process of their own.
    """
    if not hosts.several():
        return
    if transfer.mode == "probe":
        raise InputError("config.transfer.mode='probe' runs in one process only, because the features are on its disk")
    if transfer.norms == "recalibrate" and not begun:
        raise InputError(ALONE)


def check_alike(config: Mapping[str, Any], source: Source, pretrained: Pretrained | None) -> None:
    """Return, in all processes together, when each has what process 0 has; alone, do nothing.

    config: flat. Raises InputError in a process that has something else, which ends all.
    """
    if not hosts.several():
        return
    facts = {
        # As JSON gives it back: with lists for tuples.
        "config": json.loads(json.dumps(dict(config))),
        "jax": jax.__version__,
        "code": list(code_digests.sources()),
        "images": {name: len(split) for name, split in source.splits.items()},
        "data": source.fingerprint,
        "weights": pretrained.digest if pretrained else "",
    }
    if hosts.primary():
        store().key_value_set(FACTS, json.dumps(facts))
    elif why := difference(json.loads(store().blocking_key_value_get(FACTS, PATIENT_MILLISECONDS)), facts):
        raise InputError(f"{why}; give all processes the same")
    hosts.barrier("all have the same")


def difference(first: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """In what process 0's facts and this one's differ, in words; '' where they do not."""
    where = f"process {jax.process_index()} has"
    if changed := differences(first["config"], here["config"], OWN):
        return f"{where} a different configuration from process 0 (there -> here: {differences_line(changed)})"
    if first["jax"] != here["jax"]:
        return f"{where} a different version of JAX from process 0 (there -> here: {first['jax']} -> {here['jax']})"
    if files := code_digests.changed(first["code"], here["code"]):
        more = f" and {len(files) - code_digests.MOST_NAMED} more" if len(files) > code_digests.MOST_NAMED else ""
        return f"{where} different code from process 0: {printable(', '.join(files[: code_digests.MOST_NAMED]))}{more}"
    place = printable(str(here["config"]["data.dir"]))
    if first["data"] != here["data"]:
        counts = "" if first["images"] == here["images"] else f" (there -> here: {first['images']} -> {here['images']})"
        return f"{where} images, labels or splits in config.data.dir={place} that differ from process 0's{counts}"
    if first["weights"] != here["weights"]:
        weights = printable(str(here["config"]["transfer.weights"]))
        return f"{where} weights in config.transfer.weights={weights} that differ from process 0's"
    return ""


def check_shared(workdir: Path) -> None:
    """Return when this process sees the folder that process 0 has claimed; alone, do nothing.

    Raises InputError where it is another one, as a folder of that name on each host's own disk.
    """
    if not hosts.several():
        return
    lock = workdir / LOCK
    if hosts.primary():
        token = uuid.uuid4().hex
        lock.write_text(token, encoding="ascii")
        store().key_value_set(TOKEN, token)
        return
    token = store().blocking_key_value_get(TOKEN, PATIENT_MILLISECONDS)
    if look_until(lambda: seen(lock), lambda text: text == token) != token:
        raise InputError(
            f"{printable(str(workdir))}: process {jax.process_index()} does not see what process 0 writes there; "
            "put --workdir on a file system that all processes share"
        )


def newest_step(checkpoints: Checkpoints) -> int | None:
    """The step of the newest checkpoint, None for none, as process 0 sees it; returns once this process does, too.

    Who went on from another step than the rest would wait for them for ever. Raises InputError where it stays unseen.
    """
    if not hosts.several():
        return checkpoints.latest_step()
    if hosts.primary():
        store().key_value_set(NEWEST, json.dumps(step := checkpoints.latest_step()))
        return step
    step = json.loads(store().blocking_key_value_get(NEWEST, PATIENT_MILLISECONDS))
    here = look_until(checkpoints.latest_step, lambda here: here == step, checkpoints.look_again)
    if here != step:
        raise InputError(
            f"process {jax.process_index()} does not see the newest checkpoint that process 0 does (there -> here: "
            f"step {step} -> {here}); check the file system of --workdir and start all processes again"
        )
    return step


def check_whole(checkpoints: Checkpoints, step: int) -> None:
    """Return, in all processes together, when the checkpoint of `step` is whole to each; alone, do nothing.

    Raises Damaged, in all of them, where it is not: who restored it alone would evaluate another network than the rest.
    """
    if not hosts.several():
        return
    why = look_until(lambda: checkpoints.fault(step), lambda why: why != ABSENT, checkpoints.look_again)
    store().key_value_set(f"{WHOLE}{jax.process_index()}", json.dumps(why))
    for rank in range(jax.process_count()):
        if said := json.loads(store().blocking_key_value_get(f"{WHOLE}{rank}", PATIENT_MILLISECONDS)):
            raise Damaged(f"{checkpoints.place(step)}: the checkpoint is damaged, as process {rank} sees it ({said})")


def look_until(
    look: Callable[[], Seen], enough: Callable[[Seen], bool], look_again: Callable[[], object] = lambda: None
) -> Seen:
    """What `look` gives as soon as that is `enough`, else what it gives FOLDER_SECONDS later.

    look_again: called before each look but the first.
    """
    until = time.monotonic() + FOLDER_SECONDS
    while not enough(found := look()) and time.monotonic() < until:
        time.sleep(min(1.0, FOLDER_SECONDS / 5))
        look_again()
    return found


def seen(file: Path) -> str:
    """The text of a file, '' where it cannot be read."""
    try:
        # Has an NFS client ask its server anew.
        list(file.parent.iterdir())
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
