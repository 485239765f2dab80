#!/usr/bin/env bash
# Trains and evaluates every :small row on the whole of CIFAR-10 (three seeds for the five methods that
# are compared most, one for the rest), copies what is worth keeping to results/small_cifar10, its best
# checkpoint too; then runs AutoAttack on the checkpoints that are kept, which makes their results.json
# and verdicts.npz anew; and prints the table. What is there already is left alone, a row that was
# stopped goes on. Hours on two cores.
#   bash launch/table.sh [ROW ...]           with rows, only those: trades_cifar10:small-1 is seed 1,
#                                            classwise_cifar10:trades-small-0 another form
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh .venv all-cpu,dev
attacks="('pgd20','margin100x5','scales_pgd20','dummies_pgd100','autoattack')"
rows=()
for seed in 0 1 2; do
  for name in pgd_at trades ducat gairat entropy_sgd; do rows+=("${name}_cifar10:small-$seed"); done
done
for name in mart consistency awp fat gair_fat gair_trades mail_at mail_trades ducat_trades ducat_mart \
    ducat_consistency ducat_aware classwise finetune; do
  rows+=("${name}_cifar10:small-0")
done
for row in pgd_at_cifar10:{ema,swa,l2} entropy_sgd_cifar10:l2 classwise_cifar10:trades \
    finetune_cifar10:{radius,controller,dual}; do
  rows+=("$row-small-0")
done
[ $# -gt 0 ] && rows=("$@")

read_row() {  # of CONFIG:FORM-SEED, what the command needs and the name of its folder
  config="configs/${1%-*}" seed=${1##*-}
  config=${config/:/.py:}
  name=${1%-*} name=${name/:small/}
  name=${name/-small/}
  name=${name/:/-}-$seed
  kept="results/small_cifar10/$name"
}

for row in "${rows[@]}"; do
  read_row "$row"
  [ -e "$kept/results.json" ] && continue
  workdir="runs/table/$name"
  python -m at_jax.main --config="$config" --config.seed="$seed" --workdir="$workdir"
  mkdir -p "$kept/checkpoints"
  step=$(python -c 'import json, sys; print("%08d" % json.load(open(sys.argv[1]))["step"])' \
    "$workdir/results.json")
  cp -r "$workdir/checkpoints/$step" "$kept/checkpoints"
  # Orbax names the folder of this machine in it.
  echo 'Checkpoint commit was successful' > "$kept/checkpoints/$step/commit_success.txt"
  cp "$workdir"/{config.json,metrics.jsonl,verdicts.npz,results.json} "$kept"
done
for row in "${rows[@]}"; do
  read_row "$row"
  grep -q '"autoattack"' "$kept/results.json" && continue
  python -m at_jax.main --mode=evaluate --config="$config" --config.seed="$seed" --workdir="$kept" \
    --config.evaluate.attacks="$attacks"
done
python -m at_jax.analysis.table results/small_cifar10
