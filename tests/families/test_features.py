"""Feature maps by resolution, in every family."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import rome_jax as rj

IMAGES = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype('f')


def made(space, cells):
  space = rj.spaces.get_space(space)
  genotype = rj.genotypes.random(space, np.random.default_rng(3))
  return rj.build(genotype, space, rj.Sizes(cells, 4, 5, image_size=16))


@pytest.mark.parametrize('space, cells, sides', [
    ('s2', 3, [16, 8, 4]), ('nasbench201', 6, [16, 8, 4]),
    # Their pooling pads.
    ('nasbench1shot1_1', 3, [16, 9, 5]), ('nasbench_macro', 8, [8, 4, 2])])
def test_one_map_per_resolution(space, cells, sides):
  network = made(space, cells)
  shapes = jax.eval_shape(network.init, jax.random.key(0), IMAGES)
  assert set(shapes) == {'params', 'batch_stats'}
  found = jax.eval_shape(
      lambda variables: rj.features(network, variables, IMAGES), shapes)
  assert [maps.shape[1] for maps in found] == sides
  widths = [maps.shape[3] for maps in found]
  assert widths == sorted(widths)
  if space == 's2':  # Four nodes of 4, 8 and 16 channels.
    assert widths == [16, 32, 64]


def test_the_last_map_is_what_is_classified():
  network = made('s2', 3)
  variables = jax.jit(network.init)(jax.random.key(0), IMAGES)
  maps = rj.features(network, variables, IMAGES)[-1]
  head = variables['params']['head']
  logits = maps.mean((1, 2)) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(
      logits, network.apply(variables, IMAGES), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('network', [
    nn.Dense(2), rj.supernet('s2', rj.Sizes(3, 4, 5))])
def test_other_modules_have_none(network):
  with pytest.raises(rj.UserError, match='network=.* must be one of'):
    rj.features(network, {}, IMAGES)
