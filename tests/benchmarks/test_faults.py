"""The short form of the campaign of faults: what needs no whole run."""

import importlib
import json
import types

import pytest

from benchmarks import write_reliability
from benchmarks.faults import __main__ as faults
from benchmarks.faults import campaign


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  return campaign.Context(tmp_path_factory.mktemp('state'), 0, True)


@pytest.mark.filterwarnings('ignore')  # Pillow's, about damaged images
@pytest.mark.parametrize('part', faults.PARTS)
def test_every_case_of_the_short_form(part, context):
  cases = list(importlib.import_module(
      f'benchmarks.faults.{part}').cases(context))
  for row in campaign.run(part, cases, campaign.Log(
      context.state / f'{part}.jsonl')):
    assert row['ok'], f'{row["case"]}: {row["seen"]}'


def test_what_has_passed_is_not_tried_again(tmp_path):
  tried = []

  def cases():
    for name in 'good', 'bad':
      yield campaign.Case(name, 'x', lambda name=name: (
          tried.append(name) or campaign.Seen(name == 'good', name)))

  for _ in range(2):
    rows = campaign.run('part', cases(), campaign.Log(tmp_path / 'log'))
  assert tried == ['good', 'bad', 'bad']
  assert [row['ok'] for row in rows] == [True, False]


def only_case(monkeypatch, name):
  """Every part has one case, which divides by zero."""
  part = types.SimpleNamespace(cases=lambda context: iter(
      [campaign.Case(name, 'x', lambda: 1 / 0)]))
  monkeypatch.setattr(faults.importlib, 'import_module', lambda name: part)


def test_an_error_in_a_case_is_a_failure_of_it(tmp_path, monkeypatch):
  only_case(monkeypatch, 'divides')
  out = tmp_path / 'out.json'
  assert faults.main(['--part=hostile', f'--out={out}']) == 1
  row, = json.loads(out.read_text())['cases']
  assert not row['ok'] and 'ZeroDivisionError' in row['seen']


def test_what_is_not_done_is_said(tmp_path, monkeypatch):
  only_case(monkeypatch, 'a')
  found = faults.run(['hostile'], campaign.Context(tmp_path, 0, False),
                     collect=True)
  assert found['cases'] == []
  assert found['not_run'] == [{'part': 'hostile', 'group': 'x', 'case': 'a'}]


def test_the_committed_page_is_the_generated_one():
  made = write_reliability.generate(write_reliability.read())
  assert write_reliability.PAGE.read_text() == made, (
      'run python -m benchmarks.write_reliability')
