#!/bin/sh
# make test-report: trains a small comparison, opens its report.html in a headless Chromium, as wide as a desk and as narrow
# as a phone, and uses it as a person would: tests/report_browser.html says what. Without a browser it is skipped, and says so.
set -eu
cd "$(dirname "$0")/.."
train=$PWD/${1#./}
for browser in chromium chromium-browser google-chrome chrome-headless-shell none; do
    ! command -v $browser >/dev/null 2>&1 || break
done
if [ $browser = none ]; then
    echo "skipped: the report in a browser: there is no chromium or google-chrome here"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
dir=$(mktemp -d) && trap 'rm -rf "$dir"' EXIT
"$train" --recipe 'bf16,hybrid,mxfp4,nvfp4' --seeds 2 --noise-floor --layers 2 --channels 32 --heads 2 --seq-len 16 --vocab 257 \
    --batch-size 4 --eval-batches 2 --steps 40 --stats-every 4 --prompt 'a < b & </script><b>' --out "$dir/run" \
    >"$dir/out" 2>&1 || { cat "$dir/out"; echo "0 passed, 1 failed, 0 skipped"; exit 1; }
cp "$dir/run/report.html" tests/report_browser.html "$dir"
# The harness reaches into its frames, so that all files have to be of one origin. What a page writes to its console goes
# to stderr here.
timeout 120 $browser --headless --no-sandbox --disable-gpu --user-data-dir="$dir/profile" --allow-file-access-from-files \
    --enable-logging=stderr --window-size=1300,900 --virtual-time-budget=20000 --dump-dom "file://$dir/report_browser.html" \
    >"$dir/dom" 2>"$dir/log" || true
grep CONSOLE "$dir/log" | grep -v other.png && failed=1 || failed=0 # other.png: what must be refused
sed -n 's/^\(ok\|FAILED\): /\1: /p' "$dir/dom"
passed=$(grep -c '^ok: ' "$dir/dom" || true)
failed=$((failed + $(grep -c '^FAILED: ' "$dir/dom" || true)))
grep -q '^all checks were made$' "$dir/dom" || { echo "FAILED: the checks did not come to their end"; failed=$((failed + 1)); }
echo "$passed passed, $failed failed, 0 skipped"
[ "$failed" = 0 ]
