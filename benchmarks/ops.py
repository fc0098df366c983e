"""Every candidate operation and the kernels under them, beside stock JAX.

  python -m benchmarks.ops [--json] [--out=FILE] [--names=NAME,...]
      [--shapes=64x32x32x16,64x16x16x32,64x8x8x64] [--strides=1,2] ...

One row per operation (`rome_jax.engine.operations.OPS`) or kernel, stride and
shape [B,H,W,C] of its input. `forward_*` are seconds of the operation,
`both_*` of the operation and its gradients with respect to weights and input,
medians of rounds in which the ways run in turn:

  switch               ours as a search runs it: one of two branches of
                       `rome_jax.engine.switch`, which keeps only the input
                       and runs the operation again in the backward pass. (An
                       operation that draws noise cannot be one of those.)
  top                  ours at the top level of a program.
  stock                stock JAX, differentiated by JAX (`benchmarks.stock`).
  torch                eager PyTorch on the same cores.
  torch_channels_last  the same with its images in that layout.

PyTorch's are null where it is not installed, where JAX does not run on the
CPU, and for operations that the reference does not have.
"""

import functools
import importlib.util
import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import grid, stock, timing
from rome_jax import errors
from rome_jax.engine import kernels, operations
from rome_jax.engine import switch as switch_lib

WAYS = ('switch', 'top', 'stock', 'torch', 'torch_channels_last')
PASSES = ('forward', 'both')
SHAPES = ((64, 32, 32, 16), (64, 16, 16, 32), (64, 8, 8, 64))
KEYS = tuple(f'{part}_{way}' for part in PASSES for way in WAYS)
_QUICK = ('sep_conv_3x3', 'max_pool')


class Case(NamedTuple):
  """What is timed.

  Attributes:
    module: (channels, stride) -> ours, a Flax module.
    stock: stride -> (params, x) -> y.
    torch: (channels, stride) -> a PyTorch module, or None.
  """

  module: Callable
  stock: Callable
  torch: Callable | None


def _operation(name):

  def torch_module(channels, stride):
    from benchmarks import torch_reference
    make = torch_reference.OPS.get(name)
    return make and make(channels, stride)

  def module(channels, stride):
    del channels
    return operations.build(name, operations.Context(
        stride, operations.BatchStatistics, pool_norm=True))

  return Case(module, stock.OPS[name], torch_module)


def _depthwise(kernel, dilation):

  def torch_module(channels, stride):
    from torch import nn
    return nn.Conv2d(
        channels, channels, kernel, stride, dilation * (kernel // 2),
        dilation, groups=channels, bias=False)

  return Case(
      lambda channels, stride: operations.Depthwise(kernel, stride, dilation),
      lambda stride: lambda params, x: stock.depthwise(
          x, params['kernel'], stride, dilation),
      torch_module)


def _pool(ours, theirs, name, **options):

  def torch_module(channels, stride):
    del channels
    from torch import nn
    return getattr(nn, name)(3, stride, padding=1, **options)

  return Case(lambda channels, stride: operations.Pool(ours, stride, None),
              lambda stride: lambda params, x: theirs(x, stride),
              torch_module)


def _torch_norm(channels, stride):
  del stride
  from torch import nn
  return nn.BatchNorm2d(channels, affine=False, track_running_stats=False)


def _torch_conv(channels, stride):
  from torch import nn
  return nn.Conv2d(channels, channels, 3, stride, 1, bias=False)


CASES: dict[str, Case] = {
    **{name: _operation(name) for name in operations.OPS if name in stock.OPS},
    'depthwise_3x3': _depthwise(3, 1),
    'depthwise_5x5': _depthwise(5, 1),
    'depthwise_3x3_dilated': _depthwise(3, 2),
    'depthwise_5x5_dilated': _depthwise(5, 2),
    'max_pool': _pool(kernels.max_pool, stock.max_pool, 'MaxPool2d'),
    'avg_pool': _pool(kernels.avg_pool, stock.avg_pool, 'AvgPool2d',
                      count_include_pad=False),
    'batch_norm': Case(
        lambda channels, stride: operations.BatchStatistics(),
        lambda stride: lambda params, x: stock.batch_norm(x), _torch_norm),
    'conv_3x3': Case(
        lambda channels, stride: operations.Conv(channels, 3, stride),
        lambda stride: lambda params, x: stock.conv(
            x, params['kernel'], (stride,) * 2), _torch_conv),
}
_UNSTRIDED = ('batch_norm',)


class Problem(NamedTuple):
  """Arrays of a case: parameters, input, and the gradient of the output."""

  params: dict
  x: jax.Array
  g: jax.Array


def make_problem(name: str, stride: int, shape) -> Problem:
  """Random arrays in the law of the package's initialisation."""
  module = CASES[name].module(shape[-1], stride)
  x_key, g_key, key = jax.random.split(jax.random.key(0), 3)
  x = jax.random.normal(x_key, shape)
  variables = module.init({'params': key, 'noise': key}, x)
  b, h, w, c = shape
  g = jax.random.normal(g_key, (b, -(-h // stride), -(-w // stride), c))
  return Problem(variables.get('params', {}), x, g)


def jax_functions(name: str, channels: int, stride: int) -> dict[str, Callable]:
  """{way: (params, x, index of the branch) -> y}, to be jitted."""
  case = CASES[name]
  module, theirs = case.module(channels, stride), case.stock(stride)

  def top(params, x, index):
    del index
    return module.apply(
        {'params': params}, x, rngs={'noise': jax.random.key(0)})

  def switch(params, x, index):
    modules = module, operations.Zero(stride)
    return switch_lib.switch(modules, index, (params, {}), jnp.ones(()), x)

  functions = {'top': top,
               'stock': lambda params, x, index: theirs(params, x)}
  return functions if name == 'noise' else {'switch': switch, **functions}


def both(function: Callable) -> Callable:
  """(params, x, index, g) -> the value, and the gradients at g."""

  def run(params, x, index, g):
    y, pull = jax.vjp(
        lambda params, x: function(params, x, index), params, x)
    return y, pull(g)

  return run


def _compiled(name, stride, problem):
  """{(pass, way): function of nothing that waits for its result}."""
  params, x, g = problem
  index = jnp.zeros((), jnp.int32)
  found = {}
  for way, function in jax_functions(name, x.shape[-1], stride).items():
    for part, form, args in (('forward', function, (params, x, index)),
                             ('both', both(function), (params, x, index, g))):
      program = jax.jit(form).lower(*args).compile()
      found[part, way] = functools.partial(
          lambda program, args: jax.block_until_ready(program(*args)),
          program, args)
  return found


def _torch(name, stride, problem):
  """The same for PyTorch."""
  import torch

  torch.set_num_threads(os.cpu_count())
  module = CASES[name].torch(problem.x.shape[-1], stride)
  if module is None:
    return {}
  found = {}
  for way, layout in (('torch', torch.contiguous_format),
                      ('torch_channels_last', torch.channels_last)):
    model = CASES[name].torch(problem.x.shape[-1], stride).to(
        memory_format=layout)
    x, g = (torch.tensor(np.asarray(a).transpose(0, 3, 1, 2)).contiguous(
        memory_format=layout) for a in (problem.x, problem.g))

    def forward(model=model, x=x):
      with torch.no_grad():
        model(x)

    def backward(model=model, x=x, g=g):
      model.zero_grad(set_to_none=True)
      model(x.detach().requires_grad_()).backward(g)

    found |= {('forward', way): forward, ('both', way): backward}
  return found


def measure(cell: dict) -> dict:
  """The row of a cell, see the module's docstring."""
  name, stride = cell['name'], cell['stride']
  row = {**cell, **dict.fromkeys(KEYS), **grid.environment(), 'error': None}
  problem = make_problem(name, stride, cell['shape'])
  functions = _compiled(name, stride, problem)
  if row['backend'] == 'cpu' and importlib.util.find_spec('torch'):
    functions |= _torch(name, stride, problem)
  for part in PASSES:
    mine = {way: f for (p, way), f in functions.items() if p == part}
    times = timing.interleaved(mine, cell['repeats'], primed=True)
    row |= {f'{part}_{way}': times[way]['median'] for way in mine}
  return row


def make_cells(args) -> list[dict]:
  """Every case asked for."""
  grid.check_names('names', args.names, CASES)
  if not set(args.strides) <= {1, 2}:
    raise errors.UserError(
        f'--strides={args.strides} must be 1, 2 or both')
  chosen, shapes, strides = args.names, args.shapes, args.strides
  repeats = args.repeats
  if args.quick:
    chosen, shapes, strides, repeats = _QUICK, [(2, 4, 4, 2)], [1], 2
  return [
      {'name': name, 'stride': stride, 'shape': list(shape),
       'repeats': repeats}
      for shape in shapes for name in chosen for stride in strides
      if stride == 1 or name not in _UNSTRIDED]


def _shapes(text):
  return [tuple(int(n) for n in part.split('x')) for part in text.split(',')]


def _table(rows):
  """In milliseconds."""
  shown = [{**row, 'shape': 'x'.join(map(str, row['shape'])),
            **{key: row.get(key) and 1e3 * row[key] for key in KEYS}}
           for row in rows]
  return grid.text_table(shown, {
      'name': '', 'stride': 'd', 'shape': '', **dict.fromkeys(KEYS, '.2f')})


def _parse(argv):
  parser = grid.parser('benchmarks.ops', __doc__)
  parser.add_argument('--names', type=grid.names, default=list(CASES))
  parser.add_argument('--shapes', type=_shapes, default=list(SHAPES))
  parser.add_argument('--strides', type=grid.numbers, default=[1, 2])
  parser.add_argument('--repeats', type=int, default=20)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the benchmark; see `grid.run` for the exit code."""
  argv = sys.argv[1:] if argv is None else argv
  return grid.run(
      'benchmarks.ops', _parse(argv), argv, make_cells, measure, _table,
      in_process=True)


if __name__ == '__main__':
  sys.exit(main())
