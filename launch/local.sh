#!/usr/bin/env bash
# Start a run as N processes on this machine: launch/local.sh N --config=... --workdir=... [flags of train_main.py]
# With NVIDIA GPUs process i gets GPU i, or the i-th of CUDA_VISIBLE_DEVICES. Ctrl-C and SIGTERM go to all of them, once,
# and a closed terminal as SIGTERM; when one fails, the others are ended.
# Exit code: that of the first to fail; 75, try again, where it was killed.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

processes=${1:-}
if ! [[ "$processes" =~ ^[1-9][0-9]{0,3}$ ]]; then
  echo "error: launch/local.sh N FLAGS...: N is the number of processes, such as 2" >&2
  exit 2
fi
shift
python=${PYTHON:-.venv/bin/python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
gpus=()
where="this machine has"
if command -v nvidia-smi >/dev/null 2>&1; then
  if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    IFS=, read -r -a gpus <<<"$CUDA_VISIBLE_DEVICES"
    where="CUDA_VISIBLE_DEVICES names"
    # How a user says: no GPU.
    if [ "${gpus[0]:-}" = -1 ]; then gpus=(); fi
  else
    mapfile -t gpus < <(nvidia-smi --list-gpus 2>/dev/null | sed -n 's/^GPU \([0-9]*\):.*/\1/p')
  fi
fi
if [ "${#gpus[@]}" -gt 0 ] && [ "$processes" -gt "${#gpus[@]}" ]; then
  echo "error: $processes processes, but $where ${#gpus[@]} GPUs; start at most ${#gpus[@]}" >&2
  exit 2
fi

pids=()
# Job control: each process has a group of its own. In the script's, a terminal's Ctrl-C would reach it beside the one
# that is passed on, and the second of two means leave without saving; and without job control bash has what it starts
# in the background ignore Ctrl-C.
set -m
for ((i = 0; i < processes; i++)); do
  if [ "${#gpus[@]}" -gt 0 ]; then export CUDA_VISIBLE_DEVICES=${gpus[i]}; fi
  "$python" train_main.py --coordinator="127.0.0.1:$port" --num_processes="$processes" --process_id="$i" "$@" &
  pids+=($!)
done
set +m
trap 'kill -TERM "${pids[@]}" 2>/dev/null || true' TERM HUP
trap 'kill -INT "${pids[@]}" 2>/dev/null || true' INT

code=0
left=${#pids[@]}
while [ "$left" -gt 0 ]; do
  status=0
  # Nobody has ended: a signal of ours cut the wait short, which is asked again; or one ended beside another, and
  # bash keeps its code but no longer takes it for news.
  wait -n -p ended "${pids[@]}" || status=$?
  if [ -z "${ended:-}" ]; then
    for pid in "${pids[@]}"; do
      if ! kill -0 "$pid" 2>/dev/null; then
        ended=$pid status=0
        wait "$pid" || status=$?
        break
      fi
    done
    if [ -z "${ended:-}" ]; then continue; fi
  fi
  left=$((left - 1))
  for index in "${!pids[@]}"; do
    if [ "${pids[$index]}" = "$ended" ]; then
      unset "pids[$index]"
      number=$index
    fi
  done
  if [ "$status" -ne 0 ] && [ "$code" -eq 0 ]; then
    code=$status
    # 130 and 143: asked to end, each saves with the others. Anything else: nobody is to wait for the one that failed.
    if [ "$code" -ne 130 ] && [ "$code" -ne 143 ]; then
      if [ "$code" -gt 128 ]; then
        echo "error: process $number of $processes was ended by signal $((code - 128)), and the job with it; start all" \
          "processes again to resume from the last checkpoint" >&2
        code=75
      fi
      # Time for those that are well to say why they end; one that hangs ends here.
      if [ "$left" -gt 0 ]; then
        sleep 3
        kill -KILL "${pids[@]}" 2>/dev/null || true
      fi
    fi
  fi
  ended=
done
exit "$code"
