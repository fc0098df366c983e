"""A run continues on the data it began with, and on no other."""

import shutil

import numpy as np
import pytest
from PIL import Image

from rome_jax import config as config_lib
from rome_jax import data, errors
from rome_jax.cli import run as run_lib
from rome_jax.data import digest


def _arrays(n=60, size=8):
  images = np.random.default_rng(0).integers(
      0, 256, (n, size, size, 3), np.uint8)
  return images, np.arange(n) % 3


def _save_npz(path, images, labels):
  np.savez(path, images=images, labels=labels)


def _save_folder(root, images, labels):
  # BMP does not pack, so files of other images are as long.
  shutil.rmtree(root, ignore_errors=True)
  for i, (image, label) in enumerate(zip(images, labels)):
    folder = root / 'abc'[label]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f'{i}.bmp')


def _same(images, labels):
  return images, labels


def _inverted(images, labels):
  return 255 - images, labels


def _permuted(images, labels):
  return images, np.roll(labels, 1)


def _fewer(images, labels):
  return images[:-1], labels[:-1]


def _more(images, labels):
  return np.concatenate([images, images[:3]]), np.concatenate(
      [labels, labels[:3]])


def _smaller(images, labels):
  return np.ascontiguousarray(images[:, ::2, ::2]), labels


def _swapped(images, labels):
  images = images.copy()
  images[[0, 3]] = images[[3, 0]]  # of one class
  return images, labels


CHANGES = (_inverted, _permuted, _fewer, _more, _smaller, _swapped)
KINDS = {'npz': _save_npz, 'folder': _save_folder}


@pytest.mark.parametrize('change', [_same, *CHANGES])
@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('lazy', [False, True])
def test_the_digest_is_of_images_labels_and_splits(tmp_path, kind, change,
                                                   lazy):
  path, moved = tmp_path / 'set.npz', tmp_path / 'moved.npz'
  KINDS[kind](path, *_arrays())
  KINDS[kind](moved, *change(*_arrays()))
  before, after = (data.load(kind, str(p), lazy=lazy).digest
                   for p in (path, moved))
  assert len(before) == 64
  assert (before == after) == (change is _same)
  assert before != data.load(kind, str(path), lazy=lazy, seed=1).digest
  assert before == data.load(kind, str(path), image_size=16).digest


def test_the_digest_of_arrays():
  one, same, other = (
      data.from_arrays(pair).digest
      for pair in (_arrays(), _arrays(), _inverted(*_arrays())))
  assert one == same != other
  split = data.from_arrays(_arrays()).test
  assert data.from_arrays(_arrays(), (split.images, split.labels)
                          ).digest not in (one, other)


def test_images_that_are_decoded_from_elsewhere():
  def lazy(images, labels):
    split = data.LazySplit(lambda i: images[i], labels)
    return digest.of_splits(split, split)
  assert lazy(*_arrays()) == lazy(*_arrays())
  for change in (_inverted, _permuted, _fewer, _smaller):
    assert lazy(*_arrays()) != lazy(*change(*_arrays())), change


def test_only_some_pixels_of_many_images_are_read(monkeypatch):
  monkeypatch.setattr(digest, '_BYTES', 8 * 8 * 3 * 10)
  one = data.from_arrays(_arrays()).digest
  for change in CHANGES[:-1]:
    assert one != data.from_arrays(change(*_arrays())).digest, change


def test_a_file_that_went_away_is_named(tmp_path):
  _save_folder(tmp_path / 'x', *_arrays())
  dataset = data.load('folder', str(tmp_path / 'x'), lazy=True)
  gone = dataset.test.stored(0).path
  (tmp_path / 'x' / gone).unlink()
  with pytest.raises(errors.UserError, match=f'cannot read {gone}'):
    digest.of_splits(dataset.train, dataset.test)


class Reached(Exception):
  """The run got past its checks."""


@pytest.fixture
def until_compiling(monkeypatch):
  def stop(*_):
    raise Reached
  monkeypatch.setattr(run_lib, '_run_phases', stop)


def _config(kind, path, **fields):
  config = config_lib.defaults()
  config.update(dataset=kind, data_dir=str(path), space='s4',
                compilation_cache='', **fields)
  config.search.update(cells=3, channels=4, batch_size=8, epochs=1)
  config.search.alpha_start = 0
  config.retrain.update(cells=3, channels=4, batch_size=8, auxiliary=False)
  return config


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('kind', KINDS)
def test_a_run_is_not_continued_on_other_data(tmp_path, until_compiling, kind,
                                              change):
  path = tmp_path / 'set.npz'
  KINDS[kind](path, *_arrays())
  config = _config(kind, path)
  for _ in range(2):
    with pytest.raises(Reached):
      run_lib.run(config, tmp_path / 'run')
  before = (tmp_path / 'run' / run_lib.DATASET).read_bytes()
  KINDS[kind](path, *change(*_arrays()))
  with pytest.raises(errors.UserError, match=(
      f'run holds a run that began with other data: .* of {kind} have '
      'changed since; restore them or use another --workdir$')):
    run_lib.run(config, tmp_path / 'run')
  assert (tmp_path / 'run' / run_lib.DATASET).read_bytes() == before
  KINDS[kind](path, *_arrays())
  with pytest.raises(Reached):
    run_lib.run(config, tmp_path / 'run')


def test_all_seeds_are_tested_on_the_same_images(tmp_path):
  path = tmp_path / 'set.npz'
  _save_npz(path, *_arrays())
  first, second = (
      run_lib.prepare(_config('npz', path, seed=seed)).dataset
      for seed in (0, 1))
  np.testing.assert_array_equal(first.test.images, second.test.images)
  other = run_lib.prepare(_config('npz', path, split_seed=1)).dataset
  assert not np.array_equal(first.test.images, other.test.images)
  # Split as by the seed 0 of before, when there was only one.
  known = data.load('npz', str(path), seed=0)
  np.testing.assert_array_equal(first.test.images, known.test.images)
