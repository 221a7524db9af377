#!/bin/bash
# A run over several machines under Slurm: `OUTPUT_DIR=outputs/mine sbatch recipes/slurm.sh --config my.yaml [...]`.
#
# Arguments after the script's name are passed to recipes/train.py. Submit it from the repository's folder, with the
# environment active. OUTPUT_DIR is the output folder. LAUNCH_CONFIG=recipes/accelerate_configs/multi_node.yaml uses DDP
# instead of FSDP2. Not tested under Slurm, only with fakes of srun, scontrol and accelerate
# (tests/training/test_launches.py).

#SBATCH --job-name=reward-model
#SBATCH --nodes=2                  # machines
#SBATCH --ntasks-per-node=1        # one accelerate on each machine; it starts a process for each GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64         # for all processes of a machine: tokenising, data loading
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log         # name and job id; a requeued job appends to the same file
#SBATCH --open-mode=append
#SBATCH --requeue                  # a preempted job is queued and starts again
#SBATCH --signal=B:TERM@120        # this shell (B) gets SIGTERM 120 s before the time limit
# Preemption sends SIGTERM and, after the GraceTime of the partition, SIGKILL: see `scontrol show partition`.

set -euo pipefail
: "${OUTPUT_DIR:?Set the output folder, on a shared file system: OUTPUT_DIR=outputs/mine sbatch recipes/slurm.sh ...}"

# --- machines ---
# The first machine of the job is the main one.
MACHINES=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
MAIN_ADDRESS=${MACHINES%%$'\n'*}
# Derived from the job id: two jobs on one machine must not share a port, and all machines need the same one.
MAIN_PORT=$((20000 + SLURM_JOB_ID % 10000))
GPUS_PER_NODE=${SLURM_GPUS_ON_NODE:-8}
LAUNCH_CONFIG=${LAUNCH_CONFIG:-recipes/accelerate_configs/fsdp2.yaml}

# --- network ---
# NCCL connects over the interface NCCL_SOCKET_IFNAME (`ip -o -4 addr` lists them). If it is unset, NCCL may choose a
# wrong one: export it before sbatch if the run hangs at the start or ends with a socket error.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # INFO shows the interface and transport in use
export TORCH_NCCL_ASYNC_ERROR_HANDLING=1 # a lost machine ends the run instead of hanging it

# --- files ---
# On a file system shared by all machines: OUTPUT_DIR (every process loads the checkpoint to resume from), HF_HOME (so
# that a model is downloaded once), the data, and this repository.
export HF_HOME=${HF_HOME:-$PWD/.hf}
# Without internet access: first run `hf download MODEL` with the same HF_HOME on another machine, then set this to 1.
export HF_HUB_OFFLINE=${HF_HUB_OFFLINE:-0}
export HF_DATASETS_OFFLINE=${HF_DATASETS_OFFLINE:-$HF_HUB_OFFLINE}

# --- processes ---
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK # srun does not inherit it from sbatch
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SLURM_CPUS_PER_TASK / GPUS_PER_NODE))}
export TOKENIZERS_PARALLELISM=false # threads do not survive the forks of the data loader
# torch kills its processes 30 s after SIGTERM by default; saving a checkpoint may take longer.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-110}

# A requeued job resumes from its newest checkpoint (`save_strategy` must not be "no"); if it was stopped before the
# first one, it starts at step 0 in the same folder.
AGAIN=()
if compgen -G "$OUTPUT_DIR/checkpoint-*" >/dev/null; then
    AGAIN=(--resume_from_checkpoint true)
elif [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
    AGAIN=(--overwrite_output_dir true)
fi

# srun runs this once on each machine and sets SLURM_NODEID there, so the variable must not be expanded here.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=1 bash -c '
    exec accelerate launch --config_file "$0" --num_machines "$1" --num_processes "$2" \
        --machine_rank "$SLURM_NODEID" --main_process_ip "$3" --main_process_port "$4" \
        recipes/train.py "${@:5}"
' "$LAUNCH_CONFIG" "$SLURM_JOB_NUM_NODES" "$((SLURM_JOB_NUM_NODES * GPUS_PER_NODE))" \
    "$MAIN_ADDRESS" "$MAIN_PORT" "$@" --output_dir "$OUTPUT_DIR" "${AGAIN[@]}" &
RUN=$!

# A shell handles signals only while it waits, hence & above. It forwards SIGTERM to srun, and srun to the processes.
STOPPED=no
trap 'STOPPED=yes; kill -TERM "$RUN"' TERM
STATUS=0
wait "$RUN" || STATUS=$?
if [ "$STOPPED" = yes ]; then
    wait "$RUN" || STATUS=$? # the signal ended the first wait; this one waits for the checkpoint
    scontrol requeue "$SLURM_JOB_ID" || true # needed at the time limit; after preemption Slurm has already requeued it
fi
exit "$STATUS"
