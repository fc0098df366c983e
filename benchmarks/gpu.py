"""The search step on one GPU, beside PyTorch on the same card.

  python -m benchmarks.gpu --out=gpu.json [--rows=NAME,...] [--no-torch]

One process, one row after another. The file is written again after every row,
so a run that is cut off loses one row.

  compile_seconds   tracing and compiling
  temp_bytes        `memory_analysis().temp_size_in_bytes`
  step_seconds      median of the repeats of the complete step: K samples for
                    alpha and beta, then K for theta, both updates
  sample_seconds    step_seconds / 2K

PyTorch rows run the same complete step: K architectures with gradients of the
gates, K with gradients of the weights, Adam and clipped SGD. `eager` executes
the sampled operations from Python, as GDAS' and ROME's authors do.
`compiled` is `torch.compile` of ONE fixed architecture: a bound, not a search,
since every new architecture is another program there. `--profile` adds where
the time of a row goes, by kernel.

`kernels` names the implementation of depthwise convolution and pooling
(`rome_jax.engine.kernels`); `graph` asks XLA to record loops and switches as
CUDA graphs.
"""

import argparse
import contextlib
import json
import pathlib
import statistics
import sys
import tempfile
import time
import traceback
from typing import NamedTuple
from unittest import mock

import jax
import numpy as np

from benchmarks import grid, search_step
from rome_jax import families, files, spaces
from rome_jax.config import fields
from rome_jax.engine import kernels
from rome_jax.methods import METHODS

GRAPH = {'xla_gpu_enable_command_buffer': (
    'FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,'
    'CONDITIONAL,WHILE')}
NO_GRAPH = {'xla_gpu_enable_command_buffer': ''}
OPTIONS = {'default': {}, 'graph': GRAPH, 'no_graph': NO_GRAPH}


class Row(NamedTuple):
  """What to measure; see the module's docstring."""

  method: str = 'rome_v2'
  k: int = 1
  samples: str = 'scan'
  dtype: str = 'float32'
  kernels: str = 'stock'
  xla: str = 'default'
  batch: int = 64


ROWS = {
    'k1': Row(),
    'k1_graph': Row(xla='graph'),
    'k1_no_graph': Row(xla='no_graph'),
    'k1_shifted': Row(kernels='shifted'),
    'k1_shifted_graph': Row(kernels='shifted', xla='graph'),
    'k7': Row(k=7),
    'k7_graph': Row(k=7, xla='graph'),
    'k7_no_graph': Row(k=7, xla='no_graph'),
    'k7_vmap': Row(k=7, samples='vmap'),
    'k7_vmap_no_graph': Row(k=7, samples='vmap', xla='no_graph'),
    'k7_bf16_no_graph': Row(k=7, dtype='bfloat16', xla='no_graph'),
    'k7_batch256_no_graph': Row(k=7, batch=256, xla='no_graph'),
    'k1_shifted_no_graph': Row(kernels='shifted', xla='no_graph'),
    'k7_bf16': Row(k=7, dtype='bfloat16'),
    'k7_vmap_bf16': Row(k=7, samples='vmap', dtype='bfloat16'),
    'k7_batch256': Row(k=7, batch=256),
    'gdas': Row(method='gdas'),
    'spos': Row(method='spos'),
    'darts': Row(method='darts'),
    'pc_darts': Row(method='pc_darts', batch=256),
}


def _choose(name):
  """A context in which programs are traced with these kernels."""
  if name == 'default':
    return contextlib.nullcontext()

  def choose(ours, stock, *args):
    # Convolutions over channels are the stock ones off the CPU in any case.
    shifted = name == 'shifted' and ours.__name__ not in (
        '_pointwise_matrices', 'matrices', 'canonical', 'loop')
    return (ours if shifted else stock)(*args)

  return mock.patch.object(kernels, '_on_cpu', choose)


def _config(row, size):
  config = fields.defaults()
  config.image_size, config.method = size.image_size, row.method
  config.search.update(
      cells=size.cells, channels=size.channels, batch_size=row.batch, k=row.k,
      samples=row.samples, dtype=row.dtype)
  return config


def _step(row, size):
  """(complete step, state, batches) of a row, not compiled."""
  config, method = _config(row, size), METHODS[row.method]
  network = families.supernet(
      spaces.S0, spaces.Sizes(size.cells, size.channels,
                              search_step.NUM_CLASSES, size.image_size),
      partial=method.partial)
  problem = search_step.problem_of(
      network, method, row.batch, size.image_size, dtype=row.dtype)
  return *search_step.make_step(problem, config), problem.batches


def _lower(row, size):
  with _choose(row.kernels):
    step, state, batches = _step(row, size)
    lowered = jax.jit(step, donate_argnums=0).lower(state, *batches)
  return lowered, (state, batches)


def _time(compiled, state, batches, repeats):
  """(seconds of each call, state); fewer calls where each takes seconds."""
  seconds = []
  while len(seconds) < repeats + 2 and sum(seconds) < 20:
    start = time.perf_counter()
    state, metrics = compiled(state, *batches)
    jax.block_until_ready((state, metrics))
    seconds.append(time.perf_counter() - start)
    print(f'{seconds[-1]:.4f} s', end=' ', file=sys.stderr, flush=True)
  print(file=sys.stderr)
  return seconds, state


def profile(compiled, state, batches, most=25):
  """Where one step's time goes: {'busy_share', 'kernels': [...]}."""
  with tempfile.TemporaryDirectory() as folder:
    start = time.perf_counter()
    with jax.profiler.trace(folder):
      began = time.perf_counter()
      state, _ = jax.block_until_ready(compiled(state, *batches))
      wall = time.perf_counter() - began
    print(f'traced in {time.perf_counter() - start:.1f} s', file=sys.stderr)
    found = sorted(pathlib.Path(folder).rglob('*.xplane.pb'))[-1]
    data = jax.profiler.ProfileData.from_file(str(found))
  totals, busy, lines = {}, [], {}
  for plane in data.planes:
    for line in plane.lines:
      events = list(line.events)
      lines[f'{plane.name}|{line.name}'] = [
          len(events), sum(e.duration_ns for e in events) / 1e6]
      if 'GPU' not in plane.name or not line.name.startswith('Stream'):
        continue
      for event in events:
        count, total = totals.get(event.name, (0, 0))
        totals[event.name] = count + 1, total + event.duration_ns
        busy.append((event.start_ns, event.start_ns + event.duration_ns))
  union, end = 0, 0
  for a, b in sorted(busy):
    union += max(0, b - max(a, end))
    end = max(end, b)
  top = sorted(totals.items(), key=lambda item: -item[1][1])[:most]
  return {
      'wall_seconds': wall, 'busy_seconds': union / 1e9,
      'launches': len(busy), 'different_kernels': len(totals),
      'kernels': [{'name': name[:120], 'count': count, 'ms': total / 1e6}
                  for name, (count, total) in top],
      'lines': dict(sorted(lines.items(), key=lambda i: -i[1][1])[:12])}


# ----------------------------------------------------------------- PyTorch


def torch_rows(size, repeats, compiled, archs=7):
  """Rows of eager and compiled PyTorch on the GPU."""
  import torch
  from torch.nn import functional

  device = 'cuda' if torch.cuda.is_available() else 'cpu'
  synchronise = (torch.cuda.synchronize if device == 'cuda' else
                 lambda: None)
  torch.backends.cudnn.benchmark = True
  # As XLA does by default: TF32 in products of float32.
  torch.backends.cuda.matmul.allow_tf32 = True
  config = _config(Row(k=archs), size)
  problem = search_step.make_problem(spaces.S0, config)
  group = search_step.sample_groups(problem, config, archs)[0]
  chosen = [search_step.arch_to_torch(jax.tree.map(lambda a, i=i: a[i], group))
            for i in range(archs)]

  def build(last, dtype):
    model = search_step.torch_supernet(
        problem.theta, problem.space, config, last).to(device)
    images = torch.tensor(np.asarray(
        problem.batches[0]['image']).transpose(0, 3, 1, 2)).to(device)
    images = images.contiguous(memory_format=model.memory_format)
    labels = torch.tensor(np.asarray(
        problem.batches[0]['label']), dtype=torch.int64).to(device)

    def loss(arch, images=images):
      with torch.autocast(
          device, torch.bfloat16, dtype == 'bfloat16'):
        return functional.cross_entropy(model(images, arch), labels)
    return model, loss, images

  def step(model, loss, sgd, k):
    weights = list(model.parameters())
    for w in weights:
      w.requires_grad_(False)
    for arch in chosen[:k]:
      gates = {t: (e, o, torch.ones(
          len(e), device=device, requires_grad=True))
               for t, (e, o, _) in arch.items()}
      loss(gates).backward()
    for w in weights:
      w.requires_grad_(True)
    sgd.zero_grad(set_to_none=True)
    for arch in chosen[:k]:
      loss(arch).backward()
    torch.nn.utils.clip_grad_norm_(
        [w for w in weights if w.grad is not None], 5.)
    sgd.step()

  def clock(function):
    if device == 'cuda':
      torch.cuda.reset_peak_memory_stats()
      before = torch.cuda.memory_allocated()
    seconds = []
    for _ in range(repeats + 2):
      synchronise()
      start = time.perf_counter()
      function()
      synchronise()
      seconds.append(time.perf_counter() - start)
    memory = (torch.cuda.max_memory_allocated() - before
              if device == 'cuda' else None)
    return {'step_seconds': statistics.median(seconds[2:]),
            'temp_bytes': memory}

  for layout in search_step.LAYOUTS:
    for dtype in ('float32', 'bfloat16'):
      model, loss, images = build(layout == 'channels_last', dtype)
      sgd = torch.optim.SGD(model.parameters(), .025, .9, weight_decay=3e-4)
      for k in (1, archs):
        yield {'framework': 'torch eager', 'layout': layout, 'dtype': dtype,
               'k': k, 'batch': 64,
               **clock(lambda: step(model, loss, sgd, k))}  # noqa: B023
  for mode in compiled:
    model, loss, images = build(True, 'float32')
    arch = chosen[0]
    labels = torch.tensor(np.asarray(
        problem.batches[0]['label']), dtype=torch.int64).to(device)
    run = torch.compile(
        lambda x: functional.cross_entropy(model(x, arch), labels),  # noqa: B023
        mode=mode, fullgraph=True)

    def once():
      model.zero_grad(set_to_none=True)  # noqa: B023
      run(images).backward()  # noqa: B023

    start = time.perf_counter()
    once()
    synchronise()
    seconds = time.perf_counter() - start
    found = clock(once)
    # A step is 2K such samples of other architectures.
    yield {'framework': f'torch compiled ({mode})', 'layout': 'channels_last',
           'dtype': 'float32', 'k': None, 'batch': 64,
           'compile_seconds_per_architecture': seconds,
           'sample_seconds': found.pop('step_seconds'), **found}


# ------------------------------------------------------------- command line


def _parse(argv):
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.gpu', description=__doc__.splitlines()[0])
  parser.add_argument('--out', required=True, help='JSON file to write')
  parser.add_argument('--rows', type=grid.names, default=list(ROWS),
                      help='names of rows, or ')
  parser.add_argument('--profile', type=grid.names, default=['k7'])
  parser.add_argument('--no-torch', action='store_true')
  parser.add_argument('--torch-compiled', type=grid.names,
                      default=[],
                      help='modes of torch.compile')
  for name, value in (('cells', 8), ('channels', 16), ('image-size', 32),
                      ('repeats', 10)):
    parser.add_argument(f'--{name}', type=int, default=value)
  return parser.parse_args(argv)


def _fill(row, spec, args, name):
  """Compiles and times one row of ours."""
  start = time.perf_counter()
  lowered, inputs = _lower(spec, args)
  row['trace_seconds'] = time.perf_counter() - start
  compiled = lowered.compile(compiler_options=OPTIONS[spec.xla] or None)
  row['compile_seconds'] = time.perf_counter() - start
  row['temp_bytes'] = compiled.memory_analysis().temp_size_in_bytes
  print({k: row.get(k) for k in ('name', 'compile_seconds', 'temp_bytes')},
        file=sys.stderr, flush=True)
  seconds, state = _time(compiled, *inputs, args.repeats)
  row['first_seconds'] = seconds[:2]
  row['step_seconds'] = statistics.median(seconds[2:] or seconds)
  row['sample_seconds'] = row['step_seconds'] / (2 * row['k'])
  if name in args.profile:
    row['profile'] = profile(compiled, state, inputs[1])


def _measure(args, save):
  if not args.no_torch:
    try:
      for row in torch_rows(args, args.repeats, args.torch_compiled):
        save(row)
    except Exception:
      save({'framework': 'torch',
            'error': 'failed: ' + traceback.format_exc(limit=-3)})
  kernels_of_trace = None
  for name in args.rows:
    if name == 'none':
      continue
    spec = ROWS[name]
    if spec.kernels != kernels_of_trace:
      jax.clear_caches()  # Traces hold the kernels.
      kernels_of_trace = spec.kernels
    row = {'name': name, 'framework': 'rome_jax', **spec._asdict()}
    try:
      _fill(row, spec, args, name)
      row['error'] = None
    except Exception:
      row['error'] = 'failed: ' + traceback.format_exc(limit=-3)
    save(row)


def main(argv=None):
  args = _parse(argv)
  jax.config.update('jax_enable_compilation_cache', False)
  done = []

  def save(row):
    done.append(row)
    files.write_json(args.out, {**grid.environment(), 'rows': done})
    print(json.dumps({k: v for k, v in row.items() if k != 'profile'}),
          file=sys.stderr, flush=True)

  _measure(args, save)


if __name__ == '__main__':
  main()
