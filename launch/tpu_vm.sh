#!/usr/bin/env bash
# A run on TPU VMs by a queued resource: asks for the slice, waits for it, copies this checkout to every
# worker, installs it there and starts the run on all of them at once.
#
#   launch/tpu_vm.sh NAME ZONE ACCELERATOR RUNTIME -- --config FILE.py --data DIR --workdir DIR [...]
#   launch/tpu_vm.sh run1 us-east5-a v5p-256 v2-alpha-tpuv5 -- --config ...      (v5p:4x4x8)
#
# It prints the gcloud commands; RUN=1 executes them. SPOT=1 asks for spot capacity. BUCKET=NAME is
# mounted at /bucket. WAIT, in seconds (86400), bounds the wait. After a preemption: delete the queued
# resource, then the same command again; the run resumes.
set -euo pipefail

usage() { sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2; }
[[ $# -ge 6 && $5 == -- ]] || usage
name=$1 zone=$2 accelerator=$3 runtime=$4
shift 5
for word in "$name" "$zone" "$accelerator" "$runtime" "${BUCKET:-none}"; do
  [[ $word =~ ^[a-z0-9][a-z0-9._-]*$ ]] || { echo "$0: $word is not a name of Google Cloud" >&2; exit 2; }
done
wait=${WAIT:-86400}
[[ $wait =~ ^[0-9]+$ ]] || usage

root=$(cd "$(dirname "$0")/.." && pwd)
spot=()
[[ ${SPOT:-} ]] && spot=(--spot)

gcloud() { # prints the command, and with RUN=1 executes it
  printf '%q ' gcloud "$@"
  echo
  [[ ${RUN:-} ]] || return 0
  command gcloud "$@"
}
everywhere() { gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"; }
quoted() { printf '%q ' "$@"; } # the workers' shells see each argument as it was given here
state() {
  command gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format='value(state.state)'
}

gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
  --accelerator-type="$accelerator" --runtime-version="$runtime" "${spot[@]}"

if [[ ${RUN:-} ]]; then
  until found=$(state) && [[ $found == ACTIVE ]]; do
    case $found in FAILED | SUSPENDED) echo "$0: $name is $found" >&2; exit 1 ;; esac
    ((SECONDS < wait)) || { echo "$0: $name is $found after $wait s; WAIT gives it more" >&2; exit 1; }
    sleep "${POLL:-30}"
  done
fi

archive=vidgen.tar.gz
if [[ ${RUN:-} ]]; then
  archive=$(mktemp -t vidgen.XXXXXX.tar.gz)
  trap 'rm -f "$archive"' EXIT
  tar -C "$root" -czf "$archive" --exclude='__pycache__' setup.py pyproject.toml README.md vidgen configs data launch
fi
gcloud compute tpus tpu-vm scp "$archive" "$name:vidgen.tar.gz" --zone="$zone" --worker=all
everywhere 'mkdir -p vidgen && tar -C vidgen -xzf vidgen.tar.gz && python3 -m venv venv && venv/bin/pip install --quiet -e "vidgen[tpu,data]"'
[[ ${BUCKET:-} ]] && everywhere "sudo mkdir -p /bucket && sudo chown \$USER /bucket && (mountpoint -q /bucket || gcsfuse --implicit-dirs $BUCKET /bucket)"
everywhere "cd vidgen && ../venv/bin/vidgen train --coordinator auto $(quoted "$@")"
