# Shell functions shared by launch/demo.sh and tests/run.sh. Source it; it runs nothing by itself.

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"
  elif command -v sudo >/dev/null; then sudo "$@"
  else return 1
  fi
}

have_command() { command -v "$1" >/dev/null; }
have_header() {
  local root
  for root in /usr/include /usr/local/include ${CPATH:+${CPATH//:/ }}; do
    if [ -e "$root/$1" ]; then return 0; fi
  done
  return 1
}

# The newest packaged Boost with Boost.JSON: Debian 12's default (1.74) has none, a later one stands beside it.
boost_packages() {
  local version
  version=$(apt-cache pkgnames libboost-json 2>/dev/null | sed -n 's/^libboost-json\([0-9.]*\)-dev$/\1/p' | sort -V | tail -n 1)
  if [ -n "$version" ]; then echo "libboost$version-dev libboost-json$version-dev"; else echo "libboost-json-dev"; fi
}

# Names of the packages that are needed and not there. Looked for by what they bring, not by name: a cluster's own MPI or
# a hand-built library serves as well.
missing_packages() {
  local with_tests=$1 missing=()
  have_command g++ || missing+=(g++)
  have_command cmake || missing+=(cmake)
  have_command ninja || missing+=(ninja-build)
  have_command ccache || missing+=(ccache)
  have_command mpirun || missing+=(openmpi-bin)
  have_command mpicxx || missing+=(libopenmpi-dev)
  have_header spdlog/spdlog.h || missing+=(libspdlog-dev)
  have_header fmt/core.h || missing+=(libfmt-dev)
  have_header CLI/CLI.hpp || missing+=(libcli11-dev)
  have_header boost/json.hpp || missing+=(boost)
  if [ "$with_tests" = yes ]; then
    have_header gtest/gtest.h || missing+=(libgtest-dev)
    have_header gmock/gmock.h || missing+=(libgmock-dev)
    have_header benchmark/benchmark.h || missing+=(libbenchmark-dev)
  fi
  echo "${missing[@]:-}"
}

# install_packages yes|no (with what the tests need). Does nothing, and asks nobody, when all is there.
install_packages() {
  local missing packages=() name
  missing=$(missing_packages "$1")
  [ -n "$missing" ] || return 0
  have_command apt-get || die "these are missing and there is no apt-get to install them: $missing"
  say "installing: $missing"
  as_root apt-get update -qq || die "apt-get update failed; install by hand: $missing"
  for name in $missing; do
    if [ "$name" = boost ]; then packages+=($(boost_packages)); else packages+=("$name"); fi
  done
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" ||
    die "apt-get could not install ${packages[*]} (as root or with sudo?)"
}

# build_targets SOURCE BUILD_FOLDER "CMAKE FLAGS" TARGET...: configures once, then builds with ninja's progress.
build_targets() {
  local source=$1 build=$2 flags=$3
  shift 3
  if [ ! -e "$build/build.ninja" ]; then
    # gcc 12 warns about its own std::string (GCC bug 105651)
    cmake -G Ninja -S "$source" -B "$build" -DCMAKE_BUILD_TYPE=Release -DCMAKE_CXX_FLAGS=-Wno-restrict $flags || die "cmake could not configure $build"
  fi
  cmake --build "$build" --target "$@" || die "the build in $build failed"
}

# Sets MPIRUN to an mpirun that also works as root, on fewer cores than ranks, and in containers.
#   yield: without it ranks that share a core wait whole time slices for each other
#   single copy none: containers often forbid reading another process's memory
set_mpirun() {
  if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
  MPIRUN=(mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1
          --mca btl_vader_single_copy_mechanism none)
}
