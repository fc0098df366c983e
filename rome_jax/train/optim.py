"""Losses, schedules and optimiser chains, shared by search and retraining."""

import jax
import jax.numpy as jnp
import optax

from rome_jax.methods.step import OneVector
from rome_jax.train.recipes import RetrainRecipe, SearchRecipe


def cross_entropy(logits: jax.Array, labels: jax.Array,
                  smoothing: float = 0.) -> jax.Array:
  """Cross entropy of each example, [B].

  Args:
    logits: [B,classes].
    labels: [B] int.
    smoothing: share of the target spread evenly over all classes.
  """
  targets = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
  return optax.softmax_cross_entropy(logits, targets)


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """1 where the largest logit is the label's, [B] float."""
  return (logits.argmax(-1) == labels).astype(jnp.float32)


def cosine(start: float, end: float, steps: int, *, steps_per_epoch: int = 1,
           warmup_steps: int = 0) -> optax.Schedule:
  """Cosine from `start` to `end`, as a function of the step.

  Args:
    start, end: learning rates at the first step and after the last.
    steps: length in steps, warm-up included.
    steps_per_epoch: above 1, the rate changes once an epoch (as PyTorch's
      schedulers do); with 1, every step.
    warmup_steps: of a linear rise from 0 to `start`, which comes first.
  """
  return _decay(start, end, steps, steps_per_epoch, warmup_steps,
                lambda t: .5 * (1 + jnp.cos(jnp.pi * t)))


def linear(start: float, end: float, steps: int, *, steps_per_epoch: int = 1,
           warmup_steps: int = 0) -> optax.Schedule:
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


def sgd(schedule: optax.Schedule,
        recipe: SearchRecipe | RetrainRecipe) -> OneVector:
  """Clip, L2 added to the gradient, momentum: PyTorch's SGD after a clip.

  Args:
    schedule: learning rate as a function of the step.
    recipe: gives clip_norm, weight_decay, momentum, nesterov.
  """
  return OneVector(*optax.chain(
      optax.clip_by_global_norm(recipe.clip_norm),
      optax.add_decayed_weights(recipe.weight_decay),
      optax.sgd(schedule, recipe.momentum, recipe.nesterov)))


def arch_adam(recipe: SearchRecipe) -> optax.GradientTransformation:
  """Adam with coupled L2 for alpha and beta (DARTS).

  Args:
    recipe: gives alpha_lr, alpha_b1, alpha_b2, alpha_weight_decay.
  """
  return optax.chain(
      optax.add_decayed_weights(recipe.alpha_weight_decay),
      optax.adam(recipe.alpha_lr, recipe.alpha_b1, recipe.alpha_b2))
