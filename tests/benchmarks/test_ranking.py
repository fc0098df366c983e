"""The benchmark of ranking, at a tiny size."""

import json

import pytest

from benchmarks import ranking


def test_it_prints_one_object(capsys):
  ranking.main(['--channels=2', '--image_size=8', '--images=8',
                '--batch_size=4', '--number=3', '--norm=recalibrated'])
  found = json.loads(capsys.readouterr().out)
  assert found['minutes_for_all'] * 60 * found['cells_per_second'] == (
      pytest.approx(5**6))
  assert (found['cells'], found['channels'], found['number']) == (3, 2, 3)
