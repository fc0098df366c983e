"""Cutout with a chance that rises."""

import numpy as np
import pytest

from rome_jax import data, errors, families, spaces
from rome_jax.config import checks, fields
from rome_jax.methods import table
from rome_jax.spaces import Sizes
from rome_jax.train import recipes, search
from rome_jax.train.setup import Setup

N, SIZE, BATCH = 240, 10, 40


def dataset():
  """White images, so that what is cut is what is 0."""
  split = data.ArraySplit(np.full((N, SIZE, SIZE, 1), 255, np.uint8),
                          np.arange(N, dtype=np.int32) % 2)
  return data.Dataset('npz', split, split, 2, SIZE, 1, (0.,), (1.,))


def halves(**changes):
  recipe = recipes.SearchRecipe(
      augment='none', batch_size=BATCH, cutout=4, epochs=5, **changes)
  setup = Setup(spaces.S2, families.get(spaces.S2), table.darts,
                Sizes(2, 4, 2, SIZE, 1), 'cifar')
  return search.make_halves(setup, recipe, dataset(), 3)


def share_cut(batches, epoch):
  """Share of the images with a hole, in one epoch of 3 steps."""
  return np.mean([(batches(3 * epoch + i)['image'] == 0).any((1, 2, 3))
                  for i in range(3)])


def test_the_share_of_cut_images_rises_with_the_epoch():
  """0, .25, .5, .75, 1 of 120 images, within 4 standard deviations."""
  for half in halves(cutout_ramp=True)[:2]:
    for epoch, chance in enumerate([0, .25, .5, .75, 1]):
      found = share_cut(half, epoch)
      assert abs(found - chance) <= 4 * (chance * (1 - chance) / 120)**.5


def test_holes_are_those_of_cutout():
  """At most 4 x 4, clipped at the borders; all else is as it was."""
  ramped, plain = halves(cutout_ramp=True), halves()
  for batches in (ramped.train, plain.train):
    image = batches(12)['image'][..., 0]
    holes = (image == 0).sum((1, 2))
    assert holes.min() >= 4 and holes.max() == 16
    assert set(np.unique(image)) == {0., 1.}
  np.testing.assert_array_equal(ramped.train(2)['label'],
                                plain.train(2)['label'])


def test_rows_are_those_of_the_whole_batch():
  batches = halves(cutout_ramp=True).valid
  rows = np.array([1, 5, 39])
  np.testing.assert_array_equal(
      batches(7, rows)['image'], batches(7)['image'][rows])
  weighted = batches.weighted(np.ones(120))
  np.testing.assert_array_equal(
      weighted(7)['image'], batches(7)['image'])


def test_there_must_be_something_to_cut():
  config = fields.defaults()
  config.search.cutout_ramp = True
  with pytest.raises(errors.UserError, match='cutout_ramp must be false with'):
    checks.validate(config)
