"""Requests to stop, as a signal makes them, but after a number of looks."""


class StopAfter:
  """Requests a stop the `looks`-th time it is asked; never if that is None."""

  def __init__(self, looks=None):
    self.looks = looks

  @property
  def requested(self):
    if self.looks is None:
      return False
    self.looks -= 1
    return self.looks <= 0
