"""Sources of images: each real format, made small, and each way it breaks."""

import gzip
import io
import os
import pickle
import struct
import sys
import zlib

import numpy as np
import pytest
import scipy.io
from PIL import Image, ImageOps

from rome_jax import data, errors
from rome_jax.data import formats, sources, splits


def _rng():
  return np.random.default_rng(0)


def _images(n, size=32, channels=3):
  return _rng().integers(0, 256, (n, size, size, channels), np.uint8)


def _planar(images):
  """[n, 32, 32, 3] -> CIFAR's rows of 3072 bytes: red, green, blue."""
  return np.stack([
      np.concatenate([image[:, :, c].ravel() for c in range(3)])
      for image in images])


def _batches(per_file, fine):
  """The stems of CIFAR's files -> (images, labels), distinct everywhere."""
  stems = (['train', 'test'] if fine else
           [f'data_batch_{i}' for i in range(1, 6)] + ['test_batch'])
  images = _images(per_file * len(stems))
  labels = np.arange(len(images)) % (100 if fine else 10)
  cuts = [slice(i * per_file, (i + 1) * per_file) for i in range(len(stems))]
  return {s: (images[c], labels[c]) for s, c in zip(stems, cuts)}


def _write_binary(folder, fine=False):
  folder.mkdir(parents=True)
  content = _batches(2, fine)
  for stem, (images, labels) in content.items():
    rows = b''
    for row, label in zip(_planar(images), labels):
      rows += bytes([19, label] if fine else [label]) + row.tobytes()
    (folder / f'{stem}.bin').write_bytes(rows)
  return content


def _write_python(folder, fine=False, protocol=2):
  folder.mkdir(parents=True)
  content = _batches(2, fine)
  for stem, (images, labels) in content.items():
    value = {b'data': _planar(images), b'batch_label': stem.encode(),
             b'fine_labels' if fine else b'labels': labels.tolist()}
    (folder / stem).write_bytes(pickle.dumps(value, protocol))
  return content


def _check_cifar(dataset, content):
  names = list(content)
  train = [content[n] for n in names[:-1]]
  np.testing.assert_array_equal(
      dataset.train.images, np.concatenate([images for images, _ in train]))
  np.testing.assert_array_equal(
      dataset.train.labels, np.concatenate([labels for _, labels in train]))
  np.testing.assert_array_equal(dataset.test.images, content[names[-1]][0])
  np.testing.assert_array_equal(dataset.test.labels, content[names[-1]][1])
  assert dataset.train.labels.dtype == np.int32
  assert (dataset.image_size, dataset.image_channels) == (32, 3)


def test_digits():
  dataset = data.load('digits')
  assert len(dataset.train) + len(dataset.test) == 1797
  assert dataset.train.images.shape[1:] == (8, 8, 1)
  assert dataset.train.images.max() == 255
  assert dataset.num_classes == 10
  share = np.bincount(dataset.test.labels) / (
      np.bincount(dataset.test.labels) + np.bincount(dataset.train.labels))
  np.testing.assert_allclose(share, .2, atol=.005)
  pixels = dataset.train.images / 255
  assert dataset.mean == pytest.approx([pixels.mean()], abs=1e-12)
  assert dataset.std == pytest.approx([pixels.std()], abs=1e-12)
  again = data.load('digits', seed=3, test_fraction=.5)
  np.testing.assert_array_equal(again.test.images, dataset.test.images)


def test_digits_resized():
  dataset = data.load('digits', image_size=16)
  assert dataset.image_size == 16
  assert dataset.train.images.shape == (1438, 16, 16, 1)


@pytest.mark.parametrize('fine', [False, True])
@pytest.mark.parametrize('inside', [False, True])
def test_cifar_binary(tmp_path, fine, inside):
  folder = tmp_path / ('cifar-100-binary' if fine else 'cifar-10-batches-bin')
  content = _write_binary(folder, fine)
  dataset = data.load('cifar100' if fine else 'cifar10',
                      str(folder if inside else tmp_path))
  _check_cifar(dataset, content)
  assert dataset.num_classes == (100 if fine else 10)
  assert dataset.mean[0] == (.5071 if fine else .49139968)


@pytest.mark.parametrize('fine', [False, True])
@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
def test_cifar_python(tmp_path, fine, protocol):
  name = 'cifar-100-python' if fine else 'cifar-10-batches-py'
  content = _write_python(tmp_path / name, fine, protocol)
  _check_cifar(data.load('cifar100' if fine else 'cifar10', str(tmp_path)),
               content)


def test_python_2_pickle_is_read(tmp_path):
  # As Python 2 wrote the official files: byte strings, numpy.core names.
  raw = bytes(range(12))
  written = (
      b'\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n'
      b'cnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03K\x04\x86'
      b'cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN'
      b'J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x0c' + raw
      + b'tbU\x06labels](K\x01K\x02K\x03eu.')
  (tmp_path / 'file').write_bytes(written)
  content = formats.read_arrays(tmp_path / 'file')
  np.testing.assert_array_equal(
      content[b'data'], np.arange(12, dtype=np.uint8).reshape(3, 4))
  assert content[b'labels'] == [1, 2, 3]


class _Malicious:
  def __init__(self, function, *args):
    self.call = function, args

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('function, args', [
    (os.system, ('echo run > {path}',)),
    (eval, ("open(r'{path}', 'w')",)),
    (getattr, (np, 'ndarray')),
    (np.load, ('{path}',)),
])
def test_a_pickle_that_runs_code_is_refused(tmp_path, function, args):
  trace = tmp_path / 'trace'
  content = _write_python(tmp_path / 'cifar-10-batches-py')
  args = [a.format(path=trace) if isinstance(a, str) else a for a in args
          if not isinstance(a, type(np))] or ['x']
  value = {b'data': _planar(content['test_batch'][0]), b'labels': [1, 2],
           b'extra': _Malicious(function, *args)}
  (tmp_path / 'cifar-10-batches-py' / 'test_batch').write_bytes(
      pickle.dumps(value, 2))
  with pytest.raises(errors.UserError, match='test_batch .* not allowed'):
    data.load('cifar10', str(tmp_path))
  assert not trace.exists()


@pytest.mark.parametrize('value', [
    {b'data': np.zeros((2, 3072)), b'labels': [0, 1]},
    {b'data': np.array([None, {}], object), b'labels': [0, 1]},
    {b'data': np.zeros((2, 5), np.uint8), b'labels': [0, 1]},
    {b'data': b'', b'labels': [0, 1]},
    {b'labels': [0, 1]},
    {b'data': np.zeros((2, 3072), np.uint8), b'labels': [0, 10]},
    {b'data': np.zeros((2, 3072), np.uint8), b'labels': [0, -1]},
    {b'data': np.zeros((2, 3072), np.uint8), b'labels': [0]},
    {b'data': np.zeros((2, 3072), np.uint8), b'labels': ['a', 'b']},
    {b'data': np.zeros((2, 3072), np.uint8), b'labels': [[1, 2], [3]]},
    [1, 2], np.zeros(3, np.uint8),
])
def test_wrong_python_batches_are_refused(tmp_path, value):
  _write_python(tmp_path / 'cifar-10-batches-py')
  (tmp_path / 'cifar-10-batches-py' / 'test_batch').write_bytes(
      pickle.dumps(value, 2))
  with pytest.raises(errors.UserError, match='cifar-10-batches-py'):
    data.load('cifar10', str(tmp_path))


def test_damaged_cifar_is_refused(tmp_path):
  _write_binary(tmp_path / 'bin')
  _write_python(tmp_path / 'py')
  for folder, name in (('bin', 'data_batch_3.bin'), ('py', 'data_batch_3')):
    path = tmp_path / folder / name
    for wrong in (path.read_bytes()[:-5], b''):
      path.write_bytes(wrong)
      with pytest.raises(errors.UserError, match='data_batch_3'):
        data.load('cifar10', str(tmp_path / folder))
    path.unlink()
    with pytest.raises(errors.UserError, match='does not exist'):
      data.load('cifar10', str(tmp_path / folder))
  with pytest.raises(errors.UserError, match='does not hold cifar10'):
    data.load('cifar10', str(tmp_path))


def _write_svhn(folder, n=12, first=1):
  images = _images(n)
  labels = np.arange(n) % 10 + first
  for split in ('train', 'test'):
    scipy.io.savemat(folder / f'{split}_32x32.mat', {
        'X': images.transpose(1, 2, 3, 0),
        'y': labels[:, None].astype(np.uint8)})
  return images, labels


def test_svhn(tmp_path):
  images, labels = _write_svhn(tmp_path)
  dataset = data.load('svhn', str(tmp_path))
  np.testing.assert_array_equal(dataset.train.images, images)
  np.testing.assert_array_equal(dataset.test.labels, labels % 10)
  assert dataset.std == (.1980, .2010, .1970)


def test_wrong_svhn_is_refused(tmp_path):
  _write_svhn(tmp_path, first=0)
  with pytest.raises(errors.UserError, match='label 0 is out of range'):
    data.load('svhn', str(tmp_path))
  _write_svhn(tmp_path, first=2)
  with pytest.raises(errors.UserError, match='label 11|label 10'):
    data.load('svhn', str(tmp_path))
  path = tmp_path / 'train_32x32.mat'
  for wrong in (b'MATLAB 7.3 MAT-file', path.read_bytes()[:300], b''):
    path.write_bytes(wrong)
    with pytest.raises(errors.UserError, match='train_32x32.mat is damaged'):
      data.load('svhn', str(tmp_path))
  scipy.io.savemat(path, {'X': np.zeros((3, 4)), 'y': np.ones((4, 1))})
  with pytest.raises(errors.UserError, match=r'X has shape \(3, 4\)'):
    data.load('svhn', str(tmp_path))
  path.unlink()
  with pytest.raises(errors.UserError, match='does not exist'):
    data.load('svhn', str(tmp_path))


def _idx(array):
  return (struct.pack('>BBBB', 0, 0, 8, array.ndim)
          + struct.pack(f'>{array.ndim}I', *array.shape) + array.tobytes())


def _write_idx(folder, suffix='-idx{}-ubyte', zipped=False, labels=None):
  images = _images(12, 28, 1)[..., 0]
  if labels is None:
    labels = (np.arange(12) % 10).astype(np.uint8)
  pack = gzip.compress if zipped else bytes
  end = '.gz' if zipped else ''
  for split in ('train', 't10k'):
    for kind, array in (('images', images), ('labels', labels)):
      name = f'{split}-{kind}' + suffix.format(array.ndim) + end
      (folder / name).write_bytes(pack(_idx(array)))
  return images, labels


@pytest.mark.parametrize('name', ['mnist', 'fashion_mnist'])
@pytest.mark.parametrize('zipped', [False, True])
@pytest.mark.parametrize('suffix', ['-idx{}-ubyte', '.idx{}-ubyte'])
def test_idx(tmp_path, name, zipped, suffix):
  images, labels = _write_idx(tmp_path, suffix, zipped)
  dataset = data.load(name, str(tmp_path))
  np.testing.assert_array_equal(dataset.train.images[..., 0], images)
  np.testing.assert_array_equal(dataset.test.labels, labels)
  assert (dataset.image_size, dataset.image_channels) == (28, 1)
  assert dataset.mean == pytest.approx([images.mean() / 255])


def test_wrong_idx_is_refused(tmp_path):
  _write_idx(tmp_path, zipped=True)
  path = tmp_path / 'train-images-idx3-ubyte.gz'
  good = gzip.decompress(path.read_bytes())
  for wrong, message in (
      (path.read_bytes()[:-20], 'cannot be read'),
      (gzip.compress(good[:-1]), 'expected 9424 from its header'),
      (gzip.compress(good[:6]), 'expected 00000803'),
      (gzip.compress(b'PK' + good), 'begins with 504b'),
      (gzip.compress(b''), 'begins with nothing')):
    path.write_bytes(wrong)
    with pytest.raises(errors.UserError, match=message):
      data.load('mnist', str(tmp_path))
  path.unlink()
  with pytest.raises(errors.UserError, match='does not exist'):
    data.load('mnist', str(tmp_path))


def test_more_labels_than_images_are_refused(tmp_path):
  _write_idx(tmp_path, labels=np.zeros(13, np.uint8))
  with pytest.raises(errors.UserError, match='12 images but 13 labels'):
    data.load('mnist', str(tmp_path))


def test_npz(tmp_path):
  images, labels = _images(20, 12), np.arange(20) % 4
  path = tmp_path / 'set.npz'
  np.savez(path, x_train=images[:16], y_train=labels[:16, None],
           x_test=images[16:], y_test=labels[16:])
  dataset = data.load('npz', str(path))
  np.testing.assert_array_equal(dataset.train.images, images[:16])
  np.testing.assert_array_equal(dataset.test.labels, labels[16:])
  assert (dataset.num_classes, dataset.image_size) == (4, 12)
  np.testing.assert_allclose(
      dataset.mean, (images[:16] / 255).mean((0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(
      dataset.std, (images[:16] / 255).std((0, 1, 2)), rtol=1e-12)


def test_npz_without_test_is_cut_by_class(tmp_path):
  path = tmp_path / 'set.npz'
  images, labels = _images(40, 9, 1)[..., 0], np.arange(40) % 4
  np.savez(path, images=images, labels=labels)
  dataset = data.load('npz', str(path), test_fraction=.3, seed=1)
  np.testing.assert_array_equal(np.bincount(dataset.test.labels), [3] * 4)
  both = np.concatenate([dataset.train.images, dataset.test.images])
  assert len(both) == 40
  assert {i.tobytes() for i in both} == {i.tobytes() for i in images}
  other = data.load('npz', str(path), test_fraction=.3, seed=2)
  assert not np.array_equal(other.test.images, dataset.test.images)
  with pytest.raises(errors.UserError, match='test_fraction=1'):
    data.load('npz', str(path), test_fraction=1)


@pytest.mark.parametrize('arrays, message', [
    ({'x': _images(4)}, 'expected x_train and y_train'),
    ({'images': _images(4) / 255., 'labels': np.arange(4)}, 'float64'),
    ({'images': _images(4), 'labels': np.arange(4.)}, 'one integer per'),
    ({'images': _images(4), 'labels': np.arange(4) - 1}, 'label -1 is out'),
    ({'images': _images(4), 'labels': np.arange(3)}, '4 images but 3'),
    ({'images': _images(4)[:, :30], 'labels': np.arange(4) // 2},
     '30x32, not square; set image_size'),
    ({'images': np.zeros((4, 8, 8, 2), np.uint8), 'labels': np.arange(4)},
     'have shape'),
    ({'images': np.array([{}] * 4), 'labels': np.arange(4)}, 'type object'),
    ({'x_train': _images(4), 'y_train': np.arange(4), 'x_test': _images(4)},
     'no y_test'),
    ({'x_train': _images(4), 'y_train': np.arange(4), 'x_test': _images(4),
      'y_test': np.arange(4) + 1}, 'test: label 4 is out of range'),
    ({'x_train': _images(4), 'y_train': np.arange(4),
      'x_test': _images(4, 8), 'y_test': np.arange(4)}, 'in train but'),
    ({'images': _images(0), 'labels': np.arange(0)}, 'one integer'),
])
def test_wrong_npz_is_refused(tmp_path, arrays, message):
  np.savez(tmp_path / 'set.npz', **arrays)
  with pytest.raises(errors.UserError, match=message):
    data.load('npz', str(tmp_path / 'set.npz'))


@pytest.mark.parametrize('values', [
    (1, 2, 3), (0, 7, 255), (0, 1_000_000), (0, 1, 3), (10, 20, 30, 40, 50)])
@pytest.mark.parametrize('kind', [np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize('with_test', [False, True])
def test_labels_with_gaps_are_numbered_with_a_word(tmp_path, values, kind,
                                                   with_test):
  images, labels = _images(60, 8), np.array(values, kind)[
      np.arange(60) % len(values)]
  arrays = {'x_train': images, 'y_train': labels[:, None]}
  if with_test:  # Types may differ between the splits.
    arrays |= {'x_test': images[:20], 'y_test': labels[:20].astype(np.int32)}
  np.savez(tmp_path / 'set.npz', **arrays)
  dataset = data.load('npz', str(tmp_path / 'set.npz'))
  assert dataset.num_classes == len(values)
  assert dataset.class_names == tuple(map(str, values))
  assert f'labels {", ".join(map(str, values))} are classes 0 to' in (
      dataset.notes[0])
  label_of = {image.tobytes(): label for image, label in zip(images, labels)}
  for split in (dataset.train, dataset.test):
    for image, label in zip(split.images, split.labels):
      assert values[label] == label_of[image.tobytes()]


def test_labels_without_gaps_stay(tmp_path):
  for labels in (np.arange(40) % 4, np.arange(40, dtype=np.uint8) % 2):
    dataset = data.from_arrays((_images(40, 8), labels))
    assert (dataset.class_names, dataset.notes) == ((), ())
    assert dataset.num_classes == labels.max() + 1
  # A class may be met in the test alone, or be named and never met.
  pair = _images(40, 8), np.arange(40) % 4
  few = pair[1] != 2
  dataset = data.from_arrays((pair[0][few], pair[1][few]), pair)
  assert (dataset.num_classes, dataset.class_names) == (4, ())
  dataset = data.from_arrays((pair[0][few], pair[1][few]), class_names='abcd')
  assert dataset.num_classes == 4 and set(dataset.train.labels) == {0, 1, 3}


def test_a_test_label_that_training_lacks_is_refused():
  images = _images(40, 8)
  for train, test in ((np.arange(40) % 4, 4), (np.arange(40) % 2 * 5, 9)):
    with pytest.raises(errors.UserError, match=f'test: label {test} is out'):
      data.from_arrays((images, train), (images, np.full(40, test)))


@pytest.mark.parametrize('label', [0, 3])
def test_one_class_is_refused(tmp_path, label):
  pair = _images(40, 8), np.full(40, label)
  words = 'all 32 training images are of one class; expected at least two'
  with pytest.raises(errors.UserError, match=words):
    data.from_arrays(pair)
  np.savez(tmp_path / 'set.npz', images=pair[0], labels=pair[1])
  with pytest.raises(errors.UserError, match=words):
    data.load('npz', str(tmp_path / 'set.npz'))
  _write_idx(tmp_path, labels=np.full(12, label, np.uint8))
  with pytest.raises(errors.UserError, match='mnist: all 12 training images'):
    data.load('mnist', str(tmp_path))


def test_classes_of_one_image_cannot_be_split():
  with pytest.raises(errors.UserError, match=(
      'no class of the 6 images has two, so none can be held out')):
    data.from_arrays((_images(6, 8), np.arange(6)))
  labels = np.array([0, 0, 1, 2, 2])
  dataset = data.from_arrays((_images(5, 8), labels))
  np.testing.assert_array_equal(np.sort(dataset.test.labels), [0, 2])
  np.testing.assert_array_equal(np.sort(dataset.train.labels), [0, 1, 2])


def test_damaged_npz_is_refused(tmp_path):
  path = tmp_path / 'set.npz'
  np.savez(path, images=_images(4), labels=np.arange(4))
  for wrong in (path.read_bytes()[:-100], b'', b'PK\x03\x04 nothing'):
    path.write_bytes(wrong)
    with pytest.raises(errors.UserError, match='set.npz is damaged'):
      data.load('npz', str(path))
  with pytest.raises(errors.UserError, match='does not exist'):
    data.load('npz', str(tmp_path / 'other.npz'))
  with pytest.raises(errors.UserError, match='damaged|cannot'):
    data.load('npz', str(tmp_path))


def _write_folder(root, classes=('a', 'b'), n=5, size=(20, 20), end='.png',
                  mode='RGB'):
  for label, name in enumerate(classes):
    (root / name).mkdir(parents=True)
    for i in range(n):
      pixels = np.full((*size, 3), 40 * label + i, np.uint8)
      image = Image.fromarray(pixels).convert(mode)
      image.save(root / name / f'{i}{end}')


def test_folder_with_splits(tmp_path):
  _write_folder(tmp_path / 'train')
  _write_folder(tmp_path / 'val', n=2)
  (tmp_path / 'train' / 'a' / 'notes.txt').write_text('no image')
  dataset = data.load('folder', str(tmp_path))
  assert dataset.class_names == ('a', 'b')
  assert (dataset.image_size, dataset.image_channels) == (20, 3)
  np.testing.assert_array_equal(dataset.train.labels, [0] * 5 + [1] * 5)
  np.testing.assert_array_equal(
      dataset.train.images[:, 7, 3, 1], [*range(5), *range(40, 45)])
  np.testing.assert_array_equal(dataset.test.labels, [0, 0, 1, 1])


def test_folder_of_classes_is_cut(tmp_path):
  _write_folder(tmp_path, n=10, end='.jpg', mode='L')
  dataset = data.load('folder', str(tmp_path), image_size=8, lazy=True)
  assert dataset.train.lazy and dataset.image_channels == 1
  assert (len(dataset.train), len(dataset.test)) == (16, 4)
  image, = dataset.test.get([0])
  assert image.shape == (20, 20, 1)
  transform = data.make_transform('none', dataset, train=False)
  assert transform(dataset.test.get([0, 1])).shape == (2, 8, 8, 1)
  memory = data.load('folder', str(tmp_path), image_size=8)
  assert not memory.train.lazy
  np.testing.assert_array_equal(memory.test.labels, dataset.test.labels)
  np.testing.assert_array_equal(
      memory.test.images, splits.fit_all(dataset.test.get(range(4)), 8))


def test_imagenet(tmp_path):
  ids = ('n01440764', 'n02102040')
  _write_folder(tmp_path / 'train', ids, size=(40, 60), end='.JPEG')
  _write_folder(tmp_path / 'val', ids, 3, size=(50, 40), end='.JPEG', mode='L')
  dataset = data.load('imagenet', str(tmp_path), image_size=32)
  assert dataset.train.lazy and dataset.image_channels == 3
  assert dataset.class_names == ids
  assert dataset.mean == (.485, .456, .406)
  assert dataset.test.get([4])[0].shape == (50, 40, 3)
  assert data.load('imagenet', str(tmp_path)).image_size == 224


# Big-endian TIFF opens as 'I;16B', PGM as 'I' of 32 bits.
@pytest.mark.parametrize('end, order', [
    ('.png', '<'), ('.tif', '<'), ('.tif', '>'), ('.pgm', '<')])
def test_gray_of_16_bits_is_scaled(tmp_path, end, order):
  levels = np.arange(256).reshape(16, 16)
  # 128 levels off, 16 bits still round to the same 8.
  wide = {'a': levels * 257, 'b': np.clip(levels * 257 + 128, 0, 65535)}
  for name, pixels in wide.items():
    (tmp_path / name).mkdir()
    for i in range(2):
      Image.fromarray(pixels.astype(f'{order}u2')).save(
          tmp_path / name / f'{i}{end}')
  dataset = data.load('folder', str(tmp_path))
  assert dataset.image_channels == 1
  for split in (dataset.train, dataset.test):
    for image in split.images:
      np.testing.assert_array_equal(image[..., 0], levels)
  colours = splits.decode(tmp_path / 'a' / f'0{end}', 3, 'a')
  np.testing.assert_array_equal(colours, np.repeat(levels[..., None], 3, -1))


def test_colours_of_16_bits_are_scaled(tmp_path):
  levels = np.arange(256, dtype='>u2').reshape(16, 16) * np.uint16(257)
  rows = np.stack([levels, levels[::-1], levels.T], -1)
  path = tmp_path / 'wide.png'
  path.write_bytes(_png_of_16_bits(rows))
  np.testing.assert_array_equal(
      splits.decode(path, 3, 'wide'), rows // 257)


def _png_of_16_bits(pixels):
  """A PNG of [h, w, 3] integers below 65536, which Pillow cannot write."""
  def chunk(kind, content):
    return (struct.pack('>I', len(content)) + kind + content
            + struct.pack('>I', zlib.crc32(kind + content)))

  height, width, _ = pixels.shape
  header = struct.pack('>IIBBBBB', width, height, 16, 2, 0, 0, 0)
  lines = b''.join(b'\0' + row.astype('>u2').tobytes() for row in pixels)
  return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', header)
          + chunk(b'IDAT', zlib.compress(lines)) + chunk(b'IEND', b''))


def _save_turned(path, orientation, pixels, **options):
  """Writes an image whose viewer must turn it."""
  exif = Image.Exif()
  exif[0x112] = orientation
  Image.fromarray(pixels).save(path, exif=exif, **options)


@pytest.mark.parametrize('end', ['.png', '.jpg', '.tif', '.webp'])
@pytest.mark.parametrize('orientation', range(1, 9))
def test_images_are_turned_as_viewers_do(tmp_path, orientation, end):
  path = tmp_path / f'turned{end}'
  _save_turned(path, orientation, _images(1)[0, :, :20])
  with Image.open(path) as image:
    upright = ImageOps.exif_transpose(image)
    colours, gray = (np.asarray(upright.convert(m)) for m in ('RGB', 'L'))
  assert colours.shape[:2] == ((32, 20) if orientation < 5 else (20, 32))
  np.testing.assert_array_equal(splits.decode(path, 3, 'x'), colours)
  np.testing.assert_array_equal(splits.decode(path, 1, 'x')[..., 0], gray)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_gray_of_16_bits_is_turned(tmp_path, orientation):
  levels = np.arange(200).reshape(10, 20)
  path = tmp_path / 'wide.png'
  _save_turned(path, orientation, (levels * 257).astype(np.uint16))
  _save_turned(tmp_path / 'narrow.png', orientation, levels.astype(np.uint8))
  with Image.open(tmp_path / 'narrow.png') as image:
    expected = np.asarray(ImageOps.exif_transpose(image))
  np.testing.assert_array_equal(splits.decode(path, 1, 'x')[..., 0], expected)


def test_classes_that_differ_by_a_turn_stay_apart(tmp_path):
  pixels = np.zeros((16, 16), np.uint8)
  pixels[:4] = 255
  for orientation, name in ((1, 'top'), (6, 'right')):
    (tmp_path / name).mkdir()
    for i in range(5):
      _save_turned(tmp_path / name / f'{i}.png', orientation, pixels)
  dataset = data.load('folder', str(tmp_path))
  images = dataset.train.images[..., 0]
  right = dataset.train.labels == dataset.class_names.index('right')
  # A viewer turns orientation 6 clockwise: what was above is on the right.
  assert (images[right][:, :, 12:] == 255).all()
  assert (images[right][:, :, :12] == 0).all()
  assert (images[~right][:, :4] == 255).all()


def test_damaged_exif_data_are_passed_over(tmp_path):
  pixels = _images(1)[0]
  for name, exif in (('none', b'Exif\0\0'), ('short', b'Exif\0\0MM\0*\0\0'),
                     ('noise', b'Exif\0\0' + bytes(range(200, 255))),
                     ('nine', _exif_of(9)), ('zero', _exif_of(0))):
    path = tmp_path / f'{name}.png'
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(splits.decode(path, 3, name), pixels)


def _exif_of(orientation):
  exif = Image.Exif()
  exif[0x112] = orientation
  return exif.tobytes()


def _on_white(pixels):
  """What a viewer shows of RGBA pixels on a white page, in exact numbers."""
  alpha = pixels[..., 3:] / 255
  return pixels[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize('end', ['.png', '.webp', '.tif'])
def test_transparent_pixels_are_white(tmp_path, end):
  options = {'lossless': True, 'exact': True} if end == '.webp' else {}
  pixels = _images(1, channels=4)[0]
  pixels[:8, :, 3], pixels[8:16, :, 3] = 0, 255
  path = tmp_path / f'glyph{end}'
  Image.fromarray(pixels).save(path, **options)
  seen = splits.decode(path, 3, 'x')
  # Rounding to 8 bits, once for the blend.
  np.testing.assert_allclose(seen, _on_white(pixels), atol=1)
  assert (seen[:8] == 255).all()
  np.testing.assert_array_equal(seen[8:16], pixels[8:16, :, :3])
  gray = splits.decode(path, 1, 'x')[..., 0]
  np.testing.assert_allclose(
      gray, _on_white(pixels) @ [.299, .587, .114], atol=2)


def _gray_and_alpha(glyph):
  return Image.merge('LA', [Image.new('L', glyph.size), glyph])


def _palette(glyph):
  image = Image.eval(glyph, lambda v: v > 127).convert('P')
  image.putpalette([0, 255, 0, 0, 0, 0])
  image.info['transparency'] = 0
  return image


def _one_transparent_colour(glyph):
  image = Image.merge('RGB', [ImageOps.invert(glyph)] * 3)
  image.info['transparency'] = (255, 255, 255)
  return image


@pytest.mark.parametrize('form, end', [
    (_gray_and_alpha, '.png'), (_palette, '.png'), (_palette, '.gif'),
    (_one_transparent_colour, '.png')])
@pytest.mark.parametrize('channels', [1, 3])
def test_a_black_glyph_on_transparency_is_seen(tmp_path, form, end, channels):
  glyph = np.zeros((16, 16), np.uint8)
  glyph[4:12, 6:9] = 255
  path = tmp_path / f'glyph{end}'
  form(Image.fromarray(glyph)).save(
      path, **({'transparency': 0} if end == '.gif' else {}))
  seen = splits.decode(path, channels, 'x')
  np.testing.assert_array_equal(
      seen, np.repeat(255 - glyph[..., None], channels, -1))


def test_images_of_floats_are_refused(tmp_path):
  path = tmp_path / 'float.tif'
  Image.fromarray(np.full((4, 4), .5, np.float32)).save(path)
  with pytest.raises(errors.UserError, match='float.tif.*pixels are floats'):
    splits.decode(path, 1, str(path))


def test_wrong_folders_are_refused(tmp_path):
  def load(where, name='folder', **options):
    return data.load(name, str(tmp_path / where), **options)
  with pytest.raises(errors.UserError, match='is not a folder'):
    load('none')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.UserError, match='one folder of images per class'):
    load('empty')
  with pytest.raises(errors.UserError, match='no folder train'):
    load('empty', 'imagenet')
  _write_folder(tmp_path / 'x' / 'train')
  with pytest.raises(errors.UserError, match='none of test, val'):
    load('x')
  _write_folder(tmp_path / 'x' / 'test', ('a', 'c'))
  with pytest.raises(errors.UserError, match='c is a class that'):
    load('x')
  _write_folder(tmp_path / 'y')
  (tmp_path / 'y' / 'c').mkdir()
  with pytest.raises(errors.UserError, match='c holds no images'):
    load('y')
  _write_folder(tmp_path / 'z', ('a',), size=(20, 30))
  with pytest.raises(errors.UserError, match='are of one class'):
    load('z')
  _write_folder(tmp_path / 'z', ('c',), size=(20, 30))
  with pytest.raises(errors.UserError, match='20x30, not square'):
    load('z')
  _write_folder(tmp_path / 'z', ('b',), size=(20, 20))
  with pytest.raises(errors.UserError, match='20x20, 20x30.*set image_size'):
    load('z')
  path = tmp_path / 'z' / 'a' / '0.png'
  path.write_bytes(path.read_bytes()[:45])
  with pytest.raises(errors.UserError, match='0.png is not a readable image'):
    load('z', image_size=8)


# Ways in which a file of an image breaks.
DAMAGES = {
    'empty': lambda content: b'', 'text': lambda content: b'<html>404</html>',
    'cut': lambda content: content[:len(content) // 2],
    'header': lambda content: content[:20]}


@pytest.mark.parametrize('how', [*DAMAGES, 'gone'])
@pytest.mark.parametrize('end', ['.png', '.jpg', '.gif', '.tif', '.webp'])
def test_an_unreadable_image_met_in_training_is_named(tmp_path, how, end):
  _write_folder(tmp_path, n=10, end=end)
  dataset = data.load('folder', str(tmp_path), image_size=8, lazy=True)
  path = tmp_path / dataset.train.stored(5).path
  if how == 'gone':
    path.unlink()
  else:
    path.write_bytes(DAMAGES[how](path.read_bytes()))
  batches = data.Batches(
      dataset.train, None, len(dataset.train), 0,
      data.make_transform('cifar', dataset, train=True))
  words = f'{path} is not a readable image'
  with pytest.raises(errors.UserError, match=words):
    batches(0)
  with pytest.raises(errors.UserError, match=words), data.prefetch(
      batches, 0, 3) as reader:
    next(reader)


def test_any_damage_is_one_sentence_or_an_image(tmp_path):
  rng = np.random.default_rng(0)
  refused = 0
  for end in ('.png', '.jpg', '.gif', '.tif', '.webp', '.bmp', '.ppm'):
    path = tmp_path / f'x{end}'
    Image.fromarray(_images(1, 12)[0]).save(path)
    good = np.frombuffer(path.read_bytes(), np.uint8)
    for _ in range(100):
      bad = good.copy()
      bad[rng.integers(0, min(len(bad), 200), 4)] = rng.integers(0, 256, 4)
      try:
        image = splits.decode(io.BytesIO(bad.tobytes()), 3, 'x')
        assert image.ndim == 3 and image.dtype == np.uint8
      except errors.UserError as error:
        refused += 1
        assert str(error).startswith('x is not a readable image (')
  assert refused > 100


@pytest.mark.parametrize('lazy', [False, True])
def test_unreadable_images_are_left_out_on_request(tmp_path, lazy):
  _write_folder(tmp_path, n=10)
  for name in ('a/0.png', 'a/7.png', 'b/3.png'):
    (tmp_path / name).write_bytes(b'none')
  with pytest.raises(errors.UserError, match='is not a readable image'):
    data.load('folder', str(tmp_path), image_size=20)
  dataset = data.load('folder', str(tmp_path), lazy=lazy, skip_unreadable=True)
  assert dataset.notes == ('unreadable images left out: 3',)
  seen = sorted(split.get([i])[0][0, 0, 0] for split in (
      dataset.train, dataset.test) for i in range(len(split)))
  assert seen == sorted({*range(10), *range(40, 50)} - {0, 7, 43})
  for folder in 'ab':
    for path in (tmp_path / folder).iterdir():
      path.write_bytes(b'none')
  with pytest.raises(errors.UserError, match='no image can be read: .*a.0.png'):
    data.load('folder', str(tmp_path), skip_unreadable=True)


def _png(value):
  file = io.BytesIO()
  Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, 'PNG')
  file.seek(0)
  return file


def _prepare_tfds(folder, file_format='array_record', names=('a', 'b')):
  """Writes a set as TFDS itself prepares it, which needs no TensorFlow."""
  import tensorflow_datasets as tfds

  # Not registered, so that reading has only the files to go by.
  class TinyShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      features = tfds.features.FeaturesDict({
          'image': tfds.features.Image(
              shape=(None, None, 3), encoding_format='png'),
          'label': tfds.features.ClassLabel(names=names)})
      return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
      return {'train': self._generate_examples(6),
              'validation': self._generate_examples(4)}

    def _generate_examples(self, n):
      for i in range(n):
        yield i, {'image': _png(i), 'label': i % 2}

  TinyShapes(data_dir=str(folder), file_format=file_format
             ).download_and_prepare()


def test_tfds(tmp_path):
  before = 'tensorflow' in sys.modules
  _prepare_tfds(tmp_path)
  dataset = data.load('tfds:tiny_shapes', str(tmp_path))
  assert (len(dataset.train), len(dataset.test)) == (6, 4)
  values = dataset.train.images[:, 0, 0, 0]
  assert sorted(values) == list(range(6))
  np.testing.assert_array_equal(dataset.train.labels, values % 2)
  assert dataset.class_names == ('a', 'b')
  assert (dataset.image_size, dataset.image_channels) == (8, 3)
  lazy = data.load('tfds:tiny_shapes:1.0.0', str(tmp_path), lazy=True)
  np.testing.assert_array_equal(lazy.train.get([3])[0],
                                dataset.train.images[3])
  assert ('tensorflow' in sys.modules) == before


def test_wrong_tfds_is_refused(tmp_path):
  with pytest.raises(
      errors.UserError, match='tfds:nothing_like_it is not prepared'):
    data.load('tfds:nothing_like_it', str(tmp_path))


def test_damaged_tfds_is_refused(tmp_path):
  _prepare_tfds(tmp_path)
  folder = tmp_path / 'tiny_shapes' / '1.0.0'
  records = next(folder.glob('*train.array_record*'))
  info = folder / 'dataset_info.json'
  text = info.read_text()
  records.write_bytes(records.read_bytes()[:100])
  with pytest.raises(errors.UserError, match='tfds:tiny_shapes'):
    data.load('tfds:tiny_shapes', str(tmp_path))
  records.unlink()
  with pytest.raises(errors.UserError, match='tfds:tiny_shapes'):
    data.load('tfds:tiny_shapes', str(tmp_path))
  info.write_text(text.replace('array_record', 'tfrecord'))
  with pytest.raises(errors.UserError, match='file_format="array_record"'):
    data.load('tfds:tiny_shapes', str(tmp_path))
  info.write_text(text[:40])
  with pytest.raises(errors.UserError, match='tfds:tiny_shapes'):
    data.load('tfds:tiny_shapes', str(tmp_path))


def test_unknown_names_and_missing_fields():
  with pytest.raises(errors.UserError, match="did you mean 'cifar10'"):
    data.load('cifar-10')
  with pytest.raises(errors.UserError, match='data_dir is empty; svhn needs'):
    data.load('svhn')
  with pytest.raises(errors.UserError, match='image_size=-1'):
    data.load('digits', image_size=-1)
  assert set(sources.SOURCES) >= {
      'digits', 'cifar10', 'cifar100', 'svhn', 'mnist', 'fashion_mnist',
      'folder', 'npz', 'imagenet', 'tfds'}


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(sys.modules, 'tensorflow_datasets', None)
  with pytest.raises(errors.UserError, match='pip install tensorflow-d'):
    data.load('tfds:mnist')


def test_fit_keeps_proportions():
  # A white left half stays half after resizing; the sides are cut evenly.
  image = np.zeros((10, 40, 1), np.uint8)
  image[:, :20] = 255
  fitted = splits.fit(image, 10)
  assert fitted.shape == (10, 10, 1)
  assert (fitted[:, :5] == 255).all() and (fitted[:, 5:] == 0).all()
  assert splits.fit(image, 28, 32).shape == (28, 28, 1)


def test_constant_images_do_not_divide_by_zero():
  split = data.ArraySplit(np.full((3, 4, 4, 1), 255, np.uint8),
                          np.zeros(3, np.int32))
  mean, std = splits.statistics(split, 4)
  assert mean == (1.,) and std == (1 / 255,)


def test_digits_take_no_folder(tmp_path):
  """A folder that would be ignored is refused (the data set was forgotten)."""
  with pytest.raises(errors.UserError, match='must be empty with dataset=digi'):
    data.load('digits', str(tmp_path))


def test_a_tfds_set_that_is_not_prepared(tmp_path):
  with pytest.raises(errors.UserError, match='has no folder mnist; prepare it'):
    data.load('tfds:mnist', str(tmp_path))
