"""Losses, schedules and optimisers against their definitions in NumPy."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import transcription as paper

from rome_jax.train import optim

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, 6)


@pytest.mark.parametrize('smoothing', [0., .1])
def test_cross_entropy(smoothing):
  log_p = np.log(paper.softmax(LOGITS.astype(np.float64)))
  target = np.full((6, 5), smoothing / 5)
  target[np.arange(6), LABELS] += 1 - smoothing
  np.testing.assert_allclose(
      optim.cross_entropy(LOGITS, LABELS, smoothing),
      -(target * log_p).sum(-1), rtol=1e-5)


def test_correct():
  np.testing.assert_array_equal(
      optim.correct(LOGITS, LABELS), LOGITS.argmax(-1) == LABELS)
  assert optim.correct(LOGITS, LABELS).dtype == jnp.float32


# ---------------------------------------------------------------- schedules


SHAPES = {'cosine': lambda t: (1 + np.cos(np.pi * t)) / 2,
          'linear': lambda t: 1 - t}


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_schedule_each_step(name):
  schedule = jax.jit(optim.SCHEDULES[name](.05, .001, 40))
  actual = [float(schedule(step)) for step in range(41)]
  expected = .001 + .049 * SHAPES[name](np.arange(41) / 40)
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  assert float(schedule(100)) == pytest.approx(.001)


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_schedule_each_epoch(name):
  # PyTorch's CosineAnnealingLR, stepped once an epoch: eta of epoch e of E.
  schedule = optim.SCHEDULES[name](.025, 0., 50, steps_per_epoch=10)
  for epoch in range(5):
    expected = .025 * SHAPES[name](epoch / 5)
    for step in (0, 4, 9):
      assert float(schedule(10 * epoch + step)) == pytest.approx(expected)


@pytest.mark.parametrize('name', optim.SCHEDULES)
def test_warmup(name):
  schedule = optim.SCHEDULES[name](.5, 0., 30, warmup_steps=10)
  actual = [float(schedule(step)) for step in range(31)]
  expected = [.5 * (s + 1) / 10 for s in range(10)] + [
      .5 * SHAPES[name](s / 20) for s in range(21)]
  np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


# --------------------------------------------------------------- optimisers


PARAMS = {'w': RNG.normal(size=(3, 2)), 'b': RNG.normal(size=4)}
GRADS = [{'w': scale * RNG.normal(size=(3, 2)), 'b': RNG.normal(size=4)}
         for scale in (1., 9., .1, 5.)]


def run(tx, grads=GRADS):
  """Parameters after each gradient."""
  params = jax.tree.map(jnp.float32, PARAMS)
  state, found = tx.init(params), []
  for g in grads:
    updates, state = tx.update(jax.tree.map(jnp.float32, g), state, params)
    params = optax.apply_updates(params, updates)
    found.append(params)
  return found


def assert_trees_close(actual, expected):
  for a, b in zip(actual, expected, strict=True):
    for name in b:
      np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_is_pytorchs(nesterov):
  """torch.nn.utils.clip_grad_norm_, then torch.optim.SGD, written out."""
  section = types.SimpleNamespace(
      clip_norm=5., weight_decay=.01, momentum=.9, nesterov=nesterov)
  rates = [.1, .05, .02, .01]
  tx = optim.sgd(lambda step: jnp.asarray(rates)[step], section)
  params = dict(PARAMS)
  buffer = {name: np.zeros_like(p) for name, p in params.items()}
  expected, clipped = [], 0
  for g, rate in zip(GRADS, rates):
    norm = np.sqrt(sum((v ** 2).sum() for v in g.values()))
    clipped += norm > 5
    for name in params:
      d = g[name] * min(1, 5 / norm) + .01 * params[name]
      buffer[name] = .9 * buffer[name] + d
      step = d + .9 * buffer[name] if nesterov else buffer[name]
      params[name] = params[name] - rate * step
    expected.append(dict(params))
  assert 0 < clipped < 4
  assert_trees_close(run(tx), expected)


def test_arch_adam_couples_l2():
  """torch.optim.Adam(weight_decay): L2 goes through the moments."""
  section = types.SimpleNamespace(
      alpha_lr=3e-2, alpha_b1=.5, alpha_b2=.999, alpha_weight_decay=.1,
      alpha_clip=0.)
  params = dict(PARAMS)
  m = {name: 0. for name in params}
  v = {name: 0. for name in params}
  expected = []
  for t, g in enumerate(GRADS, 1):
    for name in params:
      d = g[name] + .1 * params[name]
      m[name] = .5 * m[name] + .5 * d
      v[name] = .999 * v[name] + .001 * d ** 2
      mean, square = m[name] / (1 - .5 ** t), v[name] / (1 - .999 ** t)
      params[name] = params[name] - 3e-2 * mean / (np.sqrt(square) + 1e-8)
    expected.append(dict(params))
  assert_trees_close(run(optim.arch_adam(section)), expected)
