"""What benchmarks/scaling.py counts and projects, against counts by hand."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from benchmarks import scaling

ROOT = pathlib.Path(__file__).parents[2]

# On a mesh of 2x2: 3 floats over 'sample' once; 5 floats over 'data' in each
# of 6 turns; in one of two branches 7 floats over 'data', in the other none.
PROGRAM = """
import json, jax, jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from benchmarks import scaling
from rome_jax.devices import mesh as mesh_lib

mesh = mesh_lib.make_mesh(2, 2)

def part(x, which):
  def turn(carry, i):
    return carry + lax.psum(jnp.sin(carry * i), 'data'), None
  y, _ = lax.scan(turn, x[:5], jnp.arange(6.))
  z = lax.cond(which[0] > 0, lambda x: lax.psum(jnp.cos(x), 'data'), jnp.tan,
               x[:7])
  gathered = lax.all_gather(x[:7], 'data').sum(0)
  return lax.psum(x[:3] * y[:3] * z[:3] * gathered[:3], 'sample')

f = jax.shard_map(part, mesh=mesh, in_specs=(P('data'), P('sample')),
                  out_specs=P(), check_vma=False)
args = jnp.ones(16), jnp.arange(2)
compiled = jax.jit(f).lower(*args).compile().as_text()
print(json.dumps({
    'compiled': scaling.of_program(compiled, mesh).to_json(),
    'traced': scaling.of_trace(jax.make_jaxpr(f)(*args).jaxpr).to_json()}))
"""


def run(*command, devices=4):
  environment = os.environ | {
      'JAX_PLATFORMS': 'cpu',
      'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}'}
  return json.loads(subprocess.run(
      [sys.executable, *command], env=environment, cwd=ROOT, check=True,
      stdout=subprocess.PIPE, text=True).stdout)


@pytest.fixture(scope='module')
def counted():
  return run('-c', PROGRAM)


@pytest.mark.parametrize('way', ['compiled', 'traced'])
def test_counts_are_those_of_a_program_counted_by_hand(counted, way):
  found = counted[way]
  assert found['once']['sample'] == {'count': [1, 1, 1], 'bytes': [12, 12, 12]}
  # What is gathered from two devices, and once in two branches a sum.
  assert found['once']['data'] == {
      'count': [1, 1.5, 2], 'bytes': [56, 70, 84]}
  assert found['loops'] == {
      'data': {'count': [6, 6, 6], 'bytes': [120, 120, 120]}}


def test_an_outer_loop_only_multiplies():
  """Two turns around one exchange and a loop of three."""

  def function(x):
    def inner(carry, _):
      return lax.psum(carry, 'data'), None

    def outer(carry, _):
      return lax.scan(inner, lax.psum(carry, 'data'), length=3)[0], None
    return lax.scan(outer, x, length=2)[0]

  jaxpr = jax.make_jaxpr(function, axis_env=[('data', 2)])(
      jnp.ones(5, jnp.float32)).jaxpr
  for outer, once, loops in ((0, None, 8), (1, 2, 6)):
    found = scaling.of_trace(jaxpr, outer).to_json()
    assert found['once'].get('data', {'count': [None]})['count'][0] == once
    assert found['loops']['data'] == {
        'count': [loops] * 3, 'bytes': [20 * loops] * 3}


def test_a_supernet_is_counted_and_projected():
  """Both halves exchange all gradients and little else outside loops."""
  full = run('-c', 'import json; from benchmarks import scaling; '
             "scaling.FULL['tiny'] = scaling.SMALL_SIZES; "
             "print(json.dumps(scaling.trace('tiny')))", devices=2)
  [low, mean, high] = full['once']['data']['bytes']
  assert low == mean == high
  assert 0 <= mean / (2 * 4 * full['parameters']) - 1 < .1
  for link in scaling.LINKS.values():
    assert scaling.communication_seconds(full, link, 8, 1) > 0


@pytest.mark.parametrize('text, group', [
    ('replica_groups={{0,2},{1,3}}, x', (0, 2)),
    ('replica_groups=[2,2]<=[4], x', (0, 1)),
    ('replica_groups=[2,2]<=[2,2]T(1,0), x', (0, 2)),
    ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", (0, 1)),
    ("replica_groups=mesh['a'=2,'b'=1,'c'=2], device_ids=([2,2]T(1,0)) {'a'}",
     (0, 1)),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", (0, 1, 2, 3))])
def test_groups_in_each_form_of_xla(text, group):
  assert scaling._first_group(text) == group


def full(k=2, count=0., size=0., once=0.):
  """A supernet that communicates so much, the same over both axes."""
  return {'k': k, 'batch': 64,
          'once': {axis: {'bytes': [once] * 3} for axis in scaling.AXES},
          'per_sample': {'data': {'count': [0, count, 9], 'bytes': [
              0, size, 9]}}}


def test_the_projection_is_the_models_closed_form():
  link = {'bytes_per_second': 100., 'latency_seconds': 1e-3}
  # Over 'sample' only gradients: two all-reduces of 400 bytes in all.
  assert scaling.communication_seconds(
      full(once=400.), link, 1, 2) == pytest.approx(2e-3 + 400 / 100)
  # Over 'data' also 2 samples' 10 all-reduces of 30 bytes in all.
  assert scaling.communication_seconds(
      full(once=400., count=10., size=30.), link, 4, 1) == pytest.approx(
          22e-3 + 1.5 * 460 / 100)
  # With the samples spread each group has one of them.
  assert scaling.communication_seconds(
      full(count=10., size=30.), link, 4, 2) == pytest.approx(
          12e-3 + 1.5 * 30 / 100 + 2e-3)


def test_most_devices_is_where_the_share_is_reached():
  # 1 s of communication whatever n, and 16 s / n of computing.
  link = {'bytes_per_second': 1e9, 'latency_seconds': .5}
  meshes = [(n, 1) for n in (1, 2, 4, 8, 16, 32)]
  assert scaling.most_devices(full(), link, 16., .5, meshes) == 16
  assert scaling.most_devices(full(), link, 16., .2, meshes) == 4
  assert scaling.most_devices(full(), link, 16., .01, meshes) == 1


@pytest.mark.parametrize('flag', ['--devices=3', '--devices=x', '--repeats=0'])
def test_mistakes_are_one_sentence(flag, capsys):
  assert scaling.main([flag]) == 2
  out = capsys.readouterr()
  assert not out.out and flag.split('=')[0] in out.err


@pytest.mark.slow
def test_each_half_of_the_small_step_communicates_its_gradients_once():
  found = run('-m', 'benchmarks.scaling', '--measure=2x2,1x4', '--repeats=1')
  for row in found:
    # Either half: theta's and alpha's, and some scalars.
    least = 2 * row['gradient_bytes']
    # XLA may leave out beta's of nodes without a choice, known to be 0.
    for way, share in (('compiled', .99), ('traced', 1)):
      size = row[way]['once']['sample']['bytes'][1]
      assert share * least < size < least + 600
    count = row['compiled']['once']['sample']['count'][1]
    assert count == scaling.JOINED
  both = found[0]
  assert 'sample' not in both['compiled']['loops']
  assert 0 < both['compiled']['loops']['data']['bytes'][1] <= (
      both['traced']['loops']['data']['bytes'][1])
  assert found[1]['compiled']['loops'] == {}
