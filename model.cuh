// GPT-2 (Radford et al. 2019): parameters and activations with their shapes, forward, backward, update.
//
// Shape letters, the same everywhere: B batch, T context length, N = B*T tokens, C channels, NH heads, HS = C/NH,
// V vocabulary, L layers, OC output channels of a linear. dX is the gradient of X. What a reader would get wrong:
// - A linear's weight is (OC, C), as in PyTorch's Linear; Hugging Face's GPT-2 stores it transposed (Conv1D).
// - Every weight exists twice: w, the FP32 master that AdamW updates, and operand, the same rounded to act, which is
//   what GEMMs read. Embedding lookups and LayerNorm read the master.
// - The LM head is wte: its gradient has two parts, first the GEMMs', then the embedding's.
// - The head's backward pass belongs to gpt_loss(), which goes through it in chunks of token rows, forward, loss and
//   backward, so that a GPU never has to hold all logits of a large vocabulary.
// - The residual stream's gradient stays in one buffer, dx, from the loss down to the embedding: a residual branch
//   passes it through, and each LayerNorm's backward adds its part to it.
// - Of a linear's input, backward needs what wgrad multiplies and nothing else: under a recipe that is the codes, and
//   the BF16 values are gone by then.
#pragma once
#include "ops/ops.cuh"
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
    Quantizer* quantizer = nullptr;     // of the linear whose weight it is
    size_t size() const { return (size_t)std::max(rows, 1) * cols; }
};
struct Norm { Param weight, bias; }; // (C) (C)
struct Linear {
    Param weight, bias; // (OC, C) (OC)
    Quantizer x, w, dy; // how its operands (N, C) (OC, C) (N, OC) are stored
    bool keeps_x = true; // in BF16, for backward
    bool fast_accum = true; // in fprop
    bool summed = false; // who cast dy has added its sums of columns to the bias's gradient
    float jump = 1; // an experiment: x is multiplied by this power of two, and the GEMMs that read it divide it out
};

struct Layers {
    Norm ln_1, ln_2;
    Linear attn_qkv, attn_proj, mlp_fc, mlp_proj;
};
struct Saved { // by forward for backward
    act *ln1, *qkv, *att, *mid, *ln2, *fc, *gelu, *out; // (N, C) (N, 3C) (N, C) (N, C) (N, C) (N, 4C) (N, 4C) (N, C)
    real *lse;                                          // (B, NH, T)
    real *mean1, *rstd1, *mean2, *rstd2;                // (N)
};
struct TransformerBlock : Layers, Saved {};

// From step `from` on a recipe rules all linears but those skipped (in the order of for_each_linear).
struct RecipeStage {
    int64_t from;
    Recipe recipe;
    std::vector<bool> skip;
};
inline const std::vector<RecipeStage> bf16_only = {{0, recipes[0], {}}};

enum class Use { inference, gradients, training }; // gradients: forward and backward, no update
struct GPT {
    Config config{};
    int B = 0, T = 0; // the largest batch the activations hold
    Use use = Use::inference;
    std::vector<RecipeStage> stages = bf16_only;
    int stage = 0;
    Pass pass;
    Format kv = format_of_act(); // what attention's keys and values are rounded to
    Arena arena;
    Param wte, wpe; // (V, C) (T, C)
    std::vector<TransformerBlock> blocks;
    Norm ln_f;
    Linear head;                // its weight is wte
    Delayed* delayed = nullptr; // of x and w of all linears, then of dy
    float* history;             // (operands, history_len)
    int forward_delayed = 0, all_delayed = 0, history_len = 0;
    act *x0, *lnf, *logits;                 // (N, C) (N, C) (chunk, V); the loss overwrites logits with dlogits
    int chunk = 0;                          // token rows that the head takes at a time
    real *mean_f, *rstd_f, *losses;         // (N)
    int *tokens, *targets;                  // (N)
    TokenIndex index;                       // where each distinct token of the batch stands
    act *branch, *dx, *dbranch, *dwide;     // (N, C) (N, C) (N, C) (N, 4C): not kept across layers
    real *partial, *squares;                // column sums; squares of gradients, a sum for each PIECE of each parameter
    double* norm_parts;
    StepResult* result;
    float* measured;                        // for measure()
    MatmulScratch decoded;
    AttentionScratch scratch;
};

// Every parameter, once: f(published name, Param). Sizes, memory, initialisation, files, updates all come from here.
inline void for_each_param(GPT& g, const std::function<void(const std::string&, Param&)>& f) {
    f("wte.weight", g.wte);
    f("wpe.weight", g.wpe);
    auto norm = [&](const std::string& at, Norm& n) { f(at + ".weight", n.weight), f(at + ".bias", n.bias); };
    auto linear = [&](const std::string& at, Linear& l) { f(at + ".weight", l.weight), f(at + ".bias", l.bias); };
    for (size_t i = 0; i < g.blocks.size(); i++) {
        TransformerBlock& b = g.blocks[i];
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
    g.head.weight = g.wte;
    g.blocks.resize(L);
    for (TransformerBlock& b : g.blocks) {
        norm(b.ln_1, C), norm(b.ln_2, C);
        linear(b.attn_qkv, 3 * C, C, 0.02f), linear(b.attn_proj, C, C, into_residual);
        linear(b.mlp_fc, 4 * C, C, 0.02f), linear(b.mlp_proj, C, 4 * C, into_residual);
    }
    norm(g.ln_f, C);
}

// Every linear, in the order of computation: f(name, Linear).
inline void for_each_linear(GPT& g, const std::function<void(const std::string&, Linear&)>& f) {
    for (size_t i = 0; i < g.blocks.size(); i++) {
        TransformerBlock& b = g.blocks[i];
        std::string h = "h." + std::to_string(i);
        f(h + ".attn.c_attn", b.attn_qkv), f(h + ".attn.c_proj", b.attn_proj);
        f(h + ".mlp.c_fc", b.mlp_fc), f(h + ".mlp.c_proj", b.mlp_proj);
    }
    f("lm_head", g.head);
}

// --- recipes -----------------------------------------------------------------------------------------------------
inline void store_as(Linear& l, const Recipe& r) {
    l.x.cast = r.x, l.dy.cast = r.dy, l.fast_accum = r.fast_accum;
    if (!l.w.frozen) l.w.cast = r.w;
    auto gemms = [](Quantizer& q, bool cols, bool rows) {
        q.quantized[0] = cols && is_quantized(q.cast), q.quantized[1] = rows && is_quantized(q.cast);
    };
    gemms(l.x, r.fprop, r.wgrad), gemms(l.w, r.fprop || l.w.frozen, r.dgrad), gemms(l.dy, r.dgrad, r.wgrad);
}
// f(linear, the recipe that rules it in stage k)
inline void for_each_ruled(GPT& g, int k, const std::function<void(Linear&, const Recipe&)>& f) {
    const RecipeStage& s = g.stages[k];
    int i = 0;
    for_each_linear(g, [&](const std::string&, Linear& l) {
        bool skipped = s.skip.empty() ? &l == &g.head : s.skip[i];
        f(l, skipped ? recipes[0] : s.recipe);
        i++;
    });
}
// The delayed stage that decides what amaxes are recorded for in stage k: itself, the next one, or the last one.
inline const Recipe& recorded_for(const GPT& g, int k) {
    for (size_t j = k; j < g.stages.size(); j++)
        if (any_delayed(g.stages[j].recipe)) return g.stages[j].recipe;
    for (int j = k; j >= 0; j--)
        if (any_delayed(g.stages[j].recipe)) return g.stages[j].recipe;
    return g.stages[k].recipe;
}
inline void set_stage(GPT& g, int k) {
    bool moves = k != std::exchange(g.stage, k) && g.delayed;
    const Recipe &r = g.stages[k].recipe, &d = recorded_for(g, k);
    accumulator = r.accum;
    for_each_ruled(g, k, [&](Linear& l, const Recipe& r) {
        store_as(l, r);
        l.w.fresh &= !moves;
        for (auto [q, cast] : {std::pair(&l.x, &d.x), {&l.w, &d.w}, {&l.dy, &d.dy}})
            if (q->delayed) q->delayed->max = ldexpf(cast->elem.max, -d.margin);
    });
    if (moves) // another format, margin or window than the scales were made for
        update_scales(g.delayed, g.history, g.all_delayed, g.history_len, d.amax_history_len, d.amax_compute_algo,
                      true);
}
// Experiments: what Recipe::jump and Recipe::forget ask for.
inline bool set_jump(GPT& g, const Jump& jump, int64_t step) { // does it?
    bool now = step >= jump.step && step < (int64_t)jump.step + jump.count;
    for (TransformerBlock& b : g.blocks) b.attn_qkv.jump = b.mlp_fc.jump = now ? ldexpf(1, jump.log2) : 1;
    return now;
}
inline void forget_scales(GPT& g) {
    fill_zero(g.history, sizeof(float) * g.all_delayed * g.history_len);
    synchronize("forget_scales");
    for (int i = 0; i < g.all_delayed; i++) g.delayed[i] = {1, 0, g.delayed[i].max, 0};
    for_each_linear(g, [](const std::string&, Linear& l) { l.w.fresh = false; });
}
// After the casts of a pass, TransformerEngine's times: x and w after forward, dy after backward.
inline void update_scales(GPT& g, bool backward) {
    const Recipe& r = recorded_for(g, g.stage);
    int first = backward ? g.forward_delayed : 0, count = (backward ? g.all_delayed : g.forward_delayed) - first;
    update_scales(g.delayed + first, g.history + (size_t)first * g.history_len, count, g.history_len,
                  r.amax_history_len, r.amax_compute_algo);
}

// --- memory ------------------------------------------------------------------------------------------------------
constexpr int MEASURED_ROWS = 64; // of measure() in lab/diagnostics.cuh at a time
inline size_t measure_scratch(size_t rows, size_t cols) { return SUMS * rows + 3 * MEASURED_ROWS * cols; } // floats

// Copies of operands. A weight keeps both; of an input is kept what wgrad reads; all else is scratch, which the next
// linear overwrites.
inline void plan_copies(GPT& g) {
    bool train = g.use != Use::inference;
    size_t transformed = 0, measured = 0, decoded = 0; // elements of two operands
    CopyBytes largest_scratch[2];
    auto for_each_operand = [&](auto f) { // f(linear, its operand, rows, cols)
        for_each_linear(g, [&](const std::string&, Linear& l) {
            size_t N = (size_t)g.B * g.T, OC = l.weight.rows, C = l.weight.cols;
            f(l, l.x, N, C), f(l, l.w, OC, C);
            if (train) f(l, l.dy, N, OC);
        });
    };
    int index = 0;
    for_each_operand([&](Linear& l, Quantizer& q, size_t, size_t) {
        l.keeps_x = false, q.plan = {}, q.pass = &g.pass, q.index = index++;
        (&l == &g.head ? g.wte : l.weight).quantizer = &l.w;
    });
    g.history_len = 0;
    for (int k = 0; k < (int)g.stages.size(); k++) {
        const Recipe& r = g.stages[k].recipe;
        if (any_delayed(r)) g.history_len = std::max(g.history_len, r.amax_history_len);
        set_stage(g, k);
        for_each_operand([&](Linear& l, Quantizer& q, size_t rows, size_t cols) {
            bool x = &q == &l.x, w = &q == &l.w;
            l.keeps_x |= x && !q.quantized[1];
            q.plan.delayed |= q.cast.scaling == Scaling::delayed && q.is_cast();
            if (q.transforms() && train) transformed = std::max(transformed, q.contraction((int)rows) * cols);
            for (Along k : {Along::cols, Along::rows}) {
                if (!q.needs(k, train)) continue;
                decoded = std::max(decoded, std::max(rows * code_ld(q.cast.elem, cols), cols * code_ld(q.cast.elem, rows)));
                auto& bytes = q.plan.bytes[(int)k];
                bytes = largest(bytes, q.bytes(k, rows, cols));
                q.plan.kept[(int)k] |= w || (x && train && (k == Along::rows || q.strides()));
                measured = std::max({measured, measure_scratch(rows, cols),
                                     measure_scratch(cols, q.contraction((int)rows))});
            }
        });
    }
    set_stage(g, 0);
    float* amaxes;
    size_t most_amaxes = 0;
    act* for_transform;
    for_each_operand([&](Linear&, Quantizer& q, size_t, size_t) {
        for (int k = 0; k < 2; k++) {
            most_amaxes = std::max(most_amaxes, q.plan.bytes[k].amaxes);
            if (!q.plan.kept[k]) largest_scratch[k] = largest(largest_scratch[k], q.plan.bytes[k]);
        }
    });
    Arena& a = g.arena;
    auto take = [&](Copy& c, CopyBytes b, const char* category) {
        a.take(c.codes, category, b.codes), a.take(c.scales, category, b.scales);
    };
    Copy scratch[2];
    take(scratch[0], largest_scratch[0], "scratch"), take(scratch[1], largest_scratch[1], "scratch");
    a.take(amaxes, "scratch", most_amaxes / 4), a.take(for_transform, "scratch", transformed);
    a.take(g.measured, "scratch", train ? measured : 0);
    g.decoded.bytes = machine.gpu ? matmul_scratch_bytes(decoded, decoded) : 0;
    a.take(g.decoded.memory, "decoded operands", g.decoded.bytes);
    g.forward_delayed = g.all_delayed = 0;
    for_each_operand([&](Linear& l, Quantizer& q, size_t, size_t) {
        q.transformed = for_transform;
        for (int k = 0; k < 2; k++) {
            Copy& c = q.copies[k];
            if (q.plan.kept[k]) take(c, q.plan.bytes[k], &q == &l.w ? "weight codes" : "saved inputs of linears");
            else c = scratch[k];
            c.amaxes = amaxes;
            a.take(c.factors, "scales", q.plan.bytes[k].codes > 0);
        }
        g.forward_delayed += q.plan.delayed && &q != &l.dy, g.all_delayed += q.plan.delayed;
    });
    a.take(g.delayed, "scales", g.all_delayed), a.take(g.history, "scales", (size_t)g.all_delayed * g.history_len);
    int forward = 0, backward = g.forward_delayed;
    for_each_operand([&](Linear& l, Quantizer& q, size_t, size_t) {
        if (q.plan.delayed) q.delayed = a.memory ? g.delayed + (&q == &l.dy ? backward : forward)++ : nullptr;
    });
}
// Rows of logits that exist at a time, of N: on a GPU as many as take most_logits bytes; the more, the fewer times the
// gradient of wte is read and written (0.3 GB for 124M). All of them on the CPU, so that the order of its sums depends
// on no limit, and where some stage casts the head: scales, draws and histories are of whole tensors.
inline size_t most_logits = (size_t)512 << 20;
inline int chunk_rows(const GPT& g, size_t N) {
    bool cast = false;
    for (const Quantizer* q : {&g.head.x, &g.head.w, &g.head.dy})
        cast |= q->plan.bytes[0].codes || q->plan.bytes[1].codes;
    size_t fit = most_logits / (g.config.vocab * sizeof(act)) / 128 * 128;
    return (int)(machine.gpu && !cast ? std::min(N, std::max<size_t>(fit, 128)) : N);
}
// Of column sums; 2 N floats and the sums of C columns have room in it side by side.
inline size_t partial_size(int N, int C) { return (size_t)panels(N) * 4 * std::max(C, PANEL); }
inline void plan(GPT& g) { // runs twice, see Arena
    auto [L, NH, C, maxT, V] = g.config;
    size_t N = (size_t)g.B * g.T, c = C, v = V;
    bool train = g.use != Use::inference;
    Arena& a = g.arena;
    for_each_param(g, [&](const std::string&, Param& p) { a.take(p.w, "master weights", p.size()); });
    for_each_param(g, [&](const std::string&, Param& p) {
        if (std::is_same_v<act, real>) p.operand = (act*)p.w;
        else a.take(p.operand, "weight operands", p.size());
    });
    for_each_param(g, [&](const std::string&, Param& p) {
        if (train) a.take(p.grad, "gradients", p.size());
    });
    for_each_param(g, [&](const std::string&, Param& p) {
        if (g.use != Use::training) return;
        a.take(p.m, "optimizer moments", p.size()), a.take(p.v, "optimizer moments", p.size());
    });
    g.head.weight = g.wte;
    plan_copies(g);
    g.chunk = chunk_rows(g, N);
    const char *saved = "saved activations", *inputs = "saved inputs of linears", *scratch = "scratch";
    if (train) { // first, for what is not saved borrows it
        a.take(g.dx, scratch, N * c), a.take(g.dbranch, scratch, N * c), a.take(g.dwide, scratch, N * 4 * c);
    }
    // A linear's input stays for backward in BF16 only if wgrad reads it so; the scratch of backward is free by then.
    auto input = [&](act*& x, const Linear& l, size_t n, act* borrowed) {
        if (!train || l.keeps_x) a.take(x, inputs, n);
        else x = borrowed;
    };
    a.take(g.tokens, saved, N), a.take(g.targets, saved, N), a.take(g.losses, saved, N);
    a.take(g.x0, saved, N * c), a.take(g.lnf, saved, N * c), a.take(g.logits, "logits", g.chunk * v);
    a.take(g.mean_f, saved, N), a.take(g.rstd_f, saved, N);
    for (int l = 0; l < L; l++) {
        TransformerBlock& b = g.blocks[l];
        if (l > 0 && !train) { // nothing is kept: the layers share one set
            (Saved&)b = g.blocks[0];
            continue;
        }
        input(b.ln1, b.attn_qkv, N * c, g.dbranch), input(b.ln2, b.mlp_fc, N * c, g.dbranch);
        input(b.gelu, b.mlp_proj, N * 4 * c, g.dwide);
        a.take(b.att, b.attn_proj.keeps_x ? inputs : saved, N * c); // attention's backward reads it too
        a.take(b.qkv, saved, N * 3 * c), a.take(b.mid, saved, N * c), a.take(b.fc, saved, N * 4 * c);
        a.take(b.out, saved, N * c), a.take(b.lse, saved, N * NH);
        a.take(b.mean1, saved, N), a.take(b.rstd1, saved, N), a.take(b.mean2, saved, N), a.take(b.rstd2, saved, N);
    }
    a.take(g.branch, scratch, N * c), a.take(g.result, scratch, 1);
    if (train) {
        a.take(g.index.distinct, scratch, N), a.take(g.index.first, scratch, N + 1);
        a.take(g.index.positions, scratch, N);
        a.take(g.partial, scratch, partial_size(g.B * g.T, C));
        size_t squares = 0;
        for_each_param(g, [&](const std::string&, Param& p) { squares += pieces(p.size()); });
        a.take(g.squares, scratch, squares), a.take(g.norm_parts, scratch, pieces(squares));
    }
    size_t square = attention_scratch({g.B, g.T, NH, C / NH}, !train);
    a.take(g.scratch.s, scratch, square), a.take(g.scratch.p, scratch, square);
    if (train) a.take(g.scratch.dp, scratch, square), a.take(g.scratch.ds, scratch, square);
}
// What goes where, the largest first.
inline std::string memory_text(const Arena& a) {
    std::vector<std::pair<size_t, std::string>> all;
    for (auto& [category, bytes] : a.bytes) all.push_back({bytes, category});
    std::sort(all.rbegin(), all.rend());
    std::string text = format("%-24s %12s\n", "memory for", "MB");
    for (auto& [bytes, category] : all) text += format("%-24s %12.1f\n", category.c_str(), bytes / 1e6);
    return text + format("%-24s %12.1f", "together", a.used / 1e6);
}
// It does not fit: what is missing, and the largest batch that does.
[[noreturn]] inline void fail_for_room(const GPT& g, size_t room) {
    std::string hint = "a smaller --batch-size, --seq-len or --model";
    for (int B = g.B / 2; B > 0; B /= 2) {
        GPT less;
        less.config = g.config, less.use = g.use, less.B = B, less.T = g.T, less.stages = g.stages;
        shape_params(less), plan(less);
        if (less.arena.used > room) continue;
        hint = format("--batch-size %d takes %.2f GB", B, less.arena.used / 1e9);
        if (g.use == Use::training && g.B % B == 0)
            hint += format(", and with --grad-accum times %d a step stays what it is", g.B / B);
        break;
    }
    fail("the model needs %.2f GB and the GPU has %.2f GB free: %.2f GB are missing. hint: %s\n%s", g.arena.used / 1e9,
         room / 1e9, (g.arena.used - room) / 1e9, hint.c_str(), memory_text(g.arena).c_str());
}
// Memory for batches of at most B rows of at most T tokens, under any of the stages. Weights are zero until loaded or
// initialised; delayed scales are 1.
inline void allocate(GPT& g, Config config, Use use, int B, int T, std::vector<RecipeStage> stages = bf16_only) {
    g.config = config, g.use = use, g.B = B, g.T = T, g.stages = stages;
    if (T > config.seq_len) fail("sequences of %d tokens, but the model has positions for %d", T, config.seq_len);
    shape_params(g);
    plan(g);
    size_t size = g.arena.used, room = memory_room();
    if (size > room) fail_for_room(g, room);
    g.arena = Arena();
    g.arena.memory = allocate_zeroed(size);
    plan(g);
    for (int i = 0; i < g.all_delayed; i++) g.delayed[i].scale = 1;
    set_stage(g, 0);
}
inline void release(GPT& g) { release_memory(g.arena.memory, g.arena.used), g.arena.memory = nullptr; }

// GPT-2's initialisation, a pure function of the seed: normal(0, init) for matrices, 1 and 0 for LayerNorms, 0 for
// biases. After this or after loading: publish() makes the operands follow the masters.
inline void publish(GPT& g) {
    for_each_param(g, [](const std::string&, Param& p) { round_to_operand(p.operand, p.w, p.size()); });
    for_each_linear(g, [](const std::string&, Linear& l) { l.w.fresh = false; });
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
inline void linear_forward(act* y, Linear& l, act* x, int N) {
    auto [OC, C] = std::pair(l.weight.rows, l.weight.cols);
    if (l.jump != 1) multiply(x, l.jump, (size_t)N * C);
    Tensor X = {x, N, C, &l.x}, W = {l.weight.operand, OC, C, &l.w};
    Operand a = quantize(X, Along::cols), b = quantize(W, Along::cols);
    matmul("fprop", {.out = y, .out_elem = elem<act>, .ld_out = (size_t)OC, .M = N, .N = OC, .K = C, .a = a, .b = b,
                     .scale_a = 1 / l.jump, .bias = l.bias.operand, .fast_accum = l.fast_accum});
}
// dx (N, C) is written; l's gradients are written, or added to when `accumulate`; dy (N, OC); x (N, C), or what
// forward's cast has left of it
inline void linear_backward(act* dx, Linear& l, const act* dy, const act* x, int N, bool accumulate, real* partial) {
    auto [OC, C] = std::pair(l.weight.rows, l.weight.cols);
    Tensor X = {x, N, C, &l.x}, W = {l.weight.operand, OC, C, &l.w}, DY = {dy, N, OC, &l.dy};
    Operand a = quantize(DY, Along::cols), b = quantize(W, Along::rows);
    matmul("dgrad", {.out = dx, .out_elem = elem<act>, .ld_out = (size_t)C, .M = N, .N = C, .K = OC, .a = a, .b = b});
    a = quantize(DY, Along::rows), b = quantize(X, Along::rows);
    matmul("wgrad", {.out = l.weight.grad, .out_elem = Elem::f32, .ld_out = (size_t)C, .M = OC, .N = C,
                     .K = l.x.contraction(N), .a = a, .b = b, .scale_b = 1 / l.jump, .accumulate = accumulate});
    if (l.bias.cols && !std::exchange(l.summed, false)) bias_backward(l.bias.grad, dy, partial, N, OC);
}
// For the ops that make x and dy: where a GPU puts their codes in the same pass.
inline Sink input_sink(Linear& l, int N, bool keeps = false) {
    return l.jump == 1 ? sink(l.x, N, l.weight.cols, keeps) : Sink{};
}
inline Sink gradient_sink(GPT& g, Linear& l, int N, bool keeps = false) {
    int OC = l.weight.rows;
    Sink s = sink(l.dy, N, OC, keeps);
    if (s) s.sums = l.bias.grad, s.partial = g.partial + partial_size(N, g.config.channels) - (size_t)panels(N) * OC;
    l.summed = (bool)s;
    return s;
}

// --- forward -----------------------------------------------------------------------------------------------------
// g.lnf, what the head reads, of B rows of T tokens, which stand in g.tokens. With a cache they follow on cache->past
// others, whose keys and values it holds; B is 1.
inline void gpt_trunk(GPT& g, int B, int T, KvCache* cache = nullptr) {
    int N = B * T, C = g.config.channels, past = cache ? cache->past : 0;
    matmul_scratch = g.decoded;
    Heads heads = {B, T, g.config.heads, C / g.config.heads, past};
    size_t NC = (size_t)N * C;
    for_each_linear(g, [&](const std::string&, Linear& l) { // w keeps its copies for all microbatches of a step
        l.x.filled = l.dy.filled = false, l.w.filled &= g.pass.micro > 0 || l.w.frozen || (l.w.fresh && !l.w.watch);
        l.w.fresh &= !g.pass.training; // it moves the scale
    });
    embedding_forward(g.x0, g.tokens, g.wte.w, g.wpe.w + (size_t)past * C, B, T, C);
    act* x = g.x0;
    for (TransformerBlock& b : g.blocks) {
        layernorm_forward(b.ln1, b.mean1, b.rstd1, x, b.ln_1.weight.w, b.ln_1.bias.w, N, C,
                          input_sink(b.attn_qkv, N));
        linear_forward(b.qkv, b.attn_qkv, b.ln1, N);
        round_keys_values(b.qkv, g.kv, heads);
        if (cache) attention_forward(b.att, b.lse, b.qkv, *cache, (int)(&b - g.blocks.data()), g.scratch, heads);
        else attention_forward(b.att, b.lse, b.qkv, g.scratch, heads, input_sink(b.attn_proj, N, true));
        linear_forward(g.branch, b.attn_proj, b.att, N);
        residual_forward(b.mid, x, g.branch, NC);
        layernorm_forward(b.ln2, b.mean2, b.rstd2, b.mid, b.ln_2.weight.w, b.ln_2.bias.w, N, C,
                          input_sink(b.mlp_fc, N));
        linear_forward(b.fc, b.mlp_fc, b.ln2, N);
        gelu_forward(b.gelu, b.fc, N, 4 * C, input_sink(b.mlp_proj, N));
        linear_forward(g.branch, b.mlp_proj, b.gelu, N);
        residual_forward(b.out, b.mid, g.branch, NC);
        x = b.out;
    }
    layernorm_forward(g.lnf, g.mean_f, g.rstd_f, x, g.ln_f.weight.w, g.ln_f.bias.w, N, C);
}
// Mean loss in nats per token over B rows of T tokens, which stand in g.tokens and g.targets: into g.result. With a
// gradient scale also the head's backward pass: g.dbranch is left holding the gradient of g.lnf, and g.logits the
// dlogits of the last chunk, both times the scale.
inline void gpt_loss(GPT& g, int B, int T, float dloss = 0) {
    int N = B * T, C = g.config.channels;
    gpt_trunk(g, B, T);
    for (int n = 0; n < N; n += g.chunk) {
        int rows = std::min(g.chunk, N - n);
        size_t at = (size_t)n * C;
        linear_forward(g.logits, g.head, g.lnf + at, rows);
        classifier(g.losses + n, g.logits, g.targets + n, dloss, dloss != 0, rows, g.config.vocab);
        if (dloss != 0)
            linear_backward(g.dbranch + at, g.head, g.logits, g.lnf + at, rows, n > 0 || g.pass.micro > 0, g.partial);
    }
    if (g.pass.training) update_scales(g, false);
    mean_of(g.result, g.losses, g.pass.micro == 0, N);
}
inline double gpt_forward(GPT& g, int B, int T, float dloss = 0) { // waits for it
    gpt_loss(g, B, T, dloss);
    synchronize("forward");
    return g.result->batch;
}
// For sampling: g.logits (V), of the token after the T in g.tokens.
inline void gpt_next(GPT& g, int T, KvCache* cache = nullptr) {
    gpt_trunk(g, 1, T, cache);
    linear_forward(g.logits, g.head, g.lnf + (size_t)(T - 1) * g.config.channels, 1);
    if (cache) cache->past += T;
    synchronize("next");
}

// --- backward: the mirror image ----------------------------------------------------------------------------------
// After gpt_loss with a gradient, for what is below the head. Gradients are written in microbatch 0, else added to.
inline void gpt_backward(GPT& g, int B, int T) {
    int N = B * T, C = g.config.channels;
    bool accumulate = g.pass.micro > 0;
    Heads heads = {B, T, g.config.heads, C / g.config.heads};
    size_t NC = (size_t)N * C;
    matmul_scratch = g.decoded;
    if (!accumulate) // sums are added to; matrices' gradients come from GEMMs that overwrite
        for_each_param(g, [&](const std::string&, Param& p) {
            if (!p.rows || &p == &g.wpe) fill_zero(p.grad, p.size() * sizeof(real));
        });
    act* last = g.blocks.empty() ? g.x0 : g.blocks.back().out;
    fill_zero(g.dx, NC * sizeof(act));
    // dx, when it is complete up to here, is the gradient of the linear before it
    auto dx_sink = [&](size_t l) { return l ? gradient_sink(g, g.blocks[l - 1].mlp_proj, N, true) : Sink{}; };
    layernorm_backward(g.dx, g.ln_f.weight.grad, g.ln_f.bias.grad, g.dbranch, last, g.mean_f, g.rstd_f, g.ln_f.weight.w,
                       g.partial, N, C, dx_sink(g.blocks.size()));
    for (size_t l = g.blocks.size(); l-- > 0;) {
        TransformerBlock& b = g.blocks[l];
        act* x = l ? g.blocks[l - 1].out : g.x0;
        linear_backward(g.dwide, b.mlp_proj, g.dx, b.gelu, N, accumulate, g.partial);
        gelu_backward(g.dwide, g.dwide, b.fc, N, 4 * C, gradient_sink(g, b.mlp_fc, N));
        linear_backward(g.dbranch, b.mlp_fc, g.dwide, b.ln2, N, accumulate, g.partial);
        layernorm_backward(g.dx, b.ln_2.weight.grad, b.ln_2.bias.grad, g.dbranch, b.mid, b.mean2, b.rstd2,
                           b.ln_2.weight.w, g.partial, N, C, gradient_sink(g, b.attn_proj, N, true));
        linear_backward(g.dbranch, b.attn_proj, g.dx, b.att, N, accumulate, g.partial);
        attention_backward(g.dwide, g.dbranch, b.qkv, b.att, b.lse, g.scratch, heads,
                           gradient_sink(g, b.attn_qkv, N));
        linear_backward(g.dbranch, b.attn_qkv, g.dwide, b.ln1, N, accumulate, g.partial);
        layernorm_backward(g.dx, b.ln_1.weight.grad, b.ln_1.bias.grad, g.dbranch, x, b.mean1, b.rstd1, b.ln_1.weight.w,
                           g.partial, N, C, dx_sink(l));
    }
    embedding_backward_tokens(g.wte.grad, g.dx, g.index, N, C);
    embedding_backward_positions(g.wpe.grad, g.dx, B, T, C);
    update_scales(g, true);
}

// --- update ------------------------------------------------------------------------------------------------------
// Into g.result: the global L2 norm of all gradients divided by loss_scale, and what clipping it to `clip` (0: not)
// multiplies them by.
inline void measure_norm(GPT& g, double clip, double loss_scale = 1) {
    real* at = g.squares;
    for_each_param(g, [&](const std::string&, Param& p) {
        squares_of(at, p.grad, p.size());
        at += pieces(p.size());
    });
    norm_of(g.result, g.norm_parts, g.squares, at - g.squares, clip, loss_scale);
}
inline double gradient_norm(GPT& g, double clip = 0, double loss_scale = 1) { // waits for it
    measure_norm(g, clip, loss_scale);
    synchronize("grad_norm");
    return g.result->norm;
}
// Step t (from 1), of the gradients as they were measured. Weight decay applies to matrices, embeddings included.
inline void update(GPT& g, int64_t t, double lr, double weight_decay) {
    double beta1 = 0.9, beta2 = 0.95;
    AdamW o = {.lr = (real)lr, .beta1 = (real)beta1, .beta2 = (real)beta2, .eps = (real)1e-8, .weight_decay = 0,
               .correction1 = (real)(1 - pow(beta1, (double)t)), .correction2 = (real)sqrt(1 - pow(beta2, (double)t))};
    for_each_param(g, [&](const std::string&, Param& p) {
        o.weight_decay = p.rows ? (real)weight_decay : 0;
        // the scale of the next forward pass in training stands already
        Sink s = p.quantizer && g.pass.training ? sink(*p.quantizer, p.rows, p.cols) : Sink{};
        if (s) p.quantizer->fresh = true;
        adamw(p.w, p.operand, p.m, p.v, p.grad, g.result, p.size(), o, s, p.cols);
    });
}
