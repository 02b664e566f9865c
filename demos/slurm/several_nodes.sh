#!/bin/bash
# A large simulation, or a reconstruction by time stepping or of a large mesh, on several nodes.
#
#   sbatch several_nodes.sh simulate RUN.yaml FOLDER
#   sbatch several_nodes.sh reconstruct RUN.yaml FOLDER
#
#SBATCH --job-name=spinverse
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=16
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=3G
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

usage="usage: sbatch several_nodes.sh simulate|reconstruct RUN.yaml FOLDER"
command=${1:?$usage}
run_file=${2:?$usage}
folder=${3:?$usage}

export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export OPENBLAS_NUM_THREADS=$OMP_NUM_THREADS MKL_NUM_THREADS=$OMP_NUM_THREADS
read -ra launch <<< "${LAUNCH:-srun --mpi=pmi2}"

# Compiled forms on a disk of each node. Rank 0 compiles, then one rank of every other node does,
# while its neighbours wait (docs/cluster.md has what to do where compiling takes more than 10 s).
export XDG_CACHE_HOME=${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/spinverse-${SLURM_JOB_ID:-0}
trap 'srun --ntasks="${SLURM_NNODES:-1}" --ntasks-per-node=1 --mpi=none rm -rf "$XDG_CACHE_HOME" || true' EXIT

words=(spinverse "$command" "$run_file" -o "$folder")
case $command in
    reconstruct) words+=(--resume) ;;
    simulate) words+=(--force) ;; # a simulation appears whole or not at all
    *) echo "$usage" >&2; exit 2 ;;
esac

code=0
"${launch[@]}" "${words[@]}" || code=$?
if [ "$code" -eq 75 ]; then
    if [ "$command" = simulate ]; then
        echo "the simulation did not end in time: ask for more time or nodes" >&2
        exit 1
    fi
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
