"""Networks refuse images of integers and of other ranks in one sentence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rome_jax import errors, families, spaces
from rome_jax.families import darts
from rome_jax.spaces import genotypes

SIZES = {
    'darts': spaces.Sizes(3, 4, 10), 'nasbench201': spaces.Sizes(3, 4, 10),
    'nasbench1shot1': spaces.Sizes(3, 4, 10),
    'mobile': spaces.Sizes(3, 32, 10)}
SPACES = [spaces.SPACES[name] for name in (
    's2', 'nasbench201', 'nasbench1shot1_1', 'mobile_tiny')]


def network_of(space, rng=0):
  genotype = genotypes.random(space, np.random.default_rng(rng))
  return genotype, families.build(
      genotype, space, SIZES[space.family], stem='cifar')


def init(module, shape, dtype, *rest):
  return jax.eval_shape(
      lambda key: module.init(key, jnp.zeros(shape, dtype), *rest),
      jax.random.key(0))


@pytest.mark.parametrize('space', SPACES, ids=lambda space: space.family)
@pytest.mark.parametrize('shape, dtype, words', [
    ((2, 32, 32, 3), jnp.uint8, 'images have the dtype uint8; a network'),
    ((2, 32, 32, 3), jnp.int32, 'images have the dtype int32; a network'),
    ((2, 32, 32, 3), bool, 'images have the dtype bool; a network'),
    ((32, 32, 3), jnp.float32, r'images have the shape \[32, 32, 3\]')])
def test_images_that_no_network_reads(space, shape, dtype, words):
  genotype, network = network_of(space)
  with pytest.raises(errors.UserError, match=words):
    init(network, shape, dtype)
  supernet = families.supernet(space, SIZES[space.family], stem='cifar')
  with pytest.raises(errors.UserError, match=words):
    init(supernet, shape, dtype, families.arch_of(genotype, space))


@pytest.mark.parametrize('space', SPACES, ids=lambda space: space.family)
def test_float_images_are_read(space):
  assert 'params' in init(network_of(space)[1], (2, 32, 32, 3), jnp.float32)


@pytest.mark.parametrize('make', [
    lambda name: darts.Network(name, 3, 4, 10),
    lambda name: families.build(name, 's0', SIZES['darts']),
    lambda name: families.arch_of(name, 's0'),
    lambda name: families.nasbench201.Network(name, 3, 4, 10)])
def test_the_name_of_a_genotype_is_no_genotype(make):
  with pytest.raises(errors.UserError, match=(
      "genotype='DARTS_V2' must be a Genotype; genotypes.load reads names")):
    make('DARTS_V2')
