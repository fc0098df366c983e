"""The short form of the campaign of faults, and tests of the campaign itself.

Those that are slow run it on a program that breaks a promise: it must fail.
"""

import importlib
import json
import pathlib
import sys
import types

import pytest

from benchmarks import write_reliability
from benchmarks.faults import __main__ as faults
from benchmarks.faults import campaign, inputs, kills, runs, signals
from rome_jax import files


def cases_of(part, context):
  return list(importlib.import_module(
      f'benchmarks.faults.{part}').cases(context))


# Others have none: their cases take whole runs.
SHORT = [part for part in faults.PARTS if cases_of(
    part, campaign.Context(pathlib.Path('unused'), 0, True))]


@pytest.fixture(scope='module')
def context(tmp_path_factory):
  return campaign.Context(tmp_path_factory.mktemp('state'), 0, True)


@pytest.mark.filterwarnings('ignore')  # Pillow's, about damaged images
@pytest.mark.parametrize('part', SHORT)
def test_every_case_of_the_short_form(part, context):
  rows, not_run = campaign.run(part, cases_of(part, context), campaign.Log(
      context.state / f'{part}.jsonl'))
  for row in rows:
    assert row['ok'], f'{row["case"]}: {row["seen"]}'
  if not_run:
    pytest.skip(f'{not_run[0]["case"]}: {not_run[0]["seen"]}')


def test_what_has_passed_is_not_tried_again(tmp_path):
  tried = []

  def cases():
    for name in 'good', 'bad':
      yield campaign.Case(name, 'x', lambda name=name: (
          tried.append(name) or campaign.Seen(name == 'good', name)))

  for _ in range(2):
    rows, _ = campaign.run('part', cases(), campaign.Log(tmp_path / 'log'))
  assert tried == ['good', 'bad', 'bad']
  assert [row['ok'] for row in rows] == [True, False]
  campaign.run('part', cases(), campaign.Log(tmp_path / 'log'), again=True)
  assert tried == ['good', 'bad', 'bad', 'good', 'bad']


def only_case(monkeypatch, name, run=lambda: 1 / 0):
  """Every part has one case, which divides by zero."""
  part = types.SimpleNamespace(cases=lambda context: iter(
      [campaign.Case(name, 'x', run)]))
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


def cannot():
  raise campaign.NotRunError('no right')


def test_what_cannot_be_tried_has_not_passed(tmp_path, monkeypatch):
  only_case(monkeypatch, 'a', cannot)
  found = faults.run(['disk'], campaign.Context(tmp_path, 0, False))
  assert found['cases'] == []
  assert found['not_run'] == [
      {'part': 'disk', 'group': 'x', 'case': 'a', 'seen': 'no right'}]
  assert '| x | 0 of 0 | 1 | not run: no right |' in (
      write_reliability.generate(found))


def test_an_unknown_part_is_one_sentence(capsys):
  assert faults.main(['--part=typo']) == 2
  said = capsys.readouterr().err
  assert said.count('\n') == 1 and 'typo' in said and 'hostile' in said


def test_the_page_has_the_range_of_days_and_commits(tmp_path, monkeypatch):
  only_case(monkeypatch, 'a', lambda: campaign.Seen(
      True, 'x', {'kills': 5, 'training': 2, 'writing': 1, 'before': 2}))
  found = faults.run(['kills'], campaign.Context(tmp_path, 0, False))
  row, = found['cases']
  assert row['date'] == found['date'] and 'commit' in row
  found['cases'] = [row | {'date': '2020-01-02', 'commit': 'abc'},
                    row | {'date': '2020-01-01', 'commit': 'def'}]
  page = ' '.join(write_reliability.generate(found).split())
  assert '2020-01-01 to 2020-01-02, commits def to abc, seed 0' in page
  assert '10 kills: 4 in training, 2 saving or writing, 4 before' in page


@pytest.mark.parametrize('text', ['a\rb', '\x1b[2J', 'a' * 1001])
def test_a_sentence_that_harms_a_terminal_is_a_fault(text):
  def main(argv):
    print(f'rome_jax: {text}', file=sys.stderr)
    return 2

  with pytest.raises(inputs.Bad, match='letters'):
    inputs.command(main, [])


def add_checkpoint(run, phase, step):
  folder = run / 'checkpoints' / phase / step
  folder.mkdir(parents=True)
  (folder / 'manifest.json').write_text('{}')


def test_a_start_must_go_on_from_the_newest_complete_checkpoint(tmp_path):
  run = tmp_path / 'arm' / 'seed'
  for step in '00000004', '00000008', '00000012.partial':
    add_checkpoint(run, 'search', step)
  before = runs.marks(tmp_path)
  assert before == {(run, 'search'): 8}
  assert runs.marks(tmp_path, damaged=1) == {(run, 'search'): 4}
  runs.went_on(before, ended=False)
  with pytest.raises(inputs.Bad, match=r'search.json is missing'):
    runs.went_on(before)
  for at in None, 4:
    files.write_json(run / 'phases' / 'search.json', {'resumed_at': at})
    with pytest.raises(inputs.Bad, match='not at 8 or later'):
      runs.went_on(before)
  files.write_json(run / 'phases' / 'search.json', {'resumed_at': 8})
  runs.went_on(before)
  assert runs.marks(tmp_path) == {}  # It is done and not resumed again.


def test_where_a_run_was_is_told_by_what_it_wrote_since_its_start(tmp_path):
  def where():
    return runs.place(tmp_path, 100.)

  assert where().kind == runs.BEFORE
  row = {'phase': 'search', 'step': 6, 'time': 90.}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(row) + '\n')
  assert where().kind == runs.BEFORE
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(row | {'time': 110.}))
  with open(tmp_path / 'metrics.jsonl', 'a') as file:
    file.write('\n')
  assert where() == (runs.TRAINING, 'search step 6')
  partial = tmp_path / 'checkpoints' / 'search' / '00000008.partial'
  partial.mkdir(parents=True)
  assert where() == (runs.WRITING, 'saving search step 8')
  partial.rmdir()
  files.write_json(tmp_path / 'phases' / 'search.json', {})
  assert where() == (runs.BEFORE, 'after search step 6')
  (tmp_path / 'result.json').write_text('{}')
  assert where() == (runs.WRITING, 'writing result.json')


@pytest.fixture
def mutated(tmp_path, monkeypatch):
  """A function: all processes of the campaign run some code at their start."""
  plain = runs.environment

  def mutate(code):
    (tmp_path / 'sitecustomize.py').write_text(code)
    monkeypatch.setattr(runs, 'environment', lambda *args, **more: (
        plain(*args, **more) | {'PYTHONPATH': f'{tmp_path}:{runs.ROOT}'}))
    # The case must fail before it compares.
    monkeypatch.setattr(runs, 'whole', lambda *unused: (tmp_path, 30.))
    return campaign.Context(tmp_path / 'state', 0, False)

  return mutate


NEVER_RESUMES = '''
from rome_jax.train import checkpoint
checkpoint.Checkpoints.restore = lambda store, target: None
'''
IGNORES_SIGNALS = '''
from rome_jax.devices import interrupt
interrupt.Interrupt.requested = property(lambda stop: False)
'''


@pytest.mark.slow
def test_a_run_that_never_resumes_fails_a_chain_of_kills(mutated, monkeypatch):
  monkeypatch.setattr(kills, '_KILLS', 2)
  context = mutated(NEVER_RESUMES)
  with pytest.raises(inputs.Bad, match=r'search resumed at step None, not at'):
    kills._chain(context, 'search', 0)


@pytest.mark.slow
def test_a_run_that_never_resumes_fails_a_signal(mutated):
  context = mutated(NEVER_RESUMES)
  with pytest.raises(inputs.Bad, match=r'search resumed at step None, not at'):
    signals._signalled(context, 'SIGTERM', 'checkpoint', 1, 0.)


@pytest.mark.slow
def test_a_run_that_ignores_signals_fails(mutated):
  context = mutated(IGNORES_SIGNALS)
  with pytest.raises(inputs.Bad, match='it went on after SIGTERM to its end'):
    signals._signalled(context, 'SIGTERM', 'compiling', 1, .1)


def test_the_committed_page_is_the_generated_one():
  made = write_reliability.generate(write_reliability.read())
  assert write_reliability.PAGE.read_text() == made, (
      'run python -m benchmarks.write_reliability')
