"""Exports: equal outputs, the target's kernels, and what is refused."""

import json

import flax.linen as nn
import jax
import numpy as np
import pytest
from jax import export as jax_export

from rome_jax import errors, families, spaces
from rome_jax.cli import export as command
from rome_jax.cli.trained import About, Trained
from rome_jax.engine import kernels, weights
from rome_jax.exports import network, onnx, stablehlo
from rome_jax.exports import weights as safetensors_lib
from rome_jax.spaces import Sizes, genotypes

SIZES = Sizes(3, 4, 5, 16, 3)
ONE_SHOT = spaces.SPACES['nasbench1shot1_1']
SPACES = (spaces.S0, spaces.NASBENCH201, spaces.MOBILE_TINY, ONE_SHOT)


def trained(space, seed=1):
  """A network of random weights with a history in its BatchNorm."""
  rng = np.random.default_rng(seed)
  genotype = (genotypes.load('DARTS_V2') if space is spaces.S0
              else genotypes.random(space, rng))
  sizes = SIZES._replace(channels=8) if space.family == 'mobile' else SIZES
  net = families.build(genotype, space, sizes)
  variables = weights.initialise(net, 0, np.zeros((2, 16, 16, 3), np.float32))
  variables['batch_stats'] = jax.tree.map(
      lambda a: np.float32(a + rng.uniform(0, .5, a.shape)),
      variables['batch_stats'])
  return Trained(net, variables, About(
      genotype, tuple('abcde'), (.4,) * 3, (.2,) * 3, 16, 3,
      {'test_accuracy': .5}, 'cifar'))


@pytest.fixture(scope='module', params=SPACES, ids=lambda space: space.name)
def net(request):
  return trained(request.param)


def test_stablehlo_is_the_network_for_any_batch(net):
  data, difference = stablehlo.export(command.exportable(net))
  assert difference < 1e-5
  program = jax_export.deserialize(data)
  assert program.platforms == ('cpu', 'cuda', 'tpu')
  images = np.random.default_rng(0).normal(size=(5, 16, 16, 3)).astype(
      np.float32)
  np.testing.assert_allclose(
      program.call(images), net.network.apply(net.variables, images),
      rtol=1e-4, atol=1e-5)


def grouped(space, platforms):
  """How many convolutions with groups an export for platforms holds."""
  data, _ = stablehlo.export(command.exportable(trained(space)), platforms)
  return jax_export.deserialize(data).mlir_module().count(
      'feature_group_count = 4')


def test_kernels_follow_the_target():
  """Shifted copies on the CPU, a grouped convolution elsewhere; both where
  the platform is chosen later."""
  cpu, tpu = (grouped(spaces.S0, (name,)) for name in ('cpu', 'tpu'))
  assert cpu == 0 < tpu
  assert grouped(spaces.S0, stablehlo.PLATFORMS) >= tpu
  # And nothing of that stays behind.
  text = jax.jit(lambda x, w: kernels.depthwise_conv(x, w, 1, 1)).lower(
      np.zeros((1, 8, 8, 4), np.float32),
      np.zeros((3, 3, 4), np.float32)).as_text()
  assert 'feature_group_count = 4' not in text


def test_onnx_is_the_network(net):
  pytest.importorskip('jax2onnx')
  onnxruntime = pytest.importorskip('onnxruntime')
  data, difference = onnx.export(command.exportable(net))
  assert difference < 1e-5
  session = onnxruntime.InferenceSession(data)
  assert [v.name for v in session.get_inputs()] == ['images']
  images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(
      np.float32)
  found, = session.run(['logits'], {'images': images})
  np.testing.assert_allclose(
      found, net.network.apply(net.variables, images), rtol=1e-4, atol=1e-5)


def test_safetensors_has_every_weight(net):
  library = pytest.importorskip('safetensors.numpy')
  data = safetensors_lib.export(command.exportable(net))
  found = safetensors_lib.tree(library.load(data))
  assert jax.tree.structure(found) == jax.tree.structure(
      jax.tree.map(np.asarray, dict(net.variables)))
  jax.tree.map(np.testing.assert_array_equal, found, dict(net.variables))


def test_what_differs_is_not_written(tmp_path, monkeypatch):
  one = trained(spaces.NASBENCH201)
  monkeypatch.setattr(network, 'TOLERANCE', -1.)
  with pytest.raises(errors.UserError, match='nothing is written'):
    command.write(one, 'stablehlo', tmp_path / 'net')
  assert not list(tmp_path.iterdir())
  with pytest.raises(errors.UserError, match="to=onx must be one of.*'onnx'"):
    command.write(one, 'onx', tmp_path / 'net')
  item = command.exportable(one)
  with pytest.raises(errors.UserError, match='shape'):
    network.check(item, lambda images: np.zeros((1, 2)), 'it')


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
  monkeypatch.setitem(__import__('sys').modules, 'safetensors.numpy', None)
  with pytest.raises(errors.UserError, match=r'rome_jax\[safetensors\]'):
    command.write(trained(spaces.NASBENCH201), 'safetensors', tmp_path / 'x')


def test_facts_go_with_every_export(tmp_path, monkeypatch, capsys):
  one = trained(spaces.NASBENCH201)
  monkeypatch.setattr(command.trained_lib, 'load', lambda *given: one)
  assert command.main([str(tmp_path), '--to=stablehlo']) == 0
  assert 'network.stablehlo: ' in capsys.readouterr().out
  facts = json.loads((tmp_path / 'network.stablehlo.json').read_text())
  assert facts['class_names'] == list('abcde')
  assert (facts['mean'], facts['std'], facts['image_size']) == (
      [.4] * 3, [.2] * 3, 16)
  assert facts['resize'] == 'cifar' and facts['test_accuracy'] == .5
  assert genotypes.from_text(facts['genotype']) == one.about.genotype
  assert command.main([str(tmp_path), '--to=torch']) == 2
  assert capsys.readouterr().err.count('\n') == 1


class Whimsical(nn.Module):
  """A network that asks for its batch's size."""

  @nn.compact
  def __call__(self, images):
    return images.mean((1, 2)) if images.shape[0] > 7 else images.sum((1, 2))


def test_a_network_that_cannot_be_traced_is_one_sentence():
  item = network.Exportable(Whimsical(), {}, 4, 3, {})
  with pytest.raises(errors.UserError, match='cannot become StableHLO for any'):
    stablehlo.export(item)
