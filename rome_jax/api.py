"""The public face: a search in your own loop, and what a run left behind.

Names here are those of the package itself: `import rome_jax as rj`.
"""

import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from rome_jax import data, errors, files
from rome_jax.cli import export as exports
from rome_jax.cli import run as cli_run
from rome_jax.cli.trained import About, Trained, load
from rome_jax.config import command_line
from rome_jax.data import examples
from rome_jax.devices import mesh as mesh_lib
from rome_jax.engine import weights
from rome_jax.methods import laws
from rome_jax.methods import step as step_lib
from rome_jax.methods.method import Method, State
from rome_jax.methods.table import METHODS
from rome_jax.show import page
from rome_jax.spaces import Space, genotypes
from rome_jax.train import metrics, optim

__all__ = ['About', 'Result', 'Trained', 'export', 'init', 'linear', 'load',
           'make_step', 'run']

Batch = Mapping[str, Any]
Loss = Callable[..., Any]


def linear(start: float, end: float, steps: int) -> Callable[[Any], Any]:
  """A temperature that falls in a straight line: step -> tau.

  Args:
    start, end: at the first step and from step `steps` on.
    steps: length of the search.

  >>> tau = linear(10., .1, 100)
  >>> float(tau(0)), round(float(tau(50)), 3)
  (10.0, 5.05)
  """
  return lambda step: laws.tau_at(
      jnp.minimum(step / max(1, steps), 1.), start, end)


def cross_entropy(logits: jax.Array,
                  batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
  """(mean cross entropy, {'accuracy': mean}) of a batch with `label` [B].

  NaN if a label is outside 0..classes-1.

  Raises:
    ValueError: labels are no integers, or not one per image.

  >>> batch = {'label': jnp.zeros(2, int)}
  >>> round(float(cross_entropy(jnp.zeros((2, 4)), batch)[0]), 4)
  1.3863
  """
  labels = batch['label']
  if labels.shape != logits.shape[:1] or not jnp.issubdtype(
      labels.dtype, jnp.integer):
    raise ValueError(
        f"batch['label'] has shape {labels.shape} and type {labels.dtype}; it "
        f'must be {logits.shape[0]} integers, one per image')
  # A label that is no class would count as a loss of 0.
  known = (labels >= 0) & (labels < logits.shape[-1])
  losses = jnp.where(known, optim.cross_entropy(logits, labels), jnp.nan)
  return losses.mean(), {'accuracy': optim.correct(logits, labels).mean()}


def make_step(method: Method | str, net: nn.Module | Loss,
              theta_tx: optax.GradientTransformation,
              arch_tx: optax.GradientTransformation, *,
              tau: float | Callable[[Any], Any] = 1., loss: Loss | None = None,
              k: int | None = None, space: Space | None = None,
              mesh: jax.sharding.Mesh | None = None,
              **options: Any) -> Callable[[State, Mapping[str, Batch]], Any]:
  """Builds one search step; jit it and call it in your own loop.

  Args:
    method: a row, such as `rj.methods.rome_v2`, or its name.
    net: a supernet (`rj.supernet`), or a function of your own, (theta, cells,
      batch, key) -> loss or (loss, metrics), where `cells` is {cell type:
      CellArch}; then give `space` too.
    theta_tx: Optax transformation of the weights; it sees their tree.
    arch_tx: Optax transformation of alpha and beta.
    tau: temperature, or a function of the step.
    loss: (logits, batch) -> loss or (loss, metrics); default: cross entropy
      of `batch['label']`. Images are `batch['image']`, [B,H,W,C] float.
    k: architectures drawn for an update; 0: as many as a site has operations.
      Default: the method's own, else 7.
    space: of a network of your own.
    mesh: of `rj.make_mesh`, to spread batch and architectures over devices.
    **options: of `rj.methods.Options`.

  Returns:
    step(state, {'train': batch, 'valid': batch}) -> (state, metrics).

  Raises:
    ValueError: the network has other channels than the method asks for,
      `space` is missing or not the network's, or an option is unknown. The
      step itself: a batch or a key of one is missing.

  >>> import optax, rome_jax as rj
  >>> space = rj.spaces.S2.restrict(num_nodes=1)
  >>> net = rj.supernet(space, rj.Sizes(cells=1, channels=4, num_classes=3,
  ...                                   image_size=8))
  >>> txs = optax.sgd(.1), optax.adam(1e-3)
  >>> step = rj.make_step(rj.methods.rome_v2, net, *txs, k=1)
  >>> state = rj.init(rj.methods.rome_v2, net, *txs, seed=0)
  >>> batch = {'image': jnp.ones((2, 8, 8, 3)), 'label': jnp.zeros(2, int)}
  >>> state, metrics = jax.jit(step)(state, {'train': batch, 'valid': batch})
  >>> int(state.step), sorted(metrics)[-2:]
  (1, ['valid_accuracy', 'valid_loss'])
  """
  method = _method(method)
  _check_partial(method, net)
  if k is None:
    k = method.recipe.get('search.k', 7)
  if k == 0:  # As many as a site has operations.
    k = _space_of(net, space).num_choices
  if type(k) is not int or k < 1:
    raise ValueError(f'k={k!r} must be a whole number of at least 1')
  for name in options.keys() - set(step_lib.Options._fields):
    raise ValueError(f'option {name!r} must be one of '
                     f'{", ".join(step_lib.Options._fields)}'
                     f'{errors.near_miss(name, step_lib.Options._fields)}')
  step = step_lib.make_step(
      method, _space_of(net, space), _loss_of(net, loss), theta_tx, arch_tx,
      tau if callable(tau) else lambda step: tau,
      step_lib.Options(k=k, **options), mesh_lib.spread(mesh))
  needed = ('image', 'label') if isinstance(net, nn.Module) and not loss else (
      ())

  def checked(state: State, batches: Mapping[str, Batch]) -> Any:
    _check_batches(method, batches, needed)
    return step(state, batches)

  return checked


def _method(method: Method | str) -> Method:
  if not isinstance(method, str):
    return method
  if method not in METHODS:
    raise ValueError(f'method {method!r} must be one of {", ".join(METHODS)}'
                     f'{errors.near_miss(method, METHODS)}')
  return METHODS[method]


def _check_batches(method, batches, needed):
  for half in dict.fromkeys(update.batch for update in method.updates):
    if half not in batches:
      raise ValueError(
          f'batches[{half!r}] is missing, which method {method.name!r} needs; '
          f'there are {", ".join(map(repr, batches)) or "none"}')
    for key in needed:
      if key not in batches[half]:
        raise ValueError(
            f'batches[{half!r}][{key!r}] is missing; there are '
            f'{", ".join(map(repr, batches[half]))}')


def init(method: Method | str, net: nn.Module | Loss,
         theta_tx: optax.GradientTransformation,
         arch_tx: optax.GradientTransformation, *, seed: int = 0,
         theta: Any = None, arch: Any = None, space: Space | None = None,
         image_channels: int = 3) -> State:
  """The state before the first step of `make_step`.

  Args:
    method, net, theta_tx, arch_tx, space: as in `make_step`.
    seed: of weights, architecture and every step's noise.
    theta: initial weights; drawn for a supernet, needed for a network of your
      own.
    arch: initial architecture parameters; default: the method's law.
    image_channels: of the images of a supernet.

  Raises:
    ValueError: `space` or `theta` is missing for a network of your own.

  >>> import rome_jax as rj
  >>> space = rj.Space('one', ('a', 'b'), num_nodes=1)
  >>> net = lambda theta, cells, batch, key: theta.sum()
  >>> txs = optax.sgd(.1), optax.adam(1e-3)
  >>> state = init(rj.methods.darts, net, *txs, theta=jnp.ones(3), space=space)
  >>> state.arch.alpha['normal'].shape
  (2, 2)
  """
  method, space = _method(method), _space_of(net, space)
  if theta is None:
    if not isinstance(net, nn.Module):
      raise ValueError('theta is missing: only the weights of a supernet are '
                       'drawn here')
    theta = weights.init_supernet(net, seed, 32, image_channels)
  if arch is None:
    # No step draws from this key: steps fold in their own, smaller number.
    arch = method.init(
        space, jax.random.fold_in(jax.random.key(seed), 2**32 - 1))
  theta = jax.tree.map(jnp.asarray, theta)
  return step_lib.init_state(
      method, space, theta, arch, theta_tx, arch_tx, seed)


def _space_of(net, space):
  own = getattr(net, 'space', None)
  found = own or space
  if own is not None and space not in (None, own):
    raise ValueError(f'space={space.name} must be that of the network, '
                     f'{own.name}')
  if found is None:
    raise ValueError('space is missing: a network of your own does not say '
                     'which space it is of')
  return found


def _check_partial(method, net):
  partial = getattr(net, 'partial', 1)
  if isinstance(net, nn.Module) and partial != method.partial:
    raise ValueError(
        f'partial={partial} of the supernet must be {method.partial} with '
        f'method {method.name!r}: rj.supernet(..., partial={method.partial})')


def _with_metrics(found):
  return found if isinstance(found, tuple) else (found, {})


def _loss_of(net, loss):
  """(theta, cells, batch, key[, want_weight_grads]) -> (loss, metrics)."""
  if not isinstance(net, nn.Module):
    return lambda *args: _with_metrics(net(*args))
  loss = loss or cross_entropy

  def of_supernet(theta, cells, batch, key, want_weight_grads=None):
    logits = net.apply({'params': theta}, batch['image'], cells,
                       want_weight_grads, rngs={'noise': key})
    return _with_metrics(loss(logits, batch))

  return of_supernet


# --------------------------------------------------- a run, and what it left


def _dataset_of(given: Any) -> data.Dataset | None:
  if given is None or isinstance(given, data.Dataset):
    return given
  if isinstance(given, tuple) and len(given) == 2:
    if not any(isinstance(part, list | tuple) or hasattr(part, 'shape')
               for part in given):
      return data.from_examples(*given)
    pairs = given if isinstance(given[0], tuple) else (given,)
    return data.from_arrays(*pairs)
  if isinstance(given, str | Mapping) or not examples.is_iterable(given):
    raise errors.UserError(
        f'dataset is a {type(given).__name__}; give (images, labels), an '
        'iterable of (image, label), a pair of either for training and test, '
        'or what rome_jax.data.from_arrays or from_examples makes')
  return data.from_examples(given)


class Result(NamedTuple):
  """What a run gave.

  Attributes:
    finished: False if a signal stopped it; the same call continues it.
    workdir: where everything is.
    genotype: derived (or given); None before the search has saved one.
    figures: what stands in result.json: summary, parameters, multiply-adds
      and more; {} unless finished.
  """

  finished: bool
  workdir: pathlib.Path
  genotype: genotypes.Genotype | None
  figures: dict[str, Any]

  def _repr_html_(self) -> str:
    """What a notebook shows: the cells, the figures, where the report is."""
    state = 'finished' if self.finished else 'not finished'
    summary = self.figures.get('summary') or {}
    table = (self.figures.get('table') or {}).get('datasets') or {}
    facts = [('run', f'{self.workdir}, {state}'),
             ('genotype', self.genotype and genotypes.to_text(self.genotype)),
             *((f'test accuracy, {kind}', page.spread(row))
               for kind, row in summary.items()),
             *((f'table, {name}', f'{row["test"]:.2f}%, rank {row["rank"]}')
               for name, row in table.items()),
             ('parameters', page.size(self.figures.get('params'))),
             ('report', str(self.workdir / 'report.html') if self.figures else (
                 None))]
    return page.facts(facts) + ''.join(
        page.picture(self.workdir, name)
        for name in ('cell_normal', 'cell_reduce'))


def run(config: Any, workdir: str | pathlib.Path, *,
        dataset: Any = None,
        writers: Iterable[metrics.Writer] = ()) -> Result:
  """What `rome-jax run` does: search, derive, retrain, report.

  Args:
    config: of `rome_jax.config.defaults()`, or a path as `--config` takes it.
    workdir: folder of the run; a run that is there goes on.
    dataset: instead of the one that the config names: a `Dataset`; arrays as
      `data.from_arrays` takes them, (images, labels); a grain MapDataset or an
      iterable of (image, label), as `data.from_examples` takes them; or a pair
      of either, for training and test.
    writers: objects with `write(phase, step, scalars)`, which get every line
      of metrics too.

  Raises:
    UserError: a mistake in the config, the data or the workdir.
    DivergedError: the loss is no longer finite.

  >>> result = run(config, workdir, dataset=dataset)  # doctest: +ELLIPSIS
  genotype: ...
  >>> result.finished, result.figures['summary']['derived']['n']
  (True, 1)
  """
  if isinstance(config, str | pathlib.Path):
    config = command_line.load([f'--config={config}']).config
  images = _dataset_of(dataset)
  writers = tuple(writers)
  for writer in writers:
    if not hasattr(writer, 'write'):
      raise errors.UserError(
          f'writers holds {writer!r}, which has no method '
          'write(phase, step, scalars)')
  workdir = pathlib.Path(workdir)
  cli_run.run(config, workdir, images, writers)
  path, result = workdir / 'genotype.json', workdir / 'result.json'
  genotype = genotypes.load(str(path)) if path.exists() else None
  figures = files.read_json(result) if result.exists() else {}
  return Result(bool(figures), workdir, genotype, figures)


def export(trained: Trained | str | pathlib.Path, to: str,
           path: str | pathlib.Path) -> dict[str, Any]:
  """Writes a trained network for other programs, and its facts beside it.

  Args:
    trained: of `load`, or the folder of a finished run.
    to: 'stablehlo' (cpu, cuda and tpu), 'onnx' or 'safetensors'.
    path: of the file; PATH.json gets preprocessing, class names and genotype.

  Returns:
    The facts, `difference` to the network among them.

  Raises:
    UserError: an unknown format, a package is missing, or what was exported
      differs from the network.

  >>> facts = export(workdir, 'stablehlo', workdir / 'net.stablehlo')
  >>> facts['class_names'], facts['difference'] < 1e-4
  (['cat', 'dog'], True)
  """
  if not isinstance(trained, Trained):
    trained = load(trained)
  return exports.write(trained, to, path)
