"""Changes of colour: Pillow's results, to the bit, in half of Pillow's time.

Whole planes at once are what NumPy is quick at. Images here are planes [C, H,
W] uint8.

For hue Pillow goes to HSV and back pixel by pixel. Of a colour's channels M >=
middle >= m the hue depends only on their order, C = M - m and M - middle, and
the saturation only on M and C, so both are looked up in small tables, which
Pillow fills. Back it is integers: the channels are V, P <= W <= V in an order
that depends on the hue.
"""

import functools

import numpy as np

from rome_jax.data import splits

# W / V = 1 - saturation * part of a sixth of the circle, in units of 2^-24.
_SHIFT = 24


@functools.cache
def _tables():
  """Hues [order, C, M - middle], saturations [M, C], W / V [saturation, hue].

  The first two are uint8, the last is uint32; all are flat.
  """
  Image = splits.require('PIL.Image', 'colour jitter')

  def hsv(*planes):
    pixels = np.stack(np.broadcast_arrays(*planes), -1).astype(np.uint8)
    return np.asarray(Image.fromarray(pixels).convert('HSV'))

  large, less = np.mgrid[:256, :256]  # what is not a colour is never asked for
  middle = np.maximum(large - less, 0)
  hues = [hsv(*planes)[..., 0] for planes in (
      (large, 0, middle), (large, middle, 0), (middle, large, 0),
      (0, large, middle), (0, middle, large), (middle, 0, large))]
  saturations = hsv(large, middle, middle)[..., 1]
  sector, part = np.divmod(2 * np.arange(256), 85)
  part = np.where(sector % 2, part, 85 - part)
  ratio = 1 - np.arange(256)[:, None] * part / (255 * 85)
  return (np.concatenate(hues).ravel(), saturations.ravel(),
          np.rint(ratio * 2**_SHIFT).astype(np.uint32).ravel())


def brighten(planes: np.ndarray, factor: float) -> np.ndarray:
  """Pillow's ImageEnhance.Brightness: black at 0, the image at 1.

  >>> brighten(np.array([[[100, 200]]], np.uint8), 1.5).tolist()
  [[[150, 255]]]
  """
  return _blend(np.uint8(0), planes, factor)


def contrast(planes: np.ndarray, factor: float) -> np.ndarray:
  """ImageEnhance.Contrast: the mean gray at 0, the image at 1.

  >>> contrast(np.array([[[100, 200]]], np.uint8), 2.).tolist()
  [[[50, 250]]]
  """
  shades = _gray(planes)
  mean = int(shades.sum(dtype=np.int64) / shades.size + .5)
  return _blend(np.uint8(mean), planes, factor)


def saturate(planes: np.ndarray, factor: float) -> np.ndarray:
  """ImageEnhance.Color: gray at 0, the image at 1.

  >>> saturate(np.array([[[9]], [[9]], [[9]]], np.uint8), 7.).ravel().tolist()
  [9, 9, 9]
  """
  return _blend(_gray(planes), planes, factor)


def _blend(low, high, factor):
  """low + factor (high - low), cut off below 0, above 255 and to integers."""
  low, found = low.astype(np.float32), high.astype(np.float32)
  found -= low
  found *= np.float32(factor)
  found += low
  if factor > 1:  # Between the two nothing leaves the range.
    np.clip(found, 0, 255, out=found)
  return found.astype(np.uint8)


def _gray(planes):
  """Pillow's L of RGB: .299 R + .587 G + .114 B in units of 2^-16."""
  if len(planes) == 1:
    return planes[0]
  total = planes[0] * np.uint32(19595)
  total += planes[1] * np.uint32(38470)
  total += planes[2] * np.uint32(7471)
  return ((total + np.uint32(2**15)) >> np.uint32(16)).astype(np.uint8)


def turn_hue(planes: np.ndarray, amount: int) -> np.ndarray:
  """Adds to Pillow's hue of every pixel of an image of three planes.

  Args:
    planes: the image.
    amount: 0 to 255; the full circle is 256.

  >>> red = np.array([[[200]], [[0]], [[0]]], np.uint8)
  >>> turn_hue(red, 85).ravel().tolist()
  [0, 200, 0]
  """
  red, green, blue = planes
  hues, saturations, ratios = _tables()
  value = np.maximum(np.maximum(red, green), blue)
  least = np.minimum(np.minimum(red, green), blue)
  chroma = value - least
  # Sums and differences of bytes are right modulo 256.
  below = value + value + least - red - green - blue
  order = _order(red, green, blue, value)
  hue = _look_up(hues, order, chroma, below) + np.uint8(amount)
  saturation = _look_up(saturations, value, chroma)
  ratio = _look_up(ratios, saturation, hue)
  between = ((value * ratio + np.uint32(2**(_SHIFT - 1)))
             >> np.uint32(_SHIFT)).astype(np.uint8)
  low = _share(value, saturation)

  def channel(first, count, low_first, low_count):
    """V where the hue is one of `count` from `first` on, P likewise, else W."""
    found = np.maximum(between, value & _mask(hue, first, count))
    return np.minimum(found, low | ~_mask(hue, low_first, low_count))

  return np.stack([channel(213, 86, 85, 85), channel(43, 85, 170, 85),
                   channel(128, 85, 255, 86)])


def _order(red, green, blue, value):
  """Which channel is M, the first of equals, and which of the others more."""
  is_red = red == value
  is_green = (green == value) & ~is_red
  is_blue = ~(is_red | is_green)
  rising = ((is_red & (green >= blue)) | (is_green & (blue >= red))
            | (is_blue & (red >= green)))
  return (2 * is_green.view(np.uint8) + 4 * is_blue.view(np.uint8)
          + rising.view(np.uint8))


def _look_up(table, *places):
  """Entries of a flat table whose axes have 256 places, all but the first."""
  index = places[0].astype(np.uint32)
  for place in places[1:]:
    index = (index << np.uint32(8)) | place
  return table.take(index, mode='wrap')  # The quickest; none is outside.


def _share(value, saturation):
  """V (255 - S) / 255, rounded."""
  product = value.astype(np.uint16) * (255 - saturation) + np.uint16(128)
  return ((product + (product >> 8)) >> 8).astype(np.uint8)


def _mask(hue, first, count):
  """255 where the hue is one of `count` from `first` on, around the circle."""
  return -((hue - np.uint8(first)) < count).view(np.uint8)
