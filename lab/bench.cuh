// ./train bench: steps, or casts, against each other.
#pragma once
#include "lab/arms.cuh"
#include "lab/cast_bench.cuh"
#include "lab/harness.cuh"
#include <sys/resource.h>

// One operation alone, the median of --steps: attention, forward and backward, in FLOP/s that causality leaves.
inline int bench_op(const Options& o, const std::string& device) {
    Heads d = {o.batch_size, o.seq_len, o.heads, o.channels / o.heads};
    size_t n = d.rows() * d.HS, square = attention_scratch(d);
    Arena a;
    act *qkv, *out, *dout, *dqkv;
    real* lse;
    AttentionScratch s;
    auto plan = [&] {
        a.take(qkv, "", 3 * n), a.take(out, "", n), a.take(dout, "", n), a.take(dqkv, "", 3 * n), a.take(lse, "", d.rows());
        a.take(s.s, "", square), a.take(s.dp, "", square), a.take(s.p, "", square), a.take(s.ds, "", square);
    };
    plan();
    size_t size = std::exchange(a, Arena()).used;
    a.memory = allocate_zeroed(size), plan();
    for (size_t i = 0; i < 3 * n; i++) qkv[i] = act((real)random_normal(1, i));
    for (size_t i = 0; i < n; i++) dout[i] = act((real)random_normal(2, i));
    std::vector<double> ms[2];
    for (int64_t step = -2; step <= o.steps; step++)
        for (int backward : {0, 1}) {
            synchronize("bench");
            Stopwatch watch;
            if (backward) attention_backward(dqkv, dout, qkv, out, lse, s, d);
            else attention_forward(out, lse, qkv, s, d);
            synchronize("bench");
            if (step > 0) ms[backward].push_back(watch.ms());
        }
    double forward = median(ms[0]), backward = median(ms[1]), flops = 2.0 * d.rows() * (d.T + 1) * d.HS;
    auto rate = [](double flops, double ms) { return flops / ms / 1e9; };
    result(format("bench op=attention batch=%d seq_len=%d heads=%d head_size=%d forward_ms=%.4f TFLOP/s=%.2f backward_ms=%.4f "
                  "TFLOP/s=%.2f together=%.2f", d.B, d.T, d.NH, d.HS, forward, rate(flops, forward), backward,
                  rate(2.5 * flops, backward), rate(3.5 * flops, forward + backward)));
    note("%s; medians of %lld; the backward pass counts 2.5 times the forward's products", device.c_str(), (long long)o.steps);
    release_memory(a.memory, size);
    return 0;
}
// Whole training steps on random tokens, after a warm-up; the median of --steps. Arms take turns, step by step, so that
// what else the machine does falls on all of them.
inline int bench(const Options& o, const std::string& device) {
    if (o.op == "casts") {
        note("%s; GB/s of BF16 input, medians of rounds", device.c_str());
        for (auto [R, C] : {std::pair(3072, 3072), {512, 768}}) {
            result(format("matrices of %d x %d", R, C));
            bench_casts(R, C, (int)o.steps, [](const char* name, double rate) {
                result(format("  %-32s %6.2f GB/s", name, rate));
            });
        }
        return 0;
    }
    if (!o.op.empty()) return bench_op(o, device);
    double peak = peak_flops(device);
    Config config = {o.layers, o.heads, o.channels, o.seq_len, o.vocab ? o.vocab : 256};
    std::vector<GPT> models(o.arms.size());
    std::vector<Graph> graphs(models.size());
    struct Times { std::vector<double> ms[2], host[2]; }; // of steps, launch by launch or as graphs
    std::vector<Times> times(models.size());
    int graph_too = machine.gpu && !machine.profile && !machine.debug;
    for (size_t i = 0; i < models.size(); i++) {
        GPT& g = models[i];
        allocate(g, config, Use::training, o.batch_size, o.seq_len, stages_of(o.arms[i], o, config.layers));
        initialise(g, 1);
        std::vector<int> inputs((size_t)g.B * g.T), targets(inputs.size());
        for (size_t n = 0; n < inputs.size(); n++) {
            inputs[n] = (int)(random_bits(1, n) % config.vocab);
            targets[n] = (int)(random_bits(2, n) % config.vocab);
        }
        auto data = open_tokens("builtin"); // only for its index of tokens
        data->vocab = config.vocab;
        set_tokens(g, Batches(*data, g.B, g.T, false, 0), inputs, targets);
    }
    int N = o.batch_size * o.seq_len;
    Later<StepResult> results;
    auto run = [&](size_t i, int64_t t, bool as_graph) { // ms of a step, and of the host until it is launched
        GPT& g = models[i];
        accumulator = g.stages[0].recipe.accum;
        Stopwatch watch;
        double launched = 0, first = 0;
        for (int k = 0; k <= machine.gpu; k++) { // a GPU's second: as in training, it is launched during the first
            Stopwatch host;
            graphs[i].run(!as_graph, [&] {
                for (int micro = 0; micro < o.grad_accum; micro++) {
                    g.pass = {true, 1, (uint64_t)t, (uint64_t)micro};
                    gpt_loss(g, g.B, g.T, 1 / ((float)N * o.grad_accum));
                    gpt_backward(g, g.B, g.T);
                }
                measure_norm(g, 1);
                update(g, t, 1e-4, 0.1);
            });
            launched = host.ms(), results.ask(g.result);
        }
        if (machine.gpu) results.get(), first = watch.ms();
        results.get();
        return std::pair(watch.ms() - first, launched);
    };
    for (int64_t step = -2; step <= o.steps; step++) {
        if (step == 1) machine.costs.clear();
        for (size_t i = 0; i < models.size(); i++)
            for (int as_graph = 0; as_graph <= graph_too; as_graph++) {
                auto [ms, host] = run(i, step + 3, as_graph);
                if (step < 1) continue;
                times[i].ms[as_graph].push_back(ms), times[i].host[as_graph].push_back(host);
            }
    }
    for (size_t i = 0; i < models.size(); i++) {
        GPT& g = models[i];
        std::vector<double> ratios, &ms = times[i].ms[graph_too], &first = times[0].ms[graph_too];
        for (size_t k = 0; k < ms.size(); k++) ratios.push_back(ms[k] / first[k]);
        double step_ms = median(ms), rate = (double)N * o.grad_accum / step_ms * 1e3, params = 0;
        for_each_param(g, [&](const std::string&, Param& p) { params += p.size(); });
        double flops = (6 * params + 6.0 * config.layers * config.channels * g.T) * rate; // as llm.c counts
        rusage usage;
        getrusage(RUSAGE_SELF, &usage);
        const std::string& name = o.arms[i].text;
        double plain = median(times[i].ms[0]), host = median(times[i].host[graph_too]);
        std::string how = emulation(g.stages).empty() ? "" : " emulated";
        if (machine.gpu) how += format(" graphs=%s host_ms=%.2f", graphs[i].used ? "yes" : "no", host);
        if (graphs[i].used) how += format(" without_ms=%.2f", plain);
        if (o.json)
            result(Json(Json::Object).set("recipe", name).set("model", o.model).set("device", device)
                .set("ms_per_step", step_ms).set("tokens_per_second", rate).set("tflops", flops / 1e12)
                .set("mfu", peak ? Json(flops / peak) : Json()).set("of_first", median(ratios))
                .set("uplift", 1 / median(ratios))
                .set("emulated", !emulation(g.stages).empty()).set("graphs", graphs[i].used)
                .set("ms_without_graphs", plain).set("ms_of_host", host).set("arena_mb", g.arena.used / 1e6)
                .set("peak_rss_mb", usage.ru_maxrss / 1024.0).dump());
        else
            result(format("bench recipe=%s model=%s batch=%d seq_len=%d ms/step=%.2f tok/s=%.0f GFLOP/s=%.1f%s "
                          "of_first=%.3f%s arena_MB=%.0f peak_MB=%.0f", name.c_str(), o.model.c_str(), g.B, g.T, step_ms,
                          rate, flops / 1e9, peak ? format(" MFU=%.1f%%", 100 * flops / peak).c_str() : "", median(ratios),
                          how.c_str(), g.arena.used / 1e6, usage.ru_maxrss / 1024.0));
        release(g);
    }
    const char* more = "; host_ms: until the host has launched a step; without_ms: launch by launch, not as graphs";
    note("%s; median of %lld steps; of_first: of step times against the first recipe's, which took turns%s",
         device.c_str(), (long long)o.steps, machine.gpu ? more : "");
    return 0;
}
