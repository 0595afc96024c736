#!/bin/sh
# Fetches tiny Shakespeare (1,115,394 bytes of plays) to data/tinyshakespeare.txt and checks that it is the real thing.
set -eu
cd "$(dirname "$0")"
url=https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
sum=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
file=tinyshakespeare.txt
right() { [ -e "$1" ] && echo "$sum  $1" | { sha256sum -c - || shasum -a 256 -c -; } >/dev/null 2>&1; }
if right $file; then echo "data/$file is there already"; exit 0; fi
trap 'rm -f $file.part' EXIT
{ curl -fsSL "$url" -o $file.part || wget -qO $file.part "$url"; } 2>/dev/null ||
    { echo "get.sh: cannot fetch $url. hint: any text file will do: ./train --data FILE" >&2; exit 1; }
right $file.part || { echo "get.sh: what came from $url is not tiny Shakespeare ($(wc -c <$file.part) bytes)" >&2; exit 1; }
mv $file.part $file
echo "data/$file: try ./train --data data/$file --steps 2000"
