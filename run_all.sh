#!/usr/bin/env bash
# Set up, then run a suite from end to end. The stages are below; "./run_all.sh --help" tells how to call it.
set -euo pipefail
trap 'exit 130' INT

usage() {
  cat <<'TEXT'
usage: ./run_all.sh [SUITE.yaml] [OPTION...]

Sets up .venv (or uses $ZOO_PYTHON as it is), then pre-trains, extracts, evaluates and reports what SUITE says.
SUITE is configs/suites/mini.yaml if not given; a mini suite's small world of images is made first.
OPTIONs go to "python -m evaluate suite". Results: $ZOO_RUNS (runs/); cached features: $ZOO_CACHE (cache/).
A run that was cut off goes on where it was when called again.
TEXT
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
case ${1:-} in
  -h | --help)
    usage
    exit 0
    ;;
  "" | -*) suite=configs/suites/mini.yaml ;;
  *)
    # a path is the caller's, or one from the repository root
    if [[ -f $1 ]]; then suite=$(realpath -- "$1"); else suite=$1; fi
    suite=${suite#"$root"/}
    shift
    ;;
esac
cd -- "$root"
if [[ ! -f $suite ]]; then
  echo "error: no suite file $suite; there are: $(printf '%s ' configs/suites/*.yaml)" >&2
  exit 2
fi

source scripts/environment.sh
zoo_environment
if [[ $suite == configs/suites/mini*.yaml ]]; then
  "$PYTHON" -m mini
fi
"$PYTHON" -m evaluate suite "$suite" "$@"
