// Every operation of the model, with its shapes; the GEMM is in matmul.cuh, casts are in fp8.cuh. What an operation
// computes is a row function, in the file of its name, next to the launch. Those files are compiled once, by ops.cu and
// attention.cu: for a GPU they, device.cu and cast.cu are all that nvcc sees.
// Signature grammar: outputs, inputs, dims. Letters are those of model.cuh.
#pragma once
#include "fp8.cuh"
#include "ops/heads.cuh"

// Where the codes of an operand (R, C) of one scale go. Rows of codes end in zeros, up to their ld, a multiple of 32.
// Given to the op that makes the operand, which then casts it in its only pass (fused.cuh): on a GPU.
struct Sink {
    uint8_t *codes = nullptr, *transposed = nullptr; // (R, ld) and (C, ld_transposed); or null
    size_t ld = 0, ld_transposed = 0;
    Format f = E4M3;
    const float* scale = nullptr; // null: 1
    float* factors = nullptr;     // becomes 1 / scale, scale
    float* amax = nullptr;        // becomes the larger of itself and max|x|, NaN left out; or null
    bool keeps = true;            // BF16 is wanted too; else what the op makes is left as it is
    real *sums = nullptr, *partial = nullptr; // (C) column sums are added to; scratch: panels(R) * C; or null
    explicit operator bool() const { return codes; }
    bool writes() const { return keeps || !codes; } // BF16
    double bytes() const { return (writes() ? sizeof(act) : 0) + (codes ? 1 : 0) + (transposed ? 1 : 0); } // each
    HD INLINE uint32_t code(float x) const { return f.mbits == 3 ? encode(E4M3, x) : encode(E5M2, x); } // x is scaled
};
void cast_in_tiles(const act* x, Sink s, int R, int C); // x (R, C)

// --- embedding.cuh
// Token distinct[i] stands at positions[first[i]] .. positions[first[i + 1] - 1] of the batch, ascending; i < count.
struct TokenIndex {
    int count = 0;
    int *distinct, *first, *positions; // (N) (N + 1) (N)
};
// x (B*T, C) = wte[token] + wpe[t]; tokens (B*T); wte (V, C); wpe (>= T, C)
void embedding_forward(act* x, const int* tokens, const real* wte, const real* wpe, int B, int T, int C);
// dwte[token] += sum of dx over the positions of the token, ascending; dx (N, C)
void embedding_backward_tokens(real* dwte, const act* dx, TokenIndex x, int N, int C);
// dwpe[t] += sum over b, ascending, of dx[b, t]
void embedding_backward_positions(real* dwpe, const act* dx, int B, int T, int C);

// --- layernorm.cuh
// y, x (N, C); mean, rstd (N), kept for the backward pass; w, b (C)
void layernorm_forward(act* y, real* mean, real* rstd, const act* x, const real* w, const real* b, int N, int C,
                       Sink sink = {});
// dx (N, C) and dw, db (C) are added to; dy, x (N, C); mean, rstd (N); w (C); partial: 2 * panels(N) * C floats, and
// with a sink, into which dx is cast, 2 N
void layernorm_backward(act* dx, real* dw, real* db, const act* dy, const act* x, const real* mean, const real* rstd,
                        const real* w, real* partial, int N, int C, Sink sink = {});

// --- gelu.cuh
void gelu_forward(act* y, const act* x, int N, int C, Sink sink = {});                 // y, x (N, C)
void gelu_backward(act* dx, const act* dy, const act* x, int N, int C, Sink sink = {}); // (N, C); dx may be dy

// --- elementwise.cuh
void residual_forward(act* y, const act* a, const act* b, size_t n); // a + b; the gradient flows to both unchanged
void multiply(act* x, real factor, size_t n);                        // x *= factor
void copy(act* y, const act* x, size_t n);
// db (OC) += column sums of dy (N, OC); partial: panels(N) * OC floats
void bias_backward(real* db, const act* dy, real* partial, int N, int OC);

// --- attention.cuh, kv_cache.cuh
struct AttentionScratch { // attention_scratch() elements each
    real *s, *dp;
    act *p, *ds;
};
// Elements that each array of the scratch has to hold. cached: forward only, of one window, with a cache
size_t attention_scratch(Heads d, bool cached = false);
// o (B, T, C); lse (B, NH, T), kept for the backward pass; qkv (B, T, 3C)
void attention_forward(act* o, real* lse, const act* qkv, AttentionScratch scratch, Heads d, Sink sink = {});
// dqkv (B, T, 3C) is written whole; dout, o (B, T, C). sink: for dqkv
void attention_backward(act* dqkv, const act* dout, const act* qkv, const act* o, const real* lse,
                        AttentionScratch scratch, Heads d, Sink sink = {});

// k and v of a layer: (NH, T, HS) each, of one window, so that what a head reads lies in one piece
struct KvCache {
    Format format = BF16;
    int T = 0, C = 0;
    int past = 0; // tokens that it holds
    char* memory = nullptr;
    size_t layer = 0, bytes = 0; // of a layer, of all
};
Format format_of_act();
void allocate(KvCache& c, Format format, int layers, int T, int C);
inline void release(KvCache& c) { release_memory(c.memory, c.bytes), c.memory = nullptr; }
// k and v in qkv (B, T, 3C) become numbers of f.
void round_keys_values(act* qkv, Format f, Heads d);
// attention_forward() of d.T new tokens after d.past others; their keys and values join the cache of layer l. d.B is 1.
void attention_forward(act* o, real* lse, const act* qkv, KvCache& c, int l, AttentionScratch scratch, Heads d);

// --- classifier.cuh
// losses (N); logits (N, V), overwritten by their gradient times scale when asked; targets (N), -1: ignored
void classifier(real* losses, act* logits, const int* targets, real scale, bool gradient, int N, int V);

// --- adamw.cuh
struct AdamW {
    real lr, beta1, beta2, eps, weight_decay;
    real correction1, correction2; // 1 - beta1^t, sqrt(1 - beta2^t), t counted from 1
};
// What a step reports and its update obeys. It lies where the device sees it, so that nothing waits for it in a step.
struct StepResult {
    double batch; // mean loss of the last batch
    double loss;  // the sum of those since microbatch 0
    double norm;  // of the gradients divided by the loss scale, before clipping
    real factor;  // of every gradient: min(1, clip / (norm + 1e-6)) / loss scale
    int bad;      // loss or norm was not finite: nothing is updated from then on
};
// w, m, v, operand (n) are updated in place; grad (n). operand = w rounded to act; it may be w itself (ACT=float). With a
// sink, the codes of operand (n / C, C) too, as the next step's first forward pass would cast them; BF16 is written all
// the same, for that pass may come to be under another stage.
void adamw(real* w, act* operand, real* m, real* v, const real* grad, const StepResult* result, size_t n, AdamW o,
           Sink sink = {}, int C = 1);
// operand = master, rounded to act: after initialisation or loading. A no-op when they are the same memory.
void round_to_operand(act* operand, const real* w, size_t n);
void squares_of(real* squares, const real* grad, size_t n); // squares[i] = sum of grad^2 over piece i
// result's batch and loss, of losses (N); first: of a step
void mean_of(StepResult* result, const real* losses, bool first, int N);
// result's norm, factor and bad, of all parameters' squares (n), which loss_scale has made too large; clip 0: none.
// parts: pieces(n) doubles
void norm_of(StepResult* result, double* parts, const real* squares, size_t n, double clip, double loss_scale);
