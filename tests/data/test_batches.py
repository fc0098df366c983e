"""Batches, augmentations and prefetching against plain loops."""

import colorsys
import threading
import time
import types

import numpy as np
import pytest

from benchmarks import augment as benchmark
from rome_jax import data, errors
from rome_jax.data import augment, batches


def _images(n=7, height=9, width=9, channels=3, seed=0):
  return np.random.default_rng(seed).integers(
      0, 256, (n, height, width, channels), np.uint8)


def _dataset(n=20, size=9, channels=3, kind=data.ArraySplit):
  images = _images(n, size, size, channels)
  labels = (np.arange(n) % 4).astype(np.int32)
  if kind is data.LazySplit:
    split = data.LazySplit(lambda i: images[i], labels)
  else:
    split = data.ArraySplit(images, labels)
  return data.Dataset('made', split, split, 4, size, channels,
                      (.4,) * channels, (.2,) * channels)


def _batches(dataset=None, batch_size=6, seed=5, kind='cifar', **options):
  dataset = dataset or _dataset()
  return data.Batches(
      dataset.train, None, batch_size, seed,
      data.make_transform(kind, dataset, train=True, cutout=4), **options)


@pytest.mark.parametrize('kind', list(data.KINDS))
@pytest.mark.parametrize('split', [data.ArraySplit, data.LazySplit])
def test_a_batch_depends_on_seed_and_step_alone(kind, split):
  dataset = _dataset(kind=split)
  used = _batches(dataset, kind=kind)
  for step in (0, 9, 2):
    used(step)
  for step in (0, 4, 7):
    fresh = _batches(dataset, kind=kind)(step)
    again = used(step)
    assert fresh['image'].shape == (6, 9, 9, 3)
    assert fresh['image'].dtype == np.float32
    assert fresh['label'].dtype == np.int32
    np.testing.assert_array_equal(fresh['image'], again['image'])
    np.testing.assert_array_equal(fresh['label'], again['label'])
  for other in (used(1), _batches(dataset, kind=kind, seed=6)(0)):
    assert not np.array_equal(other['image'], used(0)['image'])


def test_both_kinds_of_split_give_the_same_batches():
  for kind in data.KINDS:
    memory, lazy = (_batches(_dataset(kind=k), kind=kind)(3)
                    for k in (data.ArraySplit, data.LazySplit))
    np.testing.assert_array_equal(memory['image'], lazy['image'])


def test_an_epoch_visits_every_image_once():
  indices = np.array([1, 3, 5, 7, 11, 13])
  batches = data.Batches(_dataset().train, indices, 2, 0, None)
  assert batches.steps_per_epoch == 3
  epochs = [[*np.concatenate([batches.batch_indices(3 * e + i)
                              for i in range(3)])] for e in range(3)]
  assert all(sorted(epoch) == [*indices] for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2]


def test_the_last_batch_is_dropped_or_smaller():
  assert _batches().steps_per_epoch == 3
  batches = _batches(drop_last=False)
  assert batches.steps_per_epoch == 4
  assert [len(batches(i)['label']) for i in range(5)] == [6, 6, 6, 2, 6]


@pytest.mark.parametrize('batch_size', [0, 21])
def test_wrong_batch_sizes_are_refused(batch_size):
  with pytest.raises(errors.UserError, match=f'batch_size={batch_size} must'):
    _batches(batch_size=batch_size)


def test_halves_of_everything():
  labels = np.arange(101) % 10
  theta, alpha = data.halves(labels, .5, .5, seed=0)
  assert sorted([*theta, *alpha]) == [*range(101)]
  assert abs(len(theta) - len(alpha)) == 1
  again, _ = data.halves(labels, .5, .5, seed=0)
  np.testing.assert_array_equal(theta, again)
  other, _ = data.halves(labels, .5, .5, seed=1)
  assert not np.array_equal(theta, other)
  theta, alpha = data.halves(labels, .7, .3, seed=0)
  assert (len(theta), len(alpha)) == (71, 30)


@pytest.mark.parametrize('seed', range(8))
@pytest.mark.parametrize('counts, fraction', [
    ([40, 2], .5), ([40, 2, 2, 3], .5), ([2] * 10, .5), ([60, 2, 1], .9),
    ([2, 2], .5), ([3, 1, 1, 1], .5), ([50] + [2] * 20, .9)])
def test_both_halves_have_every_class_of_two(counts, fraction, seed):
  labels = np.random.default_rng(seed).permutation(
      np.repeat(np.arange(len(counts)), counts))
  parts = data.halves(labels, fraction, 1 - fraction, seed)
  assert sorted(np.concatenate(parts)) == [*range(len(labels))]
  for part in parts:
    found = np.bincount(labels[part], minlength=len(counts))
    assert (found[np.array(counts) >= 2] >= 1).all()
  wanted = round(fraction * len(labels))
  if min(wanted, len(labels) - wanted) >= len(counts):
    assert len(parts[0]) == wanted


@pytest.mark.parametrize('classes', [10, 100])
def test_halves_of_many_images_are_one_order_cut_in_two(classes):
  # DARTS: indices[:split] and indices[split:], CIFAR's 50,000.
  labels = np.arange(50_000) % classes
  order = batches.generator(3, 0, 2).permutation(50_000)
  theta, alpha = data.halves(labels, .5, .5, seed=3)
  np.testing.assert_array_equal(theta, order[:25_000])
  np.testing.assert_array_equal(alpha, order[25_000:])


def test_halves_by_class():
  labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2],
                                                          [130, 40, 7]))
  theta, alpha = data.halves(labels, .1, .2, seed=0)
  np.testing.assert_array_equal(np.bincount(labels[theta]), [13, 4, 1])
  np.testing.assert_array_equal(np.bincount(labels[alpha]), [26, 8, 1])
  assert not set(theta) & set(alpha)
  assert len(set(theta)) == len(theta)
  again = data.halves(labels, .1, .2, seed=0)
  np.testing.assert_array_equal(theta, again[0])


@pytest.mark.parametrize('fractions, message', [
    ((.6, .5), 'add up to 1.1'), ((0, .5), 'fraction_theta=0'),
    ((.5, -1), 'fraction_alpha=-1'), ((float('nan'), .5), 'theta=nan')])
def test_wrong_fractions_are_refused(fractions, message):
  with pytest.raises(errors.UserError, match=message):
    data.halves(np.zeros(10, int), *fractions, seed=0)


def test_too_few_images_for_halves():
  with pytest.raises(errors.UserError, match='1 images are too few'):
    data.halves(np.zeros(1, int), .5, .5, seed=0)


@pytest.mark.parametrize('pad', [1, 4])
def test_random_crop_is_a_plain_loop(pad):
  images = _images(height=6)
  cropped = augment.random_crop(images, np.random.default_rng(3), pad)
  offsets = np.random.default_rng(3).integers(0, 2 * pad + 1, (2, 7))
  for b, (oy, ox) in enumerate(offsets.T):
    for y in range(6):
      for x in range(9):
        sy, sx = y + oy - pad, x + ox - pad
        inside = 0 <= sy < 6 and 0 <= sx < 9
        expected = images[b, sy, sx] if inside else 0
        assert (cropped[b, y, x] == expected).all()


def test_random_crop_reaches_every_offset_evenly():
  # An image of distinct positive pixels shows its offset in one corner.
  images = np.arange(1, 26, dtype=np.uint8).reshape(1, 5, 5, 1)
  images = np.tile(images, (9000, 1, 1, 1))
  cropped = augment.random_crop(images, np.random.default_rng(0), 1)
  counts = np.unique(cropped[:, 2, 2], return_counts=True)[1]
  assert len(counts) == 9
  # Standard deviation of a count: sqrt(9000 / 9 * 8 / 9) = 30.
  assert np.abs(counts - 1000).max() < 4 * 30


@pytest.mark.parametrize('channels', [1, 3])
def test_flip_is_a_plain_loop(channels):
  images = _images(40, channels=channels)
  before = images.copy()
  flipped = augment.flip(images, np.random.default_rng(1))
  mirrored = np.random.default_rng(1).random(40) < .5
  assert 0 < mirrored.sum() < 40
  for b in range(40):
    for x in range(9):
      source = 8 - x if mirrored[b] else x
      np.testing.assert_array_equal(flipped[b, :, x], images[b, :, source])
  np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize('size', [2, 5, 16])
def test_cutout_is_a_plain_loop(size):
  images = np.ones((30, 8, 10, 3), np.float32)
  cut = augment.cutout(images, np.random.default_rng(2), size)
  rng = np.random.default_rng(2)
  ys, xs = rng.integers(0, 8, 30), rng.integers(0, 10, 30)
  for b in range(30):
    for y in range(8):
      for x in range(10):
        half = size // 2
        inside = (-half <= y - ys[b] < half) and (-half <= x - xs[b] < half)
        assert (cut[b, y, x] == (0 if inside else 1)).all()
  assert images.all()


@pytest.mark.parametrize('channels', [1, 3])
def test_normalize(channels):
  images = _images(channels=channels)
  mean, std = (.1, .5, .9)[:channels], (.3, .2, .4)[:channels]
  normal = augment.normalize(images, mean, std)
  assert normal.dtype == np.float32
  # float32 of values up to 3: a few units in the last place.
  np.testing.assert_allclose(
      normal, (images / 255. - mean) / std, rtol=0, atol=2e-6)


def test_cutout_comes_after_normalising():
  dataset = _dataset()
  transform = data.make_transform('none', dataset, train=True, cutout=4)
  images = transform(dataset.train.images, np.random.default_rng(0))
  plain = augment.normalize(dataset.train.images, dataset.mean, dataset.std)
  changed = images != plain
  assert changed.any((1, 2, 3)).all() and (images[changed] == 0).all()


def test_nothing_random_in_testing():
  dataset = _dataset()
  for kind in data.KINDS:
    transform = data.make_transform(kind, dataset, train=False, cutout=16)
    images = transform(dataset.test.images, None)
    if kind != 'imagenet':
      np.testing.assert_array_equal(images, augment.normalize(
          dataset.test.images, dataset.mean, dataset.std))


def test_shift_moves_without_mirroring():
  dataset = _dataset(200, 8, 1)
  seen = data.make_transform('shift', dataset, train=True)(
      dataset.train.images, np.random.default_rng(0))
  padded = np.pad(dataset.train.images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  padded = augment.normalize(padded, dataset.mean, dataset.std)
  for image, source in zip(seen, padded):
    assert any(np.allclose(image, source[y:y + 8, x:x + 8], atol=1e-6)
               for y in range(3) for x in range(3))


def test_unknown_augmentations_are_refused():
  with pytest.raises(errors.UserError, match="did you mean 'cifar'"):
    data.make_transform('cifr', _dataset(), train=True)
  with pytest.raises(errors.UserError, match='cutout=-2 must be at least 0'):
    data.make_transform('cifar', _dataset(), train=True, cutout=-2)


# Sides from 1 up, 16 x 16 and the digits' 8 x 8 among them.
SIDES = (1, 2, 3, 4, 6, 8, 12, 16, 28, 32, 64)


@pytest.mark.parametrize('side', SIDES)
@pytest.mark.parametrize('kind', list(data.KINDS))
def test_no_augmentation_leaves_nothing_of_an_image(kind, side):
  white = np.full((400, side, side, 3), 255, np.uint8)
  split = data.ArraySplit(white, np.zeros(400, np.int32))
  dataset = data.Dataset('white', split, split, 2, side, 3, (0.,) * 3,
                         (1.,) * 3)
  seen = data.make_transform(kind, dataset, train=True, cutout=augment.FIT)(
      white, np.random.default_rng(0))
  # A crop keeps 7/8 of each side, a cutout at least half of an image.
  share = (seen != 0).mean((1, 2, 3))
  assert share.min() >= .5
  without = data.make_transform(kind, dataset, train=True)(
      white, np.random.default_rng(0))
  assert (without != 0).mean((1, 2, 3)).min() >= .75


@pytest.mark.parametrize('side, square, padding', [
    (32, 16, 4), (224, 16, 4), (16, 8, 2), (8, 4, 1), (28, 14, 3)])
def test_crop_and_cutout_keep_the_shares_of_darts(side, square, padding):
  images = np.ones((500, side, side, 1), np.float32)
  cut = augment.cutout(images, np.random.default_rng(0),
                       augment.cutout_side(augment.FIT, side))
  assert (cut == 0).sum((1, 2, 3)).max() == square**2
  white = np.full((500, side, side, 1), 255, np.uint8)
  moved = data.make_transform('cifar', _dataset(1, side, 1), train=True)(
      white, np.random.default_rng(0))
  dark = np.isclose(moved, -.4 / .2, atol=1e-5)[..., 0].all(2).sum(1)
  assert dark.max() == padding


def test_the_augmentation_of_cifar_is_that_of_darts():
  # Transcribed: pad 4, crop, flip, normalise, cut 16 (cnn/utils.py).
  dataset = _dataset(30, 32)
  dataset = dataset._replace(mean=(.4, .5, .6), std=(.2, .3, .1))
  seen = data.make_transform('cifar', dataset, train=True, cutout=augment.FIT)(
      dataset.train.images, np.random.default_rng(5))
  rng = np.random.default_rng(5)
  dy, dx = rng.integers(0, 9, 30), rng.integers(0, 9, 30)
  mirrored = rng.random(30) < .5
  cy, cx = rng.integers(0, 32, 30), rng.integers(0, 32, 30)
  for i, image in enumerate(dataset.train.images):
    image = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    image = image[dy[i]:dy[i] + 32, dx[i]:dx[i] + 32]
    image = image[:, ::-1] if mirrored[i] else image
    image = (image / 255 - dataset.mean) / dataset.std
    y, x = np.mgrid[:32, :32]
    inside = ((y >= cy[i] - 8) & (y < cy[i] + 8)
              & (x >= cx[i] - 8) & (x < cx[i] + 8))
    image[inside] = 0
    np.testing.assert_allclose(seen[i], image, atol=1e-5)


@pytest.mark.parametrize('cutout, side', [(16, 8), (16, 16), (8, 8), (32, 32)])
def test_a_cutout_that_can_cover_an_image_is_refused(cutout, side):
  # The square of an even side around the middle then covers everything.
  image = np.ones((1, side, side, 1), np.float32)
  centre = np.full(1, side // 2)
  rng = types.SimpleNamespace(integers=lambda low, high, n: centre)
  assert not augment.cutout(image, rng, cutout).any()
  with pytest.raises(errors.UserError, match=(
      f'^config.retrain.cutout={cutout} must be below {side}, the side of the '
      'images in pixels')):
    data.make_transform('none', _dataset(4, side), train=True, cutout=cutout,
                        field='config.retrain.cutout')
  assert augment.cutout(image, rng, side - 2).any()
  data.make_transform('none', _dataset(4, side), train=True, cutout=side - 2)


def test_imagenet_test_crop():
  # 512 x 1024 fits as 256 x 512, of which the middle 224 x 224 stay.
  image = np.zeros((512, 1024, 3), np.uint8)
  image[:, 512:] = 255
  image[:30] = 100  # 15 rows after resizing; the 16 at the top are cut off
  dataset = _dataset()._replace(image_size=224)
  seen = data.make_transform('imagenet', dataset, train=False)([image], None)
  assert seen.shape == (1, 224, 224, 3)
  pixels = seen * dataset.std[0] + dataset.mean[0]
  np.testing.assert_allclose(pixels[0, :, :111], 0, atol=1e-6)
  np.testing.assert_allclose(pixels[0, :, 113:], 1, atol=1e-6)


def _imagenet_pixels(images, monkeypatch, jitter=None):
  """0..255 of the ImageNet training transform, of 24 x 24 pixels."""
  if jitter is not None:
    monkeypatch.setattr(augment, '_JITTER', jitter)
  dataset = _dataset()._replace(
      image_size=24, mean=(.485, .456, .406), std=(.229, .224, .225))
  seen = data.make_transform('imagenet', dataset, train=True)(
      images, np.random.default_rng(3))
  assert seen.dtype == np.float32 and seen.shape == (len(images), 24, 24, 3)
  return (seen * dataset.std + dataset.mean) * 255


def test_imagenet_training_crops_and_flips(monkeypatch):
  # Red is the column and green the row, so an image says what was cut out.
  y, x = np.mgrid[:200, :200].astype(np.uint8)
  image = np.stack([x, y, np.zeros_like(x)], -1)
  seen = _imagenet_pixels([image] * 600, monkeypatch, jitter={})
  # Away from the borders; a pixel of the result is a 24th of the part.
  part = seen[:, 6:18, 6:18]
  width = 24 / 11 * (part[:, :, -1, 0] - part[:, :, 0, 0]).mean(1)
  height = 24 / 11 * (part[:, -1, :, 1] - part[:, 0, :, 1]).mean(1)
  assert .42 < (width < 0).mean() < .58  # mirrored, 600 tosses
  assert (height > 0).all()
  width = np.abs(width)
  area, ratio = width * height / 200**2, width / height
  assert .06 < area.min() < .1 and .9 < area.max() < 1.03
  assert .7 < ratio.min() < .8 and 1.25 < ratio.max() < 1.42


def test_imagenet_training_jitters(monkeypatch):
  # Gray stays gray, and on one level only brightness shows.
  gray = np.full((30, 40, 3), 120, np.uint8)
  levels = _imagenet_pixels([gray] * 300, monkeypatch)
  assert np.ptp(levels, axis=(1, 2, 3)).max() < 2
  factors = levels.mean((1, 2, 3)) / 120
  assert .59 < factors.min() < .63 and 1.37 < factors.max() < 1.41
  # One colour: a shift of hue by up to a fifth of a turn, either way.
  colour = np.full((30, 40, 3), (90, 130, 90), np.uint8)
  pixels = _imagenet_pixels([colour] * 300, monkeypatch)[:, 0, 0]
  hues = np.array([
      colorsys.rgb_to_hsv(*p / 255)[0] for p in np.rint(pixels)]) - 1 / 3
  assert -.24 < hues.min() < -.17 and .17 < hues.max() < .24
  # Contrast and saturation both pull towards gray: (1 +- .4)^2 of it.
  spread = np.ptp(pixels, axis=1) / pixels.max(1)
  usual = (130 - 90) / 130
  assert spread.min() < .6 * usual and spread.max() > 1.4 * usual


def test_random_resized_crop_shapes():
  rng = np.random.default_rng(0)
  shares = []
  for _ in range(2000):
    areas = rng.uniform(.08, 1, 10)
    ratios = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3), 10))
    h, w = augment.crop_shape(300, 400, areas, ratios)
    assert 0 < h <= 300 and 0 < w <= 400
    assert 3 / 4 - .02 < w / h < 4 / 3 + .02
    shares.append(h * w / 120_000)
  assert .07 < min(shares) < .1 and max(shares) > .9
  # Nothing of an allowed shape and 90% of the area fits into a strip.
  assert augment.crop_shape(10, 400, np.full(10, .9), np.ones(10)) == (0, 0)


def test_random_resized_crop_of_ramps():
  # On a linear ramp a resized part is a ramp too, with the part's slope.
  rows = np.arange(200, dtype=np.uint8)[:, None, None]
  images = [np.tile(rows, (1, 200, 3))] * 50
  crops = augment.random_resized_crop(images, np.random.default_rng(0), 16)
  assert crops.shape == (50, 16, 16, 3)
  slopes = np.diff(crops[..., 0].astype(float), axis=1)[:, 2:-2]
  assert (np.ptp(slopes, axis=(1, 2)) <= 1).all()  # rounding to integers
  assert slopes.mean((1, 2)).min() < 6 and slopes.mean((1, 2)).max() > 9


def test_random_resized_crop_falls_back_to_the_centre():
  strip = np.zeros((9, 400, 3), np.uint8)
  strip[:, 190:210] = 255  # the centre is 12 wide: 9 x 4/3
  crop = augment.random_resized_crop(
      [strip], np.random.default_rng(0), 8, scale=(.9, 1.))
  assert (crop == 255).all()


def _jittered(images, **strength):
  return augment.color_jitter(images, np.random.default_rng(0), **strength)


def _draws(n, strength, which):
  """The factors that `color_jitter` draws: column 0, 1 or 2."""
  strengths = np.zeros(3)
  strengths[which] = strength
  return np.random.default_rng(0).uniform(
      1 - strengths, 1 + strengths, (n, 3))[:, which]


def _gray(images):
  return images @ np.array([.299, .587, .114])


def test_jitter_of_brightness_contrast_and_saturation():
  images = _images(30)
  wide = images.astype(float)
  factors = [_draws(30, .4, i)[:, None, None, None] for i in range(3)]
  level = np.array([_gray(i).mean() for i in wide])[:, None, None, None]
  expected = {
      'brightness': wide * factors[0],
      'contrast': level + (wide - level) * factors[1],
      'saturation': _gray(wide)[..., None]
                    + (wide - _gray(wide)[..., None]) * factors[2]}
  for name, value in expected.items():
    seen = _jittered(images, **{name: .4}).astype(float)
    # 8-bit steps: gray levels are rounded before the blend, then the result.
    assert np.abs(seen - value.clip(0, 255)).max() < 2.01, name


def test_jitter_of_hue():
  images = _images(20)
  seen = _jittered(images, hue=.2)
  rng = np.random.default_rng(0)
  rng.uniform(np.ones(3), np.ones(3), (20, 3))
  shifts = rng.uniform(-.2, .2, 20)
  error = []
  for before, after, shift in zip(images, seen, shifts):
    for p, q in zip(before.reshape(-1, 3), after.reshape(-1, 3)):
      h, s, v = colorsys.rgb_to_hsv(*p / 255)
      expected = np.array(colorsys.hsv_to_rgb((h + shift) % 1, s, v)) * 255
      error.append(np.abs(q - expected).max())
  # Hue has 255 steps, so a channel moves by up to 2 * 6 levels.
  assert np.max(error) < 12 and np.mean(error) < 4


def test_jitter_of_gray_images_leaves_out_colour():
  images = _images(channels=1)
  np.testing.assert_array_equal(
      _jittered(images, saturation=.4, hue=.2), images)
  assert _jittered(images, brightness=.4).shape == images.shape


def test_evaluation_batches_cover_the_split_once():
  dataset = _dataset(20)
  transform = data.make_transform('none', dataset, train=False)
  batches = data.evaluation_batches(dataset.test, 8, transform)
  assert len(batches) == 3
  seen = list(batches)
  assert all(b['image'].shape == (8, 9, 9, 3) for b in seen)
  masks = np.concatenate([b['mask'] for b in seen])
  assert masks.dtype == np.float32 and masks.tolist() == [1] * 20 + [0] * 4
  labels = np.concatenate([b['label'] for b in seen])
  np.testing.assert_array_equal(labels[:20], dataset.test.labels)
  images = np.concatenate([b['image'] for b in seen])
  np.testing.assert_array_equal(images[:20], transform(dataset.test.images))
  with data.prefetch(batches, 0, len(batches)) as ahead:
    for a, b in zip(ahead, seen):
      np.testing.assert_array_equal(a['image'], b['image'])
  with pytest.raises(errors.UserError, match='batch_size=0'):
    data.evaluation_batches(dataset.test, 0, transform)


@pytest.mark.parametrize('kind', [data.ArraySplit, data.LazySplit])
@pytest.mark.parametrize('workers', [None, 1, 4])
def test_prefetching_changes_nothing(kind, workers):
  batches = _batches(_dataset(kind=kind))
  with data.prefetch(batches, 2, 12, workers=workers) as ahead:
    seen = list(ahead)
  assert len(seen) == 10
  for step, batch in zip(range(2, 12), seen):
    np.testing.assert_array_equal(batch['image'], batches(step)['image'])


def test_prefetch_runs_ahead_by_its_depth_and_no_further():
  made = []
  steps = data.prefetch(lambda step: made.append(step) or step, 0, 100, 3)
  with steps:
    assert next(steps) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
      time.sleep(.001)
    assert made == [0, 1, 2, 3]


def test_prefetch_forwards_exceptions_and_stops_its_threads():
  def make(step):
    if step == 2:
      raise errors.UserError('image 7 is damaged')
    return step
  steps = data.prefetch(make, 0, 9)
  assert [next(steps), next(steps)] == [0, 1]
  with pytest.raises(errors.UserError, match='image 7'):
    next(steps)
  with pytest.raises(StopIteration):
    next(steps)
  assert not _threads()


def test_prefetch_ends_and_closes():
  assert list(data.prefetch(lambda step: step, 3, 3)) == []
  assert list(data.prefetch(lambda step: step, 3, 5)) == [3, 4]
  with data.prefetch(lambda step: step, 0, 10**9, workers=3) as steps:
    next(steps)
  assert not _threads()


def _threads():
  return [t for t in threading.enumerate() if t.name.startswith('batches')]


def test_prefetch_counts_the_seconds_waited():
  def make(step):
    time.sleep(.05)
    return step
  with data.prefetch(make, 0, 2) as steps:
    list(steps)
  assert .08 < steps.wait_seconds < 5
  with data.prefetch(lambda step: step, 0, 2) as steps:
    time.sleep(.05)
    list(steps)
  assert steps.wait_seconds < .04


def test_the_benchmark_makes_equal_distributions():
  # The same images in the same order; both augmentations of equal law, so
  # equal means: pixels of about unit variance, 64 * 3072 of them.
  dataset = benchmark.make_dataset()
  host, device = (maker(dataset, 64)(0) for maker in (
      benchmark.host_batches, benchmark.device_batches))
  np.testing.assert_array_equal(host['label'], device['label'])
  assert host['image'].dtype == device['image'].dtype
  assert abs(host['image'].mean() - device['image'].mean()) < .05
  rows = benchmark.run((8,), repeats=2)
  assert [row['where'] for row in rows] == ['host', 'device']
