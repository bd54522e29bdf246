#!/bin/bash
# Build the stand-ins for the CUDA runtime, cuBLAS and the driver into DIR (default: build/fake_cuda). Needs g++ and CUDA's headers
# (in a CUDA toolkit, or site-packages/nvidia/cu13/include of a CUDA build of torch with triton's crt/ headers).
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"; out="${1:-build/fake_cuda}"; mkdir -p "$out"
include="${CUDA_INCLUDE:-/usr/local/cuda/include}"
g++ -O1 -w -shared -fPIC -I"$include" "$here/rt.cpp" "$here/stubs.cpp" -o "$out/libfakert.so" -ldl
g++ -O1 -w -shared -fPIC "$here/cu.cpp" -o "$out/libcuda.so.1"
g++ -O1 -w -shared -fPIC "$here/nvml.cpp" -o "$out/libnvidia-ml.so.1"
ln -sf libcuda.so.1 "$out/libcuda.so"
echo "built in $out"
