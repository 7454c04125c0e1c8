#!/usr/bin/env bash
#SBATCH --job-name=ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#
# A cluster for as long as a job of Slurm lasts, and a program on it:
#
#   sbatch slurm.sh python program.py
#
# The program says ray.init() and nothing else. This script runs on the first machine, which becomes the head. Nothing waits
# for a fixed time: the nodes say when they have joined, and an end of theirs before that is the end of the job.
set -euo pipefail
[ $# -ge 1 ] || { echo "sbatch slurm.sh COMMAND..." >&2; exit 2; }

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
cpus=${SLURM_CPUS_PER_TASK:-1}
port=${RAY_PORT:-$((20000 + SLURM_JOB_ID % 10000))} # two jobs may share a machine
# A folder of its own, so that several jobs of one user do not meet; srun hands both on to the other machines.
export RAY_TMPDIR=${RAY_TMPDIR:-/tmp/ray-job-$SLURM_JOB_ID}
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

steps=()
end() {
  trap - EXIT
  for ((i = ${#steps[@]} - 1; i >= 0; i--)); do # the head last
    kill "${steps[i]}" 2> /dev/null && wait "${steps[i]}" || true
  done
}
trap end EXIT

# run MACHINES COUNT OPTIONS...: `ray start` as a step of the job. Its words can be read from descriptor `said`.
run() {
  local where=$1 count=$2
  shift 2
  # shellcheck disable=SC2016  # the folder is each machine's own to make
  exec {said}< <(exec srun --overlap --nodes="$count" --ntasks="$count" --cpus-per-task="$cpus" --nodelist="$where" \
    bash -c 'mkdir -p "$RAY_TMPDIR" && exec ray start "$@"' _ "$@" --num-cpus="$cpus" --block 2>&1)
  steps+=($!)
}

# hear WORDS COUNT: waits until COUNT lines have those words.
hear() {
  local left=$2 line
  while [ "$left" -gt 0 ]; do
    IFS= read -r line <&"$said" || { echo "slurm.sh: ray start has ended too early" >&2; exit 1; }
    echo "$line"
    case $line in *"$1"*) left=$((left - 1)) ;; esac
  done
  cat <&"$said" & # what is said later must find a reader
  exec {said}<&-
}

head=${machines[0]}
address=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address)
address=${address%% *}
run "$head" 1 --head --node-ip-address="$address" --port="$port"
hear "Other nodes join it" 1
others=("${machines[@]:1}")
if [ ${#others[@]} -gt 0 ]; then
  run "$(IFS=,; echo "${others[*]}")" ${#others[@]} --address="$address:$port"
  hear "of the cluster at" ${#others[@]}
fi

"$@"
