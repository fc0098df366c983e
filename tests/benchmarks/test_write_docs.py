"""docs/performance.md is what the files of results make it."""

import copy

import pytest

from benchmarks import grid, growth, memory, ops, write_docs

MACHINE = {'cpu': 'Some CPU', 'cores': 3, 'jax': '0.0.7',
           'date': '2031-02-03'}
PLACE = {'backend': 'cpu', 'device': 'cpu', 'machine': MACHINE, 'error': None}


def results(**rows):
  """Of the named parts; none of the others."""
  return {**dict.fromkeys(
      part + suffix for part in write_docs.PARTS for suffix in ('', '_gpu')),
      **{part: {'commands': [f'run {part}'],
                'rows': [{**PLACE, **row} for row in found]}
         for part, found in rows.items()}}


def test_the_committed_document_is_the_generated_one():
  made = write_docs.generate(write_docs.read())
  pictures = {path.name for path in write_docs.DOCS.glob('performance_*.svg')}
  assert {'performance.md', 'memory.svg', *pictures} == set(made)
  text = (write_docs.DOCS / 'performance.md').read_text()
  assert text == made.pop('performance.md'), (
      'run python -m benchmarks.write_docs')
  for name, svg in made.items():
    committed = (write_docs.DOCS / name).read_text()
    assert write_docs.digest(committed) == write_docs.digest(svg) != ''


def test_without_results_everything_is_not_run():
  made = write_docs.generate(results())
  assert list(made) == ['performance.md']
  assert made['performance.md'].count('Not run: `python -m benchmarks.') == (
      2 * len(write_docs.PARTS))


def parallel_row(way, k, seconds, error=None):
  return {'way': way, 'k': k, 'batch': 64, 'gradient_seconds': seconds,
          'temp_bytes': 5e8 * k, 'compile_seconds': 31.4, 'error': error}


def test_ways_of_evaluating_k():
  made = write_docs.generate(results(parallel=[
      parallel_row('scan', 1, 1.25e-5), parallel_row('scan', 4, 1.5e-5),
      parallel_row('vmap', 1, 2e-5),
      parallel_row('vmap', 4, None, 'needs 2.0 GB, available are 1.0 GB')]))
  text = made['performance.md']
  assert '3 cores of Some CPU, jax 0.0.7, 2031-02-03: `run parallel`' in text
  assert '| batch | way | K = 1 | K = 4 |' in text
  assert '| 64 | scan | 12.5 us; 500 MB; 31 s | 15.0 us; 2,000 MB; 31 s |' in (
      text)
  assert ('| 64 | vmap | 20.0 us; 500 MB; 31 s | needs 2.0 GB, available are '
          '1.0 GB; 2,000 MB |') in text
  assert text.count('](performance_parallel.svg)') == 1
  assert made['performance_parallel.svg'].startswith('<?xml')


def growth_rows():
  for name, values in {**growth.AXES, 'batch': ()}.items():
    for value in values:
      yield {**growth.BASE, name: value, 'compile_seconds': 3., 'step_seconds':
             .5, 'temp_bytes': 100e6 + 1e6 * (name == 'ops') * value}


def test_growth_finds_its_base_point():
  axes = write_docs._axes([{**PLACE, **row} for row in growth_rows()])
  for name, rows in axes.items():
    values = {row[name] for row in rows}
    assert values == set(growth.AXES[name] if name != 'batch' else [64]), name
  made = write_docs.generate(results(growth_gpu=list(growth_rows())))
  assert '14 candidate operations need 1.118 times' in made['performance.md']
  assert 'performance_growth_gpu.svg' in made


def test_memory_beside_the_paper():
  text = write_docs.generate(results(memory=[
      {'column': 'darts', 'temp_bytes': 9e9, 'argument_bytes': 4e6},
      {'column': 'rome', 'temp_bytes': 5e8, 'argument_bytes': 3e6},
      {'column': 'gdas', 'temp_bytes': None,
       'error': 'not run: took more than 9 s'}]))['performance.md']
  assert '| DARTS | 9.4 GB | 4.1 | 9,000 MB | 18.0 | 4 MB | not run |' in text
  assert '| GDAS | 3.1 GB | 1.3 | took more than 9 s | not run |' in text
  assert '| PC-DARTS, 1/4 | 3.7 GB | 1.6 | not run | not run |' in text
  assert set(write_docs._TITLES) == set(memory.COLUMNS)


def test_operations_and_the_step():
  text = write_docs.generate(results(
      ops=[{'name': 'max_pool', 'stride': 1, 'shape': [64, 8, 8, 64],
            **dict.fromkeys(ops.KEYS), 'both_top': .00125}],
      search_step_gpu=[{
          'parallel': 'scan', 'k': 7, 'batch': 64, 'compile_seconds': 20.,
          'temp_bytes': 2.5e8, 'step_seconds': .25, 'images_per_second': 3584.,
          'sample_seconds': .018, 'torch_ratio_default': None,
          'torch_ratio_channels_last': None, 'device': 'NVIDIA X',
          'backend': 'gpu'}]))['performance.md']
  assert '| max_pool | 1 | not run | 1.25 | not run |' in text
  assert ('| scan | 7 | 64 | 20.0 s | 250 MB | 0.25 s | 3,584 | 0.018 s | '
          'not run | not run |') in text
  assert 'NVIDIA X, host: 3 cores' in text


def test_other_data_other_digest(tmp_path):
  rows = [parallel_row('scan', 1, 1e-5), parallel_row('scan', 4, 1e-5)]
  other = copy.deepcopy(rows)
  other[1]['gradient_seconds'] *= 2
  one, two = (write_docs.generate(results(parallel=found))[
      'performance_parallel.svg'] for found in (rows, other))
  assert len(write_docs.digest(one)) == 64
  assert write_docs.digest(one) != write_docs.digest(two)


@pytest.mark.parametrize('part', write_docs.PARTS)
def test_every_section_is_a_benchmark(part):
  assert (grid.ROOT / 'benchmarks' / f'{part}.py').exists()
