// Flash attention (Dao et al. 2022, Dao 2023): the definition in attention.cuh, tile by tile, so that S, P and dS never
// leave the registers. BF16 on tensor cores by mma.sync, FP32 sums, sm_80 and up. A block takes 128 rows of one head, a
// warp 32 of them (16 in the backward pass of large heads), and every fragment of the other operand that it loads
// serves all of its rows: with 16 rows an H100's shared memory would be the limit.
// - One barrier per tile: what it waits for is there for all, and the other buffer, of the tile before, has been read
//   by all, so that the next copies may start.
// - P is exp2(S c - top c), of the largest score so far, rounded to BF16 before it meets v and divided by its sum at
//   the end; the definition rounds after dividing. The relative error is the same.
// - Backward: two kernels, by queries (S, dP, dq) and by keys (S, dP, dv, dk). They multiply 7 times where one kernel
//   multiplies 5 times; but that one has to add dq up across blocks: by atomics, which is not deterministic, or from
//   (T, T) numbers written and read, 4 bytes per 10 HS operations, on an H100 at HS 64 as long again as half of all its
//   products. Here the traffic is that of q, k, v, o and do. S comes out transposed in the kernel by keys, so that in
//   both P and dS are left operands as they lie in the registers.
// - Rows beyond T and columns beyond the head's size are zeros in shared memory. Keys beyond T come after any query.
// - Heads are taken in groups whose k and v fit the L2 cache; in a group, tiles with most work go first.
// - No kernel spills (make ptxas), which is what thread_index_anew() is for.
// - With a Sink (fused.cuh) a block casts its tile, which lies in shared memory at the end anyway. Of o, which backward
//   reads in BF16, 2 bytes an element are then not read once more; of dqkv, which nobody else reads, 2 are not written
//   and 4 not read, by the cast and by the bias's gradient: per token and layer 20 of 30 C bytes.
#pragma once
#include "ops/fused.cuh"
#include "ops/heads.cuh"

// Rows have to be whole 16-byte chunks.
inline bool flash_serves(Heads d) {
    return std::is_same_v<act, bf16> && machine.gpu && machine.kernels == Kernels::fast && machine.tensor_cores && d.past == 0 &&
           d.HS % 8 == 0 && d.HS <= 128;
}
template <class... A> bool flash_aligned(const A*... a) { return (((uintptr_t)a % 16 == 0) && ...); }

#ifdef ULP_GPU
struct alignas(16) Chunk {
    bf16 x[8];
};
// ROWS rows of HS numbers in shared memory. Chunks of 16 bytes are permuted within a row, so that the same chunk of
// eight neighbouring rows lies in different banks.
template <int ROWS, int HS> struct Tile {
    static constexpr int MASK = HS % 64 ? 3 : 7; // of the bits of a chunk's number that are permuted
    alignas(128) bf16 x[ROWS * HS];
    DEVICE static int offset(int row, int chunk) {
        return row * HS + (chunk ^ ((MASK == 7 ? row : row / 2) & MASK)) * 8;
    }
    // `rows` (a multiple of 8) below and `chunks` (an even number) after a place in chunk 0 or 1
    DEVICE const bf16* after(int offset, int rows, int chunks) const {
        return x + (offset ^ (chunks & MASK) * 8) + rows * HS + (chunks & ~MASK) * 8;
    }
    // from rows in global memory, `there` of them, of hs numbers; the rest becomes zeros, and nothing is read for it
    template <int THREADS> DEVICE void copy(const bf16* from, int ld, int there, int hs) {
        constexpr int ACROSS = HS <= 32 ? 4 : HS <= 64 ? 8 : 16, DOWN = THREADS / ACROSS;
        const int i0 = thread_index_anew(), row0 = i0 / ACROSS, chunk = i0 % ACROSS;
        int mine = row0 * ld + chunk * 8;
        if (chunk < HS / 8)
            UNROLL for (int i = 0; i < ROWS / DOWN; i++) {
                int row = row0 + i * DOWN;
                bool real = row < there && chunk * 8 < hs;
                cp_async(x + offset(row, chunk), from + (mine + i * DOWN * ld), real ? 16 : 0);
            }
    }
    // A warp's rows of sums times factor(m, half), for row 16 m + 8 half + lane / 4, go through its rows of this tile,
    // which nobody else reads, and which ldmatrix reads for all lanes at once, to global memory: to the place (first,
    // column) of `to` (N, ld), if it is not null, and into the sink.
    template <int MT, class F>
    DEVICE void store(bf16* to, const Sink& s, size_t first, int column, int ld, int there, int hs, int row0,
                      const float (&sums)[MT][HS / 8][4], F factor) {
        const int l = thread_index_anew() % LANES, g = l / 4, t = l % 4;
        UNROLL for (int m = 0; m < MT; m++)
            UNROLL for (int half = 0; half < 2; half++)
                UNROLL for (int n = 0; n < HS / 8; n++) {
                    const float *s = sums[m][n] + half * 2, f = factor(m, half);
                    *(uint32_t*)(x + offset(row0 + m * 16 + half * 8 + g, n) + 2 * t) = pack_bf16(s[0] * f, s[1] * f);
                }
        sync_lanes();
        const float scale = s.scale ? *s.scale : 1;
        uint32_t largest = 0;
        for (int i = l; i < MT * 16 * HS / 8; i += LANES) {
            int row = row0 + i / (HS / 8), chunk = i % (HS / 8);
            if (row >= there || chunk * 8 >= hs) continue;
            const Chunk v = *(const Chunk*)(x + offset(row, chunk));
            if (to) *(Chunk*)(to + (first + row) * ld + column + chunk * 8) = v;
            if (!s.codes) continue;
            Pack<uint16_t> codes = {}; // by twos
            UNROLL for (int e = 0; e < 8; e++) {
                largest = larger(largest, (float)v.x[e], false);
                codes.v[e / 2] |= s.code((float)v.x[e] * scale) << e % 2 * 8;
            }
            *(Pack<uint16_t>*)(s.codes + (first + row) * s.ld + column + chunk * 8) = codes;
        }
        if (s.amax) record_max(Lanes(), s.amax, bits_as<float>(largest));
        if (s.codes && block_index() == 0 && thread_index() == 0) s.factors[0] = 1 / scale, s.factors[1] = scale;
        if (!s.transposed && !s.sums) return;
        sync_threads(); // a thread goes down a column of SIDE rows; there are sums only where all of these exist
        for (int i = thread_index(); i < ROWS / SIDE * HS; i += block_size()) {
            const int c = i % HS, top = i / HS * SIDE;
            const size_t at = (column + c) * s.ld_transposed + first;
            real sum = 0;
            for (int r = top; c < hs && r < top + SIDE && r < there; r += 16) {
                struct alignas(16) { uint32_t v[4]; } word = {};
                uint8_t* codes = s.transposed + at + r;
                UNROLL for (int k = 0; k < 16; k++) {
                    float v = (float)x[offset(r + k, c / 8) + c % 8];
                    sum += v, word.v[k / 4] |= s.code(v * scale) << k % 4 * 8;
                }
                if (!s.transposed) continue;
                if (r + 16 <= there && first % 16 == 0) *(decltype(word)*)codes = word;
                else
                    UNROLL for (int k = 0; k < 16; k++)
                        if (r + k < there) codes[k] = word.v[k / 4] >> k % 4 * 8 & 255;
            }
            if (s.sums && c < hs && top < there) s.partial[(first + top) / SIDE * ld + column + c] = sum;
        }
    }
};
// The left operand of a product over k: 16 MT rows, from registers or from rows of a tile.
template <int MT, int HS> struct Held {
    uint32_t r[HS / 16][MT][4];
    DEVICE void get(uint32_t (&f)[MT][4], int k) const {
        UNROLL for (int m = 0; m < MT; m++)
            UNROLL for (int i = 0; i < 4; i++) f[m][i] = r[k][m][i];
    }
};
template <int MT, int ROWS, int HS> struct Lying {
    Tile<ROWS, HS>& tile;
    int row0;
    DEVICE void get(uint32_t (&f)[MT][4], int k) const {
        int l = thread_index_anew() % LANES, mine = tile.offset(l % 16, l / 16);
        UNROLL for (int m = 0; m < MT; m++) ldmatrix(f[m], tile.after(mine, row0 + m * 16, 2 * k));
    }
};
template <int MT, int ROWS, int HS> DEVICE void hold(Held<MT, HS>& held, Tile<ROWS, HS>& tile, int row0) {
    UNROLL for (int k = 0; k < HS / 16; k++) Lying<MT, ROWS, HS>{tile, row0}.get(held.r[k], k);
}
// sums (16 MT, 8 NT) += a (16 MT, HS) times the 8 NT rows of b from row0 on, transposed
template <int MT, int NT, int ROWS, int HS, class A>
DEVICE void multiply_by_rows(float (&sums)[MT][NT][4], const A& a, Tile<ROWS, HS>& b, int row0) {
    int l = thread_index_anew() % LANES, mine = b.offset(l % 8 + l / 16 * 8, l / 8 % 2);
    UNROLL for (int k = 0; k < HS / 16; k++) {
        uint32_t fa[MT][4], fb[4];
        a.get(fa, k);
        UNROLL for (int n = 0; n < NT; n += 2) {
            ldmatrix(fb, b.after(mine, row0 + n * 8, 2 * k));
            UNROLL for (int m = 0; m < MT; m++) {
                mma_m16n8k16_bf16(sums[m][n], fa[m], fb[0], fb[1]);
                mma_m16n8k16_bf16(sums[m][n + 1], fa[m], fb[2], fb[3]);
            }
        }
    }
}
// sums (16 MT, HS) += a (16 MT, 8 NT), rounded to BF16, times the 8 NT rows of b from row0 on
template <int MT, int NT, int ROWS, int HS>
DEVICE void multiply_by_columns(float (&sums)[MT][HS / 8][4], const float (&a)[MT][NT][4], Tile<ROWS, HS>& b,
                                int row0) {
    int l = thread_index_anew() % LANES, mine = b.offset(l % 16, l / 16);
    UNROLL for (int k = 0; k < NT; k += 2) {
        uint32_t fa[MT][4], fb[4];
        UNROLL for (int m = 0; m < MT; m++) // where sums of a product lie is where a left operand is expected
            UNROLL for (int i = 0; i < 4; i++) {
                const float* two = a[m][k + i / 2] + i % 2 * 2;
                fa[m][i] = pack_bf16(two[0], two[1]);
            }
        UNROLL for (int n = 0; n < HS / 8; n += 2) {
            ldmatrix_transposed(fb, b.after(mine, row0 + k * 8, n));
            UNROLL for (int m = 0; m < MT; m++) {
                mma_m16n8k16_bf16(sums[m][n], fa[m], fb[0], fb[1]);
                mma_m16n8k16_bf16(sums[m][n + 1], fa[m], fb[2], fb[3]);
            }
        }
    }
}
template <int MT, int NT, class F> DEVICE void fill(float (&x)[MT][NT][4], F f) { // f(m, n, i)
    UNROLL for (int n = 0; n < NT; n++)
        UNROLL for (int m = 0; m < MT; m++)
            UNROLL for (int i = 0; i < 4; i++) x[m][n][i] = f(m, n, i);
}

constexpr int ROWS = 128; // of a block
constexpr float LOG2E = 1.44269504f;
struct FlashGrid {
    int heads, tiles, group;
    DEVICE Heads::Row block(Heads d, bool last_first) const { // the first row of this block
        int i = block_index(), from = i / (group * tiles) * group, n = heads - from < group ? heads - from : group;
        int head = from + (i - from * tiles) % n, tile = (i - from * tiles) / n;
        if (last_first) tile = tiles - 1 - tile;
        return {(size_t)(head / d.NH), (size_t)(head % d.NH), (size_t)tile * ROWS};
    }
};

template <int HS> struct ForwardTiles {
    static constexpr int KEYS = 64, PART = HS <= 64 ? 64 : 32;
    Tile<ROWS, HS> q;
    Tile<KEYS, HS> k[2], v[2];
};
template <int HS> KERNEL BOUNDS(128, HS <= 64 ? 2 : 1) void flash_forward_kernel(
    bf16* o, Sink sink, float* lse, const bf16* qkv, Heads d, FlashGrid grid) {
    constexpr int MT = 2, KEYS = ForwardTiles<HS>::KEYS, PART = ForwardTiles<HS>::PART, THREADS = 128;
    auto& s = shared_memory<ForwardTiles<HS>>();
    Heads::Row row = grid.block(d, true), key0 = {row.b, row.h, 0};
    const int q0 = (int)row.t, row0 = thread_index() / LANES * MT * 16, first = q0 + row0; // query of this warp
    const int g = lane_index() / 4, t = lane_index() % 4, there = d.T - q0, keys = there < ROWS ? d.T : q0 + ROWS;
    const int C = d.NH * d.HS, ld = 3 * C;
    const float c = d.scale() * LOG2E;
    const bf16* k = qkv + d.k(key0);

    s.q.template copy<THREADS>(qkv + d.q(row), ld, there, d.HS);
    s.k[0].template copy<THREADS>(k, ld, keys, d.HS), s.v[0].template copy<THREADS>(k + C, ld, keys, d.HS);
    cp_async_commit();
    Held<MT, HS> q;
    float sums[MT][HS / 8][4] = {}, top[MT][2], sum[MT][2] = {};
    for (auto& two : top) two[0] = two[1] = -INFINITY;
    ROLLED for (int k0 = 0, buffer = 0; k0 < keys; k0 += KEYS, buffer ^= 1) {
        cp_async_wait<0>();
        sync_threads();
        if (k0 + KEYS < keys) {
            k += KEYS * ld;
            s.k[buffer ^ 1].template copy<THREADS>(k, ld, keys - k0 - KEYS, d.HS);
            s.v[buffer ^ 1].template copy<THREADS>(k + C, ld, keys - k0 - KEYS, d.HS);
            cp_async_commit();
        }
        if constexpr (HS <= 64)
            if (k0 == 0) hold(q, s.q, row0);
        // the keys beyond are later than all of this warp's queries
        ROLLED for (int from = 0; from < KEYS && k0 + from < first + MT * 16; from += PART) {
            float p[MT][PART / 8][4] = {}, shrink[MT][2];
            if constexpr (HS <= 64) multiply_by_rows(p, q, s.k[buffer], from);
            else multiply_by_rows(p, Lying<MT, ROWS, HS>{s.q, row0}, s.k[buffer], from);
            if (k0 + from + PART - 1 > first)
                fill(p, [&](int m, int n, int i) {
                    bool later = k0 + from + n * 8 + 2 * t + i % 2 > first + m * 16 + i / 2 * 8 + g;
                    return later ? -INFINITY : p[m][n][i];
                });
            bool grown = false;
            UNROLL for (int m = 0; m < MT; m++)
                UNROLL for (int half = 0; half < 2; half++) {
                    float most = top[m][half], part = 0;
                    UNROLL for (int n = 0; n < PART / 8; n++)
                        most = fmaxf(most, fmaxf(p[m][n][half * 2], p[m][n][half * 2 + 1]));
                    most = fmaxf(most, shfl_xor(most, 1)), most = fmaxf(most, shfl_xor(most, 2));
                    UNROLL for (int n = 0; n < PART / 8; n++)
                        UNROLL for (int i = half * 2; i < half * 2 + 2; i++)
                            p[m][n][i] = exp2_approx(fmaf(p[m][n][i], c, -most * c)), part += p[m][n][i];
                    shrink[m][half] = exp2_approx((top[m][half] - most) * c);
                    sum[m][half] = fmaf(sum[m][half], shrink[m][half], part);
                    grown |= !(top[m][half] == most), top[m][half] = most;
                }
            if (vote(grown)) // else all factors are 1
                fill(sums, [&](int m, int n, int i) { return sums[m][n][i] * shrink[m][i / 2]; });
            multiply_by_columns(sums, p, s.v[buffer], from);
        }
    }
    UNROLL for (int m = 0; m < MT; m++)
        UNROLL for (int half = 0; half < 2; half++) {
            float& all = sum[m][half];
            all += shfl_xor(all, 1), all += shfl_xor(all, 2);
            int r = row0 + m * 16 + half * 8 + g;
            if (t == 0 && r < there)
                lse[(row.b * d.NH + row.h) * d.T + q0 + r] = top[m][half] * d.scale() + log_(all);
            all = 1 / all;
        }
    s.q.store(o, sink, row.b * d.T + q0, (int)row.h * d.HS, C, there, d.HS, row0, sums,
              [&](int m, int half) { return sum[m][half]; });
}

template <int HS> struct QueryTiles {
    static constexpr int MT = HS <= 64 ? 2 : 1, THREADS = ROWS / MT * 2, KEYS = HS <= 64 ? 64 : 32;
    Tile<ROWS, HS> q, dout;
    Tile<KEYS, HS> k[2], v[2];
};
// dq, and D = do . o of each query for the kernel by keys
template <int HS> KERNEL BOUNDS(QueryTiles<HS>::THREADS, HS <= 64 ? 2 : 1) void flash_backward_queries_kernel(
    bf16* dqkv, Sink sink, float* D, const bf16* dout, const bf16* qkv, const bf16* o, const float* lse, Heads d,
    FlashGrid grid) {
    using Tiles = QueryTiles<HS>;
    constexpr int MT = Tiles::MT, KEYS = Tiles::KEYS, THREADS = Tiles::THREADS;
    auto& s = shared_memory<Tiles>();
    Heads::Row row = grid.block(d, true), key0 = {row.b, row.h, 0};
    const int q0 = (int)row.t, row0 = thread_index() / LANES * MT * 16, first = q0 + row0;
    const int g = lane_index() / 4, t = lane_index() % 4, there = d.T - q0, keys = there < ROWS ? d.T : q0 + ROWS;
    const int C = d.NH * d.HS, ld = 3 * C;
    const size_t at = (row.b * d.NH + row.h) * d.T + q0, q_at = d.q(row), o_at = d.o(row);
    const int token0 = (int)row.b * d.T, in_row = (int)row.h * d.HS;
    const float c = d.scale() * LOG2E;
    const bf16* k = qkv + d.k(key0);

    s.q.template copy<THREADS>(qkv + q_at, ld, there, d.HS);
    s.dout.template copy<THREADS>(dout + o_at, C, there, d.HS);
    s.k[0].template copy<THREADS>(k, ld, keys, d.HS), s.v[0].template copy<THREADS>(k + C, ld, keys, d.HS);
    cp_async_commit();
    float minus_D[MT][2], minus_lse[MT][2];
    UNROLL for (int m = 0; m < MT; m++)
        UNROLL for (int half = 0; half < 2; half++) {
            int r = row0 + m * 16 + half * 8 + g;
            float dot = 0;
            for (int chunk = t; chunk * 8 < d.HS && r < there; chunk += 4) {
                size_t i = o_at + r * C + chunk * 8;
                Chunk a = *(const Chunk*)(dout + i), b = *(const Chunk*)(o + i);
                UNROLL for (int j = 0; j < 8; j++) dot = fmaf((float)a.x[j], (float)b.x[j], dot);
            }
            dot += shfl_xor(dot, 1), dot += shfl_xor(dot, 2);
            if (t == 0 && r < there) D[at + r] = dot;
            minus_D[m][half] = -dot, minus_lse[m][half] = r < there ? -lse[at + r] * LOG2E : 0;
        }
    Held<MT, HS> q, dy;
    float dq[MT][HS / 8][4] = {};
    ROLLED for (int k0 = 0, buffer = 0; k0 < keys; k0 += KEYS, buffer ^= 1) {
        cp_async_wait<0>();
        sync_threads();
        if (k0 == 0) hold(q, s.q, row0), hold(dy, s.dout, row0);
        if (k0 + KEYS < keys) {
            k += KEYS * ld;
            s.k[buffer ^ 1].template copy<THREADS>(k, ld, keys - k0 - KEYS, d.HS);
            s.v[buffer ^ 1].template copy<THREADS>(k + C, ld, keys - k0 - KEYS, d.HS);
            cp_async_commit();
        }
        ROLLED for (int from = 0; from < KEYS && k0 + from < first + MT * 16; from += 32) {
            float p[MT][4][4] = {}, dp[MT][4][4];
            fill(dp, [&](int m, int, int i) { return minus_D[m][i / 2]; });
            multiply_by_rows(p, q, s.k[buffer], from);
            multiply_by_rows(dp, dy, s.v[buffer], from);
            if (k0 + from + 31 > first) {
                const int l = thread_index_anew() % LANES;
                fill(p, [&](int m, int n, int i) {
                    bool later = k0 + from + n * 8 + 2 * (l % 4) + i % 2 > first + m * 16 + i / 2 * 8 + l / 4;
                    return later ? -INFINITY : p[m][n][i];
                });
            }
            fill(p, [&](int m, int n, int i) {
                return exp2_approx(fmaf(p[m][n][i], c, minus_lse[m][i / 2])) * dp[m][n][i];
            });
            multiply_by_columns(dq, p, s.k[buffer], from);
        }
    }
    const float scale = d.scale(); // of dS, left out before
    const int mine = thread_index_anew() / LANES * MT * 16, top = first - mine; // row0 and q0 once more
    s.q.store(dqkv, sink, token0 + top, in_row, ld, d.T - top, d.HS, mine, dq, [=](int, int) { return scale; });
}

template <int HS> struct KeyTiles {
    static constexpr int MT = HS <= 64 ? 2 : 1, THREADS = ROWS / MT * 2, QUERIES = HS <= 64 ? 64 : 32;
    Tile<ROWS, HS> k, v;
    Tile<QUERIES, HS> q[2], dout[2];
    float lse[2][QUERIES], D[2][QUERIES];
};
template <int HS> KERNEL BOUNDS(KeyTiles<HS>::THREADS, HS <= 64 ? 2 : 1) void flash_backward_keys_kernel(
    bf16* dqkv, Sink sink, const bf16* dout, const bf16* qkv, const float* lse, const float* D, Heads d,
    FlashGrid grid) {
    using Tiles = KeyTiles<HS>;
    constexpr int MT = Tiles::MT, QUERIES = Tiles::QUERIES, THREADS = Tiles::THREADS;
    auto& s = shared_memory<Tiles>();
    Heads::Row row = grid.block(d, false);
    const int j0 = (int)row.t, row0 = thread_index() / LANES * MT * 16, first = j0 + row0; // key of this warp
    const int there = d.T - j0, C = d.NH * d.HS, ld = 3 * C;
    // 32 bits each, and addresses made of them again for each tile: registers are scarce
    const int token0 = (int)row.b * d.T, in_row = (int)row.h * d.HS, at = ((int)row.b * d.NH + (int)row.h) * d.T;
    const float c = d.scale() * LOG2E;

    const auto k_at = [&] { return (size_t)(token0 + j0) * ld + in_row + C; };
    s.k.template copy<THREADS>(qkv + k_at(), ld, there, d.HS);
    s.v.template copy<THREADS>(qkv + k_at() + C, ld, there, d.HS);
    auto copy_queries = [&](int buffer, int q0) {
        const bf16 *q = qkv + (size_t)(token0 + q0) * ld + in_row, *dy = dout + (size_t)(token0 + q0) * C + in_row;
        s.q[buffer].template copy<THREADS>(q, ld, d.T - q0, d.HS);
        s.dout[buffer].template copy<THREADS>(dy, C, d.T - q0, d.HS);
        if (int i = thread_index_anew(); i < QUERIES) {
            int bytes = q0 + i < d.T ? 4 : 0;
            cp_async<4>(&s.lse[buffer][i], lse + at + q0 + i, bytes);
            cp_async<4>(&s.D[buffer][i], D + at + q0 + i, bytes);
        }
        cp_async_commit();
    };
    copy_queries(0, j0);
    float dk[MT][HS / 8][4] = {}, dv[MT][HS / 8][4] = {};
    ROLLED for (int q0 = j0, buffer = 0; q0 < d.T; q0 += QUERIES, buffer ^= 1) {
        cp_async_wait<0>();
        sync_threads();
        if (q0 + QUERIES < d.T) copy_queries(buffer ^ 1, q0 + QUERIES);
        ROLLED for (int from = 0; from < QUERIES; from += 32) {
            if (q0 + from + 31 < first) continue; // all queries are earlier than this warp's keys
            const int l = thread_index_anew() % LANES, g = l / 4, t = l % 4;
            float p[MT][4][4] = {}, ds[MT][4][4]; // (keys, queries)
            multiply_by_rows(p, Lying<MT, ROWS, HS>{s.k, row0}, s.q[buffer], from);
            if (q0 + from < first + MT * 16 - 1)
                fill(p, [&](int m, int n, int i) {
                    bool later = first + m * 16 + i / 2 * 8 + g > q0 + from + n * 8 + 2 * t + i % 2;
                    return later ? -INFINITY : p[m][n][i];
                });
            fill(ds, [](int, int, int) { return 0; });
            multiply_by_rows(ds, Lying<MT, ROWS, HS>{s.v, row0}, s.dout[buffer], from);
            fill(p, [&](int m, int n, int i) {
                int query = from + n * 8 + 2 * t + i % 2;
                float e = exp2_approx(fmaf(p[m][n][i], c, -s.lse[buffer][query] * LOG2E));
                ds[m][n][i] = e * (ds[m][n][i] - s.D[buffer][query]);
                return e;
            });
            multiply_by_columns(dv, p, s.dout[buffer], from);
            multiply_by_columns(dk, ds, s.q[buffer], from);
        }
    }
    const float scale = d.scale();
    s.k.store(dqkv, sink, token0 + j0, C + in_row, ld, there, d.HS, row0, dk, [=](int, int) { return scale; });
    s.v.store(dqkv, sink, token0 + j0, 2 * C + in_row, ld, there, d.HS, row0, dv, [](int, int) { return 1.0f; });
}

// --- launchers ---------------------------------------------------------------------------------------------------
static_assert(sizeof(QueryTiles<128>) <= 99 * 1024 && sizeof(KeyTiles<128>) <= 99 * 1024); // sm_89's and sm_120's
template <class Go> void for_head_size(int hs, Go go) { // zeros fill it up
    if (hs <= 32) go(std::integral_constant<int, 32>());
    else if (hs <= 64) go(std::integral_constant<int, 64>());
    else if (hs <= 96) go(std::integral_constant<int, 96>());
    else go(std::integral_constant<int, 128>());
}
inline FlashGrid flash_grid(Heads d) {
    int tiles = (d.T + ROWS - 1) / ROWS;
    double fit = 16e6 / (4.0 * d.T * d.HS);
    return {d.B * d.NH, tiles, fit < 1 ? 1 : fit > d.B * d.NH ? d.B * d.NH : (int)fit};
}
// go(out or null, sink) has blocks fill `out` (N, C) and the sink, of which it leaves the ends of rows and the sums.
template <class Go> void flash_into(bf16* out, Sink s, int N, int C, Heads d, Go go) {
    if (s.codes && s.ld > (size_t)C) fill_zero(s.codes, N * s.ld);
    if (s.transposed && s.ld_transposed > (size_t)N) fill_zero(s.transposed, C * s.ld_transposed);
    real* sums = s.sums;
    bool fit = d.T % PANEL == 0; // panels into blocks; else they are summed afterwards
    if (sums && !fit) s.sums = nullptr, s.keeps = true;
    go(s.writes() ? out : nullptr, s);
    if (sums) fit ? add_panels(sums, s.partial, N, C) : bias_backward(sums, (const act*)out, s.partial, N, C);
}
inline void flash_forward(bf16* o, float* lse, const bf16* qkv, Heads d, Sink sink = {}) {
    FlashGrid g = flash_grid(d);
    for_head_size(d.HS, [&](auto hs) {
        flash_into(o, sink, d.B * d.T, (int)d.C(), d, [&](bf16* o, Sink s) {
            launch("attention", flash_forward_kernel<hs>, (size_t)g.heads * g.tiles, 128, sizeof(ForwardTiles<hs>), o,
                   s, lse, qkv, d, g);
        });
    });
}
// D: d.rows() floats of scratch
inline void flash_backward(bf16* dqkv, float* D, const bf16* dout, const bf16* qkv, const bf16* o, const float* lse,
                           Heads d, Sink sink = {}) {
    FlashGrid g = flash_grid(d);
    size_t blocks = (size_t)g.heads * g.tiles;
    for_head_size(d.HS, [&](auto hs) {
        using Queries = QueryTiles<hs>;
        using Keys = KeyTiles<hs>;
        flash_into(dqkv, sink, d.B * d.T, 3 * (int)d.C(), d, [&](bf16* dqkv, Sink s) {
            launch("attention_backward", flash_backward_queries_kernel<hs>, blocks, Queries::THREADS, sizeof(Queries),
                   dqkv, s, D, dout, qkv, o, lse, d, g);
            launch("attention_backward", flash_backward_keys_kernel<hs>, blocks, Keys::THREADS, sizeof(Keys), dqkv, s,
                   dout, qkv, lse, D, d, g);
        });
    });
}
#endif
