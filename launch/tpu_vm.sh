#!/usr/bin/env bash
# One run of rome_jax on a TPU slice of Cloud TPU VMs, by gcloud.
#
#   launch/tpu_vm.sh [--dry-run] create
#   launch/tpu_vm.sh [--dry-run] state
#   launch/tpu_vm.sh [--dry-run] install
#   launch/tpu_vm.sh [--dry-run] run CONFIG WORKDIR [--config.FIELD=VALUE ...]
#   launch/tpu_vm.sh [--dry-run] continue CONFIG WORKDIR [...]
#   launch/tpu_vm.sh [--dry-run] delete
#
# create    asks for the slice (a queued resource); it costs money until
#           `delete`.
# install   waits until it is there, mounts the shared folder and copies and
#           installs this repository, on every worker.
# run       starts the run on every worker and shows its output; it ends when
#           the run does; if the connection breaks, `run` again continues.
# continue  after a preemption: if the slice is gone, deletes what is left,
#           then create, install and run; WORKDIR has what was saved.
# --dry-run prints the commands and runs none.
#
# WORKDIR must be below MOUNT, which all workers share. Environment:
#   NAME     of the queued resource and the node (rome-jax)
#   ZONE     (us-west4-a)           TYPE     (v5litepod-16)
#   RUNTIME  (v2-alpha-tpuv5-lite)  SPOT     1: may be preempted, cheaper (1)
#   SHARE    the NFS share, HOST:/PATH; MOUNT where it goes (/mnt/rome_jax)
#   PYTHON   on the workers, at least 3.11 (python3.11)
#   PAUSE    seconds between two looks at the state (30)
set -euo pipefail

NAME=${NAME:-rome-jax}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
RUNTIME=${RUNTIME:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-1}
MOUNT=${MOUNT:-/mnt/rome_jax}
PYTHON=${PYTHON:-python3.11}
PAUSE=${PAUSE:-30}
root=$(cd "$(dirname "$0")/.." && pwd)
dry=

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}

fail() {
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

# A command, or in a dry run its text.
run() {
  if [[ $dry ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

queued() {
  local verb=$1
  shift
  run gcloud compute tpus queued-resources "$verb" "$NAME" --zone="$ZONE" "$@"
}

everywhere() {
  run gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all \
    --command="$1"
}

create() {
  local options=(--node-id="$NAME" --accelerator-type="$TYPE"
    --runtime-version="$RUNTIME")
  [[ $SPOT == 1 ]] && options+=(--spot)
  queued create "${options[@]}"
}

state() {
  queued describe --format='value(state.state)'
}

await() {
  local now
  while [[ ! $dry ]]; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      FAILED | SUSPENDED | SUSPENDING)
        fail "the queued resource $NAME is $now; see: $0 continue" ;;
    esac
    echo "$NAME is $now" >&2
    sleep "$PAUSE"
  done
}

install() {
  [[ ${SHARE:-} ]] || fail 'SHARE=HOST:/PATH, an NFS share, is missing'
  await
  everywhere "mountpoint -q $MOUNT || { sudo apt-get update && \
sudo apt-get install -y nfs-common $PYTHON-venv && sudo mkdir -p $MOUNT && \
sudo mount -t nfs $SHARE $MOUNT; }; mkdir -p rome_jax_source"
  run gcloud compute tpus tpu-vm scp --recurse "$root/rome_jax" \
    "$root/configs" "$root/README.md" "$root/LICENSE" "$root/setup.cfg" \
    "$root/pyproject.toml" "$NAME:rome_jax_source/" --zone="$ZONE" \
    --worker=all
  everywhere "$PYTHON -m venv venv && venv/bin/pip install 'jax[tpu]' \
./rome_jax_source"
}

start() {
  (($# >= 2)) || fail 'CONFIG and WORKDIR are missing'
  local config=$1 workdir=$2 words
  shift 2
  [[ $workdir/ == "$MOUNT"/* ]] ||
    fail "WORKDIR=$workdir must be below $MOUNT, which all workers share"
  printf -v words '%q ' "--config=$config" "--workdir=$workdir" "$@"
  everywhere "cd rome_jax_source && ../venv/bin/python -m rome_jax.main \
--distributed $words"
}

resume() {
  (($# >= 2)) || fail 'CONFIG and WORKDIR are missing'
  local now=gone
  [[ $dry ]] || now=$(state) || now=gone
  case $now in
    ACTIVE) ;;
    CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING) install ;;
    *) # What a preemption leaves behind, or nothing.
      queued delete --force --quiet || true
      create
      install
      ;;
  esac
  start "$@"
}

if [[ ${1:-} == --dry-run ]]; then
  dry=1
  shift
fi
command=${1:-help}
(($#)) && shift
case $command in
  create | state | install) "$command" ;;
  run) start "$@" ;;
  continue) resume "$@" ;;
  delete) queued delete --force --quiet ;;
  help | -h | --help) usage ;;
  *) fail "unknown command $command; see $0 --help" ;;
esac
