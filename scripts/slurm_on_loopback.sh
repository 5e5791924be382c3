#!/usr/bin/env bash
# A real Slurm on this machine, for tests/slurm: two nodes on loopback, no accounting.
#
#   scripts/slurm_on_loopback.sh start FOLDER    install it where it is missing, start it, wait until both nodes are idle
#   scripts/slurm_on_loopback.sh stop FOLDER     end what was started there
#   scripts/slurm_on_loopback.sh node FOLDER N   start the daemon of node N (1, 2) again
#
# FOLDER keeps all its files. Use it with SLURM_CONF=FOLDER/slurm.conf. Takes root, and apt where Slurm is not installed.
set -euo pipefail

usage() { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }

refuse() { # what the user can mend: exit code 2
  printf 'error: %s\n' "$*" >&2
  exit 2
}

install_slurm() {
  local name missing=()
  for name in munged slurmctld slurmd sinfo sbatch srun; do
    command -v "$name" >/dev/null || missing+=("$name")
  done
  ((${#missing[@]})) || return 0
  command -v apt-get >/dev/null ||
    refuse "expected Slurm and munge on PATH, found no ${missing[*]}, and no apt-get to install them with"
  export DEBIAN_FRONTEND=noninteractive
  local wait=(-o DPkg::Lock::Timeout=120)
  if ! { apt-get "${wait[@]}" update && apt-get "${wait[@]}" install --yes --no-install-recommends slurm-wlm munge; } \
    >"$folder/install.log" 2>&1; then
    tail -n 5 "$folder/install.log" >&2
    refuse "apt-get could not install slurm-wlm and munge; whole log: $folder/install.log"
  fi
}

write_config() { # a requeued job waits for cred_expire seconds: 120 unless said otherwise
  cat >"$folder/slurm.conf" <<TEXT
ClusterName=zoo
SlurmctldHost=localhost
SlurmctldPort=16817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.sock,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
KillWait=5
MpiDefault=none
NodeName=zoo[1-2] NodeHostname=localhost NodeAddr=localhost Port=[17101-17102] CPUs=1 State=UNKNOWN
PartitionName=zoo Nodes=ALL Default=YES MaxTime=INFINITE State=UP
TEXT
}

start() {
  [[ $(id -u) == 0 ]] || refuse "expected root: slurmd and slurmctld run as root here; found user $(id -un)"
  mkdir -p "$folder/state"
  chmod 755 "$folder"
  install_slurm
  write_config
  [[ -f $folder/munge.key ]] || (umask 077 && head -c 1024 /dev/urandom >"$folder/munge.key")
  munged --force --socket="$folder/munge.sock" --pid-file="$folder/munge.pid" --log-file="$folder/munge.log" \
    --seed-file="$folder/munge.seed" --key-file="$folder/munge.key" 2>>"$folder/munge.log"
  slurmctld -f "$folder/slurm.conf"
  start_node 1
  start_node 2
  for _ in {1..100}; do
    if [[ $(timeout 5 sinfo --noheader --Node --states=idle 2>/dev/null | wc -l) == 2 ]]; then
      return
    fi
    sleep 0.2
  done
  tail -n 5 "$folder"/*.log >&2 || true
  refuse "Slurm was started, but its nodes are not idle after 20 s; logs: $folder/*.log"
}

start_node() { slurmd -f "$folder/slurm.conf" -N "zoo$1"; }

stop() {
  local file pid
  [[ -f $folder/slurm.conf ]] && timeout 10 scancel --me 2>/dev/null || true
  for file in slurmd.zoo1 slurmd.zoo2 slurmctld munge; do
    if [[ -f $folder/$file.pid ]]; then
      pid=$(<"$folder/$file.pid")
      kill "$pid" 2>/dev/null || true
      for _ in {1..50}; do
        kill -0 "$pid" 2>/dev/null || break
        sleep 0.1
      done
    fi
  done
}

[[ $# -ge 2 && -n $2 ]] || {
  usage >&2
  exit 2
}
mkdir -p "$2"
folder=$(cd -- "$2" && pwd -P)
export SLURM_CONF=$folder/slurm.conf
case $1 in
  start) start ;;
  stop) stop ;;
  node) start_node "${3:?expected 1 or 2}" ;;
  *)
    usage >&2
    exit 2
    ;;
esac
