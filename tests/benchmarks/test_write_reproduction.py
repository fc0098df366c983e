"""docs/reproduction.md is what the files of results make it."""

import pytest

from benchmarks import write_reproduction
from rome_jax.tables import scores


def test_the_committed_page_is_the_generated_one():
  made = write_reproduction.generate(write_reproduction.read())
  assert write_reproduction.PAGE.read_text() == made, (
      'run python -m benchmarks.write_reproduction')


def test_without_results_all_is_not_run():
  made = write_reproduction.generate({})
  rows = [line for line in made.splitlines() if line.startswith('| ')][2:]
  judged = [row.split(' | ')[4] for row in rows]
  assert len(judged) > 10 and set(judged) == {'not run'}


@pytest.mark.parametrize('ours, higher, wanted', [
    ([.5, .6, .7], True, 'direction reproduced'),
    ([.5, .6, .7], False, 'contradicted'),
    ([.5, -.4, .1], True, 'not seen'), ([.5, .6], True, 'too few seeds')])
def test_verdicts(ours, higher, wanted):
  part = scores.paired_difference(ours, [0.] * len(ours))
  assert write_reproduction.verdict(part, higher) == wanted
