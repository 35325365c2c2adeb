"""Vectors of eight floats for numba: a type that numba lacks, lowered straight to LLVM ``<8 x float>``.

Numba's own loops reach SIMD only where LLVM's autovectoriser understands them; the rasteriser's inner loops it does not
(scalar code is 4 to 9 times slower there). Inside a kernel the three types behave like numbers: ``f32x8`` and ``i32x8``
know ``+ - * < <= > >=`` with each other and with scalars, masks know ``& |``. LLVM maps them to AVX2 where the
CPU has it and to pairs of SSE or NEON registers elsewhere: slower, same results to rounding.

Arrays are one-dimensional, contiguous and unchecked: an index is an offset in elements and the caller's promise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin, models, register_model

from .jit import jit

WIDTH = 8
f4 = np.float32
i4 = np.int32

# No "nnan": with it LLVM may drop the very tests that keep bad values out.
_FAST_MATH = ("nsz", "arcp", "contract")


def kernel(function: Callable) -> Callable:
    """Compiles ``function`` with numba: without the GIL, machine code kept on disk where it can be."""
    options = dict(nogil=True, error_model="numpy", boundscheck=False, fastmath=set(_FAST_MATH))
    return jit(function, **options)


_F32, _I32, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_V_F32, _V_I32, _V_BIT = (ir.VectorType(t, WIDTH) for t in (_F32, _I32, ir.IntType(1)))


class _Vector(types.Type):
    """A numba type backed by one LLVM vector."""


class _F32x8(_Vector):
    def __init__(self):
        super().__init__("f32x8")


class _I32x8(_Vector):
    def __init__(self):
        super().__init__("i32x8")


class _Mask8(_Vector):
    def __init__(self):
        super().__init__("mask8")


f32x8, i32x8, mask8 = _F32x8(), _I32x8(), _Mask8()
_LLVM = {f32x8: _V_F32, i32x8: _V_I32, mask8: _V_BIT}


def _register(cls: type, llvm_type: ir.Type) -> None:
    @register_model(cls)
    class _Model(models.PrimitiveModel):
        def __init__(self, manager, numba_type):
            super().__init__(manager, numba_type, llvm_type)


for _cls, _type in ((_F32x8, _V_F32), (_I32x8, _V_I32), (_Mask8, _V_BIT)):
    _register(_cls, _type)


# ---- helpers that write LLVM IR


def _constant(value: float | int, llvm_type: ir.VectorType = _V_F32) -> ir.Constant:
    if llvm_type is _V_F32:
        value = float(np.float32(value))
    return ir.Constant(llvm_type, [value] * WIDTH)


def _splat(builder, value):
    """The vector with ``value`` in all lanes; a vector stays what it is."""
    if isinstance(value.type, ir.VectorType):
        return value
    vector_type = ir.VectorType(value.type, WIDTH)
    undefined = ir.Constant(vector_type, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(_V_I32, [0] * WIDTH))


def _call(builder, name: str, result, *args):
    function_type = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function_type, name), args)


def _fma(builder, a, b, c):
    return _call(builder, "llvm.fmuladd.v8f32", _V_F32, a, b, c)


def _shuffle(builder, a, b, lanes):
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(lanes)), list(lanes)))


def _pointer(context, builder, array_type, array, index, llvm_type=None):
    data = context.make_array(array_type)(context, builder, array).data
    pointer = builder.gep(data, [index])
    return pointer if llvm_type is None else builder.bitcast(pointer, llvm_type.as_pointer())


def _vector_of(numba_type):
    """The vector type that a scalar or vector operand computes as."""
    if isinstance(numba_type, _Vector):
        return numba_type
    return f32x8 if numba_type == types.float32 else i32x8


# ---- operators


def _operator(op, cases: list[tuple]) -> None:
    """Teaches numba ``op`` for cases (operand, operand, result, function that writes the IR)."""

    @infer_global(op)
    class _Typing(ConcreteTemplate):
        pass

    _Typing.cases = [signature(result, a, b) for a, b, result, _ in cases]
    for a, b, _, emit in cases:

        def lower(context, builder, sig, args, emit=emit):
            return emit(builder, _splat(builder, args[0]), _splat(builder, args[1]))

        lower_builtin(op, a, b)(lower)


def _arithmetic(op, name: str) -> None:
    def emit_f32(builder, x, y):
        return getattr(builder, "f" + name)(x, y, flags=_FAST_MATH)

    def emit_i32(builder, x, y):
        return getattr(builder, name)(x, y)

    kinds = [(f32x8, types.float32, emit_f32)] + ([] if name == "div" else [(i32x8, types.int32, emit_i32)])
    cases = []
    for vector, scalar, emit in kinds:
        cases += [(a, b, vector, emit) for a, b in ((vector, vector), (vector, scalar), (scalar, vector))]
    _operator(op, cases)


def _comparison(op, symbol: str) -> None:
    def emit_f32(builder, x, y):
        return builder.fcmp_ordered(symbol, x, y)  # false where either side is NaN

    def emit_i32(builder, x, y):
        return builder.icmp_signed(symbol, x, y)

    cases = [(f32x8, b, mask8, emit_f32) for b in (f32x8, types.float32)]
    _operator(op, cases + [(i32x8, b, mask8, emit_i32) for b in (i32x8, types.int32)])


for _op, _name in ((operator.add, "add"), (operator.sub, "sub"), (operator.mul, "mul"), (operator.truediv, "div")):
    _arithmetic(_op, _name)
for _op, _symbol in ((operator.ge, ">="), (operator.le, "<="), (operator.gt, ">"), (operator.lt, "<")):
    _comparison(_op, _symbol)
_operator(operator.and_, [(mask8, mask8, mask8, lambda builder, x, y: builder.and_(x, y))])
_operator(operator.or_, [(mask8, mask8, mask8, lambda builder, x, y: builder.or_(x, y))])


# ---- memory


@intrinsic
def get(typing, array, index):
    """array[index], without numba's test for negative indices."""

    def emit(context, builder, sig, args):
        return builder.load(_pointer(context, builder, sig.args[0], args[0], args[1]))

    return array.dtype(array, types.intp), emit


@intrinsic
def put(typing, array, index, value):
    """array[index] = value, without numba's test for negative indices."""

    def emit(context, builder, sig, args):
        builder.store(args[2], _pointer(context, builder, sig.args[0], args[0], args[1]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), emit


@intrinsic
def load(typing, array, index):
    """The eight elements from array[index]: f32x8 or i32x8, as the array is."""
    vector = _vector_of(array.dtype)

    def emit(context, builder, sig, args):
        return builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], _LLVM[vector]), align=4)

    return vector(array, types.intp), emit


@intrinsic
def store(typing, array, index, vector):
    """Writes the eight lanes to array[index], ..."""

    def emit(context, builder, sig, args):
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], _LLVM[vector])
        builder.store(args[2], pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), emit


@intrinsic
def gather(typing, array, index, stride):
    """Lane l is array[index + l * stride]."""

    def emit(context, builder, sig, args):
        vector, position = ir.Constant(_V_F32, ir.Undefined), args[1]
        for lane in range(WIDTH):
            element = builder.load(_pointer(context, builder, sig.args[0], args[0], position))
            vector = builder.insert_element(vector, element, _I32(lane))
            position = builder.add(position, args[2])
        return vector

    return f32x8(array, types.intp, types.intp), emit


@intrinsic
def scatter(typing, array, index, stride, vector):
    """array[index + l * stride] = lane l."""

    def emit(context, builder, sig, args):
        position = args[1]
        for lane in range(WIDTH):
            element = builder.extract_element(args[3], _I32(lane))
            builder.store(element, _pointer(context, builder, sig.args[0], args[0], position))
            position = builder.add(position, args[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, f32x8), emit


def _load_triples(channel: int):
    @intrinsic
    def load_channel(typing, array, index):
        wide = ir.VectorType(_F32, 3 * WIDTH)

        def emit(context, builder, sig, args):
            pixels = builder.load(_pointer(context, builder, sig.args[0], args[0], args[1], wide), align=4)
            return _shuffle(builder, pixels, pixels, range(channel, 3 * WIDTH, 3))

        return f32x8(array, types.intp), emit

    return load_channel


load_red, load_green, load_blue = (_load_triples(c) for c in range(3))


@intrinsic
def store_triples(typing, array, index, x, y, z):
    """Writes x0 y0 z0 x1 y1 z1 ... : eight pixels of three channels."""

    def emit(context, builder, sig, args):
        xy = _shuffle(builder, args[2], args[3], range(2 * WIDTH))
        z = _shuffle(builder, args[4], args[4], range(2 * WIDTH))
        lanes = [p + c * WIDTH for p in range(WIDTH) for c in range(3)]
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1], ir.VectorType(_F32, 3 * WIDTH))
        builder.store(_shuffle(builder, xy, z, lanes), pointer, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x8, f32x8, f32x8), emit


@intrinsic
def prefetch(typing, array, index):
    """Asks for the cache line of array[index]."""
    byte_pointer = ir.IntType(8).as_pointer()

    def emit(context, builder, sig, args):
        pointer = builder.bitcast(_pointer(context, builder, sig.args[0], args[0], args[1]), byte_pointer)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, [pointer, _I32(0), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), emit


@intrinsic
def fetch_add(typing, array, index, value):
    """Atomically adds to an int64 element and returns what it was: a queue that threads draw from."""

    def emit(context, builder, sig, args):
        pointer = _pointer(context, builder, sig.args[0], args[0], args[1])
        return builder.atomic_rmw("add", pointer, args[2], "monotonic")

    return types.int64(array, types.intp, types.int64), emit


# ---- making and choosing


@intrinsic
def splat(typing, value):
    """The vector with one float32 or int32 in all lanes."""
    return _vector_of(value)(value), lambda context, builder, sig, args: _splat(builder, args[0])


@intrinsic
def lanes(typing):
    """(0.0, 1.0, ..., 7.0)"""
    return f32x8(), lambda context, builder, sig, args: ir.Constant(_V_F32, [float(k) for k in range(WIDTH)])


@intrinsic
def select(typing, mask, a, b):
    """a where the mask is set, else b; one of the two may be a scalar."""
    vector = _vector_of(a)

    def emit(context, builder, sig, args):
        return builder.select(args[0], _splat(builder, args[1]), _splat(builder, args[2]))

    return vector(mask8, a, b), emit


@intrinsic
def keep(typing, mask, a):
    """a where the mask is set, else zero."""

    def emit(context, builder, sig, args):
        return builder.select(args[0], args[1], _constant(0, _LLVM[a]))

    return a(mask8, a), emit


def _choose(symbol: str):
    @intrinsic
    def choose(typing, a, b):
        vector = _vector_of(a)

        def emit(context, builder, sig, args):
            x, y = _splat(builder, args[0]), _splat(builder, args[1])
            compare = builder.fcmp_ordered if vector is f32x8 else builder.icmp_signed
            return builder.select(compare(symbol, x, y), x, y)

        return vector(a, b), emit

    return choose


# The second operand is the result where the first is NaN.
minimum, maximum = _choose("<"), _choose(">")


@intrinsic
def lane_bits(typing, mask):
    """The mask as an int32 with one bit per lane."""

    def emit(context, builder, sig, args):
        return builder.zext(builder.bitcast(args[0], ir.IntType(WIDTH)), _I32)

    return types.int32(mask8), emit


@intrinsic
def first_lane(typing, bits):
    """Number of the lowest set bit of an int32 that is not 0."""

    def emit(context, builder, sig, args):
        return builder.cttz(args[0], ir.IntType(1)(1))

    return types.int32(types.int32), emit


@intrinsic
def is_finite(typing, a):
    """Neither NaN nor infinite, by the exponent bits, which no optimisation can reason away."""

    def emit(context, builder, sig, args):
        exponent = builder.and_(builder.bitcast(args[0], _V_I32), _constant(0x7F800000, _V_I32))
        return builder.icmp_signed("!=", exponent, _constant(0x7F800000, _V_I32))

    return mask8(f32x8), emit


# ---- arithmetic


@intrinsic
def fma(typing, a, b, c):
    """a * b + c"""

    def emit(context, builder, sig, args):
        return _fma(builder, *(_splat(builder, x) for x in args))

    return f32x8(a, b, c), emit


@intrinsic
def fnma(typing, a, b, c):
    """c - a * b"""

    def emit(context, builder, sig, args):
        return _fma(builder, builder.fneg(args[0]), args[1], args[2])

    return f32x8(f32x8, f32x8, f32x8), emit


def _unary(llvm_name: str):
    @intrinsic
    def function(typing, a):
        return f32x8(f32x8), lambda context, builder, sig, args: _call(builder, llvm_name, _V_F32, args[0])

    return function


sqrt, floor, ceil = (_unary(f"llvm.{n}.v8f32") for n in ("sqrt", "floor", "ceil"))


@intrinsic
def to_i32(typing, a):
    """Rounds towards zero; the lanes must fit."""
    return i32x8(f32x8), lambda context, builder, sig, args: builder.fptosi(args[0], _V_I32)


@intrinsic
def log2(typing, a):
    """Base-2 logarithm of positive normal floats, to 1e-7: exponent split off, then the series of artanh."""

    def emit(context, builder, sig, args):
        def integer(value):
            return _constant(value, _V_I32)

        bits, sqrt_half = builder.bitcast(args[0], _V_I32), integer(0x3F3504F3)
        exponent = builder.ashr(builder.sub(bits, sqrt_half), integer(23))
        mantissa = builder.bitcast(builder.sub(bits, builder.shl(exponent, integer(23))), _V_F32)
        ratio = builder.fdiv(builder.fsub(mantissa, _constant(1)), builder.fadd(mantissa, _constant(1)))
        square = builder.fmul(ratio, ratio)
        series = _constant(2 / np.log(2) / 9)
        for order in (7, 5, 3, 1):
            series = _fma(builder, series, square, _constant(2 / np.log(2) / order))
        return _fma(builder, series, ratio, builder.sitofp(exponent, _V_F32))

    return f32x8(f32x8), emit


def _exp2_coefficients(degree: int = 5) -> list[float]:
    """Polynomial for 2**x on [-1/2, 1/2] of least relative error at Chebyshev nodes (1.9e-7 for degree 5)."""
    x = np.cos((np.arange(4000) + 0.5) / 4000 * np.pi) / 2
    weighted = np.vander(x, degree + 1, increasing=True) / np.exp2(x)[:, None]
    return [float(c) for c in np.linalg.lstsq(weighted, np.ones_like(x), rcond=None)[0]]


EXP2_COEFFICIENTS = _exp2_coefficients()


@intrinsic
def exp2(typing, a, table):
    """2**a for a in [-126, 127]; anything outside gives some number.

    ``table`` starts with EXP2_COEFFICIENTS, each repeated eight times: coefficients in memory fold into the FMAs,
    constants in the code would be built anew in every turn of a loop.
    """

    def emit(context, builder, sig, args):
        def coefficient(k):
            index = _I64(WIDTH * k)
            return builder.load(_pointer(context, builder, sig.args[1], args[1], index, _V_F32), align=4)

        nearest = _call(builder, "llvm.nearbyint.v8f32", _V_F32, args[0])
        fraction = builder.fsub(args[0], nearest, flags=_FAST_MATH)
        value = coefficient(len(EXP2_COEFFICIENTS) - 1)
        for k in range(len(EXP2_COEFFICIENTS) - 2, -1, -1):
            value = _fma(builder, value, fraction, coefficient(k))
        shift = builder.shl(builder.fptosi(nearest, _V_I32), _constant(23, _V_I32))
        return builder.bitcast(builder.add(builder.bitcast(value, _V_I32), shift), _V_F32)

    return f32x8(f32x8, table), emit


# ---- across lanes


@intrinsic
def hsum(typing, a):
    """Sum of the lanes."""

    def emit(context, builder, sig, args):
        function_type = ir.FunctionType(_F32, [_F32, _V_F32])
        name = "llvm.vector.reduce.fadd.v8f32"
        function = cgutils.get_or_insert_function(builder.module, function_type, name)
        return builder.call(function, [ir.Constant(_F32, 0.0), args[0]], fastmath=("reassoc", "nsz"))

    return types.float32(f32x8), emit


@intrinsic
def hsum8(typing, a0, a1, a2, a3, a4, a5, a6, a7):
    """Lane k is the sum of the lanes of vector k."""

    def emit(context, builder, sig, args):
        def pairs(x, y):
            even = _shuffle(builder, x, y, [0, 2, 8, 10, 4, 6, 12, 14])
            odd = _shuffle(builder, x, y, [1, 3, 9, 11, 5, 7, 13, 15])
            return builder.fadd(even, odd)

        a = pairs(pairs(args[0], args[1]), pairs(args[2], args[3]))
        b = pairs(pairs(args[4], args[5]), pairs(args[6], args[7]))
        low = _shuffle(builder, a, b, [0, 1, 2, 3, 8, 9, 10, 11])
        high = _shuffle(builder, a, b, [4, 5, 6, 7, 12, 13, 14, 15])
        return builder.fadd(low, high)

    return f32x8(*[f32x8] * 8), emit


def _transposed(builder, rows):
    for step, low, high in (
        (1, [0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15]),
        (2, [0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15]),
        (4, [0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]),
    ):
        turned = list(rows)
        for first in (k for k in range(WIDTH) if not k & step):
            turned[first] = _shuffle(builder, rows[first], rows[first + step], low)
            turned[first + step] = _shuffle(builder, rows[first], rows[first + step], high)
        rows = turned
    return [rows[k] for k in (0, 2, 1, 3, 4, 6, 5, 7)]


@intrinsic
def store_transposed(typing, array, index, stride, a0, a1, a2, a3, a4, a5, a6, a7):
    """Row l, at array[index + l * stride], becomes (a0[l], ..., a7[l])."""

    def emit(context, builder, sig, args):
        position = args[1]
        for row in _transposed(builder, list(args[3:])):
            builder.store(row, _pointer(context, builder, sig.args[0], args[0], position, _V_F32), align=4)
            position = builder.add(position, args[2])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, *[f32x8] * 8), emit
