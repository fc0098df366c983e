"""`rome-jax compare`: methods side by side, seed by seed, on one page.

  rome-jax compare --config=compare_nb201 --workdir=runs/compare \
      --config.data_dir=FOLDER [--seeds=0,1,2] [--workers=N]

The file's get_comparison() lists arms, each the flags of `rome-jax run` in
which it differs, and seeds; all other flags go to every run. Each run has a
folder and a process of its own; finished ones are left alone, unfinished ones
go on. With --workers several run at the same time; with several GPUs each runs
on one of them, and workers share when there are more workers than GPUs.

Whenever runs end, and at the end, DIR/compare.json, compare.csv and
compare.html are written: every run, mean and spread of each arm, differences
to the baseline of the same seeds with 95 % intervals, budgets, and random
choice at equal budget and the table's optimum where the space has a table.

Exit codes: those of `rome-jax sweep`.
"""

import contextlib
import csv
import io
import os
import pathlib
import queue
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rome_jax import cli, errors, files
from rome_jax.cli import flags as flags_lib
from rome_jax.cli import rank as rank_lib
from rome_jax.cli import sweep
from rome_jax.config import checks, command_line, comparison, fields
from rome_jax.config.comparison import Comparison
from rome_jax.devices import interrupt
from rome_jax.methods import table
from rome_jax.methods.method import Evolve, OneSearch
from rome_jax.show import comparison as page
from rome_jax.show import report
from rome_jax.spaces import nasbench201_forms
from rome_jax.tables import benchmarks, nasbench201, scores
from rome_jax.train import metrics

FILENAME, CSV, PAGE = 'compare.json', 'compare.csv', 'compare.html'
OUTPUT = 'output.txt'  # what a run prints, in its folder

# What is shown, and whether more is better; None: it is a cost, or says the
# same as another, and no difference is stated.
MEASURES = {
    'accuracy': True, 'regret': None, 'parameterless': False,
    'kendall_tau': True, 'seconds': None, 'images': None,
    'memory_bytes': None}
# Training images of the table's test accuracies, per epoch.
_TRAINED_ON = {'cifar10': 50_000, 'cifar100': 50_000, 'imagenet16-120': 151_700}


def plan(found: Comparison, folder: str,
         flags: Sequence[str]) -> list[sweep.Run]:
  """The runs of a comparison, seed by seed, the config of each checked.

  Args:
    found: the comparison.
    folder: of the comparison.
    flags: given to every run, after those of its arm.

  Raises:
    UserError: a run's config is wrong, asks for something that is no run, or
      is not the one that its folder began with.
  """
  runs = []
  for seed in found.seeds:
    for label, own in found.arms.items():
      try:
        argv = _argv([*own, *flags], seed)
        name = f'{comparison.slug(label)}/seed-{seed}'
        run = sweep.Run(name, {'arm': label, 'seed': seed},
                        str(pathlib.Path(folder, name)), argv)
        config = command_line.load(argv).config
        if config is None:
          raise errors.UserError('--help is not for a comparison')
        checks.check_same(run.workdir, config)
        if found.rank and not _has_supernet(config):
          raise errors.UserError(
              f'rank={found.rank!r} must be empty with '
              f'config.method={config.method!r}, which leaves no one supernet')
      except errors.UserError as error:
        raise errors.UserError(f'arm {label!r}: {error}') from None
      runs.append(run)
  return runs


def _argv(flags, seed):
  for flag in flags:
    if flag.startswith(('--config.seed', '--check', '--dry-run', '--workdir')):
      raise errors.UserError(
          f'{flag} is not for a comparison, which sets seeds and folders '
          'itself')
  return [*flags, f'--config.seed={seed}']


def _has_supernet(config):
  return not config.genotype and isinstance(
      table.METHODS[config.method].plan, OneSearch | Evolve)


# --- Running


def run_all(runs: Sequence[sweep.Run], workers: int, rank: Sequence[str],
            after: Any, program: Sequence[str] = sweep.PROGRAM,
            ) -> dict[str, int]:
  """Runs what is not done, so many at a time; {name: exit code}.

  Args:
    runs: of `plan`.
    workers: how many at a time.
    rank: flags of the ranking after each; empty: none.
    after: () -> None, called whenever a run has ended.
    program: see `sweep.PROGRAM`.

  Raises:
    UserError: a folder or file cannot be used; the other runs are stopped.
  """
  left: queue.Queue = queue.Queue()
  for run in runs:
    left.put(run)
  codes: dict[str, int] = {}
  lock, clock = threading.Lock(), _Clock(len(runs), workers)
  failures: list[BaseException] = []

  def work(worker):
    try:
      while not stop.requested:
        try:
          run = left.get_nowait()
        except queue.Empty:
          return
        began = time.perf_counter()
        code = _run(run, stop, program, rank, _environment(worker, workers))
        with lock:
          codes[run.name] = code
          print(clock.after(run, code, time.perf_counter() - began,
                            stop.requested), flush=True)
          after()
    except BaseException as error:  # Raised below, in the main thread.
      failures.append(error)
      stop.ended = True

  with interrupt.Interrupt() as signals:
    stop = _StopOrFailure(signals)
    threads = [threading.Thread(target=work, args=(i,))
               for i in range(workers)]
    for thread in threads:
      thread.start()
    try:
      for thread in threads:
        while thread.is_alive():  # So that signals are handled here.
          thread.join(.2)
    except BaseException:  # A second Ctrl-C.
      stop.ended = stop.at_once = True
      raise
  if failures:
    raise failures[0]
  return codes


class _StopOrFailure:
  """Requested by a signal or once a worker has failed.

  Attributes:
    ended: whether one has.
    at_once: whether processes are killed instead of asked.
  """

  def __init__(self, signals):
    self._signals, self.ended, self.at_once = signals, False, False

  @property
  def requested(self):
    if self.at_once:
      raise KeyboardInterrupt
    return self.ended or self._signals.requested


def _run(run, stop, program, rank, environment):
  """The exit code of a run and, if asked for, its ranking."""
  folder = pathlib.Path(run.workdir)
  commands = []
  if not (folder / report.FILENAME).exists():
    commands.append([*program, *run.argv, f'--workdir={run.workdir}'])
  if rank and not (folder / rank_lib.FILENAME).exists():
    own = [flag for flag in run.argv if flag.startswith('--config=')]
    commands.append(['-m', 'rome_jax', 'rank', run.workdir, *rank, *own[-1:]])
  try:
    folder.mkdir(parents=True, exist_ok=True)
    with files.open_own(folder / OUTPUT, 'ab') as output:
      for command in commands:
        code = sweep.follow(command, stop, environment=environment,
                            output=output)
        if code or stop.requested:
          return code
  except OSError as error:
    raise errors.UserError(
        f'cannot use {folder}: {error.strerror or error}') from error
  return 0


def _environment(worker, workers):
  """Variables that put a worker on one GPU, if there are several."""
  values = dict(os.environ)
  if workers > 1:
    given = values.get('CUDA_VISIBLE_DEVICES')
    gpus = given.split(',') if given is not None else []
    if given is None:
      with contextlib.suppress(OSError):
        gpus = [str(i) for i in range(len(os.listdir(
            '/proc/driver/nvidia/gpus')))]
    if len(gpus) > 1:
      values['CUDA_VISIBLE_DEVICES'] = gpus[worker % len(gpus)]
  return values


class _Clock:
  """Says how many runs are done and when the rest will be."""

  def __init__(self, total, workers):
    self._total, self._workers = total, workers
    self._done, self._seconds = 0, []

  def after(self, run, code, seconds, stopped):
    """A line about a run that has ended."""
    self._done += 1
    if seconds > 1:  # Less: it was done before.
      self._seconds.append(seconds)
    left = self._total - self._done
    text = f'[{self._done}/{self._total}] {run.name}: '
    if code:
      return f'{text}{sweep.shown(code)}: {_last_line(run)}'
    if stopped:
      return f'{text}stopped'
    text += 'done'
    if left and self._seconds:
      mean = sum(self._seconds) / len(self._seconds)
      text += f'; {metrics.clock_text(left * mean / self._workers)} left'
    return text


def _last_line(run):
  """The end of what a run printed, and where the rest is."""
  path = pathlib.Path(run.workdir, OUTPUT)
  lines = path.read_text(errors='replace').split('\n')
  last = next((line for line in reversed(lines) if line.strip()), '')
  return f'{last.strip() or "it printed nothing"} ({path})'


# --- What comes out


def collect(found: Comparison, runs: Sequence[sweep.Run]) -> dict[str, Any]:
  """What compare.json says, read from the runs' folders.

  Args:
    found: the comparison.
    runs: of `plan`.

  Returns:
    'runs': a row each, with what MEASURES names and 'genotype', 'steps',
      'trajectory'.
    'arms': {label: {measure: n, mean, std, best, values}}.
    'differences': per arm and measure, against the baseline of the same
      seeds; see `scores.paired_difference`.
    'references': rows of random choice and the optimum, with the same
      measures.
  """
  rows = [_row(run) for run in runs]
  with files.as_written("a run's result.json"):
    return _collected(found, rows)


def _collected(found, rows):
  arms = {label: _summary([row for row in rows if row['arm'] == label])
          for label in found.arms}
  baseline = found.baseline or next(iter(found.arms))
  return {
      'format': 1, 'name': found.name, 'against': found.against,
      'baseline': baseline, 'seeds': list(found.seeds),
      'flags': {label: list(own) for label, own in found.arms.items()},
      'runs': rows, 'arms': arms,
      'differences': _differences(rows, list(found.arms), baseline),
      'references': _references(rows)}


def _row(run):
  folder = pathlib.Path(run.workdir)
  row = {**run.values, 'folder': run.name, 'state': 'not run',
         **dict.fromkeys(MEASURES), 'genotype': None, 'trajectory': []}
  path = folder / 'result.json'
  if not path.exists():
    if folder.exists():
      row['state'] = 'unfinished'
    return row
  with files.as_written(f'a file of {folder}'):
    return row | _result(folder, path)


def _result(folder, path):
  """What a finished run adds to its row."""
  result = files.read_json(path)
  search = result.get('search') or {}
  row = {'state': 'done', 'space': result.get('space'),
         'dataset': result.get('dataset'), 'genotype': result['genotype'],
         'seconds': search.get('seconds'), 'steps': search.get('steps'),
         'memory_bytes': search.get('temp_bytes'),
         'valid_accuracy': search.get('valid_accuracy'),
         'parameterless': (search.get('parameterless') or {}).get('normal'),
         'params': result.get('params'), 'device': result.get('device')}
  row['images'] = search.get('images')
  if row['images'] is None and search.get('phase') == 'search':
    # A run of an earlier version, and a single search.
    row['images'] = round(search['images_per_second'] * search['seconds'])
  row |= _accuracy(result)
  ranked = folder / rank_lib.FILENAME
  if ranked.exists():
    table = files.read_json(ranked).get('table') or {}
    row['kendall_tau'] = (table.get('by_accuracy') or {}).get('kendall_tau')
  row['trajectory'] = _trajectory(metrics.read(folder), search)
  return row


def _accuracy(result):
  """The accuracy that counts: the table's, or that of retraining."""
  known = (result.get('table') or {}).get('datasets') or {}
  if known:
    name = result['dataset'] if result['dataset'] in known else 'cifar10'
    found = known[name]
    return {'accuracy': found['test'] / 100, 'table_of': name,
            'table': result['table']['table'],
            'rank': found['rank'], 'regret': found['regret'] / 100}
  summary = result.get('summary') or {}
  row = {'accuracy': (summary.get('derived') or {}).get('mean')}
  if 'random' in summary:
    row['random_accuracy'] = summary['random']['mean']
  return row


def _trajectory(rows, search):
  """[share of the search, table accuracy, operations and share without
  weights] of each line of the derived architecture's part."""
  phase = search.get('leaf') or search.get('phase') or 'search'
  own = [row for row in rows if row.get('phase') == phase]
  last = max((row['step'] for row in own), default=1)
  names = ('table_accuracy', 'parameterless_normal',
           'parameterless_share_normal')
  return [[row['step'] / last, *(row.get(name) for name in names)]
          for row in own if any(row.get(name) is not None for name in names)]


def _summary(rows):
  """{measure: n, mean, std, best, values} of one arm."""
  found = {}
  for name, more in MEASURES.items():
    values = [row[name] for row in rows if row[name] is not None]
    if values:
      found[name] = {
          'n': len(values), 'mean': float(np.mean(values)),
          'std': float(np.std(values, ddof=1)) if len(values) > 1 else None,
          'best': max(values) if more else min(values), 'values': values}
  return found


def _differences(rows, labels, baseline):
  """{arm: {measure: difference to the baseline}}; costs are not compared."""

  def by_seed(label, name):
    return {row['seed']: row[name] for row in rows
            if row['arm'] == label and row[name] is not None}

  found: dict[str, dict[str, Any]] = {}
  for label in labels:
    for name, more in MEASURES.items():
      ours, theirs = by_seed(label, name), by_seed(baseline, name)
      seeds = sorted(set(ours) & set(theirs))
      if label == baseline or more is None or not seeds:
        continue
      found.setdefault(label, {})[name] = scores.paired_difference(
          [ours[s] for s in seeds], [theirs[s] for s in seeds]) | {
              'seeds': seeds}
  return found


def _references(rows):
  """Random choice at equal budget and the optimum, where there is a table."""
  done = [row for row in rows if row.get('table_of')]
  found = []
  for name, dataset in sorted({(row['table'], row['table_of'])
                               for row in done}):
    known = next(b.load() for b in (benchmarks.NASBENCH201, benchmarks.MACRO)
                 if b.load().name == name)
    values = known.values(dataset) / 100
    best, chance = float(values.max()), None
    if name == nasbench201.load().name:
      chance = float(np.mean([
          sum(code in '014' for code in nasbench201_forms.to_code(i))
          for i in range(known.size)]))
    found += [
        _reference(f'the best of {name}', dataset, [best], best, None),
        _reference(f'a random one of {name}', dataset, values, best, chance)]
    if chance is not None:  # This table knows early epochs.
      found += _at_equal_budget(
          [row for row in done if row['table_of'] == dataset
           and row['table'] == name], dataset, values,
          known.values(dataset, epochs=12), best)
  alone = [row['random_accuracy'] for row in rows if row.get('random_accuracy')]
  if alone:
    found.append({'name': 'random architectures, retrained', 'accuracy': {
        'mean': float(np.mean(alone)), 'n': len(alone),
        'std': float(np.std(alone, ddof=1)) if len(alone) > 1 else None}})
  return found


def _at_equal_budget(rows, dataset, values, early, best):
  """Random search with as many images as an arm's searches, arm by arm."""
  budgets: dict[int, list[str]] = {}
  for label in dict.fromkeys(row['arm'] for row in rows):
    images = [row['images'] for row in rows
              if row['arm'] == label and row['images']]
    if images:
      number = round(float(np.median(images)) / (12 * _TRAINED_ON[dataset]))
      budgets.setdefault(min(number, len(values)), []).append(label)
  found, rng = [], np.random.default_rng(0)
  for number, labels in sorted(budgets.items()):
    if number < 1:  # Not one training; a random cell is above.
      continue
    drawn = [rng.choice(len(values), number, replace=False)
             for _ in range(2000)]
    found.append(_reference(
        f'the best of {number} random cells by their 12th epoch, the budget '
        f'of {", ".join(labels)}', dataset,
        [values[row[np.argmax(early[row])]] for row in drawn], best, None))
  return found


def _reference(name, dataset, values, best, parameterless):
  mean, several = float(np.mean(values)), len(values) > 1
  return {'name': name, 'dataset': dataset, 'parameterless': parameterless,
          'accuracy': {'mean': mean, 'n': len(values),
                       'std': float(np.std(values)) if several else None},
          'regret': best - mean}


def write(folder: str | os.PathLike[str], found: Mapping[str, Any]) -> None:
  """Writes compare.json, compare.csv, the pictures and compare.html."""
  folder = pathlib.Path(folder)
  with files.as_written("a run's result.json"):
    _write(folder, found)


def _write(folder, found):
  files.write_json(folder / FILENAME, found)
  text = io.StringIO()
  names = ('arm', 'seed', 'state', *MEASURES, 'rank', 'steps', 'params',
           'valid_accuracy', 'genotype', 'folder')
  writer = csv.DictWriter(text, names, extrasaction='ignore',
                          lineterminator='\n')
  writer.writeheader()
  writer.writerows(found['runs'])
  files.write_text(folder / CSV, text.getvalue())
  page.save_pictures(folder, found)
  files.write_text(folder / PAGE, page.to_html(folder, found))


def to_text(found: Mapping[str, Any]) -> str:
  """The summary for people."""
  lines = []
  for label, measures in found['arms'].items():
    parts = [f'{name} {page.shown(name, part)}'
             for name, part in measures.items()]
    lines.append(f'{label}: {", ".join(parts) or "nothing is done"}')
  for row in found['references']:
    lines.append(f'{row["name"]}: accuracy '
                 f'{page.shown("accuracy", row["accuracy"])}')
  for label, measures in found['differences'].items():
    lines += [page.sentence(label, found['baseline'], name, part)
              for name, part in measures.items()]
  return '\n'.join(lines)


def finish(folder: str, found: Comparison, runs: Sequence[sweep.Run],
           codes: Mapping[str, int]) -> int:
  """Writes and prints what came out; returns the exit code.

  Args:
    folder: of the comparison.
    found, runs: as in `collect`.
    codes: {name: exit code} of the runs that were started.
  """
  result = collect(found, runs)
  write(folder, result)
  print(f'\n{to_text(result)}\n{pathlib.Path(folder, PAGE)}')
  return next((code for code in codes.values() if code), 0)


def with_seeds(found: Comparison, text: str | None) -> Comparison:
  """The comparison with the seeds of `--seeds`, if there are any.

  Raises:
    UserError: they are no whole numbers, or one comes twice.
  """
  if not text:
    return found
  words = [word.strip() for word in text.split(',')]
  if not all(word.isdecimal() for word in words) or (
      len(set(words)) < len(words)):
    raise errors.UserError(
        f'--seeds={text} must be whole numbers separated by commas, none '
        'twice')
  return found._replace(seeds=tuple(map(int, words)))


def _check_folder(folder, found):
  """Checks that the page does not go among others' files."""
  if (folder / fields.FILENAME).exists():
    raise errors.UserError(
        f'--workdir={folder} holds a single run; give the comparison a folder '
        'of its own')
  if (folder / FILENAME).exists():
    with files.as_written(folder / FILENAME):
      name = files.read_json(folder / FILENAME)['name']
    if name != found.name:
      raise errors.UserError(
          f'--workdir={folder} holds the comparison {name!r}, not '
          f'{found.name!r}; give it a folder of its own')


def main(argv: Sequence[str] | None = None,
         program: Sequence[str] = sweep.PROGRAM) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  cli.make_output_safe()
  try:
    args, flags = flags_lib.compare().parse_known_args(argv)
    found = with_seeds(comparison.load(args.config), args.seeds)
    folder = checks.local_path('--workdir', args.workdir)
    runs = plan(found, folder, flags)
    _check_folder(pathlib.Path(folder), found)
    if args.page:
      return finish(folder, found, runs, {})
    with files.only_one(folder):
      codes = run_all(
          runs, args.workers, found.rank,
          lambda: write(folder, collect(found, runs)), program)
      return finish(folder, found, runs, codes)
  except errors.UserError as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code


if __name__ == '__main__':
  sys.exit(main())
