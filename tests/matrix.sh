#!/bin/sh
# The tests on other versions: make test-matrix (MATRIX="PYTHON:TORCH:TORCHVISION ..." for some).
# Each row gets an environment of its own under outputs/matrix, which goes when its tests ran, and
# a line in outputs/matrix/results.md. A Python that is not on this machine is said to be absent.
# KEEP_RESULTS=1 puts rows that ran into docs/platforms.md, too, when the figures are made.
set -u
cd "$(dirname "$0")/.."
# The oldest torch of pyproject.toml, and the newest that the checks run on.
ROWS=${MATRIX:-"3.10:2.6.0:0.21.0 3.12:2.6.0:0.21.0 3.10:2.14.1:0.29.1 3.11:2.14.1:0.29.1
    3.12:2.14.1:0.29.1 3.13:2.14.1:0.29.1 3.14:2.14.1:0.29.1"}
# Core, checkpoints and the detectron2 adapter; what else there is does not depend on versions.
TESTS=${TEST:-"tests/core tests/d2"}
OUT=outputs/matrix
mkdir -p $OUT
[ -e $OUT/results.md ] || printf '| Python | torch | tests | outcome |\n| --- | --- | --- | --- |\n' \
    > $OUT/results.md
failed=0

for row in $ROWS; do
    python=${row%%:*} rest=${row#*:}
    torch=${rest%%:*} vision=${rest#*:}
    name=python$python-torch$torch
    env=$PWD/$OUT/$name
    if ! "python$python" -c 'pass' 2> /dev/null; then
        outcome="python$python is not on this machine"
    else
        printf 'torch==%s\ntorchvision==%s\nsetuptools>=77.0.3,<82\nwheel\n' "$torch" "$vision" \
            > "$env.txt"
        # Exit codes are read below: a failure is a row, and the rows after it run all the same.
        if ! make setup PYTHON="python$python" OWN_VENV="$env" VENV="$env" TORCH="$env.txt" \
            > "$env.log" 2>&1; then
            outcome="not installed: see $OUT/$name.log"
            failed=1
        else
            # shellcheck disable=SC2086  # several paths and options
            OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PYTHONPATH=$PWD "$env/bin/python" -m pytest \
                -q -p no:cacheprovider $TESTS >> "$env.log" 2>&1 || failed=1
            outcome=$(tail -n 1 "$env.log")
            [ -z "${KEEP_RESULTS:-}" ] || PYTHONPATH=$PWD "$env/bin/python" \
                -m projects.benchmark.matrix "$TESTS" "$outcome"
        fi
        [ -n "${KEEP:-}" ] || rm -rf "$env"
    fi
    echo "| $python | $torch | $TESTS | $outcome |" | tee -a $OUT/results.md
done
exit $failed
