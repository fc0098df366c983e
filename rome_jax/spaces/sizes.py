"""The sizes of a network: what a space does not say."""

from typing import NamedTuple


class Sizes(NamedTuple):
  """How large a supernet or a network is, and what it reads and returns.

  Attributes:
    cells: number of cells; in a chain of blocks, of blocks.
    channels: C of the first cells. In the mobile family it scales all widths
      (32 is the published network) and need not be an integer.
    num_classes: width of the logits.
    image_size: height and width of the images, in pixels.
    image_channels: 1 for grey images, 3 for colour.

  >>> Sizes(cells=20, channels=36, num_classes=10).image_size
  32
  """

  cells: int
  channels: float
  num_classes: int
  image_size: int = 32
  image_channels: int = 3
