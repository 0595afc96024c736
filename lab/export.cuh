// Exports: a model for inference whose linears' weights are codes and scales, in one safetensors file that
// docs/export.md describes. What is easy to get wrong:
// - Codes lie as GEMMs read them, (OC, C), contiguous along the contraction, for their scales run along it. Matrices in
//   BF16 lie as GPT-2 publishes them, (C, OC).
// - Scales are what a decoder multiplies by: weight = code * weight_scale [* weight_scale_2].
// - How a weight is stored is said once, by the types and shapes of its tensors. __metadata__ says only where all of it
//   comes from, and config.json the same for other programs.
// - NVFP4's casts and GEMMs know a tensor by its amax, files by weight_scale_2 = amax / 2688. An amax is a BF16 value,
//   which is why the way back is exact; likewise input_scale = amax / 448.
// - Weights are BF16 before they are cast, as in ./train, in ./train-f32 too: both write the same file.
#pragma once
#include "lab/arms.cuh"
#include "lab/harness.cuh"
#include <deque>
#include <filesystem>

inline const char* dtype_of(Format f) {
    const std::pair<Format, const char*> names[] = {{E4M3, "F8_E4M3"}, {E5M2, "F8_E5M2"}, {E3M2, "F6_E3M2"},
                                                    {E2M3, "F6_E2M3"}, {E2M1, "F4"}, {E8M0, "F8_E8M0"}, {FP32, "F32"}};
    for (auto& [format, name] : names)
        if (format == f) return name;
    return "BF16";
}
// Codes of 6 bits lie in a byte each here and as one stream of bits there, the lowest bit first.
inline void pack6(uint8_t* out, const uint8_t* codes, size_t n) {
    std::fill(out, out + n * 6 / 8, 0);
    for (size_t i = 0; i < n; i++)
        for (size_t bit = 0; bit < 6; bit++) out[(i * 6 + bit) / 8] |= (codes[i] >> bit & 1) << (i * 6 + bit) % 8;
}
inline void unpack6(uint8_t* codes, const uint8_t* in, size_t n) {
    std::fill(codes, codes + n, 0);
    for (size_t i = 0; i < n; i++)
        for (size_t bit = 0; bit < 6; bit++) codes[i] |= (in[(i * 6 + bit) / 8] >> (i * 6 + bit) % 8 & 1) << bit;
}

// The tensors of a weight (OC, C) that is codes, and where each lies in its copy: what is written and what is read.
struct Part {
    std::string name, dtype;
    std::vector<int64_t> shape;
    void* data;
};
inline std::vector<Part> parts_of(const std::string& layer, Quantizer& q, int64_t OC, int64_t C, float* scale_2) {
    Copy& copy = q.copies[0];
    std::string at = layer + ".weight";
    std::vector<Part> parts = {{at, dtype_of(q.cast.elem), {OC, C}, copy.codes}};
    if (is_per_tensor(q.cast)) parts.push_back({at + "_scale", "F32", {}, &copy.factors->scale_inv});
    else {
        Elem kind = kind_of(q.cast).scales;
        int64_t rows = kind == Elem::f32 ? blocks(OC, q.cast.block.rows) : OC;
        parts.push_back({at + "_scale", dtype_of(format_of(kind)), {rows, (int64_t)blocks(C, q.cast.block.cols)},
                         copy.scales});
    }
    if (q.cast.scaling == Scaling::nvfp4) parts.push_back({at + "_scale_2", "F32", {}, scale_2});
    return parts;
}
constexpr float NVFP4_MAX = 448 * 6; // E4M3's times E2M1's

// --- reading -----------------------------------------------------------------------------------------------------
struct Exported { // an open file; of an ordinary checkpoint, nothing but that
    Safetensors file;
    std::string format, source, fingerprint;  // as __metadata__ has them; format "": no export
    std::map<std::string, float> input_amax;  // of x, by layer, once loaded; empty: not calibrated

    explicit Exported(const std::string& path) : file(open_model(path)) {
        for (auto& [key, text] : file.header.metadata)
            for (auto [name, to] : {std::pair("quant_format", &format), {"quant_source", &source},
                                    {"quant_source_fingerprint", &fingerprint}})
                if (key == name) *to = text;
        if (std::any_of(format.begin(), format.end(), [](char c) { return c <= ' ' || c > '~'; }))
            fail("%s: quant_format %s is no recipe", file.file.path.c_str(), quote(format).c_str());
    }
    [[noreturn]] void bad(const TensorInfo& t, const std::string& why) const {
        fail("%s: %s: %s", file.file.path.c_str(), t.text().c_str(), why.c_str());
    }
    bool has_codes(const std::string& layer) const { return file.find(layer + ".weight_scale"); }
    // How the weight (OC, C) of a layer is stored, by the types of its tensors; their shapes are checked when read.
    Cast cast_of(const std::string& layer, int OC) const {
        const TensorInfo *w = file.find(layer + ".weight"), *s = file.find(layer + ".weight_scale");
        Cast c;
        for (Format f : {E4M3, E5M2, E3M2, E2M3, E2M1})
            if (w && w->dtype == dtype_of(f)) c.elem = f;
        if (!s && !(c.elem == BF16)) bad(*w, layer + ".weight_scale is missing");
        if (!s) return c;
        if (!w) bad(*s, layer + ".weight is missing");
        c.scaling = s->dtype == "F8_E8M0"   ? Scaling::mx
                    : s->dtype == "F8_E4M3" ? Scaling::nvfp4
                    : s->dtype != "F32"     ? Scaling::none
                    : s->shape.empty()      ? Scaling::current
                                            : Scaling::blockwise;
        c.block = kind_of(c).block, c.pow2_scales = c.scaling == Scaling::blockwise;
        if (c.pow2_scales && s->shape[0] != OC) c.block = {128, 128};
        if (!is_quantized(c) || !word_in(c.elem.name, kind_of(c).takes))
            bad(*w, "no cast here makes such codes with " + s->text());
        return c;
    }
    void read(void* out, const TensorInfo& t) const { // as it lies there
        file.file.read(out, file.header.data + t.begin, t.end - t.begin);
    }
};
// Before allocate(): the linears' weights will be what the file holds, whatever a stage says.
inline void freeze(GPT& g, const Exported& e, const Config& config) {
    g.config = config, shape_params(g);
    for_each_linear(g, [&](const std::string& name, Linear& l) {
        l.w.frozen = true, l.w.cast = e.cast_of(name, l.weight.rows);
    });
}
// No NaN, no infinity; of scales no sign, and of FP32 ones no zero either, unless a tensor of zeros may have it.
inline void check_bytes(const Exported& e, const TensorInfo& t, Format f, const uint8_t* bytes, bool scales) {
    for (size_t i = 0; i < t.end - t.begin && f.bits() == 8; i++)
        if (float v = decode(f, bytes[i]); !std::isfinite(v) || (scales && std::signbit(v)))
            e.bad(t, format("byte %zu, 0x%02x, is %s", i, bytes[i], number(v).c_str()));
}
inline void check_floats(const Exported& e, const TensorInfo& t, const float* s, bool zero) {
    for (size_t i = 0; i < t.count(); i++)
        if (!(s[i] >= 0 && s[i] < INFINITY) || (s[i] == 0 && !zero))
            e.bad(t, format("element %zu, %s, is no scale", i, number(s[i]).c_str()));
}
inline void load_export(GPT& g, Exported& e) {
    verify_model(e.file.file.path);
    std::set<std::string> known;
    auto find = [&](const std::string& name, const std::string& dtype, const std::vector<int64_t>& shape) -> auto& {
        const TensorInfo* t = e.file.find(name);
        std::string expected = dtype + " " + Json(shape).dump();
        if (!t) fail("%s: %s is missing", e.file.file.path.c_str(), tensor_text(name, dtype, shape).c_str());
        if (t->dtype != dtype || t->shape != shape) e.bad(*t, expected + " is expected");
        known.insert(name);
        return *t;
    };
    for_each_param(g, [&](const std::string& name, Param& p) {
        if (p.conv1d && e.has_codes(name.substr(0, name.rfind('.')))) return;
        std::vector<int64_t> shape = {p.rows, p.cols};
        if (p.conv1d) std::swap(shape[0], shape[1]);
        if (!p.rows) shape = {p.cols};
        const TensorInfo& t = find(name, p.rows ? "BF16" : "F32", shape);
        p.conv1d ? e.file.read_transposed(p.w, t) : e.file.read(p.w, t, 0, p.size());
    });
    for_each_linear(g, [&](const std::string& name, Linear& l) {
        if (e.file.find(name + ".input_scale")) {
            const TensorInfo& t = find(name + ".input_scale", "F32", {});
            float scale;
            e.read(&scale, t), check_floats(e, t, &scale, false);
            float amax = scale * E4M3.max, rounded = (float)bf16(amax);
            e.input_amax[name] = rounded / E4M3.max == scale ? rounded : amax; // which FP32 activations may have
        }
        Quantizer& q = l.w;
        if (!is_quantized(q.cast)) return;
        Copy& copy = q.copies[0];
        float scale_2 = 0;
        for (const Part& part : parts_of(name, q, l.weight.rows, l.weight.cols, &scale_2)) {
            const TensorInfo& t = find(part.name, part.dtype, part.shape);
            if (dtype_bits(t.dtype) == 6) {
                std::vector<uint8_t> packed(t.end - t.begin);
                e.read(packed.data(), t), unpack6((uint8_t*)part.data, packed.data(), t.count());
            } else e.read(part.data, t);
            bool codes = part.data == copy.codes;
            Format f = codes ? q.cast.elem : format_of(kind_of(q.cast).scales);
            if (t.dtype == "F32") check_floats(e, t, (float*)part.data, part.data == &scale_2);
            else check_bytes(e, t, f, (uint8_t*)part.data, !codes);
        }
        copy.factors->scale = 1 / copy.factors->scale_inv; // of no meaning for blocks
        const float* s = (const float*)copy.scales;
        size_t count = q.bytes(Along::cols, l.weight.rows, l.weight.cols).scales / 4;
        if (q.cast.scaling == Scaling::blockwise)
            q.cast.pow2_scales = std::all_of(s, s + count, [](float s) { return power_of_two_below(s) == s; });
        if (q.cast.scaling == Scaling::nvfp4) {
            float amax = copy.factors->amax = (float)bf16(scale_2 * NVFP4_MAX);
            if (amax * (1 / NVFP4_MAX) != scale_2)
                e.bad(*e.file.find(name + ".weight_scale_2"),
                      format("%.9g is no amax of BF16 weights / 2688", scale_2));
        }
        q.filled = true;
    });
    for (const TensorInfo& t : e.file.header.tensors)
        if (!known.count(t.name)) e.bad(t, "this model has no such tensor");
    bool codes = std::any_of(known.begin(), known.end(), [](auto& name) { return name.ends_with(".weight_scale"); });
    for_each_linear(g, [&](const std::string& name, Linear& l) { // calibrated: all that are cast
        if (!e.input_amax.empty() && (codes ? is_quantized(l.w.cast) : &l != &g.head) && !e.input_amax.count(name))
            fail("%s: %s is missing", e.file.file.path.c_str(), tensor_text(name + ".input_scale", "F32", {}).c_str());
    });
    publish(g);
}
// What a recipe means to weights that are what they are: how x is stored, in layers whose weight is codes.
inline void adapt(RecipeStage& s, const Exported& e, const Arm& arm, bool native) {
    std::vector<std::string> names = linear_names((int)s.skip.size() / 4);
    bool codes = std::any_of(names.begin(), names.end(), [&](auto& name) { return e.has_codes(name); });
    if (native && codes)
        fail("--native: %s has weights in %s, whose GEMMs are emulated", e.file.file.path.c_str(), e.format.c_str());
    Recipe& r = s.recipe;
    r.w = r.dy = {}, r.dgrad = r.wgrad = false;
    for (size_t i = 0; i < names.size(); i++) {
        s.skip[i] = s.skip[i] || (codes && !e.has_codes(names[i]));
        Recipe both = r;
        both.w = e.cast_of(names[i], 0);
        if (std::string why = refusal(both); !why.empty() && !s.skip[i])
            fail("--recipe %s: %s has weights in %s: %s", arm.text.c_str(), e.file.file.path.c_str(), e.format.c_str(),
                 why.c_str());
    }
    if (r.outlier != 1)
        fail("--recipe %s: an outlier is put into weights, and those of an export are codes", arm.text.c_str());
}
// The scales of x that a file holds, as if a pass had recorded what they were made from; in the stage that is set.
inline void restore_scales(GPT& g, const Exported& e) {
    forget_scales(g);
    for_each_linear(g, [&](const std::string& name, Linear& l) {
        auto amax = e.input_amax.find(name);
        if (l.x.delayed && amax != e.input_amax.end()) l.x.delayed->last = amax->second;
    });
    update_scales(g, false);
    synchronize("restore_scales");
}

// --- writing -----------------------------------------------------------------------------------------------------
// What the weights of linears take in an export, scales included.
struct Stored {
    size_t weights = 0, bytes = 0;
    double bits() const { return 8.0 * bytes / weights; } // per weight
};
inline Stored stored(const std::string& path, const std::vector<std::string>& layers) {
    Stored all;
    Safetensors file = open_model(path);
    for (auto& layer : layers)
        for (const char* part : {".weight", ".weight_scale", ".weight_scale_2"})
            if (const TensorInfo* t = file.find(layer + part))
                all.bytes += t->end - t->begin, all.weights += part == std::string(".weight") ? t->count() : 0;
    return all;
}
// Everything that the file holds, cast in the stage that is set. memory: of what lies otherwise there than here.
inline std::vector<TensorOut> tensors_of(GPT& g, const std::map<std::string, float>& input_scales,
                                         std::deque<std::vector<uint8_t>>& memory) {
    std::vector<TensorOut> matrices, codes, vectors;
    auto keep = [&](size_t bytes) { return memory.emplace_back(bytes).data(); };
    auto keep_float = [&](float v) { return memcpy(keep(4), &v, 4); };
    std::set<std::string> cast;
    for_each_linear(g, [&](const std::string& name, Linear& l) {
        if (auto scale = input_scales.find(name); scale != input_scales.end())
            vectors.push_back({name + ".input_scale", "F32", {}, keep_float(scale->second)});
        Quantizer& q = l.w;
        if (!q.is_cast()) return;
        int OC = l.weight.rows, C = l.weight.cols;
        q.filled = false; // by a pass in another stage, which cast nothing
        quantize({l.weight.operand, OC, C, &q}, Along::cols);
        synchronize("export");
        cast.insert(name + ".weight");
        float scale_2 = q.copies[0].factors->amax * (1 / NVFP4_MAX);
        for (Part& p : parts_of(name, q, OC, C, &scale_2)) {
            if (p.data == &scale_2) p.data = keep_float(scale_2);
            if (dtype_bits(p.dtype) == 6) {
                uint8_t* packed = keep((size_t)OC * C * 6 / 8);
                pack6(packed, (uint8_t*)p.data, (size_t)OC * C), p.data = packed;
            }
            codes.push_back({p.name, p.dtype, p.shape, p.data});
        }
    });
    for_each_param(g, [&](const std::string& name, Param& p) {
        if (!p.rows) return vectors.push_back({name, "F32", {p.cols}, p.w});
        if (cast.count(name)) return;
        size_t R = p.rows, C = p.cols;
        auto out = (uint16_t*)keep(2 * R * C);
        for (size_t r = 0; r < R; r++)
            for (size_t c = 0; c < C; c++) out[p.conv1d ? c * R + r : r * C + c] = bf16((float)p.w[r * C + c]).bits;
        if (p.conv1d) std::swap(R, C);
        matrices.push_back({name, "BF16", {(int64_t)R, (int64_t)C}, out});
    });
    matrices.insert(matrices.end(), codes.begin(), codes.end());
    matrices.insert(matrices.end(), vectors.begin(), vectors.end());
    return matrices;
}
// What the first batches of --data's training part make of inputs: amax / 448 of each that stage 1 records. Returns the
// number of batches.
inline int input_scales(std::map<std::string, float>& scales, GPT& g, const Options& o, const std::string& device) {
    Data data = open_data(o.data);
    data.train->vocab = g.config.vocab;
    Batches batches(*data.train, g.B, g.T, false, 0);
    uint64_t windows = std::min<uint64_t>((uint64_t)o.calibrate * g.B, batches.windows());
    note("%s. %s: %llu windows of %d tokens", device.c_str(), data.train->name.c_str(), (unsigned long long)windows,
         g.T);
    mean_loss(g, batches, windows, true);
    for_each_linear(g, [&](const std::string& name, Linear& l) {
        if (!l.x.delayed) return;
        const float* ring = g.history + (l.x.delayed - g.delayed) * g.history_len;
        float amax = *std::max_element(ring, ring + g.history_len);
        scales[name] = amax > 0 && amax < INFINITY ? amax / E4M3.max : 1;
    });
    return (int)((windows + g.B - 1) / g.B);
}
// ./train export CKPT OUT --format F
inline int export_command(const Options& o) try {
    if (!o.given.count("format"))
        fail_usage("export: how are weights to be stored? hint: --format mxfp8, or another recipe; `./train recipes`");
    if (o.arms.size() > 1 || o.arms[0].stages.size() > 1) fail_usage("--format: one recipe is needed, of one stage");
    const Arm& arm = o.arms[0];
    std::string device = set_machine(o), path = model_path(o.args[0]), to = o.args[1];
    machine.layout = {}; // codes lie in files as on the CPU
    std::error_code none;
    if (std::filesystem::equivalent(path, to + "/model.safetensors", none))
        fail("%s: is what is to be exported. hint: name another directory", to.c_str());
    Config config = read_config(path);
    int T = o.seq_len ? o.seq_len : config.seq_len;
    if (T > config.seq_len) fail("--seq-len %d: %s has %d positions", T, path.c_str(), config.seq_len);
    // In stage 0 calibration sees the data, stage 1 says what for, stage 2 casts weights.
    std::vector<RecipeStage> stages = bf16_only;
    stages.resize(3, stages_of(arm, o, config.layers)[0]);
    Recipe &calibrated = stages[1].recipe, &stored_as = stages[2].recipe;
    Cast w = stored_as.w;
    if (w.scaling == Scaling::delayed) w.scaling = Scaling::current; // weights at rest need no history
    calibrated = stored_as = recipes[0], stored_as.w = w;
    if (o.calibrate) calibrated.x = {E4M3, Scaling::delayed}, calibrated.amax_history_len = o.calibrate;
    GPT g;
    allocate(g, config, Use::inference, o.calibrate ? o.batch_size : 1, o.calibrate ? T : 1, stages);
    std::vector<std::string> cast, skipped = skipped_names(stages[2], linear_names(config.layers));
    int i = 0;
    for_each_linear(g, [&](const std::string& name, Linear& l) {
        if (stages[2].skip[i++]) return;
        cast.push_back(name);
        if (is_quantized(w) && l.weight.cols * w.elem.bits() % 8)
            fail("--format %s: %s has %d input channels, whose codes of %d bits do not end with a byte. hint: --skip",
                 arm.text.c_str(), name.c_str(), l.weight.cols, w.elem.bits());
    });
    if (is_quantized(w) && cast.empty()) fail_usage("--format %s: --skip leaves nothing to store so", arm.text.c_str());
    load_weights(g, path);
    uint64_t fingerprint = fingerprint_of(g);
    for_each_param(g, [&](const std::string& name, Param& p) {
        for (size_t i = 0; i < p.size(); i++)
            if (!std::isfinite(p.w[i]))
                fail("%s: %s[%zu] is %s", path.c_str(), name.c_str(), i, number(p.w[i]).c_str());
            else if (p.rows) p.w[i] = (real)bf16((float)p.w[i]);
    });
    publish(g);
    std::map<std::string, float> scales;
    int seen = o.calibrate ? input_scales(scales, g, o, device) : 0;
    g.pass = inference;
    set_stage(g, 2);
    std::deque<std::vector<uint8_t>> memory;
    std::vector<TensorOut> tensors = tensors_of(g, scales, memory);
    std::string mark = hex16(fingerprint);
    TextMap metadata = {{"format", "pt"}, {"quant_format", arm.text}, {"quant_source", o.args[0]},
                        {"quant_source_fingerprint", mark}};
    Json quantization; // for others; a BF16 model is one that anybody reads
    if (is_quantized(w))
        quantization = Json(Json::Object).set("quant_method", "ulp").set("format", arm.text)
                           .set("weights", cast_text(w)).set("modules_to_not_convert", skipped)
                           .set("source", o.args[0]).set("source_fingerprint", mark);
    save_model(to, config, tensors, metadata, quantization);
    release(g);
    Stored s = stored(to, cast);
    size_t file = std::filesystem::file_size(model_path(to));
    Json json = Json(Json::Object).set("format", arm.text).set("bits_per_weight", s.bits()).set("weights", s.weights)
                    .set("bytes", s.bytes).set("skipped", skipped).set("file", file).set("calibrated", seen)
                    .set("out", to);
    std::string line = format("export format=%s bits_per_weight=%.2f weights=%zu bytes=%zu skipped=%zu file=%zu",
                              arm.text.c_str(), s.bits(), s.weights, s.bytes, skipped.size(), file);
    if (seen) line += format(" calibrated=%d", seen);
    result(o.json ? json.dump() : line + " out=" + to);
    return 0;
} catch (const Error& e) { // what reads recipes takes this text for that of --recipe
    std::string text = e.what();
    if (text.starts_with("--recipe ")) text.replace(0, 8, "--format");
    throw Error(text, e.status);
}
