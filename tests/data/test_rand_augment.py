"""RandAugment against NumPy and the table of torchvision."""

import numpy as np
import pytest

from rome_jax import data
from rome_jax.data import augment, rand_augment

IMAGE = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
# Smooth, and of few values.
IMAGE = ((IMAGE // 4).cumsum(0).cumsum(1) // 90 % 200 + 20).astype(np.uint8)


def applied(name, amount, image=IMAGE):
  from PIL import Image
  return np.asarray(rand_augment.OPERATIONS[name].apply(
      Image.fromarray(image), amount))


def moved(image, source):
  """The pixel that covers `source(x, y)`, of pixel centres; else black."""
  y, x = np.mgrid[:image.shape[0], :image.shape[1]] + .5
  u, v = (np.floor(a).astype(int) for a in source(x, y))
  inside = (u >= 0) & (v >= 0) & (u < image.shape[1]) & (v < image.shape[0])
  found = np.zeros_like(image)
  found[inside] = image[v[inside], u[inside]]
  return found


def turned(degrees):
  c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
  return lambda x, y: (10 + c * (x - 10) - s * (y - 10),
                       10 + s * (x - 10) + c * (y - 10))


@pytest.mark.parametrize('name, amount, source', [
    ('identity', 0, lambda x, y: (x, y)),
    ('shear_x', .3, lambda x, y: (x + .3 * y, y)),
    ('shear_y', -.21, lambda x, y: (x, y - .21 * x)),
    ('translate_x', 4, lambda x, y: (x + 4, y)),
    ('translate_y', -3, lambda x, y: (x, y - 3)),
    ('rotate', 9., turned(9.)), ('rotate', -30., turned(-30.))])
def test_geometry(name, amount, source):
  found, expected = applied(name, amount), moved(IMAGE, source)
  # Pillow steps along rows in fixed point: a centre on an edge may fall on
  # either side.
  assert (found == expected).mean() > .99
  assert name == 'identity' or (found != IMAGE).mean() > .1


def grey(image):
  return image @ [.299, .587, .114]


def smooth(image):
  """3x3 means with a weight of 5 in the middle; borders are left alone."""
  x, found = image.astype(float), image.astype(float)
  parts = [x[i:i + 18, j:j + 18] for i in range(3) for j in range(3)]
  found[1:-1, 1:-1] = (sum(parts) + 4 * parts[4]) / 13
  return found


@pytest.mark.parametrize('name, plain', [
    ('brightness', lambda x: 0 * x),
    ('color', lambda x: grey(x)[..., None]),
    ('contrast', lambda x: grey(x).mean().round()),
    ('sharpness', smooth)])
@pytest.mark.parametrize('amount', [.27, -.9])
def test_enhancements_go_from_or_to_a_plain_image(name, plain, amount):
  base = plain(IMAGE)
  expected = np.clip(base + (1 + amount) * (IMAGE - base), 0, 255)
  assert np.abs(applied(name, amount) - expected).max() <= 2


def stretched(x):
  low, high = x.min((0, 1)).astype(float), x.max((0, 1)).astype(float)
  return (x - low) * 255 / (high - low)


def equalised(x):
  """Every channel by the sums of its histogram, the last bin left out."""
  found = np.empty_like(x)
  for c in range(3):
    counts = np.bincount(x[..., c].ravel(), minlength=256)
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if not step:
      return x
    table = (step // 2 + np.concatenate([[0], counts.cumsum()[:-1]])) // step
    found[..., c] = np.minimum(table, 255)[x[..., c]]
  return found


@pytest.mark.parametrize('name, amount, expected', [
    ('posterize', 4, lambda x: x & 0b11110000),
    ('posterize', 8, lambda x: x),
    ('solarize', 100, lambda x: np.where(x < 100, x, 255 - x)),
    ('autocontrast', 0, stretched)])
def test_values(name, amount, expected):
  difference = applied(name, amount) - expected(IMAGE).astype(float)
  assert np.abs(difference).max() < 1 + (name == 'autocontrast') * 1e-9


def test_equalising():
  image = np.tile(IMAGE, (4, 4, 1))  # As many pixels as a histogram needs.
  found = applied('equalize', 0, image)
  np.testing.assert_array_equal(found, equalised(image))
  assert (found != image).any()


@pytest.mark.parametrize('magnitude, amounts', [
    (0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8, 255, 0, 0]),
    (9, [0, .09, .09, 4, 4, 9, .27, .27, .27, .27, 7, 178.5, 0, 0]),
    (30, [0, .3, .3, 14, 14, 30, .9, .9, .9, .9, 4, 0, 0, 0])])
def test_magnitudes_are_those_of_torchvision(magnitude, amounts):
  """`RandAugment._augmentation_space(31, (32, 32))[name][magnitude]`."""
  found = [row.amount(magnitude / 30, 32)
           for row in rand_augment.OPERATIONS.values()]
  np.testing.assert_allclose(found, amounts, rtol=1e-12)
  signed = [name for name, row in rand_augment.OPERATIONS.items() if row.signed]
  assert signed == ['shear_x', 'shear_y', 'translate_x', 'translate_y',
                    'rotate', 'brightness', 'color', 'contrast', 'sharpness']


def images(n, channels=3):
  return np.random.default_rng(1).integers(0, 256, (n, 8, 8, channels),
                                           np.uint8)


def rng(seed=2):
  return np.random.Generator(np.random.Philox(seed))


def test_every_operation_is_equally_likely(monkeypatch):
  """1,400 draws of 14: each within 5 standard deviations of 100."""
  seen = []
  rows = tuple(
      row._replace(apply=lambda picture, amount, i=i: (
          seen.append((i, amount)), picture)[1])
      for i, row in enumerate(rand_augment.OPERATIONS.values()))
  monkeypatch.setattr(rand_augment, '_ROWS', rows)
  rand_augment.rand_augment(images(700), rng(), 2, 9)
  counts = np.bincount([i for i, _ in seen], minlength=14)
  assert counts.sum() == 1400
  assert np.abs(counts - 100).max() < 5 * (1400 / 14 * 13 / 14)**.5
  signs = [amount < 0 for i, amount in seen if rows[i].signed]
  assert abs(sum(signs) - len(signs) / 2) < 5 * (len(signs) / 4)**.5


@pytest.mark.parametrize('channels', [1, 3])
def test_rows_are_those_of_the_whole_batch(channels):
  whole = images(12, channels)
  expected = rand_augment.rand_augment(whole, rng(), 2, 9)
  assert expected.dtype == np.uint8 and expected.shape == whole.shape
  rows = np.array([3, 7])
  found = rand_augment.rand_augment(
      whole[rows], augment.RowGenerator(rng(), 12, rows), 2, 9)
  np.testing.assert_array_equal(found, expected[rows])


def test_it_comes_after_the_geometry_and_never_in_tests():
  split = data.ArraySplit(images(6), np.arange(6, dtype=np.int32) % 2)
  dataset = data.Dataset('npz', split, split, 2, 8, 3, (0.,) * 3, (1.,) * 3)
  plain = data.make_transform('cifar', dataset, train=True)
  both = data.make_transform('cifar', dataset, train=True, rand_augment=2,
                             rand_magnitude=20)
  generator = rng()
  cropped = np.rint(255 * plain(split.images, generator)).astype(np.uint8)
  expected = rand_augment.rand_augment(cropped, generator, 2, 20)
  np.testing.assert_allclose(
      both(split.images, rng()), expected / 255., atol=1e-6)
  test = data.make_transform('cifar', dataset, train=False, rand_augment=2)
  np.testing.assert_allclose(test(split.images, None), split.images / 255.,
                             atol=1e-6)
