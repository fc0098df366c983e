"""The search step over devices: overhead measured, communication counted.

  python -m benchmarks.scaling [--devices=1,2,4,8] [--repeats=5] [--no-full]

Prints one JSON object and nothing else on stdout:

  small   a row for each mesh of data x sample forced CPU devices: the same
          step of a small supernet, each number of devices in a process of its
          own.
    step_seconds   median over the repeats, after one that is not counted.
    cpu_seconds    the same of the processor time of all threads, which other
                   work on the machine hardly changes.
    overhead       cpu_seconds over those of one device. All devices are
                   threads on the same cores and the work is the same, so this
                   shows what spreading costs, not what it gains.
    gradient_bytes those of theta, alpha and beta.
    compiled       what one device communicates in a step, in the compiled
                   program: 'once' (gradients) and in 'loops' (BatchNorm, as
                   often as they turn); {axis: {'count', 'bytes'}}, each
                   [low, mean, high] over the operations that may be sampled.
    traced         the same of the program as JAX traces it, before XLA joins
                   and removes some: an upper limit of count and bytes.
  full    the supernets of CIFAR-10 and ImageNet, traced only; 'per_sample'
          is 'loops' over K.
  links   what the projection assumes of a network, with sources.
  projection  for each supernet, link and time of a step on one device:
          communication of a step, and the most devices with which it is at
          most 10 % and 50 % of the step, cutting the batch only or the K
          samples first.

The projection: a ring all-reduce of S bytes over n devices sends 2(n-1)/n S
from each, and any one takes at least the link's latency. BatchNorm gathers in
its forward pass; that is taken for an all-reduce of what two devices gather:
its bytes are few. Computing scales perfectly; nothing overlaps. XLA joins the
gradients of a half step to one all-reduce, and gathers the sampled edges of
each node (seen in the compiled program); BatchNorm's are counted as traced.
"""

import argparse
import functools
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

import jax
import numpy as np

from benchmarks import grid, search_step, timing
from rome_jax import errors, spaces
from rome_jax.config import fields
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import weights as weights_lib
from rome_jax.families import darts
from rome_jax.methods import step as step_lib
from rome_jax.methods import table
from rome_jax.train import optim, search

AXES = (mesh_lib.DATA, mesh_lib.SAMPLE)
SMALL = spaces.Space(
    'small', ('skip_connect', 'sep_conv_3x3'), num_nodes=2)
# The sizes of one: cells, channels, classes, stem, image side, batch, K.
SMALL_SIZES = (2, 8, 10, 'cifar', 16, 32, 8)
FULL = {'cifar10': (8, 16, 10, 'cifar', 32, 64, 7),
        'imagenet': (8, 16, 1000, 'imagenet', 224, 256, 3)}
MESHES = {1: ('1x1',), 2: ('2x1', '1x2'), 4: ('4x1', '2x2', '1x4'),
          8: ('8x1', '1x8')}

LINKS = {
    'TPU v5e ICI': {
        'bytes_per_second': 200e9, 'latency_seconds': 5e-6,
        'source': '1600 Gbit/s a chip (Cloud TPU documentation, v5e); the '
                  'latency is assumed'},
    'NVLink 4': {
        'bytes_per_second': 450e9, 'latency_seconds': 6e-6,
        'source': '900 GB/s in both directions (NVIDIA H100 data sheet); 6 us '
                  'between two H100, 128 bytes (NVIDIA/nccl#1259)'},
    'InfiniBand 400 Gbit/s': {
        'bytes_per_second': 50e9, 'latency_seconds': 26e-6,
        'source': 'a 400 Gbit/s port for each device (NVIDIA DGX H100); 26 us '
                  "is NCCL's own estimate for 4 kB (NVIDIA/nccl#1453)"}}
# Of one step on one device: the paper's GPU-days (V100) over its steps, and
# a tenth of it.
PAPER_SECONDS = {'cifar10': .3 * 86_400 / (50 * 390),
                 'imagenet': .45 * 86_400 / (30 * 500)}


# ------------------------------------------------------------------ counting


class Traffic(NamedTuple):
  """What one device communicates over each axis.

  Attributes:
    values: {axis: [3,2]}, low, mean and high of count and bytes.
  """

  values: dict

  def __add__(self, other):
    keys = {*self.values, *other.values}
    zero = np.zeros((3, 2))
    return Traffic({key: self.values.get(key, zero)
                    + other.values.get(key, zero) for key in keys})

  def times(self, n):
    return Traffic({key: n * value for key, value in self.values.items()})

  def to_json(self):
    return {axis: dict(zip(('count', 'bytes'), value.T.round(1).tolist()))
            for axis, value in sorted(self.values.items())}


NOTHING = Traffic({})


def _one(axis, size):
  return Traffic({axis: np.tile([1., size], (3, 1))})


def _one_of(branches):
  """Exactly one of some parts runs, each as likely."""
  values = {}
  for axis in {axis for branch in branches for axis in branch.values}:
    table = np.stack([
        branch.values.get(axis, np.zeros((3, 2))) for branch in branches])
    values[axis] = np.stack([
        table[:, 0].min(0), table[:, 1].mean(0), table[:, 2].max(0)])
  return Traffic(values)


_COLLECTIVE = re.compile(
    r'= (.+?) (all-reduce|all-gather|reduce-scatter|all-to-all|'
    r'collective-permute)(?:-start)?\(')
_IOTA = r'\[([\d,]+)\](?:T\(([\d,]+)\))?'
_SHAPE = re.compile(r'\b([a-z]+)(\d+)\[([\d,]*)\]')


class Parts(NamedTuple):
  """What a program communicates once, and in its loops, all turns."""

  once: Traffic = NOTHING
  loops: Traffic = NOTHING

  def plus(self, other):
    return Parts(self.once + other.once, self.loops + other.loops)

  def turned(self, n, outer=False):
    """As the body of a loop of n turns, an outer one if it counts as none."""
    if outer:
      return Parts(self.once.times(n), self.loops.times(n))
    return Parts(NOTHING, (self.once + self.loops).times(n))

  def to_json(self):
    return {'once': self.once.to_json(), 'loops': self.loops.to_json()}


def _all(parts):
  return functools.reduce(Parts.plus, parts, Parts())


def _either(branches):
  return Parts(*map(_one_of, zip(*branches)))


def of_program(text: str, mesh, outer: int = 0) -> Parts:
  """Of a compiled program.

  Args:
    text: its `as_text()`.
    mesh: data x sample.
    outer: so many loops around all others only multiply what is in them.

  Raises:
    ValueError: a loop with communication in it turns an unknown number of
      times, or devices communicate that are no axis of the mesh.
  """
  bodies, entry = _computations(text)
  groups = _groups(mesh)

  @functools.cache
  def total(name, outer):
    return _all(instruction(line, outer) for line in bodies[name])

  def instruction(line, outer):
    if found := _COLLECTIVE.search(line):
      axis = _axis(line, groups)
      return Parts(_one(axis, _bytes(found[1]))) if axis else Parts()
    if ' while(' in line:
      inner = total(
          re.search(r'body=%?([\w.-]+)', line)[1], max(0, outer - 1))
      turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
      if inner == Parts():
        return inner
      if not turns:
        raise ValueError(f'communication in a loop of unknown length: {line}')
      return inner.turned(int(turns[1]), outer > 0)
    if ' conditional(' in line:
      named = re.search(r'branch_computations=\{([^}]*)\}', line)
      names = named[1].split(',') if named else re.findall(
          r'(?:true|false)_computation=(%?[\w.-]+)', line)
      return _either(
          [total(name.strip().lstrip('%'), outer) for name in names])
    if called := re.search(r' call\(.*to_apply=%?([\w.-]+)', line):
      return total(called[1], outer)
    return Parts()

  return total(entry, outer)


def _computations(text):
  """({name: lines}, name of the entry)."""
  bodies, entry, lines = {}, None, []
  for line in text.splitlines():
    # A line without `=` before its `{` opens a computation.
    if found := re.match(r'(ENTRY )?%?([\w.-]+) \(.*\{$', line):
      lines = bodies[found[2]] = []
      entry = found[2] if found[1] else entry
    else:
      lines.append(line)
  return bodies, entry


def _bytes(shape):
  """Of one array, or of all in a tuple."""
  return sum(int(bits) / 8 * math.prod(_numbers(sizes))
             for _, bits, sizes in _SHAPE.findall(shape))


def _groups(mesh):
  """{devices of a group: axis}; both axes together are one, too."""
  data, sample = mesh.devices.shape
  ids = np.arange(data * sample).reshape(data, sample)
  found = {tuple(ids.ravel()): '+'.join(AXES)}
  found |= {tuple(row): AXES[1] for row in ids} if sample > 1 else {}
  found |= {tuple(row): AXES[0] for row in ids.T} if data > 1 else {}
  return found


def _axis(line, groups):
  """The axis that an instruction communicates over; None: with itself."""
  first = _first_group(line)
  if len(first) == 1:
    return None
  if first not in groups:
    raise ValueError(f'devices {first} are no axis of the mesh: {line}')
  return groups[first]


def _first_group(line):
  """The first of the `replica_groups`, in any of XLA's three forms."""
  if found := re.search(r'replica_groups=\{\{([\d,]*)\}', line):
    return tuple(_numbers(found[1]))
  if found := re.search(rf'replica_groups=\[([\d,]+)\]<={_IOTA}', line):
    return tuple(_iota(found[2], found[3]).reshape(_numbers(found[1]))[0])
  found = re.search(
      r'replica_groups=mesh\[([^\]]*)\]'
      rf'(?:, device_ids=\({_IOTA}\))? ?\{{([^}}]*)\}}', line)
  sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
  shape = [int(size) for size in sizes.values()]
  ids = (_iota(found[2], found[3]) if found[2] else
         np.arange(math.prod(shape))).reshape(shape)
  named = re.findall(r"'(\w+)'", found[4])
  return tuple(ids[tuple(
      slice(None) if axis in named else 0 for axis in sizes)].ravel())


def _numbers(text):
  return [int(part) for part in text.split(',') if part]


def _iota(sizes, order):
  """Device numbers of `[sizes]T(order)`."""
  ids = np.arange(math.prod(_numbers(sizes))).reshape(_numbers(sizes))
  return ids.transpose(_numbers(order) if order else None)


def of_trace(jaxpr, outer: int = 0) -> Parts:
  """Of a traced program, the `jaxpr` of `jax.make_jaxpr`; see `of_program`."""
  return _all(_of_equation(eqn, outer) for eqn in jaxpr.eqns)


def _exchange(variables, axes):
  """One over each axis, of all variables together."""
  size = sum(v.aval.size * v.aval.dtype.itemsize for v in variables)
  return _all(Parts(_one(axis, size)) for axis in axes)


def _of_equation(eqn, outer):
  name, params = eqn.primitive.name, eqn.params
  if name.startswith('psum'):
    return _exchange(eqn.invars, params['axes'])
  if name == 'all_gather':
    return _exchange(eqn.outvars, params['axis_name'])
  if name == 'cond':
    return _either(
        [of_trace(branch.jaxpr, outer) for branch in params['branches']])
  if name == 'scan':
    inner = of_trace(params['jaxpr'].jaxpr, max(0, outer - 1))
    return inner.turned(params['length'], outer > 0)
  inner = (getattr(value, 'jaxpr', value) for value in params.values())
  found = _all(of_trace(part, outer) for part in inner
               if hasattr(part, 'eqns'))
  if name == 'while' and found != Parts():
    raise ValueError('communication in a loop of unknown length')
  return found


# ----------------------------------------------------------------- the steps


# Around all others: the loop over the two halves of a step.
OUTER_LOOPS = 1


def make_step(space, sizes, mesh):
  """(the search's step on a mesh, shapes of its state and two batches)."""
  cells, channels, classes, stem, side, batch, k = sizes
  network = darts.Supernet(space, cells, channels, classes, stem)
  method, section = table.METHODS['rome_v2'], fields.defaults().search
  theta_tx, arch_tx = (
      optim.sgd(lambda step: .05, section), optim.arch_adam(section))
  step = step_lib.make_step(
      method, space, search.make_loss(network), theta_tx, arch_tx,
      lambda step: 1., step_lib.Options(k=k), mesh_lib.spread(mesh))

  def init():
    return step_lib.init_state(
        method, space, weights_lib.init_supernet(network, 0, side, 3),
        method.init(space, jax.random.key(0)), theta_tx, arch_tx)

  images = {'image': np.zeros((batch, side, side, 3), np.float32),
            'label': np.zeros(batch, np.int32)}
  return search_step.of_two_batches(step), init, images


def measure(name: str, repeats: int) -> dict:
  """The row of one mesh of the small supernet, in this process."""
  mesh = mesh_lib.make_mesh(*map(int, name.split('x')))
  update, init, images = make_step(SMALL, SMALL_SIZES, mesh)
  rng = np.random.default_rng(0)
  images['image'] = rng.normal(size=images['image'].shape).astype(np.float32)
  state = mesh_lib.place(init(), mesh_lib.replicated(mesh))
  batches = mesh_lib.place((images, images), mesh_lib.split_batch(mesh))
  jitted = jax.jit(update)
  step = jitted.lower(state, *batches).compile()
  traced = of_trace(
      jax.make_jaxpr(update)(state, *batches).jaxpr, OUTER_LOOPS)
  seconds = []
  for _ in range(repeats + 1):
    start = time.perf_counter(), time.process_time()
    state, metrics = step(state, *batches)
    jax.block_until_ready((state, metrics))
    seconds.append((time.perf_counter() - start[0],
                    time.process_time() - start[1]))
  elapsed, processor = map(statistics.median, zip(*seconds[1:]))
  # A group of one device does not communicate.
  traced = Parts(*(
      Traffic({axis: value for axis, value in part.values.items()
               if mesh.shape[axis] > 1}) for part in traced))
  return {
      'mesh': name, 'devices': mesh.size,
      'step_seconds': elapsed, 'cpu_seconds': processor,
      'gradient_bytes': sum(
          leaf.nbytes for leaf in jax.tree.leaves((state.theta, state.arch))),
      'compiled': of_program(
          step.as_text(), mesh, OUTER_LOOPS).to_json(),
      'traced': traced.to_json()}


def trace(name: str) -> dict:
  """What a step of a full supernet communicates."""
  sizes = FULL[name]
  mesh = mesh_lib.make_mesh(2, 1)
  space = spaces.get_space('s0')
  update, init, images = make_step(space, sizes, mesh)
  state = jax.eval_shape(init)
  once, loops = of_trace(
      jax.make_jaxpr(update)(state, images, images).jaxpr, OUTER_LOOPS)
  k = sizes[-1]
  return {'k': k, 'batch': sizes[-2],
          'parameters': sum(
              leaf.size for leaf in jax.tree.leaves(state.theta)),
          'once': once.to_json(), 'per_sample': loops.times(1 / k).to_json()}


def _in_process(devices, kind, names, repeats):
  """`measure` or `trace` of some names, where there are that many devices."""
  flags = os.environ.get('XLA_FLAGS', '')
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu', 'JAX_ENABLE_COMPILATION_CACHE': 'false',
      'XLA_FLAGS':
          f'{flags} --xla_force_host_platform_device_count={devices}'}
  done = subprocess.run(
      [sys.executable, '-m', 'benchmarks.scaling', f'--{kind}',
       ','.join(names), f'--repeats={repeats}'],
      env=environment, stdout=subprocess.PIPE, text=True, check=True)
  return json.loads(done.stdout)


# ---------------------------------------------------------------- projection


# All-reduces outside loops once XLA has joined them: one each half step.
JOINED = 2


def communication_seconds(full, link, data: int, sample: int) -> float:
  """Of one step on data x sample devices, by the model of the docstring."""
  total = 0.
  for axis, n in zip(AXES, (data, sample)):
    if n == 1:
      continue
    in_loops = full['per_sample'].get(axis)
    count = JOINED
    size = full['once'][axis]['bytes'][1]
    if in_loops:
      count += in_loops['count'][1] * full['k'] / sample
      size += in_loops['bytes'][1] * full['k'] / sample
    total += (count * link['latency_seconds']
              + 2 * (n - 1) / n * size / link['bytes_per_second'])
  return total


def most_devices(full, link, step_seconds, share, meshes) -> int:
  """The largest mesh on which communication is at most `share` of a step."""
  return max((
      data * sample for data, sample in meshes
      if (spent := communication_seconds(full, link, data, sample))
      <= share * (spent + step_seconds / (data * sample))), default=1)


def project(name, full) -> list[dict]:
  """The rows of one supernet."""
  parts = [n for n in range(1, full['batch'] + 1) if full['batch'] % n == 0]
  groups = [n for n in range(1, full['k'] + 1) if full['k'] % n == 0]
  ways = {'data': [(n, 1) for n in parts],
          'sample_then_data': [(1, n) for n in groups]
                              + [(n, full['k']) for n in parts]}
  rows = []
  for link_name, link in LINKS.items():
    for seconds in (PAPER_SECONDS[name], PAPER_SECONDS[name] / 10):
      row = {'supernet': name, 'link': link_name, 'step_seconds': seconds,
             'seconds_of_8x1': communication_seconds(full, link, 8, 1),
             f'seconds_of_1x{full["k"]}': communication_seconds(
                 full, link, 1, full['k'])}
      for way, meshes in ways.items():
        row |= {f'devices_{way}_{percent}': most_devices(
            full, link, seconds, percent / 100, meshes)
                for percent in (10, 50)}
      rows.append(row)
  return rows


# --------------------------------------------------------------- command line


def _parse(argv):
  parser = argparse.ArgumentParser(
      prog='python -m benchmarks.scaling',
      description=__doc__.splitlines()[0])
  parser.add_argument('--devices', default='1,2,4,8',
                      help='numbers of forced devices (1,2,4,8)')
  parser.add_argument('--repeats', type=int, default=5,
                      help='timed steps (5)')
  parser.add_argument('--no-full', action='store_true',
                      help='neither full supernets nor projection')
  for kind in ('measure', 'trace'):  # How it calls itself.
    parser.add_argument(f'--{kind}', help=argparse.SUPPRESS)
  return parser.parse_args(argv)


def _run(args):
  if args.measure:
    return [measure(name, args.repeats) for name in args.measure.split(',')]
  if args.trace:
    return {name: trace(name) for name in args.trace.split(',')}
  try:
    numbers = [int(part) for part in args.devices.split(',')]
    meshes = {number: MESHES[number] for number in numbers}
  except (KeyError, ValueError):
    raise errors.UserError(
        f'--devices={args.devices} must be some of '
        f'{",".join(map(str, MESHES))}') from None
  grid.check_counts(args, 'repeats')
  small = []
  for number, names in meshes.items():
    print(f'{number} devices ...', file=sys.stderr, flush=True)
    small += _in_process(number, 'measure', names, args.repeats)
  for row in small:
    row['overhead'] = row['cpu_seconds'] / small[0]['cpu_seconds']
  found = {'machine': timing.machine(), 'sizes': dict(zip(
      ('cells', 'channels', 'classes', 'stem', 'image_size', 'batch', 'k'),
      SMALL_SIZES)), 'small': small}
  if not args.no_full:
    print('full supernets ...', file=sys.stderr, flush=True)
    full = _in_process(2, 'trace', FULL, 1)
    found |= {'full': full, 'links': LINKS, 'projection': [
        row for name in FULL for row in project(name, full[name])]}
  return found


def main(argv=None) -> int:
  """Runs the benchmark; returns the exit code: 0, or 2 for a mistake."""
  try:
    found = _run(_parse(argv))
  except errors.UserError as error:
    print(error, file=sys.stderr)
    return error.exit_code
  print(json.dumps(found, indent=2))
  return 0


if __name__ == '__main__':
  sys.exit(main())
