"""The writers of examples/trackers.py get every line of a run."""

import importlib.util
import json
import pathlib
import sys
import types

import numpy as np
import pytest

import rome_jax as rj

FILE = pathlib.Path(__file__).parents[1] / 'examples' / 'trackers.py'


@pytest.fixture(scope='module')
def trackers():
  spec = importlib.util.spec_from_file_location('trackers', FILE)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


class Logged:
  """What Weights & Biases' run does with `define_metric` and `log`."""

  def __init__(self):
    self.axes, self.rows = {}, []

  def define_metric(self, name, step_metric):
    self.axes[name] = step_metric

  def log(self, row):
    assert all(isinstance(value, int | float) for value in row.values())
    self.rows.append(row)


def test_a_run_reaches_both(trackers, tmp_path, monkeypatch):
  logged, given = Logged(), {}
  monkeypatch.setitem(sys.modules, 'wandb', types.SimpleNamespace(
      init=lambda **settings: (given.update(settings), logged)[1]))
  images = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 3), np.uint8)
  config = rj.config.defaults()
  config.space, config.dataset, config.log_every = 's2', 'arrays', 1
  config.search.update(cells=1, channels=4, batch_size=8, k=1, max_steps=2,
                       augment='none')
  config.retrain.seeds = 0
  rj.run(config, tmp_path / 'run', dataset=(images, np.arange(24) % 2),
         writers=[trackers.WandB(project='nas'),
                  trackers.TensorBoard(tmp_path / 'board')])
  lines = [json.loads(line) for line in (
      tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()]
  assert given == {'project': 'nas'}
  assert logged.axes == {'search/*': 'search/step'}
  assert logged.rows == [
      {f'search/{name}': value for name, value in line.items()
       if name not in ('phase', 'time') and value is not None}
      for line in lines]
  [events] = (tmp_path / 'board' / 'search').glob('events.*')
  assert b'train_loss' in events.read_bytes()


@pytest.mark.slow
def test_weights_and_biases_takes_it(trackers, tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  monkeypatch.setenv('WANDB_DIR', str(tmp_path))
  writer = trackers.WandB(project='nas', id='tiny', resume='allow')
  for step in (1, 2, 2):  # A resume repeats lines.
    writer.write('search', step, {'train_loss': .5, 'gap': None})
  assert writer.run.summary['search/train_loss'] == .5
  writer.run.finish()
  assert list(tmp_path.glob('wandb/offline-run-*'))
