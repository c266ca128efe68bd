#!/usr/bin/env bash
# Run the tests of quantised layers, with torchao, bitsandbytes and HQQ. They are installed beside the
# development environment and not into it: PEFT imports each of them wherever it is installed. Arguments
# are further packages: "gptqmodel optimum" (for GPTQ and AWQ), which take minutes to install.
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
.venv/bin/python -m venv "$work/venv"
site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$site')" >"$("$work/venv/bin/python" -c \
  'import sysconfig; print(sysconfig.get_path("purelib"))')/development.pth"
.venv/bin/python - >"$work/quantized.txt" <<'PY'
import tomllib

with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["project"]["optional-dependencies"]["quantized"]))
PY
"$work/venv/bin/pip" install --quiet --requirement "$work/quantized.txt" "$@"
OMP_NUM_THREADS=1 "$work/venv/bin/python" -m pytest -q -p no:cacheprovider tests/engine/test_quantized.py
