"""TensorBoard's event files, written in the calling thread.

tensorboardX' SummaryWriter writes in a thread of its own, which dies unheard on a full disk or when the clock is set
back by more than 24 days (its wait then overflows); ten events later the run hangs on the queue that nobody empties.
"""

import io
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tensorboardX.proto.api_pb2 import STATUS_SUCCESS
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.plugin_hparams_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboardX.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar

FLUSH_SECONDS = 30.0
# The names that TensorBoard's hparams plugin looks for (tensorboard/plugins/hparams/metadata.py).
HPARAMS, SESSION_START, SESSION_END = "hparams", "_hparams_/session_start_info", "_hparams_/session_end_info"


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

    def write_image(self, step: int, name: str, pixels: np.ndarray) -> None:
        """A picture, uint8[H, W, 3], as a PNG; on the disk when this returns."""
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        height, width = pixels.shape[:2]
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=buffer.getvalue())
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        self._add(Event(wall_time=time.time(), step=step, summary=summary))
        self._records.flush()

    def write_hparams(self, values: Mapping[str, Any]) -> None:
        """The run's settings, flat, for the table of the hparams plugin; None (as the network has it) is left out.

        There is no summary of the experiment beside them: without one the plugin works out columns and types from all
        runs that it shows, and which keys differ; with one it takes that of any run for all.
        """
        start = SessionStartInfo(start_time_secs=time.time())
        for name, value in values.items():
            if isinstance(value, bool):
                start.hparams[name].bool_value = value
            elif isinstance(value, int | float):
                start.hparams[name].number_value = value
            elif value is not None:
                start.hparams[name].string_value = str(value)
        self._add_hparams(SESSION_START, HParamsPluginData(session_start_info=start))

    def write_end(self) -> None:
        """For the hparams plugin: the run is done."""
        end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=time.time())
        self._add_hparams(SESSION_END, HParamsPluginData(session_end_info=end))

    def close(self) -> None:
        """Write what is left; nothing may be written afterwards."""
        self._records.close()

    def _add_hparams(self, name: str, content: HParamsPluginData) -> None:
        data = SummaryMetadata.PluginData(plugin_name=HPARAMS, content=content.SerializeToString())
        value = Summary.Value(tag=name, metadata=SummaryMetadata(plugin_data=data))
        self._add(Event(wall_time=time.time(), summary=Summary(value=[value])))

    def _add(self, event: Event) -> None:
        self._records.write(event.SerializeToString())
