"""Fixtures shared by the tests.

With ROME_JAX_TEST_CACHE set, compiled programs are kept in `.jax_cache` of
the repository, which makes a second run of the tests quicker.
"""

import os
import pathlib

if os.environ.get('ROME_JAX_TEST_CACHE'):
  os.environ.setdefault(
      'JAX_COMPILATION_CACHE_DIR',
      str(pathlib.Path(__file__).parents[1] / '.jax_cache'))

import jax  # noqa: E402  after the environment is set
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jax.experimental.compilation_cache import (  # noqa: E402
    compilation_cache,
)

from rome_jax import spaces  # noqa: E402
from rome_jax.engine import archs

if not hasattr(jax, 'enable_x64'):  # Where JAX before 0.8 has it.
  from jax.experimental import enable_x64

  jax.enable_x64 = enable_x64


def _hurried(function):
  return jax.jit(function, compiler_options={
      'xla_backend_optimization_level': 0,
      'xla_cpu_use_fusion_emitters': False})


@pytest.fixture(scope='session')
def quick_jit():
  """`jax.jit` for programs that run once: compiles in a third of the time.

  Plain `jax.jit` where XLA does not know these options.
  """
  try:
    _hurried(lambda x: x + 1)(1.)
  except jax.errors.JaxRuntimeError:
    return jax.jit
  return _hurried


@pytest.fixture(scope='module')
def compiles_once(tmp_path_factory):
  """Compiles little, and every program once."""
  values = {'jax_disable_most_optimizations': True,
            'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('cache')),
            'jax_persistent_cache_min_compile_time_secs': 0.}
  before = {name: jax.config.values[name] for name in values}
  for name, value in values.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.fixture(scope='session')
def tiny():
  """Two nodes, five edges, three operations: 3 * 3**4 cells."""
  return spaces.Space(
      'tiny', ('skip_connect', 'sep_conv_3x3', 'max_pool_3x3'), num_nodes=2)


@pytest.fixture(scope='session')
def fill():
  """f(tree of shapes, seed): the same tree with normal float arrays."""

  def filled(tree, seed=0, scale=.5, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(dtype), tree)

  return filled


@pytest.fixture(scope='session')
def cell_arch():
  """f(edges, ops): a CellArch whose gates are 1."""

  def make(edges, ops, dtype=np.float32):
    return archs.CellArch(
        np.asarray(edges, np.int32), np.asarray(ops, np.int32),
        np.ones(len(edges), dtype))

  return make


@pytest.fixture(scope='session')
def edge_weights():
  """f(cell parameters, space, reduction, edge, op name): that op's own.

  Says anew, without the code of `cells`, where a search cell keeps the
  weights of an edge: {group: {operation: leaves [edges of the group, ...]}}.
  Works on trees of weights and of gradients; {} for a free operation.
  """

  def find(cell, space, reduction, edge, op):
    strided = [reduction and p < 2 for p in space.edge_preds]
    group = 'strided_edges' if strided[edge] else 'edges'
    names = space.site_ops('reduce' if reduction else 'normal')
    row = sum(s == strided[edge] and op in names[e]
              for e, s in enumerate(strided[:edge]))
    stacked = cell.get(group, {}).get(op, {})
    return jax.tree.map(lambda leaf: leaf[row], stacked)

  return find
