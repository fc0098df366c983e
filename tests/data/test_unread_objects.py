"""Arrays of objects in an .npz: in nobody's way, and never loaded."""

import gzip
import io
import pickle
import resource
import zipfile

import numpy as np
import pytest

from rome_jax import data, errors
from rome_jax.data import formats


class Trap:
  """Fails if it is ever loaded."""

  def __reduce__(self):
    return exec, ('raise AssertionError("an object was loaded")',)


def saved(tmp_path, **arrays):
  images = np.arange(40 * 64, dtype=np.uint8).reshape(40, 8, 8)
  np.savez(tmp_path / 'a.npz', **{
      'images': images, 'labels': np.arange(40) % 4} | arrays)
  return str(tmp_path / 'a.npz')


@pytest.mark.parametrize('extra', [
    np.array([Trap()]), np.array([[Trap(), None]]), np.array(Trap(), object),
    np.array([('a', Trap())], [('x', 'U3'), ('y', object)])])
def test_an_array_of_objects_that_nobody_reads(tmp_path, extra):
  path = saved(tmp_path, meta=extra)
  dataset = data.load('npz', path)
  assert len(dataset.train) + len(dataset.test) == 40
  assert formats.read_npz(path)['meta'].shape == extra.shape


@pytest.mark.parametrize('name', ['images', 'labels'])
def test_one_that_is_needed_is_refused(tmp_path, name):
  path = saved(tmp_path, **{name: np.array([Trap()] * 40)})
  with pytest.raises(errors.UserError, match=r'shape \(40,\) and type object'):
    data.load('npz', path)


def test_bytes_without_reading(tmp_path):
  """An .npy header has 128 bytes, images 40 * 64, labels 40 * 8."""
  path = saved(tmp_path)
  assert formats.npz_bytes(path) == 40 * 64 + 40 * 8 + 2 * 128
  assert formats.npz_bytes(tmp_path / 'none.npz') == 0
  (tmp_path / 'b.npz').write_bytes(b'no archive')
  assert formats.npz_bytes(tmp_path / 'b.npz') == 0


def test_a_device_has_no_end():
  assert formats.npz_bytes('/dev/zero') == 0
  with pytest.raises(errors.UserError, match='/dev/zero is no file'):
    formats.read_npz('/dev/zero')


def small(tmp_path, body):
  (tmp_path / 'data_batch_1').write_bytes(body)
  return tmp_path / 'data_batch_1'


def test_lists_that_share_lists_do_not_multiply(tmp_path):
  """40 levels of ten references each; to copy them takes 10**40 steps."""
  value = [0]
  for _ in range(40):
    value = [value] * 10
  path = small(tmp_path, pickle.dumps(value))
  with pytest.raises(errors.UserError, match='more than 1,000,000 values'):
    formats.read_arrays(path)


def test_an_index_sets_no_memory_aside(tmp_path):
  """Of C's reader this index takes 32 GB."""
  path = small(tmp_path, b'\x80\x02]r\xff\xff\xff\x7f(K\x01K\x02e.')
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert formats.read_arrays(path) == [1, 2]
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20


def test_what_unpacks_to_too_much(tmp_path, monkeypatch):
  monkeypatch.setattr(formats, '_UNPACKED', 2**21)
  path = tmp_path / 'train-images-idx3-ubyte.gz'
  path.write_bytes(gzip.compress(bytes(2**21)))
  assert len(formats.read_bytes(path)) == 2**21
  path.write_bytes(gzip.compress(bytes(2**24)))
  with pytest.raises(errors.UserError, match='unpacks to more than 2,097,152'):
    formats.read_bytes(path)


def test_a_header_that_promises_more_than_there_is_memory(tmp_path):
  path = tmp_path / 'a.npz'
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(header, {
      'descr': '|u1', 'fortran_order': False, 'shape': (2**50, 8, 8)})
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('images.npy', header.getvalue() + bytes(64))
  with pytest.raises(errors.UserError, match='damaged or not an .npz'):
    formats.read_npz(path)
