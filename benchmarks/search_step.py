"""The complete search step beside PyTorch: compile time, memory, speed.

  python -m benchmarks.search_step [--json] [--k=1,4,7]
      [--parallel=scan,vmap] [--batch=64] [--no-torch] ...

One row per way of evaluating K and per K. `--json` prints the list of rows
and nothing else on stdout; progress goes to stderr.

The complete step is Algorithm 1 as the search runs it: K samples for alpha
and beta (no weight gradients), Adam; K fresh samples for theta, clip, SGD.

  trace_seconds     Python to StableHLO of the complete step.
  compile_seconds   tracing and compiling it, cold: JAX's caches are emptied
                    before and the persistent one is off.
  temp_bytes        its `memory_analysis().temp_size_in_bytes`: buffers beside
                    arguments (weights, optimiser, images) and results.
  step_seconds      median over the repeats.
  images_per_second 2 * K * batch / step_seconds: images that went through a
                    sampled network, forward and backward; 2 for the two
                    halves of the step.
  sample_seconds    loss and gradient with respect to theta of one sampled
                    architecture: median of K of them, divided by K. All K are
                    one compiled call in the row's mode that sums their
                    gradients, as in the step.
  torch_ratio_*     our sample_seconds over eager PyTorch's on the same
                    cores, images, weights and architectures, in its default
                    layout and in channels_last. Below 1 is faster. Null
                    without PyTorch and where JAX does not run on the CPU.

How the ratio is taken. At least `--architectures` sampled architectures are
cut into groups of K. For each group PyTorch's default layout, channels_last
and ours run in turn, over and over, so that a machine that slows down slows
all three. PyTorch goes through the group in a Python loop and adds up the
gradients in `.grad`; it runs only the sampled operations and computes no
gradient for what was not sampled, while ours also sums over the whole tree
of weights and multiplies by gates of 1. `torch_ratio_*` divides the sums over
the groups of each group's fastest repeat, `torch_ratio_*_median` those of its
median. The architectures of all rows are the same ones, up to those that fill
the last group.

A row that needs more memory than is available has an `error` and nulls.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import grid, timing
from rome_jax import errors, families, spaces
from rome_jax.config import checks, fields
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import sums
from rome_jax.engine import weights as weights_lib
from rome_jax.families import darts
from rome_jax.methods import laws, table
from rome_jax.methods import method as method_lib
from rome_jax.methods import step as step_lib
from rome_jax.spaces import counting
from rome_jax.train import memory, optim, search

NUM_CLASSES = 10
LAYOUTS = ('default', 'channels_last')
MEASURED = (
    'trace_seconds', 'compile_seconds', 'temp_bytes', 'step_seconds',
    'images_per_second', 'sample_seconds',
    *(f'torch_ratio_{layout}' for layout in LAYOUTS),
    *(f'torch_ratio_{layout}_median' for layout in LAYOUTS))
_STEPS = 1000  # of the schedules; their length does not matter here


class NotEnoughMemory(Exception):
  """A program needs more memory than is available."""


# ------------------------------------------- our parameters in PyTorch's form


def _numpy(leaf):
  return np.asarray(leaf)


def _pointwise(w):
  """[in,out] -> [out,in,1,1]."""
  return _numpy(w).T[:, :, None, None]


def _convolution(w):
  """HWIO -> OIHW."""
  return _numpy(w).transpose(3, 2, 0, 1)


def _depthwise(w):
  """[k,k,C] -> [C,1,k,k]."""
  return _numpy(w).transpose(2, 0, 1)[:, None]


def _operation_to_torch(name, tree):
  """{name in the PyTorch module of an operation: array} of one edge."""
  if name == 'skip_connect':
    halves = tree['FactorizedReduce_0']
    return {f'{half}.weight': _pointwise(halves[half]['kernel'])
            for half in ('even', 'odd')}
  repeats = (0, 1) if name.startswith('sep') else (0,)
  named = {}
  for i in repeats:
    prefix = f'{i}.' if len(repeats) > 1 else ''
    named[f'{prefix}depthwise.weight'] = _depthwise(
        tree[f'Depthwise_{i}']['kernel'])
    named[f'{prefix}pointwise.weight'] = _pointwise(
        tree[f'Pointwise_{i}']['kernel'])
  return named


def _edges_to_torch(space, tree):
  """{name in the PyTorch cell: array} of all edges of a cell."""
  named = {}
  for group in ('edges', 'strided_edges'):
    edges = np.arange(space.num_edges)
    if 'strided_edges' in tree:  # a reduction cell
      from_input = space.edge_preds < space.num_inputs
      edges = edges[from_input == (group == 'strided_edges')]
    for op, weights in tree.get(group, {}).items():
      for row, edge in enumerate(edges):
        one = jax.tree.map(lambda w, row=row: _numpy(w)[row], weights)
        named |= {f'edges.{edge}.{op}.{name}': value
                  for name, value in _operation_to_torch(op, one).items()}
  return named


def _preprocess_to_torch(tree):
  return {
      (f'{part}.weight' if part in ('even', 'odd') else 'conv.weight'):
      _pointwise(weights['kernel']) for part, weights in tree.items()}


def to_torch(params, space: spaces.Space) -> dict[str, np.ndarray]:
  """The parameters of our supernet, named and laid out as the reference's.

  Gradients have the same form, so it serves to compare them too.

  Args:
    params: `networks.Supernet`'s, CIFAR stem.
    space: the search space.

  Returns:
    {name in `torch_reference.Supernet.state_dict()`: array}; all of them.
  """
  named = {
      'stem.conv.weight': _convolution(params['stem_conv']['kernel']),
      'stem.norm.weight': _numpy(params['stem_norm']['scale']),
      'stem.norm.bias': _numpy(params['stem_norm']['bias']),
      'head.weight': _numpy(params['head']['kernel']).T,
      'head.bias': _numpy(params['head']['bias'])}
  cells = [name for name in params if name.startswith('cell')]
  for cell in cells:
    tree = params[cell]
    parts = _edges_to_torch(space, tree)
    for j in (0, 1):
      parts |= {f'preprocess.{j}.{name}': value for name, value in
                _preprocess_to_torch(tree[f'preprocess{j}']).items()}
    named |= {f'cells.{cell.removeprefix("cell")}.{name}': value
              for name, value in parts.items()}
  return named


def arch_to_torch(arch) -> dict:
  """One sampled architecture in the form of the reference, without gates."""
  return {t: (np.asarray(cell.edges).tolist(), np.asarray(cell.ops).tolist(),
              None) for t, cell in arch.items()}


def torch_supernet(params, space, config, channels_last=False):
  """The reference network with our parameters."""
  import torch

  from benchmarks import torch_reference

  model = torch_reference.Supernet(
      space, config.search.cells, config.search.channels, NUM_CLASSES,
      memory_format=(torch.channels_last if channels_last else
                     torch.contiguous_format))
  # Copies: JAX's arrays are read-only, which PyTorch does not know.
  model.load_state_dict({name: torch.tensor(value) for name, value in
                         to_torch(params, space).items()})
  return model


def torch_loss_and_gradients(model, archs, images, labels) -> float:
  """Summed loss of the architectures; gradients add up in `.grad`.

  Args:
    model: the reference network.
    archs: list of `arch_to_torch`.
    images: [B,3,H,W] tensor.
    labels: [B] int tensor.
  """
  from torch.nn import functional

  model.zero_grad(set_to_none=True)
  total = 0.
  for arch in archs:
    loss = functional.cross_entropy(model(images, arch), labels)
    loss.backward()
    total += loss.item()
  return total


# ----------------------------------------------------------------- our search


class Problem(NamedTuple):
  """What a search begins with.

  Attributes:
    space, method: see rome_jax.
    loss_fn: (theta, arch, batch, rng) -> (loss, {name: scalar}).
    theta: weights.
    arch: alpha and beta.
    batches: for theta and for alpha; {'image': [B,H,W,3], 'label': [B]}.
  """

  space: spaces.Space
  method: method_lib.Method
  loss_fn: Callable
  theta: Any
  arch: method_lib.ArchParams
  batches: tuple[dict, dict]


def make_problem(space: spaces.Space, config, seed: int = 0) -> Problem:
  """The supernet of a config, on random images with random labels."""
  search = config.search
  network = darts.Supernet(
      space, search.cells, search.channels, NUM_CLASSES)
  return problem_of(network, table.METHODS[config.method],
                    search.batch_size, config.image_size, seed,
                    dtype=search.dtype)


def problem_of(network, method: method_lib.Method, batch_size: int,
               image_size: int, seed: int = 0,
               init: Callable = weights_lib.init_supernet,
               dtype: str = 'float32') -> Problem:
  """A supernet of any skeleton, on random images with random labels.

  Args:
    network: its `space` is that of the search.
    method: a row of METHODS.
    batch_size, image_size: of the images.
    seed: of everything.
    init: (network, seed, image size, image channels) -> theta.
    dtype: of the activations.
  """
  space = network.space
  keys = jax.random.split(jax.random.key(seed), 3)

  def batch(key):
    image_key, label_key = jax.random.split(key)
    return {
        'image': jax.random.normal(
            image_key, (batch_size, image_size, image_size, 3)),
        'label': jax.random.randint(
            label_key, (batch_size,), 0, NUM_CLASSES)}

  params = method.init(space, keys[0])
  batches = batch(keys[1]), batch(keys[2])
  if method.extra.draw is not None:
    places = jnp.arange(batch_size)
    batches[0].update(
        index=places, row=places, weight=jnp.ones(batch_size))
  theta = init(network, seed, image_size, 3)
  return Problem(
      space, method, search.make_loss(network, dtype, batch_size=batch_size),
      theta, params, batches)


def make_optimisers(config, hyperparameters=()):
  """(of theta, of alpha and beta), by the config's `search` section.

  Args:
    config: its `search` section is read.
    hyperparameters: of the method, see `train.optim.sgd`.
  """
  search = config.search
  schedule = optim.cosine(search.lr, search.lr_end, _STEPS)
  return (optim.sgd(schedule, search, hyperparameters),
          optim.arch_adam(search))


def init_state(problem: Problem, optimisers) -> step_lib.State:
  """The state before a step that donates it; the problem keeps its own."""
  theta, arch = jax.tree.map(jnp.copy, (problem.theta, problem.arch))
  return step_lib.init_state(
      problem.method, problem.space, theta, arch, *optimisers,
      num_examples=len(problem.batches[0]['label']))


def make_step(problem: Problem, config, mesh=None):
  """(the complete step, not yet jitted, and the state before it).

  Args:
    problem: what the search begins with.
    config: its `search` section is read.
    mesh: of `rome_jax.devices.mesh`, or None for one device.
  """
  search = config.search
  optimisers = make_optimisers(config, problem.method.extra.hyperparameters)
  options = step_lib.Options(
      k=search.k or problem.space.num_choices, samples=search.samples,
      accumulate=search.accumulate, sampler=search.sampler,
      clip_norm=search.clip_norm, steps=_STEPS,
      alpha_decay=search.alpha_weight_decay)

  def tau(step):
    return laws.tau_at(
        step / _STEPS, search.tau_start, search.tau_end, search.tau_schedule)

  step = step_lib.make_step(
      problem.method, problem.space, problem.loss_fn, *optimisers, tau,
      options, mesh_lib.spread(mesh),
      lambda theta: families.get(problem.space).candidates(
          theta, problem.space))
  return of_two_batches(step), init_state(problem, optimisers)


def of_two_batches(step):
  """(state, batch_theta, batch_alpha) -> ... of a search step."""
  return lambda state, train, valid: step(
      state, {'train': train, 'valid': valid})


def sample_groups(problem: Problem, config, architectures: int, seed=1):
  """At least `architectures` sampled ones, as a list of stacks of K.

  The i-th one depends on the seed and i alone: every K gets the same.
  """
  k = config.search.k

  def draw(i):
    key = jax.random.fold_in(jax.random.key(seed), i)
    noise = jax.tree.map(
        lambda a: a[0], method_lib.gumbel(problem.arch, key, 1))
    return problem.method.sample(problem.space, problem.arch, noise, 1.)

  count = -(-architectures // k) * k
  archs = jax.jit(jax.vmap(draw))(jnp.arange(count))
  return [jax.tree.map(lambda a, i=i: a[i:i + k], archs)
          for i in range(0, count, k)]


def make_gradient(problem: Problem, way: str, mesh=None):
  """(theta, stacked archs, batch) -> loss and theta gradient, summed over K.

  Args:
    problem: what the search begins with.
    way: a name of gradients.WAYS.
    mesh: of `rome_jax.devices.mesh`, or None for one device.
  """

  def total(archs, theta, batch):
    def one(arch):
      (loss, _), grads = jax.value_and_grad(problem.loss_fn, has_aux=True)(
          theta, arch, batch, jax.random.key(0))
      return loss, grads
    return sums.sum_over_samples(one, archs, way)

  spread = mesh_lib.spread(mesh)(total)
  return lambda theta, archs, batch: spread(archs, theta, batch)


# ------------------------------------------------------------------ measuring


def compile_cold(function, *args, **jit_options):
  """(compiled, seconds of tracing, seconds in all), from empty caches."""
  jax.clear_caches()
  start = time.perf_counter()
  lowered = jax.jit(function, **jit_options).lower(*args)
  traced = time.perf_counter()
  compiled = lowered.compile()
  return compiled, traced - start, time.perf_counter() - start


def check_memory(compiled, copies=1):
  """Refuses before the system would end the process instead.

  Args:
    compiled: a program.
    copies: devices that it runs on and that share this memory.

  Raises:
    NotEnoughMemory: with both figures.
  """
  found = compiled.memory_analysis()
  needed = copies * (found.temp_size_in_bytes + found.output_size_in_bytes)
  available = memory.available_bytes()
  if available is not None and needed > available:
    raise NotEnoughMemory(
        f'needs {needed / 1e9:.1f} GB, available are {available / 1e9:.1f} GB')


@contextlib.contextmanager
def lack_of_memory_in(row):
  """Where a block lacks memory, row['error'] says so and it ends there."""
  try:
    yield
  except NotEnoughMemory as error:
    row['error'] = str(error)
  except jax.errors.JaxRuntimeError as error:
    if 'RESOURCE_EXHAUSTED' not in str(error):
      raise
    row['error'] = str(error).splitlines()[0]


def time_step(step, state, batches, repeats):
  """Median seconds of a compiled step that donates its state."""
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter()
    state, metrics = step(state, *batches)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds[1:])  # the first is a warm-up


def _torch_functions(problem, config):
  """{layout: function of a list of architectures}; {} without PyTorch."""
  import torch

  torch.set_num_threads(os.cpu_count())
  batch = problem.batches[0]
  labels = torch.tensor(np.asarray(batch['label']), dtype=torch.int64)
  functions = {}
  for layout in LAYOUTS:
    last = layout == 'channels_last'
    model = torch_supernet(problem.theta, problem.space, config, last)
    images = torch.tensor(np.asarray(batch['image']).transpose(0, 3, 1, 2))
    images = images.contiguous(memory_format=model.memory_format)
    functions[layout] = (
        lambda archs, model=model, images=images:
        torch_loss_and_gradients(model, archs, images, labels))
  return functions


def _time_samples(problem, config, gradient, groups, repeats, with_torch):
  """{'ours' or layout: {'min', 'median'}}: seconds, summed over the groups."""
  others = _torch_functions(problem, config) if with_torch else {}
  sums = {name: {'min': 0., 'median': 0.} for name in (*others, 'ours')}
  for group in groups:
    archs = [arch_to_torch(jax.tree.map(lambda a, i=i: a[i], group))
             for i in range(config.search.k)]
    functions = {name: lambda f=f, archs=archs: f(archs)
                 for name, f in others.items()}
    functions['ours'] = lambda group=group: jax.block_until_ready(
        gradient(problem.theta, group, problem.batches[0]))
    for name, times in timing.interleaved(functions, repeats).items():
      for kind in sums[name]:
        sums[name][kind] += times[kind]
  return sums


def fill_step(row, problem: Problem, config, repeats: int) -> None:
  """Compiles and times the complete step on one device.

  Writes trace_seconds, compile_seconds, temp_bytes and step_seconds of the
  module's docstring into `row`, each as soon as it is known.

  Raises:
    NotEnoughMemory: it was compiled but cannot run.
  """
  update, state = make_step(problem, config)
  step, row['trace_seconds'], row['compile_seconds'] = compile_cold(
      update, state, *problem.batches, donate_argnums=0)
  row['temp_bytes'] = step.memory_analysis().temp_size_in_bytes
  check_memory(step)
  row['step_seconds'] = time_step(step, state, problem.batches, repeats)


def _fill(row, space, config, repeats, architectures, with_torch):
  """Writes into `row` what can be measured, in order."""
  k = config.search.k
  problem = make_problem(space, config)
  fill_step(row, problem, config, repeats)
  row['images_per_second'] = (
      2 * k * config.search.batch_size / row['step_seconds'])
  groups = sample_groups(problem, config, architectures)
  gradient, _, _ = compile_cold(
      make_gradient(problem, config.search.samples), problem.theta,
      groups[0], problem.batches[0])
  check_memory(gradient)
  seconds = _time_samples(
      problem, config, gradient, groups, repeats, with_torch)
  row['sample_seconds'] = seconds['ours']['median'] / (k * len(groups))
  for layout in LAYOUTS if with_torch else ():
    for kind, suffix in (('min', ''), ('median', '_median')):
      row[f'torch_ratio_{layout}{suffix}'] = (
          seconds['ours'][kind] / seconds[layout][kind])


def measure(
    space: spaces.Space,
    config: ml_collections.ConfigDict,
    *,
    repeats: int = 3,
    architectures: int = 7,
    with_torch: bool = True,
) -> dict:
  """One row, see the module's docstring.

  Args:
    space: the search space (`config.space` is not read).
    config: method, image_size and search.{cells,channels,batch_size,k,
      parallel} and the optimisers' fields are read.
    repeats: timed rounds.
    architectures: least number of sampled architectures behind
      sample_seconds and the ratios.
    with_torch: whether to measure the ratios, if PyTorch is installed and
      JAX runs on the CPU.

  Returns:
    The row; `error` is None or says why the values after it are None.
  """
  search = config.search
  row = {
      'parallel': search.samples, 'k': search.k, 'batch': search.batch_size,
      **dict.fromkeys(MEASURED),
      'cells': search.cells, 'channels': search.channels,
      'image_size': config.image_size, 'space': space.name,
      'method': config.method, 'repeats': repeats,
      **grid.environment(), 'error': None}
  with_torch = (with_torch and jax.default_backend() == 'cpu'
                and importlib.util.find_spec('torch') is not None)
  with lack_of_memory_in(row):
    _fill(row, space, config, repeats, architectures, with_torch)
  return row


# --------------------------------------------------------------- command line


def _table(rows):
  """The rows for people."""
  lines = [f'{"parallel":8} {"K":>2} {"trace":>7} {"compile":>8} '
           f'{"memory":>9} {"step":>8} {"images/s":>8} {"sample":>8} '
           f'{"/torch":>7} {"/chlast":>7}']

  def cell(value, width, unit, digits=2, scale=1.):
    text = '-' if value is None else f'{value * scale:.{digits}f}{unit}'
    return f'{text:>{width}}'

  for row in rows:
    lines.append(' '.join([
        f'{row["parallel"]:8} {row["k"]:2d}',
        cell(row['trace_seconds'], 7, 's', 1),
        cell(row['compile_seconds'], 8, 's', 1),
        cell(row['temp_bytes'], 9, ' MB', 1, 1e-6),
        cell(row['step_seconds'], 8, 's', 3),
        cell(row['images_per_second'], 8, '', 0),
        cell(row['sample_seconds'], 8, 's', 3),
        cell(row['torch_ratio_default'], 7, ''),
        cell(row['torch_ratio_channels_last'], 7, '')]))
    if row['error']:
      lines.append(f'  {row["error"]}')
  return '\n'.join(lines)


def _parse(argv):
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.search_step',
      description=__doc__.splitlines()[0])
  parser.add_argument('--json', action='store_true', help='print JSON')
  parser.add_argument('--k', type=grid.numbers, default=[1, 4, 7],
                      help='architectures per half step, comma-separated')
  parser.add_argument('--parallel', type=grid.names,
                      default=list(sums.WAYS),
                      help='ways of evaluating them, comma-separated')
  for name, default, meaning in (
      ('batch', 64, 'images per step'),
      ('cells', 8, 'cells of the supernet'),
      ('channels', 16, 'channels of the first cell'),
      ('image-size', 32, 'pixels'),
      ('repeats', 3, 'timed rounds'),
      ('architectures', 7, 'least number behind a ratio')):
    parser.add_argument(f'--{name}', type=int, default=default,
                        help=f'{meaning} ({default})')
  parser.add_argument('--space', default='s0', help='search space (s0)')
  parser.add_argument('--method', default='rome_v2', help='method (rome_v2)')
  parser.add_argument('--no-torch', action='store_true',
                      help='leave the ratios null')
  return parser.parse_args(argv)


def _config(args, way, k):
  """The validated config of one row.

  The space is not in it: it may be one of the caller's own.
  """
  config = fields.defaults()
  config.method, config.image_size = args.method, args.image_size
  config.search.update(
      cells=args.cells, channels=args.channels, batch_size=args.batch, k=k,
      samples=way)
  checks.validate(config)
  return config


def _check(args):
  grid.check_counts(args, 'image_size', 'repeats', 'architectures')
  # The reference, like DARTS's code, cannot halve odd sizes.
  multiple = 2 ** len(counting.reductions(args.cells))
  if not args.no_torch and args.image_size % multiple:
    raise errors.UserError(
        f'--image-size={args.image_size} must be a multiple of {multiple} '
        'for the PyTorch reference; or pass --no-torch')


def _run(args):
  space = spaces.get_space(args.space)
  _check(args)
  configs = [_config(args, way, k)
             for way in args.parallel for k in args.k]
  jax.config.update('jax_enable_compilation_cache', False)
  rows = []
  for config in configs:
    print(f'{config.search.samples}, K={config.search.k} ...',
          file=sys.stderr, flush=True)
    rows.append(measure(
        space, config, repeats=args.repeats, architectures=args.architectures,
        with_torch=not args.no_torch))
    # So that a long run that is cut off has not measured in vain.
    print(_table(rows[-1:]), file=sys.stderr, flush=True)
  return rows


def main(argv=None) -> int:
  """Runs the benchmark; returns the exit code: 0, or 2 for a mistake."""
  args = _parse(argv)
  try:
    rows = _run(args)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  print(json.dumps(rows, indent=2) if args.json else _table(rows))
  return 0


if __name__ == '__main__':
  sys.exit(main())
