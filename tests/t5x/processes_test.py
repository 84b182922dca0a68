"""How a process finds its fellows, by the environment that launchers make."""

import os
import socket
import subprocess
import sys

import pytest

SHOW = """
import sys
from t5x import processes
given = dict(eval(sys.argv[1]))
processes.join(
    given.get('address'), given.get('count'), given.get('index'),
    asked=given.get('asked', False), timeout=60)
import jax
print('found', jax.process_count(), jax.process_index(),
      jax.distributed.is_initialized())
"""
CLUSTER = ('SLURM_', 'OMPI_', 'KUBERNETES_', 'JOB_COMPLETION', 'JAX_COORD')


def _start(given, environment):
  clean = {k: v for k, v in os.environ.items() if not k.startswith(CLUSTER)}
  return subprocess.Popen(
      [sys.executable, '-W', 'error::UserWarning', '-c', SHOW, repr(given)],
      text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
      env=clean | {'XLA_FLAGS': ''} | environment)


def _found(process):
  output, errors = process.communicate(timeout=120)
  assert process.returncode == 0, errors
  (line,) = [x for x in output.splitlines() if x.startswith('found')]
  return line.removeprefix('found ')


def _free_port():
  with socket.socket() as free:
    free.bind(('localhost', 0))
    return str(free.getsockname()[1])


def slurm(index, count):
  """What srun gives its tasks on one node."""
  return {'SLURM_JOB_ID': '4711', 'SLURM_STEP_NODELIST': 'localhost',
          'SLURM_NTASKS': str(count), 'SLURM_PROCID': str(index),
          'SLURM_LOCALID': str(index), 'SLURM_STEP_NUM_NODES': '1'}


def open_mpi(index, count):
  """What mpirun of Open MPI 4 gives its processes."""
  return {'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://127.0.0.1:34911',
          'OMPI_COMM_WORLD_SIZE': str(count),
          'OMPI_COMM_WORLD_RANK': str(index),
          'OMPI_COMM_WORLD_LOCAL_RANK': str(index)}


@pytest.mark.slow
@pytest.mark.parametrize('launcher', [slurm, open_mpi])
def test_a_launcher_needs_no_flags(launcher):
  port = {'JAX_COORDINATOR_PORT': _free_port()}
  both = [_start({}, launcher(index, 2) | port) for index in (0, 1)]
  assert [_found(p) for p in both] == ['2 0 True', '2 1 True']


@pytest.mark.slow
def test_flags_need_no_launcher():
  address = f'localhost:{_free_port()}'
  both = [_start({'address': address, 'count': 2, 'index': index}, {})
          for index in (0, 1)]
  assert [_found(p) for p in both] == ['2 0 True', '2 1 True']


ALONE = {
    'nothing said': ({}, {}),
    'one task of Slurm': ({}, slurm(0, 1)),
    # The script of a batch, which srun has not started.
    'a batch of Slurm': ({}, {k: v for k, v in slurm(0, 4).items()
                              if k != 'SLURM_STEP_NODELIST'}),
    'one process of MPI': ({}, open_mpi(0, 1)),
    'a pod': ({}, {'KUBERNETES_SERVICE_HOST': '10.0.0.1'}),
    'asked, but one task': ({'asked': True}, slurm(0, 1)),
    'tasks that are runs of their own': ({'count': 1}, slurm(3, 8)),
}


@pytest.mark.slow
@pytest.mark.parametrize('where', ALONE)
def test_a_process_alone_starts_no_coordinator(where):
  assert _found(_start(*ALONE[where])) == '1 0 False'


REFUSED = {
    'nobody there': ({'asked': True}, {}, '--coordinator_address is not given'),
    'no count': ({'address': 'localhost:1'}, {}, '--process_count is not giv'),
    'no index': ({'address': 'localhost:1', 'count': 2}, {},
                 '--process_index is not given'),
    'no address': ({'count': 2, 'index': 0}, {}, '--coordinator_address is no'),
    'an index too many': ({'address': 'localhost:1', 'count': 2, 'index': 2},
                          {}, '--process_index is 2'),
    'another MPI': ({}, {'OMPI_COMM_WORLD_SIZE': '4'}, 'MPI has started 4'),
}


@pytest.mark.slow
@pytest.mark.parametrize('what', REFUSED)
def test_what_cannot_be_joined_is_refused(what):
  given, environment, said = REFUSED[what]
  process = _start(given, environment)
  _, errors = process.communicate(timeout=120)
  assert process.returncode != 0
  assert errors.strip().splitlines()[-1].startswith('ValueError: ')
  assert said in errors
