// What every command does with a model: load it, feed it batches, evaluate it, look at it.
#pragma once
#include "model.cuh"
#include "ops/graph.cuh"
#include "run/checkpoint.h"
#include "run/data.h"
#include "run/log.h"
#include "run/options.h"
#include "run/sample.h"
#ifdef _OPENMP
#include <omp.h>
#endif

struct Stopwatch {
    using clock = std::chrono::steady_clock;
    clock::time_point start = clock::now();
    double ms() const { return std::chrono::duration<double, std::milli>(clock::now() - start).count(); }
};
inline double median(std::vector<double> v) {
    if (v.empty()) return NAN;
    std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
    return v[v.size() / 2];
}

// --- machine -----------------------------------------------------------------------------------------------------
inline std::string set_machine(const Options& o) { // returns its description
    machine.kernels = o.kernels == "reference" ? Kernels::reference
                      : o.kernels == "portable" ? Kernels::portable
                                                : Kernels::fast;
    machine.profile = o.profile;
    std::string why_not;
    Card card = o.device == "cpu" ? Card() : find_card(why_not);
    if (o.device == "cuda" && card.name.empty()) fail("--device cuda: %s", why_not.c_str());
    if (!card.name.empty()) use_gpu(card);
    int threads = 1;
#ifdef _OPENMP
    if (o.threads) omp_set_num_threads(o.threads);
    threads = omp_get_max_threads();
#endif
    if (machine.gpu) return card.name;
    CpuKernel kernel = machine.kernels == Kernels::fast ? CpuKernel::fast : CpuKernel::portable;
    const char* gemm = machine.kernels == Kernels::reference ? "reference" : cpu_kernel_name(kernel);
    std::string where = format("CPU, %d thread%s, %s matmul", threads, threads == 1 ? "" : "s", gemm);
    if (o.device == "auto" && has_gpu_code()) where += " (" + why_not + ")";
    return where;
}

inline void print_profile() {
    std::vector<std::pair<std::string, Machine::Cost>> costs(machine.costs.begin(), machine.costs.end());
    std::sort(costs.begin(), costs.end(), [](auto& a, auto& b) { return a.second.seconds > b.second.seconds; });
    double total = 0;
    for (auto& [name, c] : costs) total += c.seconds;
    auto of_peak = [](double peak, double seconds, double of) {
        return peak ? format(" %7.1f", 100 * seconds / of) : "";
    };
    fprintf(stderr, "%-26s %8s %10s %6s %8s%s %9s%s\n", "operation", "calls", "ms", "%", "GB/s",
            machine.peak_bytes ? "  % peak" : "", "GFLOP/s", machine.peak_flops ? "  % peak" : "");
    for (auto& [name, c] : costs)
        fprintf(stderr, "%-26s %8ld %10.2f %6.1f %8.1f%s %9.1f%s\n", name.c_str(), c.calls, c.seconds * 1e3,
                100 * c.seconds / total, c.bytes / c.seconds / 1e9,
                of_peak(machine.peak_bytes, c.bytes / machine.peak_bytes, c.seconds).c_str(), c.flops / c.seconds / 1e9,
                of_peak(machine.peak_flops, c.at_peak, c.seconds).c_str());
}

// --- weights -----------------------------------------------------------------------------------------------------
inline std::vector<NamedTensor> named_tensors(GPT& g, real* Param::*of = &Param::w) { // masters, or moments
    std::vector<NamedTensor> all;
    for_each_param(g, [&](const std::string& name, Param& p) {
        std::vector<int64_t> shape = p.rows ? std::vector<int64_t>{p.rows, p.cols} : std::vector<int64_t>{p.cols};
        all.push_back({name, shape, p.*of, p.conv1d});
    });
    return all;
}
inline void load_weights(GPT& g, const std::string& path) { load_checkpoint(path, named_tensors(g)), publish(g); }
inline uint64_t fingerprint_of(GPT& g) {
    synchronize("fingerprint");
    Fingerprint f;
    for_each_param(g, [&](const std::string&, Param& p) { f.add(p.w, p.size() * sizeof(real)); });
    return f.value();
}
// Channel 0 of what the LayerNorms hand to linears times `factor`, and its weights there divided by it: the function
// stays what it was, to the bit if factor is a power of two.
inline void scale_outlier(GPT& g, float factor) {
    auto scale = [factor](Norm& n, Linear& l) {
        n.weight.w[0] *= factor, n.bias.w[0] *= factor;
        for (int o = 0; o < l.weight.rows; o++) l.weight.w[(size_t)o * l.weight.cols] /= factor;
    };
    synchronize("weights");
    for (TransformerBlock& b : g.blocks) scale(b.ln_1, b.attn_qkv), scale(b.ln_2, b.mlp_fc);
    publish(g);
}
// What a recipe asks to be done to the weights that it starts from.
inline void disturb(GPT& g, const Recipe& r) {
    synchronize("weights");
    for_each_param(g, [&](const std::string&, Param& p) {
        for (size_t i = 0; i < p.size() && p.rows && r.init_scale != 1; i++) p.w[i] *= (real)r.init_scale;
    });
    float w = (float)g.wte.w[0], below = bits_as<float>(bits_as<uint32_t>(w) & 0x7f800000); // 2^exponent
    g.wte.w[0] += r.nudge * below * 0x1p-7f; // BF16 has 7 bits behind the leading one
    if (r.outlier != 1) scale_outlier(g, (float)r.outlier);
    publish(g);
}

inline const char* const operand_names[] = {"x", "w", "dy"};
template <class F> void for_each_operand(GPT& g, F f) { // f(layer, operand, Quantizer)
    for_each_linear(g, [&](const std::string& name, Linear& l) {
        Quantizer* q[] = {&l.x, &l.w, &l.dy};
        for (int i = 0; i < 3; i++) f(name, operand_names[i], *q[i]);
    });
}

// --- what a step changes besides the weights -----------------------------------------------------------------------
inline std::vector<NamedTensor> moments_of(GPT& g) {
    std::vector<NamedTensor> all;
    for (auto [name, moment] : {std::pair("m.", &Param::m), {"v.", &Param::v}})
        for (NamedTensor& t : named_tensors(g, moment)) all.push_back({name + t.name, t.shape, t.data, false});
    return all;
}
inline std::string scale_name(const std::string& layer, const std::string& operand) {
    return "scale." + layer + (layer.empty() ? "" : "." + operand);
}
inline std::string history_name(const std::string& layer, const std::string& operand) {
    return "amax_history." + layer + "." + operand;
}
// Every operand's delayed scale and amax history, oldest first, in `values`: copied there, or from there.
inline std::vector<NamedTensor> scales_of(GPT& g, std::vector<float>& values, bool restore) {
    std::vector<NamedTensor> all;
    size_t n = g.history_len;
    values.resize(g.all_delayed * (n + 1));
    synchronize("scales");
    for_each_operand(g, [&](const std::string& layer, const char* operand, Quantizer& q) {
        if (!q.delayed) return;
        size_t i = q.delayed - g.delayed;
        float *ring = g.history + i * n, *value = &values[i * (n + 1)];
        if (restore) q.delayed->scale = *value, q.delayed->position = 0, std::copy_n(value + 1, n, ring);
        else *value = q.delayed->scale, std::rotate_copy(ring, ring + q.delayed->position, ring + n, value + 1);
        all.push_back({scale_name(layer, operand), {}, value, false});
        all.push_back({history_name(layer, operand), {(int64_t)n}, value + 1, false});
    });
    return all;
}

// --- batches -----------------------------------------------------------------------------------------------------
// The batch in `inputs` and `targets` (B, T), with the index that the embedding's gradient wants.
inline void set_tokens(GPT& g, const Batches& batches, const std::vector<int>& inputs, const std::vector<int>& targets) {
    size_t N = inputs.size();
    std::vector<int> distinct(N), first(N + 1), positions(N);
    g.index.count = batches.index(inputs.data(), distinct.data(), first.data(), positions.data());
    upload(g.tokens, inputs.data(), 4 * N), upload(g.targets, targets.data(), 4 * N);
    upload(g.index.distinct, distinct.data(), 4 * N), upload(g.index.first, first.data(), 4 * N + 4);
    upload(g.index.positions, positions.data(), 4 * N);
}
inline void load_batch(GPT& g, const Batches& batches, uint64_t i) {
    std::vector<int> inputs((size_t)g.B * g.T), targets(inputs.size());
    batches.fill(i, inputs.data(), targets.data());
    set_tokens(g, batches, inputs, targets);
}
// Mean loss over the first windows, in nats per token. recording: amaxes, as in training.
inline double mean_loss(GPT& g, const Batches& batches, uint64_t windows, bool recording = false) {
    double sum = 0;
    std::vector<int> inputs((size_t)g.B * g.T), targets(inputs.size());
    g.pass.training = recording, g.pass.micro = 0;
    for (uint64_t w = 0; w < windows; w += g.B, g.pass.micro++) {
        int B = (int)std::min<uint64_t>(g.B, windows - w);
        batches.fill_windows(w, B, inputs.data(), targets.data());
        upload(g.tokens, inputs.data(), inputs.size() * 4), upload(g.targets, targets.data(), targets.size() * 4);
        sum += gpt_forward(g, B, g.T) * B;
    }
    return sum / windows;
}
// Continues `text` by `count` tokens; see draw_token(). The model sees the text, or its last g.T tokens, with positions
// from 0; when a window of g.T tokens is full, the last half of it starts the next. A cache changes no token, unless a
// recipe scales activations by what else is in the batch (`current`, nvfp4). g.B >= 1.
inline std::vector<int> sample_tokens(GPT& g, std::vector<int> text, int count, const Draw& draw,
                                      KvCache* cache = nullptr) {
    std::vector<double> logits(g.config.vocab);
    size_t T = g.T, start = text.size() - std::min(text.size(), T), done = start; // the cache holds text[start, done)
    g.pass.training = false;
    for (int i = 0; i < count; i++) {
        if (text.size() - start > T) start = text.size() - std::max<size_t>(T / 2, 1), done = start;
        if (cache) cache->past = (int)(done - start);
        else done = start;
        g.pass.micro = i;
        upload(g.tokens, &text[done], (text.size() - done) * 4);
        gpt_next(g, (int)(text.size() - done), cache);
        done = text.size();
        for (size_t v = 0; v < logits.size(); v++) logits[v] = (real)g.logits[v];
        text.push_back(draw_token(logits, draw, random_uniform(draw.seed, i)));
    }
    return text;
}

// --- when it goes wrong ------------------------------------------------------------------------------------------
// The first thing in the order of computation that is not finite: what a NaN is to be blamed on.
inline std::string first_bad(GPT& g, int N) {
    std::string found;
    auto look = [&](const std::string& name, const auto* x, size_t n) {
        for (size_t i = 0; i < n && found.empty(); i++)
            if (!std::isfinite((real)x[i])) found = format("%s[%zu] = %g", name.c_str(), i, (double)(real)x[i]);
    };
    size_t C = g.config.channels;
    for_each_param(g, [&](const std::string& name, Param& p) { look(name, p.w, p.size()); });
    look("embedding", g.x0, N * C);
    for (size_t l = 0; l < g.blocks.size(); l++) { // what a recipe keeps as codes only is seen one operation later
        TransformerBlock& b = g.blocks[l];
        std::string h = "h." + std::to_string(l);
        look(h + ".attn.c_attn", b.qkv, N * 3 * C), look(h + ".attn", b.att, N * C);
        look(h + ".attn.c_proj", b.mid, N * C), look(h + ".mlp.c_fc", b.fc, N * 4 * C);
        look(h + ".mlp.c_proj", b.out, N * C);
    }
    look("ln_f", g.lnf, N * C), look("loss", g.losses, N);
    look("lm_head gradient", g.logits, (size_t)std::min(N, g.chunk) * g.config.vocab); // of the last chunk
    for_each_param(g, [&](const std::string& name, Param& p) { look("gradient of " + name, p.grad, p.size()); });
    return found.empty() ? "the sum of squares overflows" : found;
}
