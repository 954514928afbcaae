#!/bin/sh
# Create the virtual environment $1 and install the project with its pinned tools into it.
# Says in one line what is missing when something is.
set -eu
venv="$1"

fail() { echo "baton: $1" >&2; exit 1; }
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

find_python() {
    for candidate in "${PYTHON:-}" python3.14 python3.13 python3.12 python3 python; do
        [ -n "$candidate" ] && new_enough "$candidate" && { command -v "$candidate"; return; }
    done
    # A pyenv version that is not active is not on PATH. Newest first.
    for root in "${PYENV_ROOT:-}" "$HOME/.pyenv" /opt/pyenv /usr/local/pyenv; do
        [ -n "$root" ] || continue
        for candidate in $(ls -d "$root"/versions/3.*/bin/python3 2>/dev/null | sort -t. -k2,2nr -k3,3nr); do
            new_enough "$candidate" && { echo "$candidate"; return; }
        done
    done
    return 1
}

python=$(find_python) || fail "needs Python >= 3.12 and found none on PATH or under pyenv; install one or set PYTHON=/path/to/python3"
command -v c++ >/dev/null 2>&1 || command -v g++ >/dev/null 2>&1 \
    || fail "needs a C++ compiler, because Oban builds erlpack from source; for instance: apt-get install g++"

if [ -x "$venv/bin/python" ] && ! new_enough "$venv/bin/python"; then rm -rf "$venv"; fi
if [ ! -x "$venv/bin/pip" ]; then
    "$python" -m venv "$venv" || fail "could not create $venv with $python; on Debian and Ubuntu: apt-get install python3-venv"
fi
echo "baton: installing into $venv with $("$venv/bin/python" -V)"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt "pip>=25.1" \
    || fail "pip could not be updated; is a package index reachable?"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[demo,web,otel,llm]" --group dev \
    || fail "the packages could not be installed; the lines above say which"
