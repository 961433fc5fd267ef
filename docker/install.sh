#!/usr/bin/env bash
# Install inscan into a fresh virtual environment. The Containerfiles run this very script, and so does CI.
#   docker/install.sh VENV SOURCE      SOURCE: a wheel, or the folder of the project
# PIP_ARGS reaches pip (an index with another build of torch, or an offline wheel folder).
set -euo pipefail
venv=${1:?usage: install.sh VENV SOURCE}
source=${2:?usage: install.sh VENV SOURCE}
here=$(cd "$(dirname "$0")" && pwd)
constraints=$here/../constraints.txt
[ -f "$constraints" ] || constraints=$here/constraints.txt
python3 -m venv "$venv"
# shellcheck disable=SC2086  # PIP_ARGS is a list of words on purpose
"$venv/bin/python" -m pip install --quiet --no-cache-dir --constraint "$constraints" ${PIP_ARGS:-} "$source"
"$venv/bin/inscan" --help >/dev/null
