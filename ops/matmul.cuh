// out = a b^T, the one product that fprop, dgrad and wgrad are all made of: both operands are read as (rows, K) and
// contracted along K; which of them is stored transposed is a matter of its strides. The definition is the row
// function below. It sums in "pair order": for k = 0, 2, 4, .. acc = fma(a[k], b[k], fma(a[k+1], b[k+1], acc)), the odd
// element first, because that is what a BF16 dot-product instruction does. The packed CPU kernels (matmul_cpu.cpp) are
// its fast twins: bit-equal but for AMX, whose bound is derived there.
#pragma once
#include "ops/lanes.cuh"
#include "ops/matmul_cpu.h"

template <class T> constexpr Elem elem = Elem::f32;
template <> constexpr Elem elem<bf16> = Elem::bf16;
// A matrix contracted along its rows' elements, or down its columns; ld: elements from one row to the next.
template <class T> Operand rows_of(const T* data, size_t ld) { return {data, elem<T>, true, ld}; }
template <class T> Operand columns_of(const T* data, size_t ld) { return {data, elem<T>, false, ld}; }

HD INLINE real fetch(const Operand& o, size_t row, size_t k) {
    size_t i = o.k_contiguous ? row * o.ld + k : k * o.ld + row;
    return o.elem == Elem::bf16 ? (real)((const bf16*)o.data)[i] : ((const real*)o.data)[i];
}
// sum over k < K of a(k) b(k) in pair order
template <class A, class B> HD INLINE real dot_in_pairs(int K, A a, B b) {
    real acc = 0;
    int k = 0;
    for (; k + 2 <= K; k += 2) acc = fma_(a(k), b(k), fma_(a(k + 1), b(k + 1), acc));
    return k < K ? fma_(a(k), b(k), acc) : acc;
}
HD inline void matmul_row(Lanes g, Gemm s, size_t m) {
    g.each(s.N, [=](int n) {
        real acc = dot_in_pairs(s.K, [&](int k) { return fetch(s.a, m, k); }, [&](int k) { return fetch(s.b, n, k); });
        size_t at = m * s.ld_out + n;
        acc = acc * s.scale_a * s.scale_b;
        if (s.out_elem == Elem::bf16) {
            if (s.bias) acc += (real)((const bf16*)s.bias)[n];
            bf16* out = (bf16*)s.out;
            out[at] = bf16(s.accumulate ? (real)out[at] + acc : acc);
        } else {
            if (s.bias) acc += ((const real*)s.bias)[n];
            real* out = (real*)s.out;
            out[at] = s.accumulate ? out[at] + acc : acc;
        }
    });
}
// The CPU's kernel, on the calling thread alone when a parallel loop is already running.
inline void matmul_here(const Gemm& s) {
    matmul_cpu(s, machine.kernels == Kernels::fast ? CpuKernel::fast : CpuKernel::portable);
}
// name: fprop, dgrad or wgrad, for --profile. Shapes and strides are the Gemm's; no dimension needs to divide anything.
inline void matmul(const char* name, const Gemm& s) {
    auto size = [](Elem e) { return e == Elem::bf16 ? 2.0 : 4.0; };
    double M = s.M, N = s.N, K = s.K, flops = 2 * M * N * K;
    double bytes = M * K * size(s.a.elem) + N * K * size(s.b.elem) + M * N * size(s.out_elem) * (s.accumulate ? 2 : 1);
    if (machine.gpu || machine.kernels == Kernels::reference)
        for_rows(name, bytes, s.M, [=] HD(Lanes g, int m) { matmul_row(g, s, m); }, flops);
    else
        profiled(name, bytes, flops, [&] { matmul_here(s); });
}
