"""The launch files: they are well formed and give the command that they say."""

import os
import pathlib
import re
import shlex
import subprocess
import sys

from prompt_tuning.demo import files
import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / 'examples' / 'launch'
SCRIPTS = sorted(path.name for path in LAUNCH.iterdir()
                 if path.suffix in ('.sh', '.sbatch'))
RUN = {'TASK': 'demo_film_sentiment', 'TASK_MODULE': 'prompt_tuning.demo.tasks',
       'MODEL': 'demo', 'MODEL_DIR': '/nowhere/a run'}
FLAGS = [f'--gin.INITIAL_CHECKPOINT_PATH={files.checkpoint()}', '--dry_run']
# The parameters of the demo's prompt.
TRAINED = 'trained: 1,280 in 1 (encoder/prompt/prompt/prompt)'
# Programs that are not here: what they are given they run, or say.
STANDINS = {
    'srun': '#!/bin/sh\nshift\n"$@"; exit ${SRUN_CODE:-$?}\n',
    'scontrol': '#!/bin/sh\necho "scontrol $*"\n',
    'gcloud': '#!/bin/sh\nfor last; do :; done\n'
              'echo "gcloud $*" | head -n 1\n'
              'env -i HOME="$STANDIN_HOME" PATH="$PATH" '
              'PYTHONPATH="$PYTHONPATH" sh -c "${last#--command=}"\n',
}


@pytest.fixture
def environment(tmp_path):
  """Programs that stand in, and this checkout where the files expect it."""
  for name, text in STANDINS.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'spot').symlink_to(ROOT)
  path = os.pathsep.join([
      str(tmp_path), str(pathlib.Path(sys.executable).parent),
      os.environ['PATH']])
  return os.environ | RUN | {
      'PATH': path, 'STANDIN_HOME': str(tmp_path), 'XLA_FLAGS': '',
      'SLURM_JOB_ID': '4711', 'PYTHONPATH': str(ROOT)}


def _run(environment, *command):
  return subprocess.run(
      command, cwd=ROOT, env=environment, text=True, capture_output=True,
      timeout=200, check=False)


@pytest.mark.parametrize('name', SCRIPTS)
def test_scripts_are_scripts(name):
  subprocess.run(['bash', '-n', str(LAUNCH / name)], check=True)
  text = (LAUNCH / name).read_text()
  assert text.startswith('#!/usr/bin/env bash\n')
  assert re.search(r'^set -e?uo pipefail$', text, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize('command', [
    ['train_prompt.sh'], ['slurm.sbatch'], ['tpu_pod.sh', 'my-tpu', 'zone-b']],
    ids=lambda command: command[0])
def test_what_is_launched_is_a_run(environment, command):
  name, *arguments = command
  done = _run(environment, 'bash', str(LAUNCH / name), *arguments, *FLAGS)
  assert done.returncode == 0, done.stderr
  assert TRAINED in done.stdout
  if arguments:
    assert ('gcloud compute tpus tpu-vm ssh my-tpu --zone=zone-b --worker=all'
            in done.stdout)


@pytest.mark.parametrize('name', SCRIPTS)
def test_what_is_missing_is_said(environment, name):
  del environment['TASK']
  done = _run(environment, 'bash', str(LAUNCH / name), 'my-tpu', 'zone-b')
  assert done.returncode != 0 and 'TASK' in done.stderr


@pytest.mark.parametrize('code', [0, 1, 143])
def test_slurm_queues_again_what_was_stopped(environment, code):
  environment = environment | {'SRUN_CODE': str(code)}
  del environment['TASK']  # Nothing runs.
  done = _run(environment, 'bash', str(LAUNCH / 'slurm.sbatch'))
  assert done.returncode == code
  assert ('scontrol requeue 4711' in done.stdout) == (code == 143)


def test_the_job_of_kubernetes_fits_together():
  service, job = yaml.safe_load_all((LAUNCH / 'gke_job.yaml').read_text())
  pod = job['spec']['template']['spec']
  (container,) = pod['containers']
  env = {entry['name']: entry['value'] for entry in container['env']}
  count = job['spec']['completions']
  assert job['spec']['completionMode'] == 'Indexed'
  assert job['spec']['parallelism'] == count == int(env['PROCESS_COUNT']) > 1
  assert service['spec']['clusterIP'] == 'None'
  name = job['metadata']['name']
  assert service['spec']['selector'] == {'job-name': name}
  assert pod['subdomain'] == service['metadata']['name']
  host, port = env['JAX_COORDINATOR_ADDRESS'].split(':')
  assert host == f'{name}-0.{pod["subdomain"]}' and int(port) > 1024
  mounts = {m['name']: m['mountPath'] for m in container['volumeMounts']}
  assert env['MODEL_DIR'].startswith(f'{mounts["runs"]}/')
  assert {v['name'] for v in pod['volumes']} == set(mounts)
  (rule,) = [r for r in job['spec']['podFailurePolicy']['rules']
             if r['action'] == 'FailJob']
  assert rule['onExitCodes'] == {
      'containerName': container['name'], 'operator': 'In', 'values': [2]}


@pytest.mark.slow
def test_the_pods_command_joins_by_index(environment):
  _, job = yaml.safe_load_all((LAUNCH / 'gke_job.yaml').read_text())
  (container,) = job['spec']['template']['spec']['containers']
  # One pod needs no other, so its flags can be tried here.
  pod = {'PROCESS_COUNT': '1', 'JOB_COMPLETION_INDEX': '0',
         'JAX_COORDINATOR_ADDRESS': 'prompt-0.prompt:8476'}
  *shell, text = container['command']
  done = _run(environment | pod, *shell, shlex.join(['true', *FLAGS]).replace(
      'true', text, 1))
  assert done.returncode == 0, done.stderr
  assert TRAINED in done.stdout
