#!/bin/bash
# The benchmark, one target a task of a job array; each has a folder of its own.
#
#   TARGETS="sphere torus axon-0" sbatch --array=0-2 benchmark_array.sh FOLDER [METHOD ...]
#
# Where the time was too short, sbatch the same again: runs that are done stay as they are,
# and unfinished ones go on from their checkpoints. Then one table of all:
#
#   awk 'FNR > 1 || NR == 1' FOLDER/*/table.csv > FOLDER/table.csv
#
#SBATCH --job-name=spinverse-benchmark
#SBATCH --array=0-2
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --time=08:00:00
#SBATCH --signal=USR1@300
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

folder=${1:?usage: sbatch --array=0-2 benchmark_array.sh FOLDER [METHOD ...]}
shift
methods=("${@:-default}")

# names, or files and folders of files: spinverse benchmark --help
read -ra targets <<< "${TARGETS:-sphere torus axon-0}"
target=${targets[${SLURM_ARRAY_TASK_ID:?a task of a job array}]:-}
if [ -z "$target" ]; then
    echo "no target for task $SLURM_ARRAY_TASK_ID of ${#targets[@]}"
    exit 0
fi

# runs are processes of one thread each, --jobs of them at a time
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
XDG_CACHE_HOME=$(mktemp -d "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}/spinverse-XXXXXX")
export XDG_CACHE_HOME
trap 'rm -rf "$XDG_CACHE_HOME"' EXIT

name=$(basename "$target" .npz)
srun --ntasks=1 --mpi=none spinverse benchmark -o "$folder/$name" --targets "$target" \
    --methods "${methods[@]}" --jobs "${SLURM_CPUS_PER_TASK:-1}"
