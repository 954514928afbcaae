#!/bin/sh
# See that there is a browser for the tests of the page: install Debian's Chromium where it is missing and may be installed.
# Says in one line what happens without one. Never fails: whether tests may be skipped is the tests' to say.
set -u

for name in "${BATON_CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    [ -n "$name" ] && command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "baton: installing chromium, for the tests of the page"
    export DEBIAN_FRONTEND=noninteractive
    install() { apt-get install -qq --yes --no-install-recommends chromium >/dev/null 2>&1; }
    install || { apt-get update -qq >/dev/null 2>&1 && install; } || true
fi
command -v chromium >/dev/null 2>&1 \
    || echo "baton: no chromium, so the tests of the page in a browser are skipped; for instance: apt-get install chromium"
exit 0
