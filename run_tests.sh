#!/usr/bin/env bash
# Set up and pass every check; stops at the first that fails. Arguments go to pytest: ./run_tests.sh -k knn -x
set -euo pipefail
trap 'exit 130' INT
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

source scripts/environment.sh
ZOO_MODULES+=(pytest xdist ruff pyright timm lightly mmpretrain)
zoo_environment

title() { printf '\n== %s\n' "$*"; }

title "ruff format --check"
"$PYTHON" -m ruff format --check .
title "ruff check"
"$PYTHON" -m ruff check .
title "pyright"
"$PYTHON" -m pyright --pythonpath "$PYTHON"
title "pytest"
# one thread each: the cores are shared out among the test processes
cores=$(nproc)
OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$PYTHON" -m pytest -n "$((cores < 4 ? cores : 4))" --maxschedchunk 1 "$@"
