"""The stock operations compute what ours compute."""

import jax
import numpy as np
import pytest

from benchmarks import ops
from rome_jax.engine import operations

SHAPE = (2, 6, 6, 4)


def close(actual, expected, name):
  for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected),
                  strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5, err_msg=name)


def test_every_operation_is_timed():
  assert set(operations.OPS) <= set(ops.CASES)


# Each kernel once.
FEW = ['max_pool', 'avg_pool_3x3', 'skip_connect', 'conv_7x1_1x7', 'conv_3x3',
       'dil_conv_3x3', 'none']


@pytest.mark.parametrize('names,stride,ways', [
    (FEW, 2, ('top', 'stock')),
    *(pytest.param(list(ops.CASES), stride, ('switch', 'top', 'stock'),
                   marks=pytest.mark.slow) for stride in (1, 2))],
    ids=['few', 'all', 'all strided'])
def test_the_ways_agree(quick_jit, names, stride, ways):
  """Values and gradients of all cases in one program; float32 rounding."""
  problems = {name: ops.make_problem(name, stride, SHAPE) for name in names
              if stride == 1 or name not in ops._UNSTRIDED}

  @quick_jit
  def run(problems, index):
    return {name: {way: ops.both(f)(p.params, p.x, index, p.g) for way, f in
                   ops.jax_functions(name, SHAPE[-1], stride).items()
                   if way in ways} for name, p in problems.items()}

  for name, found in run(problems, np.int32(0)).items():
    assert found.keys() == set(ways) - (
        {'switch'} if name == 'noise' else set())
    for way, values in found.items():
      assert values[0].shape == problems[name].g.shape
      if name != 'noise':  # its key is its own
        close(values, found['top'], f'{name}, {way}')


def _kernels(params):
  """Ours in PyTorch's form, in the order in which they are applied."""
  def order(path_leaf):
    name = path_leaf[0][0].key
    return name[-1], name
  for _, w in sorted(jax.tree_util.tree_leaves_with_path(params), key=order):
    w = np.asarray(w)
    yield (w.T[:, :, None, None] if w.ndim == 2 else
           w.transpose(2, 0, 1)[:, None] if w.ndim == 3 else
           w.transpose(3, 2, 0, 1))


@pytest.mark.parametrize('name', [
    'sep_conv_7x7', 'conv_7x1_1x7', 'nor_conv_1x1', 'nor_conv_3x3'])
def test_the_references_further_operations(name):
  torch = pytest.importorskip('torch')
  params, x, _ = ops.make_problem(name, 2, SHAPE)
  expected = jax.jit(ops.jax_functions(name, SHAPE[-1], 2)['stock'])(
      params, x, 0)
  model = ops.CASES[name].torch(SHAPE[-1], 2)
  for parameter, kernel in zip(model.parameters(), _kernels(params),
                               strict=True):
    parameter.data = torch.tensor(kernel)
  with torch.no_grad():
    y = model(torch.tensor(np.asarray(x).transpose(0, 3, 1, 2)))
  np.testing.assert_allclose(
      y.numpy().transpose(0, 2, 3, 1), expected, rtol=1e-4, atol=2e-5)


def test_a_row_has_every_time():
  row = ops.measure(
      {'name': 'max_pool', 'stride': 1, 'shape': [2, 4, 4, 2], 'repeats': 1})
  ours = [key for key in ops.KEYS if 'torch' not in key]
  assert all(row[key] > 0 for key in ours) and set(ops.KEYS) <= set(row)
