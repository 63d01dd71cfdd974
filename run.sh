#!/usr/bin/env bash
# The one door: sets up what is missing, then does the job. `./run.sh help` lists the jobs.
# Works on a fresh Debian or Ubuntu with python3.11 or newer; asks nothing, needs no root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
./run.sh [train]         train ResNet-50 from scratch on drawn flowers, on CPU, in minutes
./run.sh test [ARGS]     the test suite (pytest; ARGS are passed to it)
./run.sh lint            ruff (lint, format) and mypy
./run.sh faults [ARGS]   disrupt 50 runs (kill -9, signals, damaged files, full disks) and compare each with an undisturbed run
./run.sh bench [ARGS]    all benchmarks against other libraries that this machine can run, in 15 minutes; a single one: bench step
./run.sh docs [serve]    build the documentation site in site/html; a broken link is an error
./run.sh python ARGS     any Python command, in this environment and folder: paths are relative to it
./run.sh setup [dev|bench|docs|demo|writers|export]   only make the environment, with what these need
TEXT
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3.13 python3.12 python3.11 python3; do
    [ -n "$candidate" ] || continue
    if "$candidate" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] <= (3, 13)))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: no Python 3.11, 3.12 or 3.13 found; install python3 (Debian: apt install python3) or set PYTHON=/path/to/python3" >&2
  exit 2
}

make_environment() {
  local python
  .venv/bin/python -c '' 2>/dev/null && return
  python=$(find_python)
  rm -rf .venv
  echo "Making .venv with $("$python" --version)"
  # A fresh Debian may lack ensurepip (python3-venv); uv makes the environment there without it.
  if ! "$python" -m venv .venv >/dev/null 2>&1; then
    rm -rf .venv
    if ! "$python" -m pip install --quiet --target .tools uv; then
      echo "error: neither venv nor pip works with $python; install one (Debian: apt install python3-venv)" >&2
      exit 2
    fi
    .tools/bin/uv venv --quiet --python "$python" .venv
  fi
}

# install FILE: once per content of FILE; the stamp is written last, so a broken install is begun again.
install() {
  local file=$1 stamp
  stamp=".venv/.installed-$(cat "$file" | cksum | tr -c '[:alnum:]\n' '-')-${file##*/}"
  [ -e "$stamp" ] && return
  echo "Installing $file"
  if [ "$file" = requirements-bench.txt ] && .venv/bin/python -m pip --version >/dev/null 2>&1; then
    # pip, not uv: it also looks where pip's own settings name a folder of wheels (a CPU build of torch, say).
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$file"
  else
    install_with_uv "$file"
  fi
  touch "$stamp"
}

# JAX' plugin where an NVIDIA driver answers, also where it came after the environment; once per content of
# requirements.txt. CUDA 13 needs driver 580 and compute capability 7.5; older ones have CUDA 12's plugin.
install_cuda_plugin() {
  local stamp driver capability why cuda=cuda13
  stamp=".venv/.installed-$(cat requirements.txt | cksum | tr -c '[:alnum:]\n' '-')-cuda-plugin"
  [ -e "$stamp" ] && return
  command -v nvidia-smi >/dev/null 2>&1 && driver=$(gpu_says driver_version) || return 0
  # A driver that does not know this question is an old one.
  capability=$(gpu_says compute_cap) || capability=
  if awk -v d="$driver" -v c="$capability" 'BEGIN { exit !((d + 0 > 0 && d + 0 < 580) || (c + 0 > 0 && c + 0 < 7.5)) }'; then
    cuda=cuda12
  fi
  echo "Installing JAX' plugin for $(gpu_says name), driver $driver: $cuda"
  # A node of a cluster may have no network: then all goes on without, and the next command tries again.
  if ! why=$("$(uv_path)" pip install --quiet --python .venv/bin/python "jax[$cuda]>=0.10.2,<0.12" 2>&1); then
    why=${why##*$'\n'}
    echo "warning: JAX' plugin cannot be installed here, so JAX runs on the CPU (${why##*  })" >&2
    return 0
  fi
  touch "$stamp"
}

# gpu_says WHAT: of the first GPU; fails where no driver answers.
gpu_says() {
  local all
  all=$(nvidia-smi "--query-gpu=$1" --format=csv,noheader 2>/dev/null) && [ -n "$all" ] && echo "${all%%$'\n'*}"
}

uv_path() {
  if [ -x .venv/bin/uv ]; then echo .venv/bin/uv; else echo .tools/bin/uv; fi
}

install_with_uv() {
  if [ ! -x .venv/bin/uv ] && [ ! -x .tools/bin/uv ]; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check uv
  fi
  # Where Python keeps no bytecode, as in many containers, every command would compile all it imports anew: 11 s to
  # import TensorFlow and JAX, not 5.5. All at once, now, it takes 21 s.
  local bytecode=
  [ -z "${PYTHONDONTWRITEBYTECODE:-}" ] || bytecode=--compile-bytecode
  "$(uv_path)" pip install --quiet $bytecode --python .venv/bin/python -r "$1"
}

setup() {
  make_environment
  install requirements.txt
  install_cuda_plugin
  local extra
  for extra in "$@"; do install "requirements-$extra.txt"; done
}

job=${1:-train}
[ $# -gt 0 ] && shift
case "$job" in
  train)
    setup
    exec .venv/bin/python train_main.py --config=configs/demo.py --workdir=runs/demo "$@"
    ;;
  test)
    setup dev
    exec .venv/bin/python -m pytest -n "$(nproc 2>/dev/null || echo 2)" --dist=loadfile --no-loadscope-reorder "$@"
    ;;
  lint)
    setup dev
    .venv/bin/ruff check .
    .venv/bin/ruff format --check .
    .venv/bin/mypy
    ;;
  faults)
    setup dev
    exec .venv/bin/python -m tests.faults "$@"
    ;;
  bench)
    setup bench
    exec .venv/bin/python -m benchmarks "$@"
    ;;
  docs)
    # Text alone: what a run needs is not installed for it.
    make_environment
    install requirements-docs.txt
    exec .venv/bin/python -m docs.builder "$@"
    ;;
  python)
    setup
    exec .venv/bin/python "$@"
    ;;
  setup) setup "$@" ;;
  help | -h | --help) usage ;;
  *)
    echo "error: unknown job '$job'; ./run.sh help lists the jobs" >&2
    exit 2
    ;;
esac
