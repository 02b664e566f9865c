#!/bin/bash
# A reconstruction on the cores of one node. It goes on from its checkpoint when the job is put
# back into the queue: at the end of its time by itself, after a failure of the node by Slurm.
#
#   sbatch single_node.sh RUN.yaml FOLDER
#
#SBATCH --job-name=spinverse
#SBATCH --nodes=1
#SBATCH --ntasks=8
#SBATCH --cpus-per-task=1
#SBATCH --mem-per-cpu=2G
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
# --signal: every rank is told 300 s before the end; an iteration must not take longer than that.
set -euo pipefail

run_file=${1:?usage: sbatch single_node.sh RUN.yaml FOLDER}
folder=${2:?usage: sbatch single_node.sh RUN.yaml FOLDER}

# one BLAS thread for each core that a rank has
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export OPENBLAS_NUM_THREADS=$OMP_NUM_THREADS MKL_NUM_THREADS=$OMP_NUM_THREADS

# compiled forms on a disk of the node: no home directory is asked by every rank
XDG_CACHE_HOME=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/spinverse-XXXXXX")
export XDG_CACHE_HOME
trap 'rm -rf "$XDG_CACHE_HOME"' EXIT

# MPICH's ranks learn of each other by PMI 2; for Open MPI: LAUNCH="srun --mpi=pmix"
read -ra launch <<< "${LAUNCH:-srun --mpi=pmi2}"

code=0
"${launch[@]}" spinverse reconstruct "$run_file" -o "$folder" --resume || code=$?
if [ "$code" -eq 75 ]; then # it was told to end, and can go on
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
