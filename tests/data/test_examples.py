"""Data sets of examples: iterables, and grain's MapDataset."""

import doctest
import importlib
import itertools

import numpy as np
import pytest
from PIL import Image

import rome_jax as rj
from rome_jax import data, errors
from rome_jax.data import examples

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (40, 8, 8, 3), np.uint8)
LABELS = np.arange(40) % 2


@pytest.mark.parametrize('name', ['colours', 'examples', 'sources'])
def test_the_examples_in_docstrings(name):
  found = doctest.testmod(importlib.import_module(f'rome_jax.data.{name}'))
  assert found.attempted and not found.failed


def same(found, expected):
  for name in ('train', 'test'):
    a, b = getattr(found, name), getattr(expected, name)
    np.testing.assert_array_equal(a.get(np.arange(len(a))), b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
  assert found[3:9] == expected[3:9]  # classes, sizes, statistics, names


class Indexed:
  """As a data set of PyTorch."""

  def __getitem__(self, i):
    return Image.fromarray(IMAGES[i]), int(LABELS[i])  # IndexError at the end


@pytest.mark.parametrize('make', [
    Indexed,
    lambda: zip(IMAGES, LABELS),
    lambda: [(image, int(label)) for image, label in zip(IMAGES, LABELS)],
    lambda: ({'image': image, 'label': label, 'id': 3}
             for image, label in zip(IMAGES, LABELS))],
    ids=['indexed', 'zip', 'list', 'dicts'])
def test_an_iterable_is_what_its_arrays_are(make):
  same(data.from_examples(make()), data.from_arrays((IMAGES, LABELS)))


def test_training_and_test_apart_with_numbers_that_leave_gaps():
  found = data.from_examples(
      zip(IMAGES[:30], 5 * LABELS[:30]), zip(IMAGES[30:], 5 * LABELS[30:]))
  same(found, data.from_arrays((IMAGES[:30], LABELS[:30]),
                               (IMAGES[30:], LABELS[30:]),
                               class_names=('0', '5')))


def test_a_map_dataset_is_read_when_it_is_used():
  grain = pytest.importorskip('grain')
  seen = []

  def example(i):
    seen.append(i)
    return {'image': IMAGES[i], 'label': int(LABELS[i])}

  source = grain.MapDataset.range(40).map(example)
  split = examples.read(source, 'mine')
  assert sorted(set(seen)) == list(range(40))  # once, for the labels
  seen.clear()
  np.testing.assert_array_equal(split.get([7, 3]), IMAGES[[7, 3]])
  assert seen == [7, 3]
  same(data.from_examples(source), data.from_arrays((IMAGES, LABELS)))


def test_images_of_several_sizes_need_a_size():
  images = [IMAGES[0], IMAGES[1][:6], IMAGES[2], IMAGES[3]]
  with pytest.raises(errors.UserError, match='set image_size'):
    data.from_examples(zip(images, [0, 0, 1, 1]), name='mine')
  found = data.from_examples(zip(images, [0, 0, 1, 1]), image_size=6)
  assert found.train.get([0])[0].shape == (6, 6, 3)


@pytest.mark.parametrize('given, words', [
    (5, 'train is a int; it must be a grain MapDataset or an iterable'),
    ([], 'train holds no examples'),
    ([(IMAGES[0], 1), None], 'example 1 is a NoneType'),
    ([(IMAGES[0], 1, 2)], 'example 0 is a tuple'),
    ([{'image': IMAGES[0]}], 'label of example 0 has shape .. and type object'),
    ([(IMAGES[0] / 255, 1)], 'type float64; it must be uint8'),
    ([(IMAGES[0][..., :2], 1)], r'image of example 0 has shape \(8, 8, 2\)'),
    ([(IMAGES[0], .5)], 'label of example 0 .* must be one integer'),
    ([(IMAGES[0], 0), (IMAGES[1][..., :1], 1)], 'example 1 has 1 channels'),
    *[([(Image.fromarray(IMAGES[0]).convert(mode), 1)],
       f"has Pillow mode '{mode}'; convert it")
      for mode in ('P', 'HSV', 'YCbCr', 'RGBA', '1')],
    ([(IMAGES[0], -1), (IMAGES[1], 1)], 'label -1 is out of range')])
def test_what_are_no_examples(given, words):
  with pytest.raises(errors.UserError, match=words):
    data.from_examples(given, name='mine')


def test_an_iterable_without_an_end(monkeypatch):
  monkeypatch.setattr(examples, 'MOST_BYTES', 100 * IMAGES[0].nbytes)
  endless = zip(itertools.cycle(IMAGES), itertools.cycle(LABELS))
  with pytest.raises(errors.UserError, match='has no end: 43 examples'):
    data.from_examples(endless)


def test_a_map_dataset_without_an_end_or_with_holes():
  grain = pytest.importorskip('grain')
  source = grain.MapDataset.range(40).map(lambda i: (IMAGES[i], LABELS[i]))
  with pytest.raises(errors.UserError, match=r'given without repeat\(\)'):
    data.from_examples(source.repeat())
  with pytest.raises(errors.UserError, match='example 0 is a NoneType'):
    data.from_examples(source.filter(lambda example: False))


def test_what_a_run_takes():
  """A pair of arrays is (images, labels); of iterables, training and test."""
  from rome_jax import api
  whole = api._dataset_of((IMAGES, LABELS))
  same(api._dataset_of(zip(IMAGES, LABELS)), whole)
  pair = api._dataset_of((zip(IMAGES[:30], LABELS[:30]),
                          zip(IMAGES[30:], LABELS[30:])))
  assert (len(pair.train), len(pair.test)) == (30, 10)
  for wrong in (5, 'digits', {'image': IMAGES}):
    with pytest.raises(rj.UserError, match='dataset is a'):
      api._dataset_of(wrong)
