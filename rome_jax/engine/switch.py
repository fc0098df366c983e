"""Runs one of several modules, chosen by a number, in the memory of that one.

JAX's reverse mode through `lax.switch` keeps the residuals of every branch,
and `jax.vmap` turns a switch with a batched number into a `select` that runs
every branch. `switch` cures both: it recomputes the chosen branch in the
backward pass, and runs the examples of a `vmap` one after the other.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero

from rome_jax.engine import kernels


class Row(NamedTuple):
  """bank[index], read only where it is used, so that a switch copies nothing.

  Attributes:
    bank: [R,...].
    index: int32 in range(R).
  """

  bank: jax.Array
  index: jax.Array  # type: ignore[assignment]  # tuple.index, never called

  def read(self) -> jax.Array:
    return lax.dynamic_index_in_dim(self.bank, self.index, keepdims=False)


def _example(i, arg, batched):
  """Example i of an argument of a `vmap`.

  `batched` has True for each leaf that has a leading axis of examples.
  """
  if not isinstance(arg, Row):
    return arg[i] if batched else arg
  bank, index = arg.bank, _example(i, arg.index, batched.index)
  if not batched.bank:
    return Row(bank, index)
  # The rows of all examples form one bank, so nothing is copied here either.
  return Row(bank.reshape(-1, *bank.shape[2:]), i * bank.shape[1] + index)


def one_by_one(function: Callable) -> Callable:
  """Makes `vmap` of `function` a loop over the examples.

  A `lax.switch` in it then keeps an unbatched number and runs one branch.
  Arguments are trees of arrays and `Row`s.
  """
  mapped = custom_vmap(function)

  @mapped.def_vmap
  def rule(axis_size, in_batched, *args):
    def example(i):
      # `mapped`, not `function`: there may be another vmap around this one.
      return mapped(*jax.tree.map(
          functools.partial(_example, i), args, tuple(in_batched),
          is_leaf=lambda a: isinstance(a, Row)))
    out = lax.map(example, jnp.arange(axis_size))
    return out, jax.tree.map(lambda _: True, out)

  return mapped


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Wants:
  """Which cotangents a backward pass has to compute."""

  weights: bool
  gates: bool


def perturbed(tree: Any) -> bool:
  """Whether any leaf of these primals is differentiated.

  For the forward function of a `custom_vjp` with symbolic zeros.
  """
  return any(p.perturbed for p in jax.tree.leaves(tree, is_leaf=_is_primal))


def values(tree: Any) -> Any:
  """The values of the primals that `perturbed` takes."""
  return jax.tree.map(lambda p: p.value, tree, is_leaf=_is_primal)


def _is_primal(p):
  return hasattr(p, 'perturbed')


def dense(g: jax.Array | SymbolicZero) -> jax.Array:
  """A cotangent as an array: a symbolic zero becomes zeros."""
  return jnp.zeros(g.shape, g.dtype) if isinstance(g, SymbolicZero) else g


def gated(gate: jax.Array, y: jax.Array) -> jax.Array:
  """gate * y; for a gate of two numbers, gate[0] * y + gate[1]."""
  if gate.ndim == 0:
    return gate.astype(y.dtype) * y
  factor, offset = gate.astype(y.dtype)
  return factor * y + offset


def _gate_gradient(gate, y, g):
  """The cotangent of `gated`'s gate at g."""
  of_factor = (y * g).sum(dtype=gate.dtype)
  if gate.ndim == 0:
    return of_factor
  return jnp.stack([of_factor, g.sum(dtype=gate.dtype)])


def pull(run: Callable[[Any, jax.Array], jax.Array], wants: Wants,
         weights: Any, gate: jax.Array, x: jax.Array, g: jax.Array,
         want_weight_grads: jax.Array | None = None,
         ) -> tuple[Any, jax.Array | None, jax.Array]:
  """(dweights or None, dgate or None, dx) of gated(gate, run(weights, x)).

  At the cotangent g.

  Recomputes `run`. What `wants` does not ask for is left out here, since XLA
  could not remove it from a branch. `want_weight_grads` says the
  same at run time; see `kernels.pulled`.
  """
  factor = gate if gate.ndim == 0 else gate[0]
  scaled = factor.astype(g.dtype) * g
  if wants.weights:
    y, pullback = jax.vjp(run, weights, x)
    dweights, dx = kernels.pulled(pullback, scaled, want_weight_grads)
  else:
    y, pullback = jax.vjp(lambda x: run(weights, x), x)
    (dx,), dweights = pullback(scaled), None
  dgate = _gate_gradient(gate, y, g) if wants.gates else None
  return dweights, dgate, dx


@functools.cache
def _forward(modules):
  def branch(module, i):
    return lambda weights, gate, x: gate.astype(x.dtype) * module.apply(
        {'params': weights[i]}, x)

  branches = [branch(m, i) for i, m in enumerate(modules)]
  return one_by_one(lambda index, *args: lax.switch(index, branches, *args))


@functools.cache
def _backward(modules, wants):
  """`pull` of the chosen module; the other modules' cotangents are zeros."""

  def branch(module, i):
    def run(w, x):
      return module.apply({'params': w}, x)

    def pull_one(weights, gate, x, g, want_weight_grads):
      dw, dgate, dx = pull(
          run, wants, weights[i], gate, x, g, want_weight_grads)
      if not wants.weights:
        return None, dgate, dx
      dweights = jax.tree.map(jnp.zeros_like, weights)
      return (*dweights[:i], dw, *dweights[i + 1:]), dgate, dx
    return pull_one

  branches = [branch(m, i) for i, m in enumerate(modules)]
  return one_by_one(lambda index, *args: lax.switch(index, branches, *args))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def switch(modules: tuple[nn.Module, ...], index: jax.Array,
           weights: tuple[Any, ...], gate: jax.Array, x: jax.Array,
           want_weight_grads: jax.Array | None = None) -> jax.Array:
  """gate * modules[index](x), keeping only `x` for the backward pass.

  Args:
    modules: unbound Flax modules that map [B,H,W,C] to one common shape.
    index: int32, the number of the module to run.
    weights: a tuple with each module's 'params', {} if it has none.
    gate: float, the factor; carries the architecture's gradient.
    x: [B,H,W,C].
    want_weight_grads: see `kernels.pulled`.
  """
  return _forward(modules)(index, weights, gate, x)


def _switch_fwd(modules, index, weights, gate, x, want_weight_grads):
  wants = Wants(perturbed(weights), perturbed(gate))
  primals = values((index, weights, gate, x, want_weight_grads))
  return switch(modules, *primals), (wants, primals)


def _switch_bwd(modules, residuals, g):
  wants, (index, weights, gate, x, want_weight_grads) = residuals
  dweights, dgate, dx = _backward(modules, wants)(
      index, weights, gate, x, dense(g), want_weight_grads)
  return None, dweights, dgate, dx, None


switch.defvjp(_switch_fwd, _switch_bwd, symbolic_zeros=True)
