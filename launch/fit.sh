# Variables and functions of slurm.sbatch and torchrun.sh, which read this file in the folder of the checkout.
#
#   EXP       the experiment (experiments/EXP); no default
#   STAGE     the stage, base by default
#   CONFIG    its file, STAGE by default: experiments/EXP/CONFIG.yaml
#   STRATEGY  a file of experiments/strategy, such as zero2; none by default
#   RUN       folder of the run, runs/EXP by default, on a file system that all machines share
#   PYTHON    the Python with the packages of requirements.txt, .venv/bin/python by default
#
# Words after the name of the script are options of fit.

: "${EXP:?which experiment? set EXP to a folder of experiments/, for example EXP=text_to_video}"
STAGE=${STAGE:-base}
CONFIG=${CONFIG:-$STAGE}
RUN=${RUN:-runs/$EXP}
PYTHON=${PYTHON:-.venv/bin/python}

# Say a sentence under the name of the script, and end with an exit code.
stop_with() {
  echo "$NAME: $2" >&2
  exit "$1"
}

[ -d experiments ] || stop_with 2 "there is no folder experiments in $PWD: start this in the checkout"
[ -f "experiments/$EXP/$CONFIG.yaml" ] || stop_with 2 "there is no experiments/$EXP/$CONFIG.yaml; set EXP, and STAGE or CONFIG, to one of:\
 $(echo $(ls experiments/"$EXP"/*.yaml 2>/dev/null || ls -d experiments/*/))"
[ -z "${STRATEGY:-}" ] || [ -f "experiments/strategy/$STRATEGY.yaml" ] || stop_with 2 "there is no experiments/strategy/$STRATEGY.yaml"
for word in "$@"; do
  case "${word//-/_}" in
    # A start that does not go on from the newest checkpoint would lose the steps of the start before, each time.
    __from_scratch* | __ckpt_path*) stop_with 2 "leave $word out: this script may start the training several times" ;;
    # The name of the folder of checkpoints follows from RUN and STAGE.
    __run | __run=* | __stage | __stage=* | __checkpoint.dirpath*) stop_with 2 "leave $word out: give RUN and STAGE as variables" ;;
  esac
done
FIT=(-m walt_pl fit --config "experiments/$EXP/$CONFIG.yaml" ${STRATEGY:+--config "experiments/strategy/$STRATEGY.yaml"}
  --run "$RUN" --stage "$STAGE" "$@")

# Print the step of the newest complete checkpoint, 0 if there is none.
newest_step() {
  local card last=step=0
  for card in "$RUN/training/$STAGE/checkpoints"/step=*[0-9]/checkpoint.json; do
    [ -f "$card" ] && last=$(basename "$(dirname "$card")")
  done
  echo $((10#${last#step=}))
}
