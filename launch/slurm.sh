#!/usr/bin/env bash
# One run of rome_jax on a SLURM cluster, requeued until it is finished.
#
#   sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 \
#     launch/slurm.sh CONFIG WORKDIR [--config.FIELD=VALUE ...]
#
# Submit it from the repository, or where rome_jax is installed. WORKDIR must
# be on storage that all nodes share. On GPUs JAX wants a task for each:
# --ntasks-per-node equal to --gpus-per-node (not --gpus-per-task, which hides
# the others). Environment: PYTHON (default python), MAX_RESTARTS (20).
#
#SBATCH --job-name=rome_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=rome_jax-%j.out
set -uo pipefail

if (($# < 2)); then
  echo 'usage: sbatch [OPTIONS] launch/slurm.sh CONFIG WORKDIR [FLAG ...]' >&2
  exit 2
fi
config=$1
workdir=$2
shift 2
flags=("--config=$config" "--workdir=$workdir" "$@")
if ((${SLURM_NTASKS:-1} > 1)); then
  flags+=(--distributed)
fi

signals=0
# To the tasks, not to srun: srun answers TERM by killing them.
# shellcheck disable=SC2329 # the trap calls it
forward() {
  signals=$((signals + 1))
  scancel --signal=TERM "$SLURM_JOB_ID"
}
trap forward TERM

# A task that is lost makes the others end by themselves; --wait is for those
# that do not.
srun --kill-on-bad-exit=0 --wait=600 \
  "${PYTHON:-python}" -m rome_jax.main "${flags[@]}" &
step=$!
while true; do
  seen=$signals
  wait "$step"
  code=$?
  ((seen == signals)) && break # else it was our signal that ended `wait`
done

finished() { [[ -e $workdir/result.json && -e $workdir/report.html ]]; }

# 0: done, or stopped on request. 4: another process was lost. Above 128: srun
# tells of the lost process itself. All others come again on every start.
case $code in
  0) finished && exit 0 ;;
  4) ;;
  *) ((code > 128 && ${SLURM_NTASKS:-1} > 1)) || exit "$code" ;;
esac
if ((${SLURM_RESTART_COUNT:-0} >= ${MAX_RESTARTS:-20})); then
  echo "not finished after ${SLURM_RESTART_COUNT} restarts; given up" >&2
  exit "$((code ? code : 4))"
fi
# A cancelled job stays cancelled, and a preempted one SLURM requeues itself.
job=$(scontrol show job "$SLURM_JOB_ID")
if [[ $job == *JobState=RUNNING* ]]; then
  exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
