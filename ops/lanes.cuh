// Every operation of the model is a row function over a lane group, written once:
//
//     HD inline void scale_row(Lanes g, act* y, const act* x, real a, int C) {
//         g.map(C, y, [=](real x) { return a * x; }, x);
//     }
//     void scale(act* y, const act* x, real a, int N, int C) {
//         for_rows("scale", 2.0 * N * C * sizeof(act), N,
//                  [=] HD(Lanes g, int n) { scale_row(g, y + (size_t)n * C, x + (size_t)n * C, a, C); });
//     }
//
// A Lanes is a warp on the device and a loop on the host. Its verbs take the rows they read and write, so the group
// owns the loop and the traffic: lane l owns elements 4l..4l+3 of every 128 and moves them as one pack where the rows'
// alignment allows. What a reader would get wrong:
// - sum() adds in one fixed order (four partial sums per lane, then a butterfly) on both machines, so it returns the
//   same bits on both, for any number of threads. The host keeps the same 128 accumulators, which also vectorizes.
// - exp_, log_ and tanh_ are ours, because libm and CUDA disagree in the last bit and libm does not vectorize.
#pragma once
#include "ops/device.cuh"
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

// --- 1. numbers --------------------------------------------------------------------------------------------------
template <class To, class From> HD INLINE To bits_as(From x) { return __builtin_bit_cast(To, x); }

// BF16: the upper half of an FP32. Round to nearest even; NaN becomes 0x7fff, as on NVIDIA hardware. Branch-free.
struct bf16 {
    uint16_t bits;
    bf16() = default;
    HD INLINE bf16(float f) {
        uint32_t u = bits_as<uint32_t>(f);
        uint32_t rounded = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
        bits = (uint16_t)((u & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded);
    }
    HD INLINE bf16(double f) : bf16((float)f) {}
    HD INLINE operator float() const { return bits_as<float>((uint32_t)bits << 16); }
};

// real: FP32; what row functions compute in, and how weights, gradients, moments and statistics are stored.
// act:  what activations and GEMM operands are stored in.
#if defined(REAL_DOUBLE) // for finite differences
using real = double;
using act = double;
#elif defined(ACT_FLOAT) // make ACT=float
using real = float;
using act = float;
#else
using real = float;
using act = bf16;
#endif

// exp, log, tanh: at most 2 ulp over their whole range (tests walk it), the same bits everywhere, no branches.
HD INLINE float exp_(float x) {
    x = x < -104.0f ? -104.0f : x > 89.0f ? 89.0f : x; // beyond: 0 and inf. NaN passes both comparisons
    float shifted = fmaf(x, 1.44269504f, 12582912.0f); // 1.5 * 2^23 rounds x / ln 2 to an integer in the low bits
    float n = shifted - 12582912.0f;
    float r = fmaf(n, -0.693145752f, x); // ln 2 in two parts; |r| <= ln 2 / 2
    r = fmaf(n, -1.42860677e-6f, r);
    float p = fmaf(r, 1.38793459e-3f, 8.37346818e-3f); // near 1/720, 1/120, ..: minimax on |r| <= 0.3466
    p = fmaf(p, r, 4.16660346e-2f);
    p = fmaf(p, r, 1.66664943e-1f);
    p = fmaf(p, r, 5.00000000e-1f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    int i = bits_as<int>(shifted) - 0x4b400000, half = i >> 1; // 2^i in two factors: i reaches 128 and -150
    return p * bits_as<float>((half + 127) << 23) * bits_as<float>((i - half + 127) << 23);
}
HD INLINE float log_(float x) { // x > 0 or 0, inf, NaN; negative gives NaN
    float tiny = x < 1.17549435e-38f ? x * 8388608.0f : x;
    int i = (int)(bits_as<uint32_t>(tiny) - 0x3f3504f3u), e = i >> 23; // tiny = 2^e m, m in [sqrt(1/2), sqrt 2)
    float m = bits_as<float>((i & 0x7fffff) + 0x3f3504f3), n = (float)(x < 1.17549435e-38f ? e - 23 : e);
    float f = m - 1, s = f / (2 + f), z = s * s; // log m = 2 atanh s = f - s (f - R), R = z * series
    float series = fmaf(fmaf(fmaf(z, 0.242790788f, 0.284987867f), z, 0.400009722f), z, 0.666666627f);
    float R = z * series, h = 0.5f * f * f;
    float y = fmaf(n, 0.693145752f, f - (h - fmaf(s, h + R, n * 1.42860677e-6f)));
    y = x > 3.40282347e38f ? x : y;
    return x > 0 ? y : x == 0 ? -INFINITY : NAN;
}
HD INLINE float tanh_(float x) {
    float z = x * x; // below 0.6: an odd minimax polynomial; above: by exp, where 1 - 2 / (..) no longer cancels
    float p = fmaf(fmaf(fmaf(fmaf(z, -0.0059058676f, 0.020805383f), z, -0.053786684f), z, 0.13331959f), z, -0.333333f);
    float near0 = fmaf(x * z, p, x), far = 1 - 2 / (exp_(2 * fabsf(x)) + 1);
    return copysignf(fabsf(x) < 0.6f ? near0 : far, x); // of -0 too
}
HD INLINE double exp_(double x) { return exp(x); }
HD INLINE double log_(double x) { return log(x); }
HD INLINE double tanh_(double x) { return tanh(x); }
HD INLINE float sqrt_(float x) { return sqrtf(x); }
HD INLINE double sqrt_(double x) { return sqrt(x); }
HD INLINE float fma_(float a, float b, float c) { return fmaf(a, b, c); }
HD INLINE double fma_(double a, double b, double c) { return fma(a, b, c); }

// --- 2. the lane group -------------------------------------------------------------------------------------------
template <class T> struct alignas(4 * sizeof(T)) Pack { T v[4]; };
template <class... A> HD INLINE bool packable(const A*... a) {
    return ((((uintptr_t)a % sizeof(Pack<A>)) == 0) && ...);
}

template <class T> struct Tail { T v[16]; }; // WIDTH

constexpr int STRIDE = 4 * LANES; // a group takes 128 elements at a time
constexpr int WIDTH = 16;         // of the host's vectors
constexpr int PANEL = 64;         // rows that one group sums down before panels are added up

struct Lanes {
    // sum over i < n of f(a[i], b[i], ..). The result is the same bits in every lane and on both machines.
    template <class F, class... A> HD INLINE real sum(int n, F f, const A*... a) const {
        return reduce(n, (real)0, [](auto s, auto x) { return s + x; }, f, a...);
    }
    // largest f(a[i], ..), NaN ignored; -inf for n = 0
    template <class F, class... A> HD INLINE real max(int n, F f, const A*... a) const {
        return reduce(n, (real)-INFINITY, [](auto s, auto x) { return x > s ? x : s; }, f, a...);
    }
    // the same, but one NaN makes the result NaN
    template <class F, class... A> HD INLINE real max_nan(int n, F f, const A*... a) const {
        return reduce(n, (real)-INFINITY, [](auto s, auto x) { return ((x > s) | (x != x)) ? x : s; }, f, a...);
    }
    // y[i] = f(a[i], b[i], ..). y may be one of the inputs.
    template <class Y, class F, class... A> HD INLINE void map(int n, Y* y, F f, const A*... a) const {
        if (!on_device()) {
            int whole = n / WIDTH * WIDTH;
            UNALIASED for (int i = 0; i < whole; i++) y[i] = Y(f((real)a[i]...));
            if (whole < n)
                with_tail(n - whole, [&](const auto*... t) {
                    Y q[WIDTH];
                    UNALIASED for (int k = 0; k < WIDTH; k++) q[k] = Y(f((real)t[k]...));
                    memcpy(y + whole, q, (n - whole) * sizeof(Y));
                }, (a + whole)...);
            return;
        }
        bool packs = packable(y, a...);
        for (int i = lane() * 4; i < n; i += STRIDE) {
            if (packs && i + 4 <= n) {
                Pack<Y> q;
                auto one = [&](Pack<A>... p) {
                    for (int k = 0; k < 4; k++) q.v[k] = Y(f((real)p.v[k]...));
                };
                one(*(const Pack<A>*)(a + i)...);
                *(Pack<Y>*)(y + i) = q;
            } else
                for (int k = i; k < i + 4 && k < n; k++) y[k] = Y(f((real)a[k]...));
        }
    }
    // f(i) for every i < n, neighbours in neighbouring lanes. For what reads and writes no plain rows.
    template <class F> HD INLINE void each(int n, F f) const {
        if (on_device())
            for (int i = lane(); i < n; i += LANES) f(i);
        else
            UNALIASED for (int i = 0; i < n; i++) f(i);
    }
    // out[c] = sum over r < R, ascending, of f(r, a[r * ld + c], ..) for the c < C <= 128 columns of this group:
    // lanes lie along neighbouring columns and each walks down its own.
    template <class F, class... A>
    HD INLINE void sum_down(int R, int C, size_t ld, real* out, F f, const A*... a) const {
        if (!on_device()) {
            real s[STRIDE] = {};
            for (int r = 0; r < R; r++)
                if (C == STRIDE)
                    for (int c = 0; c < STRIDE; c++) s[c] += f(r, (real)a[r * ld + c]...);
                else
                    for (int c = 0; c < C; c++) s[c] += f(r, (real)a[r * ld + c]...);
            for (int c = 0; c < C; c++) out[c] = s[c];
            return;
        }
        bool packs = packable(a...) && ld % 4 == 0;
        int c = lane() * 4;
        real s[4] = {};
        for (int r = 0; r < R && c < C; r++) {
            if (packs && c + 4 <= C) {
                auto one = [&](Pack<A>... p) {
                    for (int k = 0; k < 4; k++) s[k] += f(r, (real)p.v[k]...);
                };
                one(*(const Pack<A>*)(a + r * ld + c)...);
            } else
                for (int k = 0; k < 4 && c + k < C; k++) s[k] += f(r, (real)a[r * ld + c + k]...);
        }
        for (int k = 0; k < 4 && c + k < C; k++) out[c + k] = s[k];
    }
    // What lanes stored before, every lane of the group sees after.
    HD INLINE void sync() const {
        if (on_device()) sync_lanes();
    }
    // Who stores a scalar, and who may touch element i after a map() over its row.
    HD INLINE bool first() const { return !on_device() || lane() == 0; }
    HD INLINE bool owns(int i) const { return !on_device() || lane() == i / 4 % LANES; }

  private:
    // The host's ragged end: f sees copies padded with zeros to a whole vector, so that it vectorizes too.
    template <class F, class... A> HD INLINE static void with_tail(int n, F f, const A*... a) {
        auto padded = [n](const auto* from) {
            Tail<std::remove_cvref_t<decltype(*from)>> t = {};
            memcpy(t.v, from, n * sizeof(t.v[0]));
            return t;
        };
        f(padded(a).v...);
    }
    // The device's last steps on the host's accumulators: element 4l + k is partial sum k of lane l.
    template <class Op> HD INLINE static real butterfly(const real* s, Op op) {
#ifdef __CUDACC__
        real r[LANES];
        for (int l = 0; l < LANES; l++) r[l] = op(op(s[4 * l], s[4 * l + 2]), op(s[4 * l + 1], s[4 * l + 3]));
        for (int m = LANES / 2; m > 0; m /= 2)
            for (int l = 0; l < m; l++) r[l] = op(r[l], r[l + m]);
        return r[0];
#else // the same in registers, a fifth of the time; vector i holds lanes 4i..4i+3
        typedef real Vector __attribute__((vector_size(WIDTH * sizeof(real))));
        Vector v[8];
        memcpy(v, s, sizeof v);
        for (Vector& x : v) {
            x = op(x, __builtin_shufflevector(x, x, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
            x = op(x, __builtin_shufflevector(x, x, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
        }
        for (int m = 4; m > 0; m /= 2)
            for (int i = 0; i < m; i++) v[i] = op(v[i], v[i + m]);
        Vector x = v[0];
        x = op(x, __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
        x = op(x, __builtin_shufflevector(x, x, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
        return x[0];
#endif
    }
    HD INLINE static int lane() { return lane_index(); }

    template <class Op, class F, class... A>
    HD INLINE real reduce(int n, real zero, Op op, F f, const A*... a) const {
        if (!on_device()) {
            alignas(64) real s[STRIDE];
            for (int l = 0; l < STRIDE; l++) s[l] = zero;
            int i = 0;
            for (; i + STRIDE <= n; i += STRIDE)
                UNALIASED for (int l = 0; l < STRIDE; l++) s[l] = op(s[l], f((real)a[i + l]...));
            real* end = s;
            for (; i + WIDTH <= n; i += WIDTH, end += WIDTH)
                UNALIASED for (int l = 0; l < WIDTH; l++) end[l] = op(end[l], f((real)a[i + l]...));
            if (i < n)
                with_tail(n - i, [&](const auto*... t) {
                    UNALIASED for (int l = 0; l < WIDTH; l++) {
                        real x = op(end[l], f((real)t[l]...));
                        end[l] = l < n - i ? x : end[l];
                    }
                }, (a + i)...);
            return butterfly(s, op);
        }
        real s[4] = {zero, zero, zero, zero};
        bool packs = packable(a...);
        for (int i = lane() * 4; i < n; i += STRIDE) {
            if (packs && i + 4 <= n) {
                auto one = [&](Pack<A>... p) {
                    for (int k = 0; k < 4; k++) s[k] = op(s[k], f((real)p.v[k]...));
                };
                one(*(const Pack<A>*)(a + i)...);
            } else
                for (int k = 0; k < 4 && i + k < n; k++) s[k] = op(s[k], f((real)a[i + k]...));
        }
        real r = op(op(s[0], s[2]), op(s[1], s[3]));
        for (int m = LANES / 2; m > 0; m /= 2) r = op(r, shfl_xor(r, m));
        return r;
    }
};

// --- 3. launching rows -------------------------------------------------------------------------------------------
#ifdef ULP_GPU
template <class F> KERNEL void rows_kernel(int N, F row) {
    int n = (int)(((size_t)block_index() * block_size() + thread_index()) / LANES);
    if (n < N) row(Lanes(), n);
}
#endif

// row(Lanes, n) for every n < N, in any order and in parallel. bytes: what the whole launch reads and writes, for
// --profile; flops where arithmetic is the measure. row is an HD lambda that captures by value.
template <class F> void for_rows(const char* name, double bytes, size_t N, F row, double flops = 0) {
    if (N == 0) return;
    if (N > INT32_MAX) fail("%s: %zu rows; a launch takes at most %d", name, N, INT32_MAX);
    profiled(name, bytes, flops, [&] {
#ifdef ULP_GPU
        if (machine.gpu) return launch(name, rows_kernel<F>, (N * LANES + 255) / 256, 256, 0, (int)N, row);
#endif
#pragma omp parallel for schedule(static) if (bytes > 32768) // less is not worth waking a thread
        for (int n = 0; n < (int)N; n++) row(Lanes(), n);
    });
}

// Column sums: panels of PANEL rows by groups of 128 columns, then the panels added in order.
HD inline int panels(int N) { return (N + PANEL - 1) / PANEL; }
HD inline int column_groups(int C) { return (C + STRIDE - 1) / STRIDE; }
struct Panel { int index, row, rows, col, cols; };
HD inline Panel panel(int j, int N, int C) { // the j-th of panels(N) * column_groups(C)
    int p = j / column_groups(C), c = j % column_groups(C) * STRIDE;
    return {p, p * PANEL, N - p * PANEL < PANEL ? N - p * PANEL : PANEL, c, C - c < STRIDE ? C - c : STRIDE};
}
void add_panels(real* sum, const real* partial, int N, int C); // sum[c] += partial[0][c] + .., partial (panels(N), C)

// A launch takes the tensor in pieces of this many elements.
constexpr int PIECE = 4096;
HD inline size_t pieces(size_t n) { return (n + PIECE - 1) / PIECE; }
HD inline int piece_size(size_t n, int i) {
    size_t left = n - (size_t)i * PIECE;
    return left < PIECE ? (int)left : PIECE;
}
