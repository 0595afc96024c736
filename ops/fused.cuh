// A GPU's twin of "compute, then cast": one kernel makes the elements of an operand, in tiles of 64 x 64, and of each
// the BF16, if anybody reads it, the code, the transposed code, the amax of all, and the sums of columns. So of a tensor
// whose scale is known beforehand, which is what delayed scaling is for, BF16 never goes through memory: a byte or two
// are written for each element where the row functions write 2, read 2, write 1, read 1 and write 1. Bit-equal to them:
// the value is rounded to BF16 before it is cast, and columns are summed in panels of the same 64 rows.
#pragma once
#include "ops/ops.cuh"

#ifdef ULP_GPU
constexpr int SIDE = 64;
static_assert(SIDE == PANEL, "sums of columns add up as bias_backward's do");
struct TileMemory {
    uint32_t codes[SIDE][SIDE / 4 + 1]; // [column][4 rows]
    act values[SIDE][SIDE];
};
// Four neighbours of one of a tile's arrays; f may change those of an array that is not const.
template <class A> struct Four {
    using T = std::remove_const_t<A>;
    A* at;
    Pack<T> p = *(const Pack<T>*)at;
    DEVICE void store() const {
        if constexpr (!std::is_const_v<A>) *(Pack<T>*)at = p;
    }
};
DEVICE real& as_real(real& x) { return x; }
template <class T> DEVICE real as_real(const T& x) { return (real)x; }
// f(r, c, a[r][c], ..) for every r < R, c < C; out (R, C) is written if it is not null, and may be one of a.
template <class F, class... A> KERNEL void tile_kernel(act* out, Sink s, int R, int C, F f, A*... a) {
    auto& m = shared_memory<TileMemory>();
    int across = (C + SIDE - 1) / SIDE, t = thread_index();
    int r0 = block_index() / across * SIDE, c0 = block_index() % across * SIDE, i = t / 16 * 4, j = t % 16 * 4;
    float scale = s.scale ? *s.scale : 1;
    if (block_index() == 0 && t == 0) s.factors[0] = 1 / scale, s.factors[1] = scale;
    int c = c0 + j;
    uint32_t word[4] = {}, largest = 0;
    bool packs = C % 4 == 0 && packable(a...) && packable(out);
    for (int k = 0; k < 4; k++) { // a thread has 4 x 4 elements
        int r = r0 + i + k;
        size_t at = (size_t)r * C + c;
        Pack<act> v = {};
        if (r < R && c < C && packs) {
            auto row = [&](Four<A>... four) {
                for (int e = 0; e < 4; e++) v.v[e] = act(f(r, c + e, as_real(four.p.v[e])...));
                (four.store(), ...);
            };
            row(Four<A>{a + at}...);
            if (out) *(Pack<act>*)(out + at) = v;
        } else
            for (int e = 0; e < 4 && r < R && c + e < C; e++) {
                v.v[e] = act(f(r, c + e, as_real(a[at + e])...));
                if (out) out[at + e] = v.v[e];
            }
        for (int e = 0; e < 4; e++) {
            float x = (float)v.v[e];
            largest = larger(largest, x, false);
            word[k] |= s.code(x * scale) << 8 * e;
        }
        if (r < R && (size_t)c < s.ld) *(uint32_t*)(s.codes + r * s.ld + c) = word[k];
        if (s.sums) *(Pack<act>*)&m.values[i + k][j] = v;
    }
    if (s.amax) record_max(Lanes(), s.amax, bits_as<float>(largest));
    for (int e = 0; e < 4 && s.transposed; e++)
        m.codes[j + e][i / 4] = (word[0] >> 8 * e & 255) | (word[1] >> 8 * e & 255) << 8 |
                                (word[2] >> 8 * e & 255) << 16 | (word[3] >> 8 * e & 255) << 24;
    sync_threads();
    int column = t / 4, chunk = t % 4 * 16; // 16 codes of a column
    if (s.transposed && c0 + column < C && (size_t)r0 + chunk < s.ld_transposed) {
        struct alignas(16) { uint32_t v[4]; } four;
        for (int k = 0; k < 4; k++) four.v[k] = m.codes[column][chunk / 4 + k];
        *(decltype(four)*)(s.transposed + (c0 + column) * s.ld_transposed + r0 + chunk) = four;
    }
    if (s.sums && t < SIDE && c0 + t < C) {
        real sum = 0;
        for (int r = 0; r < SIDE && r0 + r < R; r++) sum += (real)m.values[r][t];
        s.partial[(size_t)(r0 / SIDE) * C + c0 + t] = sum;
    }
}
template <class F, class... A>
void in_tiles(const char* name, act* out, Sink s, int R, int C, F f, A*... a) {
    double written = (out ? sizeof(act) : 0) + 1.0 + (s.transposed ? 1 : 0);
    profiled(name, (double)R * C * (written + ((sizeof(A) * (std::is_const_v<A> ? 1 : 2)) + ... + 0)), 0, [&] {
        size_t grid = (size_t)((R + SIDE - 1) / SIDE) * ((C + SIDE - 1) / SIDE);
        launch(name, tile_kernel<F, A...>, grid, 256, sizeof(TileMemory), out, s, R, C, f, a...);
    });
    if (s.sums) add_panels(s.sums, s.partial, R, C);
}
#else
template <class... A> void in_tiles(A...) {} // nobody has a sink
#endif
