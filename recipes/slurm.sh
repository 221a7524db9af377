#!/bin/bash
# A run over several machines under Slurm: `OUTPUT_DIR=outputs/mine sbatch recipes/slurm.sh --config my.yaml [...]`.
#
# What follows the script's name goes to recipes/train.py. Submit it from the repository's folder, with the environment
# active. OUTPUT_DIR is the run's output folder, and LAUNCH_CONFIG=recipes/accelerate_configs/multi_node.yaml takes DDP
# instead of FSDP2. Expected, not run under Slurm: it was run with stand-ins for srun, scontrol and accelerate
# (tests/training/test_launches.py).

#SBATCH --job-name=reward-model
#SBATCH --nodes=2                  # machines
#SBATCH --ntasks-per-node=1        # one accelerate for each machine; it starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64         # for all processes of a machine: tokenising, data loading
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log         # name and job number; requeued, a job goes on in the same file
#SBATCH --open-mode=append
#SBATCH --requeue                  # a preempted job waits and starts again
#SBATCH --signal=B:TERM@120        # this shell (B) gets SIGTERM 120 s before time is up
# Preemption itself sends SIGTERM and, after the site's GraceTime, SIGKILL: see `scontrol show partition`.

set -euo pipefail
: "${OUTPUT_DIR:?Name the output folder, on a shared file system: OUTPUT_DIR=outputs/mine sbatch recipes/slurm.sh ...}"

# --- machines ---
# The first machine of the job is the one that the others meet at.
MACHINES=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_ADDRESS=${MACHINES%%$'\n'*}
# Two jobs on one machine must not share a port; from the job's number, so that all machines agree.
MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000))
GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-8}
LAUNCH_CONFIG=${LAUNCH_CONFIG:-recipes/accelerate_configs/fsdp2.yaml}

# --- network ---
# NCCL's first contact goes over NCCL_SOCKET_IFNAME (`ip -o -4 addr` lists the interfaces). Unset, NCCL takes one that is
# up, which may be the wrong one: export it before sbatch if the run hangs at its start or ends in a socket error.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # INFO says which interface and transport was taken
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1 # a lost machine ends the run instead of hanging it

# --- files ---
# On a file system that all machines share: OUTPUT_DIR (every process reads the checkpoint that it resumes from), HF_HOME
# (so that a model is downloaded once), the data, and this repository.
export HF_HOME=${HF_HOME:-$PWD/.hf}
# Machines without internet: first `hf download MODEL` with the same HF_HOME on one that has it, then submit with 1.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}
export HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE:-$HF_HUB_OFFLINE}

# --- processes ---
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun no longer takes it over from sbatch
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / GPUS_PER_NODE))}
export TOKENIZERS_PARALLELISM=false # its threads would not survive the data loader's forks
# After SIGTERM torch gives its processes 30 s before it kills them; the checkpoint may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}

# A job that was requeued goes on from its latest checkpoint (`save_strategy` must not be "no"); if it was stopped
# before the first one it starts anew in the same folder.
AGAIN=()
if compgen -G "$OUTPUT_DIR/checkpoint-*" >/dev/null; then
    AGAIN=(--resume_from_checkpoint true)
elif [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    AGAIN=(--overwrite_output_dir true)
fi

# srun starts this once on each machine and sets SLURM_NODEID there, so it must not be expanded here.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$0" --num_machines "$1" --num_processes "$2" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$3" --main_process_port "$4" \
        recipes/train.py "${@:5}"
' "$LAUNCH_CONFIG" "$SLURM_JOB_NUM_NODES" "$((SLURM_JOB_NUM_NODES * GPUS_PER_NODE))" \
    "$MAIN_ADDRESS" "$MAIN_PORT" "$@" --output_dir "$OUTPUT_DIR" "${AGAIN[@]}" &
RUN=$!

# A shell handles a signal only while it waits, hence & above. It hands SIGTERM to srun, srun to the processes.
STOPPED=no
trap 'STOPPED=yes; kill -TERM "$RUN"' TERM
STATUS=0
wait "$RUN" || STATUS=$?
if [ "$STOPPED" = yes ]; then
    wait "$RUN" || STATUS=$? # the signal ended the first wait; this one is for the checkpoint
    scontrol requeue "$SLURM_JOB_ID" || true # at the time limit nobody else asks; after preemption Slurm has done it
fi
exit "$STATUS"
