"""The program that makes the shipped files, and the one that measures them."""

import json

import numpy as np
import pytest

from benchmarks import build_tables
from benchmarks import tables as tables_benchmark
from rome_jax.spaces import nasbench201_forms as forms
from rome_jax.tables import macro, nasbench201, table


@pytest.mark.parametrize('scale', [600, 300, 180, 30])
def test_counts_come_back_through_single_precision(scale):
  counts = np.arange(0, 100 * scale + 1)
  published = (counts / scale).astype(np.float32)
  assert np.array_equal(
      build_tables.quantise(published, scale)[:, 0], counts)


def test_runs_that_are_missing_are_marked():
  column = table.Column(
      build_tables.quantise([[50, np.nan], [25, 75]], 4), 4)
  assert column.raw.dtype == np.uint16
  assert np.isnan(column.runs()[0, 1])
  assert column.mean().tolist() == [50, 50]


@pytest.mark.parametrize('values, scale', [([1 / 3], 100), ([0.], 700)])
def test_a_scale_that_loses_anything_stops_the_program(values, scale):
  with pytest.raises(SystemExit, match='loses'):
    build_tables.quantise([*values, 99.], scale)


def published_nasbench201():
  """The arrays that the program reads, out of the shipped table."""
  known = nasbench201.load()
  source = {'code': np.array(
      [forms.to_code(i) for i in range(forms.NUM_CELLS)])}
  for dataset in nasbench201.DATASETS:
    short = dataset.split('-')[0]
    for epochs in (12, 200):
      source[f'test{epochs}_{short}'] = known.values(dataset, epochs=epochs)
    source[f'val12_{short}'] = known.values(dataset, 'valid', 12)
    source[f'val200_{short}'] = np.stack(
        [known.values(dataset, 'valid', run=run) for run in range(3)], 1)
    for cost in ('train_time', 'latency'):
      source[f'{cost}_{short}'] = known.cost_values(cost, dataset)
  source['params_m_exact_cifar10'] = known.cost_values('params') / 1e6
  return {name: array.astype(np.float32) if array.dtype.kind == 'f' else array
          for name, array in source.items()}


def test_the_shipped_files_are_what_the_program_makes(tmp_path):
  source = tmp_path / 'source.npz'
  np.savez(source, **published_nasbench201())
  known = macro.load()
  rows = {
      known.to_cell(i): {
          'test_acc': [float(np.float32(r[i])) for r in runs],
          'params': int(params), 'flops': int(flops)}
      for runs in [[known.values(run=r) for r in range(3)]]
      for i, (params, flops) in enumerate(zip(
          known.cost_values('params'), known.cost_values('flops')))}
  (tmp_path / 'macro.json').write_text(json.dumps(rows))
  build_tables.main([
      f'--nasbench201={source}', f'--macro={tmp_path / "macro.json"}',
      f'--out={tmp_path}'])
  for module in (nasbench201, macro):
    with np.load(table.DATA / module.FILE) as shipped:
      with np.load(tmp_path / module.FILE) as made:
        assert made.files == shipped.files
        for name in made.files:
          assert np.array_equal(made[name], shipped[name]), name
  made = table.unpack(tmp_path / macro.FILE, macro.to_index, macro.to_code)
  assert made.best() == known.best()


def test_rows_in_another_order_stop_the_program():
  source = {'code': np.array(['000000'] * forms.NUM_CELLS)}
  with pytest.raises(SystemExit, match='order'):
    build_tables.build_nasbench201(source)


def test_the_measurement_prints_json(capsys):
  tables_benchmark.main(['--repeats=1'])
  result = json.loads(capsys.readouterr().out)
  for name in ('nasbench201', 'macro'):
    assert result[name]['loads_jax_or_torch'] is False
    assert result[name]['load_s'] > 0 and result[name]['lookup_us'] > 0
    assert result[name]['load_mib'] >= result[name]['numpy_mib'] > 1
