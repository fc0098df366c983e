"""Losses, schedules and optimiser chains, shared by search and retraining."""

import jax
import jax.numpy as jnp
import optax

from rome_jax.methods.step import OneVector


def cross_entropy(logits, labels, smoothing=0.):
  """Cross entropy of each example, [B].

  Args:
    logits: [B,classes].
    labels: [B] int.
    smoothing: share of the target spread evenly over all classes.
  """
  targets = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
  return optax.softmax_cross_entropy(logits, targets)


def correct(logits, labels):
  """1 where the largest logit is the label's, [B] float."""
  return (logits.argmax(-1) == labels).astype(jnp.float32)


def cosine(start, end, steps, *, steps_per_epoch=1, warmup_steps=0):
  """Cosine from `start` to `end`, as a function of the step.

  Args:
    start, end: learning rates at the first step and after the last.
    steps: length in steps, with the warm-up.
    steps_per_epoch: above 1, the rate changes once an epoch (PyTorch's
      schedulers); with 1, every step.
    warmup_steps: linear rise from 0 to `start` before.
  """
  return _decay(start, end, steps, steps_per_epoch, warmup_steps,
                lambda t: .5 * (1 + jnp.cos(jnp.pi * t)))


def linear(start, end, steps, *, steps_per_epoch=1, warmup_steps=0):
  """Straight line from `start` to `end`; arguments as `cosine`."""
  return _decay(start, end, steps, steps_per_epoch, warmup_steps,
                lambda t: 1 - t)


SCHEDULES = {'cosine': cosine, 'linear': linear}


def _decay(start, end, steps, steps_per_epoch, warmup_steps, shape):
  def schedule(step):
    whole = step // steps_per_epoch * steps_per_epoch
    t = (whole - warmup_steps) / max(1, steps - warmup_steps)
    decayed = end + (start - end) * shape(jnp.clip(t, 0, 1))
    rising = start * (step + 1) / max(1, warmup_steps)
    return jnp.where(step < warmup_steps, rising, decayed)
  return schedule


def sgd(schedule, section):
  """Clip, L2 added to the gradient, momentum: PyTorch's SGD after a clip.

  Args:
    schedule: learning rate as a function of the step.
    section: config with clip_norm, weight_decay, momentum, nesterov.
  """
  return OneVector(*optax.chain(
      optax.clip_by_global_norm(section.clip_norm),
      optax.add_decayed_weights(section.weight_decay),
      optax.sgd(schedule, section.momentum, section.nesterov)))


def arch_adam(section):
  """Adam with coupled L2 for alpha and beta (DARTS).

  Args:
    section: config with alpha_lr, alpha_b1, alpha_b2, alpha_weight_decay.
  """
  return optax.chain(
      optax.add_decayed_weights(section.alpha_weight_decay),
      optax.adam(section.alpha_lr, section.alpha_b1, section.alpha_b2))
