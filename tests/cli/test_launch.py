"""The scripts under launch/, with stand-ins for the clusters' commands."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SHELLCHECK = shutil.which('shellcheck') or shutil.which(
    'shellcheck', path=str(pathlib.Path(sys.executable).parent))

# Like the real one it answers TERM by killing its tasks.
SRUN = """#!/usr/bin/env bash
while [[ $1 == --* ]]; do echo "$1" >>"$LOG/srun"; shift; done
"$@" &
echo $! >"$LOG/task"
trap 'kill -KILL $(<"$LOG/task")' TERM
wait $!
"""
SCANCEL = """#!/usr/bin/env bash
echo "$*" >>"$LOG/scancel"
kill -TERM "$(<"$LOG/task")"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in
  show) echo "JobId=$3 JobState=${STATE:-RUNNING} Reason=None" ;;
  requeue) echo "$2" >>"$LOG/requeue" ;;
esac
"""
# Stands for Python, and so for the run; ends as $WAY says.
PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" >"$LOG/args"
finish() { mkdir -p run; touch run/result.json run/report.html; }
case $WAY in
  done) finish ;;
  stopped)
    trap 'echo TERM >>"$LOG/heard"' TERM
    touch "$LOG/ready"
    while [[ ! -e $LOG/heard ]]; do sleep .02; done
    sleep .3 ;;
  killed) kill -KILL $$ ;;
  *) exit "$WAY" ;;
esac
"""


@pytest.fixture
def fakes(tmp_path):
  """A folder for PATH, and the environment that has it there."""
  folder = tmp_path / 'bin'
  folder.mkdir()
  for name, text in (('srun', SRUN), ('scancel', SCANCEL),
                     ('scontrol', SCONTROL), ('python', PYTHON)):
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)
  (tmp_path / 'log').mkdir()
  return os.environ | {
      'PATH': f'{folder}:{os.environ["PATH"]}', 'LOG': str(tmp_path / 'log'),
      'SLURM_JOB_ID': '42', 'SLURM_NTASKS': '1', 'WAY': 'done'}


def slurm(tmp_path, environment, *flags):
  return subprocess.Popen(
      ['bash', str(LAUNCH / 'slurm.sh'), *flags], cwd=tmp_path,
      env=environment, text=True, stdout=subprocess.PIPE,
      stderr=subprocess.PIPE, start_new_session=True)


def finish(process, limit=30):
  try:
    _, err = process.communicate(timeout=limit)
  finally:
    if process.poll() is None:
      os.killpg(process.pid, signal.SIGKILL)
  return process.returncode, err


def read(tmp_path, name):
  path = tmp_path / 'log' / name
  return path.read_text() if path.exists() else ''


def wait_for(path, limit=60):
  deadline = time.monotonic() + limit
  while not path.exists():
    assert time.monotonic() < deadline
    time.sleep(.02)


def test_slurm_runs_what_it_was_given(fakes, tmp_path):
  code, err = finish(slurm(
      tmp_path, fakes | {'SLURM_NTASKS': '2'}, 'a config.py', 'run',
      '--config.name=two words'))
  assert code == 0, err
  assert read(tmp_path, 'args').splitlines() == [
      '-m', 'rome_jax.main', '--config=a config.py', '--workdir=run',
      '--config.name=two words', '--distributed']
  assert not read(tmp_path, 'requeue')


def test_slurm_says_how_it_is_called(fakes, tmp_path):
  code, err = finish(slurm(tmp_path, fakes, 'config'))
  assert code == 2 and 'CONFIG WORKDIR' in err


@pytest.mark.parametrize('way, extra, requeued, expected', [
    ('4', {}, True, 0),
    ('2', {}, False, 2),
    ('3', {'SLURM_NTASKS': '2'}, False, 3),
    ('killed', {}, False, 137),  # by itself: out of memory, most likely
    ('killed', {'SLURM_NTASKS': '2'}, True, 0),
    ('4', {'STATE': 'CANCELLED'}, False, 4),
    ('4', {'SLURM_RESTART_COUNT': '20'}, False, 4),
    ('4', {'SLURM_RESTART_COUNT': '20', 'MAX_RESTARTS': '30'}, True, 0)])
def test_slurm_requeues_what_can_continue(
    fakes, tmp_path, way, extra, requeued, expected):
  code, _ = finish(slurm(
      tmp_path, fakes | extra | {'WAY': way}, 'config', 'run'))
  assert code == expected
  assert read(tmp_path, 'requeue') == '42\n' * requeued
  assert '--distributed' in read(tmp_path, 'args') or (
      extra.get('SLURM_NTASKS') != '2')


@pytest.mark.parametrize('state', ['RUNNING', 'CANCELLED'])
def test_slurm_passes_term_on_and_waits(fakes, tmp_path, state):
  process = slurm(tmp_path, fakes | {'WAY': 'stopped', 'STATE': state},
                  'config', 'run')
  wait_for(tmp_path / 'log' / 'ready')
  process.send_signal(signal.SIGTERM)
  code, err = finish(process)
  assert code == 0, err
  assert read(tmp_path, 'heard') == 'TERM\n'
  assert read(tmp_path, 'scancel') == '--signal=TERM 42\n'
  assert read(tmp_path, 'requeue') == '42\n' * (state == 'RUNNING')


@pytest.mark.slow
def test_slurm_finishes_a_real_run_in_two_starts(fakes, tmp_path):
  from tiny_run import CONFIG
  (tmp_path / 'tiny.py').write_text(
      CONFIG.format(cache=str(tmp_path / 'cache')))
  python = tmp_path / 'bin' / 'python'
  python.write_text(f"""#!/usr/bin/env bash
exec {sys.executable} {ROOT}/tests/runner.py "${{@:3}}"
""")
  environment = fakes | {'JAX_PLATFORMS': 'cpu',
                         'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  process = slurm(tmp_path, environment, 'tiny.py', 'run')
  wait_for(tmp_path / 'run' / 'metrics.jsonl', 200)
  process.send_signal(signal.SIGTERM)
  assert finish(process, 100)[0] == 0
  assert read(tmp_path, 'requeue') == '42\n'
  assert not (tmp_path / 'run' / 'result.json').exists()
  code, err = finish(slurm(tmp_path, environment, 'tiny.py', 'run'), 500)
  assert code == 0, err
  assert read(tmp_path, 'requeue') == '42\n'
  assert json.loads((tmp_path / 'run' / 'result.json').read_text())['genotype']


# ---------------------------------------------------------------------- GKE


@pytest.fixture(scope='module')
def jobset():
  return yaml.safe_load((LAUNCH / 'gke_jobset.yaml').read_text())


def test_the_jobset_has_the_form_of_one(jobset):
  assert jobset['apiVersion'] == 'jobset.x-k8s.io/v1alpha2'
  assert jobset['kind'] == 'JobSet'
  spec = jobset['spec']
  assert set(spec) == {'failurePolicy', 'replicatedJobs'}
  assert spec['failurePolicy']['maxRestarts'] > 0
  [job] = spec['replicatedJobs']
  assert set(job) == {'name', 'replicas', 'template'} and job['replicas'] == 1
  spec = job['template']['spec']
  pod = spec['template']['spec']
  # Each lost pod fails the job, so that JobSet starts all of them again.
  assert spec['backoffLimit'] == 0 and pod['restartPolicy'] == 'Never'
  assert spec['completionMode'] == 'Indexed'
  assert pod['terminationGracePeriodSeconds'] >= 60
  [container] = pod['containers']
  x, y = map(int, pod['nodeSelector'][
      'cloud.google.com/gke-tpu-topology'].split('x'))
  chips = container['resources']['limits']['google.com/tpu']
  assert spec['completions'] == spec['parallelism'] == x * y // chips


def test_the_jobset_gives_up_only_what_is_hopeless(jobset):
  [rule] = jobset['spec']['failurePolicy']['rules']
  assert rule['action'] == 'FailJobSet'
  assert rule['onJobFailureReasons'] == ['PodFailurePolicy']
  spec = jobset['spec']['replicatedJobs'][0]['template']['spec']
  [rule] = spec['podFailurePolicy']['rules']
  assert rule['action'] == 'FailJob'
  assert rule['onExitCodes']['values'] == [2, 3]
  containers = spec['template']['spec']['containers']
  assert rule['onExitCodes']['containerName'] == containers[0]['name']


def test_the_jobsets_workdir_is_on_the_shared_volume(jobset):
  pod = jobset['spec']['replicatedJobs'][0]['template']['spec'][
      'template']['spec']
  [container], [volume] = pod['containers'], pod['volumes']
  [mount] = container['volumeMounts']
  assert mount['name'] == volume['name'] and 'persistentVolumeClaim' in volume
  paths = [word.split('=')[1] for word in container['args']
           if word.startswith(('--workdir', '--config.data_dir'))]
  assert len(paths) == 2
  assert all(path.startswith(f'{mount["mountPath"]}/') for path in paths)


@pytest.mark.parametrize('way, expected', [
    ('done', 0), ('2', 2), ('4', 4), ('stopped', 4)])
def test_the_jobsets_command_runs(jobset, fakes, tmp_path, way, expected):
  container = jobset['spec']['replicatedJobs'][0]['template']['spec'][
      'template']['spec']['containers'][0]
  process = subprocess.Popen(
      container['command'] + container['args'], cwd=tmp_path,
      env=fakes | {'WAY': way})
  if way == 'stopped':
    wait_for(tmp_path / 'log' / 'ready')
    process.send_signal(signal.SIGTERM)
  assert process.wait(30) == expected
  assert read(tmp_path, 'args').splitlines() == [
      '-m', 'rome_jax.main', '--distributed', '--config=CONFIG',
      '--workdir=/shared/NAME', '--config.data_dir=/shared/data']
  assert bool(read(tmp_path, 'heard')) == (way == 'stopped')


# ------------------------------------------------------------------ TPU VMs

# Remembers each call, a line of words; states come from a file, one a call.
GCLOUD = """#!/usr/bin/env bash
printf '%s\\x1f' "$@" >>"$LOG/gcloud"
echo >>"$LOG/gcloud"
if [[ $4 == describe ]]; then
  state=$(head -n 1 "$LOG/states")
  sed -i 1d "$LOG/states"
  [[ $state != NONE ]] && echo "$state"
fi
"""


@pytest.fixture
def tpu_vm(fakes, tmp_path):
  """f(words, states, **environment) -> (code, output, [calls])."""
  (tmp_path / 'bin' / 'gcloud').write_text(GCLOUD)
  (tmp_path / 'bin' / 'gcloud').chmod(0o755)

  def call(*words, states=(), **environment):
    (tmp_path / 'log' / 'states').write_text(
        ''.join(f'{state}\n' for state in states))
    done = subprocess.run(
        ['bash', str(LAUNCH / 'tpu_vm.sh'), *words], text=True,
        capture_output=True, timeout=30,
        env=fakes | {'PAUSE': '0', 'SHARE': 'nfs:/x'} | environment)
    calls = [line.split('\x1f')[:-1] for line in
             read(tmp_path, 'gcloud').split('\n')[:-1]]
    return done.returncode, done.stdout + done.stderr, calls

  return call


RUN = ('configs/cifar10_s0.py', '/mnt/rome_jax/c10')


def verbs(calls):
  return [words[3] for words in calls if words[3] != 'describe']


@pytest.mark.parametrize('words', [(), ('--help',)])
def test_tpu_vm_creates_nothing_by_itself(tpu_vm, words):
  code, out, calls = tpu_vm(*words)
  assert code == 0 and not calls
  assert out.startswith('One run of rome_jax') and 'set -e' not in out


@pytest.mark.parametrize('words, message', [
    (('make',), 'unknown command make'),
    (('run', 'config'), 'CONFIG and WORKDIR'),
    (('run', 'config', '/home/me/run'), 'must be below /mnt/rome_jax'),
    (('install',), 'SHARE=HOST:/PATH')])
def test_tpu_vm_says_what_is_missing(tpu_vm, words, message):
  code, out, calls = tpu_vm(*words, SHARE='')
  assert code == 2 and message in out and not calls


def test_tpu_vm_creates(tpu_vm):
  code, _, [words] = tpu_vm('create', NAME='n', TYPE='v4-32', SPOT='1')
  assert code == 0
  assert words == [
      'compute', 'tpus', 'queued-resources', 'create', 'n',
      '--zone=us-west4-a', '--node-id=n', '--accelerator-type=v4-32',
      '--runtime-version=v2-alpha-tpuv5-lite', '--spot']
  assert '--spot' not in tpu_vm('create', SPOT='0')[2][-1]


def test_tpu_vm_installs_on_all_workers_once_there(tpu_vm):
  code, _, calls = tpu_vm(
      'install', states=('WAITING_FOR_RESOURCES', 'PROVISIONING', 'ACTIVE'))
  assert code == 0
  assert [words[3] for words in calls] == [
      'describe', 'describe', 'describe', 'ssh', 'scp', 'ssh']
  assert all('--worker=all' in words for words in calls[3:])
  assert 'mount -t nfs nfs:/x /mnt/rome_jax' in calls[3][-1]
  code, out, _ = tpu_vm('install', states=('SUSPENDED',))
  assert code == 2 and 'SUSPENDED' in out


def test_tpu_vm_runs_what_it_was_given(tpu_vm, fakes, tmp_path):
  code, _, [words] = tpu_vm('run', *RUN, '--config.name=two words')
  assert code == 0
  assert words[:5] == ['compute', 'tpus', 'tpu-vm', 'ssh', 'rome-jax']
  assert '--worker=all' in words
  # What a worker's shell makes of it.
  home = tmp_path / 'home'
  (home / 'rome_jax_source').mkdir(parents=True)
  (home / 'venv' / 'bin').mkdir(parents=True)
  shutil.copy(tmp_path / 'bin' / 'python', home / 'venv' / 'bin')
  subprocess.run(['bash', '-c', words[-1].removeprefix('--command=')],
                 cwd=home, env=fakes, check=True)
  assert read(tmp_path, 'args').splitlines() == [
      '-m', 'rome_jax.main', '--distributed', '--config=configs/cifar10_s0.py',
      '--workdir=/mnt/rome_jax/c10', '--config.name=two words']


@pytest.mark.parametrize('states, expected', [
    (('ACTIVE',), ['ssh']),
    (('PROVISIONING', 'ACTIVE'), ['ssh', 'scp', 'ssh', 'ssh']),
    (('SUSPENDED', 'ACTIVE'),
     ['delete', 'create', 'ssh', 'scp', 'ssh', 'ssh']),
    (('NONE', 'ACTIVE'), ['delete', 'create', 'ssh', 'scp', 'ssh', 'ssh'])])
def test_tpu_vm_continues_after_a_preemption(tpu_vm, states, expected):
  code, out, calls = tpu_vm('continue', *RUN, states=states)
  assert code == 0, out
  assert verbs(calls) == expected
  assert 'rome_jax.main' in calls[-1][-1]


def test_a_dry_run_prints_the_commands_that_a_run_calls(tpu_vm):
  code, out, calls = tpu_vm('--dry-run', 'continue', *RUN)
  assert code == 0 and not calls
  _, _, calls = tpu_vm('continue', *RUN, states=('NONE', 'ACTIVE'))
  assert [shlex.split(line)[1:] for line in out.splitlines()] == [
      words for words in calls if words[3] != 'describe']


@pytest.mark.skipif(SHELLCHECK is None, reason='needs shellcheck')
def test_shellcheck_finds_nothing():
  done = subprocess.run(
      [SHELLCHECK, *map(str, LAUNCH.glob('*.sh'))], capture_output=True,
      text=True)
  assert done.returncode == 0, done.stdout
