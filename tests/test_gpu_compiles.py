"""The GPU kernels compile for a GPU that is not here: what Triton's interpreter takes, its compiler may refuse."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

# In a process of its own, because tests run kernels in the interpreter, which puts itself in the compiler's place.
SCRIPT = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from sae_lens_afa.kernels import pursue_triton, select_triton

def compiles(kernel, arguments, **options):
    kinds = {}
    for name, of in arguments.items():
        kinds[name] = "constexpr" if not isinstance(of, str) else of
    constants = {name: of for name, of in arguments.items() if not isinstance(of, str)}
    source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)

select = {"acts": "*fp32", "targets": "*fp64", "norms": "*fp32", "out": "*fp32", "done": "*i1", "d_sae": "i32"}
for has_norm in (True, False):
    row = {**select, "HAS_NORM": has_norm, "BLOCK": 16384}
    compiles(select_triton.select_row, row, num_warps=16, enable_fp_fusion=False)
    wide = {**select, "acts": "*bf16", "out": "*bf16", "HAS_NORM": has_norm, "BLOCK": 4096}
    compiles(select_triton.select_wide_row, wide, num_warps=8, enable_fp_fusion=False)
compiles(pursue_triton.look, {
    "correlations": "*fp32", "tokens": "*i64", "codes": "*fp32", "inverse_norm": "*fp32", "thresholds": "*fp32",
    "near": "*i32", "counts": "*i32", "d_sae": "i32", "PLACES": 128, "BLOCK": 1024,
}, num_warps=4)
for places, warps in pursue_triton._PLACES.items():
    compiles(pursue_triton.take_in, {
        "order": "*i64", "tokens": "*i64", "near": "*i32", "counts": "*i32", "x": "*fp32", "W": "*fp32",
        "inverse_norm": "*fp32", "leasts": "*fp32", "codes": "*fp32", "residual": "*fp32", "scale": "fp32",
        "weak": "fp32", "tolerance": "fp32", "d_in": "i32", "d_sae": "i32", "STRIDE": 128, "PLACES": places,
        "BLOCK": 32,
    }, num_warps=warps)
print("compiled")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings its assembler along on Linux")
def test_the_gpu_kernels_compile(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment)
    assert run.stdout.strip() == "compiled", run.stderr[-2000:]
