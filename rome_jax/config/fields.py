"""The configuration of a run: its fields, its checks, its command line.

One table holds every field: default, what is allowed, what it means. The
defaults, the checks, `--help` and the type of `--config.field=value` are all
read from it. Sources: DARTS is Liu et al., ICLR 2019, and its code; ROME is
Wang et al., ICCV 2023. Where ROME's text is silent the meaning says
"unstated".
"""

import dataclasses
import difflib
from typing import Any

import ml_collections

from rome_jax import errors

FILENAME = 'config.json'


METHODS = ('rome_v1', 'rome_v2', 'gdas')


DTYPES = ('float32', 'bfloat16')


AUGMENTATIONS = ('none', 'shift', 'cifar', 'svhn', 'imagenet')


# What may change between the two starts of one run: nothing that a result
# depends on.
FREE_FIELDS = (
    'name', 'log_every', 'checkpoint_every', 'keep_checkpoints',
    'compilation_cache', 'data_dir', 'mesh.data', 'mesh.sample')


@dataclasses.dataclass(frozen=True)
class Field:
  """One row of the table.

  Attributes:
    default: the value, whose type is the field's type.
    meaning: what it is, with unit and source.
    low: the least number allowed, or None.
    high: the largest number allowed, or None.
    low_open: whether `low` itself is forbidden.
    high_open: whether `high` itself is forbidden.
    choices: the values allowed, or () for any.
  """

  default: Any
  meaning: str
  low: float | None = None
  high: float | None = None
  low_open: bool = False
  high_open: bool = False
  choices: tuple[str, ...] = ()


def _choice(default, meaning, choices):
  return Field(default, meaning, choices=choices)


def _at_least(low, default, meaning):
  return Field(default, meaning, low=low)


def _positive(default, meaning):
  return Field(default, meaning, low=0, low_open=True)


def _below_one(default, meaning):
  return Field(default, meaning, low=0, high=1, high_open=True)


def _share(default, meaning):
  return Field(default, meaning, low=0, low_open=True, high=1)


_TOP = {
    'name': Field('', 'a name of your own for the run; only shown'),
    'seed': Field(0, 'every random number of the run follows from it', 0,
                  2**32 - 1),
    'method': _choice(
        'rome_v2', 'how architectures are sampled and derived: pairs of edges '
        '(ROME-v1, Eq. 10-14), Gumbel-Top2 edges (ROME-v2, Eq. 15-17; the '
        "paper's default), all edges active (GDAS)", METHODS),
    'space': Field('s0', 'search space, a name of rome_jax.spaces.SPACES'),
    'in_degree': _at_least(
        0, 0, 'edges that a node keeps; 0: as the space says. ROME samples '
        'topologies of NAS-Bench-201 with 2 and drop_none'),
    'drop_none': Field(
        False, 'leave the operation none out of the space; then S3 is S2, and '
        'in NAS-Bench-201 only in_degree leaves edges out. (S3 searches it '
        'but never derives it)'),
    'dataset': Field(
        'digits', 'digits, cifar10, cifar100, svhn, mnist, fashion_mnist, '
        'imagenet, folder, npz or tfds:NAME; its files are under data_dir'),
    'data_dir': Field('', "folder of the data set's files"),
    'image_size': _at_least(
        0, 0, 'side in pixels to which images are brought; 0: as they are'),
    'test_fraction': Field(
        .2, 'share of your own data that is held out for the test where it '
        'brings no test split', low=0, high=1, low_open=True,
        high_open=True),
    'stem': _choice(
        'auto', "first layers: 'cifar' keeps the resolution, 'imagenet' "
        "divides it by 8, 'auto' is 'imagenet' from 128 pixels",
        ('auto', 'cifar', 'imagenet')),
    'genotype': Field(
        '', 'path or published name of a genotype, or a string, code or index '
        'of NAS-Bench-201: no search, only its retraining'),
    'log_every': _at_least(1, 50, 'steps between two lines of metrics'),
    'checkpoint_every': _at_least(1, 500, 'steps between two checkpoints'),
    'keep_checkpoints': _at_least(
        1, 2, 'checkpoints that stay; with 1 there is none to fall back to'),
    'compilation_cache': Field(
        'auto', "folder of compiled programs; 'auto': one of the user's; "
        'empty: none'),
}


_DTYPE = (
    'dtype of activations and convolutions; weights, statistics of BatchNorm, '
    'losses and optimiser are float32 in any case')


_ACCUMULATE = (
    'parts of a batch, evaluated one after another in the memory of one; '
    'their gradients are averaged, and the statistics of BatchNorm are those '
    'of a part')


_SEARCH = {
    'cells': _at_least(
        1, 8, 'cells of the supernet, reductions at 1/3 and 2/3 (DARTS)'),
    'channels': _at_least(1, 16, 'channels of the first cell (DARTS)'),
    'epochs': _at_least(
        0, 50, 'passes over the theta half; ROME keeps K x epochs near 350'),
    'max_steps': _at_least(0, 0, 'upper limit of the steps; 0: none'),
    'batch_size': _at_least(
        1, 64, 'images of one step, shared by its K samples (ROME, memory '
        'table)'),
    'k': _at_least(
        1, 7, 'K, architectures sampled a step (Algorithm 1); 1 in GDAS'),
    'samples': _choice(
        'auto', "the K samples one after another in the memory of one "
        "('scan') or batched ('vmap'); 'auto': as the device and its memory "
        "suggest", ('auto', 'scan', 'vmap')),
    'dtype': _choice('float32', _DTYPE, DTYPES),
    'accumulate': _at_least(1, 1, _ACCUMULATE),
    'sampler': _choice(
        'iid', "theta's samples: independent (Algorithm 1), or each "
        'operation given to each edge equally often (FairNAS), sampled or '
        'not', ('iid', 'strict_fair')),
    'order': _choice(
        'alpha_first', 'what a step updates first: alpha and beta '
        '(Algorithm 1) or theta (GDAS)', ('alpha_first', 'theta_first')),
    'theta_reduce': _choice(
        'sum', "the K gradients of theta (Eq. 21: sum)", ('sum', 'mean')),
    'alpha_reduce': _choice(
        'mean', 'the K gradients of alpha and beta (Eq. 20: mean)',
        ('sum', 'mean')),
    'tau_start': _positive(
        10., 'temperature of the relaxation at first (GDAS; unstated)'),
    'tau_end': _positive(.1, 'temperature at last (GDAS; unstated)'),
    'tau_schedule': _choice(
        'linear', "from tau_start to tau_end; 'constant' stays at tau_start",
        ('linear', 'exponential', 'constant')),
    'tau_per': _choice(
        'epoch', 'how often tau changes (GDAS: epoch)', ('epoch', 'step')),
    'lr': _positive(.05, "theta's learning rate at first (ROME; DARTS .025)"),
    'lr_end': _at_least(0, .001, 'learning rate at last, by a cosine (DARTS)'),
    'lr_per': _choice(
        'epoch', 'how often the learning rate changes (DARTS: epoch)',
        ('epoch', 'step')),
    'momentum': _below_one(.9, "of theta's SGD (DARTS)"),
    'nesterov': Field(False, 'Nesterov momentum (GDAS: yes, DARTS: no)'),
    'weight_decay': _at_least(
        0, 3e-4, "L2 of theta, added to the gradient (DARTS)"),
    'clip_norm': _positive(
        5., "largest global norm of theta's reduced gradient (DARTS)"),
    'alpha_lr': _positive(3e-4, "Adam's rate for alpha and beta (DARTS)"),
    'alpha_b1': _below_one(.5, "Adam's b1 (DARTS)"),
    'alpha_b2': _below_one(.999, "Adam's b2 (DARTS)"),
    'alpha_weight_decay': _at_least(
        0, 1e-3, 'L2 of alpha and beta, added to the gradient (DARTS)'),
    'alpha_init': _at_least(
        0, 1e-3, 'standard deviation of alpha at first (DARTS)'),
    'beta_init': _at_least(
        0, 1e-3, 'standard deviation of beta at first (unstated)'),
    'fraction_theta': _share(
        .5, 'share of each class of the training images for theta (DARTS)'),
    'fraction_alpha': _share(
        .5, 'share for alpha and beta, disjoint from the other (DARTS)'),
    'augment': _choice('cifar', 'augmentation', AUGMENTATIONS),
    'cutout': _at_least(
        0, 0, 'side in pixels of the square set to zero; 0: none (DARTS)'),
}


_RETRAIN = {
    'cells': _at_least(1, 20, 'cells of the discrete network (DARTS)'),
    'channels': _at_least(1, 36, 'channels of the first cell (DARTS)'),
    'epochs': _at_least(0, 600, 'passes over the training images (DARTS)'),
    'batch_size': _at_least(1, 96, 'images of one step (DARTS)'),
    'dtype': _choice('float32', _DTYPE, DTYPES),
    'accumulate': _at_least(1, 1, _ACCUMULATE),
    'remat': _choice(
        'none', "what is computed again in the backward pass to save memory: "
        "nothing, or the inside of each cell ('cells'); the results are the "
        'same', ('none', 'cells')),
    'lr': _positive(.025, "SGD's largest learning rate (DARTS)"),
    'lr_end': _at_least(0, 0., 'learning rate at last (DARTS)'),
    'lr_schedule': _choice(
        'cosine', 'way from lr to lr_end after the warm-up (DARTS: cosine)',
        ('cosine', 'linear')),
    'warmup_epochs': _at_least(
        0, 0, 'epochs in which the learning rate rises from 0 to lr'),
    'momentum': _below_one(.9, 'of SGD (DARTS)'),
    'nesterov': Field(False, 'Nesterov momentum (DARTS: no)'),
    'weight_decay': _at_least(0, 3e-4, 'L2, added to the gradient (DARTS)'),
    'clip_norm': _positive(5., 'largest global norm of the gradient (DARTS)'),
    'drop_path': _below_one(
        .2, 'chance to drop a path at the end, rising from 0 linearly over '
        'the epochs (DARTS .2, P-DARTS .3)'),
    'auxiliary': Field(
        True, 'whether a second classifier hangs at 2/3 of the depth '
        '(DARTS)'),
    'auxiliary_weight': _at_least(0, .4, 'weight of its loss (DARTS)'),
    'cutout': _at_least(
        0, 16, 'side in pixels of the square set to zero; 0: none (DARTS)'),
    'label_smoothing': _below_one(0., 'share spread evenly over all classes'),
    'augment': _choice('cifar', 'augmentation', AUGMENTATIONS),
    'seeds': _at_least(
        0, 1, 'retrainings from scratch, whose mean and spread are shown; '
        '0: none'),
    'random_architectures': _at_least(
        0, 0, 'random genotypes of the space retrained alike, to compare'),
    'eval_every': _at_least(1, 1, 'epochs between two tests'),
    'eval_batch_size': _at_least(
        0, 0, 'images of one test batch; 0: as batch_size'),
}


_MESH = {
    'data': _at_least(
        0, 0, 'parts into which a batch is cut, a device each; 0: as many as '
        'the devices give'),
    'sample': _at_least(
        1, 1, 'groups of devices, each with its share of the K architectures '
        'of a search'),
}


SECTIONS = {'search': _SEARCH, 'retrain': _RETRAIN, 'mesh': _MESH}


# {'seed': Field, ..., 'search.cells': Field, ...}
FIELDS = {
    **_TOP, **{f'{section}.{name}': field
               for section, fields in SECTIONS.items()
               for name, field in fields.items()}}


def defaults() -> ml_collections.ConfigDict:
  """Every field at its default, locked: unknown names are errors."""
  config = {name: field.default for name, field in _TOP.items()}
  for section, fields in SECTIONS.items():
    config[section] = {name: field.default for name, field in fields.items()}
  return ml_collections.ConfigDict(config).lock()


def to_json(config) -> dict:
  """Every field as a JSON object; sections are objects in it."""
  return config.to_dict()


KINDS = {int: 'a whole number', float: 'a number', str: 'text',
          bool: 'true or false'}


def near_field(name):
  """'; did you mean X?' with the full names of the likely fields, or ''."""
  section, _, last = name.rpartition('.')
  full_names = {}
  for full in FIELDS:
    full_names.setdefault(full.split('.')[-1], []).append(full)
  near = difflib.get_close_matches(last, full_names, 1)
  if not near:
    return ''
  found = full_names[near[0]]
  # A section spelled right decides between search.lr and retrain.lr.
  found = [full for full in found if full.startswith(f'{section}.')] or found
  return f'; did you mean {" or ".join(map(repr, found))}?'


def check_known(name):
  if name in SECTIONS:
    raise errors.UserError(
        f'config.{name} is a section; set one of its fields, for example '
        f'config.{name}.{next(iter(SECTIONS[name]))}')
  if name not in FIELDS:
    raise errors.UserError(
        f'config field {name} is unknown{near_field(name)}')


def flatten(value, prefix=''):
  """{'search.cells': 8, ...} of a nested dict."""
  flat = {}
  for name, item in value.items():
    if isinstance(item, dict) and item:
      flat |= flatten(item, f'{prefix}{name}.')
    else:
      flat[f'{prefix}{name}'] = item
  return flat
