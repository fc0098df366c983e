"""Metrics of a run to a dashboard. Copy this file beside yours.

  import trackers
  writer = trackers.WandB(project='nas', id=name, resume='allow')
  rj.run(config, workdir, writers=[writer])
  writer.run.finish()

A writer is any object with `write(phase, step, scalars)`. `phase` is 'search' or
'retrain/NAME'; `scalars` are numbers, or None for one that is not finite. After
a resume a writer gets the lines since the last checkpoint again. A run's own
metrics.jsonl and TensorBoard events are written in any case.
"""


class WandB:
  """Weights & Biases; keyword arguments are those of `wandb.init`.

  Phases count their own steps, so that 'search/step' is the axis of 'search/*'.
  With a fixed `id` and `resume='allow'` a continued run goes on there.
  """

  def __init__(self, **settings):
    import wandb

    self.run = wandb.init(**settings)
    self._phases = set()

  def write(self, phase, step, scalars):
    if phase not in self._phases:
      self._phases.add(phase)
      self.run.define_metric(f'{phase}/*', step_metric=f'{phase}/step')
    self.run.log({f'{phase}/step': step} | {
        f'{phase}/{name}': value for name, value in scalars.items()
        if value is not None})


class TensorBoard:
  """Plain TensorBoard in a folder of your own, besides WORKDIR/events."""

  def __init__(self, folder):
    self._folder, self._writers = folder, {}

  def write(self, phase, step, scalars):
    from tensorboardX import SummaryWriter

    if phase not in self._writers:
      self._writers[phase] = SummaryWriter(f'{self._folder}/{phase}')
    for name, value in scalars.items():
      if value is not None:
        self._writers[phase].add_scalar(name, value, step)
    self._writers[phase].flush()
