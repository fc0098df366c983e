"""SNAS: the concrete mixture, its limit, and the authors' update anew."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import two_cells as net

from rome_jax import spaces
from rome_jax.methods import table
from rome_jax.methods.method import ArchParams, full_mask
from rome_jax.methods.method import gumbel as gumbel_noise

SNAS = table.METHODS['snas']


def params_of(seed=0):
  return ArchParams(
      jax.tree.map(np.float32, net.alpha_of(seed, 1.)),
      {t: np.zeros(0, np.float32) for t in spaces.CELL_TYPES})


def noises(params, k, seed=0):
  return gumbel_noise(params, jax.random.key(seed), k)


# -------------------------------------------------------------- the mixture


def test_gates_are_the_concrete_distribution():
  """softmax((log p + G) / tau) in NumPy, float64; a mask's have none."""
  params = params_of()
  noise = jax.tree.map(lambda a: a[0], noises(params, 1))
  mask = {t: np.array(m) for t, m in full_mask(net.SPACE).items()}
  mask['reduce'][2, 1] = False
  cells = SNAS.sample(net.SPACE, params, noise, .7, mask)
  for t in spaces.CELL_TYPES:
    alpha = np.where(mask[t], np.float64(params.alpha[t]), -np.inf)
    p = np.exp(alpha) / np.exp(alpha).sum(-1, keepdims=True)
    with np.errstate(divide='ignore'):
      z = np.exp((np.log(p) + np.float64(noise.alpha[t])) / .7)
    np.testing.assert_allclose(
        np.reshape(cells[t].gates, (5, 3)), z / z.sum(-1, keepdims=True),
        rtol=1e-4, atol=1e-7)


def test_towards_tau_0_it_is_a_single_path(quick_jit):
  """The same noise at tau = 1e-4: GDAS' hard choice on every edge."""
  params, k = params_of(), 200
  noise = noises(params, k)
  gates = quick_jit(jax.vmap(lambda noise: {
      t: cell.gates for t, cell in SNAS.sample(
          net.SPACE, params, noise, 1e-4).items()}))(noise)
  hard = quick_jit(jax.vmap(lambda noise: {
      t: cell.ops for t, cell in table.METHODS['gdas'].sample(
          net.SPACE, params, noise, 1e-4).items()}))(noise)
  for t in spaces.CELL_TYPES:
    ones = np.eye(3)[np.asarray(hard[t])]  # [k,E,O]
    soft = np.reshape(gates[t], (k, 5, 3))
    # Not yet one-hot where the two best scores are within .001.
    sure = soft.max(-1) > 1 - 1e-4
    assert sure.mean() > .99
    np.testing.assert_allclose(soft[sure], ones[sure], atol=1e-4)


def test_the_likeliest_gate_is_drawn_by_softmax(quick_jit):
  """The largest gate is operation o with probability p_o; 5 sigma."""
  params, n = params_of(), 20_000
  gates = quick_jit(jax.vmap(lambda noise: SNAS.sample(
      net.SPACE, params, noise, 1.)['normal'].gates))(noises(params, n))
  largest = np.reshape(gates, (n, 5, 3)).argmax(-1)
  e = np.exp(np.float64(params.alpha['normal']))
  p = e / e.sum(-1, keepdims=True)
  found = (largest[..., None] == np.arange(3)).mean(0)
  assert (np.abs(found - p) < 5 * np.sqrt(p * (1 - p) / n)).all()


def test_alpha_begins_at_1():
  """N(1, .01) over 196 entries; bounds: 5 sigma."""
  alpha = SNAS.init(spaces.S0, jax.random.key(0), .01).alpha
  values = np.concatenate([np.ravel(a) for a in alpha.values()])
  assert len(values) == 196
  assert abs(values.mean() - 1) < 5 * .01 / 14
  assert abs(values.std() - .01) < 5 * .01 / (2 * 196) ** .5


# ------------------------------------------------------ the authors' update


def test_steps_are_those_of_the_authors(quick_jit):
  """One loss, one backward pass, both optimisers; noise as an argument."""
  torch = pytest.importorskip('torch')
  oracle = net.Torch(torch)
  with jax.enable_x64(True):
    step, state = net.make(SNAS, tau=.6)
    step = quick_jit(step)
    for number in range(3):
      key = jax.random.split(net.update_key(SNAS, number, 'both'), 3)[0]
      noise = SNAS.noise(net.SPACE, state.arch, key, 1)
      state, metrics = step(state, net.batches_of())
      gates = {t: torch.softmax(
          (torch.log_softmax(a, -1) + torch.tensor(
              np.asarray(noise.alpha[t][0]))) / .6, -1)
               for t, a in oracle.alpha.items()}
      oracle.adam.zero_grad()
      loss = oracle.loss('train', gates)
      norm = oracle.step_theta(loss)
      oracle.adam.step()
      assert float(metrics['train_loss']) == pytest.approx(
          loss.item(), rel=1e-8)
      assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-8)
      net.check(state, oracle)
  assert 'valid_loss' not in metrics


def test_k_samples(quick_jit):
  """Sums over theta, means over alpha, of K draws."""
  with jax.enable_x64(True):
    step, state = net.make(SNAS, txs=net.plain(), k=3)
    key = jax.random.split(net.update_key(SNAS, 0, 'both'), 3)[0]
    noise = SNAS.noise(net.SPACE, state.arch, key, 3)
    after, _ = quick_jit(step)(state, net.batches_of())

    def loss(theta, arch, noise):
      return net.loss_fn(theta, SNAS.sample(net.SPACE, arch, noise, 1.),
                         net.batches_of()['train'], None)[0]

    grad = quick_jit(jax.grad(loss, (0, 1)))
    grads = [grad(state.theta, state.arch,
                  jax.tree.map(lambda a, k=k: a[k], noise))
             for k in range(3)]
    theta, arch = jax.tree.map(lambda *a: sum(a), *grads)
    moved = jax.tree.map(jnp.subtract, (state.theta, state.arch),
                         (after.theta, after.arch))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        moved, (theta, jax.tree.map(lambda a: a / 3, arch)))


# ------------------------------------------------------------------ the row


def test_what_it_refuses():
  section = types.SimpleNamespace(k=2, alpha_start=0)
  assert SNAS.check(SNAS, spaces.S0, section) is None
  assert 'alpha_start=5 must be 0' in SNAS.check(
      SNAS, spaces.S0, types.SimpleNamespace(k=1, alpha_start=5))
  assert "method='snas' needs a space" in SNAS.check(
      SNAS, spaces.MOBILE_TINY, section)
