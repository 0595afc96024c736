// How casts go through a matrix: lanes and vectors. Part of fp8.cuh, where formats, scales and entry points are.
//
// - The row function cast_run() is the definition, on both machines: a lane of a GPU takes one block
//   at a time, the host 16, so that its vectors span blocks and the scales of 16 blocks are one vector too.
// - Columns are cast straight from x, never from a transposed copy. On a GPU neighbouring lanes take neighbouring
//   columns; on the CPU cast_tile() is the faster twin, bit-equal.
// - A block that ends behind the matrix is filled with zeros, which change no amax, and of its codes those are stored
//   that exist.
// - A largest amax is recorded with an integer maximum, which no order of the rows can change.
#pragma once
#include "ops/cast_cpu.h"
#include "ops/lanes.cuh"

// |x|, for the verbs
struct Magnitude { HD INLINE real operator()(real x) const { return x < 0 ? -x : x; } };
// *to = the larger of *to and the group's m, lanes' own each >= 0, whatever the order of the callers.
HD INLINE void record_max(Lanes g, float* to, float m) {
    for (int mask = LANES / 2; mask > 0; mask /= 2) {
        float other = shfl_xor(m, mask);
        m = other > m ? other : m;
    }
    if (g.first()) atomic_max((int*)to, bits_as<int>(m)); // floats >= 0 order as their bits do
}

// --- into codes -----------------------------------------------------------------------------------------------------
template <class T> struct Job {
    uint8_t* codes;
    const T* x;
    bool transpose;
    int R, C;
    uint64_t key;
    float* record = nullptr;      // records the largest amax of a block, NaN left out, unless null
    const float* known = nullptr; // amax of block kb of row o, if found before: that of (o >> rows, kb >> pieces) in at
    int rows = 0, pieces = 0;
    Grid at = {};
    size_t row_bytes = 0; // from one row of codes to the next
    HD int O() const { return transpose ? C : R; }
    HD int K() const { return transpose ? R : C; }
};
template <const Format& F, bool SR> HD INLINE uint32_t cast_one(float y, RowKey key, uint32_t i) {
    return SR ? encode_stochastic(F, y, draw24(key, i)) : encode(F, y);
}
// |x| as its bits, which order as |x| does: 16 of them for BF16, so that twice as many fit a vector. NaN is above
// infinity, or 0.
HD INLINE uint32_t magnitude_bits(float x, bool keep_nan) {
    uint32_t m = magnitude(x);
    return m & (0u - (uint32_t)(keep_nan | (m <= INF_BITS)));
}
HD INLINE uint16_t magnitude_bits(bf16 x, bool keep_nan) {
    uint16_t m = x.bits & 0x7fff;
    return m & (uint16_t)(0 - (keep_nan | (m <= INF_BITS >> 16)));
}
template <class T> using Bits = decltype(magnitude_bits(T(), true));
template <class T> HD INLINE float from_bits(Bits<T> m) { return bits_as<float>((uint32_t)m << (32 - 8 * sizeof(Bits<T>))); }
template <class T> HD INLINE Bits<T> larger(Bits<T> amax, T x, bool keep_nan) {
    Bits<T> m = magnitude_bits(x, keep_nan);
    return m > amax ? m : amax;
}
// The amaxes of W blocks, of which `count` exist, to what their elements are multiplied by; stores their scales.
template <int W, class T, class Scale>
HD INLINE uint32_t scale_blocks(float* m, uint32_t* amax, const uint32_t* o, const uint32_t* kb, int count,
                                const Job<T>& job, const Scale& scale) {
    uint32_t code[W], largest = 0;
    for (int w = 0; job.known && w < count; w++)
        amax[w] = bits_as<uint32_t>(job.known[(o[w] >> job.rows) * job.at.row + (kb[w] >> job.pieces) * job.at.k]);
    for (int w = 0; w < W; w++) {
        Scaled s = scale(bits_as<float>(amax[w]));
        code[w] = s.code, m[w] = s.multiplier;
    }
    for (int w = 0; w < W && w < count; w++) {
        scale.put(o[w], kb[w], code[w]);
        largest = amax[w] > largest ? amax[w] : largest;
    }
    return largest;
}

// G blocks of N from the j-th of the matrix: a GPU's lane casts one, a CPU's several, so that vectors span blocks. They
// are numbered along memory: down a row or, transposed, across columns. Returns the largest amax, as bits.
template <const Format& F, bool SR, int N, int G, class T, class Scale>
HD INLINE uint32_t cast_group(const Job<T>& job, const Scale& scale, uint32_t j, int count) {
    constexpr int bytes = F.bits() == 4 ? N / 2 : N; // of a block
    uint32_t O = job.O(), K = job.K(), KB = (uint32_t)blocks(K, N), o[G], kb[G], amax[G], q[G * N];
    float m[G], m_of[G * N];
    RowKey key[G * N];
    struct alignas(16) { T v[G * N]; } gathered;
    struct alignas(8) { uint8_t v[G * bytes]; } packed;
    bool in_order = count == G && !job.transpose && K % N == 0, in_place = in_order && !on_device();
    for (int b = 0; b < G; b++) {
        o[b] = job.transpose ? (j + b) % O : (j + b) / KB, kb[b] = job.transpose ? (j + b) / O : (j + b) % KB;
        const T* from = job.x + (job.transpose ? (size_t)kb[b] * N * O + o[b] : (size_t)o[b] * K + kb[b] * N);
        size_t stride = job.transpose ? O : 1, n = b < count ? K - kb[b] * N : 0;
        if (on_device() && in_order && (uintptr_t)from % 16 == 0)
            gathered = *(const decltype(gathered)*)from;
        else if (!in_place)
            for (int k = 0; k < N; k++) gathered.v[b * N + k] = (size_t)k < n ? from[k * stride] : T(0.0f);
    }
    const T* p = in_place ? job.x + (size_t)j * N : gathered.v;
    for (int b = 0; b < G; b++) {
        Bits<T> a = 0;
        for (int k = 0; k < (job.known ? 0 : N); k++) a = larger(a, p[b * N + k], Scale::keep_nan);
        amax[b] = bits_as<uint32_t>(from_bits<T>(a));
    }
    uint32_t largest = scale_blocks<G>(m, amax, o, kb, count, job, scale);
    ON_HOST(if constexpr (!SR && N == 32 && std::is_same_v<T, bf16>)
                if (in_place && scale.powers() && cast_rows_by_powers(job.codes + (size_t)j * bytes, p, F, m, amax, G))
                    return largest;)
    for (int b = 0; b < G; b++) {
        RowKey of_row = SR ? row_key(job.key, o[b]) : RowKey{};
        for (int k = 0; k < N; k++) m_of[b * N + k] = m[b], key[b * N + k] = of_row, q[b * N + k] = kb[b] * N + k;
    }
    for (int i = 0; i < G * N; i++) q[i] = cast_one<F, SR>((float)p[i] * m_of[i], key[i], q[i]);
    for (int i = 0; i < G * bytes; i++)
        packed.v[i] = (uint8_t)(bytes < N ? q[2 * i % (G * N)] | q[(2 * i + 1) % (G * N)] << 4 : q[i]);
    if (in_place) {
        memcpy(job.codes + (size_t)j * bytes, packed.v, G * bytes);
        return largest;
    }
    for (int b = 0; b < G && b < count; b++) {
        size_t stored = code_bytes(F, K), at = (size_t)kb[b] * bytes;
        uint8_t* to = job.codes + o[b] * job.row_bytes + at;
        int n = stored - at < bytes ? (int)(stored - at) : bytes;
        if (on_device() && n == bytes && (uintptr_t)to % 8 == 0)
            *(decltype(packed)*)to = packed; // G is 1
        else
            for (int i = 0; i < n; i++) to[i] = packed.v[b * bytes + i];
    }
    return largest;
}
constexpr int RUN = 64; // blocks of a launch row
template <const Format& F, bool SR, int N, class T, class Scale>
HD INLINE void cast_run(Lanes g, const Job<T>& job, Scale scale, int run) {
    scale.prepare();
    uint32_t first = (uint32_t)run * RUN, left = job.O() * (uint32_t)blocks(job.K(), N) - first, largest = 0;
    int count = left < RUN ? (int)left : RUN, G = on_device() ? 1 : 16;
    g.each((count + G - 1) / G, [&](int i) __attribute__((always_inline)) {
        int left = count - i * G;
        uint32_t a = on_device() ? cast_group<F, SR, N, 1>(job, scale, first + i, 1)
                                 : cast_group<F, SR, N, 16>(job, scale, first + i * 16, left < 16 ? left : 16);
        largest = a > largest ? a : largest;
    });
    if (job.record) record_max(g, job.record, bits_as<float>(largest));
}
// The same for columns on the CPU, up to twice as fast: tiles of W x W, vectors across the columns; then perfect
// shuffles, which transpose the codes (each rotates the bits of every index by one), as 32-bit words of E of them.
// Tiles go down the columns, so that a tile's codes lie next to those of the tile before.
constexpr int TILE = 64;
template <const Format& F, bool SR, int N, class T, class Scale>
INLINE void cast_tile(Lanes g, const Job<T>& job, Scale scale, int tile) {
    scale.prepare();
    constexpr int W = TILE, E = F.bits() == 4 ? 8 : 4, words = W / E;
    int down = (int)blocks(job.R, W), top = tile % down * W, left = tile / down * W;
    int rows = job.R - top < W ? job.R - top : W, cols = job.C - left < W ? job.C - left : W;
    size_t row_bytes = code_bytes(F, job.R);
    uint8_t* codes = job.codes + left * row_bytes + (size_t)top * 4 / E;
    for (int w = 0; w < cols; w++) __builtin_prefetch(codes + w * row_bytes, 1); // lines are fetched before written
    alignas(64) T x[W * W]; // a copy: of rows that are a multiple of 4 KiB apart, L1 keeps few
    for (int r = 0; r < W; r++) {
        const T* from = job.x + (size_t)(top + r) * job.C + left;
        if (r < rows && cols == W) {
            for (int k = 0; k < W; k += 64 / sizeof(T)) __builtin_prefetch(from + (size_t)W * job.C + k); // next tile's
            memcpy(x + r * W, from, W * sizeof(T));
        } else
            for (int w = 0; w < W; w++) x[r * W + w] = r < rows && w < cols ? from[w] : T(0.0f);
    }
    alignas(64) uint32_t a[words * W], b[words * W], *from = a, *to = b;
    uint32_t amax[W], o[W], kb[W], largest = 0;
    float m[W];
    RowKey key[W];
    for (int w = 0; w < W; w++) o[w] = left + w, key[w] = SR ? row_key(job.key, o[w]) : RowKey{};
    for (int r = 0; r < rows; r += N) {
        Bits<T> most[W] = {};
        for (int k = r; k < (job.known ? r : r + N); k++)
            for (int w = 0; w < W; w++) most[w] = larger(most[w], x[k * W + w], Scale::keep_nan);
        for (int w = 0; w < W; w++) amax[w] = bits_as<uint32_t>(from_bits<T>(most[w])), kb[w] = (top + r) / N;
        uint32_t l = scale_blocks<W>(m, amax, o, kb, cols, job, scale);
        largest = l > largest ? l : largest;
        if constexpr (!SR && N == 32 && std::is_same_v<T, bf16>)
            if (scale.powers() && cast_columns_by_powers(a + r / E * W, x + r * W, F, m, amax)) continue;
        for (int k = r; k < r + N; k += E) {
            uint32_t* word = a + k / E * W;
            for (int w = 0; w < W; w++) word[w] = 0;
            for (int e = 0; e < E; e++)
                for (int w = 0; w < W; w++)
                    word[w] |= cast_one<F, SR>((float)x[(k + e) * W + w] * m[w], key[w], top + k + e) << e * (32 / E);
        }
    }
    if (job.record) record_max(g, job.record, bits_as<float>(largest));
    for (int n = 1; n < words; n *= 2) {
        for (int i = 0; i < words * W / 2; i++) {
            uint32_t low = from[i], high = from[words * W / 2 + i];
            to[2 * i] = low, to[2 * i + 1] = high;
        }
        uint32_t* swap = from;
        from = to, to = swap;
    }
    for (int w = 0; w < cols; w++)
        if (rows == W) memcpy(codes + w * row_bytes, from + w * words, 4 * words);
        else memcpy(codes + w * row_bytes, from + w * words, row_bytes - (size_t)top * 4 / E);
}
inline size_t runs(const char* name, size_t O, size_t K, int N) {
    size_t count = O * blocks(K, N);
    if (count > 4000000000) fail("%s: a matrix of %zu x %zu has %zu blocks; it takes up to 4e9", name, O, K, count);
    return (count + RUN - 1) / RUN;
}
template <const Format& F, bool SR, int N, class T, class Scale>
HD INLINE void cast_part(Lanes g, const Job<T>& job, const Scale& scale, int i, bool tiles) {
    ON_HOST(if (tiles) return cast_tile<F, SR, N>(g, job, scale, i);)
    cast_run<F, SR, N>(g, job, scale, i);
}
template <const Format& F, bool SR, int N, class T, class Scale>
void cast_as(const char* name, Job<T> job, Scale scale) {
    bool tiles = job.transpose && !machine.gpu && machine.kernels != Kernels::reference;
    job.row_bytes = code_bytes(F, code_ld(F, job.K()));
    if (job.row_bytes > code_bytes(F, job.K())) fill_zero(job.codes, job.O() * job.row_bytes);
    size_t count = tiles ? blocks(job.R, TILE) * blocks(job.C, TILE) : runs(name, job.O(), job.K(), N);
    for_rows(name, (double)job.R * job.C * (sizeof(T) + F.bits() / 8.0), count, [=] HD(Lanes g, int i) {
        cast_part<F, SR, N>(g, job, scale, i, tiles);
    });
}
template <int N, const Format&... Fs, class T, class Scale>
void cast_blocks(const char* name, Job<T> job, Scale scale, Cast c) {
    for_format<Fs...>(name, c.elem, [&]<const Format& F>() {
        c.round == Rounding::sr ? cast_as<F, true, N>(name, job, scale) : cast_as<F, false, N>(name, job, scale);
    });
}

// amax (blocks(O, b.rows), blocks(K, b.cols)), which lie as `at` says, NaN kept, of blocks of 1 x N or N x N, N 16 or
// 128: for casts that must know it before. A launch row takes h x 128 of x: down the columns, then pairwise across each w neighbours.
template <int W, class T> // a lane has W of the columns: 4, the host's all
HD INLINE void amax_strip(float* amax, size_t step, const T* x, int h, int w, int cols, size_t ld) {
    int first = W == STRIDE ? 0 : thread_index() % LANES * W;
    Bits<T> m[W];
    for (int i = 0; i < W; i++) m[i] = 0;
    for (int r = 0; r < h; r++)
        if (first + W <= cols)
            for (int i = 0; i < W; i++) m[i] = larger(m[i], x[r * ld + first + i], true);
        else
            for (int i = 0; i < W && first + i < cols; i++) m[i] = larger(m[i], x[r * ld + first + i], true);
    auto pairwise = [](Bits<T>* to, const Bits<T>* m, int n) __attribute__((always_inline)) {
        for (int i = 0; i < n; i++) to[i] = m[2 * i] > m[2 * i + 1] ? m[2 * i] : m[2 * i + 1];
    };
    int n = W, per = w; // n maxima are left, and each `per` of them make a block
    if (W == STRIDE && w > 1) {
        Bits<T> t[STRIDE / 2];
        pairwise(t, m, 64), pairwise(m, t, 32), pairwise(t, m, 16), pairwise(m, t, 8), n = 8, per /= 16;
    }
    for (; n > 1 && per > 1; n /= 2, per /= 2) pairwise(m, m, n / 2);
    for (int mask = 1; per > 1; mask *= 2, per /= 2) { // a block of a GPU's neighbouring lanes
        Bits<T> other = (Bits<T>)(bits_as<uint32_t>(shfl_xor(from_bits<T>(m[0]), mask)) >> (32 - 8 * sizeof(m[0])));
        m[0] = m[0] > other ? m[0] : other;
    }
    for (int i = 0; i < n && first % w == 0; i++)
        if (first + i * w < cols) amax[(first / w + i) * step] = from_bits<T>(m[i]);
}
template <class T> void amax_blocks(float* amax, Grid at, const T* x, Block b, bool transpose, int R, int C) {
    int h = transpose ? b.cols : b.rows, w = transpose ? b.rows : b.cols;
    size_t across = column_groups(C), down = transpose ? at.k : at.row, step = transpose ? at.row : at.k;
    for_rows("amax_blocks", (double)R * C * sizeof(T), blocks(R, h) * across, [=] HD(Lanes, int i) {
        int r = (int)(i / across), c = (int)(i % across) * STRIDE;
        int rows = R - r * h < h ? R - r * h : h, cols = C - c < STRIDE ? C - c : STRIDE;
        float* to = amax + r * down + c / w * step;
        const T* from = x + (size_t)r * h * C + c;
        on_device() ? amax_strip<4>(to, step, from, rows, w, cols, C)
                    : amax_strip<STRIDE>(to, step, from, rows, w, cols, C);
    });
}
// *amax becomes the larger of itself and max|x| over n elements, NaN left out.
template <class T> void amax_tensor(float* amax, const T* x, size_t n) {
    for_rows("amax_tensor", (double)n * sizeof(T), pieces(n), [=] HD(Lanes g, int i) {
        record_max(g, amax, (float)g.max(piece_size(n, i), Magnitude(), x + (size_t)i * PIECE));
    });
}

// --- the random Hadamard transform ----------------------------------------------------------------------------------
// y (16 blocks(R, 16), C) = x' = H x down each 16 rows, zeros below row R. H = Hadamard matrix * diag(sign) / 4 is
// orthogonal, so a GEMM of two operands that went through it contracts to the same sums; before the cast it spreads an
// outlier over its block. In FP32, then rounded to Y.
template <int W> HD INLINE void hadamard16(float (*v)[W]) {
    for (int i = 0; i < 16; i++)
        for (int w = 0; w < W; w++) v[i][w] = 0xd7e8 >> i & 1 ? -v[i][w] : v[i][w]; // + + + - + - - - - - - + - + - -
    for (int stride = 1; stride < 16; stride *= 2)
        for (int i = 0; i < 16; i++)
            for (int w = 0; w < W && !(i & stride); w++) {
                float a = v[i][w], b = v[i + stride][w];
                v[i][w] = a + b, v[i + stride][w] = a - b;
            }
}
template <int W, class Y, class T>
HD INLINE void hadamard_columns(Y* y, const T* x, int rows, int cols, size_t C) {
    float v[16][W];
    for (int i = 0; i < 16; i++)
        for (int w = 0; w < W; w++) v[i][w] = i < rows && w < cols ? (float)x[i * C + w] : 0.0f;
    hadamard16<W>(v);
    for (int i = 0; i < 16; i++)
        for (int w = 0; w < cols; w++) y[i * C + w] = Y(v[i][w] * 0.25f);
}
template <class Y, class T> void hadamard(Y* y, const T* x, int R, int C) {
    constexpr int W = 64;
    size_t groups = blocks(C, W);
    for_rows("hadamard", (double)R * C * (sizeof(Y) + sizeof(T)), blocks(R, 16) * groups, [=] HD(Lanes g, int j) {
        size_t r = j / groups * 16, c = j % groups * W, at = r * C + c;
        int rows = (int)(R - r), cols = (int)(C - c < W ? C - c : W);
        if (on_device())
            g.each(cols, [=](int i) { hadamard_columns<1>(y + at + i, x + at + i, rows, 1, C); });
        else
            hadamard_columns<W>(y + at, x + at, rows, cols, C);
    });
}
