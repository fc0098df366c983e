"""dtype, micro-batches and recomputation: memory, time and accuracy.

  python -m benchmarks.precision [--quick] [--seeds=3] [--no-accuracy]
      [--no-cost] [--dataset=digits] [--data_dir=DIR]

Prints one JSON object and nothing else on stdout; progress goes to stderr.

  cost      a row per setting, of the complete search step and of a step of
            retraining: temp_bytes, `memory_analysis().temp_size_in_bytes`;
            kept_bytes, what the forward pass keeps for the backward pass
            beside the weights (of the retraining; known without compiling,
            XLA may keep less); step_seconds, the median of three; and what
            they are of the first row's.
  kept      kept_bytes of a retraining at DARTS' own size, nothing compiled.
  accuracy  float32 and bfloat16 with the same seeds on real images: the mean
            and standard deviation of the test accuracy after a search and a
            retraining, and the difference of the means over its standard
            error (t); the runs are whole runs of `rome_jax.main`.

On a CPU bfloat16 is emulated: its times and bytes say nothing of a GPU.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time

import jax
import jax.numpy as jnp

from benchmarks import grid, search_step, timing
from rome_jax import errors, files, spaces
from rome_jax.cli import run as run_lib
from rome_jax.config import checks, fields
from rome_jax.engine import weights as weights_lib
from rome_jax.families import darts
from rome_jax.spaces import genotypes
from rome_jax.train import optim, recipes, retrain

DTYPES = fields.DTYPES
# Compiles in seconds; an operation of every kind.
SMALL = spaces.Space(
    'small', ('skip_connect', 'sep_conv_3x3', 'dil_conv_3x3', 'max_pool_3x3'),
    num_nodes=2)
TINY = spaces.Space('tiny', ('skip_connect', 'sep_conv_3x3'), num_nodes=1)
SEARCH_ROWS = (
    dict(), dict(dtype='bfloat16'), dict(accumulate=2), dict(accumulate=4),
    dict(samples='vmap'))
RETRAIN_ROWS = (
    dict(), dict(dtype='bfloat16'), dict(accumulate=2), dict(accumulate=4),
    dict(remat='cells'), dict(remat='cells', dtype='bfloat16'))


def say(text):
  print(text, file=sys.stderr, flush=True)


# ----------------------------------------------------------------------- cost


def search_row(args, changes) -> dict:
  """Memory and time of the complete search step with `changes`."""
  config = fields.defaults()
  config.image_size = args.image_size
  config.search.update(
      cells=args.cells, channels=args.channels, batch_size=args.batch,
      k=args.k, samples='scan')
  config.search.update(changes)
  checks.validate(config)
  space = spaces.get_space(args.space)
  problem = search_step.make_problem(space, config)
  update, state = search_step.make_step(problem, config)
  step, _, seconds = search_step.compile_cold(
      update, state, *problem.batches, donate_argnums=0)
  return {
      'step': 'search', **changes,
      'temp_bytes': step.memory_analysis().temp_size_in_bytes,
      'compile_seconds': seconds,
      'step_seconds': search_step.time_step(
          step, state, problem.batches, args.repeats)}


def retrain_row(args, changes) -> dict:
  """The same of a step of retraining DARTS_V2's network."""
  section = recipes.RetrainRecipe(
      cells=args.cells, channels=args.retrain_channels,
      batch_size=args.batch, auxiliary=False)._replace(**changes)
  network = _network(section)
  shape = (args.image_size, args.image_size, 3)
  variables = weights_lib.initialise(network, 0, jnp.zeros((2, *shape)))
  tx = optim.sgd(lambda step: section.lr, section)
  state = retrain.init_state(variables, tx)
  make = retrain.make_step(network, section, tx, 1000, 100)
  batch = {
      'image': jax.random.normal(jax.random.key(0), (args.batch, *shape)),
      'label': jnp.arange(args.batch) % search_step.NUM_CLASSES}
  step, _, seconds = search_step.compile_cold(
      lambda state, batch, _: make(state, batch), state, batch, 0,
      donate_argnums=0)
  return {
      'step': 'retraining', **changes,
      'temp_bytes': step.memory_analysis().temp_size_in_bytes,
      'kept_bytes': kept_bytes(network, variables, section, shape),
      'compile_seconds': seconds,
      'step_seconds': search_step.time_step(
          step, state, (batch, 0), args.repeats)}


def _network(section):
  return darts.Network(
      genotypes.PUBLISHED['DARTS_V2'].genotype, section.cells,
      section.channels, search_step.NUM_CLASSES, remat=section.remat)


def kept_bytes(network, variables, section, shape) -> int:
  """What the forward pass of one part keeps, without the weights."""
  images = section.batch_size // section.accumulate

  def kept(count):
    x = jax.ShapeDtypeStruct((count, *shape), section.dtype)

    def pull(params, x):
      return jax.vjp(lambda params: network.apply(
          variables | {'params': params}, x, train=True, drop_path=.1,
          mutable=['batch_stats'],
          rngs={'drop_path': jax.random.key(0)})[0], params)[1]
    leaves = jax.tree.leaves(jax.eval_shape(pull, variables['params'], x))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

  return images * (kept(2) - kept(1))


def kept(args) -> list[dict]:
  """kept_bytes of a retraining: 20 cells, 36 channels, batch 96."""
  rows = []
  for changes in RETRAIN_ROWS:
    section = recipes.RetrainRecipe(**changes)
    if args.quick:
      section = section._replace(cells=3)
    network = _network(section)
    shape = (32, 32, 3)
    variables = weights_lib.initialise(network, 0, jnp.zeros((2, *shape)))
    rows.append({**changes, 'kept_bytes': kept_bytes(
        network, variables, section, shape)})
  return rows


def cost(args) -> list[dict]:
  """All rows, each with what it is of the first of its step."""
  rows = []
  for row_of, table in ((search_row, SEARCH_ROWS),
                        (retrain_row, RETRAIN_ROWS)):
    first = None
    for changes in table[:2] if args.quick else table:
      say(f'{row_of.__name__} {changes}')
      row = row_of(args, changes)
      first = first or row
      for name in ('temp_bytes', 'kept_bytes', 'step_seconds'):
        if name in row:
          row[f'{name}_ratio'] = row[name] / first[name]
      rows.append(row)
  return rows


# ------------------------------------------------------------------- accuracy


def run_config(args, dtype, seed):
  """A search and a retraining that take about a minute on 2 cores."""
  config = fields.defaults()
  config.seed, config.dataset, config.data_dir = (
      seed, args.dataset, args.data_dir)
  config.image_size = 0 if args.dataset == 'digits' else 16
  config.log_every, config.checkpoint_every = 20, 1000
  config.compilation_cache = args.cache
  config.space = args.space
  for part in (config.search, config.retrain):
    part.update(cells=1 if args.quick else 3, channels=4, batch_size=32,
                dtype=dtype, augment='shift', epochs=6)
  config.search.update(k=2, max_steps=6 if args.quick else args.search_steps,
                       tau_per='step', lr_per='step', alpha_lr=.03)
  config.retrain.update(
      lr=.05, auxiliary=False, cutout=0, drop_path=0., eval_every=100,
      epochs=1 if args.quick else args.epochs, eval_batch_size=200)
  return config


def accuracy(args) -> dict:
  """{dtype: list, mean, std} and the t of their difference."""
  found = {dtype: [] for dtype in DTYPES}
  for seed in range(args.seeds):
    for dtype in DTYPES:
      began = time.perf_counter()
      with tempfile.TemporaryDirectory() as workdir:
        with contextlib.redirect_stdout(sys.stderr):
          run_lib.run(run_config(args, dtype, seed), workdir)
        result = files.read_json(pathlib.Path(workdir, 'result.json'))
      value = result['evaluations'][0]['test_accuracy']
      found[dtype].append(value)
      say(f'{dtype} seed {seed}: {value:.4f} in '
          f'{time.perf_counter() - began:.0f} s')
  rows = {dtype: {'test_accuracy': values, 'mean': statistics.mean(values),
                  'std': statistics.stdev(values) if args.seeds > 1 else None}
          for dtype, values in found.items()}
  if args.seeds > 1:
    one, two = (rows[dtype] for dtype in DTYPES)
    error = ((one['std']**2 + two['std']**2) / args.seeds)**.5
    rows['difference'] = two['mean'] - one['mean']
    rows['t'] = rows['difference'] / error if error else None
  return rows


# --------------------------------------------------------------- command line


def _parse(argv):
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.precision',
      description=__doc__.splitlines()[0])
  parser.add_argument('--quick', action='store_true',
                      help='under a minute; its figures mean little')
  for name, default, meaning in (
      ('cells', 8, 'cells of both networks'),
      ('channels', 16, 'of the supernet'),
      ('retrain-channels', 36, 'of the network'),
      ('batch', 32, 'images per step'),
      ('image-size', 32, 'pixels'),
      ('k', 2, 'architectures per half step'),
      ('repeats', 3, 'timed steps'),
      ('seeds', 3, 'runs per dtype'),
      ('search-steps', 150, 'of each run'),
      ('epochs', 8, 'of each retraining')):
    parser.add_argument(f'--{name}', type=int, default=default,
                        help=f'{meaning} ({default})')
  parser.add_argument('--space', default='small',
                      help='search space, or small: four operations (small)')
  parser.add_argument('--dataset', default='digits', help='(digits)')
  parser.add_argument('--data_dir', default='', help="the data set's files")
  for part in ('cost', 'accuracy'):
    parser.add_argument(f'--no-{part}', action='store_true',
                        help=f'leave {part} out')
  args = parser.parse_args(argv)
  if args.quick:
    for name, value in (
        ('cells', 1), ('channels', 4), ('retrain_channels', 4), ('batch', 4),
        ('image_size', 8), ('k', 1), ('repeats', 1), ('seeds', 1),
        ('space', TINY.name)):
      setattr(args, name, value)
  return args


def run(argv=None) -> int:
  """Runs the benchmark; returns the exit code: 0, or 2 for a mistake."""
  args = _parse(argv)
  found = {}
  for space in (SMALL, TINY):
    spaces.SPACES.setdefault(space.name, space)
  if args.quick:  # most of the time is compilation
    jax.config.update('jax_disable_most_optimizations', True)
  try:
    grid.check_counts(
        args, 'k', 'repeats', 'seeds', 'image_size', 'epochs')
    with tempfile.TemporaryDirectory() as args.cache:
      if not args.no_accuracy:
        found['accuracy'] = accuracy(args)
      if not args.no_cost:
        jax.config.update('jax_enable_compilation_cache', False)
        found['kept'] = kept(args)
        found['cost'] = cost(args)
  except errors.UserError as error:
    say(error)
    return error.exit_code
  sizes = {name: value for name, value in vars(args).items()
           if name not in ('cache', 'data_dir')}  # nothing of this machine
  found |= {'sizes': sizes, 'backend': jax.default_backend(),
            'machine': timing.machine()}
  print(json.dumps(found, indent=2))
  return 0


if __name__ == '__main__':
  sys.exit(run())
