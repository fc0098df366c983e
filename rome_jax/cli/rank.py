"""`rome-jax rank RUN`: how well a run's supernet ranks architectures.

  rome-jax rank runs/c10 --cells=1000
  rome-jax rank runs/nb201 --cells=all --images=test --batch-size=512
  rome-jax rank runs/c10 --cells=mine.txt --norm=recalibrated

Scores architectures of the run's space with the weights of its search, which
may still be running: the newest checkpoint counts. Writes RUN/ranking.json and,
where the space has a complete table (NAS-Bench-201, NAS-Bench-Macro), compares
the scores with it and draws RUN/ranking.svg, which the report shows. The scores
of finished blocks are kept in RUN/ranking/, so the same command continues a
ranking that was stopped. A mistake gives one sentence on stderr, exit code 2.
"""

import argparse
import hashlib
import json
import math
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from rome_jax import cli, data, errors, files
from rome_jax.cli import flags, searched
from rome_jax.cli import prepare as prepare_lib
from rome_jax.config import checks
from rome_jax.devices import interrupt
from rome_jax.devices import mesh as mesh_lib
from rome_jax.show import ranking as pictures
from rome_jax.show import report
from rome_jax.spaces import Space, enumeration, genotypes
from rome_jax.spaces.genotypes import Genotype
from rome_jax.tables import benchmarks
from rome_jax.tables import scores as measures
from rome_jax.tables.table import Table
from rome_jax.train import candidates, ranking, search

FILENAME = 'ranking.json'
PICTURE = 'ranking'
ALL = 'all'
SHARES = (1, 5, 10)  # percent
_MOST = 1_000_000  # architectures in a ranking


class Ranked(NamedTuple):
  """What is needed to rank: all of it read and checked, nothing compiled.

  Attributes:
    network: the supernet.
    leaves: its weights; of a search that split, those of each leaf.
    step: of the checkpoint.
    found: the architectures.
    batches: of held-out images.
    calibration: images for BatchNorm, or None.
    settings: what the scores depend on, a JSON object.
    prepared: the run.
  """

  network: Any
  leaves: list[candidates.Leaf]
  step: int
  found: list[Genotype]
  batches: Any
  calibration: Any
  settings: dict[str, Any]
  prepared: prepare_lib.Prepared


def rank(workdir: str | os.PathLike[str], args: argparse.Namespace,
         dataset: data.Dataset | None = None) -> int:
  """Does what the command says; returns the exit code 0.

  Args:
    workdir: folder of the run.
    args: flags of the command.
    dataset: instead of the one that the run's config names.

  Raises:
    UserError: a flag, a file or the folder is wrong.
  """
  workdir = pathlib.Path(checks.local_path('RUN', os.fspath(workdir)))
  ranked = read(workdir, args, dataset)
  known = _table(ranked.prepared, args.table)
  text = json.dumps(ranked.settings, sort_keys=True)
  name = hashlib.sha256(text.encode()).hexdigest()[:12]
  mesh = mesh_lib.make_mesh()
  with files.only_one(workdir / PICTURE), interrupt.Interrupt() as stop:
    scorer = ranking.Scorer(
        ranked.network, ranked.leaves[0].theta, ranked.batches,
        norm=args.norm, calibration=ranked.calibration,
        block=min(args.block, len(ranked.found)),
        dtype=ranked.prepared.search.dtype,
        mesh=mesh if mesh.size > 1 else None)
    scores = candidates.LeafScorer(scorer, ranked.leaves)(
        ranked.found, record=ranking.Record(
            workdir / PICTURE / f'{name}.jsonl', ranked.settings),
        progress=True, stop=stop)
  if len(scores.loss) < len(ranked.found):
    print(f'stopped by {stop.signal.name} after {len(scores.loss):,} of '
          f'{len(ranked.found):,} architectures; the same command continues')
    return 0
  found = result(ranked, scores, known)
  files.write_json(workdir / FILENAME, found)
  _draw(workdir, found)
  print(sentence(found))
  return 0


# --- What is read


def read(workdir: pathlib.Path, args: argparse.Namespace,
         dataset: data.Dataset | None = None) -> Ranked:
  """Reads a run and draws what is ranked; arguments as `rank`."""
  prepared, _, leaves, steps = searched.read(
      workdir, args.config, args.data_dir, dataset)
  setup, recipe = prepared.setup, prepared.search
  found = architectures(setup.space, args.cells, args.seed)
  batches, number = _batches(prepared, args)
  calibration = None
  if args.norm == 'recalibrated':
    calibration = _calibration(prepared, args, batches.batch_size)
  names = '\n'.join(map(genotypes.to_text, found))
  settings = {
      'step': max(steps), 'images': args.images,
      'batches': number, 'batch_size': batches.batch_size, 'norm': args.norm,
      'calibration': 0 if calibration is None else len(calibration),
      'seed': args.seed,
      'architectures': hashlib.sha256(names.encode()).hexdigest()[:12]}
  if len(steps) > 1:  # While leaves train, each has come to its own.
    settings['steps'] = steps
  return Ranked(
      search.make_supernet(setup, recipe), leaves, max(steps), found,
      ranking.FirstBatches(batches, number), calibration, settings, prepared)


def architectures(space: Space, cells: str, seed: int) -> list[Genotype]:
  """What --cells names.

  Args:
    space: the search space.
    cells: 'all', a number or the name of a file.
    seed: of random architectures.

  Raises:
    UserError: the space has too many, or the file is wrong.

  >>> from rome_jax import spaces
  >>> len(architectures(spaces.NASBENCH201, 'all', 0))
  15625
  """
  total = enumeration.size(space)
  number = total if cells == ALL else int(cells) if cells.isdecimal() else None
  if number is None:
    return _in_file(space, cells)
  if cells == ALL and total > _MOST or number > _MOST and total > _MOST:
    raise errors.UserError(
        f'--cells={cells} must be at most {_MOST:,} with space={space.name}, '
        f'which has {total:.3g} architectures')
  if number < 1:
    raise errors.UserError(f'--cells={cells} must be at least 1')
  return enumeration.distinct(space, number, candidates.generator(seed))


def _in_file(space, path):
  if not os.path.exists(path):
    raise errors.UserError(
        f'--cells={path} must be {ALL}, a number or a file with an '
        'architecture in each line')
  lines = [line.strip() for line in genotypes.read_text(path).splitlines()]
  found = [_parse(space, line, f'{path}, line {i}')
           for i, line in enumerate(lines, start=1)
           if line and not line.startswith('#')]
  if not found:
    raise errors.UserError(f'--cells={path} has no architecture')
  return found


def _parse(space, line, where):
  known = benchmarks.of(space)
  if known is not None and '(' not in line:
    return known.parse(line, where)
  return genotypes.from_text(line, where)


def _batches(prepared, args):
  """(batches without augmentation, how many of them)."""
  split, indices = _images(prepared, args.images)
  count = len(split) if indices is None else len(indices)
  size = args.batch_size or count // -(-count // flags.RANK_BATCH)
  if size > count:
    raise errors.UserError(
        f'--batch-size={size} must be at most {count:,}, the number of '
        f'{args.images} images')
  batches = _plain(prepared, split, indices, size, args.seed)
  if args.batches > batches.steps_per_epoch:
    raise errors.UserError(
        f'--batches={args.batches} must be at most '
        f'{batches.steps_per_epoch} with batches of {size} of {count:,} '
        f'{args.images} images')
  return batches, args.batches or batches.steps_per_epoch


def _images(prepared, which):
  """(split, indices or None)."""
  if which == 'test':
    return prepared.dataset.test, None
  halves = search.make_halves(prepared.setup, prepared.search,
                              prepared.dataset, prepared.config.seed)
  return prepared.dataset.train, getattr(halves, which).indices


def _plain(prepared, split, indices, size, seed):
  return data.Batches(split, indices, size, seed, data.make_transform(
      prepared.search.augment, prepared.dataset, train=False))


def _calibration(prepared, args, batch_size):
  split, indices = _images(prepared, 'train')
  size = args.calibration or min(batch_size, len(indices))
  if size > len(indices):
    raise errors.UserError(
        f'--calibration={size} must be at most {len(indices):,}, the number '
        'of training images of the search')
  return _plain(prepared, split, indices, size, args.seed)(0)['image']


# --- What comes out


def _table(prepared: prepare_lib.Prepared,
           wanted: str | None) -> tuple[Table, str] | None:
  """(table, data set) to compare with, or None."""
  benchmark = benchmarks.of(prepared.setup.space)
  if benchmark is None:
    if wanted not in (None, flags.NO_TABLE):
      raise errors.UserError(
          f'--table={wanted} must be {flags.NO_TABLE}: '
          f'space={prepared.setup.space.name} has no complete table')
    return None
  known = benchmark.load()
  name = wanted or prepared.config.dataset
  if name in known.datasets:
    return known, name
  if wanted not in (None, flags.NO_TABLE):
    raise errors.UserError(
        f'--table={wanted} must be one of {", ".join(known.datasets)} or '
        f'{flags.NO_TABLE}{errors.near_miss(wanted, known.datasets)}')
  return None


def result(ranked: Ranked, scores: ranking.Scores,
           known: tuple[Table, str] | None) -> dict[str, Any]:
  """What ranking.json says, a JSON object.

  Args:
    ranked: what was ranked.
    scores: of each architecture.
    known: the table and its data set, or None.
  """
  config, space = ranked.prepared.config, ranked.prepared.setup.space
  benchmark = benchmarks.of(space)
  name_of = benchmark.name_of if benchmark else genotypes.to_text
  names = [name_of(genotype) for genotype in ranked.found]
  found = {
      'format': 1, 'method': config.method, 'space': space.name,
      'dataset': config.dataset, **ranked.settings,
      'cells': len(names),
      'cells_per_second': None if math.isnan(scores.rate) else scores.rate,
      'device': jax.devices()[0].device_kind, 'devices': jax.device_count(),
      'best': names[int(np.argmax(scores.accuracy))],
      'best_accuracy': float(scores.accuracy.max()),
      'mean_accuracy': float(scores.accuracy.mean())}
  columns = {'cell': names, 'accuracy': scores.accuracy.tolist(),
             'loss': scores.loss.tolist()}
  if known is not None:
    table, dataset = known
    columns['table'] = [table.query(name, dataset) for name in names]
    found['table'] = {
        'name': table.name, 'dataset': dataset,
        'by_accuracy': compare(table, dataset, names, scores.accuracy),
        'by_loss': compare(table, dataset, names, -scores.loss)}
  return {**found, 'scores': columns}


def compare(known: Table, dataset: str, cells: Sequence[Any],
            scores: np.ndarray) -> dict[str, Any] | None:
  """How well scores agree with a table; None for a single architecture.

  Args:
    known: the table.
    dataset: whose test accuracies.
    cells: N architectures in any form that the table takes.
    scores: [N], higher is better.

  Returns:
    kendall_tau (tau-b) and spearman of all, and of the better half by the
    table (None where undefined); precision and regret_at: {'1%': ...} of the
    1, 5 and 10 percent of highest score: the share of them that are as good
    as so many of the table's best among these, and the points that the best
    of them lacks to the best of these; chosen, value, rank, regret: of the
    one of highest score in the whole table.
  """
  rows = np.unique([known.to_index(cell) for cell in cells], return_index=True)
  if len(rows[0]) < 2:
    return None
  cells, scores = [cells[i] for i in rows[1]], scores[rows[1]]
  values = known.values(dataset)[rows[0]]
  counts = {f'{share}%': max(1, math.ceil(len(cells) * share / 100))
            for share in SHARES}
  found = measures.evaluate(known, scores, cells, dataset=dataset,
                            top=tuple(counts.values()))
  better = values >= np.median(values)
  return {
      **{name: found[name] for name in ('kendall_tau', 'spearman')},
      'kendall_tau_better_half': _tau(scores[better], values[better]),
      'precision': {name: found['top_k_overlap'][k]
                    for name, k in counts.items()},
      'regret_at': {name: found['regret_at_k'][k]
                    for name, k in counts.items()},
      **{name: found[name] for name in ('chosen', 'value', 'rank', 'regret')}}


def _tau(scores, values):
  tau = measures.kendall_tau(scores, values) if len(scores) > 1 else math.nan
  return None if math.isnan(tau) else tau


def _draw(workdir, found):
  table = found.get('table')
  if table and table['by_accuracy']:
    columns = found['scores']
    pictures.save_scatter(
        workdir / PICTURE, columns['accuracy'], columns['table'],
        f'{found["cells"]:,} cells, {found["method"]} at step '
        f'{found["step"]:,}',
        "accuracy with the supernet's weights",
        f'{table["name"]}: test accuracy on {table["dataset"]}, %')
  if (workdir / report.FILENAME).exists():
    report.write_report(workdir)


def sentence(found: dict[str, Any]) -> str:
  """The summary for people."""
  speed = found['cells_per_second']
  rate = f' at {speed:.3g} cells per second' if speed else ''
  text = (
      f'ranked {found["cells"]:,} architectures of {found["space"]}{rate} with '
      f'the weights of step {found["step"]:,}, on '
      f'{found["batches"] * found["batch_size"]:,} {found["images"]} images, '
      f'norm={found["norm"]}')
  table = found.get('table')
  if not table or not table['by_accuracy']:
    return (f'{text}: the best has {100 * found["best_accuracy"]:.2f}% '
            f'accuracy, the mean {100 * found["mean_accuracy"]:.2f}%')
  row = table['by_accuracy']
  return (f'{text}: Kendall tau {_number(row["kendall_tau"])}, Spearman '
          f'{_number(row["spearman"])} against {table["name"]} on '
          f'{table["dataset"]}; the best by score has {row["value"]:.2f}% '
          f'there, {row["regret"]:.2f} points below the best of all')


def _number(value):
  return 'undefined' if value is None else f'{value:.3f}'


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  cli.make_output_safe()
  try:
    args = cli.parse(flags.rank(), sys.argv[1:] if argv is None else argv)
    return rank(args.run, args)
  except errors.UserError as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code
