#!/usr/bin/env bash
# Stands for ssh, srun and scontrol, by the name it is called: runs the command here, as the machine that it is meant
# for, with nothing in its environment but what the real one would bring there. $PLACES is the folder of all machines.
set -euo pipefail

as_machine() { # NAME VARIABLE=VALUE... -- COMMAND...
  local name=$1 given=()
  shift
  [ -d "$PLACES/$name" ] || { echo "$name: no such machine" >&2; exit 255; }
  while [ "$1" != -- ]; do
    given+=("$1")
    shift
  done
  shift
  cd "$PLACES/$name/home"
  exec env -i HOME="$PLACES/$name/home" PLACES="$PLACES" LANG=C PATH=/usr/bin:/bin RAY_TMPDIR="$PLACES/$name/t" \
    "${given[@]}" "$@"
}

case $(basename "$0") in
  ssh)
    while [ "${1#-}" != "$1" ]; do
      [ "$1" = -o ] && shift
      shift
    done
    host=${1#*@}
    shift
    as_machine "$host" -- bash -c "$*"
    ;;
  srun) # brings the whole environment, as Slurm does
    count=1
    while [ "${1#--}" != "$1" ]; do
      case $1 in --nodelist=*) list=${1#*=} ;; --ntasks=*) count=${1#*=} ;; esac
      shift
    done
    # Slurm ends a step's processes when srun is told to end.
    running=()
    trap 'kill "${running[@]}" 2> /dev/null || true; wait' TERM
    IFS=, read -r -a hosts <<< "$list"
    [ ${#hosts[@]} = "$count" ] || { echo "srun: $count tasks on $list?" >&2; exit 1; }
    for host in "${hosts[@]}"; do
      [ -d "$PLACES/$host" ] || { echo "srun: $host: no such machine" >&2; exit 1; }
      if [ "$1" = hostname ]; then
        echo "127.0.0.1 "
      else
        HOME="$PLACES/$host/home" RAY_TMPDIR="$PLACES/$host/t" "$@" &
        running+=($!)
      fi
    done
    wait "${running[@]}"
    ;;
  scontrol)
    [ "$1 $2" = "show hostnames" ]
    tr , '\n' <<< "$3"
    ;;
esac
