// Recipes: which number format each operand of a linear layer is stored in, and how it is scaled. A linear layer
// y = x w^T is three GEMMs, and each asks quantize() for the copies of its two operands:
//
//     fprop  y  = x  w^T   contracts over input channels
//     dgrad  dx = dy w     contracts over output channels
//     wgrad  dw = dy^T x   contracts over tokens
//
// Adding a recipe is adding a row to this table. Every column is also a key on the command line, hybrid:margin=1
// (lab/keys.cuh).
#pragma once
#include "ops/matmul.cuh"
#include "ops/ops.cuh"
#include <array>
#include <functional>
#include <vector>

enum class Algo { max, most_recent };
struct Jump { int log2 = 0, step = 0, count = 0; }; // by 2^log2, in `count` steps from `step` on

struct Recipe {
    std::string name;
    Cast x, w, dy; // of the input, the weight, the gradient of the output; {} leaves it in BF16
    std::string about;
    int amax_history_len = 1024;                   // delayed scaling: observations in the window,
    Algo amax_compute_algo = Algo::max;            // what of the window counts,
    int margin = 0;                                // powers of two left free above it
    bool fprop = true, dgrad = true, wgrad = true; // false: that GEMM takes BF16 operands
    bool fast_accum = true;                        // of fprop, on Hopper's FP8 tensor cores
    std::string skip = "";                         // layers left in BF16, besides those of --skip
    double lr = 0, loss_scale = 1;                 // lr 0: --lr's
    Accum accum = {};                              // with --kernels reference
    // For experiments; docs/experiments shows what they teach.
    double init_scale = 1; // what the initial weights of rank 2 are multiplied by
    int nudge = 0;         // ulps of BF16 that wte[0][0] is moved by before step 1: as small as a difference can be
    double outlier = 1;    // channel 0 of LayerNorms' outputs is so much larger, and the weights that read it smaller
    Jump jump = {};        // LayerNorms' outputs jump for a while, and the GEMMs that read them divide it out
    int forget = 0;        // before this step delayed scales and histories are lost, as in a resume without them
};

inline const auto recipes = [] {
    using enum Scaling;
    using enum ScaleRule;
    using enum Rounding;
    constexpr Block row16{1, 16}, row32{1, 32}, row128{1, 128}, tile16{16, 16}, tile128{128, 128};
    constexpr bool pow2 = true, rht = true;
    return std::to_array<Recipe>({
//   name         format scaling, block    (MX's rule, rounding, power-of-two scales, Hadamard transform)
    {"bf16",      {}, {}, {}, "nothing is cast: operands as they are"},
    {"hybrid",    /*x*/ {E4M3, delayed}, /*w*/ {E4M3, delayed}, /*dy*/ {E5M2, delayed},
                  "one scale per tensor, from the amaxes of earlier steps; TransformerEngine DelayedScaling, HYBRID"},
    {"e4m3",      {E4M3, delayed}, {E4M3, delayed}, {E4M3, delayed},
                  "hybrid with E4M3 gradients; TransformerEngine DelayedScaling, E4M3"},
    {"current",   {E4M3, current}, {E4M3, current}, {E5M2, current},
                  "one scale per tensor, from its own amax, a pass more; TransformerEngine Float8CurrentScaling"},
    {"blockwise", {E4M3, blockwise, row128, rceil, rne, pow2}, {E4M3, blockwise, tile128, rceil, rne, pow2},
                  {E4M3, blockwise, row128, rceil, rne, pow2},
                  "an FP32 scale per 128, weights per 128 x 128; DeepSeek-V3, TransformerEngine Float8BlockScaling"},
    {"mxfp8",     {E4M3, mx, row32}, {E4M3, mx, row32}, {E4M3, mx, row32},
                  "an E8M0 scale per 32; OCP MX v1.0, TransformerEngine MXFP8BlockScaling"},
    {"mxfp6",     {E2M3, mx, row32}, {E2M3, mx, row32}, {E3M2, mx, row32},
                  "an E8M0 scale per 32; OCP MX v1.0; the choice of formats is ours"},
    {"mxfp4",     {E2M1, mx, row32}, {E2M1, mx, row32}, {E2M1, mx, row32},
                  "an E8M0 scale per 32; OCP MX v1.0; plain, to nearest, which is ours"},
    {"nvfp4",     {E2M1, nvfp4, row16, rceil, rne, false, rht}, {E2M1, nvfp4, tile16},
                  {E2M1, nvfp4, row16, rceil, sr, false, rht},
                  "an E4M3 scale per 16, w per 16 x 16, below one per tensor; TransformerEngine NVFP4BlockScaling"},
    {"unit",      {E4M3, unit}, {E4M3, unit}, {E5M2, unit}, "hybrid's formats without any scale: what scales are for"},
    });
}();

// What there is to know of a way of scaling, once; the cast of each is in cast_copy().
struct ScalingKind {
    const char* name;
    Elem scales;      // of a block's scale; f32 and no block: one scale for the tensor
    Block block;      // the usual one
    const char* takes; // element formats
    const char* blocks;
};
constexpr ScalingKind scaling_kinds[] = { // in the order of enum Scaling
    {"none", Elem::f32, {0, 0}, "bf16", ""},
    {"unit", Elem::f32, {0, 0}, "e4m3 e5m2 e3m2 e2m3 e2m1", "0x0"},
    {"delayed", Elem::f32, {0, 0}, "e4m3 e5m2 e3m2 e2m3 e2m1", "0x0"},
    {"current", Elem::f32, {0, 0}, "e4m3 e5m2 e3m2 e2m3 e2m1", "0x0"},
    {"blockwise", Elem::f32, {1, 128}, "e4m3 e5m2", "1x128 128x128"},
    {"mx", Elem::e8m0, {1, 32}, "e4m3 e5m2 e3m2 e2m3 e2m1", "1x32"},
    {"nvfp4", Elem::e4m3, {1, 16}, "e2m1", "1x16 16x16"},
};
inline const ScalingKind& kind_of(const Cast& c) { return scaling_kinds[(int)c.scaling]; }
inline bool is_quantized(const Cast& c) { return c.scaling != Scaling::none; }
inline bool is_per_tensor(const Cast& c) { return is_quantized(c) && c.block.cols == 0; }

template <class R> auto casts_of(R& r) { // "x" and its cast, "w", "dy"
    return std::array{std::pair("x", &r.x), std::pair("w", &r.w), std::pair("dy", &r.dy)};
}
inline bool any_cast(const Recipe& r, bool (*test)(const Cast&)) { return test(r.x) || test(r.w) || test(r.dy); }
inline bool any_quantized(const Recipe& r) { return any_cast(r, is_quantized); }
inline bool any_delayed(const Recipe& r) {
    return any_cast(r, [](const Cast& c) { return c.scaling == Scaling::delayed; });
}

// --- 2. delayed scaling: a scale from what earlier casts saw -------------------------------------------------------
// One per operand, on the device: casts read `scale` and raise `last`; update_scales() moves `last` into the window.
struct alignas(16) Delayed { // cuBLASLt wants scales 16 bytes apart
    float scale;
    float last;   // the largest amax recorded since the last update
    float max;    // what amax is scaled to: the format's max * 2^-margin, in FP32
    int position; // in its ring of the history, where the next observation goes
};

// The largest of the last L entries of a ring of `capacity` that continues at `position`.
HD INLINE float window_max(Lanes g, const float* ring, int capacity, int position, int L) {
    int older = L > position ? L - position : 0; // of the window, at the ring's far end
    auto itself = [](real x) { return x; };
    real near = g.max(L - older, itself, ring + position - (L - older));
    real far = g.max(older, itself, ring + capacity - older);
    return (float)(near > far ? near : far);
}
// An operand's next scale (TransformerEngine's amax_and_scale_update): nothing recorded, nothing changes; otherwise the
// observation enters the window, and the scale follows. again: it follows once more, from what the window holds, because
// L, algo or max are others now.
HD INLINE void update_scale(Lanes g, Delayed* state, float* ring, int capacity, int L, Algo algo, bool again) {
    Delayed d = *state;
    if (d.last == 0 && !again) return;
    g.sync();
    if (g.first() && !again) ring[d.position] = d.last;
    g.sync();
    int end = again ? d.position : d.position + 1;
    float amax = window_max(g, ring, capacity, end, algo == Algo::most_recent ? 1 : L);
    if (g.first()) *state = {scale_for(d.max, amax, d.scale), 0, d.max, end < capacity ? end : 0};
}
// The same for each of `count` operands. history (count, capacity), capacity >= L
void update_scales(Delayed* state, float* history, int count, int capacity, int L, Algo algo, bool again = false);

// --- 3. an operand and its copies ----------------------------------------------------------------------------------
// What every cast of a run shares.
struct Pass {
    bool training = false; // amaxes are recorded, and a backward pass will want its copies
    uint64_t seed = 0, step = 0, micro = 0;
};
inline const Pass inference = {};
// A GEMM contracts along an operand's columns (each row is a vector) or along its rows. x: cols in fprop, rows in
// wgrad; w: cols in fprop, rows in dgrad; dy: cols in dgrad, rows in wgrad.
enum class Along { cols, rows };

struct Copy {
    uint8_t* codes;  // contiguous along the contraction
    uint8_t* scales; // of blocks, bytes or FP32
    float* amaxes;   // of blocks, while they are cast
    struct Factors { float scale_inv, scale, amax, unused; } *factors; // of the tensor; travels with the codes
};
struct CopyBytes { size_t codes = 0, scales = 0, amaxes = 0; };
inline CopyBytes largest(CopyBytes a, CopyBytes b) {
    return {std::max(a.codes, b.codes), std::max(a.scales, b.scales), std::max(a.amaxes, b.amaxes)};
}

// How one operand of one linear is stored: the cast that the present stage of its arm asks for, and where copies lie.
struct Quantizer {
    Cast cast;
    bool quantized[2] = {false, false}; // for the GEMM that contracts along cols, rows
    bool filled = false;                // the copies hold what the operand holds
    bool frozen = false;                // cast and copies came from a file: no stage and no pass changes them
    bool fresh = false;                 // of a weight: the update filled them, for the first forward pass in training
    Copy copies[2] = {};
    act* transformed = nullptr;         // scratch for the Hadamard transform: contraction(rows) x cols
    Delayed* delayed = nullptr;         // if some stage is delayed
    const Pass* pass = &inference;
    int index = 0;                      // names it in stochastic rounding
    std::function<void(const struct Tensor&)> watch; // called when the copies have been made

    struct { bool delayed = false, kept[2] = {}; CopyBytes bytes[2]; } plan; // the most of any stage; not kept: scratch

    bool is_cast() const { return quantized[0] || quantized[1]; } // for some GEMM
    // One scale for all: one cast serves both GEMMs, by strides, which half a byte has not, or in a transposed copy.
    bool shares() const { return is_per_tensor(cast) && cast.elem.bits() > 4; }
    bool strides() const { return shares() && !machine.layout.transposes; }
    bool needs(Along k, bool backward) const {
        bool along_rows = quantized[1] && backward;
        return k == Along::cols ? quantized[0] || (along_rows && shares()) : along_rows && !strides();
    }
    bool transforms() const { return cast.rht && quantized[1]; }
    int contraction(int rows) const { return transforms() ? (rows + 15) / 16 * 16 : rows; } // of the copy along rows
    CopyBytes bytes(Along k, size_t rows, size_t cols) const {
        size_t O = k == Along::cols ? rows : cols, K = k == Along::cols ? cols : contraction((int)rows);
        size_t codes = O * code_bytes(cast.elem, code_ld(cast.elem, K));
        if (is_per_tensor(cast)) return {codes};
        size_t KB = blocks(K, cast.block.cols), tiles = blocks(O, cast.block.rows) * KB;
        Grid floats = scale_grid(cast.block, O, KB);
        if (kind_of(cast).scales == Elem::f32) return {codes, 4 * floats.lines * floats.length};
        return {codes, scale_bytes(O, KB), 4 * tiles};
    }
};

// A GEMM operand, (rows, cols) row-major, and how it is to be stored.
struct Tensor {
    const act* data;
    int rows, cols;
    Quantizer* quantizer;
};

// A copy as a GEMM reads it.
inline Operand operand_of(const Tensor& t, Along k) {
    const Quantizer& q = *t.quantizer;
    const Cast& c = q.cast;
    bool strided = k == Along::rows && q.strides();
    const Copy& copy = q.copies[strided ? 0 : (int)k];
    size_t K = k == Along::cols || strided ? t.cols : q.contraction(t.rows);
    Operand o = codes_of(copy.codes, c.elem, !strided, code_ld(c.elem, K));
    o.factor = &q.copies[q.shares() ? 0 : (int)k].factors->scale_inv;
    if (c.block.cols == 0) return o;
    o.scales = copy.scales, o.scale_elem = kind_of(c).scales;
    o.ld_scales = blocks(K, c.block.cols), o.block = c.block.cols, o.swizzled = machine.layout.tiled;
    bool bytes = o.scale_elem != Elem::f32; // one for each row, of tiles too
    o.scale_rows = bytes ? 1 : c.block.rows, o.scale_values = bytes ? values_of(o.scale_elem).floats : nullptr;
    o.factor = c.scaling == Scaling::nvfp4 ? &copy.factors->amax : nullptr;
    o.swizzled &= bytes, o.exact = bytes || c.pow2_scales;
    Grid floats = scale_grid(c.block, k == Along::cols ? t.rows : t.cols, o.ld_scales);
    if (!bytes) o.ld_scales = floats.row, o.scale_step = floats.k;
    return o;
}

// What a cast did to `count` rows of an operand (rows, C) from `first` on: of each, SUMS numbers, those that measure() in
// lab/diagnostics.cuh adds up; scratch: 3 * count * C floats.
constexpr int SUMS = 8;
void measure_rows(float* sums, float* scratch, const Operand& copy, const Operand& source, const Copy::Factors& factors,
                  float max, int first, int count, int C);
// counts (R): how many elements of each row of x (R, C), times *scale, lie beyond +-max
void count_beyond(real* counts, const act* x, const float* scale, float max, int R, int C);

// --- 4. quantize() -------------------------------------------------------------------------------------------------
// f's scale and scale_inv: *scale, or where it is null, what brings f's amax to max, or 1
void set_factors(Copy::Factors* f, const float* scale, float max, bool pow2);
inline void amax_scale(Copy::Factors* f, const act* x, size_t n, const Cast& c) { // current scaling
    fill_zero(&f->amax, sizeof f->amax);
    amax_tensor(&f->amax, x, n);
    set_factors(f, nullptr, c.elem.max, c.pow2_scales);
}
// One copy of t, cast from its source. The only place that asks how a recipe scales.
inline void cast_copy(const Tensor& t, Along k) {
    Quantizer& q = *t.quantizer;
    Cast c = q.cast;
    Copy& to = q.copies[(int)k];
    const act* x = t.data;
    bool transpose = k == Along::rows;
    int R = t.rows, C = t.cols;
    uint64_t key = draw_key(q.pass->seed, q.pass->step, q.pass->micro, q.index, (int)k);
    if (transpose && q.shares()) return transpose_codes(to.codes, q.copies[0].codes, c.elem, R, C);
    if (q.transforms() && transpose) hadamard(q.transformed, t.data, R, C), x = q.transformed, R = q.contraction(R);
    Copy::Factors* f = to.factors;
    switch (c.scaling) {
    case Scaling::none: break;
    case Scaling::unit:
        set_factors(f, nullptr, 0, false);
        return cast_tensor(to.codes, nullptr, x, &f->scale, c, transpose, R, C, key);
    case Scaling::delayed:
        set_factors(f, &q.delayed->scale, 0, false);
        return cast_tensor(to.codes, q.pass->training ? &q.delayed->last : nullptr, x, &f->scale, c, transpose, R, C,
                           key);
    case Scaling::current:
        amax_scale(f, x, (size_t)R * C, c);
        return cast_tensor(to.codes, nullptr, x, &f->scale, c, transpose, R, C, key);
    case Scaling::blockwise: return cast_float8(to.codes, (float*)to.scales, x, c, transpose, R, C, key);
    case Scaling::mx: return cast_mx(to.codes, to.scales, x, c, transpose, R, C, key);
    case Scaling::nvfp4:
        return cast_nvfp4(to.codes, to.scales, &f->amax, to.amaxes, x, c, transpose, R, C, key);
    }
}
// Where the codes of an operand (R, C) of one scale go, on a machine that makes both copies in one pass; else nothing.
inline Sink copies_in_tiles(const Quantizer& q, int R, int C) {
    bool tiles = machine.gpu && machine.kernels == Kernels::fast && q.shares() && q.cast.elem.bits() == 8;
    if (!tiles || q.cast.round != Rounding::rne || q.frozen) return {};
    bool delayed = q.cast.scaling == Scaling::delayed, both = q.needs(Along::rows, q.pass->training);
    return {q.copies[0].codes, both ? q.copies[1].codes : nullptr, code_ld(q.cast.elem, C), code_ld(q.cast.elem, R),
            q.cast.elem, delayed ? &q.delayed->scale : nullptr, &q.copies[0].factors->scale_inv,
            q.delayed && q.pass->training ? &q.delayed->last : nullptr}; // if not for this stage, for one to come
}
// The same for a producer of the operand, which casts it in its only pass: where the scale is known beforehand. Whoever
// asks has to fill it. BF16 is kept for GEMMs that read it, and if `keeps`.
inline Sink sink(Quantizer& q, int R, int C, bool keeps = false) {
    Sink s = q.watch || q.cast.scaling == Scaling::current ? Sink{} : copies_in_tiles(q, R, C);
    s.keeps = keeps || !q.quantized[0] || (!q.quantized[1] && q.pass->training);
    if (s) q.filled = true;
    return s;
}
// The copy of t that a GEMM contracts along k. Hands over what a producer has filled and casts what it has not: all
// copies at once, because the source may be gone when the second GEMM comes.
inline Operand quantize(const Tensor& t, Along k) {
    Quantizer& q = *t.quantizer;
    if (!q.filled) {
        q.filled = true;
        Sink s = copies_in_tiles(q, t.rows, t.cols);
        bool recorded = s.amax;
        Copy::Factors* f = q.copies[0].factors;
        if (s && q.cast.scaling == Scaling::current)
            amax_scale(f, t.data, (size_t)t.rows * t.cols, q.cast), s.scale = &f->scale;
        if (s) cast_in_tiles(t.data, s, t.rows, t.cols);
        else
            for (Along k : {Along::cols, Along::rows})
                if (q.needs(k, q.pass->training)) cast_copy(t, k), recorded = q.cast.scaling == Scaling::delayed;
        if (q.delayed && !recorded && q.pass->training) // for a stage to come
            amax_tensor(&q.delayed->last, t.data, (size_t)t.rows * t.cols);
        if (q.watch) q.watch(t);
    }
    if (q.quantized[(int)k]) return operand_of(t, k);
    return k == Along::cols ? rows_of(t.data, t.cols) : columns_of(t.data, t.cols);
}
