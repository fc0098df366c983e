"""`python -m rome_jax.main --config=configs/quickstart.py`: a whole run.

Search, derive, retrain, compare, report, in a folder that the same command
continues after any interruption. Exit codes: 0 done, or stopped on request
with everything saved; 2 a mistake in the config, a file or the workdir; 3 a
loss that is no longer finite; 4 another process of the run was lost or
computed something else (`hosts`; 134 if JAX itself ends the process).
"""

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from rome_jax import cli, data, errors, files
from rome_jax.cli.prepare import described, prepare, what_was_read
from rome_jax.config import checks, command_line, fields
from rome_jax.config import setup as door
from rome_jax.devices import hosts, interrupt
from rome_jax.show import curves, ranking, report
from rome_jax.show import split as pictures
from rome_jax.spaces import genotypes
from rome_jax.tables import benchmarks
from rome_jax.train import (
    candidates,
    leaves,
    memory,
    metrics,
    notes,
    plans,
    retrain,
    search,
)

REPORT = report.FILENAME
DATASET = 'dataset.json'
PHASES = ('compiling', 'searching', 'retraining', 'testing', 'writing')
PACKAGES = ('rome_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  cli.make_output_safe()
  try:
    loaded = command_line.load(sys.argv[1:] if argv is None else list(argv))
    if loaded.config is None:
      print(loaded.options.help)
      return cli.printed()
    with hosts.joined(loaded.options):
      if loaded.options.check:
        return check(loaded.config) or cli.printed()
      if loaded.options.dry_run:
        return show_cost(loaded.config) or cli.printed()
      return run(loaded.config, loaded.workdir)
  except (errors.UserError, errors.DivergedError) as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code


def run(config: ConfigDict, workdir: str | os.PathLike,
        dataset: data.Dataset | None = None,
        writers: Iterable[metrics.Writer] = ()) -> int:
  """Does what `config` asks for in `workdir`; returns the exit code.

  Args:
    config: a config; validated here.
    workdir: folder of the run.
    dataset: instead of the one that the config names.
    writers: get every line of metrics too.

  Raises:
    UserError, DivergedError, LostError: see `main`.
  """
  began = time.perf_counter()
  checks.validate(config)
  workdir = pathlib.Path(
      checks.local_path('workdir', os.fspath(workdir)))
  if hosts.from_first(lambda: _finished(workdir)):
    # It may lie where nothing can be written, as an archive does.
    hosts.from_first(lambda: checks.check_same(workdir, config))
    if dataset is not None:
      hosts.from_first(lambda: _check_dataset(workdir, dataset))
    print(f'{workdir} already holds this run, finished; see '
          f'{workdir / REPORT}')
    return 0
  with interrupt.Interrupt() as stop:
    stop = hosts.agreed(stop)
    prepared = prepare(config, dataset)
    hosts.from_first(lambda: checks.check_same(workdir, config))
    # One that goes on has those weights, or newer ones.
    if not hosts.from_first((workdir / fields.FILENAME).exists):
      _check_start(prepared)
    # Before anything is written: another process may be running there.
    with _only_one(workdir):
      hosts.from_first(lambda: checks.check_workdir(workdir, config))
      hosts.check_shared(workdir / fields.FILENAME)
      use_compilation_cache(config.compilation_cache)
      hosts.from_first(lambda: _save_dataset(workdir, prepared.dataset))
      if hosts.is_first():
        print(what_was_read(prepared.dataset), file=sys.stderr)
      with _writer(workdir, writers) as writer:
        result = _run_phases(prepared, workdir, writer, stop)
        if result is not None:
          hosts.from_first(lambda: _finish(workdir, result, began))
          return 0
  print(f'stopped by {stop.signal.name}; everything is saved, and the same '
        'command continues')
  return 0


def check(config: ConfigDict, dataset: data.Dataset | None = None) -> int:
  """Checks config, data and genotype, and says what was checked.

  Compiles nothing and writes nothing; reads one batch of each kind.

  Args:
    config, dataset: as in `run`.

  Returns:
    The exit code, 0.

  Raises:
    UserError: as `run`.
  """
  checks.validate(config)
  prepared = prepare(config, dataset)
  _check_start(prepared)
  print('\n'.join(described(prepared)))
  return 0


def show_cost(config: ConfigDict,
              dataset: data.Dataset | None = None) -> int:
  """Says what a run would cost and writes nothing; returns the exit code.

  The network that is retrained is that of the given genotype, or of a random
  one of the space, since the search's is not known yet.

  Args:
    config, dataset: as in `run`.

  Raises:
    UserError: as `run`, or a program needs more memory than there is.
  """
  checks.validate(config)
  prepared = prepare(config, dataset)
  setup = prepared.setup
  use_compilation_cache(config.compilation_cache)
  if prepared.given is None:
    _show_search(prepared)
  jobs = prepared.jobs(prepared.example())
  if jobs:
    phase, *_ = retrain.Trainer(
        setup, prepared.retrain, prepared.dataset).prepare(jobs[0])
    print(f'{len(jobs)} retrainings of that kind', file=sys.stderr)
    print(memory.loading(phase), file=sys.stderr)
  return 0


def _show_search(prepared):
  setup, seed = prepared.setup, prepared.config.seed
  for part_setup, recipe, part in plans.largest(setup, prepared.search):
    found = search.prepare(
        part_setup, recipe, prepared.dataset, seed, part=part)
    print(memory.loading(found.search.phase), file=sys.stderr)
  if not plans.supernets(setup.method, prepared.search):
    jobs = plans.jobs(setup, prepared.search, seed)
    candidates.trainer(
        setup, prepared.search, prepared.retrain, prepared.dataset, seed,
        prepared.search.epochs).prepare(jobs[0])
    print(f'{len(jobs)} candidates of that kind', file=sys.stderr)


def _writer(workdir, writers):
  return (metrics.MetricsWriter(workdir, writers=writers) if hosts.is_first()
          else metrics.NoWriter())


def _check_start(prepared):
  """Checks that the network to go on from is there, if there is one."""
  if prepared.retrain.init_from and prepared.retrain.seeds:
    retrain.read_start(prepared.retrain.init_from)


def _save_dataset(workdir, dataset):
  """Notes what inputs of a network of this run are, for `rome_jax.load`.

  Raises:
    UserError: the run began with other data.
  """
  _check_dataset(workdir, dataset)
  facts = dataset._asdict()
  del facts['train'], facts['test']
  files.write_json(workdir / DATASET, facts)


def _check_dataset(workdir, dataset):
  path = workdir / DATASET
  if not path.exists() and (workdir / metrics.FILENAME).exists():
    raise errors.UserError(
        f'{workdir} holds a run without its {DATASET}, which says what data it '
        'began with; put that file back or use another --workdir')
  if other_data(workdir, dataset):
    raise errors.UserError(
        f'{workdir} holds a run that began with other data: the images, '
        f'labels or splits of {dataset.name} have changed since; restore them '
        'or use another --workdir')


def other_data(workdir: pathlib.Path, dataset: data.Dataset) -> bool:
  """Whether a run is known to have begun with other data than these.

  Raises:
    UserError: what the run noted of its data is damaged.
  """
  path = workdir / DATASET
  with files.as_written(path):
    began_with = files.read_json(path).get('digest') if path.exists() else ''
  return bool(began_with and dataset.digest and began_with != dataset.digest)


def _finished(workdir):
  """Whether the report, which a run writes last, and its source are there."""
  try:
    return all((workdir / name).exists()
               for name in ('genotype.json', 'result.json', REPORT))
  except OSError as error:
    raise errors.UserError(
        f'cannot use workdir {workdir}: {error.strerror}') from error


def _only_one(workdir):
  """Holds the folder's lock, so that a second run cannot write there.

  A run that a comparison or sweep started may meet one that an earlier
  comparison, which was killed, has left; that one is about to save and stop.
  """
  if not hosts.is_first():
    return contextlib.nullcontext()
  return files.only_one(workdir, _PATIENCE if interrupt.parent() else 0.)


_PATIENCE = 600.  # seconds; it may still compile


def use_compilation_cache(where: str) -> None:
  """Keeps compiled programs between runs.

  Args:
    where: a folder, '' for none, or 'auto': a folder in the user's cache for
      this kind of processor (XLA's programs for one CPU may not run on
      another); none for a user without a home folder.
  """
  if where == 'auto':
    root = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    if root.startswith('~'):  # A user without a home, as in some containers.
      return
    where = os.path.join(root, 'rome_jax', _processor_key())
  if where:  # JAX takes URLs of buckets too.
    jax.config.update('jax_compilation_cache_dir', os.path.expanduser(where))


def _processor_key():
  facts = [platform.machine(), platform.processor()]
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
    facts += [line for line in text.split('\n\n')[0].splitlines()
              if line.startswith(('model name', 'flags', 'Features'))]
  except OSError:
    pass  # Not Linux; the names above must do.
  return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:12]


def _run_phases(prepared, workdir, writer, stop):
  """The search and every retraining; the result, or None if stopped."""
  config, setup, given = prepared.config, prepared.setup, prepared.given
  result = {'format': 1, 'method': config.method, 'space': config.space,
            'dataset': config.dataset, 'seed': config.seed}
  if given is not None:
    genotype = given.genotype
    result['origin'] = _origin(given, config)
    path = workdir / 'genotype.json'
    hosts.from_first(lambda: _save_given(path, given, config))
  else:
    figures = _search(prepared, workdir, writer, stop)
    if figures is None:
      return None
    result['search'] = figures
    genotype = genotypes.from_text(hosts.from_first(
        lambda: genotypes.to_text(
            genotypes.load(str(workdir / 'genotype.json')))))
  result['genotype'] = genotypes.to_text(genotype)
  result |= _tabular(setup.space, genotype)
  evaluations = _retrain(prepared, workdir, genotype, writer, stop)
  if evaluations is None:
    return None
  count = retrain.count(setup, prepared.retrain, genotype)
  if prepared.retrain.holdout:
    result['holdout'] = prepared.retrain.holdout
  return result | {
      'evaluations': evaluations, 'summary': report.summarise(evaluations),
      'params': count.params, 'macs': count.macs, **environment()}


def _search(prepared, workdir, writer, stop):
  """The figures of the search; None if stopped."""
  config, setup = prepared.config, prepared.setup
  if (figures := notes.read(workdir, 'search')) is not None:
    with files.as_written(f'what {workdir} holds of its search'):
      hosts.from_first(lambda: _keep_genotype(workdir, config, figures))
      hosts.from_first(lambda: _warn_of_lost_lines(
          workdir, figures.get('phase', 'search'), figures))
    return figures
  found = plans.run(
      setup, prepared.search, prepared.retrain, prepared.dataset, config.seed,
      door.settings(config, workdir), writer, stop,
      {'dataset': config.dataset})
  if not found.finished:
    return None
  return notes.write(workdir, 'search', _search_figures(found, setup.space))


def _keep_genotype(workdir, config, figures):
  """Sees that genotype.json is the one that the finished search wrote."""
  path = workdir / 'genotype.json'
  text = figures['genotype']
  if not path.exists():
    genotypes.save(
        path, genotypes.from_text(text), space=config.space, seed=config.seed,
        step=figures['steps'], method=config.method, dataset=config.dataset)
    print(f'{path} was missing; it is written again as the finished search '
          'left it', file=sys.stderr)
  elif genotypes.to_text(genotypes.load(str(path))) != text:
    raise errors.UserError(
        f'{path} is not the genotype that the search of {workdir} ended with; '
        'delete it to have that one back, or retrain yours with '
        '--config.genotype in another --workdir')


def _warn_of_lost_lines(workdir, phase, figures):
  """Says so where the metrics of a finished phase were cut or deleted."""
  steps = [row.get('step') for row in metrics.read(workdir)
           if row.get('phase') == phase]
  if steps[-1:] != [figures['steps']]:
    print(f'{workdir / metrics.FILENAME} lacks the last lines of {phase}, '
          'which is finished; its figures are kept, its curves end early',
          file=sys.stderr)


def _save_given(path, given, config):
  """Writes the genotype to retrain; a run keeps the one it began with."""
  if path.exists():
    if genotypes.load(str(path)) != given.genotype:
      raise errors.UserError(
          f'config.genotype={config.genotype} is not the genotype that '
          f'{path.parent} began with; use another --workdir')
    return
  genotypes.save(path, given.genotype, **_origin(given, config))


def _origin(given, config):
  """Where a given genotype is from; what is not known of it is None."""
  known = ('space', 'method', 'dataset', 'seed', 'step')
  origin = {name: given.info.get(name) for name in known}
  source = given.info.get('source')
  origin['source'] = config.genotype + (f' ({source})' if source else '')
  if origin['space'] is None:
    space = checks.space(config)
    fits = genotypes.used_ops(given.genotype) <= set(space.ops)
    origin['space'] = space.name if fits else None
  return origin


def _search_figures(found, space):
  keep = ('train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy')
  return {
      'genotype': genotypes.to_text(found.genotype),
      **{k: found.scalars.get(k) for k in keep}, **found.figures,
      'peak_memory_bytes': peak_memory_bytes(),
      'parameterless': genotypes.parameterless(found.genotype, space)}


def _tabular(space, genotype):
  """{'table': what the space's complete table says} where there is one."""
  known = benchmarks.of(space)
  return {} if known is None else {
      'table': known.report(genotype) | {'title': known.title}}


def _retrain(prepared, workdir, genotype, writer, stop):
  """One record per retraining; None if stopped."""
  trainer, records = None, []
  for job in prepared.jobs(genotype):
    if (figures := notes.read(workdir, job.name)) is None:
      trainer = trainer or retrain.Trainer(
          prepared.setup, prepared.retrain, prepared.dataset)
      outcome = trainer.run(
          job, door.settings(prepared.config, workdir), writer, stop)
      if not outcome.finished:
        return None
      figures = notes.write(
          workdir, job.name, _retrain_figures(prepared, job, outcome))
    else:
      with files.as_written(f'what {workdir} holds of {job.name}'):
        hosts.from_first(functools.partial(
            _warn_of_lost_lines, workdir, f'retrain/{job.name}', figures))
    records.append(figures)
  return records


def _retrain_figures(prepared, job, outcome):
  keep = ('train_loss', 'train_accuracy', 'test_loss', 'test_accuracy')
  count = retrain.count(prepared.setup, prepared.retrain, job.genotype)
  figures = dict(outcome.figures)
  return {
      'name': job.name, 'kind': job.kind, 'seed': job.seed,
      'genotype': genotypes.to_text(job.genotype),
      **{k: outcome.scalars.get(k) for k in keep},
      'params': count.params, 'macs': count.macs,
      'train_seconds': figures.pop('seconds'), **figures,
      'peak_memory_bytes': peak_memory_bytes()}


def peak_memory_bytes() -> int | None:
  """Most memory in use so far: the device's, or on a CPU the process's."""
  stats = jax.local_devices()[0].memory_stats()
  if stats:
    return stats.get('peak_bytes_in_use')
  try:
    import resource
  except ImportError:  # Windows
    return None
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak if sys.platform == 'darwin' else peak * 1024


def environment() -> dict:
  """Device and versions, for result.json."""
  device = jax.devices()[0]
  versions = {'python': platform.python_version()}
  for name in PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = 'not installed'
  return {
      'device': f'{jax.device_count()} x {device.device_kind} '
                f'({device.platform}, {os.cpu_count()} host cores)',
      'processes': jax.process_count(),
      'versions': versions,
      'created': datetime.datetime.now(datetime.UTC).isoformat(
          timespec='seconds')}


def _finish(workdir, result, began):
  """Pictures, the result and, last, the report."""
  with files.as_written(f'a file of {workdir}'):
    _write_all(workdir, result, began)


def _write_all(workdir, result, began):
  writing = time.perf_counter()
  record = genotypes.read(str(workdir / 'genotype.json'))
  rows = curves.of_leaf(
      metrics.read(workdir), (result.get('search') or {}).get('leaf'))
  curves.save_run(workdir, rows, record.genotype)
  if (tree := workdir / leaves.FILENAME).exists():
    pictures.save(workdir, files.read_json(tree))
  rounds = workdir / candidates.FILENAME
  if rounds.exists():
    ranking.save_history(rounds.with_suffix(''),
                         files.read_json(rounds)['history'])
  files.write_json(workdir / 'result.json', result)
  report.write_report(workdir)
  now = time.perf_counter()
  spent = seconds_spent(
      result.get('search'), result['evaluations'], now - writing)
  print(_closing_text(workdir, result))
  print(_where_the_seconds_went(spent, now - began))


def seconds_spent(searched: Mapping[str, Any] | None,
                  evaluations: Iterable[Mapping[str, Any]],
                  writing: float) -> dict[str, float]:
  """{phase: seconds} for every name of PHASES.

  Training counts what all processes of an interrupted run took; compiling and
  testing only what the last one did.

  Args:
    searched: the search's figures in result.json, or None.
    evaluations: those of the retrainings.
    writing: seconds that pictures and report took.
  """
  spent = dict.fromkeys(PHASES, 0.) | {'writing': writing}
  if searched:
    spent['compiling'] += searched['compile_seconds']
    spent['searching'] += searched['seconds']
  for row in evaluations:
    testing, compiling = row['test_seconds'], row['test_compile_seconds']
    spent['compiling'] += row['compile_seconds'] + compiling
    spent['testing'] += testing
    spent['retraining'] += row['train_seconds'] - testing - compiling
  return spent


def _where_the_seconds_went(spent, total):
  """One line; without the rest where earlier processes did their share."""
  parts = [f'{name} {seconds:.0f}' for name, seconds in spent.items()]
  rest = total - sum(spent.values())
  if rest >= 0:
    parts.append(f'all else {rest:.0f}')
  return f'seconds: {", ".join(parts)}'


def _closing_text(workdir, result):
  lines = [f'genotype: {result["genotype"]}']
  if 'search' in result:
    names = {'normal': 'normal', 'reduce': 'reduction'}
    lines.append('parameterless operations: ' + ', '.join(
        f'{names[cell]} {n}'
        for cell, n in result['search']['parameterless'].items()))
  for name, row in result.get('table', {}).get('datasets', {}).items():
    lines.append(
        f'{result["table"]["title"]} table, {name}: {row["test"]:.2f}% test '
        'accuracy, rank '
        f'{row["rank"]} of {result["table"]["num_cells"]}, regret '
        f'{row["regret"]:.2f}')
  if 'holdout' in result:
    lines.append(f'accuracies are those of the share {result["holdout"]} of '
                 'the training images, which was held out')
  lines += [report.accuracy(kind, row)
            for kind, row in result['summary'].items()]
  lines.append(f'parameters: {result["params"]:,}; multiply-adds: '
               f'{result["macs"]:,}')
  lines.append(f'report: {workdir / REPORT}')
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
