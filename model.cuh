// GPT-2 (Radford et al. 2019): parameters and activations with their shapes, forward, backward, update.
//
// Shape letters, the same everywhere: B batch, T context length, N = B*T tokens, C channels, NH heads, HS = C/NH,
// V vocabulary, L layers, OC output channels of a linear. dX is the gradient of X. What a reader would get wrong:
// - A linear's weight is (OC, C), as in PyTorch's Linear; Hugging Face's GPT-2 stores it transposed (Conv1D).
// - Every weight exists twice: w, the FP32 master that AdamW updates, and operand, the same rounded to act, which is
//   what GEMMs read. Embedding lookups and LayerNorm read the master.
// - The LM head is wte: its gradient has two parts, first the GEMM's, then the embedding's.
// - The residual stream's gradient stays in one buffer, dx, from the loss down to the embedding: a residual branch
//   passes it through, and each LayerNorm's backward adds its part to it.
#pragma once
#include "ops/adamw.cuh"
#include "ops/attention.cuh"
#include "ops/classifier.cuh"
#include "ops/embedding.cuh"
#include "ops/layernorm.cuh"
#include "run/config.h"
#include "run/random.h"
#include "scaling.cuh"

// --- memory: one arena, planned before it is allocated -----------------------------------------------------------
// The same code runs twice: first to add up sizes, then, with memory behind it, to hand out pointers.
struct Arena {
    char* memory = nullptr;
    size_t used = 0;
    std::map<std::string, size_t> bytes; // by category
    template <class T> void take(T*& p, const char* category, size_t n) {
        size_t size = (n * sizeof(T) + 255) / 256 * 256;
        p = memory ? (T*)(memory + used) : nullptr;
        used += size;
        bytes[category] += size;
    }
};

// --- parameters --------------------------------------------------------------------------------------------------
struct Param {
    int rows = 0, cols = 0; // rows = 0: a vector of cols
    float init = 0;         // standard deviation, or for vectors the value
    bool conv1d = false;    // published files hold it transposed
    real *w = nullptr, *grad = nullptr; // FP32 master, and its gradient summed over microbatches
    real *m = nullptr, *v = nullptr;    // AdamW's moments
    act* operand = nullptr;             // w rounded to act
    size_t size() const { return (size_t)std::max(rows, 1) * cols; }
    Tensor tensor() const { return {operand, rows, cols}; }
};
struct Norm { Param weight, bias; };   // (C) (C)
struct Linear { Param weight, bias; }; // (OC, C) (OC)

struct Layers {
    Norm ln_1, ln_2;
    Linear attn_qkv, attn_proj, mlp_fc, mlp_proj;
};
struct Saved { // by forward for backward
    act *ln1, *qkv, *att, *mid, *ln2, *fc, *gelu, *out; // (N, C) (N, 3C) (N, C) (N, C) (N, C) (N, 4C) (N, 4C) (N, C)
    real *lse;                                          // (B, NH, T)
    real *mean1, *rstd1, *mean2, *rstd2;                // (N)
};
struct Block : Layers, Saved {};

enum class Use { inference, training };
struct GPT {
    Config config{};
    int B = 0, T = 0; // the largest batch the activations hold
    Use use = Use::inference;
    Arena arena;
    Param wte, wpe; // (V, C) (T, C)
    std::vector<Block> blocks;
    Norm ln_f;
    act *x0, *lnf, *logits;                 // (N, C) (N, C) (N, V); the backward pass overwrites logits with dlogits
    real *mean_f, *rstd_f, *losses;         // (N)
    int *tokens, *targets;                  // (N)
    TokenIndex index;                       // where each distinct token of the batch stands
    act *branch, *dx, *dbranch, *dwide;     // (N, C) (N, C) (N, C) (N, 4C): not kept across layers
    real *partial, *squares;                // column sums; squares of gradients
    AttentionScratch scratch;
};

// Every parameter, once: f(published name, Param). Sizes, memory, initialisation, files, updates all come from here.
template <class F> void for_each_param(GPT& g, F f) {
    f("wte.weight", g.wte);
    f("wpe.weight", g.wpe);
    auto norm = [&](const std::string& at, Norm& n) { f(at + ".weight", n.weight), f(at + ".bias", n.bias); };
    auto linear = [&](const std::string& at, Linear& l) { f(at + ".weight", l.weight), f(at + ".bias", l.bias); };
    for (size_t i = 0; i < g.blocks.size(); i++) {
        Block& b = g.blocks[i];
        std::string h = "h." + std::to_string(i);
        norm(h + ".ln_1", b.ln_1);
        linear(h + ".attn.c_attn", b.attn_qkv);
        linear(h + ".attn.c_proj", b.attn_proj);
        norm(h + ".ln_2", b.ln_2);
        linear(h + ".mlp.c_fc", b.mlp_fc);
        linear(h + ".mlp.c_proj", b.mlp_proj);
    }
    norm("ln_f", g.ln_f);
}
inline void shape_params(GPT& g) {
    auto [L, NH, C, T, V] = g.config;
    auto norm = [](Norm& n, int C) { n.weight = {.cols = C, .init = 1}, n.bias = {.cols = C}; };
    auto linear = [](Linear& l, int OC, int C, float init) {
        l.weight = {.rows = OC, .cols = C, .init = init, .conv1d = true}, l.bias = {.cols = OC};
    };
    float into_residual = 0.02f / sqrtf(2.0f * L); // 2L branches add up in the stream
    g.wte = {.rows = V, .cols = C, .init = 0.02f};
    g.wpe = {.rows = T, .cols = C, .init = 0.02f};
    g.blocks.resize(L);
    for (Block& b : g.blocks) {
        norm(b.ln_1, C), norm(b.ln_2, C);
        linear(b.attn_qkv, 3 * C, C, 0.02f), linear(b.attn_proj, C, C, into_residual);
        linear(b.mlp_fc, 4 * C, C, 0.02f), linear(b.mlp_proj, C, 4 * C, into_residual);
    }
    norm(g.ln_f, C);
}

// --- memory ------------------------------------------------------------------------------------------------------
inline void plan(GPT& g) { // runs twice, see Arena
    auto [L, NH, C, maxT, V] = g.config;
    size_t N = (size_t)g.B * g.T, c = C, v = V, heads = (size_t)g.B * NH;
    bool train = g.use == Use::training;
    Arena& a = g.arena;
    for_each_param(g, [&](const std::string&, Param& p) { a.take(p.w, "master weights", p.size()); });
    for_each_param(g, [&](const std::string&, Param& p) {
        if (std::is_same_v<act, real>) p.operand = (act*)p.w;
        else a.take(p.operand, "weight operands", p.size());
    });
    if (train) {
        for_each_param(g, [&](const std::string&, Param& p) { a.take(p.grad, "gradients", p.size()); });
        for_each_param(g, [&](const std::string&, Param& p) {
            a.take(p.m, "optimizer moments", p.size()), a.take(p.v, "optimizer moments", p.size());
        });
    }
    const char* saved = "saved activations";
    a.take(g.tokens, saved, N), a.take(g.targets, saved, N), a.take(g.losses, saved, N);
    a.take(g.x0, saved, N * c), a.take(g.lnf, saved, N * c), a.take(g.logits, "logits", N * v);
    a.take(g.mean_f, saved, N), a.take(g.rstd_f, saved, N);
    for (int l = 0; l < L; l++) {
        Block& b = g.blocks[l];
        if (l > 0 && !train) { // nothing is kept: the layers share one set
            (Saved&)b = g.blocks[0];
            continue;
        }
        a.take(b.ln1, saved, N * c), a.take(b.qkv, saved, N * 3 * c), a.take(b.att, saved, N * c);
        a.take(b.mid, saved, N * c), a.take(b.ln2, saved, N * c), a.take(b.fc, saved, N * 4 * c);
        a.take(b.gelu, saved, N * 4 * c), a.take(b.out, saved, N * c), a.take(b.lse, saved, N * NH);
        a.take(b.mean1, saved, N), a.take(b.rstd1, saved, N), a.take(b.mean2, saved, N), a.take(b.rstd2, saved, N);
    }
    const char* scratch = "scratch";
    a.take(g.branch, scratch, N * c);
    if (train) {
        a.take(g.dx, scratch, N * c), a.take(g.dbranch, scratch, N * c), a.take(g.dwide, scratch, N * 4 * c);
        a.take(g.index.distinct, scratch, N), a.take(g.index.first, scratch, N + 1);
        a.take(g.index.positions, scratch, N);
        a.take(g.partial, scratch, (size_t)panels(N) * 4 * c);
        size_t largest = 0;
        for_each_param(g, [&](const std::string&, Param& p) { largest = std::max(largest, p.size()); });
        a.take(g.squares, scratch, pieces(largest));
    }
    size_t square = attention_needs_scratch() ? heads * g.T * g.T : 0;
    a.take(g.scratch.s, scratch, square), a.take(g.scratch.p, scratch, square);
    if (train) a.take(g.scratch.dp, scratch, square), a.take(g.scratch.ds, scratch, square);
}
// Memory for batches of at most B rows of at most T tokens. Weights are zero until loaded or initialised.
inline void allocate(GPT& g, Config config, Use use, int B, int T) {
    g.config = config, g.use = use, g.B = B, g.T = T;
    if (T > config.seq_len) fail("sequences of %d tokens, but the model has positions for %d", T, config.seq_len);
    shape_params(g);
    plan(g);
    size_t size = g.arena.used;
    g.arena = Arena();
    g.arena.memory = allocate_zeroed(size);
    plan(g);
}
inline void release(GPT& g) { release_memory(g.arena.memory, g.arena.used), g.arena.memory = nullptr; }

// GPT-2's initialisation, a pure function of the seed: normal(0, init) for matrices, 1 and 0 for LayerNorms, 0 for
// biases. After this or after loading: publish() makes the operands follow the masters.
inline void publish(GPT& g) {
    for_each_param(g, [](const std::string&, Param& p) { round_to_operand(p.operand, p.w, p.size()); });
}
inline void initialise(GPT& g, uint64_t seed) {
    uint64_t stream = 0;
    for_each_param(g, [&](const std::string&, Param& p) {
        uint64_t key = random_bits(seed, stream++);
        for (size_t i = 0; i < p.size(); i++) p.w[i] = p.rows ? p.init * (real)random_normal(key, i) : p.init;
    });
    publish(g);
}

// --- the linear layer: y = x w^T + b -----------------------------------------------------------------------------
// y (N, OC); x (N, C); w (OC, C); b (OC)
inline void linear_forward(act* y, const Linear& l, const act* x, int N) {
    auto [OC, C] = std::pair(l.weight.rows, l.weight.cols);
    Operand a = quantize({x, N, C}, Along::cols), b = quantize(l.weight.tensor(), Along::cols);
    matmul("fprop", {.out = y, .out_elem = elem<act>, .ld_out = (size_t)OC, .M = N, .N = OC, .K = C, .a = a, .b = b,
                     .bias = l.bias.operand});
}
// dx (N, C) is written; l's gradients are written, or added to when `accumulate`; dy (N, OC); x (N, C)
inline void linear_backward(act* dx, Linear& l, const act* dy, const act* x, int N, bool accumulate, real* partial) {
    auto [OC, C] = std::pair(l.weight.rows, l.weight.cols);
    Operand a = quantize({dy, N, OC}, Along::cols), b = quantize(l.weight.tensor(), Along::rows);
    matmul("dgrad", {.out = dx, .out_elem = elem<act>, .ld_out = (size_t)C, .M = N, .N = C, .K = OC, .a = a, .b = b});
    a = quantize({dy, N, OC}, Along::rows), b = quantize({x, N, C}, Along::rows);
    matmul("wgrad", {.out = l.weight.grad, .out_elem = Elem::f32, .ld_out = (size_t)C, .M = OC, .N = C, .K = N, .a = a,
                     .b = b, .accumulate = accumulate});
    bias_backward(l.bias.grad, dy, partial, N, OC);
}

// --- forward -----------------------------------------------------------------------------------------------------
// Mean loss in nats per token over B rows of T tokens, which stand in g.tokens and g.targets. With a gradient scale,
// logits are left holding dlogits * scale.
inline double gpt_forward(GPT& g, int B, int T, float dloss = 0) {
    int N = B * T, C = g.config.channels, V = g.config.vocab;
    Heads heads = {B, T, g.config.heads, C / g.config.heads};
    size_t NC = (size_t)N * C;
    embedding_forward(g.x0, g.tokens, g.wte.w, g.wpe.w, B, T, C);
    act* x = g.x0;
    for (Block& b : g.blocks) {
        layernorm_forward(b.ln1, b.mean1, b.rstd1, x, b.ln_1.weight.w, b.ln_1.bias.w, N, C);
        linear_forward(b.qkv, b.attn_qkv, b.ln1, N);
        attention_forward(b.att, b.lse, b.qkv, g.scratch, heads);
        linear_forward(g.branch, b.attn_proj, b.att, N);
        residual_forward(b.mid, x, g.branch, NC);
        layernorm_forward(b.ln2, b.mean2, b.rstd2, b.mid, b.ln_2.weight.w, b.ln_2.bias.w, N, C);
        linear_forward(b.fc, b.mlp_fc, b.ln2, N);
        gelu_forward(b.gelu, b.fc, 4 * NC);
        linear_forward(g.branch, b.mlp_proj, b.gelu, N);
        residual_forward(b.out, b.mid, g.branch, NC);
        x = b.out;
    }
    layernorm_forward(g.lnf, g.mean_f, g.rstd_f, x, g.ln_f.weight.w, g.ln_f.bias.w, N, C);
    matmul("lm_head", {.out = g.logits, .out_elem = elem<act>, .ld_out = (size_t)V, .M = N, .N = V, .K = C,
                       .a = rows_of(g.lnf, C), .b = rows_of(g.wte.operand, C)});
    classifier(g.losses, g.logits, g.targets, dloss, dloss != 0, N, V);
    synchronize("forward");
    double sum = 0;
    for (int n = 0; n < N; n++) sum += g.losses[n];
    return sum / N;
}

// --- backward: the mirror image ----------------------------------------------------------------------------------
// After gpt_forward with a gradient. Gradients are written, or added to when `accumulate`.
inline void gpt_backward(GPT& g, int B, int T, bool accumulate) {
    int N = B * T, C = g.config.channels, V = g.config.vocab;
    Heads heads = {B, T, g.config.heads, C / g.config.heads};
    size_t NC = (size_t)N * C;
    if (!accumulate) // sums are added to; matrices' gradients come from GEMMs that overwrite
        for_each_param(g, [&](const std::string&, Param& p) {
            if (!p.rows || &p == &g.wpe) fill_zero(p.grad, p.size());
        });
    matmul("lm_head", {.out = g.dbranch, .out_elem = elem<act>, .ld_out = (size_t)C, .M = N, .N = C, .K = V,
                       .a = rows_of(g.logits, V), .b = columns_of(g.wte.operand, C)});
    matmul("lm_head", {.out = g.wte.grad, .out_elem = Elem::f32, .ld_out = (size_t)C, .M = V, .N = C, .K = N,
                       .a = columns_of(g.logits, V), .b = columns_of(g.lnf, C), .accumulate = accumulate});
    act* last = g.blocks.empty() ? g.x0 : g.blocks.back().out;
    fill_zero(g.dx, NC);
    layernorm_backward(g.dx, g.ln_f.weight.grad, g.ln_f.bias.grad, g.dbranch, last, g.mean_f, g.rstd_f, g.ln_f.weight.w,
                       g.partial, N, C);
    for (size_t l = g.blocks.size(); l-- > 0;) {
        Block& b = g.blocks[l];
        act* x = l ? g.blocks[l - 1].out : g.x0;
        linear_backward(g.dwide, b.mlp_proj, g.dx, b.gelu, N, accumulate, g.partial);
        gelu_backward(g.dwide, g.dwide, b.fc, 4 * NC);
        linear_backward(g.dbranch, b.mlp_fc, g.dwide, b.ln2, N, accumulate, g.partial);
        layernorm_backward(g.dx, b.ln_2.weight.grad, b.ln_2.bias.grad, g.dbranch, b.mid, b.mean2, b.rstd2,
                           b.ln_2.weight.w, g.partial, N, C);
        linear_backward(g.dbranch, b.attn_proj, g.dx, b.att, N, accumulate, g.partial);
        attention_backward(g.dwide, g.dbranch, b.qkv, b.att, b.lse, g.scratch, heads);
        linear_backward(g.dbranch, b.attn_qkv, g.dwide, b.ln1, N, accumulate, g.partial);
        layernorm_backward(g.dx, b.ln_1.weight.grad, b.ln_1.bias.grad, g.dbranch, x, b.mean1, b.rstd1, b.ln_1.weight.w,
                           g.partial, N, C);
    }
    embedding_backward_tokens(g.wte.grad, g.dx, g.index, N, C);
    embedding_backward_positions(g.wpe.grad, g.dx, B, T, C);
}

// --- update ------------------------------------------------------------------------------------------------------
// Global L2 norm of all gradients, before clipping.
inline double gradient_norm(GPT& g) {
    double sum = 0;
    for_each_param(g, [&](const std::string&, Param& p) {
        squares_of(g.squares, p.grad, p.size());
        synchronize("grad_norm");
        for (size_t i = 0; i < pieces(p.size()); i++) sum += g.squares[i];
    });
    return sqrt(sum);
}
// Step t (from 1). Weight decay applies to matrices, embeddings included. clip: largest global norm; 0 for none.
inline void update(GPT& g, int64_t t, double lr, double weight_decay, double clip, double norm) {
    double beta1 = 0.9, beta2 = 0.95;
    AdamW o = {.lr = (real)lr, .beta1 = (real)beta1, .beta2 = (real)beta2, .eps = (real)1e-8, .weight_decay = 0,
               .correction1 = (real)(1 - pow(beta1, (double)t)), .correction2 = (real)sqrt(1 - pow(beta2, (double)t)),
               .clip = (real)(clip > 0 ? std::min(1.0, clip / (norm + 1e-6)) : 1)};
    for_each_param(g, [&](const std::string&, Param& p) {
        o.weight_decay = p.rows ? (real)weight_decay : 0;
        adamw(p.w, p.operand, p.m, p.v, p.grad, p.size(), o);
    });
}
