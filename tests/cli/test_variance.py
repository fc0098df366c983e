"""`rome-jax variance`: a tiny PA&DA run, measured and misused."""

import json

import jax
import numpy as np
import pytest
from tiny_run import CONFIG

from rome_jax.cli import run, variance


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """Eight steps of PA&DA in two epochs, on digits."""
  folder = tmp_path_factory.mktemp('variance')
  path = folder / 'tiny.py'
  path.write_text(CONFIG.format(cache=''))
  jax.config.update('jax_disable_most_optimizations', True)
  assert run.main([
      f'--config={path}', f'--workdir={folder / "run"}',
      '--config.space=nasbench201', '--config.method=pada',
      '--config.search.cells=3', '--config.search.max_steps=8',
      '--config.search.k=1', '--config.search.epochs=2',
      '--config.search.batch_size=16', '--config.search.fraction_theta=.05',
      '--config.search.fraction_alpha=.05', '--config.search.candidates=1',
      '--config.search.evolution=random',
      '--config.retrain.cells=3', '--config.retrain.seeds=0']) == 0
  yield folder / 'run'
  jax.config.update('jax_disable_most_optimizations', False)


@pytest.mark.slow
def test_four_laws_with_and_without_weights(finished, capsys):
  assert variance.main([str(finished), '--draws=3']) == 0
  found = json.loads((finished / 'variance.json').read_text())
  assert [(row['law'], row['weighted']) for row in found['rows']] == [
      (law, weighted) for weighted in (False, True)
      for law in ('uniform', 'pa', 'da', 'pada')]
  for row in found['rows']:
    assert row['draws'] == 3
    assert np.isfinite([row['variance'], row['relative']]).all()
    assert row['variance'] > 0
  assert found['rows'][0]['relative'] == found['rows'][4]['relative'] == 1
  # Under uniform laws weights change nothing, up to one weight of 1 + 1e-9.
  assert found['rows'][0]['variance'] == pytest.approx(
      found['rows'][4]['variance'], rel=1e-3)
  assert 'V / uniform' in capsys.readouterr().out


@pytest.mark.slow
def test_other_runs_are_refused(finished, capsys, monkeypatch):
  monkeypatch.setattr(variance.pada, 'ROWS', {'pa': {}})
  assert variance.main([str(finished)]) == 2
  assert "method='pada'; it must be one of pa" in capsys.readouterr().err


@pytest.mark.parametrize('argv, words', [
    (['nowhere'], 'nowhere is not the folder of a run'),
    (['nowhere', '--draws=1'], "'1' must be an integer of at least 2"),
    (['nowhere', '--drows=3'], "did you mean '--draws'?")])
def test_mistakes(argv, words, capsys, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert variance.main(argv) == 2
  assert words in capsys.readouterr().err
