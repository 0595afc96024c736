#!/bin/sh
# Puts doctest.h under $1/doctest/: the installed one, else Debian's package, else the public release.
set -eu
dir=$1/doctest
mkdir -p "$dir"
for have in /usr/include/doctest/doctest.h /usr/local/include/doctest/doctest.h /opt/homebrew/include/doctest/doctest.h; do
    if [ -e "$have" ]; then cp "$have" "$dir/doctest.h"; exit 0; fi
done
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
if command -v apt-get >/dev/null && command -v dpkg >/dev/null; then
    if (cd "$tmp" && { apt-get download doctest-dev || { apt-get update && apt-get download doctest-dev; }; }) >"$tmp/log" 2>&1; then
        dpkg -x "$tmp"/doctest-dev_*.deb "$tmp/x"
        cp "$tmp/x/usr/include/doctest/doctest.h" "$dir/doctest.h"
        exit 0
    fi
fi
url=https://raw.githubusercontent.com/doctest/doctest/v2.4.11/doctest/doctest.h
if { curl -fsSL "$url" || wget -qO- "$url"; } >"$tmp/doctest.h" 2>/dev/null && [ -s "$tmp/doctest.h" ]; then
    cp "$tmp/doctest.h" "$dir/doctest.h"
    exit 0
fi
echo "doctest.h: not installed, and neither Debian's package nor the public release could be fetched. hint: install doctest-dev" >&2
exit 1
