"""Writes docs/reliability.md from docs/results/faults.json.

  python -m benchmarks.write_reliability

A test checks that the committed page is the one that this writes.
"""

import json
import pathlib
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rome_jax import files

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = ROOT / 'docs' / 'results' / 'faults.json'
PAGE = ROOT / 'docs' / 'reliability.md'

_HEAD = '''# Reliability

"A run may be killed at any moment" and "a mistake ends with one sentence",
tried by a campaign of faults:

    python -m benchmarks.faults --state=DIR

It resumes where it was stopped, takes hours on two cores, and its short form
runs with the tests. The runs are tiny (`benchmarks/faults/tiny.py`): a space of
three operations, scikit-learn's digits, 30 steps. "The same end" means: result,
genotype, metrics and the last checkpoint of each phase are bit for bit those of
the uninterrupted run, but for times.
'''
_WHERE = (
    '`docs/results/faults.json` has every case. {machine}, shared with other '
    'work, {when}, seed {seed}; `python -m benchmarks.write_reliability` '
    'writes this page.')

# part: (heading, what it does).
_PARTS = {
    'kills': ('kill -9', 'Chains of five kills, then left alone: the '
              'first kill at a file that has just been written, the others '
              'uniform in the time of the uninterrupted work, but one at '
              'least in training, after a checkpoint. Each start must go on '
              'from the newest complete checkpoint, or a later one. Of a '
              'comparison now and then only the parent is killed.'),
    'signals': ('Signals and second processes', 'SIGTERM and SIGINT, once and '
                'twice: the run says that it stops and is not finished; then '
                'the same command goes on to the same end.'),
    'damage': ('Damaged checkpoints, clocks and counters', 'Each file of the '
               'newest checkpoint of a killed run is damaged, one at a time; '
               'the one before is taken and the log says so.'),
    'disk': ('Disks', 'A small tmpfs is filled just before a file is written: '
             'one sentence, exit code 2; after space is made the same command '
             'ends as the uninterrupted run.'),
    'inputs': ('Random inputs', 'Damaged texts, JSONs, overrides, images and '
               'arrays, each within 5 s of processor time and 2 GB: accepted, '
               'or refused in one sentence.'),
    'hostile': ('Hostile files', 'Refused in one sentence or shown as what '
                'they are; nothing is executed, nothing written outside.'),
    'hosts': ('Several processes', 'One of two is killed with heartbeat 15 s; '
              'the other ends within a minute; one, two or four devices '
              'continue to the same genotype, in searches too short for '
              'rounding to turn a choice. Where process 0 is killed JAX itself '
              'ends the other, with its own message (code 134).'),
    'scale': ('Sizes', 'Each finished, in the time and memory shown.')}

# group: what each of its cases that passed has shown, where rows say no more.
_SHOWN = {
    'two processes': 'the second ends with one sentence, the first goes on',
    'clock and counter': 'the same end',
    'a run goes on': 'the same end',
    'programs in the cache': 'the same end',
    'full disk': 'one sentence, and the same end once there is space',
    'read-only': 'one sentence where it must write, and the same end once it '
                 'can',
    'other file systems': 'the same end'}

_FOUND = '''## What it found

Mended with a test each:

- Gzipped idx files, pickles of CIFAR's Python version (lists within lists, an
  index of 2**31) and .npz headers could take all memory; a device or pipe in
  place of a genotype, an .npz or an image was read without end. The kernel
  ended the campaign itself twice, out of memory.
- A disk that was full when TensorBoard's events were written left the run
  waiting for its writer's thread, until the campaign gave up after 300 s.
- A PostScript file named .png was given to Ghostscript by Pillow.
- Genotype texts of a megabyte took time that grew with the square of the length
  (minutes); a path with a zero byte or half of a letter was a traceback.
- A value of 70,000 letters, line breaks and terminal codes were printed as they
  were; a message is now one line of at most 1,000 letters.
- A checkpoint renamed to a later step was taken for that step.
- JSON files of a workdir with values that no run writes were tracebacks.
- `.lock` and `metrics.jsonl` as links in somebody else's workdir led to files
  outside; the label `..` of a comparison left its folder.
- Two comparisons or sweeps in one folder ran against each other; after kill -9
  of a comparison its run went on unseen and stopped the next start.
- Ctrl-C while JAX was imported was a traceback.
- A finished run on a read-only disk was refused as not writable.
- Two processes on CPUs: a program that process 0 had read from the compilation
  cache ran its collectives in another order than the program that process 1 had
  compiled, and Gloo ended process 1 at the start of a retraining, in every run
  after the first. Several processes on CPUs go without the cache now.
- Some 18 s after process 1 was killed JAX sometimes ended process 0 before it
  could say so.

A review of the campaign found more; it now checks that each start goes on from
the last checkpoint, since one that began again would end with the same bits:

- `rm -rf` of a folder in use and a new start there: the new run restored the
  checkpoints that the old one still wrote. A refused second start had changed
  `config.json`.
- Pipes, devices and endless files in a workdir kept a command waiting or took
  all memory; a forged manifest with a valid digest gave tracebacks, or never
  ended.
- `kill -9` in the middle of a write left its temporary file for ever.
- A message could be longer than 1,000 letters: it was cut before what does not
  print was escaped.
- A full or closed log, pipe or terminal ended a run with a traceback; what
  cannot be printed is dropped now. Ctrl-C while a C extension was loaded was a
  traceback, too.
- A workdir whose config.json or dataset.json was lost went on under another
  config or with other data, without a word.
'''


def _wrapped(text):
  return textwrap.fill(text, 80, break_on_hyphens=False,
                       break_long_words=False)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  return '\n'.join(f'| {" | ".join(line)} |' for line in (
      header, ['---'] * len(header), *rows))


def _figures(part: str, group: str, rows: Sequence[Mapping[str, Any]]) -> str:
  """What the cases of a group that passed have in common, in a few words."""

  def total(name):
    return sum(row.get(name, 0) for row in rows)

  def most(name):
    return max(row.get(name, 0) for row in rows)

  words: dict[str, Callable[[], str]] = {
      'kills': lambda: f'{total("kills")} kills{_places(total)}; the same end',
      'inputs': lambda: f'{total("inputs"):,} inputs, at most '
                        f'{most("most_seconds"):.1f} s each',
      'hostile': lambda: f'at most {most("megabytes"):,} MB more memory',
      'hosts': lambda: f'the other ended within {most("end_seconds"):.0f} s',
      'scale': lambda: '; '.join(row['seen'] for row in rows)}
  if part in words:
    return words[part]()
  if total('tried'):
    return f'{total("tried")} files damaged'
  if most('end_seconds'):
    return f'ended within {most("end_seconds"):.0f} s of the signal'
  return _SHOWN[group]


def _places(total):
  """How many of the kills were where, if the rows say so."""
  counts = ((total('training'), 'in training'),
            (total('writing'), 'saving or writing'),
            (total('before'), 'before the first step or between phases'))
  return ': ' + ', '.join(f'{n} {where}' for n, where in counts) if any(
      n for n, _ in counts) else ''


def _when(found):
  """The first and last date and commit of the cases."""
  rows = sorted(found['cases'], key=lambda row: row.get('date', ''))
  dates = [row['date'] for row in rows if row.get('date')] or [found['date']]
  # A case of another day may be of the same commit.
  commits = list(dict.fromkeys(
      row['commit'] for row in rows if row.get('commit')))
  return _range(dates) + (
      f', {"commits" if commits[1:] else "commit"} {_range(commits)}'
      if commits else '')


def _range(values):
  first, last = values[0], values[-1]
  return first if first == last else f'{first} to {last}'


def _part(part, found):
  groups: dict[str, list] = {}
  left: dict[str, list] = {}
  for row in found['cases']:
    if row['part'] == part:
      groups.setdefault(row['group'], []).append(row)
  for row in found['not_run']:
    if row['part'] == part:
      groups.setdefault(row['group'], [])
      left.setdefault(row['group'], []).append(row.get('seen', ''))
  lines = []
  for name, rows in groups.items():
    failed = [row for row in rows if not row['ok']]
    reasons = left.get(name, [])
    seen = _figures(part, name, rows) if rows else 'not run' + (
        f': {reasons[0]}' if reasons[0] else '')
    if failed:
      seen = f'FAILED: {"; ".join(row["seen"][:200] for row in failed)}'
    lines.append((name, f'{len(rows) - len(failed)} of {len(rows)}',
                  str(len(reasons)), seen.replace('|', '/')))
  title, text = _PARTS[part]
  return (f'## {title}\n\n{_wrapped(text)}\n\n' + _table(
      ('what', 'cases passed', 'not run yet', 'seen'), lines) + '\n')


def generate(found: Mapping[str, Any]) -> str:
  """The page of a campaign's JSON."""
  return '\n'.join([
      _HEAD, _wrapped(_WHERE.format(
          when=_when(found), **found)) + '\n',
      *(_part(part, found) for part in _PARTS), _FOUND])


def read() -> dict[str, Any]:
  """The committed results."""
  return json.loads(RESULTS.read_text())


if __name__ == '__main__':
  files.write_text(PAGE, generate(read()))
