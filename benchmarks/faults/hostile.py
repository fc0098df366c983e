"""Files made to do harm: refused in one sentence, or shown as what they are.

  python -m benchmarks.faults.hostile CASE

Each case runs in a process of its own with 2 GB beside what it holds before;
the short form, in this one. `CANARY` is what any code in a file would leave.
"""

import contextlib
import html.parser
import io
import json
import os
import pathlib
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.faults import campaign, inputs
from rome_jax import data, errors, files

CANARY = 'CANARY'
_SCRIPT = '<script>alert(1)</script><img src=x onerror=alert(1)>'
_BOMB = 8 * 2**30


def refused(call: Callable[[], object], *words: str) -> str:
  """The sentence of the UserError that a call must raise, in 5 s."""
  clock = inputs.Clock()
  try:
    call()
  except errors.UserError as error:
    missing = [word for word in words if word not in str(error)]
    if missing:
      raise inputs.Bad(f'{missing} not in {error}') from error
    if clock.seconds() > inputs.SECONDS:
      raise inputs.Bad(f'took {clock.seconds()} s: {error}') from error
    return str(error)
  raise inputs.Bad('accepted')


def _check(flags):
  from rome_jax.cli import run

  return lambda: inputs.command(run.main, [inputs.tiny(), '--check', *flags])


def _npz_flags(path):
  return ['--config.dataset=npz', f'--config.data_dir={path}']


# --- Bombs


def _zeros(compressor, count):
  """A deflate stream of so many zeros; made of equal parts, so at once."""
  head = compressor.compress(b'') + compressor.flush(zlib.Z_FULL_FLUSH)
  part = compressor.compress(bytes(2**24)) + compressor.flush(zlib.Z_FULL_FLUSH)
  return head + part * (count // 2**24) + compressor.flush()


def _npy_header(shape, dtype='|u1'):
  stream = io.BytesIO()
  np.lib.format.write_array_header_1_0(
      stream, {'descr': dtype, 'fortran_order': False, 'shape': shape})
  return stream.getvalue()


def zip_bomb(folder):
  """An .npz of a few MB that unpacks to 8 GB, and says so."""
  path = folder / 'x.npz'
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    for name in ('x_train', 'x_test'):
      with file.open(f'{name}.npy', 'w', force_zip64=True) as stream:
        stream.write(_npy_header((_BOMB // 2**8, 16, 16)))
        for _ in range(_BOMB // 2**28 if name == 'x_train' else 1):
          stream.write(bytes(2**28))
    for name in ('y_train', 'y_test'):
      with file.open(f'{name}.npy', 'w') as stream:
        stream.write(_npy_header((2,)) + b'\0\1')
  return refused(_check(_npz_flags(path)), str(path))


def lying_npz(folder):
  """An .npz whose header promises 8 GB and more than there is memory."""
  said = []
  for size in (_BOMB, 2**50, 2**62):
    path = folder / 'x.npz'
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
      file.writestr('images.npy', _npy_header((size // 64, 8, 8)) + bytes(64))
      file.writestr('labels.npy', _npy_header((2,)) + b'\0\1')
    said.append(refused(_check(_npz_flags(path)), str(path)))
  return said[0]


def gzip_bomb(folder):
  """MNIST's files of a few MB that unpack to 8 GB."""
  compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
  body = (b'\x1f\x8b\x08\0\0\0\0\0\0\xff' + _zeros(compressor, _BOMB)
          + struct.pack('<II', 0, 0))
  said = []
  for header in (b'', bytes.fromhex('00000803' '7fffffff' '0000001c'
                                    '0000001c')):
    start = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = (start.compress(header) + start.flush(zlib.Z_FULL_FLUSH)
             if header else b'')
    for split in 'train', 't10k':
      (folder / f'{split}-images-idx3-ubyte.gz').write_bytes(
          body[:10] + first + body[10:])
      (folder / f'{split}-labels-idx1-ubyte').write_bytes(
          bytes.fromhex('00000801' '00000002') + b'\0\1')
    said.append(refused(lambda: data.load('mnist', str(folder))))
  return said[0]


def _png(width, height, rows):
  def chunk(kind, body):
    return (struct.pack('>I', len(body)) + kind + body
            + struct.pack('>I', zlib.crc32(kind + body)))

  return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack(
      '>IIBBBBB', width, height, 8, 0, 0, 0, 0)) + chunk(
          b'IDAT', rows) + chunk(b'IEND', b'')


def image_bomb(folder):
  """A PNG of 60,000 x 60,000 pixels in a folder of images."""
  _two_classes(folder)
  (folder / 'a' / '0.png').write_bytes(
      _png(60_000, 60_000, _zeros(zlib.compressobj(9), 60_000 * 60_001)))
  return refused(_check(['--config.dataset=folder', '--config.image_size=8',
                         f'--config.data_dir={folder}']), '0.png')


def text_bomb(folder):
  """A PNG with a text chunk of 8 GB."""
  body = b'x\0\0' + _zeros(zlib.compressobj(9), _BOMB)
  picture = _png(8, 8, zlib.compress(bytes(8 * 9)))
  at = picture.index(b'IDAT') - 4
  chunk = struct.pack('>I', len(body)) + b'zTXt' + body + struct.pack(
      '>I', zlib.crc32(b'zTXt' + body))
  _two_classes(folder)
  (folder / 'a' / '0.png').write_bytes(picture[:at] + chunk + picture[at:])
  try:
    data.load('folder', str(folder))
  except errors.UserError as error:
    return str(error)
  return 'the picture is read without its text'


def pickle_bombs(folder):
  """CIFAR files: a list that is 2**40 lists, and a huge index."""
  nested = pickle.dumps(0)[:-1]
  nested = b'\x80\x02]q\0(K\1K\2e' + b''.join(
      b'0]r' + struct.pack('<I', i) + b'(' + b'h\0' * 10 + b'e'
      if i == 1 else b'0]r' + struct.pack('<I', i) + b'(' + (
          b'j' + struct.pack('<I', i - 1)) * 10 + b'e'
      for i in range(1, 40)) + b'.'
  index = b'\x80\x02}r\xff\xff\xff\x7f.'
  array = b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'.'
  deep = b'\x80\x02' + b']' * 10**6 + b'a' * (10**6 - 1) + b'.'
  said = []
  for body in (nested, index, array, deep):
    _cifar(folder, body)
    said.append(refused(lambda: data.load('cifar10', str(folder)),
                        'data_batch_1'))
  return said[0]


def _cifar(folder, body):
  for name in (*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch'):
    (folder / name).write_bytes(body)


def long_texts(folder):
  """Genotype texts of megabytes, made to be slow."""
  from rome_jax.spaces import genotypes

  said = []
  for name, text in (
      ('a', '\n' * 2**21), ('b', 'Genotype(x) ' * 2**17),
      ('c', 'A = Genotype(x)\n' + '\n \t' * 2**19), ('d', 'def ' * 2**19),
      ('e', '(' * 2**21), ('f', 'Genotype(' + '(' * 2**20),
      ('g', '{"a":' * 2**18), ('h', 'Genotype(' + '"\\' * 2**20),
      ('i', 'a.' * 2**20 + 'Genotype(x)'), ('j', 'Genotype' + ' ' * 2**21)):
    path = folder / f'{name}.txt'
    path.write_text(text)
    for label in '', ':A':
      said.append(refused(lambda p=path, n=label: genotypes.read(f'{p}{n}')))
  return said[0]


def endless_files(folder):
  """Devices and pipes in place of a genotype, a config and images."""
  from rome_jax.cli import describe
  from rome_jax.spaces import genotypes

  said = refused(lambda: genotypes.read('/dev/zero'))
  refused(lambda: inputs.command(describe.main, ['/dev/zero']))
  refused(_check(['--config.genotype=/dev/zero']))
  refused(_check(_npz_flags('/dev/zero')))
  _two_classes(folder)
  for make in (os.mkfifo, lambda path: os.symlink('/dev/zero', path)):
    make(folder / 'a' / 'x.png')
    refused(_check(['--config.dataset=folder', '--config.image_size=8',
                    f'--config.data_dir={folder}']), 'x.png')
    (folder / 'a' / 'x.png').unlink()
  return said


# --- Code


class _Runs:
  def __reduce__(self):
    return os.system, (f'touch {CANARY}',)


def pickled_code(folder):
  """Pickles that call os.system, wherever arrays are read."""
  body = pickle.dumps({b'data': _Runs(), b'labels': [0]})
  _cifar(folder, body)
  said = refused(lambda: data.load('cifar10', str(folder)), 'not allowed')
  np.savez(folder / 'x.npz', x_train=np.array([_Runs()], object),
           y_train=np.array([0]))
  refused(_check(_npz_flags(folder / 'x.npz')))
  (folder / 'y.npz').write_bytes(body)
  refused(_check(_npz_flags(folder / 'y.npz')))
  np.save(folder / 'z.npy', np.array([_Runs()], object))
  refused(_check(_npz_flags(folder / 'z.npy')))
  return said


_CODE = f'__import__("os").system("touch {CANARY}")'


def code_in_genotypes(folder):
  """Calls where a genotype has lists."""
  from rome_jax.spaces import genotypes

  said = []
  for text in (
      f'Genotype(normal={_CODE}, normal_concat=[2], reduce=[], '
      'reduce_concat=[2])',
      f'{{"normal": {_CODE}}}', f'Genotype(*{_CODE})', f'Genotype(**{_CODE})',
      f'Genotype(normal=[[({_CODE}, 0)]], normal_concat=[1])',
      f'Genotype(normal=list({_CODE}))', f'Genotype(normal=range({_CODE}))',
      f'Genotype(normal=(lambda: {_CODE})())',
      f'Genotype(normal=f"{{{_CODE}}}")',
      f'Genotype(normal=[x for x in {_CODE}])'):
    said.append(refused(lambda t=text: genotypes.from_text(t)))
    for name in 'genotypes.py', 'genotype.json', 'log.txt':
      (folder / name).write_text(f'{_CODE}\nA = {text}')
      refused(lambda n=name: genotypes.read(folder / n))
      refused(lambda n=name: genotypes.read(f'{folder / n}:A'))
  return said[0]


def code_in_configs(folder):
  """Calls and templates in the values of overrides and of a config.json."""
  from rome_jax.config import command_line, fields

  said = ''
  for name in fields.FIELDS:
    for value in (_CODE, f'$(touch {CANARY})', '{0.__class__}', '%(x)s'):
      try:
        found = command_line.load([inputs.tiny(), f'--config.{name}={value}'])
      except errors.UserError as error:
        said = str(error)
        continue
      if fields.flatten(fields.to_json(found.config))[name] != value:
        raise inputs.Bad(f'config.{name}={value} was changed')
  path = folder / 'config.json'
  path.write_text(json.dumps({'method': _CODE, '__class__': {}, 'search': {
      '__init__': _CODE}}))
  refused(_check([f'--config={path}']))
  (folder / 'config.yaml').write_text(
      f'!!python/object/apply:os.system [{_CODE}]')
  refused(_check([f'--config={folder / "config.yaml"}']))
  return said


def postscript(folder):
  """A PostScript file that is called .png: no Ghostscript is started."""
  _two_classes(folder)
  bin_folder = folder.parent / 'bin'
  bin_folder.mkdir()
  (bin_folder / 'gs').write_text(f'#!/bin/sh\ntouch {CANARY}\nexit 1\n')
  (bin_folder / 'gs').chmod(0o755)
  (folder / 'a' / '0.png').write_bytes(
      b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n'
      b'%%EndProlog\nshowpage\n%%EOF\n')
  before = os.environ['PATH']
  os.environ['PATH'] = f'{bin_folder}:{before}'
  try:
    return refused(lambda: data.load('folder', str(folder)), '0.png')
  finally:
    os.environ['PATH'] = before


# --- Places


def _two_classes(folder, names='ab'):
  from PIL import Image

  rng = np.random.default_rng(0)
  for name in names:
    (folder / name).mkdir()
    for i in range(5):
      Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(
          folder / name / f'{i}.png')


def links_out_of_data(folder):
  """Links to files that are no images: not shown, not copied."""
  secret = folder / 'secret'
  secret.write_text('root:x:0:0')
  root = folder / 'data'
  root.mkdir()
  _two_classes(root)
  os.symlink(secret, root / 'a' / 'x.png')
  said = refused(lambda: data.load('folder', str(root)), 'x.png')
  if 'root:x' in said:
    raise inputs.Bad(f'the secret is shown: {said}')
  (root / 'a' / 'x.png').unlink()
  os.symlink(root, root / 'a' / 'loop')
  data.load('folder', str(root))
  os.symlink(folder / 'nothing', root / 'a' / 'y.png')
  refused(lambda: data.load('folder', str(root)), 'y.png')
  return said


def links_in_a_workdir(folder):
  """A workdir whose files and checkpoints are links to files elsewhere."""
  from rome_jax.cli import run
  from rome_jax.train import checkpoint, metrics

  outside, workdir = folder / 'outside', folder / 'run'
  outside.mkdir()
  workdir.mkdir()
  (outside / 'precious').write_text('kept')
  with metrics.MetricsWriter(workdir) as writer:
    for name in ('.lock', 'metrics.jsonl'):
      os.symlink(outside / 'precious', workdir / name)
    refused(lambda: writer.write('search', 1, {'x': 1.}), 'metrics.jsonl')
  said = refused(lambda: inputs.command(
      run.main, [inputs.tiny(), f'--workdir={workdir}']), '.lock')
  for name in ('result.json', 'genotype.json'):
    os.symlink(outside / 'precious', workdir / name)
    files.write_text(workdir / name, 'ours')
  checkpoints = workdir / 'checkpoints'
  checkpoints.mkdir()
  for name in ('00000001', '00000002.partial'):
    os.symlink(outside, checkpoints / name)
  with checkpoint.Checkpoints(checkpoints, 1) as store:
    for step in (3, 4):
      store.save(step, {'x': np.zeros(3)})
      try:
        store.wait()
      except errors.UserError as error:
        said = str(error)
  if (outside / 'precious').read_text() != 'kept' or (
      len(list(outside.iterdir())) != 1):
    raise inputs.Bad('a file outside the workdir was changed')
  return said


def names_out_of_a_workdir(folder):
  """Labels, names and phases with `..` and `/`."""
  from rome_jax.cli import compare, sweep
  from rome_jax.cli import flags as flags_lib
  from rome_jax.config import comparison

  found = []
  for label in ('..', '.', '../../x', '/etc/x', 'a/../../b', '\0', '~', '-'):
    try:
      found += compare.plan(
          comparison.Comparison('x', {label: [inputs.tiny()]}, (0,)),
          str(folder), [])
    except errors.UserError:
      continue
  for value in ('..', '../../x', '/x'):
    args, flags = flags_lib.sweep().parse_known_args([
        f'--workdir={folder}', f'--vary=data_dir={value}', inputs.tiny()])
    found += sweep.plan(args, flags)
  for run in found:
    inner = pathlib.Path(os.path.normpath(run.workdir)).relative_to(folder)
    if len(inner.parts) < 1 or '..' in inner.parts:
      raise inputs.Bad(f'{run.workdir} leaves its folder')
  return f'{len(found)} folders inside'


# --- Pages


class _Tags(html.parser.HTMLParser):
  """Collects what a browser might run."""

  def __init__(self):
    super().__init__()
    self.bad = []

  def handle_starttag(self, tag, attrs):
    if tag in ('script', 'iframe', 'object', 'embed', 'img', 'form', 'meta',
               'base', 'link', 'foreignobject') and not (
                   tag == 'meta' and dict(attrs).keys() <= {
                       'charset', 'name', 'content'}):
      if tag == 'img' and dict(attrs).get('src', '').startswith('data:'):
        return
      self.bad.append(tag)
    for name, value in attrs:
      if name.startswith('on') or 'javascript:' in (value or '').lower():
        self.bad.append(f'{tag} {name}')


def _harmless(path):
  reader = _Tags()
  text = path.read_text()
  reader.feed(text)
  if reader.bad:
    raise inputs.Bad(f'{path.name} has {reader.bad}')
  return 'alert(1)' in text


def hostile_names_in_reports(folder):
  """Scripts in every text of a run's files, then its page and a comparison's.
  """
  from rome_jax.cli import compare, sweep
  from rome_jax.config import comparison
  from rome_jax.show import curves, report
  from rome_jax.spaces import genotypes

  def bad(value):
    if isinstance(value, dict):
      more = {} if all(isinstance(item, dict) for item in value.values()) else {
          _SCRIPT: _SCRIPT}
      return {key: bad(item) for key, item in value.items()} | more
    if isinstance(value, list):
      return [bad(item) for item in value]
    return f'{value}{_SCRIPT}' if isinstance(value, str) else value

  run = folder / f'run{_SCRIPT.replace("/", "|")}'
  run.mkdir()
  result = {
      'method': 'm', 'space': 's', 'dataset': 'd', 'seed': 0, 'search': {
          'phase': 'search', 'seconds': 1., 'steps': 2, 'leaf': '',
          'parameterless': {'normal': 1}, 'images': 5},
      'genotype': 'g', 'params': 1, 'macs': 2, 'device': 'x', 'created': 'y',
      'versions': {'jax': '1'}, 'evaluations': [
          {'name': 'n', 'kind': 'derived', 'seed': 0, 'test_accuracy': .5,
           'params': 1, 'macs': 2, 'train_seconds': 1.}],
      'summary': {'derived': {'mean': .5, 'n': 1, 'std': None, 'best': .5}},
      'table': {'title': 't', 'string': 's', 'table': 'x', 'num_cells': 4,
                'datasets': {'cifar10': {'test': 1., 'rank': 2, 'regret': .1,
                                       'best_test': 2.}}}}
  result['search']['phase'] = 'search'
  record = genotypes.Genotype(
      (((f'op{_SCRIPT}', 0),),), (1,))
  genotypes.save(run / 'genotype.json', record, space=_SCRIPT, seed=0, step=1)
  files.write_json(run / 'config.json', bad({'method': 'm', 'dataset': 'd'}))
  files.write_json(run / 'split.json', {'splits': [], 'leaves': [bad(
      {'name': 'l', 'genotype': 'g', 'score': .5, 'valid_accuracy': .5})]})
  rows = [bad({'phase': 'search', 'step': i, 'epoch': .5 * i, 'train_loss': 1.,
               'x': 2.}) for i in (1, 2)]
  (run / 'metrics.jsonl').write_text(
      ''.join(json.dumps(row) + '\n' for row in rows))
  curves.save_run(run, rows, record)
  shown = 0
  for value in (result, bad(result)):
    files.write_json(run / 'result.json', value)
    report.write_report(run)
    shown += _harmless(run / 'report.html')
  label = f'arm{_SCRIPT}'
  found = comparison.Comparison(
      _SCRIPT, {label: [inputs.tiny()]}, (0,), against=_SCRIPT)
  del result['table']  # Of no benchmark.
  files.write_json(run / 'result.json', result)
  compare.write(folder / 'page', compare.collect(found, [sweep.Run(
      _SCRIPT, {'arm': label, 'seed': 0}, str(run), ())]))
  shown += _harmless(folder / 'page' / 'compare.html')
  for path in run.glob('*.svg'):
    _harmless(path)
  if shown < 3:
    raise inputs.Bad('the names are not on the pages')
  return 'the names are shown as text'


def terminal_codes(folder):
  """Names that would clear a terminal or turn its text around."""
  from rome_jax.cli import run

  code = '\x1b[2J\x1b]0;x\x07\u202e'
  _two_classes(folder, ('a', f'b{code}'))
  (folder / 'a' / f'{code}.txt').write_text('')
  (folder / 'a' / f'x.{code}').write_text('')
  out = io.StringIO()
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
    flags = [inputs.tiny(), '--check', '--config.dataset=folder',
             f'--config.data_dir={folder}', '--config.search.batch_size=2']
    if run.main(flags) or 'not read: files' not in out.getvalue():
      raise inputs.Bad(f'not accepted: {out.getvalue()!r}')
    (folder / f'b{code}' / '0.png').write_text('no image')
    run.main(flags)
  if '\x1b' in out.getvalue() or '\u202e' in out.getvalue():
    raise inputs.Bad(f'codes reach the terminal: {out.getvalue()!r}')
  return out.getvalue().splitlines()[-1]


CASES = {function.__name__: function for function in (
    zip_bomb, lying_npz, gzip_bomb, image_bomb, text_bomb, pickle_bombs,
    long_texts, endless_files, pickled_code, code_in_genotypes,
    code_in_configs, postscript, links_out_of_data, links_in_a_workdir,
    names_out_of_a_workdir, hostile_names_in_reports, terminal_codes)}
# Those that take more than a second or much memory to prepare.
_LONG = {'zip_bomb', 'gzip_bomb', 'image_bomb', 'text_bomb', 'pickle_bombs',
         'long_texts'}


def _group(name):
  return ('bombs' if 'bomb' in name or name in (
      'lying_npz', 'long_texts', 'endless_files') else
          'code' if 'code' in name or name == 'postscript' else
          'links and names' if 'out_of' in name or 'links' in name else
          'text on pages and terminals')


def _here(name):
  """Runs a case in this process, in an empty folder."""
  with tempfile.TemporaryDirectory() as folder:
    before = os.getcwd()
    root = pathlib.Path(folder)
    (root / 'here').mkdir()
    (root / 'work').mkdir()
    os.chdir(root / 'here')
    try:
      said = CASES[name](root / 'work')
      left = [path.name for path in (root / 'here').iterdir()]
    finally:
      os.chdir(before)
  if left:
    raise inputs.Bad(f'{left} were written')
  return said


def _apart(name):
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
      [sys.executable, '-m', 'benchmarks.faults.hostile', name], text=True,
      capture_output=True, timeout=300, cwd=root,
      env=os.environ | {'JAX_PLATFORMS': 'cpu'})
  lines = done.stdout.splitlines()
  if done.returncode or not lines:
    return campaign.Seen(False, f'the process ended with {done.returncode}: '
                         f'{done.stderr[-400:]}')
  return campaign.Seen(**json.loads(lines[-1]))


def _seen(name):
  took, before = inputs.Clock(), _most_memory()
  try:
    with inputs.limited_memory():
      said = _here(name)
  except MemoryError as error:
    return campaign.Seen(False, f'MemoryError: {error}')
  grown = _most_memory() - before
  # More would not have ended but for the limit.
  return campaign.Seen(grown < .9 * inputs.BYTES, said, {
      'processor_seconds': took.seconds(), 'megabytes': grown // 10**6})


def _most_memory():
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cases(context: campaign.Context) -> Iterator[campaign.Case]:
  """A process each; the short form, what is cheap, in this one."""
  for name in CASES:
    if not context.short:
      yield campaign.Case(name, _group(name), lambda n=name: _apart(n))
    elif name not in _LONG:
      yield campaign.Case(name, _group(name), lambda n=name: _seen(n))


def _main(name):
  inputs.load_everything()
  try:
    seen = _seen(name)
  except BaseException as error:
    seen = campaign.Seen(
        False, f'{type(error).__name__}: {error} {inputs.place(error)}')
  print(json.dumps(seen._asdict()), file=sys.__stdout__, flush=True)
  os._exit(0)


if __name__ == '__main__':
  _main(sys.argv[1])
