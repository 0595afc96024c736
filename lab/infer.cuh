// What a checkpoint is for: its loss under a recipe, and text.
#pragma once
#include "lab/arms.cuh"
#include "lab/export.cuh"
#include "lab/harness.cuh"
#include "run/tokenizer.h"
#include <memory>
#include <optional>

inline void load(GPT& g, Exported& file, int T, int B, std::vector<RecipeStage> stages = bf16_only) {
    if (!file.format.empty()) machine.layout = {}; // codes lie in files as on the CPU
    const std::string& path = file.file.file.path;
    Config config = read_config(path);
    if (T > config.seq_len) fail("--seq-len %d: %s has %d positions", T, path.c_str(), config.seq_len);
    if (!file.format.empty()) freeze(g, file, config);
    allocate(g, config, Use::inference, B, T ? T : config.seq_len, stages); // T 0: the checkpoint's
    if (file.format.empty()) load_weights(g, path);
    else load_export(g, file);
}
// The loss, in BF16 and on the same windows, of what an evaluation is compared with: --against, or the checkpoint that
// an export was made from, if it is there and is still the same. None, and a note why, where there is no such thing.
inline std::optional<double> loss_to_compare(const Options& o, const Exported& file, const Batches& batches) try {
    std::string path = o.against.empty() ? file.source : o.against;
    if (o.against.empty() && file.format.empty()) return {};
    Exported other(path);
    GPT g;
    load(g, other, batches.T, batches.B);
    if (o.against.empty() && hex16(fingerprint_of(g)) != file.fingerprint)
        fail("%s: has other weights than those the export was made from", path.c_str());
    double loss = mean_loss(g, batches, batches.windows());
    release(g);
    return loss;
} catch (const Error& e) {
    if (!o.against.empty()) throw;
    note("no difference to what the export was made from: %s. hint: --against CKPT", e.what());
    return {};
}
// How many elements of linears' inputs lie beyond what a delayed scale brings into the format, and become its largest.
struct Saturation {
    double beyond = 0, count = 0;
    double percent() const { return count ? 100 * beyond / count : 0; }
};
inline void watch_saturation(GPT& g, Saturation* s) { // null: no longer
    for_each_linear(g, [&](const std::string&, Linear& l) {
        l.x.watch = nullptr;
        if (s) l.x.watch = [&g, s](const Tensor& t) {
            const Quantizer& q = *t.quantizer;
            if (!q.is_cast() || q.cast.scaling != Scaling::delayed) return;
            const float* scale = &q.copies[0].factors->scale;
            real* beyond = g.losses; // of each row; nobody needs them yet
            count_beyond(beyond, t.data, scale, q.cast.elem.max, t.rows, t.cols);
            synchronize("saturation");
            for (int r = 0; r < t.rows; r++) s->beyond += beyond[r];
            s->count += (double)t.rows * t.cols;
        };
    });
}
inline Format kv_format(const Options& o) { // --kv-cache
    for (Format f : {BF16, E4M3, E5M2})
        if (o.kv_cache == f.name) return f;
    return format_of_act();
}
// The scales of x and w that a run's checkpoint holds, as its next step would use them: whether it has all that a stage
// of g needs. Enters stage 0; the stage entered next makes its scales of their histories.
inline bool restore_scales(GPT& g, const Safetensors& state) {
    set_stage(g, 0), forget_scales(g);
    bool all = true;
    for_each_operand(g, [&](const std::string& layer, const char* operand, Quantizer& q) {
        if (!q.delayed) return;
        const TensorInfo *scale = state.find(scale_name(layer, operand)), *history = state.find(history_name(layer, operand));
        all = all && scale && history && scale->count() == 1 && scale->dtype == "F32" && history->dtype == "F32";
        if (!all) return;
        size_t n = std::min<size_t>(history->count(), g.history_len);
        float* ring = g.history + (q.delayed - g.delayed) * g.history_len; // the newest stands last
        state.read(&q.delayed->scale, *scale, 0, 1);
        state.read(ring + g.history_len - n, *history, history->count() - n, n);
    });
    if (!all) forget_scales(g);
    return all;
}
inline int eval_command(const Options& o) {
    std::string device = set_machine(o);
    auto tokens = open_tokens(o.data);
    Config config = read_config(o.args[0]);
    Exported file(o.args[0]);
    bool given = o.given.count("calibrate"), calibrates = true;
    std::unique_ptr<Safetensors> state = given ? nullptr : open_state(o.args[0]);
    for (size_t k = 0; state && k < state->header.tensors.size(); k++)
        calibrates &= !state->header.tensors[k].name.starts_with(scale_name("", ""));
    std::vector<RecipeStage> stages = bf16_only; // and of each arm the stage that it ends in
    for (const Arm& arm : o.arms) {
        stages.push_back(stages_of(arm, o, config.layers).back());
        Recipe& r = stages.back().recipe;
        if (calibrates) r.amax_history_len = o.calibrate, r.amax_compute_algo = Algo::max; // all its batches count
        if (!file.format.empty()) adapt(stages.back(), file, arm, o.native);
    }
    tokens->vocab = config.vocab;
    Batches batches(*tokens, o.batch_size, o.seq_len ? o.seq_len : config.seq_len, false, 0);
    std::optional<double> reference = loss_to_compare(o, file, batches);
    GPT g;
    load(g, file, o.seq_len, o.batch_size, stages);
    g.kv = kv_format(o);
    uint64_t windows = batches.windows(), seen = std::min<uint64_t>(o.calibrate * (uint64_t)g.B, windows);
    note("%s. %s: %llu windows of %d tokens", device.c_str(), tokens->name.c_str(), (unsigned long long)windows, g.T);
    double outlier = 1, calibrated = 0; // in the weights; when they were calibrated
    for (size_t i = 0; i < o.arms.size(); i++) {
        const Recipe& r = stages[i + 1].recipe;
        if (r.outlier != outlier) scale_outlier(g, (float)(r.outlier / outlier)), outlier = r.outlier;
        // An export may have scales, and a run's checkpoint has its own; other weights carry none, and for recipes with
        // delayed ones the first batches, in BF16, set them.
        bool of_export = !file.input_amax.empty() && !given,
             from_file = any_delayed(r) && (of_export || (!calibrates && r.outlier == 1 && restore_scales(g, *state)));
        if (any_delayed(r) && calibrated != outlier && !from_file)
            set_stage(g, 0), forget_scales(g), mean_loss(g, batches, seen, true), calibrated = outlier;
        set_stage(g, (int)i + 1);
        if (from_file && of_export) restore_scales(g, file);
        Saturation saturation;
        watch_saturation(g, any_delayed(r) ? &saturation : nullptr);
        double loss = mean_loss(g, batches, windows);
        watch_saturation(g, nullptr);
        int64_t count = (int64_t)windows * g.T;
        Json json = Json(Json::Object).set("recipe", o.arms[i].text).set("loss", loss).set("tokens", count);
        std::string line = eval_line(o.arms[i].text, loss, count);
        auto add = [&](const char* key, const Json& value, const std::string& text) {
            json.set(key, value), line += format(" %s=%s", key, text.c_str());
        };
        uint64_t batches_seen = (seen + g.B - 1) / g.B;
        if (from_file) add("scales", "file", "file");
        else if (any_delayed(r)) add("calibrated", batches_seen, std::to_string(batches_seen));
        if (!o.kv_cache.empty()) add("kv", o.kv_cache, o.kv_cache);
        if (any_delayed(r)) add("saturation", saturation.percent(), format("%.4f%%", saturation.percent()));
        if (!file.format.empty()) add("weights", file.format, file.format);
        if (reference) add("difference", loss - *reference, format("%+.6f", loss - *reference));
        result(o.json ? json.dump() : line);
    }
    release(g);
    return 0;
}
inline int sample_command(const Options& o) {
    set_machine(o);
    Exported file(o.args[0]);
    GPT g;
    load(g, file, 0, 1);
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
    double KiB = cache.bytes / 1024.0;
    std::string where = o.recompute ? "no cache" : format("cache %.*f KiB", KiB < 100 ? 2 : 0, KiB);
    note("%d tokens, %.0f tokens/s, %s (%s)", o.tokens, o.tokens / ms * 1e3, where.c_str(), g.kv.name);
    if (machine.profile) print_profile();
    if (!o.recompute) release(cache);
    release(g);
    return 0;
}
