"""The package as `pip` installs it, far from the checkout."""

import configparser
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[2]
# What a build reads; a build also writes, so it works on a copy.
SOURCES = ('rome_jax', 'configs', 'pyproject.toml', 'setup.cfg', 'README.md',
           'LICENSE')


def packages():
  """The folders of the package with modules, as names, and the configs."""
  return {'.'.join(path.parent.relative_to(ROOT).parts)
          for path in (ROOT / 'rome_jax').rglob('*.py')} | {'rome_jax.configs'}


def test_every_folder_is_listed():
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  assert set(setup['options']['packages'].split()) == packages()


def pip(*command):
  subprocess.run([sys.executable, '-m', 'pip', '--quiet',
                  '--disable-pip-version-check', *command],
                 check=True, timeout=300)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  folder = tmp_path_factory.mktemp('wheel')
  (folder / 'source').mkdir()
  for name in SOURCES:
    copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
    copy(ROOT / name, folder / 'source' / name)
  pip('wheel', '--no-deps', f'--wheel-dir={folder}', str(folder / 'source'))
  path, = folder.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """f(*words): what the installed command prints, outside the checkout.

  The environment is a new one that sees the packages of this one, but not
  the checkout.
  """
  folder = tmp_path_factory.mktemp('installed')
  venv.create(folder / 'venv', with_pip=False)
  python = folder / 'venv' / 'bin' / 'python'
  pip(f'--python={python}', 'install', '--no-deps', '--no-index', str(wheel))
  place = pathlib.Path(sysconfig.get_path(
      'purelib', vars={'base': str(folder / 'venv')}))
  (place / 'dependencies.pth').write_text(sysconfig.get_path('purelib'))
  (folder / 'elsewhere').mkdir()

  def run(*words):
    environment = {name: value for name, value in os.environ.items()
                   if name != 'PYTHONPATH'} | {'JAX_PLATFORMS': 'cpu'}
    return subprocess.run(
        [folder / 'venv' / 'bin' / words[0], *words[1:]], check=True,
        cwd=folder / 'elsewhere', env=environment, timeout=300, text=True,
        stdout=subprocess.PIPE).stdout

  return run


@pytest.mark.slow
def test_the_wheel_holds_every_file(wheel):
  with zipfile.ZipFile(wheel) as archive:
    names = set(archive.namelist())
  expected = {
      path.relative_to(ROOT).as_posix()
      for pattern in ('*.py', 'py.typed', 'tables/data/*')
      for path in (ROOT / 'rome_jax').rglob(pattern)}
  expected |= {f'rome_jax/configs/{path.name}'
               for path in (ROOT / 'configs').glob('*.py')}
  assert {'rome_jax/py.typed', 'rome_jax/configs/quickstart.py'} <= expected
  assert {name for name in names if '.dist-info/' not in name} == expected


@pytest.mark.slow
def test_an_installed_command_needs_no_checkout(installed):
  where = installed('python', '-c', 'import rome_jax; print(rome_jax.__file__)')
  assert 'site-packages' in where and str(ROOT) not in where
  assert 'describe' in installed('rome-jax', '--help')
  out = installed('rome-jax', 'run', '--config=quickstart', '--help')
  assert '--config.search.samples=' in out
  found = json.loads(installed('rome-jax', 'describe', 'DARTS_V2', '--json'))
  assert found['params'] == 3349342  # quark0/darts: 3.3M
  installed('rome-jax', 'run', '--config=quickstart', '--check')
