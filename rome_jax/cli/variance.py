"""`rome-jax variance RUN`: what PA&DA's laws do to the gradient's variance.

  rome-jax variance runs/pada --draws=200

Draws gradients of theta at the weights of a search with method pada, pa or da,
under four laws: paths and images uniform, paths by PA, images by DA, both. The
laws are those of the run's newest checkpoint. Prints and writes
RUN/variance.json: the trace V of the covariance, |mean gradient|^2, and V
relative to that of the uniform laws; without weights, as PA&DA trains, and with
weights that give every law the same mean (`rome_jax.train.variance`). A mistake
gives one sentence on stderr and exit code 2.
"""

import functools
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rome_jax import cli, data, errors, files
from rome_jax.cli import flags, searched
from rome_jax.config import checks
from rome_jax.methods.method import ArchParams
from rome_jax.methods.rows import pada
from rome_jax.train import search, variance

FILENAME = 'variance.json'
# {name: (whether paths follow PA, whether images follow DA)}
LAWS = {'uniform': (False, False), 'pa': (True, False), 'da': (False, True),
        'pada': (True, True)}


def measure(workdir: str | os.PathLike[str], draws: int = 200, seed: int = 0,
            config: str | None = None, data_dir: str | None = None,
            dataset: data.Dataset | None = None) -> dict[str, Any]:
  """What the command says, as a JSON object.

  Args:
    workdir: folder of the run.
    draws: gradients of each law.
    seed: of paths and images.
    config, data_dir, dataset: see `searched.read`.

  Raises:
    UserError: the run is not one of PA&DA.
  """
  workdir = pathlib.Path(checks.local_path('RUN', os.fspath(workdir)))
  found = searched.read(workdir, config, data_dir, dataset)
  prepared, state = found.prepared, found.state
  if len(found.leaves) > 1:
    raise errors.UserError(
        f'{workdir} holds a search that split; its leaves have no common law')
  method = prepared.setup.method
  if method.name not in pada.ROWS:
    raise errors.UserError(
        f'{workdir} searched with method={method.name!r}; it must be one of '
        f'{", ".join(pada.ROWS)}, which have laws of paths or images')
  uniform = pada.equal_logits(prepared.setup.space, jax.random.key(0))
  learnt = ArchParams(
      {t: jnp.asarray(a) for t, a in state['arch']['alpha'].items()},
      uniform.beta)
  weights = np.asarray(state['extra']['weights'])
  theta = jax.tree.map(jnp.asarray, state['theta'])
  rows = []
  for weighted in (False, True):
    gradient = _gradient(prepared, weighted)
    for name, (paths, images) in LAWS.items():
      if (paths and method.name == 'da') or (images and method.name == 'pa'):
        continue
      batches = _batches(prepared, weights if images else None)
      spread = variance.spread(
          gradient(theta, learnt if paths else uniform, batches(i),
                   jax.random.key(seed + i))
          for i in range(draws))
      rows.append({'law': name, 'weighted': weighted, **spread._asdict()})
      print(f'{name:8} {"weighted" if weighted else "as trained":10} '
            f'V {spread.variance:.4g}', file=sys.stderr, flush=True)
  for row in rows:
    base = next(r for r in rows if r['law'] == 'uniform'
                and r['weighted'] == row['weighted'])
    row['relative'] = row['variance'] / base['variance']
  return {'format': 1, 'step': int(state['step']), 'seed': seed, 'rows': rows}


def _gradient(prepared: Any, weighted: bool) -> Callable[..., jax.Array]:
  recipe, setup = prepared.search, prepared.setup
  loss = search.make_loss(
      search.make_supernet(setup, recipe), recipe.dtype,
      batch_size=recipe.batch_size, unbiased=weighted)
  return jax.jit(variance.make_gradient(
      setup.method, setup.space, loss, weighted))


def _batches(prepared, weights):
  """Step -> batch of the half for theta, drawn with replacement."""
  halves = search.make_halves(prepared.setup, prepared.search,
                              prepared.dataset, prepared.config.seed)
  train = halves.train
  if weights is None:
    # Not quite equal, or each image would be read once in an epoch.
    weights = np.ones(len(train.indices))
    weights[0] += 1e-9
  return functools.partial(_read, train.weighted(weights))


def _read(batches, step):
  return {name: jnp.asarray(a) for name, a in batches(step).items()}


def to_text(found: dict[str, Any]) -> str:
  """The table for people."""
  lines = [f'{"law":8} {"weights":>10} {"V":>10} {"|mean|^2":>10} '
           f'{"V / uniform":>11}']
  for row in found['rows']:
    kind = 'unbiased' if row['weighted'] else 'none'
    lines.append(
        f'{row["law"]:8} {kind:>10} {row["variance"]:10.4g} '
        f'{row["mean_square"]:10.4g} {row["relative"]:11.3f}')
  return '\n'.join(lines)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  cli.make_output_safe()
  try:
    args = cli.parse(flags.variance(), sys.argv[1:] if argv is None else argv)
    found = measure(args.run, args.draws, args.seed, args.config,
                    args.data_dir)
    files.write_json(pathlib.Path(args.run, FILENAME), found)
    print(to_text(found))
    return cli.printed()
  except errors.UserError as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code


if __name__ == '__main__':
  sys.exit(main())
