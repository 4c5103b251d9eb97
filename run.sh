#!/usr/bin/env bash
# One command for everything: set up the environment and the data, train, sample at t = 0, 50, 500
# and 1000, and make a denoising GIF and a report page.
#
#   bash run.sh                         built-in coloured shapes, about two minutes
#   bash run.sh fashionmnist            or mnist, cifar10, a folder of images, an .npz file
#   bash run.sh cifar10 --max-time 8h   flags after the dataset go to train.py
#                                       (see: python train.py --help)
#   bash run.sh setup [DATASET]         environment and data only, on a login node, for compute
#                                       nodes without a network
#   bash run.sh demo                    sample from the models in pretrained/, without training;
#                                       flags go to Inference.py
#   bash run.sh test                    set up and run the tests; with --all also the slow ones
#   bash run.sh bench                   install other projects and compare the speed with theirs
#                                       (see benchmarks/)
#   sbatch run.sh cifar10               train and sample in a SLURM job on one GPU, in
#                                       runs/cifar10-JOB
#   sbatch --nodes=2 --ntasks-per-node=4 --gres=gpu:4 run.sh cifar10
#                                       the same on eight GPUs, with one task for each
#
# The same command resumes an interrupted run. The environment is .venv, with the packages in
# requirements.txt. With --locked as the first argument, it has the tested versions in
# requirements.lock. PYTHON=/path/to/python uses an existing environment instead.
#SBATCH --job-name=ddpm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -euo pipefail

fail() {  # fail TEXT..: print an error and exit
  echo "run.sh: $*" >&2
  exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
# SLURM runs a copy of this file in another folder
[[ -f $here/train.py ]] || here=${SLURM_SUBMIT_DIR:-$PWD}
[[ -f $here/train.py ]] || fail "no train.py in $here: submit from the project's folder"

locked=()
if [[ ${1:-} == --locked ]]; then
  locked=(-c "$here/requirements.lock")
  shift
fi

# setup FILE..: make the environment from these requirement files. It is made again only if a file
# has changed or an earlier attempt did not finish.
setup() {
  if [[ -n ${PYTHON:-} ]]; then
    local given=$PYTHON
    PYTHON=$(command -v "$given") || fail "PYTHON is not a program: $given"
    [[ $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON
    return
  fi
  local mark=$here/.venv/.installed file requirements=
  is_ready() { [[ -f $mark && $(cat "$mark") == *"${requirements%$'\n'}"* ]]; }
  for file in "$@" ${locked[@]+requirements.lock}; do requirements+=$(cat "$here/$file")$'\n'; done
  PYTHON=$here/.venv/bin/python
  if is_ready; then return; fi
  if command -v flock >/dev/null; then  # the jobs of an array start at the same time
    exec 9>"$here/.setup.lock"
    flock 9 || true
  fi
  if is_ready; then exec 9>&-; return; fi
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
    fail "Python 3.10 or newer is needed, not $(python3 --version 2>&1):" \
      "set PYTHON to a newer one"
  echo "== making .venv from $* (only once; takes some minutes, torch's CUDA build is 5.5 GB) =="
  "$PYTHON" -m pip --version >/dev/null 2>&1 || python3 -m venv --clear "$here/.venv"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check \
    -r "$here/$1" ${2:+-r "$here/$2"} ${locked[@]+"${locked[@]}"}
  printf '%s' "$requirements" >"$mark"
  exec 9>&-  # programs that are started later must not inherit the lock
}

# resolve DATASET [COMMAND..]: print a known name in lower case, an absolute path, or a missing
# *mnist.npz or *cifar10.npz unchanged. Else fail, and perhaps suggest a dataset or a command.
resolve() {
  local name
  name=$(tr '[:upper:]' '[:lower:]' <<<"$1")
  case $name in
    mnist|fashionmnist|cifar10|shapes) echo "$name" ;;
    *) if [[ -d $1 ]]; then
         (cd "$1" && pwd)
       elif [[ -f $1 ]]; then
         echo "$(cd "$(dirname "$1")" && pwd)/$(basename "$1")"
       elif [[ $1 == *mnist.npz || $1 == *cifar10.npz ]]; then
         echo "$1"
       else
         "${PYTHON:-python3}" -c '
import sys
project, name, *commands = sys.argv[1:]
sys.path.insert(0, project)
from runtime.suggestions import unknown_or_missing
kind = "dataset or command" if commands else "dataset"
known = ["mnist", "fashionmnist", "cifar10", "shapes", *commands]
message = unknown_or_missing(kind, name, known, ", a folder of images or an .npz file")
print("run.sh: error:", message, file=sys.stderr)' "$here" "$@"
         return 2
       fi ;;
  esac
}

# absolute WORD..: set `words` to these words. The relative paths that path_of knows become
# absolute, because the scripts run in the project's folder.
absolute() {
  local word flag=
  words=()
  for word in "$@"; do
    if [[ $word == --*=* ]]; then
      flag=${word%%=*}
      words+=("$flag=$(path_of "$flag" "${word#*=}")")
    else
      words+=("$(path_of "$flag" "$word")")
      if [[ $word == --* ]]; then flag=$word; fi
    fi
  done
}

# path_of FLAG VALUE: print the value of a flag; make it absolute if it is a relative path and the
# flag is listed here
path_of() {
  local value=$2
  [[ $value == /* || $value == "~/"* || $PWD == "$here" ]] || case $1=$value in
    --data-root=*) value=$PWD/$value ;;
    --resume=auto|--resume=none|--schedule=linear|--schedule=cosine|--schedule=sigmoid|\
    --guide-with=auto|--guide-with=labels) ;;
    --init-from=*|--resume=*|--schedule=*|--input-image=*|--mask=*|--condition-image=*|\
    --interpolate=*|--guide-with=*)
      [[ ! -e $value ]] || value=$PWD/$value ;;
  esac
  printf '%s\n' "$value"
}

job=${SLURM_JOB_ID:-}
[[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID

# step [--once] COMMAND..: run a command. In a SLURM job it is a job step with one process for each
# task, or with --once a single process. A job whose step was stopped is requeued.
step() {
  local status=0 restarts=${SLURM_RESTART_COUNT:-0} srun=(srun --kill-on-bad-exit=1)
  [[ $1 != --once ]] || { shift; srun+=(--nodes=1 --ntasks=1); }
  [[ -n $job ]] || srun=()
  ${srun[@]+"${srun[@]}"} "$@" || status=$?
  case $status in
    0) return ;;
    # stopped by a signal; aborted by NCCL; killed; SIGUSR1, SIGUSR2 or SIGTERM while Python was
    # still starting
    75|134|137|138|140|143)
      # in the terminal of an interactive job, this script is not the job: do not requeue the job
      if [[ -z $job || -t 0 || -t 1 ]]; then exit "$status"; fi
      if ((restarts >= 8)); then
        echo "== stopped for the 9th time and not requeued;" \
          "to resume, submit the same command with --run-dir $run_dir ==" >&2
      else
        echo "== stopped with status $status: job $job is requeued," \
          "time $((restarts + 1)) of 8 =="
        scontrol requeue "$job" && exit 0
      fi ;;
  esac
  exit "$status"
}

case ${1:-} in
  -h|--help)
    sed -n '2,/^#SBATCH/p' "$here/run.sh" | sed -e '/^#SBATCH/d' -e 's/^# \{0,1\}//'
    exit 0 ;;
  setup)
    setup requirements.txt
    dataset=$(resolve "${2:-shapes}")
    absolute "${@:3}"
    cd "$here"
    exec "$PYTHON" train.py --dataset "$dataset" ${words[@]+"${words[@]}"} --prepare-data ;;
  demo)
    for flag in "${@:2}"; do
      case $flag in
        -h|--help) exec bash "$here/run.sh" --help ;;
        --version|--out|--out=*|--ckpt|--ckpt=*|--class|--class=*)
          fail "demo does not accept $flag: use python Inference.py" ;;
      esac
    done
    setup requirements.txt
    absolute "${@:2}"
    cd "$here"
    mkdir -p runs/demo
    SECONDS=0  # counted up by the shell
    durations=()
    for file in pretrained/*.safetensors; do
      name=$(basename "$file" .safetensors)
      echo "== $name =="
      start=$SECONDS
      "$PYTHON" Inference.py --ckpt "pretrained/$name.safetensors" --num 20 --steps 25 \
        --out "runs/demo/$name" --no-preview ${words[@]+"${words[@]}"}
      "$PYTHON" make_gif.py "runs/demo/$name/trajectory.npz" --out "runs/demo/$name.gif" \
        --columns 10 --scale 2
      durations+=("$name=$((SECONDS - start))")
    done
    echo "== report page =="
    "$PYTHON" -c '
import sys
from pathlib import Path
from run_page.demo_page import write_demo_page
seconds = dict(word.split("=") for word in sys.argv[1:])
print(*write_demo_page(Path("runs/demo"), seconds), sep="\n")' "${durations[@]}"
    echo "== done in $((SECONDS / 60)) min $((SECONDS % 60)) s: open runs/demo/index.html;" \
      "for more images: python Inference.py --ckpt $name --num 64 =="
    exit 0 ;;
  test)
    setup requirements.txt requirements-dev.txt
    cd "$here"
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # each worker has a core; four workers at most
    exec "$PYTHON" -m pytest -q -n logical --maxprocesses 4 --dist worksteal --durations=8 \
      "${@:2}" ;;
  bench)
    setup requirements.txt benchmarks/requirements.txt
    cd "$here"
    exec "$PYTHON" benchmarks/speed.py "${@:2}" ;;
esac

dataset=shapes
if [[ $# -gt 0 && $1 != -* ]]; then
  dataset=$(resolve "$1" setup demo test bench)
  shift
fi
run_dir=$here/runs/$(basename "${dataset%.npz}")${job:+-$job}
machine=()  # flags that are also passed to Inference.py
for ((i = 1; i <= $#; i++)); do
  j=$((i + 1))
  case ${!i} in
    --dataset|--dataset=*)
      fail "the dataset comes first and without --dataset: bash run.sh cifar10 ..." ;;
    --locked) fail "--locked comes first: bash run.sh --locked $dataset" ;;
    --run-dir=*) run_dir=${!i#*=} ;;
    --run-dir) run_dir=${!j:-$run_dir} ;;
    --device=*|--devices=*|--num-nodes=*) machine+=("${!i}") ;;
    --device|--devices|--num-nodes) machine+=("${!i}" "${!j:-}") ;;
    --dry-run|-h|--help|--version|--prepare-data) only_train=yes ;;
  esac
done

setup requirements.txt
run_dir=${run_dir/#"~/"/"$HOME/"}
[[ $run_dir == /* ]] || run_dir=$PWD/$run_dir
absolute "$@"
set -- ${words[@]+"${words[@]}"}
cd "$here"
run_dir=${run_dir#"$here"/}
# srun does not read this number from the job
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# SLURM does not always bind tasks to their cores
[[ -z $job ]] || export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}

# each job of an array has its own seed; a later --seed overrides it
if [[ -n ${SLURM_ARRAY_TASK_ID:-} ]]; then set -- --seed "$SLURM_ARRAY_TASK_ID" "$@"; fi
# the built-in shapes need less training than images; a later --preset overrides this one
if [[ $dataset == shapes ]]; then set -- --preset quick "$@"; fi
# a requeued job resumes from its own checkpoints, also after --resume none
if [[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]] &&
  compgen -G "$run_dir/checkpoints/step_*.ckpt" >/dev/null; then
  set -- "$@" --resume auto
fi

echo "== training on $dataset: $run_dir =="
step "$PYTHON" train.py --dataset "$dataset" "$@" --run-dir "$run_dir"
[[ -z ${only_train:-} ]] || exit 0
echo "== sampling, from t = T to 0 =="
step "$PYTHON" Inference.py --ckpt "$run_dir" --out "$run_dir/images" ${machine[@]+"${machine[@]}"}
echo "== denoising GIF =="
step --once "$PYTHON" make_gif.py "$run_dir/images/trajectory.npz" --out "$run_dir/denoise.gif"
echo "== report page =="
step --once "$PYTHON" report.py "$run_dir"

cat <<END

== done: everything is in $run_dir ==
  report.html               the whole run on one page, to open in a browser; \
update it with: python report.py $run_dir
  images/t0000.png          samples; t*.png: the same images with noise, at other t; \
x0_t*.png: the predictions of x_0
  images/samples.npz        the samples as an array, uint8 (N,H,W,C)
  denoise.gif               from noise to images
  samples/step_*.png        samples during training; samples/real.png: real images
  metrics.csv, tensorboard/ losses; show them: ${PYTHON#"$here"/} -m tensorboard.main --logdir runs
  checkpoints/              more samples: python Inference.py --ckpt $run_dir --num 64
                            quality: python evaluate.py --ckpt $run_dir; \
problems: the same with --doctor
END
