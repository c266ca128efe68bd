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
    "$python" -m pip install --quiet "torch==$version" 'peft>=0.21' 'transformers>=5' 'pytest>=8' \
      'hypothesis>=6.100' 'rich>=13' 'safetensors>=0.5' 'click>=8.1' 'pytest-xdist>=3.6'
  fi
  echo "== torch $("$python" -c 'import torch; print(torch.__version__)')"
  PYTHONPATH="$here" PYTEST_PLUGINS=pytest_hotswap.plugin OMP_NUM_THREADS=1 \
    "$python" -m pytest -q --show-capture=no -p no:cacheprovider \
    tests/test_compiler_*.py tests/test_plugin_marker.py tests/test_plugin_watch.py || status=1
done
exit $status
