"""Arrays of objects in an .npz: in nobody's way, and never loaded."""

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
