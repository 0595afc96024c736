#!/bin/sh
# docs/hardware.sh: prints docs/hardware.md with what ./train now says below each command.
cd "$(dirname "$0")/.." || exit 1
awk '/^    \$ /                { print; system(substr($0, 7) " | sed \"s/^/    /; s/ *$//\""); shown = 1; next }
     shown && /^    [^ $]|^     / { next }
                               { shown = 0; print }' docs/hardware.md
