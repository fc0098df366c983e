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
import re
import statistics
from collections.abc import Mapping, Sequence

from rome_jax import files, spaces
from rome_jax.show import curves
from rome_jax.spaces import collapse, genotypes
from rome_jax.train import metrics

FILENAME = 'report.html'

_CSS = '''
:root { --ink: #1f2933; --soft: #52606d; --line: #d9dee4; --page: #ffffff;
  --card: #f5f7f9; --mark: #0072b2; --warn: #fff3df; --warn-line: #d55e00; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb;
  --soft: #a3afbb; --line: #3a444f; --page: #14181d; --card: #1e242b;
  --mark: #56b4e9; --warn: #3a2a14; --warn-line: #e69f00; } }
:root { color-scheme: light dark; }
body { margin: 0 auto; max-width: 1080px; padding: 24px 20px 64px;
  background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 4px; }
h2 { font-size: 1.2rem; margin: 40px 0 12px; padding-bottom: 4px;
  border-bottom: 1px solid var(--line); }
p { margin: 8px 0; max-width: 75ch; }
.soft { color: var(--soft); }
.cards { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.card { background: var(--card); border-radius: 8px; padding: 12px 18px; }
.card b { display: block; font-size: 1.5rem; color: var(--mark); }
.warning { background: var(--warn); border-left: 4px solid var(--warn-line);
  padding: 10px 14px; border-radius: 4px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 8px 0 16px; }
th, td { text-align: left; padding: 4px 16px 4px 0; vertical-align: top;
  border-bottom: 1px solid var(--line); }
td { overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
td.number, th.number { text-align: right; }
pre { background: var(--card); padding: 12px; border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 12px 0; padding: 8px; background: #ffffff;
  border: 1px solid var(--line); border-radius: 8px; }
figure svg { display: block; width: 100%; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
'''


# Values as text.


def _percent(value):
  return '–' if value is None else f'{100 * value:.2f}%'


def _spread(summary):
  """'97.42 ± 0.07% (n = 3)' of one kind of `summarise`."""
  if summary['std'] is None:
    return f'{_percent(summary["mean"])} (n = {summary["n"]})'
  return (f'{100 * summary["mean"]:.2f} ± {100 * summary["std"]:.2f}% '
          f'(n = {summary["n"]})')


def _size(count):
  """3349342 -> '3.349 M'."""
  return '–' if count is None else f'{count / 1e6:,.3f} M'


def _value(name, value):
  """Formats a value, with the unit at the end of its name."""
  if value is None or value == '':
    return '–'
  if isinstance(value, (list, tuple)):
    return ', '.join(map(str, value))
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    return str(value)
  if name.endswith('accuracy'):
    return _percent(value)
  if name.endswith('seconds'):
    return f'{value:.1f} s' if value < 60 else metrics.clock_text(value)
  if name.endswith('bytes'):
    return f'{value / 2**20:,.0f} MiB'
  return f'{value:,}' if isinstance(value, int) else f'{value:,.5g}'


def _words(name):
  """'peak_memory_bytes' -> 'peak memory': the unit is in the value."""
  if name == 'seconds':
    return 'time'
  return re.sub(r'_(bytes|seconds)$', '', name).replace('_', ' ')


def _flat(value, prefix=''):
  """[(dotted name, value)] of nested dicts, in their order."""
  if not isinstance(value, dict) or not value:
    return [(prefix, value)]
  return [pair for key, item in value.items()
          for pair in _flat(item, f'{prefix}.{key}' if prefix else str(key))]


# Values as HTML. Every function but `_section` escapes its arguments.


def _paragraph(text, kind=''):
  attribute = f' class="{kind}"' if kind else ''
  return f'<p{attribute}>{html.escape(text)}</p>\n'


def _table(header, rows, numbers=()):
  """A table; the columns in `numbers` are right-aligned."""
  def cells(tag, row):
    return ''.join(
        f'<{tag}{" class=number" * (i in numbers)}>{html.escape(str(cell))}'
        f'</{tag}>' for i, cell in enumerate(row))

  head = f'<thead><tr>{cells("th", header)}</tr></thead>\n' if header else ''
  body = ''.join(f'<tr>{cells("td", row)}</tr>\n' for row in rows)
  return (f'<div class="scroll"><table>\n{head}<tbody>\n{body}</tbody>\n'
          '</table></div>\n')


def _facts(pairs):
  """A table of names and values, without missing values."""
  rows = [(name, text) for name, text in pairs if text not in ('–', None, '')]
  return _table((), rows) if rows else ''


def _section(title, *parts):
  """A section of HTML parts; '' if they are all empty."""
  body = ''.join(parts)
  return f'<section>\n<h2>{html.escape(title)}</h2>\n{body}</section>\n' * bool(
      body)


def _picture(workdir, name):
  """Returns the SVG picture of a run as a figure, or '' if there is none.

  Makes ids unique to the picture, as the page holds several, and drops the
  declarations that only a file needs.
  """
  path = workdir / f'{name}.svg'
  if not path.exists():
    return ''
  svg = path.read_text(encoding='utf-8')
  svg = svg[svg.index('<svg'):]
  opening, _, rest = svg.partition('>')
  box = re.search(r'viewBox="[^"]*"', opening)
  rest = re.sub(r'<(style|metadata)\b.*?</\1>', '', rest, flags=re.DOTALL)
  for found in (r'\bid="', r'\bhref="#', r'url\(#'):
    rest = re.sub(f'({found})', rf'\g<1>{name}-', rest)
  return f'<figure><svg role="img" {box[0] if box else ""}>{rest}</figure>\n'


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
  cards = [(_spread(item), f'test accuracy, {kind}')
           for kind, item in summary.items()]
  cards += [(_percent(search.get('valid_accuracy')), 'accuracy in the search'),
            (_size(result.get('params')), 'parameters'),
            (_size(result.get('macs')), 'multiply-adds')]
  cards = ''.join(
      f'<div class="card"><b>{html.escape(figure)}</b>{html.escape(name)}'
      '</div>\n' for figure, name in cards if figure != '–')
  parts = [f'<div class="cards">\n{cards}</div>\n' if cards else '']
  comparison = _comparison(summary)
  if comparison:
    parts.append(_paragraph(comparison))
  if summary:
    parts.append(_table(
        ('kind', 'n', 'mean', 'std', 'best'),
        [(kind, s['n'], _percent(s['mean']), _percent(s['std']),
          _percent(s['best'])) for kind, s in summary.items()],
        numbers=(1, 2, 3, 4)))
  if evaluations:
    parts.append(_table(
        ('architecture', 'kind', 'seed', 'test accuracy', 'parameters',
         'multiply-adds', 'training time'),
        [(row.get('name', '–'), row.get('kind', '–'), row.get('seed', '–'),
          _percent(row.get('test_accuracy')), _size(row.get('params')),
          _size(row.get('macs')),
          _value('seconds', row.get('train_seconds'))) for row in evaluations],
        numbers=(2, 3, 4, 5, 6)))
    parts.append(_paragraph(
        'std is that of the sample (n - 1); every run counts, none is picked. '
        'Parameters are without the auxiliary head, multiply-adds those of '
        'convolutions and linear layers.', 'soft'))
  return _section('Result', *parts)


def _tabular(result):
  """The entry of the derived cell in the table of its space."""
  table = result.get('table') or {}
  datasets = table.get('datasets') or {}
  if not datasets:
    return ''
  return _section(
      'In the table of NAS-Bench-201',
      _paragraph(f'{table.get("string", "")}: trained in full by the '
                 'benchmark, not here.'),
      _table(
          ('data set', 'test accuracy', 'rank', 'regret', 'after 12 epochs',
           'best in the table'),
          [(name, f'{row["test"]:.2f}%',
            f'{row["rank"]} of {table.get("num_cells")}',
            f'{row["regret"]:.2f}', f'{row["test_12_epochs"]:.2f}%',
            f'{row["best_test"]:.2f}%') for name, row in datasets.items()],
          numbers=(1, 2, 3, 4, 5)))


def _progress(result, rows):
  """What an unfinished run has done so far."""
  if result:
    return ''
  last = {row.get('phase', '–'): row for row in rows}
  lines = [(phase, row.get('step', '–'), _value('epoch', row.get('epoch')))
           for phase, row in last.items()]
  return _section(
      'State',
      _paragraph('This run is not finished: it has no result.json yet.',
                 'warning'),
      _table(('phase', 'step', 'epoch'), lines, (1, 2)) if lines else '')


def _search(result):
  if 'origin' in result:  # Nothing was searched here.
    pairs = [*result['origin'].items()]
    return _section('Where the genotype is from', _facts(
        [(_words(name), _value(name, value)) for name, value in pairs]))
  search = result.get('search') or {}
  pairs = [(name, result.get(name)) for name in
           ('method', 'space', 'dataset', 'seed')]
  pairs += [pair for pair in search.items()
            if pair[0] not in ('parameterless', 'collapse')]
  return _section('Search', _facts(
      [(_words(name), _value(name, value)) for name, value in pairs]))


def _cells(workdir, record):
  parts = [_picture(workdir, name) for name in curves.PICTURES[:2]]
  if record is not None:
    parts.append(f'<pre>{html.escape(genotypes.to_text(record.genotype))}'
                 '</pre>\n')
    parts.append(_facts([
        (_words(name), _value(name, record.info.get(name)))
        for name in ('space', 'seed', 'step')]))
  return _section('Cells', *parts)


def _diagnostics(record, rows):
  """Signs of a collapsed search: the last state of alpha, beta and cells."""
  parts, last = [], {}
  searched = curves.search_rows(rows)
  for row in searched:
    last.update({k: v for k, v in row.items() if v is not None})
  if record is not None:
    parts += _of_cells(record, searched, last)
  parts.append(_facts([
      (f'{_words(name)}, at the end', _value(name, last.get(name)))
      for name in ('supernet_accuracy', 'derived_accuracy',
                   'discretisation_gap', 'dominant_eigenvalue',
                   'eigenvalue_bound')]))
  parts.append(_facts([
      (f'{kind} of {letter}, {cell} cell, at the end', _value('', last.get(
          f'{letter}_{kind}_{cell}')))
      for letter in ('alpha', 'beta') for kind in ('entropy', 'margin')
      for cell in ('normal', 'reduce')]))
  return _section('Collapse diagnostics', *parts)


def _of_cells(record, searched, last):
  """Warnings about the derived cells, and their operations without weights."""
  space = spaces.SPACES.get(record.info.get('space'))
  sizes = {cell: len(names) for cell, names in genotypes.operations(
      record.genotype, space).items()}
  # Prefer the search's last counts; they include changes to the space.
  counts = {cell: int(last.get(f'parameterless_{cell}', n))
            for cell, n in genotypes.parameterless(
                record.genotype, space).items()}
  parts = [_paragraph(_collapse(record, space, cell, searched), 'warning')
           for cell in _collapsed(record, space, searched, last)]
  return [*parts, _facts([
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


def _environment(result):
  versions = result.get('versions') or {}
  return _section('Environment', _facts(
      [('device', _value('', result.get('device'))),
       ('created', _value('', result.get('created')))]
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
      _paragraph(f'{workdir.name}, written {now} by rome_jax', 'soft'),
      _progress(result, rows),
      _headline(result),
      _tabular(result),
      _cells(workdir, record),
      _leaves(workdir),
      _section('Curves', *(
          _picture(workdir, name) for name in curves.PICTURES[2:])),
      _diagnostics(record, rows),
      _search(result),
      _architectures(workdir),
      _environment(result),
      _section('Configuration', _table((), [
          (name, json.dumps(value, ensure_ascii=False))
          for name, value in _flat(config)]) if config else ''),
  ))
  files.write_text(workdir / FILENAME, (
      '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
      f'<title>{html.escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n'
      f'<body>\n{body}</body>\n</html>\n'))
  return workdir / FILENAME


def _leaves(workdir):
  """How the supernet split, and what its leaves found."""
  tree = _optional_json(workdir / 'split.json')
  rows = [(row['name'].split('/')[-1], _percent(row.get('score')),
           _percent(row.get('valid_accuracy')), row.get('genotype') or '–')
          for row in tree.get('leaves', ())]
  if not rows:
    return ''
  return _section(
      'Leaves', _picture(workdir, 'split'), _picture(
          workdir, 'split_distances'),
      _table(('leaf', 'chosen by', 'accuracy in the search', 'genotype'), rows,
             numbers=(1, 2)))


def _architectures(workdir):
  """A ranking of architectures, and the rounds of a search over them."""
  found = _optional_json(workdir / 'ranking.json')
  table = found.get('table') or {}
  facts = table.get('by_accuracy') or {}
  percent = [(f'{name}, {_words(kind)} of the scores', (
      _percent(value) if kind == 'precision' else f'{value:.2f} points'))
             for kind in ('precision', 'regret_at')
             for name, value in (facts.get(kind) or {}).items()]
  names = ('cells', 'step', 'images', 'norm', 'cells_per_second', 'best',
           'best_accuracy', 'mean_accuracy')
  return _section(
      'Ranking', _picture(workdir, 'ranking'), _facts([
          *((_words(name), _value(name, found.get(name))) for name in names),
          ('compared with', ', '.join(table[name] for name in (
              'name', 'dataset') if name in table)),
          *((_words(name), _value(name, facts.get(name))) for name in (
              'kendall_tau', 'kendall_tau_better_half', 'spearman')),
          *percent])) + _section(
              'Search over architectures', _picture(workdir, 'evolution'))
