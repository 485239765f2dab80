"""The TensorBoard file of a run, written while the caller waits.

tensorboardX's `SummaryWriter` leaves writing to a thread. That thread ends if the disk is full or the clock
is set back by weeks. The queue to it then never empties, and training would wait forever.
"""

import pathlib
import time
from typing import Any

import numpy as np


class Events:
  """Writes scalars and images to an event file.

  Args:
    folder: the folder of the file; created.
    first_step: TensorBoard hides what an earlier file says of this step and later ones.

  Raises:
    OSError: if the file cannot be written; so do all methods.
  """

  def __init__(self, folder: pathlib.Path, *, first_step: int):
    # Not above: tensorboardX imports torch if there is one, which takes seconds in every command.
    from tensorboardX import event_file_writer, summary
    from tensorboardX.proto import event_pb2
    self._summary, self._event = summary, event_pb2.Event
    folder.mkdir(parents=True, exist_ok=True)
    self._file = event_file_writer.EventsWriter(str(folder / 'events'))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._write(first_step, session_log=start)

  def scalar(self, step: int, name: str, value: float) -> None:
    """Adds a number."""
    self._write(step, summary=self._summary.scalar(name, value))

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Adds an image, uint8[H, W, C]."""
    self._write(step, summary=self._summary.image(name, image, dataformats='HWC'))

  def flush(self) -> None:
    """Hands what was added to the operating system."""
    self._file.flush()

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _write(self, step: int, **content: Any) -> None:
    self._file.write_event(self._event(step=step, wall_time=time.time(), **content))
