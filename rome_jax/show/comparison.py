"""The page of a comparison, its pictures and its sentences."""

import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure
import matplotlib.ticker

from rome_jax.show import figures, page

COST, COURSE = 'compare_cost', 'compare_course'  # pictures
# How a measure is called, and its unit.
_NAMES = {
    'accuracy': 'accuracy', 'regret': 'regret',
    'parameterless': 'operations without weights, normal cell',
    'kendall_tau': "Kendall's tau", 'seconds': 'search time',
    'images': 'images through a network', 'memory_bytes': 'temporary memory'}
_SHARES = ('accuracy', 'regret')  # Shown in percent.
FEWEST = 3  # seeds that allow a sentence about a difference


def number(name: str, value: float | None) -> str:
  """A value of a measure as text.

  >>> number('accuracy', .9344), number('kendall_tau', .5)
  ('93.44%', '0.500')
  """
  if value is None:
    return '–'
  if name in _SHARES:
    return f'{100 * value:.2f}%'
  if name == 'kendall_tau':
    return f'{value:.3f}'
  if name == 'parameterless':
    return f'{value:.2f}'
  return page.value(name, round(value) if name == 'images' else value)


def shown(name: str, part: Mapping[str, Any], of: int | None = None) -> str:
  """Mean and spread of a measure as text.

  Args:
    name: of the measure.
    part: its `mean`, `std` and `n`.
    of: the n of the row; a different n is appended.

  >>> shown('accuracy', {'mean': .9, 'std': .01, 'n': 3})
  '90.00 ± 1.00% (n = 3)'
  """
  mean, std = number(name, part['mean']), part['std']
  if std is not None:
    mean = f'{mean.removesuffix("%")} ± {number(name, std)}'
  return mean if part['n'] == of else f'{mean} (n = {part["n"]})'


def _difference(name, value):
  if name in _SHARES:
    return f'{100 * value:+.2f} points'
  return f'{value:+.3f}'


def sentence(label: str, baseline: str, name: str,
             part: Mapping[str, Any]) -> str:
  """What a paired difference allows to say.

  >>> part = {'n': 3, 'mean': .02, 'low': -.01, 'high': .05, 'level': .95}
  >>> sentence('rome', 'gdas', 'accuracy', part)
  'rome against gdas, accuracy: +2.00 points, 95 % interval -1.00 points to \
+5.00 points of 3 seeds; they cannot be told apart'
  """
  text = (f'{label} against {baseline}, {_NAMES[name]}: '
          f'{_difference(name, part["mean"])}')
  if part['n'] < FEWEST:
    return (f'{text} of {part["n"]} seed{"s" * (part["n"] > 1)}, too few to '
            'tell them apart')
  low, high = part['low'], part['high']
  text += (f', {100 * part["level"]:.0f} % interval {_difference(name, low)} '
           f'to {_difference(name, high)} of {part["n"]} seeds')
  if low <= 0 <= high:
    return f'{text}; they cannot be told apart'
  return f'{text}; {label} is {"higher" if low > 0 else "lower"}'


def to_html(folder: pathlib.Path, found: Mapping[str, Any]) -> str:
  """The page, one file that loads nothing else.

  Args:
    folder: of the comparison, with its pictures.
    found: of `cli.compare.collect`.
  """
  rows, done = found['runs'], sum(r['state'] == 'done' for r in found['runs'])
  body = ''.join((
      f'<h1>{html.escape(found["name"])}</h1>\n',
      page.paragraph(f'{done} of {len(rows)} runs are done.',
                     'soft' if done == len(rows) else 'warning'),
      page.paragraph(f'What would speak against the claim: {found["against"]}')
      if found['against'] else '',
      _arms(found), _differences(found),
      page.section('Pictures', page.picture(folder, COST),
                   page.picture(folder, COURSE)),
      _runs(rows),
      page.section('Arms', page.table(('arm', 'flags'), [
          (label, ' '.join(flags))
          for label, flags in found['flags'].items()]))))
  return page.document(found['name'], body)


def _arms(found):
  measures = [name for name in _NAMES if any(
      name in part for part in found['arms'].values())]
  columns = tuple(range(1, 2 + len(measures)))
  rows = []
  for label, part in found['arms'].items():
    n = max((one['n'] for one in part.values()), default=0)
    rows.append((label, n, *(shown(name, part[name], n) if name in part else '–'
                             for name in measures)))
  for row in found['references']:
    n = (row.get('accuracy') or {}).get('n')
    rows.append((row['name'], n or '–', *(
        _of_reference(name, row, n) for name in measures)))
  parts = [page.table(
      ('', 'n', *(_NAMES[name] for name in measures)), rows, columns)]
  best = [(label, *(number(name, part[name]['best']) if name in part else '–'
                    for name in measures))
          for label, part in found['arms'].items()]
  several = any(part['n'] > 1 for arm in found['arms'].values()
                for part in arm.values())
  if several:
    parts += [page.paragraph('Best of each:', 'soft'),
              page.table(
                  ('', *(_NAMES[name] for name in measures)), best, columns)]
  parts.append(page.paragraph(
      'Mean ± standard deviation of the sample (n - 1). Accuracies are those '
      'of the table where the space has one, else of networks trained from '
      'scratch. A time counts all starts of a run and depends on what else the '
      'machine did; images count each network that an image passed.', 'soft'))
  return page.section('Result', *parts) if measures else ''


def _of_reference(name, row, n):
  value = row.get(name)
  if isinstance(value, Mapping):
    return shown(name, value, n)
  return '–' if value is None else number(name, value)


def _differences(found):
  lines = [page.paragraph(sentence(label, found['baseline'], name, part) + '.')
           for label, measures in found['differences'].items()
           for name, part in measures.items()]
  return page.section(
      'Differences of the same seeds', *lines, page.paragraph(
          "Intervals of Student's t, each for itself: of twenty, one is "
          'expected to miss.', 'soft') if lines else '')


def _runs(rows):
  names = ('accuracy', 'parameterless', 'kendall_tau', 'seconds', 'images')
  return page.section('Every run', page.table(
      ('arm', 'seed', 'state', *(_NAMES[name] for name in names), 'rank',
       'steps', 'genotype'),
      [(row['arm'], row['seed'], row['state'],
        *(number(name, row[name]) for name in names),
        row.get('rank') or '–', page.value('', row.get('steps')),
        row['genotype'] or '–') for row in rows], numbers=(
            1, *range(3, 5 + len(names)))))


def save_pictures(folder: str | os.PathLike[str],
                  found: Mapping[str, Any]) -> tuple[pathlib.Path, ...]:
  """Draws accuracy against cost, and the course of the searches.

  Args:
    folder: where the pictures go.
    found: of `cli.compare.collect`.

  Returns:
    Their paths, without what nothing is known of.
  """
  folder = pathlib.Path(folder)
  paths: list[pathlib.Path] = []
  done = [row for row in found['runs'] if row['state'] == 'done']
  with figures.style():
    costs = [row for row in done
             if row['images'] and row['accuracy'] is not None]
    if costs:
      paths += figures.save(
          folder / COST, _cost(found, costs), 'Accuracy and cost', dpi=150)
    courses = [row for row in done if row['trajectory']]
    if courses:
      paths += figures.save(
          folder / COURSE, _course(found, courses), 'Course', dpi=150)
  return tuple(paths)


def _colours(found):
  return {label: figures.COLOURS[i % len(figures.COLOURS)]
          for i, label in enumerate(found['arms'])}


def _cost(found, rows):
  figure = matplotlib.figure.Figure(
      figsize=(7.6, 5.), facecolor='white', layout='constrained')
  axes, colours = figure.subplots(), _colours(found)
  for label, colour in colours.items():
    own = [row for row in rows if row['arm'] == label]
    if own:
      axes.plot([row['images'] / 1e6 for row in own],
                [100 * row['accuracy'] for row in own], 'o', color=colour,
                label=label, alpha=.8)
  styles = ('--', ':', '-.')
  for style, row in zip(styles, found['references']):
    axes.axhline(100 * row['accuracy']['mean'], color=figures.MUTED,
                 linewidth=1, linestyle=style,
                 label=row['name'].split(',')[0])
  axes.set(title='Each search', xlabel='million images through a network',
           ylabel='accuracy, %')
  axes.set_xlim(0, 1.1 * max(row['images'] for row in rows) / 1e6)
  figure.legend(loc='outside lower left', ncols=3)
  return figure


_PANELS = (('Derived cell in the table', 'test accuracy, %', 1, 100.),
           ('Operations without weights', 'in the normal cell', 2, 1.),
           ('Their mean probability', 'normal cell', 3, 1.))


def _course(found, rows):
  drawn = [panel for panel in _PANELS if any(
      line[panel[2]] is not None for row in rows for line in row['trajectory'])]
  figure = matplotlib.figure.Figure(
      figsize=(3.1 * len(drawn) + 1.2, 3.2), facecolor='white',
      layout='constrained')
  colours = _colours(found)
  grid: Sequence[Any] = figure.subplots(1, len(drawn), squeeze=False)[0]
  for axes, (title, ylabel, place, scale) in zip(grid, drawn):
    for row in rows:
      lines = [line for line in row['trajectory'] if line[place] is not None]
      first = row is next(r for r in rows if r['arm'] == row['arm'])
      axes.plot([line[0] for line in lines],
                [scale * line[place] for line in lines], linewidth=1.1,
                alpha=.85, color=colours[row['arm']],
                label=row['arm'] if first else None)
    axes.set(title=title, xlabel='share of the search', ylabel=ylabel)
    if place == 2:
      axes.yaxis.set_major_locator(
          matplotlib.ticker.MaxNLocator(integer=True))
  grid[-1].legend(loc='center left', bbox_to_anchor=(1., .5))
  return figure
