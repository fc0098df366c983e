"""Random inputs: texts, JSONs, overrides, images and arrays, all damaged.

  python -m benchmarks.faults.inputs KIND FIRST COUNT SEED FOLDER

Each must end well or with one sentence (`UserError`), in 5 s of processor time
and 2 GB beside what the process holds before. Prints JSON of what did not. An
input depends only on (seed, kind, number), so a failure can be tried again.
"""

import contextlib
import copy
import io
import json
import os
import pathlib
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.faults import campaign
from rome_jax import errors

SECONDS, BYTES = 5., 2 * 2**30
_LETTERS = 1000  # of a sentence
_CHUNK = 250
_NUMBERS = {  # of inputs, 10,000 in all
    'text': 2000, 'json': 1500, 'override': 1500, 'config': 1000,
    'image': 1500, 'npz': 1000, 'arrays': 750, 'workdir': 750}
# Values that no field expects.
ATOMS = (
    None, True, False, 0, -1, 1, 2, 10**6, 2**31, 2**63, -2**64, 10**30,
    10**5000, .5, -.0, 1e308, float('nan'), float('inf'), '', 'x', '\0', '..',
    '/', '/dev/zero', '/dev/stdin', '\ud800', '\u202e', 'é' * 300, 'a' * 70_000,
    '~nobody', 's3://bucket/x', '<script>alert(1)</script>', '{}', '[', '%s',
    '$(touch x)', 'None', 'nan', '1e999', '0x10', '-0', '1_0', '\n', [], {},
    [[]], [None], {'': 0}, [['skip_connect', 0]], ['skip_connect', 0])


class Bad(Exception):
  """A promise that an input broke; the message says which."""


def _rng(seed, kind, number):
  return np.random.default_rng([seed, list(_NUMBERS).index(kind), number])


def pick(rng: np.random.Generator, values: Any) -> Any:
  """One of some values of any kind."""
  return values[int(rng.integers(len(values)))]


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
  """A few random changes: bits, lengths, copies of other parts."""
  data = bytearray(data)
  for _ in range(int(rng.integers(1, 5))):
    if not data:
      break
    at = int(rng.integers(len(data)))
    end = min(len(data), at + int(rng.integers(1, 40)))
    what = int(rng.integers(7))
    if what == 0:
      data[at] ^= 1 << int(rng.integers(8))
    elif what == 1:
      del data[at:]
    elif what == 2:
      del data[at:end]
    elif what == 3:
      data[at:at] = rng.bytes(int(rng.integers(1, 20)))
    elif what == 4:
      data[at:end] = bytes([int(pick(rng, [0, 255, 127, 128]))]) * (end - at)
    elif what == 5:
      data[at:at] = data[at:end] * int(rng.integers(1, 50))
    else:
      other = int(rng.integers(len(data)))
      data[at:at + 8] = data[other:other + 8]
  return bytes(data)


def changed(value: Any, rng: np.random.Generator) -> Any:
  """A JSON value with one part replaced, removed, renamed or nested."""
  value = copy.deepcopy(value)
  places = list(_places(value))
  if not places:
    return pick(rng, ATOMS)
  holder, key = pick(rng, places)
  what = int(rng.integers(6))
  if what <= 2:
    holder[key] = pick(rng, ATOMS)
  elif what == 3:
    del holder[key]
  elif what == 4:
    for _ in range(int(pick(rng, [1, 2, 50]))):
      holder[key] = [holder[key]]
  elif isinstance(holder, dict):
    with _any_length():
      holder[str(pick(rng, ATOMS))[:80]] = holder.pop(key)
  else:
    holder.insert(0, holder[key])
  return value


def _places(value) -> Iterator[tuple[Any, Any]]:
  keys = (list(value) if isinstance(value, dict) else
          range(len(value)) if isinstance(value, list) else ())
  for key in keys:
    yield value, key
    yield from _places(value[key])


@contextlib.contextmanager
def _any_length():
  limit = sys.get_int_max_str_digits()
  sys.set_int_max_str_digits(0)
  yield
  sys.set_int_max_str_digits(limit)


def _json(value):
  """JSON text of a value that may hold what JSON has no word for."""
  with _any_length():
    return json.dumps(value).encode(errors='surrogatepass')


# --- What is tried, kind by kind: (rng, folder) -> None, UserError or Bad


def command(main: Callable[[list[str]], int], argv: list[str]) -> None:
  """Runs a command in this process: code 0, or 2 and one sentence."""
  out, err = io.StringIO(), io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    code = main(argv)
  lines = [line for line in err.getvalue().split('\n')
           if 'warning: ' not in line and line.strip()]
  said = [line for line in lines if line.startswith('rome_jax: ')] or lines
  if code not in (0, 2) or code == 2 and len(said) != 1:
    raise Bad(f'code {code} and {len(said)} sentences: {err.getvalue()[-300:]}')
  if 'Traceback' in err.getvalue():
    raise Bad(f'a traceback: {err.getvalue()[-300:]}')
  if code == 2:
    # As printed: a UserError would mend its text itself.
    if fault := _of_sentence(said[0].removeprefix('rome_jax: ')):
      raise Bad(fault)
    raise errors.UserError(said[0])


def _of_sentence(text):
  """What is wrong with the form of a sentence; '' if nothing."""
  if not text.isprintable():  # Line breaks, codes of terminals.
    return f'letters that do not print: {text[:200]!r}'
  if len(text) > _LETTERS:
    return f'{len(text):,} letters: {text[:100]!r}...'
  return ''


_WORDS = (
    'Genotype(', 'normal=', 'reduce=', 'normal_concat=', 'reduce_concat=', '[',
    ']', '(', ')', '{', '}', ',', "'skip_connect'", "'sep_conv_3x3'", '0', '1',
    '2', 'range(2, 6)', 'range(10**9)', 'list(', 'np.int64(3)', '"', "'", '\\',
    '\n', '# x\n', 'A = ', 'B: ', 'class ', 'def ', '9' * 5000,
    '0x' + 'f' * 9000,
    '*', '**', 'lambda: ', '__import__("os").system("touch x")', '.real', '~',
    'tensor(0.3, device="cuda")', "{'normal': ", '-', '1e400', 'None', '...',
    '|nor_conv_3x3~0|+', '|', '+', '(' * 300, '[' * 2000, '\0', '\ud800',
    ' ' * 5000, '\n' * 5000, 'Genotype(x) ' * 500, 'a.' * 400)


def _text(rng, folder):
  from rome_jax.cli import describe
  from rome_jax.spaces import genotypes, published

  known = pick(rng, list(published.TEXTS.values()))[0]
  if rng.random() < .5:
    text = damaged(known.encode(), rng).decode(errors='replace')
    if rng.random() < .3:
      at = int(rng.integers(len(text) + 1))
      text = text[:at] + pick(rng, _WORDS) + text[at:]
  else:
    text = ''.join(pick(rng, _WORDS) for _ in range(int(rng.integers(1, 40))))
  if rng.random() < .4:
    path = folder / pick(rng, ['log.txt', 'genotypes.py', 'genotype.json'])
    path.write_bytes(text.encode(pick(rng, ['utf-8', 'utf-16']),
                                 errors='surrogatepass'))
    name = pick(rng, ['', ':A', ':B', ':DARTS'])
    command(describe.main, [f'{path}{name}'])
  elif rng.random() < .5:
    command(describe.main, [text, '--json'])
  else:
    genotypes.from_text(text)


def _write_hurt(path, value, rng):
  """Writes a JSON value of which one to three places are changed."""
  for _ in range(int(rng.integers(1, 4))):
    value = changed(value, rng)
  data = _json(value)
  if rng.random() < .4:
    data = damaged(data, rng)
  path.write_bytes(data)


def _genotype_json(rng, folder):
  from rome_jax.cli import describe
  from rome_jax.spaces import genotypes

  name = pick(rng, list(genotypes.PUBLISHED))
  value = {'genotype': genotypes.to_json(genotypes.load(name)),
           'space': pick(rng, ['s0', 's1', 'nasbench201', None]),
           'seed': 0, 'step': 3}
  path = folder / 'genotype.json'
  _write_hurt(path, value, rng)
  flags = pick(rng, [[], ['--json'], ['--space=s0'], ['--cells=3']])
  command(describe.main, [str(path), *flags])


def tiny() -> str:
  """The flag of the small config."""
  return f'--config={pathlib.Path(__file__).with_name("tiny.py")}'


def _override(rng, folder):
  from rome_jax.cli import run
  from rome_jax.config import fields

  flags = []
  for _ in range(int(rng.integers(1, 4))):
    name = pick(rng, list(fields.FIELDS))
    field = fields.FIELDS[name]
    choices = list(field.choices()) if field.choices else []
    value = pick(rng, [
        pick(rng, ATOMS), pick(rng, choices) if choices else 1,
        field.default, int(rng.integers(-3, 200)), float(rng.normal())])
    with _any_length():
      text = str(value).replace('\0', '0')[:100_000]
    if rng.random() < .1:
      name = damaged(name.encode(), rng).decode(errors='replace')
    flags.append(f'--config.{name}={text}')
  flags = [flag for flag in flags if '.mesh.' not in flag or (
      rng.random() < .2)]
  if rng.random() < .05:
    flags.append(damaged(b'--check=', rng).decode(errors='replace'))
  command(run.main, [tiny(), '--check', f'--workdir={folder / "run"}', *flags])


def _config(rng, folder):
  from rome_jax.cli import run
  from rome_jax.config import command_line, fields

  value = fields.to_json(command_line.load([tiny()]).config)
  path = folder / 'config.json'
  _write_hurt(path, value, rng)
  command(run.main, [f'--config={path}', '--check',
                     f'--workdir={folder / "run"}'])


_FORMATS = ('PNG', 'JPEG', 'GIF', 'BMP', 'TIFF', 'WEBP', 'PPM')


def _picture(rng, form):
  from PIL import Image

  modes = {'PNG': ['RGB', 'L', 'RGBA', 'P', 'I;16', '1'], 'TIFF': [
      'RGB', 'L', 'F', 'I;16'], 'GIF': ['P', 'L']}.get(form, ['RGB', 'L'])
  mode, size = pick(rng, modes), int(rng.integers(1, 24))
  image = Image.fromarray(rng.integers(0, 256, (size, size, 3), np.uint8))
  image = (Image.fromarray(rng.integers(0, 2**16, (size, size), np.uint16))
           if mode == 'I;16' else image.convert(mode))
  stream, options = io.BytesIO(), {}
  if form in ('JPEG', 'PNG', 'WEBP', 'TIFF') and rng.random() < .3:
    exif = Image.Exif()
    exif[0x112] = int(rng.integers(0, 12))
    options['exif'] = exif
  image.save(stream, form, **options)
  return stream.getvalue()


def _image(rng, folder):
  from rome_jax import data
  from rome_jax.data import splits

  form = pick(rng, _FORMATS)
  content = damaged(_picture(rng, form), rng)
  suffix = {'JPEG': 'jpg', 'TIFF': 'tif'}.get(form, form.lower())
  if rng.random() < .7:
    path = folder / f'x.{suffix}'
    path.write_bytes(content)
    pixels = splits.decode(str(path), pick(rng, [1, 3]), str(path))
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
      raise Bad(f'decoded to {pixels.dtype}{pixels.shape}')
    return
  for name in 'ab':
    (folder / name).mkdir()
    for i in range(3):
      (folder / name / f'{i}.{suffix}').write_bytes(
          content if (name, i) == ('b', 1) else _picture(rng, form))
  data.load('folder', str(folder), image_size=pick(rng, [0, 8]),
            skip_unreadable=bool(rng.random() < .5))


def _npz(rng, folder):
  from rome_jax.cli import run

  n = int(rng.integers(1, 40))
  arrays = {
      'x_train': rng.integers(0, 256, (n, 4, 4, 3), np.uint8),
      'y_train': rng.integers(0, 3, n), 'x_test': rng.integers(
          0, 256, (6, 4, 4, 3), np.uint8), 'y_test': np.arange(6) % 3}
  if rng.random() < .5:
    name = pick(rng, list(arrays))
    arrays[name] = pick(rng, [
        arrays[name][:0], arrays[name].astype(pick(rng, [
            'f4', 'i8', 'u8', 'c8', 'bool', 'S3', 'U2', 'M8[s]', 'f2'])),
        arrays[name][..., None], np.array([{}, 1], object), np.array(3),
        np.zeros(n, [('a', 'i4'), ('b', 'f8')]),
        arrays[name].astype('i8') * 2**40, np.zeros((2, 2**20), np.uint8)])
  stream = io.BytesIO()
  save = pick(rng, [np.savez, np.savez_compressed])
  save(stream, **arrays)
  content = stream.getvalue()
  if rng.random() < .8:
    content = damaged(content, rng)
    if rng.random() < .5:
      content = content.replace(b"'shape': (", pick(rng, [
          b"'shape': (9999999", b"'shape': (-", b"'shape': (((", b'os.x(']), 1)
  path = folder / 'x.npz'
  path.write_bytes(content)
  command(run.main, [tiny(), '--check', '--config.dataset=npz',
                     f'--config.data_dir={path}',
                     f'--workdir={folder / "run"}'])


def _arrays(rng, folder):
  """Files of CIFAR, MNIST and SVHN."""
  from rome_jax import data

  kind = pick(rng, ['cifar10', 'python', 'mnist', 'svhn'])
  images = rng.integers(0, 256, (4, 3072), np.uint8)
  labels = rng.integers(0, 10, 4).astype(np.uint8)
  written = {}
  if kind == 'cifar10':
    body = np.concatenate([labels[:, None], images], 1).tobytes()
    written = {f'data_batch_{i}.bin': body for i in range(1, 6)}
    written['test_batch.bin'] = body
  elif kind == 'python':
    body = pickle.dumps({b'data': images, b'labels': labels.tolist()},
                        protocol=int(rng.integers(0, 5)))
    written = {f'data_batch_{i}': body for i in range(1, 6)}
    written['test_batch'] = body
  elif kind == 'mnist':
    for split in 'train', 't10k':
      written[f'{split}-images-idx3-ubyte'] = bytes.fromhex(
          '00000803' '00000004' '0000001c' '0000001c') + rng.bytes(4 * 784)
      written[f'{split}-labels-idx1-ubyte'] = bytes.fromhex(
          '00000801' '00000004') + labels.tobytes()
  else:
    import scipy.io

    for split in 'train', 'test':
      stream = io.BytesIO()
      scipy.io.savemat(stream, {
          'X': images.T.reshape(32, 32, 3, 4), 'y': labels[:, None] + 1},
          do_compression=bool(rng.random() < .5))
      written[f'{split}_32x32.mat'] = stream.getvalue()
  hurt = pick(rng, list(written))
  written[hurt] = damaged(written[hurt], rng)
  for name, body in written.items():
    (folder / name).write_bytes(body)
  data.load('cifar10' if kind == 'python' else kind, str(folder))


def _workdir(rng, folder):
  """A run's own files, as a disk or an editor may have left them."""
  from rome_jax.cli import compare, sweep
  from rome_jax.cli import run as run_lib
  from rome_jax.config import comparison
  from rome_jax.show import report
  from rome_jax.train import notes

  made = _a_workdir()
  name = pick(rng, list(made))
  for other, value in made.items():
    content = value if isinstance(value, bytes) else _json(value)
    if other == name:
      if isinstance(value, bytes) or rng.random() < .3:
        content = damaged(content, rng)
      else:
        content = _json(changed(changed(value, rng), rng))
    (folder / other).parent.mkdir(exist_ok=True)
    (folder / other).write_bytes(content)
  what = int(rng.integers(4))
  if what == 0:
    report.write_report(folder)
  elif what == 1:
    found = comparison.Comparison('x', {'a': [tiny()]}, seeds=(0,))
    row = compare.collect(found, [sweep.Run(
        'a', {'arm': 'a', 'seed': 0}, str(folder), ())])
    compare.write(folder / 'page', row)
  elif what == 2:
    notes.retraining(folder)
  else:  # The same command again; what is done is not done again.
    (folder / 'report.html').unlink(missing_ok=True)
    command(run_lib.main, [tiny(), f'--workdir={folder}', _STEPS])


_workdirs: dict[str, Any] = {}
_STEPS = '--config.search.max_steps=3'


def _a_workdir():
  """{file: its JSON value, or bytes} of a small finished run."""
  if not _workdirs:
    from rome_jax.cli import run
    from rome_jax.spaces import genotypes, published

    with tempfile.TemporaryDirectory() as name:
      root = pathlib.Path(name, 'run')
      with contextlib.redirect_stdout(io.StringIO()), (
          contextlib.redirect_stderr(io.StringIO())):
        code = run.main([tiny(), f'--workdir={root}', _STEPS])
      if code:
        raise RuntimeError('the run to damage did not finish')
      for file in ('config', 'genotype', 'dataset', 'result', 'phases/search'):
        _workdirs[f'{file}.json'] = json.loads(
            (root / f'{file}.json').read_text())
    text = genotypes.to_text(genotypes.from_text(
        published.TEXTS['DARTS_V2'][0]))
    _workdirs['phases/derived-0.json'] = {
        'name': 'derived-0', 'kind': 'derived', 'seed': 0, 'genotype': text,
        'test_accuracy': .5, 'test_loss': 1., 'params': 3, 'macs': 4,
        'train_seconds': 1., 'steps': 9, 'images_per_second': 3.}
    _workdirs['split.json'] = {'splits': [], 'leaves': [
        {'name': 'search/leaf-01', 'kept': {'normal': [['skip_connect']]},
         'genotype': text, 'score': .5, 'valid_accuracy': .5, 'chosen': True}]}
    _workdirs['metrics.jsonl'] = b''.join(_json({
        'phase': 'search', 'step': i, 'time': 1., 'epoch': .1 * i,
        'train_loss': 1., 'valid_accuracy': .5, 'table_accuracy': .9,
        'parameterless_normal': 3, 'seconds': 2.}) + b'\n' for i in range(9))
  return _workdirs


KINDS = {
    'text': _text, 'json': _genotype_json, 'override': _override,
    'config': _config, 'image': _image, 'npz': _npz, 'arrays': _arrays,
    'workdir': _workdir}


# --- Trying them


class _LateError(BaseException):
  pass


def try_one(kind: str, number: int, seed: int, folder: pathlib.Path) -> str:
  """Tries one input; '' or what it broke.

  Args:
    kind: of KINDS.
    number: which.
    seed: of the campaign.
    folder: an empty one, for its files.
  """
  began = time.process_time()
  try:
    KINDS[kind](_rng(seed, kind, number), folder)
    fault = ''
  except errors.UserError as error:
    fault = _of_sentence(str(error).removeprefix('rome_jax: '))
  except _LateError:
    fault = f'more than {SECONDS:.0f} s: {_where_late()}'
  except Bad as error:
    fault = str(error)
  except MemoryError as error:
    fault = f'MemoryError: {error} {place(error)}'
  except BaseException as error:
    fault = f'{type(error).__name__}: {str(error)[:200]} {place(error)}'
  took = time.process_time() - began
  if not fault and took > SECONDS:
    fault = f'took {took:.1f} s'
  return fault


def place(error):
  """The last places in the library that an error passed."""
  frames = traceback.extract_tb(error.__traceback__)
  own = [frame for frame in frames if 'rome_jax/' in frame.filename]
  return ' < '.join(
      f'{pathlib.Path(f.filename).name}:{f.lineno}' for f in own[-3:][::-1])


_late_at: list[str] = []


def _where_late():
  return _late_at[-1] if _late_at else ''


def _on_time(number, frame):
  frames = [f for f in traceback.extract_stack(frame)
            if 'rome_jax/' in f.filename]
  _late_at.append(' < '.join(
      f'{pathlib.Path(f.filename).name}:{f.lineno}' for f in frames[-3:][::-1]))
  raise _LateError


def _numbers(kind, first, count, seed, folder):
  """The worker: tries some numbers and prints {number: fault}."""
  load_everything()
  if kind == 'workdir':
    _a_workdir()
  with limited_memory():
    found = _try_all(kind, range(first, first + count), seed, folder)
  print(json.dumps(found), file=sys.__stdout__, flush=True)
  os._exit(0)


def _try_all(kind, numbers, seed, folder):
  signal.signal(signal.SIGPROF, _on_time)
  faults, most = {}, 0.
  for number in numbers:
    print(f'now {number}', file=sys.__stderr__, flush=True)
    place = _fresh(folder)
    signal.setitimer(signal.ITIMER_PROF, 1.5 * SECONDS)
    began = time.process_time()
    fault = try_one(kind, number, seed, place)
    most = max(most, time.process_time() - began)
    signal.setitimer(signal.ITIMER_PROF, 0)
    if fault:
      faults[number] = fault
    outside = [path for path in pathlib.Path.cwd().iterdir()]
    if outside:
      faults[number] = f'wrote {outside[0]}'
      outside[0].unlink()
  return {'faults': faults, 'most': most}


def load_everything() -> None:
  """Imports what is no input's fault to be large."""
  import jax  # noqa: F401

  from rome_jax.cli import compare, describe, run, trained  # noqa: F401
  from rome_jax.show import report  # noqa: F401

  jax.devices()


@contextlib.contextmanager
def limited_memory() -> Iterator[None]:
  """Allows this process BYTES more than it has now, for the body."""
  before = resource.getrlimit(resource.RLIMIT_AS)
  pages = int(pathlib.Path('/proc/self/statm').read_text().split()[0])
  resource.setrlimit(resource.RLIMIT_AS, (
      pages * resource.getpagesize() + BYTES, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_AS, before)


class Clock:
  """Processor time since it was made."""

  def __init__(self):
    self._began = time.process_time()

  def seconds(self) -> float:
    return round(time.process_time() - self._began, 2)


def _fresh(folder):
  return pathlib.Path(tempfile.mkdtemp(dir=folder))


def _chunk(context, kind, first, count):
  with tempfile.TemporaryDirectory() as name:
    here, work = pathlib.Path(name, 'here'), pathlib.Path(name, 'work')
    here.mkdir()
    work.mkdir()
    root = pathlib.Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.faults.inputs', kind, str(first),
         str(count), str(context.seed), str(work)], cwd=here, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=os.environ | {'PYTHONPATH': str(root), 'JAX_PLATFORMS': 'cpu'})
    try:
      out, err = process.communicate(timeout=60 + 5 * count)
    except subprocess.TimeoutExpired:
      process.kill()
      _, err = process.communicate()
      return campaign.Seen(False, f'hangs at {_now(err)}')
  if process.returncode:
    return campaign.Seen(False, f'{_now(err)}: the process ended with '
                         f'{process.returncode}: {err[-300:]}')
  found = json.loads(out.strip().splitlines()[-1])
  faults = found['faults']
  text = '; '.join(f'{n}: {fault}' for n, fault in list(faults.items())[:4])
  return campaign.Seen(
      not faults, text or f'{count} inputs, at most {found["most"]:.1f} s each',
      {'inputs': count, 'failed': len(faults), 'most_seconds': round(
          found['most'], 2), 'faults': faults})


def _now(err):
  return next((line for line in reversed(err.splitlines())
               if line.startswith('now ')), 'its start')


def cases(context: campaign.Context) -> Iterator[campaign.Case]:
  """Chunks of every kind; the short form tries 3 of each in this process."""
  for kind, number in _NUMBERS.items():
    if context.short and kind == 'workdir':
      continue  # Needs a run.
    if context.short:
      yield campaign.Case(kind, kind, lambda kind=kind: _few(context, kind))
      continue
    for first in range(0, number, _CHUNK):
      count = min(_CHUNK, number - first)
      yield campaign.Case(
          f'{kind}-{first}', kind,
          lambda kind=kind, first=first, count=count: _chunk(
              context, kind, first, count))


def _few(context, kind, count=3):
  faults = []
  for number in range(count):
    with tempfile.TemporaryDirectory() as name, limited_memory():
      fault = try_one(kind, number, context.seed, pathlib.Path(name))
    faults += [f'{number}: {fault}'] if fault else []
  return campaign.Seen(not faults, '; '.join(faults) or f'{count} inputs', {
      'inputs': count, 'failed': len(faults)})


if __name__ == '__main__':
  what, start, how_many, with_seed, where = sys.argv[1:]
  _numbers(what, int(start), int(how_many), int(with_seed),
           pathlib.Path(where))
