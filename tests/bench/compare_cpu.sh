#!/usr/bin/env bash
# Phalanx against PyTorch, interleaved (A B A B ...), because either drifts between processes on a
# shared machine: prints the ratio of the medians of tokens/s for every case.
#
#   compare_cpu.sh [ROUNDS] [options of both programs, e.g. --model S --copies 1 --precision bf16]
#
# PYTHON names an interpreter that has torch; BUILD the build folder (default: build).
set -euo pipefail
here=$(dirname "$(readlink -f "$0")")
rounds=3
if [[ ${1:-} =~ ^[0-9]+$ ]]; then rounds=$1; shift; fi
options=("$@")
if [ ${#options[@]} -eq 0 ]; then options=(--copies 1); fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for ((round = 1; round <= rounds; ++round)); do
  echo "--- round $round of $rounds"
  "${BUILD:-$here/../../build}/tests/bench/train_cpu" "${options[@]}" | tee -a "$work/phalanx"
  "${PYTHON:-python3}" "$here/train_torch.py" "${options[@]}" | tee -a "$work/torch"
done

median() {  # median FILE CASE: of the tokens/s on the lines of a case
  sed -n "s|^$2: *\([0-9.]*\) tokens/s.*|\1|p" "$1" | sort -n |
    awk '{v[NR] = $1} END {print NR % 2 ? v[(NR + 1) / 2] : (v[NR / 2] + v[NR / 2 + 1]) / 2}'
}

echo "--- medians of $rounds rounds, tokens/s"
sed -n 's|^\([SM] K=[0-9]* [a-z0-9]*\): .*|\1|p' "$work/torch" | awk '!seen[$0]++' |
  while read -r name; do
    ours=$(median "$work/phalanx" "$name")
    theirs=$(median "$work/torch" "$name")
    awk -v n="$name" -v a="$ours" -v b="$theirs" \
      'BEGIN {printf "%s: Phalanx %.1f, PyTorch %.1f, ratio %.2f\n", n, a, b, a / b}'
  done
