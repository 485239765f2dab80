#!/usr/bin/env bash
# Trains and evaluates every :small row on the whole of CIFAR-10 (three seeds for the five methods that
# are compared most, one for the rest), copies what is worth keeping to results/small_cifar10 and prints
# the table. A row that is there already is left alone, one that was stopped goes on. Hours on two cores.
# The best checkpoint is kept too: --mode=evaluate --workdir=results/small_cifar10/METHOD-SEED attacks it
# again, and makes its results.json anew.
#   bash launch/table.sh [ROW ...]           with rows, only those: trades_cifar10:small-1 is seed 1,
#                                            classwise_cifar10:trades-small-0 another form
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh .venv all-cpu,dev
rows=()
for seed in 0 1 2; do
  for name in pgd_at trades ducat gairat entropy_sgd; do rows+=("${name}_cifar10:small-$seed"); done
done
for name in mart consistency awp fat gair_fat gair_trades mail_trades ducat_trades ducat_aware \
    classwise finetune; do
  rows+=("${name}_cifar10:small-0")
done
for row in "${@:-${rows[@]}}"; do
  config=${row%-*} seed=${row##*-}
  name=${config/:small/}; name=${name/-small/}; name=${name/:/-}
  kept="results/small_cifar10/$name-$seed"
  [ -e "$kept/results.json" ] && continue
  workdir="runs/table/$name-$seed"
  python -m at_jax.main --config="configs/${config/:/.py:}" --config.seed="$seed" \
    --workdir="$workdir"
  mkdir -p "$kept/checkpoints"
  step=$(python -c 'import json, sys; print("%08d" % json.load(open(sys.argv[1]))["step"])' \
    "$workdir/results.json")
  cp -r "$workdir/checkpoints/$step" "$kept/checkpoints"
  # Orbax names the folder of this machine in it.
  echo 'Checkpoint commit was successful' > "$kept/checkpoints/$step/commit_success.txt"
  cp "$workdir"/{config.json,metrics.jsonl,verdicts.npz,results.json} "$kept"
done
python -m at_jax.analysis.table results/small_cifar10
