// What a recipe does to one step, teacher-forced: the same weights, the same batch, the weight gradients under a recipe
// against those in FP32. No training run, no chaos, no interval: one seed settles it.
//
// - relative error: |dW - dW_fp32| / |dW_fp32| over all elements of the layers that count, root mean square over draws
//   where a cast rounds stochastically; of the mean over those draws in `mean_error`, where unbiased errors cancel.
// - Delayed scales are as in training: the largest amaxes of CALIBRATION training batches, not of the batch measured.
#pragma once
#include "lab/arms.cuh"
#include "lab/f32.h"
#include "lab/harness.cuh"

constexpr int CALIBRATION = 8, DRAWS = 16;

struct GradientError {
    double error2 = 0, mean_error2 = 0, reference2 = 0, value2 = 0, dot = 0; // sums of squares and products
    double relative() const { return sqrt(error2 / reference2); }
    double of_mean() const { return sqrt(mean_error2 / reference2); }
    double cosine() const { return dot / sqrt(reference2 * value2); }
    GradientError& operator+=(const GradientError& o) {
        error2 += o.error2, mean_error2 += o.mean_error2, reference2 += o.reference2;
        value2 += o.value2, dot += o.dot;
        return *this;
    }
};

// The weights of one checkpoint, its first evaluation batch, and the FP32 gradients there.
struct TeacherForced {
    GPT g; // stage 0 is bf16, stage i + 1 the i-th recipe
    Batches train, val;
    int B, draws = DRAWS; // windows in the batch; of each recipe that draws
    double outlier = 1;   // in the weights
    double loss_scale = 1; // of the steps
    std::vector<std::vector<float>> reference; // dW in FP32, in the order of for_each_linear
    double referenced = 0;                     // for weights with this outlier; 0: not at all
    std::pair<double, double> calibrated;      // and with this loss scale
    std::vector<Delayed> scales;
    std::vector<float> history;

    // The batch: the first windows of `val`, as many as a training batch has.
    TeacherForced(Config config, const std::string& checkpoint, const std::vector<Recipe>& recipes,
                  const Tokens& train_tokens, const Tokens& val_tokens, int batch, int T, uint64_t seed)
        : train(train_tokens, batch, T, true, seed), val(val_tokens, batch, T, false, seed),
          B((int)std::min<uint64_t>(batch, val.windows())) {
        std::vector<RecipeStage> stages = bf16_only;
        for (Recipe r : recipes) {
            r.amax_history_len = CALIBRATION, r.amax_compute_algo = Algo::max;
            stages.push_back({0, r, std::vector<bool>(4 * config.layers + 1)}); // nothing is skipped
        }
        allocate(g, config, Use::gradients, batch, T, stages);
        load_weights(g, checkpoint);
    }
    TeacherForced(const TeacherForced&) = delete;
    ~TeacherForced() { release(g); }

    double step(int windows, int draw) { // loss and gradients of the batch that is loaded, in the present stage
        g.pass = {true, 1, (uint64_t)draw, 0};
        double scale = loss_scale / ((double)windows * g.T);
        double loss = gpt_forward(g, windows, g.T, (float)scale);
        gpt_backward(g, windows, g.T);
        synchronize("gradients");
        return loss;
    }
    void calibrate() {
        set_stage(g, 0), forget_scales(g);
        for (int i = 0; i < CALIBRATION; i++) load_batch(g, train, i), step(g.B, 0);
        scales.assign(g.delayed, g.delayed + g.all_delayed);
        history.assign(g.history, g.history + (size_t)g.all_delayed * g.history_len);
        calibrated = {outlier, loss_scale};
    }
    void refer() {
        std::vector<const float*> weights;
        for_each_param(g, [&](const std::string&, Param& p) { weights.push_back(p.w); });
        f32_gradients(reference, g.config, weights, val, B, g.T);
        referenced = outlier;
    }
    // Under recipe i (-1: bf16), linears in `skip` left in BF16: an error per linear; loss: of the batch.
    std::vector<GradientError> measure(int i, const std::vector<bool>& skip, double* loss = nullptr) {
        g.stages[i + 1].skip = skip;
        const Recipe& r = g.stages[i + 1].recipe;
        if (r.outlier != outlier) scale_outlier(g, (float)(r.outlier / outlier)), outlier = r.outlier;
        if (referenced != outlier) refer();
        loss_scale = r.loss_scale;
        if (any_delayed(r) && calibrated != std::pair(outlier, loss_scale)) calibrate();
        std::vector<int> inputs((size_t)B * g.T), targets(inputs.size());
        val.fill_windows(0, B, inputs.data(), targets.data());
        set_tokens(g, val, inputs, targets);
        bool drawn = any_cast(r, [](const Cast& c) { return is_quantized(c) && c.round == Rounding::sr; });
        int count = drawn ? draws : 1;
        std::vector<GradientError> errors(reference.size());
        std::vector<std::vector<float>> mean(reference.size());
        for (int draw = 0; draw < count; draw++) {
            std::copy(scales.begin(), scales.end(), g.delayed); // the batch itself must not have moved them
            std::copy(history.begin(), history.end(), g.history);
            g.stage = 0, set_stage(g, i + 1); // from which they move to this recipe's formats
            double l = step(B, draw);
            if (loss && draw == 0) *loss = l;
            size_t k = 0;
            for_each_linear(g, [&](const std::string&, Linear& linear) {
                const std::vector<float>& want = reference[k];
                mean[k].resize(want.size());
                GradientError& e = errors[k];
                for (size_t n = 0; n < want.size(); n++) {
                    double v = (double)linear.weight.grad[n] / r.loss_scale, d = v - want[n];
                    e.error2 += d * d / count, e.reference2 += (double)want[n] * want[n] / count;
                    e.value2 += v * v / count, e.dot += v * want[n] / count;
                    double m = mean[k][n] += (float)(d / count);
                    if (draw == count - 1) e.mean_error2 += m * m;
                }
                k++;
            });
        }
        return errors;
    }
};
inline GradientError total(const std::vector<GradientError>& errors, const std::vector<bool>& skip = {}) {
    GradientError sum;
    for (size_t i = 0; i < errors.size(); i++)
        if (skip.empty() || !skip[i]) sum += errors[i];
    return sum;
}

// --- which layers are sensitive ------------------------------------------------------------------------------------
// Recipe 0 of t, and its restrictions to fprop, dgrad and wgrad as recipes 1, 2, 3. Everything is the error of all
// linears' dW together: with one linear quantized (in all its GEMMs, or in one of them), with all but one, and with the
// linears skipped one after the other. Errors of single linears add up in squares, nearly; so those come first that bring
// most squared error per FLOP.
inline void scan(TeacherForced& t, const std::string& arm, bool json) {
    std::vector<std::string> names = linear_names(t.g.config.layers);
    size_t n = names.size();
    std::vector<double> flops;
    for_each_linear(t.g, [&](const std::string&, Linear& l) { flops.push_back((double)l.weight.size()); });
    double all_flops = 0, bf16_loss = 0, full_loss = 0;
    for (double f : flops) all_flops += f;
    std::vector<bool> all(n, true), none(n, false);
    double floor2 = total(t.measure(-1, all, &bf16_loss)).error2, full2, reference2;
    GradientError full = total(t.measure(0, none, &full_loss));
    full2 = full.error2, reference2 = full.reference2;
    auto percent = [&](double error2) { return 100 * sqrt(error2 / reference2); };
    struct Layer { size_t i; double only2, gemm2[3], but2, loss, flops; };
    std::vector<Layer> layers;
    for (size_t i = 0; i < n && !stop_signal(); i++) {
        std::vector<bool> only = all, but = none;
        only[i] = false, but[i] = true;
        Layer l = {.i = i, .only2 = 0, .gemm2 = {}, .but2 = total(t.measure(0, but)).error2, .loss = 0,
                   .flops = flops[i] / all_flops};
        l.only2 = total(t.measure(0, only, &l.loss)).error2;
        for (int k = 0; k < 3; k++)
            l.gemm2[k] = total(t.measure(k + 1, only)).error2;
        layers.push_back(l);
    }
    if (stop_signal()) return;
    std::sort(layers.begin(), layers.end(), [&](auto& a, auto& b) {
        return (a.only2 - floor2) / a.flops > (b.only2 - floor2) / b.flops;
    });
    if (!json) {
        result(format("scan of %s: dW is off by %.2f %% with every linear quantized and by %.2f %% in BF16; the loss of the "
                      "batch changes by %+.4f from BF16's %.4f.", arm.c_str(), percent(full2), percent(floor2),
                      full_loss - bf16_loss, bf16_loss));
        result("Below, in %: its share of the GEMMs' FLOPs; the error of dW if this linear alone is quantized, in all its\n"
               "GEMMs or in one; if all others are; and if this and all above stay in BF16, which takes so many FLOPs.");
        result(format("%-16s %6s | %6s %6s %6s %6s %8s | %6s | %6s %6s", "layer", "FLOPs", "alone", "fprop", "dgrad",
                      "wgrad", "loss", "others", "so far", "FLOPs"));
    }
    std::vector<bool> skip = none;
    std::string list; // as --skip wants it, which begins with lm_head
    double flops_so_far = 0, part = 1;
    std::vector<std::string> choices;
    for (const Layer& l : layers) {
        skip[l.i] = true, flops_so_far += l.flops;
        list += names[l.i] == "lm_head" ? "" : "," + names[l.i];
        double left2 = total(t.measure(0, skip)).error2, left = (left2 - floor2) / (full2 - floor2);
        bool halves = left < part / 2 && choices.size() < 4;
        if (halves) // the first list that takes away half of what the last one left
            part = left, choices.push_back(format("--skip %s    # dW off by %.2f %%, with %.1f %% of the GEMMs' FLOPs in BF16",
                (skip[n - 1] ? list.empty() ? "lm_head" : list.substr(1) : "none" + list).c_str(), percent(left2),
                100 * flops_so_far));
        if (json)
            result(Json(Json::Object).set("recipe", arm).set("layer", names[l.i]).set("flops_percent", 100 * l.flops)
                .set("only_percent", percent(l.only2)).set("fprop_percent", percent(l.gemm2[0]))
                .set("dgrad_percent", percent(l.gemm2[1])).set("wgrad_percent", percent(l.gemm2[2]))
                .set("only_loss", l.loss - bf16_loss).set("all_but_percent", percent(l.but2))
                .set("so_far_percent", percent(left2)).set("so_far_flops_percent", 100 * flops_so_far).dump());
        else
            result(format("%-16s %6.2f | %6.2f %6.2f %6.2f %6.2f %+8.4f | %6.2f | %6.2f %6.1f", names[l.i].c_str(),
                          100 * l.flops, percent(l.only2), percent(l.gemm2[0]), percent(l.gemm2[1]),
                          percent(l.gemm2[2]), l.loss - bf16_loss, percent(l.but2), percent(left2),
                          100 * flops_so_far));
    }
    for (auto& choice : choices)
        if (!json) result(choice);
}
