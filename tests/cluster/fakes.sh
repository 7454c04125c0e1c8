#!/usr/bin/env bash
# Stands for ssh, sbatch, srun, scontrol and pip, by the name it is called: runs the command here, as the machine that it is meant
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
  exec env -i HOME="$PLACES/$name/home" PLACES="$PLACES" LANG=C PATH="$PLACES/system:/usr/bin:/bin" RAY_TMPDIR="$PLACES/$name/t" \
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
  sbatch) # on the first machines there are, here at once; only a --wait is known, so that nothing runs on
    count=1 cpus=1 waits=
    while [ "${1#--}" != "$1" ]; do
      case $1 in
        --nodes=*) count=${1#*=} ;;
        --cpus-per-task=*) cpus=${1#*=} ;;
        --wait) waits=1 ;;
        *) echo "sbatch: unrecognized option '$1'" >&2; exit 1 ;;
      esac
      shift
    done
    [ -n "$waits" ] || { echo "sbatch: this stand-in needs --wait" >&2; exit 1; }
    list=$(cd "$PLACES" && ls -d */home | sed 's,/home,,' | head -n "$count" | paste -sd ,)
    echo "Submitted batch job $$"
    SLURM_JOB_NODELIST=$list SLURM_JOB_ID=$$ SLURM_CPUS_PER_TASK=$cpus bash "$@" > "slurm-$$.out" 2>&1
    ;;
  pip) # fetches, builds and installs nothing
    case $1 in
      wheel)
        [ "$2 $3 $4" = "--quiet --no-deps --wheel-dir" ] && [ $# = 6 ] || { echo "pip: wheel how?" >&2; exit 1; }
        touch "$5/ray-0-py3-none-any.whl"
        ;;
      install)
        for word in "${@:2}"; do
          case $word in
            --quiet | --upgrade) ;;
            *.whl) [ -e "$word" ] || { echo "pip: $word: no such file" >&2; exit 1; } ;;
            *) echo "pip: $word?" >&2; exit 1 ;;
          esac
        done
        ;;
      *) echo "pip: this stand-in has no '$1'" >&2; exit 1 ;;
    esac
    ;;
  scontrol)
    [ "$1 $2" = "show hostnames" ]
    tr , '\n' <<< "$3"
    ;;
esac
