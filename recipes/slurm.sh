#!/bin/bash
# A SLURM job for recipes/slurm.yaml: sbatch recipes/slurm.sh
#
# Set what your site wants (partition, account, time), and activate the environment that has tailorlib. If the nodes
# can't reach the hub, fetch everything where there is a network, into a cache that they see (HF_HOME), and set
# HF_HUB_OFFLINE=1 and HF_DATASETS_OFFLINE=1 below:
#   hf download mistralai/Mistral-7B-v0.1      # and the candidates
#   lm-eval run --model dummy --limit 1 \
#     --tasks hellaswag,piqa,arc_easy,sciq,arc_challenge,openbookqa,winogrande

#SBATCH --job-name=tailor       # not "bash" or "interactive", which Lightning takes for a shell
#SBATCH --nodes=2               # trainer.num_nodes
#SBATCH --ntasks-per-node=8     # trainer.devices; not --ntasks, which Lightning refuses
#SBATCH --gpus-per-node=8       # not --gpus-per-task: every task has to see all GPUs of its node
#SBATCH --cpus-per-task=8
#SBATCH --mem=0                 # all of the node's: checkpoints stay in the page cache
#SBATCH --time=24:00:00
#SBATCH --requeue               # after a node failed or the job was preempted
#SBATCH --signal=SIGUSR1@180    # three minutes before the time is up; Lightning then requeues the job
#SBATCH --open-mode=append      # one log for all attempts
#SBATCH --output=%x-%j.log

set -euo pipefail

# Lightning finds ranks, nodes and the first node's address in SLURM's variables. The others would wait for a rank
# that died: let the whole step end with it.
srun --kill-on-bad-exit=1 tailor search --config recipes/slurm.yaml "$@"
