#!/usr/bin/env bash
# From nothing to pictures: environment, data, training, samples at t = 0/50/500/1000, denoising GIF.
#
#   bash run.sh                                  the built-in dataset of coloured shapes
#   bash run.sh fashionmnist                     or mnist, cifar10, a folder of images, an .npz file
#   bash run.sh cifar10 --max-time 8h            whatever follows goes to train.py (see: python train.py --help)
#   bash run.sh setup [DATASET]                  environment and data only: for a login node, before offline compute nodes
#   bash run.sh test                             set up and run the tests
#   sbatch run.sh cifar10                        the same, as a SLURM job on one GPU
#
# It makes .venv from requirements.txt; PYTHON=/path/to/python uses that interpreter as it is. Run again, it goes on.
#SBATCH --job-name=ddpm
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
[[ -f $here/train.py ]] || here=${SLURM_SUBMIT_DIR:-$PWD}  # a SLURM job runs a copy of this file from elsewhere
[[ -f $here/train.py ]] || { echo "run.sh: no train.py in $here: submit from the project's folder" >&2; exit 2; }

setup() {  # setup REQUIREMENTS: the environment, once; redone when the file changes or an earlier try was cut short
  [[ -z ${PYTHON:-} ]] || return 0
  local requirements=$here/$1 mark=$here/.venv/.$1
  PYTHON=$here/.venv/bin/python
  cmp -s "$requirements" "$mark" && return 0
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    { echo "run.sh: python3 must be 3.10 or newer, and is $(python3 --version 2>&1); set PYTHON to another one" >&2; exit 2; }
  echo "== making .venv from $1 (once; torch's CUDA build is 5.5 GB) =="
  [[ -x $PYTHON ]] || python3 -m venv "$here/.venv"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check -r "$requirements"
  cp "$requirements" "$mark"
}

case ${1:-} in
  -h|--help) sed -n '2,/^#SBATCH/{/^#SBATCH/!s/^# \{0,1\}//p}' "$here/run.sh"; exit 0 ;;
  setup) setup requirements.txt; cd "$here"; exec "$PYTHON" train.py --dataset "${2:-shapes}" "${@:3}" --prepare-data ;;
  test)  setup requirements-dev.txt; cd "$here"; exec "$PYTHON" -m pytest "${@:2}" ;;
esac

dataset=shapes
if [[ $# -gt 0 && $1 != -* ]]; then dataset=$1; shift; fi
if [[ -e $dataset ]]; then dataset=$(cd "$(dirname "$dataset")" && pwd)/$(basename "$dataset"); fi  # a path from where you stand
name=$(basename "${dataset%.npz}" | tr '[:upper:]' '[:lower:]')
run_dir=$here/runs/$name
for ((i = 1; i <= $#; i++)); do
  case ${!i} in
    --run-dir=*) run_dir=${!i#*=} ;;
    --run-dir) j=$((i + 1)); run_dir=${!j:-$run_dir} ;;
    --dry-run|-h|--help|--prepare-data) only_train=yes ;;
  esac
done

setup requirements.txt
cd "$here"
run_dir=${run_dir#"$here"/}
step=${SLURM_JOB_ID:+srun}  # in a job every step is a job step

echo "== training on $dataset: $run_dir =="
$step "$PYTHON" train.py --dataset "$dataset" --run-dir "$run_dir" "$@"
[[ -z ${only_train:-} ]] || exit 0
echo "== sampling: Algorithm 2, from t = T to 0 =="
$step "$PYTHON" Inference.py --ckpt "$run_dir" --out "$run_dir/images"
echo "== denoising GIF =="
$step "$PYTHON" make_gif.py "$run_dir/images/trajectory.npz" --out "$run_dir/denoise.gif"

cat <<END

== done: everything is in $run_dir ==
  images/t0000.png          samples; t0050, t0500, t1000: the same images on their way, x0_t*.png: what was predicted there
  images/samples.npz        the samples as numbers, uint8 (N,H,W,C)
  denoise.gif               from noise to images
  samples/step_*.png        samples while it was trained, beside samples/real.png
  metrics.csv, tensorboard/ losses; look with: ${PYTHON#"$here"/} -m tensorboard.main --logdir runs
  checkpoints/              python Inference.py --ckpt $run_dir --num 64
END
