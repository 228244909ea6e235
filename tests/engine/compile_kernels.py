"""Compile all kernels for an H100, to machine code, which needs no GPU; print their names."""

from triton import compile as compiled
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fedlab.core.loops.gpu import philox
from fedlab.engine import kernels as k

INT, LONG, FLOAT = "i32", "*i64", "*fp32"
TABLE = k.Table(FLOAT, FLOAT, FLOAT, LONG, LONG, LONG, "fp32", INT)
GIVEN = k.Given(LONG, FLOAT, FLOAT, LONG, INT, INT, "fp32")
TOLD, LAYERS = k.Told(FLOAT, FLOAT), k.Layers(FLOAT, FLOAT, FLOAT, FLOAT)


def check(kernel, given, constants):
    types = given | dict.fromkeys(constants, "constexpr")
    source = ASTSource(kernel, {name: types[name] for name in kernel.arg_names}, constants)
    made = compiled(source, GPUTarget("cuda", 90, 32), {"enable_fp_fusion": True})
    assert len(made.asm["cubin"]) > 1000
    print(kernel.__name__)


words = {"client": LONG, "block": LONG, "out": "*i32", "count": INT, "key0": INT, "key1": INT}
check(philox, words, {"size": 512})
tables = {"item": TABLE, "bias": TABLE, "user": TABLE, "given": GIVEN, "told": TOLD}
for several in (False, True):
    for moves in (False, True):
        sizes = {"several": several, "moves": moves, "private": True, "clicks": True}
        check(k.factors, tables, sizes | {"b_2": 32, "d_2": 32})
layers = {"server": LAYERS, "fixed": LAYERS, "delta": LAYERS, "given": GIVEN, "told": TOLD}
layers |= {"keep": "fp32", "inputs": INT, "hidden": INT}
for moves in (False, True):
    check(k.perceptron, layers, {"moves": moves, "clicks": True, "b_2": 32, "f_2": 64, "h_2": 64})
rows = {"values": FLOAT, "weights": FLOAT, "order": LONG, "starts": LONG, "out": FLOAT}
check(k.sum_rows, rows | {"width": INT}, {"d_2": 32, "tile": 32})
