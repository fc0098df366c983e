"""Many devices give what one gives (on eight forced CPU devices)."""

import functools
import re
import types

import numpy as np
import pytest
import scripts

from rome_jax import errors
from rome_jax.config import checks, fields
from rome_jax.config import setup as door
from rome_jax.devices import mesh as mesh_lib
from rome_jax.methods import table

run = functools.partial(scripts.printed, 'eight_devices.py', timeout=900)


def test_the_gradient_of_a_switch_that_differs_between_devices():
  """Replicated weights, another branch per device: jax-ml/jax#40823.

  Sums over eight samples of d/dw (b + 1) w_b mean(x), by hand.
  """
  found = run('switch')
  np.testing.assert_allclose(found['found'], found['expected'], rtol=1e-6)


@pytest.mark.parametrize('meshes', [
    ['2x2'], pytest.param(['2x1', '1x4', '2x4', '8x1'],
                          marks=pytest.mark.slow)], ids=' '.join)
def test_two_steps_are_those_of_one_device(meshes):
  """State and metrics after two steps; sums differ in their order only.

  float32 sums of a few thousand terms: relative 2e-5.
  """
  found = run('step', *meshes)
  assert set(found) == set(meshes)
  assert max(found.values()) < 2e-5, found


@pytest.mark.parametrize('name', [
    'darts', *(pytest.param(name, marks=pytest.mark.slow)
               for name in table.METHODS if name not in (
                   'darts', 'rome_v2', 'random_search'))])
def test_every_method_on_four_devices(name):
  """One program for both updates, and one for each; with and without alpha."""
  found = run('method', name, '4x1')
  assert max(found.values()) < 2e-5, found


@pytest.mark.slow
def test_the_end_of_an_epoch_on_four_devices():
  """As on one device, the rollback too.

  Differences of gradients amplify rounding by 1 / h = 20: 2e-5 becomes 4e-4.
  """
  assert max(run('boundary', '4x1').values()) < 4e-4


@pytest.mark.slow
def test_micro_batches_are_those_of_one_device():
  """Each part of a batch is cut over the devices; search and retraining."""
  found = run('accumulate', '2x2', '4x1')
  assert max(found.values()) < 2e-5, found


@pytest.mark.parametrize('section, words', [
    ('search', 'batch_size=64 must be a multiple of 128 on a mesh of '
     'config.mesh.data=4 by config.mesh.sample=1 devices with '
     'config.search.accumulate=32'),
    ('retrain', 'batch_size=96 must be a multiple of 128 on a mesh of '
     'config.mesh.data=4 by config.mesh.sample=1 devices with '
     'config.retrain.accumulate=32')])
def test_parts_that_devices_cannot_share(section, words, monkeypatch):
  mesh = types.SimpleNamespace(size=4, shape={'data': 4, 'sample': 1})
  monkeypatch.setattr(mesh_lib, 'make_mesh', lambda *sizes: mesh)
  config = fields.defaults()
  config[section].accumulate = 16
  config.search.k = 4
  checks.validate(config)
  if section == 'search':
    assert door.make_mesh(config) is mesh
  config[section].accumulate = 32
  checks.validate(config)
  with pytest.raises(errors.UserError, match=re.escape(words)):
    door.make_mesh(config)


def test_one_device_needs_no_mesh():
  assert door.make_mesh(fields.defaults()) is None


@pytest.mark.parametrize('data, sample, words', [
    (2, 1, 'mesh.data=2'), (0, 3, 'mesh.sample=3')])
def test_more_devices_than_there_are(data, sample, words):
  config = fields.defaults()
  config.mesh.data, config.mesh.sample = data, sample
  with pytest.raises(errors.UserError, match=words):
    door.make_mesh(config)
