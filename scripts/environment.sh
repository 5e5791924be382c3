# shellcheck shell=bash
# Sourced, from the repository root, by run_all.sh, run_tests.sh and .ci/run.
#
#   zoo_environment     leaves $PYTHON set to an interpreter that has all the project needs, or exits
#
# ZOO_PYTHON=/path/to/python: that interpreter as it is; nothing is installed, missing modules are named (a caller that
# needs more adds them to ZOO_MODULES). ZOO_DETECTION_PYTHON and ZOO_SEGMENTATION_PYTHON name further interpreters for
# the engines, whose modules this one then need not have.
#
# Otherwise .venv, made from requirements*.txt with CPython 3.11 on x86-64 Linux: what is pinned is tested there only.
# .venv/zoo-stamp says what .venv was made from and is written last. No stamp: never finished, so made anew; another
# stamp: brought up to date in place; same stamp: nothing to do. The pip in it is pinned (requirements-pip.txt).

ZOO_MODULES=(torch torchvision numpy PIL yaml scipy sklearn safetensors pydantic typer rich tensorboard matplotlib
  jinja2 submitit huggingface_hub faiss cv2 tqdm packaging)
ZOO_DETECTION_MODULES=(detectron2 fvcore iopath omegaconf hydra pycocotools yacs termcolor tabulate cloudpickle)
ZOO_SEGMENTATION_MODULES=(mmseg mmcv mmengine addict ftfy regex prettytable yapf)

zoo_say() { printf '%s\n' "$*" >&2; }

zoo_refuse() { # input the user can mend: exit code 2
  zoo_say "error: $*"
  exit 2
}

zoo_environment() {
  if [[ -n ${ZOO_PYTHON:-} ]]; then
    zoo_use_given_python
  else
    zoo_use_venv
  fi
}

zoo_use_given_python() {
  local modules=("${ZOO_MODULES[@]}") facts version missing
  [[ -n ${ZOO_DETECTION_PYTHON:-} ]] || modules+=("${ZOO_DETECTION_MODULES[@]}")
  [[ -n ${ZOO_SEGMENTATION_PYTHON:-} ]] || modules+=("${ZOO_SEGMENTATION_MODULES[@]}")
  PYTHON=$(command -v -- "$ZOO_PYTHON") ||
    zoo_refuse "ZOO_PYTHON=$ZOO_PYTHON is not an executable file: set it to a Python interpreter's absolute path"
  # find_spec looks and does not import: a whole check costs one interpreter start
  facts=$("$PYTHON" -c 'import sys
from importlib.util import find_spec
print("%d.%d" % sys.version_info[:2], *[name for name in sys.argv[1:] if find_spec(name) is None])' "${modules[@]}" 2>&1) ||
    zoo_refuse "ZOO_PYTHON=$ZOO_PYTHON does not run as Python: ${facts##*$'\n'}"
  read -r version missing <<<"$facts"
  [[ $version == 3.* && ${version#3.} -ge 11 ]] ||
    zoo_refuse "ZOO_PYTHON=$ZOO_PYTHON is Python $version, expected 3.11 or newer: set it to another interpreter"
  [[ -z $missing ]] ||
    zoo_refuse "ZOO_PYTHON=$ZOO_PYTHON lacks ${missing// /, }: install them there (requirements*.txt) or unset ZOO_PYTHON"
  zoo_say "environment: ZOO_PYTHON=$ZOO_PYTHON (Python $version)"
}

zoo_use_venv() {
  local accelerator lock
  accelerator=$(zoo_accelerator)
  PYTHON=$PWD/.venv/bin/python
  if ! zoo_is_current "$accelerator"; then
    # held by its descriptor: a killed set-up lets go of it, and a pip that outlives its script still keeps others out
    exec {lock}>.venv.lock
    if ! flock --nonblock "$lock"; then
      zoo_say "environment: waiting for another set-up of .venv"
      flock "$lock"
    fi
    zoo_is_current "$accelerator" || zoo_set_up "$accelerator"
    exec {lock}>&-
  fi
  zoo_say "environment: .venv (Python $(zoo_venv_version), $accelerator)"
}

zoo_accelerator() { # prints which faiss this machine wants: gpu or cpu
  local gpus
  if gpus=$(nvidia-smi -L 2>/dev/null) && [[ $gpus == GPU* ]]; then echo gpu; else echo cpu; fi
}

zoo_venv_version() { # fails where .venv has no interpreter, or one that no longer starts
  .venv/bin/python -I -S -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null
}

zoo_stamp() { # prints what .venv should be made from: Python's version, cpu or gpu, hash of the requirements
  local LC_ALL=C version hash # C: the same order of files, so the same hash, in every locale
  version=$(zoo_venv_version) || return 1
  hash=$(cat requirements*.txt | sha256sum) || return 1
  echo "$version $1 ${hash%% *}"
}

zoo_is_current() {
  local stamp
  stamp=$(zoo_stamp "$1") && [[ -f .venv/zoo-stamp && $(<.venv/zoo-stamp) == "$stamp" ]]
}

zoo_set_up() {
  local accelerator=$1 version
  if [[ -f .venv/zoo-stamp ]] && version=$(zoo_venv_version) && [[ $(<.venv/zoo-stamp) == "$version "* ]]; then
    zoo_say "environment: bringing .venv up to date with requirements*.txt ($accelerator); log: .venv/install.log"
    rm .venv/zoo-stamp # from here to the new stamp .venv counts as unfinished
  else
    zoo_find_python
    zoo_say "environment: making .venv with $ZOO_BASE_PYTHON ($accelerator); log: .venv/install.log"
    rm -rf .venv
    mkdir .venv
  fi
  zoo_step "1/5 virtual environment and pip" zoo_install_pip
  zoo_step "2/5 torch and the other packages (3 GB; some minutes)" zoo_install_packages "$accelerator"
  # pip's build isolation, on purpose: mmcv's build must not see torch, or it compiles its operators
  zoo_step "3/5 mmsegmentation" zoo_pip install --no-deps --build-constraint requirements-constraints.txt \
    -r requirements-mmseg.txt
  # no build isolation, on purpose: detectron2's setup.py imports torch
  zoo_step "4/5 detectron2" zoo_pip install --no-deps --no-build-isolation -r requirements-detectron2.txt
  zoo_step "5/5 libraries that the tests compare with" zoo_pip install --no-deps --no-build-isolation \
    -r requirements-readers.txt
  zoo_stamp "$accelerator" >.venv/zoo-stamp.new
  mv .venv/zoo-stamp.new .venv/zoo-stamp
}

zoo_find_python() { # sets ZOO_BASE_PYTHON, a path that stays right where python3.11 is a shim or another .venv's
  local candidate facts list found=()
  while read -r candidate; do
    facts=$("$candidate" -I -c 'import platform as p, sys
from importlib.util import find_spec
has_venv = "with" if find_spec("venv") and find_spec("ensurepip") else "without"
print(p.python_implementation(), p.python_version(), p.system(), p.machine(), has_venv, "venv", sys._base_executable)' \
      2>/dev/null) || facts="broken: it does not start"
    if [[ $facts == "CPython 3.11."*" Linux x86_64 with venv "* ]]; then
      ZOO_BASE_PYTHON=${facts#* with venv }
      return
    fi
    found+=("$candidate is ${facts% /*}")
  done < <(type -ap python3.11 python3)
  ((${#found[@]})) || found=("no python3.11 or python3 on PATH")
  list=$(printf '%s; ' "${found[@]}")
  zoo_refuse "expected CPython 3.11 on x86-64 Linux with venv; found: ${list}put such a python3.11 on PATH," \
    "or set ZOO_PYTHON to an interpreter that has the packages"
}

zoo_step() { # TITLE COMMAND...: run it into the log; say how long it took, or the log's end and where it is
  local title=$1 start=$SECONDS
  shift
  printf '  %s ... ' "$title" >&2
  printf '\n## %s\n' "$title" >>.venv/install.log
  if ! "$@" >>.venv/install.log 2>&1 </dev/null; then
    zoo_say "failed. The log ends:"
    tail -n 15 .venv/install.log >&2
    zoo_say "error: setting up .venv failed at step $title; whole log: $PWD/.venv/install.log; run again to retry"
    exit 1
  fi
  zoo_say "$((SECONDS - start)) s"
}

zoo_pip() {
  .venv/bin/python -m pip --disable-pip-version-check --no-input "$@"
}

zoo_install_pip() { # errexit does not act in a condition, and zoo_step calls this in one: hence the chain
  [[ -x .venv/bin/python ]] || "$ZOO_BASE_PYTHON" -m venv .venv || return
  zoo_pip install -r requirements-pip.txt
}

zoo_install_packages() { # cpu or gpu; faiss-cpu and faiss-gpu hold the same files, so the other one must go first
  local other=gpu
  [[ $1 == cpu ]] || other=cpu
  zoo_pip uninstall --yes "faiss-$other" &&
    zoo_pip install --progress-bar off -c requirements-constraints.txt --build-constraint requirements-constraints.txt \
      -r requirements.txt -r "requirements-faiss-$1.txt"
}
