# Sourced by the other scripts: which Python, and the few Debian packages without which nothing can start.
#
#   PYTHON=python3.12 bash tools/test     chooses the interpreter; python3 of the PATH otherwise
#
# What is missing is installed with apt-get when that is possible without asking (root, or sudo without a password);
# otherwise the script stops with the command to type.

chosen_python() { echo "${PYTHON:-python3}"; }

# Prints the Debian packages that this machine lacks.
missing_packages() {
  local python version
  python=$(chosen_python)
  if ! command -v "$python" >/dev/null; then
    echo python3 python3-venv python3-dev
  else
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    # A Python from elsewhere (pyenv, conda) has both; Debian's splits them off. ensurepip is what venv needs.
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "python$version-venv"
    "$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
      echo "python$version-dev"
  fi
  command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || echo g++
}

need_python_and_compiler() {
  local missing sudo=
  missing=$(missing_packages)
  [ -z "$missing" ] && return
  missing=$(echo $missing)  # on one line
  if [ "$(id -u)" != 0 ]; then sudo="sudo -n"; fi
  if ! command -v apt-get >/dev/null || ! $sudo true 2>/dev/null; then
    echo "This machine lacks: $missing. As root: apt-get update && apt-get install -y $missing" >&2
    exit 1
  fi
  echo "Installing Debian packages: $missing"
  $sudo apt-get update -qq
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# want COMMAND PACKAGE [WHY]: installs what isn't needed but useful, if that is possible without asking.
want() {
  command -v "$1" >/dev/null && return
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
  echo "Installing $2: ${3:-there are tests that need $1}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$2" >/dev/null; } ||
    echo "$2 could not be installed: it goes without" >&2
}

# The newest clang here that links a libFuzzer program; nothing if there is none. CLANG names another.
fuzzing_clang() {
  local clang
  for clang in ${CLANG:-} clang-19 clang-18 clang-16 clang-14 clang; do
    command -v "$clang" >/dev/null && command -v "${clang/clang/clang++}" >/dev/null || continue
    echo 'extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }' |
      "${clang/clang/clang++}" -x c++ -fsanitize=fuzzer,address,undefined -o /dev/null - 2>/dev/null || continue
    echo "$clang"
    return
  done
}

# Debian 12 and 13 have clang 19, Ubuntu 24.04 clang 18, Ubuntu 22.04 clang 14. libFuzzer comes with the runtime.
need_fuzzing_clang() {
  [ -z "$(fuzzing_clang)" ] || return 0
  local version sudo=
  if [ "$(id -u)" != 0 ]; then sudo="sudo -n"; fi
  if command -v apt-get >/dev/null && $sudo true 2>/dev/null; then
    $sudo apt-get update -qq
    for version in 19 18 14; do
      echo "Installing clang-$version, for fuzzing"
      local packages="clang-$version libclang-rt-$version-dev llvm-$version"  # llvm: names in stack traces
      [ $version = 14 ] && packages="clang-14 libclang-common-14-dev libfuzzer-14-dev llvm-14"
      $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages >/dev/null 2>&1 && break
    done
  fi
  [ -z "$(fuzzing_clang)" ] || return 0
  echo "Fuzzing needs clang with libFuzzer. As root: apt-get install clang-19 libclang-rt-19-dev" >&2
  exit 1
}
