"""Writes docs/performance.md and its curves from docs/results/*.json.

  python -m benchmarks.write_docs

Reads every figure of the document, with its machine, date and command, from a
file of results: PART.json (measured on a CPU) or PART_gpu.json. What has no
file, or no value in its file, is "not run". A test checks that the committed
document is the one that this writes.
"""

import hashlib
import json
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import matplotlib.figure

from benchmarks import growth, memory, ops, parallel
from rome_jax import files
from rome_jax.show import curves, figures

ROOT = pathlib.Path(__file__).parents[1]
RESULTS, DOCS = ROOT / 'docs' / 'results', ROOT / 'docs'
NAME = 'performance'
NOT_RUN = 'not run'


# ------------------------------------------------------------------- numbers


def _number(value, digits, scale=1., unit=''):
  return NOT_RUN if value is None else f'{value * scale:,.{digits}f}{unit}'


def _megabytes(value):
  return _number(value, 0, 1e-6, ' MB')


def _markdown(header, rows):
  """A table; cells are text."""
  return '\n'.join(f'| {" | ".join(line)} |' for line in (
      header, ['---'] * len(header), *rows))


def _lacking(row):
  """Says why a row has no value, briefly enough for a table."""
  return (row.get('error') or NOT_RUN).removeprefix('not run: ')


def _source(part, result):
  """Names the machine, date and command of a file of results."""
  if result is None:
    return f'Not run: `python -m benchmarks.{part}`.'
  rows = result['rows']

  def values(path):
    found = []
    for row in rows:
      value = row
      for key in path:
        value = (value or {}).get(key)
      if value is not None and str(value) not in found:
        found.append(str(value))
    return ' and '.join(found)

  accelerators = [row['device'] for row in rows
                  if row.get('device') not in (None, 'cpu')]
  device = f'{accelerators[0]}, host: ' if accelerators else ''
  commands = '; '.join(f'`{command}`' for command in result['commands'])
  return (f'{device}{values(("machine", "cores"))} cores of '
          f'{values(("machine", "cpu"))}, jax {values(("machine", "jax"))}, '
          f'{values(("machine", "date"))}: {commands}.')


# ------------------------------------------------------------------ sections


def _search_step(result):
  header = ['samples', 'K', 'batch', 'trace + compile', 'temporary memory',
            'step', 'images/s', 'one architecture',
            'of PyTorch, default layout', 'of PyTorch, channels_last']
  rows = [
      [row['parallel'], str(row['k']), str(row['batch']),
       _number(row['compile_seconds'], 1, unit=' s'),
       _megabytes(row['temp_bytes']),
       _number(row['step_seconds'], 2, unit=' s'),
       _number(row['images_per_second'], 0),
       _number(row['sample_seconds'], 3, unit=' s'),
       _number(row['torch_ratio_default'], 2),
       _number(row['torch_ratio_channels_last'], 2)]
      for row in result['rows']]
  return _markdown(header, rows), []


def _ops(result):
  header = ['operation', 'stride', *ops.WAYS]
  parts = []
  shapes = list(dict.fromkeys(tuple(row['shape']) for row in result['rows']))
  for shape in shapes:
    rows = [[row['name'], str(row['stride']),
             *(_number(row[f'both_{way}'], 2, 1e3) for way in ops.WAYS)]
            for row in result['rows'] if tuple(row['shape']) == shape]
    parts += [f'Input {list(shape)}, milliseconds forward and backward:',
              _markdown(header, rows)]
  return '\n\n'.join(parts), []


def _parallel(result):
  rows = result['rows']
  ways = list(dict.fromkeys(row['way'] for row in rows))
  ks = sorted({row['k'] for row in rows})
  batches = sorted({row['batch'] for row in rows})
  at = {(row['batch'], row['way'], row['k']): row for row in rows}

  def text(batch, way, k):
    if way == parallel.DEVICES and k == 1:
      return 'as scan'
    row = at.get((batch, way, k), {})
    if row.get('gradient_seconds') is None:
      memory_text = (f'; {_megabytes(row["temp_bytes"])}'
                     if row.get('temp_bytes') else '')
      return _lacking(row) + memory_text
    return (f'{_number(row["gradient_seconds"], 1, 1e6, " us")}; '
            f'{_megabytes(row["temp_bytes"])}; '
            f'{_number(row["compile_seconds"], 0, unit=" s")}')

  table = _markdown(
      ['batch', 'way', *(f'K = {k}' for k in ks)],
      [[str(batch), way, *(text(batch, way, k) for k in ks)]
       for batch in batches for way in ways])
  panels = [
      (f'{title}, batch {batch}', 'K', label,
       {way: _points([at[batch, way, k] for k in ks
                      if (batch, way, k) in at], 'k', key, scale)
        for way in ways})
      for title, label, key, scale in (
          ('Time', 'us per image', 'gradient_seconds', 1e6),
          ('Memory', 'MB', 'temp_bytes', 1e-6)) for batch in batches]
  return table, [('parallel', panels, len(batches))]


def _points(rows, x, y, scale):
  """(xs, ys) where y was measured."""
  rows = [row for row in rows if row.get(y) is not None]
  return [row[x] for row in rows], [scale * row[y] for row in rows]


def _axes(rows):
  """{size: the base point and the rows that differ from it in this size}.

  The base point is the row from which the others differ in the fewest sizes.
  """

  def differ(a, b):
    return [name for name in growth.BASE if a[name] != b[name]]

  base = min(rows, key=lambda a: sum(len(differ(a, b)) for b in rows))
  return {
      name: sorted((row for row in rows if differ(row, base) in ([], [name])),
                   key=lambda row: row[name])
      for name in growth.BASE}


def _growth(result):
  axes = {name: rows for name, rows in _axes(result['rows']).items()
          if len(rows) > 1}
  table = _markdown(
      [*growth.BASE, 'trace + compile', 'temporary memory', 'step'],
      [[*(f'**{row[size]}**' if size == name else str(row[size])
          for size in growth.BASE),
        _number(row['compile_seconds'], 1, unit=' s'),
        _megabytes(row['temp_bytes']) if row['temp_bytes'] else _lacking(row),
        _number(row['step_seconds'], 2, unit=' s')]
       for name, rows in axes.items() for row in rows])
  panels = [
      (name, name, label, {name: _points(rows, name, key, scale)})
      for label, key, scale in (
          ('step, s', 'step_seconds', 1), ('memory, MB', 'temp_bytes', 1e-6),
          ('compile, s', 'compile_seconds', 1))
      for name, rows in axes.items()]
  text = table
  memories = [row for row in axes.get('ops', ()) if row['temp_bytes']]
  if len(memories) > 1:
    least, most = memories[0], memories[-1]
    text += (
        f'\n\n{most["ops"]} candidate operations need '
        f'{most["temp_bytes"] / least["temp_bytes"]:.3f} times the temporary '
        f'memory of {least["ops"]}.')
  return text, [('growth', panels, len(axes))] if axes else []


_TITLES = {'darts': 'DARTS', 'gdas': 'GDAS', 'pc_darts_k4': 'PC-DARTS, 1/4',
           'pc_darts_k2': 'PC-DARTS, 1/2', 'rome': 'ROME'}


def _memory(result):
  found = {row['column']: row for row in result['rows']}
  rows = []
  for column, (_, _, paper) in memory.COLUMNS.items():
    row = found.get(column, {})
    temp = row.get('temp_bytes')
    least = found.get('rome', {}).get('temp_bytes')
    rows.append([
        _TITLES[column], f'{paper} GB', f'{paper / 2.3:.1f}',
        _megabytes(temp) if temp else _lacking(row),
        f'{temp / least:.1f}' if temp and least else NOT_RUN,
        _megabytes(row.get('argument_bytes')),
        _megabytes(row.get('peak_bytes'))])
  return _markdown(
      ['search', 'paper, GPU', 'of ROME', 'temporary', 'of ROME',
       'arguments', 'peak on the device'], rows), []


class _Part(NamedTuple):
  """A section: its title, the text before its table, and its function."""

  title: str
  words: str
  make: Callable


PARTS = {
    'search_step': _Part('The search step beside PyTorch', '''\
The complete step of Algorithm 1: K architectures for alpha and beta, then K
fresh ones for theta. The last two columns divide our time for one sampled
architecture, forward and backward, by that of eager PyTorch, which runs only
the sampled operations; below 1 is faster.''', _search_step),
    'ops': _Part('Operations', '''\
The candidate operations come first, then the kernels. `switch` is our operation
as a search runs it, recomputed in the backward pass. `top` is our operation at
the top level of a program. `stock` is built of JAX's own operations and
differentiated by JAX. Each call of a JAX program requests its temporary memory
from the system again, which may double its time on a CPU; a search makes one
such call per step. Times of the forward pass are in the JSON.''', _ops),
    'parallel': _Part('Ways to evaluate K architectures', '''\
`scan` evaluates them one after another, `vmap` all at once, `devices` one per
device (on a CPU: forced devices that share its cores). Each entry gives the
time of loss and gradient per architecture and image, the temporary memory of
the complete step, and the time to trace and compile.''', _parallel),
    'growth': _Part('The cost of growth', '''\
The rows change one size at a time (in bold) from a base point. `ops` is the
number of candidate operations; `benchmarks/growth.py` lists them. The time of a
step depends on the operations that it happens to sample.''', _growth),
    'memory': _Part("Memory beside the paper's table", '''\
Table 3 of the paper: batch 64, 16 channels, 8 cells. DARTS and PC-DARTS are
plain automatic differentiation over all operations; GDAS and ROME use this
engine. Temporary memory and arguments (weights, optimisers, images) are those
of the compiled first-order search step on the machine named below. On a CPU
every row uses JAX's own kernels, so these figures are not comparable with the
first table.''', _memory),
}

_HEAD = '''\
# Performance

`python -m benchmarks.write_docs` writes this page from the files in
`docs/results`; do not edit it by hand. `python -m benchmarks.all --out
docs/results` repeats the measurements; `--quick` only shows that all of them
work. Temporary memory is what the compiled program needs in addition to its
arguments.
'''


# ------------------------------------------------------------- the document


def _section(part, result, files_made, suffix):
  """Writes a part as Markdown and adds its curves to `files_made`."""
  body = [PARTS[part].words, _source(part, result)]
  if result is None:
    return body[1:]
  text, figures = PARTS[part].make(result)
  body.append(text)
  for name, panels, columns in figures:
    path = f'{NAME}_{name}{suffix}.svg'
    files_made[path] = _svg(panels, PARTS[part].title, columns)
    body.append(f'![{PARTS[part].title}]({path})')
  return body


def digest(svg: str) -> str:
  """Returns the digest of the data that a picture of this document shows."""
  return svg.partition('data sha256 ')[2][:64]


def _svg(panels, title, columns):
  # Other versions of matplotlib draw the same data with other bytes.
  data = hashlib.sha256(json.dumps(panels).encode()).hexdigest()
  return curves.curves_svg(
      panels, title, columns=columns, description=f'data sha256 {data}')


COLUMNS = {'darts': 'DARTS, as published', 'pc_darts_k4': 'PC-DARTS',
           'gdas': 'GDAS, here', 'rome': 'ROME (K = 7), here'}


def memory_svg(result: dict) -> str:
  """Draws the bars of the README: temporary memory of a step, by method."""
  rows = {row['column']: row['temp_bytes'] / 1e9 for row in result['rows']
          if row['column'] in COLUMNS and row['temp_bytes']}
  title = 'Temporary memory of one search step'
  data = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
  with figures.style():
    figure = matplotlib.figure.Figure(figsize=(6, 1.9), layout='constrained')
    axes = figure.add_subplot()
    bars = axes.barh(
        [COLUMNS[n] for n in rows], list(rows.values()),
        color=[figures.COLOURS[n in ('darts', 'pc_darts_k4')] for n in rows])
    axes.bar_label(bars, [f'{gb:.1f} GB' for gb in rows.values()], padding=4)
    axes.invert_yaxis()
    axes.set_xlabel('temporary memory of one search step, GB')
    axes.grid(False)
    axes.margins(x=.12)
    return figures.svg(figure, title, f'data sha256 {data}')


def read(folder=RESULTS) -> dict:
  """{part or part_gpu: a file of results, or None where there is none}."""
  names = [part + suffix for suffix in ('', '_gpu') for part in PARTS]
  paths = {name: pathlib.Path(folder, f'{name}.json') for name in names}
  return {name: files.read_json(path) if path.exists() else None
          for name, path in paths.items()}


def generate(results: dict) -> dict[str, str]:
  """{name of a file in docs: its text}.

  Args:
    results: of `read`.
  """
  made, blocks = {}, [_HEAD.rstrip()]
  for part, row in PARTS.items():
    blocks += [f'## {row.title}', *_section(part, results[part], made, '')]
  blocks.append('## GPU')
  for part, row in PARTS.items():
    blocks += [f'### {row.title}',
               *_section(part, results[f'{part}_gpu'], made, '_gpu')]
  if results['memory'] is not None:
    made['memory.svg'] = memory_svg(results['memory'])
  return {f'{NAME}.md': '\n\n'.join(blocks) + '\n', **made}


def main() -> int:
  """Writes the files and removes pictures that are no longer made."""
  made = generate(read())
  for path in DOCS.glob(f'{NAME}_*.svg'):
    if path.name not in made:
      path.unlink()
  for name, text in made.items():
    files.write_text(DOCS / name, text)
    print(DOCS / name)
  return 0


if __name__ == '__main__':
  sys.exit(main())
