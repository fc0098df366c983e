"""The PyTorch reference of the benchmarks, and how they take times."""

import numpy as np
import pytest

from benchmarks import timing
from rome_jax import errors

torch = pytest.importorskip('torch')

from benchmarks import torch_reference as reference  # noqa: E402
from rome_jax import spaces  # noqa: E402

SMALL = spaces.Space('small', spaces.S0.ops, num_nodes=2)


def small_net(**kwargs):
  torch.manual_seed(0)
  return reference.Supernet(SMALL, 3, 4, 5, **kwargs)


def small_batch():
  generator = torch.Generator().manual_seed(1)
  return (torch.randn(6, 3, 8, 8, generator=generator),
          torch.arange(6) % 5)


def windows(x, kernel, stride, dilation, pad_value):
  """[B, C, H, W] -> [B, C, H', W', kernel * kernel], size-keeping padding."""
  pad = dilation * (kernel - 1) // 2
  x = np.pad(x, [(0, 0), (0, 0), (pad, pad), (pad, pad)],
             constant_values=pad_value)
  reach = dilation * (kernel - 1) + 1
  out = np.lib.stride_tricks.sliding_window_view(x, (reach, reach), (2, 3))
  out = out[:, :, ::stride, ::stride, ::dilation, ::dilation]
  return out.reshape(*out.shape[:4], kernel * kernel)


def norm(x):
  mean = x.mean((0, 2, 3), keepdims=True)
  return (x - mean) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)


def separable(x, weights, prefix, stride, dilation):
  depthwise = weights[prefix + 'depthwise.weight']
  kernel = depthwise.shape[-1]
  out = np.einsum(
      'bchwk,ck->bchw',
      windows(np.maximum(x, 0), kernel, stride, dilation, 0),
      depthwise.reshape(len(depthwise), -1))
  pointwise = weights[prefix + 'pointwise.weight'][:, :, 0, 0]
  return norm(np.einsum('bchw,oc->bohw', out, pointwise))


def numpy_op(name, x, weights, stride):
  """The DARTS operations, transcribed; float64."""
  if name == 'max_pool_3x3':
    return norm(windows(x, 3, stride, 1, -np.inf).max(-1))
  if name == 'avg_pool_3x3':
    return norm(np.nanmean(windows(x, 3, stride, 1, np.nan), -1))
  if name.startswith('dil'):
    return separable(x, weights, '', stride, 2)
  if name.startswith('sep'):
    x = separable(x, weights, '0.', stride, 1)
    return separable(x, weights, '1.', 1, 1)
  if stride == 1:
    return x
  x = np.maximum(x, 0)
  halves = [(x[:, :, ::2, ::2], weights['even.weight']),
            (x[:, :, 1::2, 1::2], weights['odd.weight'])]
  return norm(np.concatenate(
      [np.einsum('bchw,oc->bohw', y, w[:, :, 0, 0]) for y, w in halves], 1))


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('name', spaces.S0.ops)
def test_operation_equals_numpy_transcription(name, stride):
  torch.manual_seed(0)
  module = reference.OPS[name](4, stride).double()
  x = torch.randn(3, 4, 8, 6, dtype=torch.float64)
  weights = {k: v.numpy() for k, v in module.state_dict().items()}
  expected = numpy_op(name, x.numpy(), weights, stride)
  actual = module(x).detach().numpy()
  assert actual.shape == (3, 4, 8 // stride, 6 // stride)
  np.testing.assert_allclose(actual, expected, atol=1e-10)


@pytest.mark.parametrize('classes,expected', [(10, 1930618), (100, 1953748)])
def test_parameter_count_of_the_darts_supernet(classes, expected):
  model = reference.Supernet(spaces.S0, 8, 16, classes)
  assert sum(p.numel() for p in model.parameters()) == expected


def test_state_dict_has_the_documented_names():
  state = reference.Supernet(spaces.S0, 4, 4, 10).state_dict()
  shapes = {name: tuple(value.shape) for name, value in state.items()}
  expected = {
      'stem.conv.weight': (12, 3, 3, 3),
      'stem.norm.bias': (12,),
      'cells.0.preprocess.0.conv.weight': (4, 12, 1, 1),
      'cells.1.preprocess.1.conv.weight': (8, 16, 1, 1),
      'cells.2.preprocess.0.odd.weight': (8, 16, 1, 1),
      'cells.0.edges.13.sep_conv_5x5.1.depthwise.weight': (4, 1, 5, 5),
      'cells.0.edges.0.sep_conv_3x3.0.pointwise.weight': (4, 4, 1, 1),
      'cells.3.edges.2.dil_conv_3x3.depthwise.weight': (16, 1, 3, 3),
      'cells.1.edges.0.skip_connect.even.weight': (4, 8, 1, 1),
      'head.weight': (10, 64),
      'head.bias': (10,),
  }
  assert {name: shapes.get(name) for name in expected} == expected
  # Strided, so with weights: the edges that leave an input of a reduction.
  strided = [name for name in shapes if 'skip_connect.even' in name]
  assert strided == [
      f'cells.{cell}.edges.{edge}.skip_connect.even.weight'
      for cell in (1, 2) for edge in (0, 1, 2, 3, 5, 6, 9, 10)]


def test_network_is_its_parts_composed():
  """The wiring by hand: one normal cell, then two reductions."""
  model = small_net()
  images, _ = small_batch()
  # Node 0 reads both inputs; node 1 reads input 1 (edge 3), node 0 (edge 4).
  normal = ([0, 1, 3, 4], [0, 3, 2, 5], None)
  reduce = ([0, 1, 3, 4], [2, 1, 6, 4], None)
  with torch.no_grad():
    inputs = [model.stem(images)] * 2
    for cell, (_, ops, _) in zip(model.cells, (normal, reduce, reduce)):
      op = [SMALL.ops[o] for o in ops]
      a, b = (f(x) for f, x in zip(cell.preprocess, inputs))
      first = cell.edges[0][op[0]](a) + cell.edges[1][op[1]](b)
      second = cell.edges[3][op[2]](b) + cell.edges[4][op[3]](first)
      inputs = [inputs[1], torch.cat([first, second], 1)]
    expected = model.head(inputs[1].mean((2, 3)))
    actual = model(images, {'normal': normal, 'reduce': reduce})
  assert inputs[1].shape == (6, 32, 2, 2)
  torch.testing.assert_close(actual, expected)


def test_only_the_sampled_path_gets_gradients():
  model = small_net()
  arch = reference.random_arch(SMALL, np.random.default_rng(3))
  reference.step(model, arch, *small_batch())
  sampled = []
  for i, reduction in enumerate(model.reductions):
    edges, ops, _ = arch['reduce' if reduction else 'normal']
    sampled += [f'cells.{i}.edges.{e}.{SMALL.ops[o]}.'
                for e, o in zip(edges, ops)]
  for name, parameter in model.named_parameters():
    on_path = '.edges.' not in name or name.startswith(tuple(sampled))
    assert (parameter.grad is not None) == on_path, name


def test_layouts_agree():
  arch = reference.random_arch(SMALL, np.random.default_rng(4))
  default = small_net()
  last = small_net(memory_format=torch.channels_last)
  last.load_state_dict(default.state_dict())
  losses = [
      reference.step(net, arch, *small_batch()) for net in (default, last)]
  torch.testing.assert_close(*losses)
  for one, other in zip(default.parameters(), last.parameters()):
    if one.grad is not None:
      torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_slot_order_does_not_matter():
  model = small_net()
  images, _ = small_batch()
  arch = reference.random_arch(SMALL, np.random.default_rng(5))
  turned = {k: (e[::-1], o[::-1], None) for k, (e, o, _) in arch.items()}
  torch.testing.assert_close(model(images, arch), model(images, turned))


def test_gates_of_one_keep_the_loss_and_get_their_slope():
  """Against central differences, in float64."""
  model = small_net().double()
  images, labels = small_batch()
  images = images.double()
  arch = reference.random_arch(SMALL, np.random.default_rng(6))
  # Away from ReLU kinks and ties of max pooling the loss is smooth.
  edges, _, _ = arch['normal']
  arch['normal'] = (edges, [3, 1, 5, 2], None)

  def loss(gates):
    normal = (*arch['normal'][:2], gates)
    return reference.step(
        model, {**arch, 'normal': normal}, images, labels).item()

  gates = torch.ones(4, dtype=torch.float64, requires_grad=True)
  assert loss(gates) == pytest.approx(
      reference.step(model, arch, images, labels).item(), abs=1e-12)
  h = 1e-6
  slopes = [
      (loss(1 + h * row) - loss(1 - h * row)) / (2 * h)
      for row in torch.eye(4, dtype=torch.float64)]
  np.testing.assert_allclose(gates.grad.numpy(), slopes, atol=1e-6)
  assert np.abs(slopes).max() > 1e-3


def test_random_arch_keeps_the_in_degree():
  rng = np.random.default_rng(0)
  for space in (spaces.S0, SMALL):
    for _ in range(20):
      for edges, ops, gates in reference.random_arch(space, rng).values():
        nodes = space.edge_nodes[edges]
        assert tuple(np.bincount(nodes)) == space.in_degrees
        assert len(set(edges)) == len(edges) == len(ops)
        assert set(ops) <= set(range(len(space.ops))) and gates is None


def test_node_without_edge_is_refused():
  arch = {'normal': ([0, 1], [2, 2], None)}
  with pytest.raises(ValueError, match='node 1 has no edge'):
    small_net()(small_batch()[0], arch)


@pytest.mark.parametrize('channels_last', [False, True])
def test_time_sample_counts_its_steps(channels_last):
  rng = np.random.default_rng(0)
  archs = [reference.random_arch(SMALL, rng) for _ in range(2)]
  seconds = reference.time_sample(
      archs, 2, channels_last, 3, space=SMALL, cells=3, channels=4,
      image_size=8)
  assert len(seconds) == 6 and min(seconds) > 0


def test_interleaved_runs_in_turn(monkeypatch):
  calls = []
  clock = [0.0]
  durations = {'a': iter([9.0, 1.0, 2.0, 6.0]), 'b': iter([9.0, 5.0, 3.0, 4.0])}

  def run(name):
    calls.append(name)
    clock[0] += next(durations[name])

  monkeypatch.setattr(timing.time, 'perf_counter', lambda: clock[0])
  result = timing.interleaved(
      {'a': lambda: run('a'), 'b': lambda: run('b')}, repeats=3, warmup=1)
  assert ''.join(calls) == 'abababab'
  assert result == {'a': {'median': 2.0, 'min': 1.0, 'max': 6.0},
                    'b': {'median': 4.0, 'min': 3.0, 'max': 5.0}}


@pytest.mark.parametrize('repeats,warmup', [(0, 1), (1, -1)])
def test_interleaved_refuses_bad_counts(repeats, warmup):
  with pytest.raises(errors.UserError, match='must be at least'):
    timing.interleaved({}, repeats, warmup)


def test_machine_says_only_what_it_promises():
  described = timing.machine()
  assert set(described) == {
      'cpu', 'cores', 'memory_bytes', 'python', 'jax', 'torch', 'date'}
  assert described['cores'] >= 1 and described['cpu']
  assert described['python'].startswith('3.')
