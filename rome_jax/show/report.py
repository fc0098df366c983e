"""One self-contained page about a run: report.html.

The page contains its style and pictures, loads nothing else and needs no
scripts. It shows what the run directory holds so far, so it also works for an
unfinished run.
"""

import datetime
import html
import json
import math
import os
import pathlib
import shlex
import statistics
from collections.abc import Mapping, Sequence

from rome_jax import files, spaces
from rome_jax.show import curves, page
from rome_jax.spaces import collapse, genotypes
from rome_jax.train import metrics

FILENAME = 'report.html'

# The sections.


def summarise(evaluations: Sequence[Mapping]) -> dict[str, dict]:
  """Returns mean and spread of the test accuracies by kind of architecture.

  Args:
    evaluations: dicts with `kind` ('derived', 'random', 'given') and
      `test_accuracy` (fraction; None and missing ones are left out).

  Returns:
    {kind: {'n', 'mean', 'std', 'best'}} in order of appearance; `std` is the
    sample's (n - 1), None for a single one.
  """
  accuracies: dict[str, list[float]] = {}
  for row in evaluations:
    value = row.get('test_accuracy')
    if value is not None:
      accuracies.setdefault(row.get('kind', 'given'), []).append(value)
  return {kind: {
      'n': len(values), 'mean': statistics.fmean(values),
      'std': statistics.stdev(values) if len(values) > 1 else None,
      'best': max(values)} for kind, values in accuracies.items()}


def accuracy(kind: str, row: Mapping) -> str:
  """Formats one kind of `summarise` as a line."""
  spread = '' if row['std'] is None else f' +- {100 * row["std"]:.2f}'
  return (f'test accuracy, {kind}: {100 * row["mean"]:.2f}%{spread} '
          f'(n={row["n"]}, best {100 * row["best"]:.2f}%)')


def _comparison(summary):
  """A sentence on derived against random architectures, or ''."""
  if 'derived' not in summary or 'random' not in summary:
    return ''
  ours, theirs = summary['derived'], summary['random']
  points = 100 * (ours['mean'] - theirs['mean'])
  text = (f'Trained alike, the derived architecture is {abs(points):.2f} '
          f'points {"above" if points >= 0 else "below"} the mean of random '
          'architectures of the same space')
  if ours['std'] is None or theirs['std'] is None:
    return text + '; one run of a kind says nothing about the spread.'
  error = 100 * math.hypot(ours['std'] / ours['n'] ** 0.5,
                           theirs['std'] / theirs['n'] ** 0.5)
  return (text + f', with a standard error of {error:.2f} points'
          + '.' * (abs(points) > 2 * error)
          + ', so these runs do not tell the two apart.' * (
              abs(points) <= 2 * error))


def _headline(result):
  evaluations = result.get('evaluations') or []
  summary = summarise(evaluations)
  search = result.get('search') or {}
  cards = [(page.spread(item), f'test accuracy, {kind}')
           for kind, item in summary.items()]
  cards += [(page.percent(search.get('valid_accuracy')),
             'accuracy of the supernet'),
            (page.size(result.get('params')), 'parameters'),
            (page.size(result.get('macs')), 'multiply-adds')]
  cards = ''.join(
      f'<div class="card"><b>{html.escape(figure)}</b>{html.escape(name)}'
      '</div>\n' for figure, name in cards if figure != '–')
  parts = [f'<div class="cards">\n{cards}</div>\n' if cards else '']
  comparison = _comparison(summary)
  if comparison:
    parts.append(page.paragraph(comparison))
  if summary:
    parts.append(page.table(
        ('kind', 'n', 'mean', 'std', 'best'),
        [(kind, s['n'], page.percent(s['mean']), page.percent(s['std']),
          page.percent(s['best'])) for kind, s in summary.items()],
        numbers=(1, 2, 3, 4)))
  if evaluations:
    best = ['of the most accurate test'] * any(
        'best_test_accuracy' in row for row in evaluations)
    parts.append(page.table(
        ('architecture', 'kind', 'seed', 'test accuracy', *best, 'parameters',
         'multiply-adds', 'training time'),
        [(row.get('name', '–'), row.get('kind', '–'), row.get('seed', '–'),
          page.percent(row.get('test_accuracy')),
          *(page.percent(row.get('best_test_accuracy')) for _ in best),
          page.size(row.get('params')), page.size(row.get('macs')),
          page.value('seconds', row.get('train_seconds')))
         for row in evaluations],
        numbers=tuple(range(2, 7 + len(best)))))
    parts.append(page.paragraph(
        'std is that of the sample (n - 1); every run counts, none is picked. '
        'Parameters are without the auxiliary head, multiply-adds those of '
        'convolutions and linear layers.', 'soft'))
  return page.section('Result', *parts)


def _tabular(result):
  """The entry of the derived cell in the table of its space."""
  table = result.get('table') or {}
  datasets = table.get('datasets') or {}
  if not datasets:
    return ''
  return page.section(
      f'In the table of {table.get("title", "NAS-Bench-201")}',
      page.paragraph(f'{table.get("string", "")}: trained in full by the '
                 'benchmark, not here.'),
      page.table(
          ('data set', 'test accuracy', 'rank', 'regret', 'after 12 epochs',
           'best in the table'),
          [(name, f'{row["test"]:.2f}%',
            f'{row["rank"]} of {table.get("num_cells")}',
            f'{row["regret"]:.2f}', f'{row["test_12_epochs"]:.2f}%' if (
                'test_12_epochs' in row) else '–',
            f'{row["best_test"]:.2f}%') for name, row in datasets.items()],
          numbers=(1, 2, 3, 4, 5)))


def _progress(result, rows):
  """What an unfinished run has done so far."""
  if result:
    return ''
  last = {row.get('phase', '–'): row for row in rows}
  lines = [(phase, row.get('step', '–'), page.value('epoch', row.get('epoch')))
           for phase, row in last.items()]
  return page.section(
      'State',
      page.paragraph('This run is not finished: it has no result.json yet.',
                 'warning'),
      page.table(('phase', 'step', 'epoch'), lines, (1, 2)) if lines else '')


def _search(result):
  if 'origin' in result:  # Nothing was searched here.
    pairs = [*result['origin'].items()]
    return page.section('Where the genotype is from', page.facts(
        [(page.words(name), page.value(name, value)) for name, value in pairs]))
  search = result.get('search') or {}
  pairs = [(name, result.get(name)) for name in
           ('method', 'space', 'dataset', 'seed')]
  pairs += [pair for pair in search.items()
            if pair[0] not in ('parameterless', 'collapse')]
  return page.section('Search', page.facts(
      [(page.words(name), page.value(name, value)) for name, value in pairs]))


def _cells(workdir, record):
  parts = [page.picture(workdir, name) for name in curves.PICTURES[:2]]
  if record is not None:
    parts.append(f'<pre>{html.escape(genotypes.to_text(record.genotype))}'
                 '</pre>\n')
    parts.append(page.facts([
        (page.words(name), page.value(name, record.info.get(name)))
        for name in ('space', 'seed', 'step')]))
  return page.section('Cells', *parts)


def _diagnostics(record, rows):
  """Signs of a collapsed search: the last state of alpha, beta and cells."""
  parts, last = [], {}
  searched = curves.search_rows(rows)
  for row in searched:
    last.update({k: v for k, v in row.items() if v is not None})
  if record is not None:
    parts += _of_cells(record, searched, last)
  parts.append(page.facts([
      (f'{page.words(name)}, at the end', page.value(name, last.get(name)))
      for name in ('supernet_accuracy', 'derived_accuracy',
                   'discretisation_gap', 'dominant_eigenvalue',
                   'eigenvalue_bound')]))
  parts.append(page.facts([
      (f'{kind} of {letter}, {cell} cell, at the end', page.value('', last.get(
          f'{letter}_{kind}_{cell}')))
      for letter in ('alpha', 'beta') for kind in ('entropy', 'margin')
      for cell in ('normal', 'reduce')]))
  return page.section('Collapse diagnostics', *parts)


def _of_cells(record, searched, last):
  """Warnings about the derived cells, and their operations without weights."""
  space = spaces.SPACES.get(record.info.get('space'))
  sizes = {cell: len(names) for cell, names in genotypes.operations(
      record.genotype, space).items()}
  # Prefer the search's last counts; they include changes to the space.
  counts = {cell: int(last.get(f'parameterless_{cell}', n))
            for cell, n in genotypes.parameterless(
                record.genotype, space).items()}
  parts = [page.paragraph(_collapse(record, space, cell, searched), 'warning')
           for cell in _collapsed(record, space, searched, last)]
  return [*parts, page.facts([
      (f'operations without weights, {name} cell',
       f'{counts[cell]} of {sizes[cell]}')
      for cell, name in collapse.NAMES.items() if cell in counts])]


def _collapsed(record, space, searched, last):
  """The cell types that have collapsed, as the search's last line says.

  The lines of a search that ends with a choice do not; then the cells do.
  """
  if not searched:
    return []
  found = {} if space is None else collapse.cells(record.genotype, space)
  return [t for t in genotypes.cell_types(record.genotype)
          if last.get(f'collapsed_{t}', t in found and found[t].collapsed)]


def _collapse(record, space, cell, searched):
  """The sentence about a collapsed cell, with the epoch since when."""
  phase = searched[-1]['phase']
  epoch = collapse.since(searched, phase, cell)
  if space is None:
    return (f'The {collapse.NAMES[cell]} cell has collapsed, since epoch '
            f'{epoch or 0:.4g}.')
  text = collapse.sentence(
      cell, collapse.cells(record.genotype, space)[cell], epoch)
  return text[0].upper() + text[1:] + '.'


def _next(workdir, result):
  """What one can do with the run, and its files."""
  if not result:
    return ''
  place = shlex.quote(str(workdir))
  commands = [('the cells and their counts',
               f'rome-jax describe {place}/genotype.json --space='
               f'{result.get("space")}')]
  if 'search' in result and result.get('dataset') != 'arrays':
    commands.append((
        'train this architecture with another recipe',
        f'rome-jax run --config={place}/config.json --config.genotype='
        f'{place}/genotype.json --workdir=OTHER'))
  search = result.get('search') or {}
  if search.get('phase') == 'search' or 'leaf' in search:
    commands.append(('how well the supernet ranks architectures',
                     f'rome-jax rank {place} --cells=1000'))
  if result.get('evaluations'):
    commands += [
        ('classify images', f'rome-jax predict {place} IMAGES...'),
        ('the network for other programs',
         f'rome-jax export {place} --to=stablehlo'),
        ('in Python',
         f"network, variables, about = rome_jax.load('{place}')")]
  links = ', '.join(
      f'<a href="{name}">{name}</a>' for name in (
          'genotype.json', 'result.json', 'metrics.jsonl', 'config.json'))
  return page.section(
      'What next', page.table((), commands), f'<p>Files: {links}</p>\n')


def _environment(result):
  versions = result.get('versions') or {}
  return page.section('Environment', page.facts(
      [('device', page.value('', result.get('device'))),
       ('created', page.value('', result.get('created')))]
      + [(name, str(version)) for name, version in versions.items()]))


def _optional_json(path):
  value = files.read_json(path) if path.exists() else {}
  return value if isinstance(value, dict) else {}


def write_report(workdir: str | os.PathLike[str]) -> pathlib.Path:
  """Writes workdir/report.html from the other files of a run.

  Reads config.json, metrics.jsonl, genotype.json, result.json and the SVG files
  of `curves.PICTURES`; skips what is missing.

  Args:
    workdir: the run directory.

  Returns:
    The path of the page.

  Raises:
    UserError: a file is damaged, or the folder cannot be written.
  """
  workdir = pathlib.Path(workdir)
  with files.as_written(f'a file of {workdir}'):
    text = _document(workdir)
  files.write_text(workdir / FILENAME, text)
  return workdir / FILENAME


def _document(workdir):
  """The page, from what the folder holds."""
  config = _optional_json(workdir / 'config.json')
  result = _optional_json(workdir / 'result.json')
  rows = curves.of_leaf(
      metrics.read(workdir), (result.get('search') or {}).get('leaf'))
  path = workdir / 'genotype.json'
  record = genotypes.read(path) if path.exists() else None
  subject = config.get('genotype') or result.get('method') or config.get(
      'method')
  title = ' on '.join(
      str(part) for part in (
          subject, result.get('dataset') or config.get('dataset'))
      if part) or workdir.name
  # Local time with its offset, as people read it.
  now = datetime.datetime.now().astimezone().isoformat(' ', 'minutes')
  body = ''.join((
      f'<h1>{html.escape(title)}</h1>\n',
      page.paragraph(f'{workdir.name}, written {now} by rome_jax', 'soft'),
      _progress(result, rows),
      _headline(result),
      _tabular(result),
      _cells(workdir, record),
      _leaves(workdir),
      page.section('Curves', *(
          page.picture(workdir, name) for name in curves.PICTURES[2:])),
      _diagnostics(record, rows),
      _search(result),
      _architectures(workdir),
      _environment(result),
      _next(workdir, result),
      page.section('Configuration', page.table((), [
          (name, json.dumps(value, ensure_ascii=False))
          for name, value in page.flat(config)]) if config else ''),
  ))
  return page.document(title, body)


def _leaves(workdir):
  """How the supernet split, and what its leaves found."""
  tree = _optional_json(workdir / 'split.json')
  rows = [(row['name'].split('/')[-1], page.percent(row.get('score')),
           page.percent(row.get('valid_accuracy')), row.get('genotype') or '–')
          for row in tree.get('leaves', ())]
  if not rows:
    return ''
  return page.section(
      'Leaves', page.picture(workdir, 'split'), page.picture(
          workdir, 'split_distances'),
      page.table(('leaf', 'chosen by', 'accuracy in the search', 'genotype'),
                 rows, numbers=(1, 2)))


def _architectures(workdir):
  """A ranking of architectures, and the rounds of a search over them."""
  found = _optional_json(workdir / 'ranking.json')
  table = found.get('table') or {}
  facts = table.get('by_accuracy') or {}
  percent = [(f'{name}, {page.words(kind)} of the scores', (
      page.percent(value) if kind == 'precision' else f'{value:.2f} points'))
             for kind in ('precision', 'regret_at')
             for name, value in (facts.get(kind) or {}).items()]
  names = ('cells', 'step', 'images', 'norm', 'cells_per_second', 'best',
           'best_accuracy', 'mean_accuracy')
  return page.section(
      'Ranking', page.picture(workdir, 'ranking'), page.facts([
          *((page.words(name), page.value(name, found.get(name)))
            for name in names),
          ('compared with', ', '.join(table[name] for name in (
              'name', 'dataset') if name in table)),
          *((page.words(name), page.value(name, facts.get(name))) for name in (
              'kendall_tau', 'kendall_tau_better_half', 'spearman')),
          *percent])) + page.section(
              'Search over architectures', page.picture(workdir, 'evolution'))
