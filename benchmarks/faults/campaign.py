"""Cases of a campaign, what became of each, and where that is kept."""

import datetime
import json
import pathlib
import re
import subprocess
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from rome_jax import files


class NotRunError(Exception):
  """A case that cannot be tried here; the message says why."""


class Context(NamedTuple):
  """What every case is told.

  Attributes:
    state: folder for what cases keep; each uses one of its own name.
    seed: of everything random.
    short: whether this is the form of CI.
  """

  state: pathlib.Path
  seed: int
  short: bool


class Seen(NamedTuple):
  """What became of a case.

  Attributes:
    ok: whether the promise was kept.
    text: what was seen, one line.
    figures: numbers for the page.
  """

  ok: bool
  text: str
  figures: dict[str, Any] = {}


class Case(NamedTuple):
  """One thing that is tried.

  Attributes:
    name: of its own within the part.
    group: the row of the page that it belongs to.
    run: () -> what was seen.
  """

  name: str
  group: str
  run: Callable[[], Seen]


class Log:
  """The cases that are done, a JSON line each.

  A case that failed is run again; one that passed is not.
  """

  def __init__(self, path: pathlib.Path):
    self._path = path
    self.rows: dict[tuple[str, str], dict[str, Any]] = {}
    if path.exists():
      for line in path.read_text().splitlines():
        row = json.loads(line)
        self.rows[row['part'], row['case']] = row

  def add(self, row: dict[str, Any]) -> None:
    """Keeps a row; the file is replaced in one step."""
    self.rows[row['part'], row['case']] = row
    files.write_text(self._path, ''.join(
        json.dumps(row) + '\n' for row in self.rows.values()))


def run(part: str, cases: Iterable[Case], log: Log,
        tell: Callable[[str], None] = print, again: bool = False,
        ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
  """Runs what has not passed yet.

  Args:
    part: its name.
    cases: what to run.
    log: of what is done.
    tell: gets a line for each case.
    again: whether to run what has passed, too.

  Returns:
    (rows of the part's cases, rows of those that cannot be run here, which the
    log does not keep).
  """
  rows, not_run = [], []
  for case in cases:
    row = log.rows.get((part, case.name))
    if row is None or again or not row['ok']:
      try:
        row = _run(part, case)
      except NotRunError as error:
        tell(f'{part}: {case.name}: not run: {error}')
        not_run.append({'part': part, 'group': case.group, 'case': case.name,
                        'seen': str(error)})
        continue
      log.add(row)
      tell(f'{part}: {case.name}: {"ok" if row["ok"] else "FAILED"}, '
           f'{row["seconds"]:.1f} s, {row["seen"]}')
    rows.append(row)
  return rows, not_run


def commit() -> str:
  """The short name of the commit that is tried; '' where there is none."""
  try:
    done = subprocess.run(
        ['git', 'rev-parse', '--short', 'HEAD'], text=True, check=False,
        cwd=pathlib.Path(__file__).parent, capture_output=True)
  except OSError:
    return ''
  return done.stdout.strip()


def _run(part, case):
  began, tried = time.perf_counter(), {
      'date': datetime.date.today().isoformat(), 'commit': commit()}
  try:
    seen = case.run()
  except NotRunError:
    raise
  except Exception as error:
    # What a case did not expect is a failure, not the campaign's end.
    place = traceback.extract_tb(error.__traceback__)[-1]
    seen = Seen(False, f'{type(error).__name__}: {error} '
                f'({pathlib.Path(place.filename).name}:{place.lineno})')
  return {
      'part': part, 'case': case.name, 'group': case.group, 'ok': seen.ok,
      'seconds': round(time.perf_counter() - began, 2),
      'seen': _plain(seen.text), **tried, **seen.figures}


def _plain(text):
  """One line, without the temporary folders of this machine."""
  places = re.escape(tempfile.gettempdir())
  return re.sub(rf'{places}/[^/ ]+/', 'DIR/', ' '.join(text.split()))[:600]
