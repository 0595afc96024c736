#!/bin/sh
# run.sh [NUMBER..]: runs all experiments or some, into runs/experiments/NN, and draws their figures. What it runs is
# what the pages say: their indented lines that begin with ./train, awk or for, before the exercise.
# TRAIN="nice ./train" OPTIONS="--threads 1" docs/experiments/run.sh 3    puts other words in ./train's place.
set -eu
cd "$(dirname "$0")/../.."
runs=runs/experiments
lines() { # of a page; a line that ends in \ goes on
    awk '/^<details>/ { exit } more || /^    (\.\/train|awk|for) / { sub(/^    /, ""); print; more = /\\$/ }' "$1"
}
run() { # a page, the directory that it writes
    rm -rf "$2"
    lines "$1" | sed "s|^\./train\( [a-z]*\)\{0,1\} |${TRAIN:-./train}\1 ${OPTIONS:-} |" | sh -eux
}
mkdir -p $runs
if [ $# = 0 ]; then set -- $(cd docs/experiments; echo [0-9]*.md); fi
for number; do
    number=$(echo "${number%%-*}" | sed 's/^0*//')
    name=$(printf %02d "$number")
    page=$(echo docs/experiments/"$name"-*.md)
    [ -e "$page" ] || { echo "run.sh: there is no experiment $number" >&2; exit 2; }
    case $(lines "$page") in *$runs/base/*) # trained once, for all that start from it
        [ -e $runs/base/report.html ] || run docs/experiments/README.md $runs/base;;
    esac
    run "$page" $runs/"$name"
done
