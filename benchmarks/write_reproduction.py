"""Writes docs/reproduction.md from docs/results/*.json.

  python -m benchmarks.write_reproduction

A claim's verdict follows from the figures: a paired difference at the paper's
scale or a smaller one, and its 95 % interval. A test checks that the committed
page is the one that this writes.
"""

import json
import math
import pathlib
import sys
from collections.abc import Mapping
from typing import Any

from rome_jax import files
from rome_jax.tables import scores

ROOT = pathlib.Path(__file__).parents[1]
RESULTS, PAGE = ROOT / 'docs' / 'results', ROOT / 'docs' / 'reproduction.md'
NOT_RUN = 'not run'
# Three of NAS-Bench-201's five operations have no weights, on six edges.
CHANCE = 3.6

_HEAD = '''# Reproduction

What the papers claim, and what was measured here. `python -m
benchmarks.write_reproduction` writes this page from the files of results.

The verdicts:

- *reproduced*: at the paper's own scale;
- *direction reproduced*: at a smaller scale, the 95 % interval of the paired
  difference lies on the claim's side of 0;
- *not seen*: the interval holds 0; it may be there at another scale;
- *contradicted*: the interval lies on the other side, at this scale;
- *too few seeds*: fewer than three; *not run*.
'''


def verdict(part: Mapping[str, Any] | None, higher: bool = True) -> str:
  """The verdict of a paired difference at a reduced scale.

  Args:
    part: of `scores.paired_difference`, or None.
    higher: whether the claim is that the difference is above 0.

  >>> verdict({'n': 5, 'mean': .5, 'low': .4, 'high': .6})
  'direction reproduced'
  """
  if part is None:
    return NOT_RUN
  if part['n'] < 3:
    return 'too few seeds'
  low, high = part['low'], part['high']
  if low <= 0 <= high:
    return 'not seen'
  return 'direction reproduced' if (low > 0) == higher else 'contradicted'


def _table(header, rows):
  return '\n'.join(f'| {" | ".join(line)} |' for line in (
      header, ['---'] * len(header), *rows))


def _spread(part, digits=3):
  if part is None:
    return NOT_RUN
  std = '' if part['std'] is None else f' +- {part["std"]:.{digits}f}'
  return f'{part["mean"]:.{digits}f}{std}'


def _difference(part, digits=3):
  if part is None:
    return NOT_RUN
  interval = '' if part['low'] is None else (
      f' ({part["low"]:+.{digits}f} to {part["high"]:+.{digits}f})')
  return f'{part["mean"]:+.{digits}f}{interval}'


def of(found: Mapping[str, Any] | None, kind: str, *names: str) -> Any:
  """A value of a comparison; None where it has none."""
  value: Any = (found or {}).get(kind)
  for name in names:
    value = (value or {}).get(name)
  return value


def arms_table(found: Mapping[str, Any]) -> str:
  """Tau of every arm: each seed, mean, and the difference to the baseline."""
  rows = []
  for label, arm in found['arms'].items():
    part = arm.get('kendall_tau')
    accuracy = arm.get('accuracy')
    rows.append((
        f'`{label}`', ', '.join(f'{v:.3f}' for v in (part or {}).get(
            'values', ())) or NOT_RUN, _spread(part),
        '' if label == found['baseline'] else _difference(
            of(found, 'differences', label, 'kendall_tau')),
        _spread(accuracy and {**accuracy, 'mean': 100 * accuracy['mean'],
                              'std': accuracy['std'] and (
                                  100 * accuracy['std'])}, 2)))
  return _table(('arm', 'tau of each seed', 'mean',
                 f'difference to `{found["baseline"]}` (95 %)',
                 'table accuracy of the cell chosen, %'), rows)


def collapse_table(found: Mapping[str, Any]) -> str:
  """Operations without weights and table accuracy of every arm."""
  base = found['baseline']

  def each(part, scale, digits):
    return ', '.join(f'{scale * v:.{digits}f}' for v in part['values'])

  rows = []
  for label, arm in found['arms'].items():
    difference = of(found, 'differences', label, 'accuracy')
    rows.append((
        f'`{label}`', each(arm['parameterless'], 1, 0),
        each(arm['accuracy'], 100, 2), f'{100 * arm["accuracy"]["mean"]:.2f}',
        '' if label == base else _points(difference)))
  return _table(
      ('arm', 'operations without weights, of 6', 'table accuracy, %', 'mean',
       f'points to `{base}` (95 %)'), rows)


def _points(part):
  if part is None:
    return NOT_RUN
  scaled = {name: part[name] and 100 * part[name]
            for name in ('mean', 'low', 'high')}
  return _difference(scaled, 1)


def _above_chance(found, label):
  """Operations without weights of an arm less those of a random cell."""
  values = of(found, 'arms', label, 'parameterless', 'values')
  return values and scores.paired_difference(values, [CHANCE] * len(values))


def generate(results: Mapping[str, Any]) -> str:
  """The page.

  Args:
    results: {name: what docs/results/NAME.json holds, or None}.
  """
  ranking, leaves = (results.get(name) for name in (
      'ranking_nasbench201', 'leaves_nasbench201'))
  spread = results.get('variance_nasbench201')

  def tau(found, label):
    return of(found, 'differences', label, 'kendall_tau')

  def row(claim, paper, ours, scale, judged, source):
    return claim, paper, ours, scale, judged, source

  def ranked(found, label, claim, paper, name):
    part = tau(found, label)
    return row(claim, paper, _difference(part), found['scale'] if found else (
        NOT_RUN), verdict(part), f'[json](results/{name}.json)' if found
               else '')

  collapse = {name: results.get(f'collapse_{name}')
              for name in ('methods', 'rates', 'rome')}

  def of_collapse(name, claim, paper, part, unit):
    found = collapse[name]
    if not found or part is None:
      return row(claim, paper, NOT_RUN, NOT_RUN, NOT_RUN, '')
    return row(claim, paper, unit(part), found['scale'], verdict(part),
               f'[json](results/collapse_{name}.json)')

  def collapsed(name, claim):
    part = _above_chance(collapse[name], 'darts')
    return of_collapse(
        name, claim, '54.30 %', part,
        lambda found: f'operations without weights {_difference(found, 1)} '
        f'over a random cell\'s {CHANCE}')

  def apart(name, label, claim, paper):
    part = of(collapse[name], 'differences', label, 'accuracy')
    return of_collapse(name, claim, paper, part,
                       lambda found: f'{_points(found)} points')

  rows = [
      row('ROME needs 26 % of DARTS\' memory or less (S0, batch 64)', '26 %',
          _memory(results.get('memory')), "the paper's; as the compiler plans "
          'it for a CPU', _memory_verdict(
              results.get('memory')), '[json](results/memory.json)'),
      row('ROME on CIFAR-10 97.42 %, GDAS 96.52 %', '+.90 points', NOT_RUN,
          NOT_RUN, NOT_RUN, ''),
      row('ROME does not collapse on S2, GDAS does (operations without '
          'weights, of 8)', '2.0 against 6.0', _difference(_of_s2(results), 2),
          '5 cells, 8 channels, 700 passes, 3 seeds',
          verdict(_of_s2(results), higher=False),
          '[json](results/robustdarts_reduced.json)'),
      apart('rome', 'rome_v2', "ROME's cells are better than GDAS' on "
            'NAS-Bench-201, at equal rates and gradients', ''),
      apart('rome', 'rome_all_edges', 'K = 5 alone does it (all edges, '
            '`none`)', 'in S0 on CIFAR-10: +.62 points'),
      apart('rome', 'rome_k1', 'topology sampled apart does it alone (K = 1)',
            'in S0 on CIFAR-10: +.60 points'),
      row("the rest of ROME's ablation, and K in 1, 4, 7, 10", '', NOT_RUN,
          NOT_RUN, NOT_RUN, ''),
      collapsed('methods', 'DARTS collapses to skips on NAS-Bench-201'),
      collapsed('rates', 'the same at the rates with which a search of 50 '
                'epochs begins'),
      ranked(ranking, 'pada', "PA&DA ranks NAS-Bench-201 better than SPOS "
             "(Kendall's tau)", 'tau .713 +- .002', 'ranking_nasbench201'),
      ranked(ranking, 'pa', 'so does PA alone', '', 'ranking_nasbench201'),
      ranked(ranking, 'da', 'so does DA alone', '', 'ranking_nasbench201'),
      ranked(ranking, 'fairnas', 'so does FairNAS', '', 'ranking_nasbench201'),
      *(row(f"{name} the variance of theta's gradient", 'lowered',
            _variance(spread, law), spread['scale'] if spread else NOT_RUN,
            _variance_verdict(spread, law),
            '[json](results/variance_nasbench201.json)' if spread else '')
        for name, law in (('PA&DA lowers', 'pada'), ('PA alone lowers', 'pa'),
                          ('DA alone lowers', 'da'))),
      ranked(leaves, 'few_shot', 'Few-shot leaves rank better than one '
             'supernet of equal training', 'tau .48 to .55',
             'leaves_nasbench201'),
      ranked(leaves, 'gm', "GM-NAS' leaves rank better than one supernet",
             '', 'leaves_nasbench201'),
      row('GM-NAS with DARTS on CIFAR-10', '97.65 %', NOT_RUN, NOT_RUN,
          NOT_RUN, '')]
  parts = [_HEAD, _table(
      ('claim', 'paper', 'here', 'scale', 'verdict', ''), rows)]
  for title, found in (
      ('Ranking by one-shot supernets', ranking), ('Leaves', leaves)):
    if found:
      parts += [f'\n## {title}\n', found['text'], '', arms_table(found), '',
                f'{found["machine"]}, {found["date"]}: `{found["command"]}`.']
  for found in collapse.values():
    if found:
      parts += [f'\n## {found["title"]}\n', found['text'], '',
                collapse_table(found), '',
                f'{found["machine"]}, {found["date"]}: `{found["command"]}`.']
  if pilots := results.get('pilots'):
    parts += [f'\n## {pilots["title"]}\n', pilots['text'], '',
              _table(pilots['header'], pilots['rows']), '',
              f'{pilots["machine"]}, {pilots["date"]}, the second: '
              f'`{pilots["command"]}`.']
  if spread:
    parts += ["\n## The gradient's variance\n", spread['text'], '', _table(
        ('seed', *spread['laws']), [
            (str(seed), *(f'{value:.3g}' for value in values))
            for seed, values in spread['relative'].items()]), '',
              f'{spread["machine"]}, {spread["date"]}: '
              f'`{spread["command"]}`.']
  return '\n'.join(parts) + '\n'


def _memory(found):
  if not found:
    return NOT_RUN
  size = {row['column']: row['temp_bytes'] for row in found['rows']}
  return f'{100 * size["rome"] / size["darts"]:.1f} %'


def _memory_verdict(found):
  if not found:
    return NOT_RUN
  size = {row['column']: row['temp_bytes'] for row in found['rows']}
  return 'reproduced' if size['rome'] <= .26 * size['darts'] else 'not seen'


def _of_s2(results):
  """ROME's operations without weights less GDAS', seed by seed."""
  found = results.get('robustdarts_reduced')
  if not found:
    return None
  counts = {name: {row['seed']: row['parameterless']['normal']
                   for row in found['runs']
                   if (row['space'], row['method']) == ('s2', name)}
            for name in ('rome_v2', 'gdas')}
  seeds = sorted(counts['rome_v2'])
  return scores.paired_difference(*(
      [counts[name][seed] for seed in seeds] for name in ('rome_v2', 'gdas')))


def _log_ratios(found, law):
  """Of a law's variance by that of the uniform law."""
  ours, theirs = ([math.log(values[found['laws'].index(name)])
                   for values in found['relative'].values()]
                  for name in (law, 'uniform'))
  return scores.paired_difference(ours, theirs)


def _variance(found, law):
  if not found:
    return NOT_RUN
  part = _log_ratios(found, law)
  low, high = (None if part[name] is None else math.exp(part[name])
               for name in ('low', 'high'))
  interval = '' if low is None else f' ({low:.2f} to {high:.2f})'
  return f'{math.exp(part["mean"]):.2f} times{interval}'


def _variance_verdict(found, law):
  return verdict(_log_ratios(found, law), higher=False) if found else NOT_RUN


def read() -> dict[str, Any]:
  """{name: content} of the files of results that the page reads."""
  names = ('memory', 'robustdarts_reduced', 'ranking_nasbench201',
           'leaves_nasbench201', 'variance_nasbench201', 'collapse_methods',
           'collapse_rates', 'collapse_rome', 'pilots')
  return {name: json.loads(path.read_text()) if (
      path := RESULTS / f'{name}.json').exists() else None for name in names}


def main() -> int:
  """Writes the page."""
  files.write_text(PAGE, generate(read()))
  return 0


if __name__ == '__main__':
  sys.exit(main())
