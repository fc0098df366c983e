"""`python -m rome_jax.main --config=configs/quickstart.py`: a whole run.

Search, derive, retrain, compare, report; in a folder that the same command
continues after any interruption. Exit codes: 0 done, or stopped on request
with everything saved; 2 a mistake in the config, a file or the workdir; 3 a
loss that is no longer finite.
"""

import datetime
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys

import jax

from rome_jax import config as config_lib
from rome_jax import (
  data,
  errors,
  evaluate,
  files,
  genotypes,
  interrupt,
  metrics,
  plotting,
  report,
  search,
)

REPORT = report.FILENAME
PACKAGES = ('rome_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def main(argv=None) -> int:
  """Runs a command line (default: the process's); returns the exit code."""
  try:
    loaded = config_lib.load(sys.argv[1:] if argv is None else list(argv))
    if loaded.config is None:
      print(loaded.options.help)
      return 0
    return run(loaded.config, loaded.workdir)
  except (errors.UserError, errors.DivergedError) as error:
    print(f'rome_jax: {error}', file=sys.stderr)
    return error.exit_code


def run(config, workdir, dataset=None) -> int:
  """Does what `config` asks for in `workdir`; returns the exit code.

  Args:
    config: a config; validated here.
    workdir: folder of the run.
    dataset: a `data.Dataset` instead of the one that the config names.

  Raises:
    UserError, DivergedError: see `main`.
  """
  config_lib.validate(config)
  workdir = pathlib.Path(workdir)
  # The report is what a run writes last.
  if all((workdir / name).exists() for name in ('result.json', REPORT)):
    config_lib.check_workdir(workdir, config)
    print(f'{workdir} holds this run already, finished; see '
          f'{workdir / REPORT}')
    return 0
  given = genotypes.read(config.genotype) if config.genotype else None
  if dataset is None:
    dataset = data.load(
        config.dataset, config.data_dir, image_size=config.image_size,
        test_fraction=config.test_fraction, seed=config.seed)
  _check_data(config, dataset)
  config_lib.check_workdir(workdir, config)
  use_compilation_cache(config.compilation_cache)
  with (metrics.MetricsWriter(workdir) as writer,
        interrupt.Interrupt() as stop):
    result = _run_phases(config, dataset, workdir, given, writer, stop)
  if result is None:
    print(f'stopped by {stop.signal.name}; everything is saved, the same '
          'command continues')
    return 0
  _finish(workdir, result)
  return 0


def _check_data(config, dataset):
  """What can only be checked with the data at hand, before compiling."""
  if not config.genotype:
    search.make_batches(config, dataset)
  if config.evaluate.seeds:
    evaluate.Trainer(config, dataset)


def use_compilation_cache(where: str) -> None:
  """Keeps compiled programs between runs.

  Args:
    where: a folder, '' for none, or 'auto': a folder in the user's cache for
      this kind of processor (XLA's programs for one CPU may not run on
      another).
  """
  if where == 'auto':
    root = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
    where = pathlib.Path(root, 'rome_jax', _processor_key())
  if where:
    jax.config.update('jax_compilation_cache_dir', str(where))


def _processor_key():
  facts = [platform.machine(), platform.processor()]
  try:
    text = pathlib.Path('/proc/cpuinfo').read_text()
    facts += [line for line in text.split('\n\n')[0].splitlines()
              if line.startswith(('model name', 'flags', 'Features'))]
  except OSError:
    pass  # Not Linux; the names above must do.
  return hashlib.sha256('\n'.join(facts).encode()).hexdigest()[:12]


def _run_phases(config, dataset, workdir, given, writer, stop):
  """The search and every retraining; the result, or None if stopped."""
  result = {'format': 1, 'method': config.method, 'space': config.space,
            'dataset': config.dataset, 'seed': config.seed}
  if given is not None:
    genotype = given.genotype
    genotypes.save(workdir / 'genotype.json', genotype,
                   space=given.info.get('space', config.space),
                   seed=given.info.get('seed', config.seed),
                   step=given.info.get('step', 0), source=config.genotype)
  else:
    note = workdir / 'phases' / 'search.json'
    if not note.exists():
      outcome, genotype = search.run(config, dataset, workdir, writer, stop)
      if not outcome.finished:
        return None
      files.write_json(note, _search_figures(outcome, genotype))
    result['search'] = files.read_json(note)
    genotype = genotypes.load(str(workdir / 'genotype.json'))
  result['genotype'] = genotypes.to_text(genotype)
  evaluations = _retrain(config, dataset, workdir, genotype, writer, stop)
  if evaluations is None:
    return None
  return result | _summary(evaluations) | environment()


def _search_figures(outcome, genotype):
  keep = ('train_loss', 'train_accuracy', 'valid_loss', 'valid_accuracy')
  return {
      **{k: outcome.scalars.get(k) for k in keep}, **outcome.figures,
      'peak_memory_bytes': peak_memory_bytes(),
      'parameterless': genotypes.parameterless(genotype)}


def _retrain(config, dataset, workdir, genotype, writer, stop):
  """One record per retraining; None if stopped."""
  trainer, records = None, []
  for job in evaluate.jobs(config, genotype):
    note = workdir / 'phases' / f'{job.name}.json'
    if not note.exists():
      trainer = trainer or evaluate.Trainer(config, dataset)
      outcome = trainer.run(job, workdir, writer, stop)
      if not outcome.finished:
        return None
      count = trainer.count(job)
      files.write_json(note, {
          'name': job.name, 'kind': job.kind, 'seed': job.seed,
          'genotype': genotypes.to_text(job.genotype),
          **{k: outcome.scalars.get(k) for k in (
              'train_loss', 'train_accuracy', 'test_loss', 'test_accuracy')},
          'params': count.params, 'macs': count.macs,
          'train_seconds': outcome.figures['seconds'], **outcome.figures,
          'peak_memory_bytes': peak_memory_bytes()})
    records.append(files.read_json(note))
  return records


def _summary(evaluations):
  summary = {'evaluations': evaluations,
             'summary': report.summarise(evaluations)}
  if evaluations:
    summary |= {k: evaluations[0][k] for k in ('params', 'macs')}
  return summary


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
      'versions': versions,
      'created': datetime.datetime.now(datetime.timezone.utc).isoformat(
          timespec='seconds')}


def _finish(workdir, result):
  """Pictures, report and, last, the file that says that all is done."""
  record = genotypes.read(str(workdir / 'genotype.json'))
  plotting.save_run(workdir, metrics.read(workdir), record.genotype)
  files.write_json(workdir / 'result.json', result)
  report.write_report(workdir)
  print(_closing_text(workdir, result))


def _closing_text(workdir, result):
  lines = [f'genotype: {result["genotype"]}']
  if 'search' in result:
    free = result['search']['parameterless']
    lines.append(f'parameterless operations: normal {free["normal"]}, '
                 f'reduction {free["reduce"]}')
  for kind, row in result['summary'].items():
    spread = '' if row['std'] is None else f' +- {100 * row["std"]:.2f}'
    lines.append(
        f'test accuracy, {kind}: {100 * row["mean"]:.2f}%{spread} '
        f'(n={row["n"]}, best {100 * row["best"]:.2f}%)')
  if result.get('params'):
    lines.append(f'parameters: {result["params"]:,}; multiply-adds: '
                 f'{result["macs"]:,}')
  lines.append(f'report: {workdir / REPORT}')
  return '\n'.join(lines)


if __name__ == '__main__':
  sys.exit(main())
