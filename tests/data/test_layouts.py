"""What is read of a folder or an .npz, and that the rest is said."""

import os

import numpy as np
import pytest
from PIL import Image

from rome_jax import config as config_lib
from rome_jax import data, errors
from rome_jax.cli import prepare
from rome_jax.cli import run as run_lib


def _fill(folder, values, end='.png'):
  """Writes an image of 8 x 8 equal pixels for each value."""
  folder.mkdir(parents=True, exist_ok=True)
  for value in values:
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(
        folder / f'{value}{end}')


def _classes(folder, start, n=4):
  """Writes classes a and b; a's images are darker."""
  for i, name in enumerate('ab'):
    _fill(folder / name, range(start + 100 * i, start + 100 * i + n))


def _values(split):
  return sorted(split.get([i])[0][0, 0, 0] for i in range(len(split)))


def _load(root, name='folder', **options):
  return data.load(name, str(root), **options)


@pytest.mark.parametrize('train', ['train', 'Train', 'TRAIN', 'training'])
@pytest.mark.parametrize('test', [
    'test', 'Test', 'testing', 'val', 'Val', 'valid', 'validation',
    'VALIDATION'])
def test_usual_names_of_splits(tmp_path, train, test):
  _classes(tmp_path / train, 0)
  _classes(tmp_path / test, 50, 2)
  dataset = _load(tmp_path)
  assert _values(dataset.train) == [0, 1, 2, 3, 100, 101, 102, 103]
  assert _values(dataset.test) == [50, 51, 150, 151]
  assert dataset.class_names == ('a', 'b') and not dataset.notes


def test_a_third_split_is_named(tmp_path):
  for name, start in (('train', 0), ('val', 20), ('test', 40)):
    _classes(tmp_path / name, start)
  dataset = _load(tmp_path)
  assert _values(dataset.test) == [40, 41, 42, 43, 140, 141, 142, 143]
  assert dataset.notes == ('not read: folder val',)


@pytest.mark.parametrize('name', ['folder', 'imagenet'])
@pytest.mark.parametrize('inside', ['.', 'unknown', 'test'])
def test_an_unlabelled_test_lies_beside_val(tmp_path, name, inside):
  _classes(tmp_path / 'train', 0)
  _classes(tmp_path / 'val', 20)
  _fill(tmp_path / 'test' / inside, range(200, 210))
  dataset = _load(tmp_path, name, image_size=8)
  assert _values(dataset.test) == [20, 21, 22, 23, 120, 121, 122, 123]
  assert dataset.notes == ('not read: folder test',)


@pytest.mark.parametrize('inside', ['.', 'unknown'])
def test_only_an_unlabelled_test_is_answered_with_a_way(tmp_path, inside):
  _classes(tmp_path / 'train', 0, 5)
  _fill(tmp_path / 'test' / inside, range(200, 210))
  with pytest.raises(errors.UserError, match=(
      'test has none of the class folders of .*train, so its images have no '
      f'labels; data_dir={tmp_path / "train"} holds out test_fraction')):
    _load(tmp_path)
  dataset = _load(tmp_path / 'train')
  assert (len(dataset.train), len(dataset.test)) == (8, 2)


def test_files_that_are_not_read_are_counted(tmp_path):
  _classes(tmp_path, 0, 10)
  _fill(tmp_path / 'a' / 'more', range(10, 13))
  _fill(tmp_path / 'a' / 'more' / 'deeper', range(13, 15))
  _fill(tmp_path, [30])
  for name in ('1.avif', '2.AVIF', '3.heic', 'README', '.hidden', '.DS_Store'):
    (tmp_path / 'b' / name).write_bytes(b'')
  dataset = _load(tmp_path)
  assert len(dataset.train) + len(dataset.test) == 20
  assert dataset.notes == (
      'not read: files .avif (2), files .heic (1), files without a suffix '
      '(1), images beside the class folders (1), images in folders inside '
      'class folders (5)',)


@pytest.mark.parametrize('name', ['folder', 'imagenet'])
@pytest.mark.parametrize('splits', [('train', 'val'), ('Train', 'test')])
def test_a_folder_one_level_too_high(tmp_path, name, splits):
  for start, split in enumerate(splits):
    _classes(tmp_path / 'flowers' / split, 10 * start)
  with pytest.raises(errors.UserError, match=(
      rf'; did you mean data_dir={tmp_path / "flowers"}\?$')):
    _load(tmp_path, name)
  assert len(_load(tmp_path / 'flowers', name, image_size=8).train) == 8


def test_class_folders_one_level_too_high(tmp_path):
  _classes(tmp_path / 'flowers', 0)
  with pytest.raises(errors.UserError, match=(
      rf'holds no images; .*; did you mean data_dir={tmp_path / "flowers"}\?')):
    _load(tmp_path)


def _arrays(start, n=12):
  images = np.zeros((n, 8, 8), np.uint8) + np.arange(
      start, start + n, dtype=np.uint8)[:, None, None]
  return images, np.arange(n) % 3


@pytest.mark.parametrize('name', [
    'x_val', 'x_valid', 'x_validation', 'X_val', 'val_images'])
def test_the_validation_arrays_of_an_npz_are_the_test(tmp_path, name):
  train, val = _arrays(0), _arrays(50)
  labels = name.replace('images', 'labels').replace('x_', 'y_').replace(
      'X_', 'y_')
  np.savez(tmp_path / 'a.npz', x_train=train[0], y_train=train[1],
           **{name: val[0], labels: val[1]})
  dataset = _load(tmp_path / 'a.npz', 'npz')
  assert _values(dataset.train) == [*range(12)]
  assert _values(dataset.test) == [*range(50, 62)]
  assert dataset.notes == (f'{name} is the test split',)


@pytest.mark.parametrize('images, labels', [
    ('x_{}', 'y_{}'), ('X_{}', 'Y_{}'), ('{}_images', '{}_labels')])
def test_arrays_that_nobody_reads_are_named(tmp_path, images, labels):
  arrays = {'ids': np.arange(3)}
  for split, start in (('train', 0), ('val', 50), ('test', 100)):
    arrays[images.format(split)], arrays[labels.format(split)] = _arrays(start)
  np.savez(tmp_path / 'a.npz', **arrays)
  dataset = _load(tmp_path / 'a.npz', 'npz')
  assert _values(dataset.train) == [*range(12)]
  assert _values(dataset.test) == [*range(100, 112)]
  assert dataset.notes == (
      f'not read: ids, {images.format("val")}, {labels.format("val")}',)


def test_a_run_says_what_it_read(tmp_path, monkeypatch, capsys):
  arrays = dict(zip(('images', 'labels'), _arrays(0, 60)))
  np.savez(tmp_path / 'a.npz', **arrays, more=np.arange(3))
  monkeypatch.setattr(run_lib, '_run_phases', lambda *_: 1 / 0)
  config = config_lib.defaults()
  config.update(dataset='npz', data_dir=str(tmp_path / 'a.npz'), space='s4',
                compilation_cache='')
  config.search.update(cells=3, channels=4, batch_size=8)
  config.retrain.update(cells=3, channels=4, batch_size=8, auxiliary=False)
  with pytest.raises(ZeroDivisionError):
    run_lib.run(config, tmp_path / 'run')
  line = ('data: npz, 48 training and 12 test images of 8 x 8 x 1, 3 classes; '
          'not read: more')
  assert capsys.readouterr().err.splitlines()[0] == line
  assert line in prepare.described(prepare.prepare(config))


@pytest.mark.parametrize('make', [
    os.mkfifo, lambda path: path.symlink_to('/dev/zero')])
def test_a_pipe_in_place_of_an_image(tmp_path, make):
  """To read it might never end."""
  for name in 'ab':
    (tmp_path / name).mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path / name / '0.png')
  make(tmp_path / 'b' / '1.png')
  with pytest.raises(errors.UserError, match='1.png is a pipe or a device'):
    data.load('folder', str(tmp_path))
