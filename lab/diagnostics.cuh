// What casts do to the operands of linears: the rows of tensors.csv, and --dump. Both watch quantize(): they are called
// when source and copies of an operand are there at the same time, which under a recipe is the only moment.
#pragma once
#include "lab/harness.cuh"
#include "run/options.h"
#include "run/safetensors.h"

// --- measuring one -----------------------------------------------------------------------------------------------
struct TensorStats {
    double amax, scale;           // before scaling; the scale of the cast, NaN where blocks have theirs
    double underflow, saturation; // % of elements that became zero; that lay beyond the format's max
    double sqnr_db, bias;         // 20 log10(|x| / |x - q|); 100 sum(q - x) / sum|x|
};
// Of the copy along cols, or along rows where that is the only one. scratch: measure_scratch(R, C) of that copy.
inline TensorStats measure(const Tensor& t, float* scratch) {
    Quantizer& q = *t.quantizer;
    Along along = q.needs(Along::cols, true) ? Along::cols : Along::rows;
    bool cols = along == Along::cols;
    int R = cols ? t.rows : t.cols, C = cols ? t.cols : q.contraction(t.rows);
    const act* data = q.transforms() && !cols ? q.transformed : t.data;
    Operand copy = operand_of(t, along), source = cols ? rows_of(data, t.cols) : columns_of(data, t.cols);
    const Copy::Factors* factors = q.copies[(int)along].factors;
    float max = q.cast.elem.max, *sums = scratch, *rows = scratch + (size_t)SUMS * R;
    for (int first = 0; first < R; first += MEASURED_ROWS)
        measure_rows(sums, rows, copy, source, *factors, max, first, std::min(MEASURED_ROWS, R - first), C);
    synchronize("measure");
    double total[SUMS] = {}, count = (double)R * C;
    for (int r = 0; r < R; r++)
        for (int k = 0; k < SUMS; k++)
            if (double v = sums[(size_t)r * SUMS + k]; k < SUMS - 1) total[k] += v;
            else total[k] = std::max(total[k], v);
    auto percent = [](double part, double whole) { return whole ? 100 * part / whole : 0; };
    return {.amax = total[7], .scale = is_per_tensor(q.cast) ? factors->scale : NAN,
            .underflow = percent(total[0] - total[1], count), .saturation = percent(total[2], count),
            .sqnr_db = 10 * log10(total[3] / total[4]), .bias = percent(total[5], total[6])};
}

// --- watching all of them ----------------------------------------------------------------------------------------
// The copy of every operand that this microbatch casts becomes a row of tensors.csv; write_stats() writes them.
using TensorRows = std::map<std::pair<std::string, std::string>, std::vector<std::string>>;
inline void watch_stats(GPT& g, TensorRows& rows) {
    for_each_operand(g, [&](const std::string& layer, const char* operand, Quantizer& q) {
        q.watch = [&g, &rows, key = std::pair(layer, std::string(operand))](const Tensor& t) {
            const Quantizer& q = *t.quantizer;
            if (!q.is_cast()) {
                rows[key] = {BF16.name, "", "", "", "", "", ""};
                return;
            }
            TensorStats s = measure(t, g.measured);
            std::string scale = std::isnan(s.scale) ? "" : number(s.scale);
            rows[key] = {q.cast.elem.name, number(s.amax), scale, number(s.underflow), number(s.saturation),
                         number(s.sqnr_db), number(s.bias)};
        };
    });
}
inline void write_stats(GPT& g, TensorRows& rows, Log& log, const std::string& arm, int64_t seed, int64_t step) {
    for_each_operand(g, [&](const std::string& layer, const char* operand, Quantizer&) {
        std::vector<std::string> row = {arm, std::to_string(seed), std::to_string(step), layer, operand};
        auto& cells = rows[{layer, operand}];
        row.insert(row.end(), cells.begin(), cells.end());
        log.tensors.row(row);
    });
    log.tensors.flush();
}
// --dump LAYER:OPERAND@STEP: the operand, its codes and scales, in a safetensors file.
struct Dump { std::string layer, operand; int64_t step = 0; };
inline Dump dump_of(const Options& o, const std::vector<std::string>& layers) {
    if (o.dump.empty()) return {};
    if (machine.gpu) fail("--dump: a GPU's copies lie as its GEMMs want them. hint: --device cpu");
    size_t colon = o.dump.find(':'), at = o.dump.find('@');
    Dump d;
    if (colon < at && at < o.dump.size() && is_number(o.dump.substr(at + 1)))
        d = {o.dump.substr(0, colon), o.dump.substr(colon + 1, at - colon - 1), atoll(o.dump.c_str() + at + 1)};
    bool known = std::find(layers.begin(), layers.end(), d.layer) < layers.end() && word_in(d.operand, "x w dy");
    if (!known || d.step < 1 || d.step > o.steps)
        fail_usage("--dump %s: it takes LAYER:OPERAND@STEP with a layer such as %s, an operand of x, w, dy and a step "
                   "from 1 to --steps %lld", o.dump.c_str(), layers[0].c_str(), (long long)o.steps);
    return d;
}
inline void watch_dump(GPT& g, const Dump& d, const std::string& path) {
    for_each_operand(g, [&](const std::string& layer, const char* operand, Quantizer& q) {
        if (layer != d.layer || operand != d.operand) return;
        q.watch = [watch = q.watch, path](const Tensor& t) {
            if (watch) watch(t);
            synchronize("dump");
            Quantizer& q = *t.quantizer;
            auto shape = [](int64_t rows, int64_t cols) { return std::vector<int64_t>{rows, cols}; };
            std::vector<TensorOut> tensors = {
                {"source", std::is_same_v<act, bf16> ? "BF16" : "F32", shape(t.rows, t.cols), t.data}};
            TextMap text = {{"format", q.cast.elem.name}, {"scaling", kind_of(q.cast).name}};
            for (Along k : {Along::cols, Along::rows}) {
                if (!q.needs(k, true)) continue;
                std::string end = k == Along::cols ? "" : "_along_rows";
                Copy& c = q.copies[(int)k];
                int64_t O = k == Along::cols ? t.rows : t.cols, K = k == Along::cols ? t.cols : q.contraction(t.rows);
                CopyBytes bytes = q.bytes(k, t.rows, t.cols);
                tensors.push_back({"codes" + end, "U8", shape(O, code_bytes(q.cast.elem, K)), c.codes});
                bool floats = kind_of(q.cast).scales == Elem::f32;
                int64_t KB = q.cast.block.cols ? blocks(K, q.cast.block.cols) : 1;
                if (bytes.scales)
                    tensors.push_back({"scales" + end, floats ? "F32" : "U8",
                                       shape((int64_t)bytes.scales / (floats ? 4 : 1) / KB, KB), c.scales});
                if (is_per_tensor(q.cast)) tensors.push_back({"scale_inv" + end, "F32", {1}, &c.factors->scale_inv});
                if (q.cast.scaling == Scaling::nvfp4) tensors.push_back({"amax" + end, "F32", {1}, &c.factors->amax});
            }
            write_safetensors(path, tensors, text);
        };
    });
}
