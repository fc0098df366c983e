"""Few-Shot NAS and GM-NAS in ProxylessNAS's mobile space.

  python -m rome_jax.main --config=configs/gm_mobile.py:method=gdas,split=gm \
      --config.data_dir=FOLDER --workdir=runs/gm_mobile

Arguments, the default first: method=gdas|rome_v2|spos|pada, split=gm|few_shot|
none, dataset=imagenet|cifar10.

gm: after 40 epochs without alpha the supernet splits in two, after 80 in three
more; the six leaves go on with all that they have up to epoch 120. few_shot:
one leaf for each operation of the first block, after epoch 40. spos and pada
search over the architectures of all leaves, the others take the leaf of the
best validation accuracy.

Unlike the authors', every supernet is split by the exact minimum cut (their
search for three groups never resets its running cut), alpha moves at every step
instead of every fifth, and labels are not smoothed in the search.

Hardware: one accelerator, more for the retraining. Time: not run.
Published score: GM-NAS 76.6 % top-1 on ImageNet in this space (Hu et al., ICLR
2022). This code: not run.
"""

from rome_jax import config as config_lib

METHODS = ('gdas', 'rome_v2', 'spos', 'pada')


def get_config(text=''):
  """Returns the config of one method, way to split and data set."""
  args = config_lib.arguments(
      text, method=METHODS, split=('gm', 'few_shot', 'none'),
      dataset=('imagenet', 'cifar10'))
  config = config_lib.defaults()
  config.name = f'gm_mobile {args.method} {args.split}'
  config.space = 'mobile'
  config.method = args.method
  config_lib.apply_recipe(config)
  config.dataset = args.dataset

  search, retrain = config.search, config.retrain
  if args.dataset == 'imagenet':
    config.image_size, config.stem = 224, 'imagenet'
    search.augment = retrain.augment = 'imagenet'
    search.fraction_theta, search.fraction_alpha = .99, .01
    search.batch_size, retrain.batch_size, retrain.cutout = 512, 256, 0
  search.split = args.split
  search.split_epochs = {
      'gm': '40,80', 'few_shot': '40', 'none': ''}[args.split]
  search.split_groups = '2,3' if args.split == 'gm' else '2'
  search.split_rule, search.split_inherit = 'within', 'all'
  search.epochs = 120
  search.cells, search.channels = 21, 32
  search.lr, search.lr_end, search.weight_decay = .025, 0., 4e-5
  search.alpha_lr, search.alpha_b1, search.alpha_weight_decay = 1e-3, 0., 0.
  if args.method in ('spos', 'pada'):
    search.split_choice = 'evolution'
  elif args.split == 'none':
    search.alpha_start = 40

  retrain.cells, retrain.channels = 21, 32
  retrain.epochs = 300
  retrain.lr = .05
  retrain.weight_decay = 4e-5
  retrain.label_smoothing = .1
  retrain.drop_path = 0.
  retrain.auxiliary = False
  return config
