#!/bin/sh
# The paper's own network and data in under 25 minutes of one large GPU, for a machine without a network:
#
#   benchmarks/gpu_regime.sh PARTS OUT [KEY=VALUE ...]      # overrides of recipes/wrn-28-10-short.yaml
#
# PARTS is a folder with CIFAR-10 in pieces that can be carried, made where the data are:
#
#   tar -C DATA_ROOT -c cifar-10-batches-py | xz -9 | split -b 45m - PARTS/cifar10.tar.xz.
#
# A checkpoint is written after every epoch: killed, the same command goes on.  Tables: OUT/wrn-28-10-short.
set -eu
[ $# -ge 2 ] || { sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2; }
parts=$1 out=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
if [ ! -d "$out/data" ]; then
  rm -rf "$out/data.partial"
  mkdir -p "$out/data.partial"
  cat "$parts"/cifar10.tar.xz.* | "$python" -c 'import sys, tarfile
with tarfile.open(fileobj=sys.stdin.buffer, mode="r|xz") as archive:
    archive.extractall(sys.argv[1], filter="data")' "$out/data.partial"
  mv "$out/data.partial" "$out/data"
fi
PYTHONPATH="$root/src${PYTHONPATH:+:$PYTHONPATH}" exec "$python" -m pof experiment "$root/recipes/wrn-28-10-short.yaml" \
  --out "$out" --jobs 1 --set data.data_root="$out/data" "$@"
