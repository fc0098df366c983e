"""Losses, schedules and optimiser chains, shared by search and retraining."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rome_jax.methods.step import OneVector
from rome_jax.train.recipes import RetrainRecipe, SearchRecipe


def cross_entropy(logits: jax.Array, labels: jax.Array,
                  smoothing: float = 0.) -> jax.Array:
  """Returns the cross entropy of each example, [B], in nats.

  Args:
    logits: [B,classes].
    labels: [B] int.
    smoothing: share of the target that is spread evenly over all classes.

  >>> round(float(cross_entropy(jnp.zeros((1, 2)), jnp.array([0]))[0]), 4)
  0.6931
  """
  targets = optax.smooth_labels(
      jax.nn.one_hot(labels, logits.shape[-1]), smoothing)
  return optax.softmax_cross_entropy(logits, targets)


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Returns 1 where the largest logit is that of the label, else 0; [B] float.

  >>> correct(jnp.array([[0., 1.], [0., 1.]]), jnp.array([1, 0])).tolist()
  [1.0, 0.0]
  """
  return (logits.argmax(-1) == labels).astype(jnp.float32)


def cosine(start: float, end: float, steps: int, *, steps_per_epoch: int = 1,
           warmup_steps: int = 0) -> optax.Schedule:
  """Returns a cosine schedule from `start` to `end`.

  Args:
    start, end: learning rates at the first step and after the last one.
    steps: number of steps, including warm-up.
    steps_per_epoch: with 1 the rate changes every step, above 1 once per
      epoch (as PyTorch's schedulers do).
    warmup_steps: steps in which the rate first rises linearly from 0 to
      `start`.

  >>> [round(float(cosine(1., 0., 4)(step)), 2) for step in (0, 2, 4)]
  [1.0, 0.5, 0.0]
  """
  return _decay(start, end, steps, steps_per_epoch, warmup_steps,
                lambda t: .5 * (1 + jnp.cos(jnp.pi * t)))


def linear(start: float, end: float, steps: int, *, steps_per_epoch: int = 1,
           warmup_steps: int = 0) -> optax.Schedule:
  """Returns a linear schedule from `start` to `end`; arguments as `cosine`.

  >>> [float(linear(1., 0., 4)(step)) for step in (0, 1, 4)]
  [1.0, 0.75, 0.0]
  """
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


def sgd(schedule: optax.Schedule, recipe: SearchRecipe | RetrainRecipe,
        hyperparameters: tuple[str, ...] = ()) -> OneVector:
  """Returns PyTorch's SGD with clipping: clip, add L2, momentum.

  Args:
    schedule: learning rate as a function of the step.
    recipe: its clip_norm, weight_decay, momentum and nesterov are used.
    hyperparameters: what becomes part of the optimiser's state, where
      `optax.tree.set` changes it: () or ('weight_decay',).
  """
  decay: Any = optax.add_decayed_weights
  if 'weight_decay' in hyperparameters:
    decay = optax.inject_hyperparams(decay)
  return OneVector(*optax.chain(
      optax.clip_by_global_norm(recipe.clip_norm),
      decay(recipe.weight_decay),
      optax.sgd(schedule, recipe.momentum, recipe.nesterov)))


def arch_adam(recipe: SearchRecipe) -> optax.GradientTransformation:
  """Returns Adam with L2 added to the gradient, for alpha and beta (DARTS).

  Args:
    recipe: its alpha_clip, alpha_lr, alpha_b1, alpha_b2 and
      alpha_weight_decay are used.
  """
  clip = ([optax.clip_by_global_norm(recipe.alpha_clip)]
          if recipe.alpha_clip else [])
  return optax.chain(
      *clip,
      optax.add_decayed_weights(recipe.alpha_weight_decay),
      optax.adam(recipe.alpha_lr, recipe.alpha_b1, recipe.alpha_b2))
