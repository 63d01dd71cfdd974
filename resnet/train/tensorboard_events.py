"""TensorBoard's event files, written in the calling thread.

tensorboardX' SummaryWriter writes in a thread of its own, which dies unheard on a full disk or when the clock is set
back by more than 24 days (its wait then overflows); ten events later the run hangs on the queue that nobody empties.
"""

import re
import time
from collections.abc import Mapping
from pathlib import Path

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

FLUSH_SECONDS = 30.0


class EventFile:
    """A new event file in `folder`, read by TensorBoard after all that are there already, whatever the clock says.

    purge_step: TensorBoard ignores events of steps from this one on in older files. Raises OSError, as all methods do.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        names = [re.match(r"events\.out\.tfevents\.(\d+)", path.name) for path in folder.iterdir()]
        # TensorBoard reads in the order of the names, which begin with the second of their making.
        stamp = max([int(time.time()), *(int(name[1]) + 1 for name in names if name)])
        self._records = RecordWriter(str(folder / f"events.out.tfevents.{stamp:010d}.run"))
        self._flushed = time.monotonic()
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=purge_step, session_log=start))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One event per value; they reach the disk within half a minute, or at `close`."""
        for name, value in values.items():
            self._add(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._records.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Write what is left; nothing may be written afterwards."""
        self._records.close()

    def _add(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
