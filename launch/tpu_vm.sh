#!/usr/bin/env bash
# Trains on all workers of a TPU VM, each of which has this repository in ~/at_jax with at_jax installed.
#   TPU_NAME=my-tpu ZONE=us-central2-b bash launch/tpu_vm.sh --config=configs/pgd_at_cifar10.py \
#     --workdir=/mnt/runs/pgd_at
set -euo pipefail
exec gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all \
  --command="cd at_jax && exec python3 -m at_jax.main --distributed=auto ${*@Q}"
