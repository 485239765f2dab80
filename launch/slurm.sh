#!/usr/bin/env bash
# Trains on the nodes of a Slurm cluster, with one process for each GPU. Run it from this folder's parent, in
# an environment that has at_jax; options before the script replace those below.
#   sbatch --nodes=4 launch/slurm.sh --config=configs/pgd_at_cifar10.py --workdir=runs/pgd_at
#SBATCH --job-name=at_jax
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
set -euo pipefail
# srun does not inherit the option since Slurm 22.05.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:?use sbatch with --cpus-per-task}
exec srun --kill-on-bad-exit=1 python -m at_jax.main --distributed=slurm "$@"
