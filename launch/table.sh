#!/usr/bin/env bash
# Makes results/small_cifar10: trains and evaluates every :small row on CIFAR-10 (three seeds for the five
# methods that are compared most, one seed for the others), and exports its records and its best checkpoint
# (weights.npz). Then runs AutoAttack on the exported weights, which rewrites results.json and verdicts.npz,
# and prints the table. Rows that take other numbers of passes (cheap adversaries, our recipe; three seeds)
# are in results/passes_small_cifar10, and have autoattack_fast with an audit.
# Existing rows are kept, and an interrupted row resumes. Takes hours on two cores.
#   bash launch/table.sh [ROW ...]           only these rows: trades_cifar10:small-1 is seed 1,
#                                            classwise_cifar10:trades-small-0 is a variant
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh .venv all-cpu,dev
rows=()
for seed in 0 1 2; do
  for name in pgd_at trades ducat gairat entropy_sgd n_fgsm fgsm_rs nuat free_at fgsm_pgi at_jax; do
    rows+=("${name}_cifar10:small-$seed")
  done
  rows+=("at_jax_cifar10:third-small-$seed")
done
for name in mart consistency awp fat gair_fat gair_trades mail_at \
    mail_trades ducat_trades ducat_mart ducat_consistency ducat_aware classwise finetune; do
  rows+=("${name}_cifar10:small-0")
done
for row in pgd_at_cifar10:{ema,swa,l2} entropy_sgd_cifar10:l2 classwise_cifar10:trades \
    finetune_cifar10:{radius,controller,dual}; do
  rows+=("$row-small-0")
done
[ $# -gt 0 ] && rows=("$@")

read_row() {  # splits CONFIG:VARIANT-SEED into the command's arguments and the name of the folder
  config="configs/${1%-*}" seed=${1##*-}
  config=${config/:/.py:}
  name=${1%-*} name=${name/:small/}
  name=${name/-small/}
  name=${name/:/-}-$seed
  kept="results/small_cifar10/$name"
  attacks="('pgd20','margin100x5','scales_pgd20','dummies_pgd100','autoattack')" audit=0
  case $name in n_fgsm_* | fgsm_rs_* | nuat_* | free_at_* | fgsm_pgi_* | at_jax_*)
    kept="results/passes_small_cifar10/$name" attacks="('pgd20','autoattack_fast')" audit=200 ;;
  esac
}

for row in "${rows[@]}"; do
  read_row "$row"
  [ -e "$kept/results.json" ] && continue
  workdir="runs/table/$name"
  python -m at_jax.main --config="$config" --config.seed="$seed" --workdir="$workdir"
  python -c 'import sys
from at_jax import xla_flags
xla_flags.tune()  # as at_jax.main, before jax is imported
from at_jax.training import restore
restore.export(*sys.argv[1:])' "$workdir" "$kept"
done
for row in "${rows[@]}"; do
  read_row "$row"
  grep -qE '"autoattack(_fast)?"' "$kept/results.json" && continue
  python -m at_jax.main --mode=evaluate --config="$config" --config.seed="$seed" --workdir="$kept" \
    --config.evaluate.attacks="$attacks" --config.evaluate.audit="$audit"
done
python -m at_jax.analysis table results/small_cifar10 --write=results/README.md
python -m at_jax.analysis passes results/small_cifar10 results/passes_small_cifar10 --output=results/passes
