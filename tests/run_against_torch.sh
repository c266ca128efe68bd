#!/usr/bin/env bash
# Run the tests of the compile watch against other versions of torch, each in an environment of its own:
#   tests/run_against_torch.sh 2.12.1 2.14.1
# KEEP=folder keeps the environments there, and uses those that it finds.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
work=${KEEP:-$(mktemp -d)}
[ -n "${KEEP:-}" ] || trap 'rm -rf "$work"' EXIT
cd "$here"
status=0
for version in "$@"; do
  python="$work/venv-$version/bin/python"
  if [ ! -x "$python" ]; then
    "${PYTHON:-python3.11}" -m venv "$work/venv-$version"
    "$python" - >"$work/others.txt" <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
for requirement in [*project["dependencies"], *extras["torch"], *extras["xdist"]]:
    if not requirement.startswith("torch"):
        print(requirement)
PY
    "$python" -m pip install --quiet "torch==$version" --requirement "$work/others.txt"
  fi
  echo "== torch $("$python" -c 'import torch; print(torch.__version__)')"
  PYTHONPATH="$here" PYTEST_PLUGINS=pytest_hotswap.plugin OMP_NUM_THREADS=1 \
    "$python" -m pytest -q --show-capture=no -p no:cacheprovider \
    tests/compiler tests/pytest_hotswap/test_marker.py tests/pytest_hotswap/test_watch.py || status=1
done
exit $status
