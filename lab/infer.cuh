// What a checkpoint is for: its loss under a recipe, and text.
#pragma once
#include "lab/arms.cuh"
#include "lab/harness.cuh"
#include "run/tokenizer.h"

inline void load(GPT& g, const std::string& path, int T, int B, std::vector<RecipeStage> stages = bf16_only) {
    Config config = read_config(path);
    if (T > config.seq_len) fail("--seq-len %d: %s has %d positions", T, path.c_str(), config.seq_len);
    allocate(g, config, Use::inference, B, T ? T : config.seq_len, stages); // T 0: the checkpoint's
    load_weights(g, path);
}
inline Format kv_format(const Options& o) { // --kv-cache
    for (Format f : {BF16, E4M3, E5M2})
        if (o.kv_cache == f.name) return f;
    return format_of_act();
}
inline int eval_command(const Options& o) {
    std::string device = set_machine(o);
    auto tokens = open_tokens(o.data);
    Config config = read_config(o.args[0]);
    std::vector<RecipeStage> stages = bf16_only; // and of each arm the stage that it ends in
    for (const Arm& arm : o.arms) {
        stages.push_back(stages_of(arm, o, config.layers).back());
        Recipe& r = stages.back().recipe;
        r.amax_history_len = 8, r.amax_compute_algo = Algo::max; // calibration counts all its batches
    }
    tokens->vocab = config.vocab;
    GPT g;
    load(g, o.args[0], o.seq_len, o.batch_size, stages);
    g.kv = kv_format(o);
    Batches batches(*tokens, g.B, g.T, false, 0);
    uint64_t windows = batches.windows(), seen = std::min<uint64_t>(8 * (uint64_t)g.B, windows);
    note("%s. %s: %llu windows of %d tokens", device.c_str(), tokens->name.c_str(), (unsigned long long)windows, g.T);
    double outlier = 1, calibrated = 0; // in the weights; when they were calibrated
    for (size_t i = 0; i < o.arms.size(); i++) {
        const Recipe& r = stages[i + 1].recipe;
        if (r.outlier != outlier) scale_outlier(g, (float)(r.outlier / outlier)), outlier = r.outlier;
        // Weights carry no scales: for recipes with delayed ones the first batches, in BF16, set them.
        if (any_delayed(r) && calibrated != outlier)
            set_stage(g, 0), forget_scales(g), mean_loss(g, batches, seen, true), calibrated = outlier;
        set_stage(g, (int)i + 1);
        double loss = mean_loss(g, batches, windows);
        int64_t count = (int64_t)windows * g.T;
        Json json = Json(Json::Object).set("recipe", o.arms[i].text).set("loss", loss).set("tokens", count);
        std::string line = eval_line(o.arms[i].text, loss, count);
        if (any_delayed(r)) {
            int calibrated = (int)((seen + g.B - 1) / g.B);
            json.set("calibrated", calibrated), line += format(" calibrated=%d", calibrated);
        }
        if (!o.kv_cache.empty()) json.set("kv", o.kv_cache), line += " kv=" + o.kv_cache;
        result(o.json ? json.dump() : line);
    }
    release(g);
    return 0;
}
inline int sample_command(const Options& o) {
    set_machine(o);
    GPT g;
    load(g, o.args[0], 0, 1);
    Tokenizer tokenizer = open_tokenizer(o.tokenizer, {o.args[0]}, g.config.vocab);
    std::vector<int> text = tokenizer.encode(o.prompt);
    KvCache cache;
    g.kv = kv_format(o);
    if (!o.recompute) allocate(cache, g.kv, g.config.layers, g.T, g.config.channels);
    Stopwatch watch;
    Draw draw = {o.temperature, o.top_k, o.top_p, (uint64_t)o.seed};
    text = sample_tokens(g, text, o.tokens, draw, o.recompute ? nullptr : &cache);
    double ms = watch.ms();
    result(tokenizer.decode(text));
    std::string where = o.recompute ? "no cache" : format("cache %.0f KiB", cache.bytes / 1024.0);
    note("%d tokens, %.0f tokens/s, %s (%s)", o.tokens, o.tokens / ms * 1e3, where.c_str(), g.kv.name);
    if (machine.profile) print_profile();
    if (!o.recompute) release(cache);
    release(g);
    return 0;
}
