#!/bin/bash
# Train a stage on several machines without a scheduler. Type this in the checkout on every machine, each with its own NODE_RANK:
#
#   EXP=text_to_video STAGE=base STRATEGY=zero3 NODES=2 NODE_RANK=0 HEAD=node0 GPUS=8 launch/torchrun.sh \
#     --config experiments/text_to_video/adamw.yaml
#
# launch/fit.sh lists the variables of the training. Options after the name of the script are fit's. These are about the machines:
#
#   NODES         number of machines
#   NODE_RANK     number of this machine, from 0; machine 0 is the one that HEAD names
#   HEAD          name or address of machine 0, at which the others reach it: the agents meet there ("rendezvous")
#   PORT          port of the rendezvous, 29500 by default. It has no password, and whoever reaches it can run programs on all machines:
#                 only for a private network
#   ADDRESS       name or address of this machine for the others; by default HEAD on machine 0, elsewhere that of the network card to HEAD
#   GPUS          processes of each machine, 8 by default
#   MAX_RESTARTS  how often an agent starts its processes again after one has failed, 3 by default
#   RESTARTS      how often this script starts an agent again without a new checkpoint in between, 3 by default
#   GRACE         seconds that the processes have for their last checkpoint when they are told to end, 120 by default
#   JOIN          seconds that the agents wait for each other, 600 by default
#
# The agent is torchrun's process on each machine. It starts the processes of that machine and watches them.
#
# | event                         | started again by                                                                          |
# | ----------------------------- | ----------------------------------------------------------------------------------------- |
# | a process fails or is killed  | the agents, on all machines, at most MAX_RESTARTS times                                   |
# | an agent is killed or fails   | this script on its machine, at most RESTARTS times in a row without a new checkpoint      |
# | the agent of machine 0 ends   | the rendezvous ends with it, and so do the other agents: this script on every machine     |
# | this script is killed         | nothing: its agent goes on without it. The same command ends that agent, which saves a    |
# |                               | checkpoint, and starts another                                                            |
# | this script gets SIGTERM,     | nothing: a checkpoint is written on all machines, and this machine ends. Signal the       |
# | SIGUSR1, SIGHUP or Ctrl-C     | others, too: they would wait for this one                                                 |
#
# | exit code          | meaning                                               |
# | ------------------ | ----------------------------------------------------- |
# | 0                  | the stage is done                                     |
# | 143, 138, 129, 130 | ended by SIGTERM, SIGUSR1, SIGHUP or Ctrl-C           |
# | anything else      | it failed; the same command goes on                   |

NAME=torchrun.sh
source launch/fit.sh || exit 2
: "${NODES:?how many machines?}" "${NODE_RANK:?which of the machines is this? 0 is the one that HEAD names}" "${HEAD:?where is machine 0?}"
PORT=${PORT:-29500}
GPUS=${GPUS:-8}
MAX_RESTARTS=${MAX_RESTARTS:-3}
RESTARTS=${RESTARTS:-3}
GRACE=${GRACE:-120}
JOIN=${JOIN:-600}
[ "$NODE_RANK" -lt "$NODES" ] || stop_with 2 "NODE_RANK is $NODE_RANK, and there are machines 0 to $((NODES - 1))"
# Threads of several processes would wait for each other.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((($(nproc) + GPUS - 1) / GPUS))}
# c10d, since agents that were started again may join it; is_host, since a name may have addresses that the machine does not know as its
# own.
[ "$NODE_RANK" -eq 0 ] && is_host=true || is_host=false
# Agents would tell each other their host names, which the other machines may not know.
[ "$NODE_RANK" -ne 0 ] || ADDRESS=${ADDRESS:-$HEAD}
ADDRESS=${ADDRESS:-$("$PYTHON" -c '
import socket, sys
family, kind, _, _, place = socket.getaddrinfo(sys.argv[1], int(sys.argv[2]), type=socket.SOCK_DGRAM)[0]
with socket.socket(family, kind) as card:
    card.connect(place)  # sends nothing
    print(card.getsockname()[0])' "$HEAD" "$PORT")} || stop_with 1 "this machine finds no way to $HEAD: look at HEAD and the network"
AGENT=(-m torch.distributed.run --nnodes "$NODES" --nproc-per-node "$GPUS" --max-restarts "$MAX_RESTARTS" --rdzv-backend c10d
  --rdzv-endpoint "$HEAD:$PORT" --rdzv-id "walt-$EXP-$STAGE" --local-addr "$ADDRESS"
  --rdzv-conf "is_host=$is_host,join_timeout=$JOIN,read_timeout=$JOIN")
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$GRACE
# Each round of the rendezvous gets a store of its own, served by rank zero. With the agents' store, which torch would share among rounds,
# an agent that was started again never learns its address (torch 2.14: the others announce it in their first round only).
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

# Print the processes of this training's agents on this machine: each has the mark in its environment.
mark="WALT_LAUNCH=$(realpath -m "$RUN")/$STAGE/$NODE_RANK"
own_processes() {
  grep -lsxzF "$mark" /proc/[0-9]*/environ | cut -d/ -f3
}

# Print the processes whose SIGTERM ends the rest with a checkpoint: the agent if it lives, else the ranks, which have sessions of their
# own. A second SIGTERM would kill a rank at once, and the last step needs the data workers.
leaders_of() {
  local process agents
  agents=$(for process in "$@"; do grep -lsxzF torch.distributed.run "/proc/$process/cmdline" | cut -d/ -f3; done)
  [ -z "$agents" ] || { echo "$agents" && return; }
  for process in "$@"; do [ "$(ps -o sid= -p "$process" | tr -d ' ')" != "$process" ] || echo "$process"; done
}

# End the processes that an agent or a script has left behind: they would keep their devices.
end_processes() {
  local left end=$((SECONDS + GRACE))
  for _ in 1 2 3 4; do # those of an agent that ended by itself are ending, too
    left=$(own_processes)
    [ -z "$left" ] && return
    sleep 0.5
  done
  echo "$NAME: processes were left behind; ending them:" $left >&2
  kill -TERM $(leaders_of $left) 2>/dev/null
  while [ -n "$(own_processes)" ] && [ $SECONDS -lt $end ]; do sleep 0.5; done
  left=$(own_processes)
  [ -z "$left" ] || kill -KILL $left 2>/dev/null
}

# A script that was killed has left its agent behind. One that lives is not disturbed.
for process in $(own_processes); do
  script=$(tr '\0' '\n' 2>/dev/null < "/proc/$process/environ" | sed -n 's/^WALT_SCRIPT=//p')
  if grep -qsF "$NAME" "/proc/$script/cmdline"; then
    stop_with 2 "process $script trains stage \"$STAGE\" of $RUN on this machine already; end it with: kill $script"
  fi
done
end_processes

agent=
told=0
tell() {
  told=$1
  [ -z "$agent" ] || kill -TERM "$agent" 2>/dev/null # the agent sends it to its processes, and waits for them
}
trap 'tell 15' TERM
trap 'tell 10' USR1
trap 'tell 2' INT
trap 'tell 1' HUP

failures=0
while :; do
  before=$(newest_step)
  # A session of its own: Ctrl-C of a terminal shall reach the agent through this script only. Without "--" torchrun takes --run of fit for
  # an abbreviation of its own options.
  env "$mark" "WALT_SCRIPT=$$" setsid "$PYTHON" "${AGENT[@]}" -m -- "${FIT[@]:1}" --trainer.devices "$GPUS" --trainer.num_nodes "$NODES" &
  agent=$!
  [ $told -eq 0 ] || tell $told # the signal came before there was an agent
  wait "$agent"
  code=$?
  while kill -0 "$agent" 2>/dev/null; do # a signal ends the first wait before the agent ends
    wait "$agent"
    code=$?
  done
  agent=
  end_processes
  after=$(newest_step)
  [ $told -eq 0 ] || stop_with $((128 + told)) "ended by a signal after step $after; the same command goes on"
  [ $code -ne 0 ] || stop_with 0 "the stage is done"
  if [ "$after" -gt "$before" ]; then failures=0; else failures=$((failures + 1)); fi
  ended="the agent ended with exit code $code"
  if [ $failures -gt "$RESTARTS" ]; then
    ended="$ended, and $failures starts in a row saved no step after step $after"
    stop_with $code "$ended; mend the cause above, then the same command goes on"
  fi
  echo "$NAME: $ended after step $after; starting it again ($failures of $RESTARTS in a row without a new checkpoint)" >&2
  sleep 5 &
  wait $! # a signal ends it
  [ $told -eq 0 ] || stop_with $((128 + told)) "ended by a signal after step $after; the same command goes on"
done
