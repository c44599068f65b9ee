#!/bin/sh
# Creates the virtual environment and installs the project with everything that development needs.
# Usage: bootstrap.sh PYTHON VENV
set -eu
python=$1
venv=$2
packages=""

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

if [ -z "$python" ]; then
    packages="python3 python3-venv"
    python=python3
elif ! "$python" -c 'import venv, ensurepip' 2>/dev/null; then
    packages="python3-venv"
fi
if [ -n "$packages" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "prune-export needs Python 3.11 to 3.13 with venv: install $packages with your package manager" >&2
        exit 1
    fi
    as_root apt-get update -q
    # shellcheck disable=SC2086  one word a package
    as_root apt-get install -y -q $packages
fi
if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; then
    echo "prune-export needs Python 3.11 to 3.13, $python is $("$python" --version)" >&2
    exit 1
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
log="$venv/install.log"
echo "installing into $venv (torch, transformers, openvino, ...): a few minutes"
if ! { "$venv/bin/python" -m pip install --disable-pip-version-check --upgrade pip &&
    "$venv/bin/python" -m pip install --disable-pip-version-check -e ".[dev]"; } >"$log" 2>&1; then
    tail -n 30 "$log" >&2
    echo "the installation failed, see $log" >&2
    exit 1
fi
