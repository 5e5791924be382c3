#!/usr/bin/env bash
# Makes sure of a Chromium for the tests marked `browser`: installs Debian's, if there is none, as root and with apt.
# Elsewhere it says why not and ends with 0: those tests are then skipped, with their reason.
set -euo pipefail

for name in "${ZOO_CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
  if [[ -n $name ]] && command -v -- "$name" >/dev/null; then
    printf 'browser: %s\n' "$(command -v -- "$name")" >&2
    exit
  fi
done
if [[ $(id -u) != 0 ]] || ! command -v apt-get >/dev/null; then
  printf 'browser: no Chromium on PATH, and none can be installed (needs root and apt-get); set ZOO_CHROMIUM to one\n' >&2
  exit
fi
export DEBIAN_FRONTEND=noninteractive
if apt-get update -qq >/dev/null && apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core >/dev/null; then
  printf 'browser: installed %s\n' "$(command -v chromium)" >&2
else
  printf 'browser: Chromium could not be installed (apt-get ended with an error)\n' >&2
fi
