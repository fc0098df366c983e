"""Changes of colour against Pillow, whose results they must be to the bit."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from rome_jax.data import colours

FACTORS = (0., .3, .6, .999, 1., 1.25, 1.4, 2.7)


def every_colour():
  """All 2^24, as an image [4096, 4096, 3]."""
  numbers = np.arange(2**24, dtype='<u4').view(np.uint8)
  return np.ascontiguousarray(numbers.reshape(4096, 4096, 4)[..., :3])


def planes_of(image):
  return np.ascontiguousarray(np.moveaxis(image, -1, 0))


def turned(image, amount):
  """By Pillow's HSV."""
  h, s, v = Image.fromarray(image).convert('HSV').split()
  h = Image.fromarray(np.asarray(h) + np.uint8(amount))
  return np.asarray(Image.merge('HSV', (h, s, v)).convert('RGB'))


@pytest.mark.parametrize('amount', [0, 1, 51, 205, 255])
def test_hue_of_some_colours(amount):
  """An eighth of all, among them grays and those of one or two channels."""
  image = every_colour()[::8]
  found = colours.turn_hue(planes_of(image), amount)
  np.testing.assert_array_equal(
      np.moveaxis(found, 0, -1), turned(image, amount))


@pytest.mark.slow
@pytest.mark.parametrize('amount', range(0, 256, 15))
def test_hue_of_every_colour(amount):
  image = every_colour()
  found = colours.turn_hue(planes_of(image), amount)
  np.testing.assert_array_equal(
      np.moveaxis(found, 0, -1), turned(image, amount))


@pytest.mark.parametrize('name, change', [
    ('Brightness', colours.brighten), ('Contrast', colours.contrast),
    ('Color', colours.saturate)])
def test_the_others(name, change):
  image = every_colour()[::64]  # colours of all levels in each channel
  for factor in FACTORS:
    expected = getattr(ImageEnhance, name)(
        Image.fromarray(image)).enhance(factor)
    found = change(planes_of(image), factor)
    np.testing.assert_array_equal(
        np.moveaxis(found, 0, -1), np.asarray(expected), f'{factor}')


@pytest.mark.parametrize('name, change', [
    ('Brightness', colours.brighten), ('Contrast', colours.contrast)])
def test_gray_images(name, change):
  image = np.arange(256, dtype=np.uint8).reshape(16, 16)
  for factor in FACTORS:
    expected = getattr(ImageEnhance, name)(
        Image.fromarray(image)).enhance(factor)
    np.testing.assert_array_equal(
        change(image[None], factor)[0], np.asarray(expected))
