#!/usr/bin/env bash
# Build the wheel, install it into a fresh environment, and run the tests marked `wheel` from a copy
# of tests/ outside the checkout, so that the installed package is what is tested. In another one, without
# torch, files and source code are judged.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
# thousands of files are installed and hundreds imported: these compile themselves, once
unset PYTHONDONTWRITEBYTECODE
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0
"$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/dist" "$here"
wheel=$(echo "$work"/dist/*.whl)
"$work/venv/bin/pip" install --quiet --no-compile "$wheel[torch,xdist]"
"${PYTHON:-python3.11}" -m venv "$work/bare"
"$work/bare/bin/pip" install --quiet --no-compile "$wheel"
cp -r "$here/tests" "$work/tests"
cd "$work"
PATH="$work/bare/bin:$PATH" "$work/bare/bin/python" "$here/tests/support/without_torch.py"
"$work/venv/bin/python" - <<'PY'
import sysconfig
import hotswap
if not hotswap.__file__.startswith(sysconfig.get_path("purelib")):
    raise SystemExit(f"hotswap is not the installed one: {hotswap.__file__}")
PY
OMP_NUM_THREADS=1 "$work/venv/bin/python" -m pytest -n 2 --dist loadfile -q -m wheel -o markers="wheel: built wheel" tests
