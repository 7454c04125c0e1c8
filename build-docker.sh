#!/usr/bin/env bash
# Builds Docker images of the last commit of this checkout: ray-project/base-deps (compilers), ray-project/deploy (ray) and
# ray-project/examples. docs/docker.md says what to do with them.
#
#   ./build-docker.sh [--no-cache] [--skip-examples] [--output-sha] [-- OPTIONS OF docker build]
#
#   --no-cache        every step anew, with today's packages of the distribution and of PyPI
#   --skip-examples   without ray-project/examples
#   --output-sha      says nothing but a line `IMAGE sha256:...` for each
#   -- OPTIONS        such as --network=host, or --build-arg BASE=ubuntu:24.04
set -euo pipefail
cd "$(dirname "$0")"

usage() { sed -n '/^#   [.]/,/^[^#]/s/^# \{0,3\}//p' "$0"; }
images=(base-deps deploy examples) options=() sha=
while [ $# -gt 0 ]; do
  case $1 in
    --no-cache) options+=(--no-cache) ;;
    --skip-examples) images=(base-deps deploy) ;;
    --output-sha) sha=1 ;;
    --) shift && options+=("$@") && break ;;
    -h | --help) usage && exit ;;
    *) echo "build-docker.sh: $1: not an option; there are" >&2 && usage >&2 && exit 2 ;;
  esac
  shift
done

# An archive, not the folder: what was built here, for this machine, must not slip in.
git diff --quiet HEAD || echo "build-docker.sh: what is not committed is not in the images" >&2
for image in "${images[@]}"; do
  build=(docker build "${options[@]}" --tag "ray-project/$image" --file "docker/$image/Dockerfile")
  if [ -n "$sha" ]; then
    id=$(git archive HEAD | "${build[@]}" --quiet -)
    echo "ray-project/$image $id"
  else
    git archive HEAD | "${build[@]}" -
  fi
done
