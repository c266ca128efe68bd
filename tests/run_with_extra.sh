#!/usr/bin/env bash
# Run tests with an extra of pyproject.toml: run_with_extra.sh EXTRA TEST [PACKAGE...]. It is installed beside
# the development environment and not into it: PEFT imports each quantisation library wherever it is
# installed, and Ray is large. PACKAGE are further ones: "gptqmodel optimum" (for GPTQ and AWQ) take minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
extra=$1 tests=$2
shift 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m venv "$work/venv"
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$site')" >"$("$work/venv/bin/python" -c \
  'import sysconfig; print(sysconfig.get_path("purelib"))')/development.pth"
.venv/bin/python - "$extra" >"$work/extra.txt" <<'PY'
import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["optional-dependencies"][sys.argv[1]]))
PY
"$work/venv/bin/pip" install --quiet --requirement "$work/extra.txt" "$@"
OMP_NUM_THREADS=1 "$work/venv/bin/python" -m pytest -q -p no:cacheprovider "$tests"
