"""Parts of a self-contained page: values as text, texts as HTML.

Nothing but `section` takes HTML; all others escape what they are given.
"""

import html
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rome_jax.train import metrics

CSS = '''
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
td { overflow-wrap: break-word; font-variant-numeric: tabular-nums; }
td { min-width: 2em; }
td:first-child { min-width: 8em; }
td.number, th.number { text-align: right; }
td.number { white-space: nowrap; }
pre { background: var(--card); padding: 12px; border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere; }
figure { margin: 12px 0; padding: 8px; background: #ffffff;
  border: 1px solid var(--line); border-radius: 8px; overflow-x: auto; }
figure svg { display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
'''


# Values as text.


def percent(value: float | None) -> str:
  """.9742 -> '97.42%'; a dash for None."""
  return '–' if value is None else f'{100 * value:.2f}%'


def spread(summary: Mapping[str, Any]) -> str:
  """'97.42 ± 0.07% (n = 3)' of one kind of `report.summarise`."""
  if summary['std'] is None:
    return f'{percent(summary["mean"])} (n = {summary["n"]})'
  return (f'{100 * summary["mean"]:.2f} ± {100 * summary["std"]:.2f}% '
          f'(n = {summary["n"]})')


def size(count: int | None) -> str:
  """A count in the unit in which people read it.

  >>> size(530_000_000), size(3_349_342), size(999_999), size(810)
  ('530 M', '3.35 M', '1.00 M', '810')
  """
  if count is None:
    return '–'
  rounded = float(f'{count:.3g}')
  for unit, name in ((1e6, ' M'), (1e3, ' k')):
    if rounded >= unit:
      scaled = rounded / unit
      digits = 2 if scaled < 10 else 1 if scaled < 100 else 0
      return f'{scaled:,.{digits}f}{name}'
  return str(count)


def value(name: str, value: Any) -> str:
  """Formats a value, with the unit at the end of its name."""
  if value is None or value == '':
    return '–'
  if isinstance(value, (list, tuple)):
    return ', '.join(map(str, value))
  if not isinstance(value, (int, float)) or isinstance(value, bool):
    return str(value)
  if name.endswith('accuracy'):
    return percent(value)
  if name.endswith('seconds'):
    return f'{value:.1f} s' if value < 60 else metrics.clock_text(value)
  if name.endswith('bytes'):
    return f'{value / 2**20:,.0f} MiB'
  return f'{value:,}' if isinstance(value, int) else f'{value:,.5g}'


def words(name: str) -> str:
  """'peak_memory_bytes' -> 'peak memory': the unit is in the value."""
  if name == 'seconds':
    return 'time'
  return re.sub(r'_(bytes|seconds)$', '', name).replace('_', ' ')


def flat(value: Any, prefix: str = '') -> list[tuple[str, Any]]:
  """[(dotted name, value)] of nested dicts, in their order."""
  if not isinstance(value, dict) or not value:
    return [(prefix, value)]
  return [pair for key, item in value.items()
          for pair in flat(item, f'{prefix}.{key}' if prefix else str(key))]


# Values as HTML. Every function but `section` and `document` escapes.


def paragraph(text: str, kind: str = '') -> str:
  """A paragraph; `kind` is a class of CSS: 'soft' or 'warning'."""
  attribute = f' class="{kind}"' if kind else ''
  return f'<p{attribute}>{html.escape(text)}</p>\n'


def table(header: Sequence[str], rows: Sequence[Sequence[Any]],
          numbers: Sequence[int] = ()) -> str:
  """A table; the columns in `numbers` are right-aligned."""
  def cells(tag, row):
    return ''.join(
        f'<{tag}{" class=number" * (i in numbers)}>{html.escape(str(cell))}'
        f'</{tag}>' for i, cell in enumerate(row))

  head = f'<thead><tr>{cells("th", header)}</tr></thead>\n' if header else ''
  body = ''.join(f'<tr>{cells("td", row)}</tr>\n' for row in rows)
  return (f'<div class="scroll"><table>\n{head}<tbody>\n{body}</tbody>\n'
          '</table></div>\n')


def facts(pairs: Sequence[tuple[str, Any]]) -> str:
  """A table of names and values, without missing values."""
  rows = [(name, text) for name, text in pairs if text not in ('–', None, '')]
  return table((), rows) if rows else ''


def section(title: str, *parts: str) -> str:
  """A section of HTML parts; '' if they are all empty."""
  body = ''.join(parts)
  return f'<section>\n<h2>{html.escape(title)}</h2>\n{body}</section>\n' * bool(
      body)


def picture(workdir: pathlib.Path, name: str) -> str:
  """Returns the SVG picture of a run as a figure, or '' if there is none.

  Makes ids unique to the picture, as the page holds several, and drops the
  declarations that only a file needs. Pictures are drawn at one scale, so text
  has the same size in all; what is too wide scrolls.
  """
  path = workdir / f'{name}.svg'
  if not path.exists():
    return ''
  svg = path.read_text(encoding='utf-8')
  svg = svg[svg.index('<svg'):]
  opening, _, rest = svg.partition('>')
  box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', opening)
  shape = '' if box is None else (
      f'width="{box[1]}pt" height="{box[2]}pt" {box[0]}')
  rest = re.sub(r'<(style|metadata)\b.*?</\1>', '', rest, flags=re.DOTALL)
  for found in (r'\bid="', r'\bhref="#', r'url\(#'):
    rest = re.sub(f'({found})', rf'\g<1>{name}-', rest)
  return f'<figure><svg role="img" {shape}>{rest}</figure>\n'


def document(title: str, body: str) -> str:
  """The whole page; `body` is HTML."""
  return (
      '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
      '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
      f'<title>{html.escape(title)}</title>\n<style>{CSS}</style>\n</head>\n'
      f'<body>\n{body}</body>\n</html>\n')
