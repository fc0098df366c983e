"""The search step on the mobile space: compile time, memory, speed.

  python -m benchmarks.mobile_step [--space=mobile] [--k=2] [--batch=32]
     [--image-size=32] [--channels=32] [--stem=cifar] [--parallel=scan] ...

Prints one JSON object and nothing else on stdout:

  trace_seconds     Python to StableHLO of the complete step (Algorithm 1: K
                    samples for alpha and beta, K fresh ones for theta).
  compile_seconds   tracing and compiling it, the persistent cache off.
  temp_bytes        its `memory_analysis().temp_size_in_bytes`: buffers beside
                    arguments (weights, optimiser, images) and results.
  step_seconds      median over the repeats, after one that is not counted.
  theta_bytes       the supernet's weights in float32.

beside the sizes that were asked for, the backend and the machine.
"""

import argparse
import json
import statistics
import sys
import time

import jax
import jax.numpy as jnp

from benchmarks import search_step, timing
from rome_jax import config as config_lib
from rome_jax import (
    errors,
    gradients,
    methods,
    mobile,
    networks,
    sampling,
    spaces,
)
from rome_jax import search as search_lib

NUM_CLASSES = 10


def make_problem(args) -> search_step.Problem:
  """The supernet on random images with random labels."""
  space, method = spaces.get_space(args.space), methods.METHODS[args.method]
  mobile.check(space, cells=space.num_nodes, channels=args.channels)
  network = mobile.Supernet(
      space, space.num_nodes, args.channels, NUM_CLASSES, args.stem)
  keys = jax.random.split(jax.random.key(0), 3)

  def batch(key):
    image_key, label_key = jax.random.split(key)
    shape = (args.batch, args.image_size, args.image_size, 3)
    return {'image': jax.random.normal(image_key, shape),
            'label': jax.random.randint(
                label_key, shape[:1], 0, NUM_CLASSES)}

  batches = batch(keys[0]), batch(keys[1])
  theta = networks.initialise(
      network, 0, batches[0]['image'],
      {'normal': sampling.first_cell(space)})['params']
  return search_step.Problem(
      space, method, search_lib.make_loss(network), theta,
      methods.init_arch(method, space, keys[2]), batches)


def measure(args) -> dict:
  """The numbers of the module's docstring."""
  config = config_lib.defaults()
  config.search.update(k=args.k, parallel=args.parallel)
  problem = make_problem(args)
  update, state = search_step.make_step(problem, config)
  start = time.perf_counter()
  lowered = jax.jit(update, donate_argnums=0).lower(state, *problem.batches)
  traced = time.perf_counter()
  step = lowered.compile()
  compiled = time.perf_counter()
  seconds = []
  for _ in range(args.repeats + 1):
    began = time.perf_counter()
    state, metrics = step(state, *problem.batches)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - began)
  return {
      'trace_seconds': traced - start,
      'compile_seconds': compiled - start,
      'temp_bytes': step.memory_analysis().temp_size_in_bytes,
      'step_seconds': statistics.median(seconds[1:]),
      'theta_bytes': sum(
          jnp.asarray(leaf).nbytes for leaf in jax.tree.leaves(problem.theta)),
      **vars(args), 'backend': jax.default_backend(),
      'machine': timing.machine()}


def _parse(argv):
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.mobile_step',
      description=__doc__.splitlines()[0])
  for name, default, meaning in (
      ('k', 2, 'architectures per half step'),
      ('batch', 32, 'images per step'),
      ('image-size', 32, 'pixels'),
      ('repeats', 3, 'timed steps')):
    parser.add_argument(f'--{name}', type=int, default=default,
                        help=f'{meaning} ({default})')
  parser.add_argument('--channels', type=float, default=32.,
                      help='of the stem; scales all widths (32)')
  for name, default, choices in (
      ('space', 'mobile', None), ('method', 'rome_v2', list(methods.METHODS)),
      ('stem', 'cifar', ['cifar', 'imagenet']),
      ('parallel', 'scan', list(gradients.PARALLEL))):
    parser.add_argument(f'--{name}', default=default, choices=choices,
                        help=f'({default})')
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the benchmark; returns the exit code: 0, or 2 for a mistake."""
  args = _parse(argv)
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    for name in ('k', 'batch', 'image_size', 'repeats'):
      if getattr(args, name) < 1:
        raise errors.UserError(
            f'--{name.replace("_", "-")}={getattr(args, name)} must be at '
            'least 1')
    row = measure(args)
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  print(json.dumps(row, indent=2))
  return 0


if __name__ == '__main__':
  sys.exit(main())
