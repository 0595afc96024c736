#include "run/checkpoint.h"
#include "run/error.h"
#include "run/json.h"
#include "run/llmc.h"
#include "run/safetensors.h"
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <map>
#include <numeric>
#include <optional>
#include <sstream>
#include <utility>

namespace fs = std::filesystem;
static const char *MODEL = "model.safetensors", *CONFIG = "config.json", *STATE = "state.safetensors",
                  *ABOUT = "state.json", *SUMS = "checksums";

// --- reading a model ---------------------------------------------------------------------------------------------

static std::vector<int64_t> file_shape(const NamedTensor& p) {
    return p.conv1d ? std::vector<int64_t>(p.shape.rbegin(), p.shape.rend()) : p.shape;
}

std::string model_path(const std::string& path) {
    std::error_code ec;
    if (!fs::is_directory(path, ec)) return path;
    if (!fs::exists(fs::path(path) / MODEL, ec))
        fail("%s: no %s in it. hint: for a pytorch_model.bin or shards, load the model in transformers and call "
             "save_pretrained(DIR, max_shard_size=\"100GB\")",
             path.c_str(), MODEL);
    return fs::path(path) / MODEL;
}

Safetensors open_model(const std::string& path) {
    std::string file = model_path(path);
    return file.ends_with(".bin") ? Safetensors(file, read_llmc) : Safetensors(file);
}

// The tensors of a file by their published names, masks left out.
struct OpenCheckpoint {
    Safetensors file;
    bool llmc; // matrices lie as ours
    std::map<std::string, const TensorInfo*> tensors;

    explicit OpenCheckpoint(const std::string& path) : file(open_model(path)), llmc(file.header.heads) {
        for (const TensorInfo& t : file.header.tensors) {
            std::string name = t.name.starts_with("transformer.") ? t.name.substr(12) : t.name;
            bool mask = name.starts_with("h.") && (name.ends_with(".attn.bias") || name.ends_with(".attn.masked_bias"));
            if (!mask && !tensors.emplace(name, &t).second) bad(t, "is there with and without \"transformer.\"");
        }
    }
    [[noreturn]] void bad(const TensorInfo& t, const std::string& why) const {
        fail("%s: %s: %s", path(), t.text().c_str(), why.c_str());
    }
    const char* path() const { return file.file.path.c_str(); }
    std::string config_path() const { return fs::path(path()).replace_filename(CONFIG); }
    std::vector<int64_t> shape_of(const NamedTensor& p) const { return llmc ? p.shape : file_shape(p); }
};

// The sizes by their published names, and the largest we take for more than a typing error. n_ctx: GPT-2's old name.
static const struct {
    const char *key, *old_key;
    int Config::*field;
    int64_t most;
} sizes[] = {{"n_layer", "", &Config::layers, 10'000},
             {"n_head", "", &Config::heads, 10'000},
             {"n_embd", "", &Config::channels, 100'000},
             {"n_positions", "n_ctx", &Config::seq_len, 10'000'000},
             {"vocab_size", "", &Config::vocab, 10'000'000}};

static void refuse_other_models(const Json& json, const char* path, int channels) {
    const std::pair<const char*, std::vector<Json>> ours[] = {
        {"model_type", {"gpt2"}},        {"activation_function", {"gelu_new", "gelu_pytorch_tanh"}},
        {"layer_norm_epsilon", {1e-5}},  {"n_inner", {Json(), 4 * channels}},
        {"scale_attn_weights", {true}},  {"scale_attn_by_inverse_layer_idx", {false}},
        {"tie_word_embeddings", {true}}, {"add_cross_attention", {false}}};
    for (auto& [key, allowed] : ours)
        if (const Json* v = json.find(key)) {
            auto same = [&](const Json& a) { return a.number() ? a.number() == v->number() : a.dump() == v->dump(); };
            if (std::none_of(allowed.begin(), allowed.end(), same))
                fail("%s: %s is %s, which makes another model than the one here, where it is %s", path, key,
                     v->dump().c_str(), allowed.back().dump().c_str());
        }
}
static Config config_of(const OpenCheckpoint& ckpt, int heads) {
    std::string path = ckpt.config_path();
    auto shape = [&](const char* name) {
        auto it = ckpt.tensors.find(name);
        if (it == ckpt.tensors.end()) fail("%s: not a GPT-2: no tensor \"%s\"", ckpt.path(), name);
        if (it->second->shape.size() != 2) ckpt.bad(*it->second, "a matrix is expected");
        return it->second->shape;
    };
    int layers = 0;
    if (ckpt.llmc) heads = ckpt.file.header.heads;
    while (ckpt.tensors.contains(format("h.%d.ln_1.weight", layers))) layers++;
    const int64_t have[] = {layers, heads, shape("wte.weight")[1], shape("wpe.weight")[0], shape("wte.weight")[0]};
    std::error_code ec;
    bool beside = !ckpt.llmc && fs::exists(path, ec);
    if (!beside && heads == 0)
        fail("%s: does not exist, and tensors do not tell n_head. hint: give --heads", path.c_str());
    Json json = beside ? parse_json(read_file(path, 1 << 20), path) : Json(Json::Object);
    Config c;
    for (size_t k = 0; k < 5; k++) {
        const Json* v = json.find(sizes[k].key);
        if (!v) v = json.find(sizes[k].old_key);
        if (beside && !v) fail("%s: no \"%s\"", path.c_str(), sizes[k].key);
        int64_t n = v ? v->integer().value_or(0) : have[k], most = sizes[k].most;
        if (n < 1 || n > most)
            fail("%s: %s is not from 1 to %d", beside ? path.c_str() : ckpt.path(), sizes[k].key, (int)most);
        if (have[k] && n != have[k])
            fail("%s: %s is %d, %s %lld", path.c_str(), sizes[k].key, (int)n, k == 1 ? "--heads" : "the tensors have",
                 (long long)have[k]);
        c.*sizes[k].field = (int)n;
    }
    if (c.channels % c.heads) fail("%s: %d channels do not divide by %d heads", ckpt.path(), c.channels, c.heads);
    refuse_other_models(json, path.c_str(), c.channels);
    return c;
}
Config read_config(const std::string& path, int heads) { return config_of(OpenCheckpoint(path), heads); }

static size_t elements(const std::vector<int64_t>& shape) {
    return std::accumulate(shape.begin(), shape.end(), (size_t)1, std::multiplies<>());
}
void load_checkpoint(const std::string& path, const std::vector<NamedTensor>& params) {
    OpenCheckpoint ckpt(path);
    verify_model(ckpt.path());
    std::map<std::string, const TensorInfo*> unknown = ckpt.tensors;
    const TensorInfo* head = unknown.contains("lm_head.weight") ? unknown["lm_head.weight"] : nullptr;
    unknown.erase("lm_head.weight");
    for (auto& [name, t] : unknown)
        if (name.ends_with("_scale"))
            fail("%s: an export for inference, with %s: eval, sample and inspect take it. hint: start from the "
                 "checkpoint that it was made from",
                 ckpt.path(), t->text().c_str());
    for (const NamedTensor& p : params) {
        std::string expected = Json(ckpt.shape_of(p)).dump();
        auto it = unknown.find(p.name);
        if (it == unknown.end())
            fail("%s: tensor %s %s is missing", ckpt.path(), quote(p.name).c_str(), expected.c_str());
        if (it->second->shape != ckpt.shape_of(p)) ckpt.bad(*it->second, expected + " is expected");
        unknown.erase(it);
    }
    if (!unknown.empty()) ckpt.bad(*unknown.begin()->second, "this model has no such tensor");
    for (const NamedTensor& p : params) {
        const TensorInfo& t = *ckpt.tensors[p.name];
        if (p.conv1d && !ckpt.llmc) ckpt.file.read_transposed(p.data, t);
        else ckpt.file.read(p.data, t, 0, t.count());
        if (!head || p.name != "wte.weight") continue;
        if (head->shape != p.shape) ckpt.bad(*head, Json(p.shape).dump() + " is expected, as wte.weight has");
        size_t C = (size_t)p.shape[1];
        std::vector<float> row(C);
        for (size_t v = 0; v < (size_t)p.shape[0]; v++) {
            ckpt.file.read(row.data(), *head, v * C, C);
            if (memcmp(row.data(), p.data + v * C, C * 4) != 0)
                ckpt.bad(*head, format("row %zu differs from wte.weight's; the head is tied to it here", v));
        }
    }
}

// --- writing -----------------------------------------------------------------------------------------------------
// Before anything is deleted or replaced: it must be a directory with nothing in it that is someone else's.
static void refuse_foreign_files(const std::string& dir) {
    std::error_code ec;
    if (fs::exists(dir, ec) && !fs::is_directory(dir, ec)) fail("%s: not a directory", dir.c_str());
    for (auto& entry : fs::directory_iterator(dir, ec)) {
        std::string name = entry.path().filename(),
                    base = name.ends_with(".tmp") ? name.substr(0, name.size() - 4) : name;
        if (base != MODEL && base != CONFIG && base != STATE && base != ABOUT && base != SUMS)
            fail("%s: holds %s, no part of a checkpoint. hint: name a new directory", dir.c_str(), quote(name).c_str());
    }
}

// The lines of `checksums`, one per file: hash, bytes, name.
struct Checksums {
    std::string text = "ulp checkpoint 1\n";
    void add(uint64_t hash, const std::string& dir, const char* name) {
        text += hex16(hash) + format(" %zu %s\n", (size_t)fs::file_size(dir + "/" + name), name);
    }
    static std::string last_line(const std::string& lines) {
        Fingerprint f;
        f.add(lines.data(), lines.size());
        return hex16(f.value()) + " of the lines above\n";
    }
};
static std::vector<TensorOut> as_f32(const std::vector<NamedTensor>& tensors) {
    std::vector<TensorOut> out;
    for (const NamedTensor& p : tensors) out.push_back({p.name, "F32", file_shape(p), p.data, p.conv1d});
    return out;
}

void save_checkpoint(const std::string& dir, const Config& c, const std::vector<NamedTensor>& params,
                     const TrainingState* state) {
    save_model(dir, c, as_f32(params), {{"format", "pt"}}, Json(), state);
}
void save_model(const std::string& path, const Config& c, const std::vector<TensorOut>& tensors, const TextMap& metadata,
                const Json& quantization, const TrainingState* state) {
    std::string dir = path.substr(0, path.find_last_not_of('/') + 1), tmp = dir + ".tmp", old = dir + ".old";
    if (dir.empty()) fail("\"%s\": a directory of its own is needed for a checkpoint", path.c_str());
    Json end_of_text = c.vocab > 50256 ? Json(50256) : Json(); // only GPT-2's own vocabulary has one
    Json json(Json::Object);
    json.set("architectures", Json(Json::Array).add("GPT2LMHeadModel")).set("model_type", "gpt2");
    for (auto& s : sizes) json.set(s.key, c.*s.field);
    json.set("n_ctx", c.seq_len).set("n_inner", Json()).set("activation_function", "gelu_new");
    json.set("layer_norm_epsilon", 1e-5).set("initializer_range", 0.02).set("scale_attn_weights", true);
    json.set("resid_pdrop", 0.0).set("embd_pdrop", 0.0).set("attn_pdrop", 0.0).set("tie_word_embeddings", true);
    json.set("bos_token_id", end_of_text).set("eos_token_id", end_of_text);
    json.set("torch_dtype", tensors.empty() || tensors[0].dtype == "F32" ? "float32" : "bfloat16");
    if (quantization.kind == Json::Object) json.set("quantization_config", quantization);

    for (auto& d : {dir, tmp, old}) refuse_foreign_files(d);
    try {
        fs::create_directories(tmp);
        Checksums sums;
        sums.add(write_safetensors(tmp + "/" + MODEL, tensors, metadata), tmp, MODEL);
        sums.add(write_file(tmp + "/" + CONFIG, json.dump(2) + "\n"), tmp, CONFIG);
        if (state) {
            sums.add(write_safetensors(tmp + "/" + STATE, as_f32(state->tensors), {}), tmp, STATE);
            sums.add(write_file(tmp + "/" + ABOUT, state->about.dump(2) + "\n"), tmp, ABOUT);
        }
        write_file(tmp + "/" + SUMS, sums.text + Checksums::last_line(sums.text));
        if (fs::exists(dir)) fs::remove_all(old), fs::rename(dir, old);
        fs::rename(tmp, dir);
        sync_directory_of(dir), sync_directory_of(fs::absolute(dir).parent_path());
        fs::remove_all(old);
    } catch (const std::exception& e) { // no half directory stays, and the older one does
        std::error_code ec;
        if (!fs::exists(dir, ec)) fs::rename(old, dir, ec);
        fs::remove_all(tmp, ec);
        double bytes = 1 << 16, room = (double)fs::space(fs::absolute(dir).parent_path(), ec).available;
        for (const TensorOut& t : tensors) bytes += elements(t.shape) * dtype_bits(t.dtype) / 8.0;
        for (size_t k = 0; state && k < state->tensors.size(); k++) bytes += 4.0 * elements(state->tensors[k].shape);
        auto size = [](double bytes) { return bytes < 1e7 ? format("%.0f kB", bytes / 1e3) : format("%.0f MB", bytes / 1e6); };
        std::string need = ". It takes " + size(bytes) + ", and " + size(room) + " are free";
        if (ec || room > bytes) need = "";
        fail("%s: no checkpoint written: %s%s", dir.c_str(), e.what(), need.c_str());
    }
}

// --- going on ----------------------------------------------------------------------------------------------------
void verify_checkpoint(const std::string& dir) {
    std::string path = dir + "/" + SUMS, text = read_file(path, 1 << 16);
    size_t first = Checksums().text.size(), last = text.rfind('\n', text.size() - 2) + 1; // lines that name no file
    if (!text.starts_with(Checksums().text) || text.substr(last) != Checksums::last_line(text.substr(0, last)))
        fail("%s: damaged, or of another version", path.c_str());
    std::istringstream lines(text.substr(first, last - first));
    for (std::string hash, name, bytes; lines >> hash >> bytes >> name;) {
        std::string file = dir + "/" + name;
        std::error_code ec;
        size_t has = fs::file_size(file, ec);
        if (ec) fail("%s: cannot read: %s", file.c_str(), ec.message().c_str());
        if (std::to_string(has) != bytes)
            fail("%s: damaged: it has %zu bytes, and was written with %s", file.c_str(), has, bytes.c_str());
        if (hex16(fingerprint_of_file(file)) != hash)
            fail("%s: damaged: its checksum is not the one in %s. hint: if it was changed on purpose, delete that file",
                 file.c_str(), SUMS);
    }
}
void verify_model(const std::string& path) {
    fs::path dir = fs::path(model_path(path)).parent_path();
    if (dir.empty()) dir = ".";
    if (fs::exists(dir / SUMS)) verify_checkpoint(dir);
}
std::unique_ptr<Safetensors> open_state(const std::string& path) {
    fs::path state = fs::path(model_path(path)).replace_filename(STATE);
    return fs::exists(state) ? std::make_unique<Safetensors>(state) : nullptr;
}
void load_state(const std::string& dir, const std::vector<NamedTensor>& tensors) {
    Safetensors file(dir + "/" + STATE);
    for (const NamedTensor& p : tensors) {
        const TensorInfo* t = file.find(p.name);
        if (!t || t->shape != p.shape || t->dtype != "F32")
            fail("%s: %s is missing", file.file.path.c_str(), tensor_text(p.name, "F32", p.shape).c_str());
        file.read(p.data, *t, 0, t->count());
    }
}
Json state_of(const std::string& dir) { return parse_json(read_file(dir + "/" + ABOUT, 1 << 20), dir + "/" + ABOUT); }

static std::vector<std::pair<int64_t, std::string>> steps_in(const std::string& dir) { // newest first
    std::vector<std::pair<int64_t, std::string>> steps;
    std::error_code ec;
    for (auto& entry : fs::directory_iterator(dir, ec)) {
        std::string name = entry.path().filename(), digits = name.substr(std::min<size_t>(5, name.size()));
        if (name.starts_with("step-") && !digits.empty() && digits.size() < 19 &&
            digits.find_first_not_of("0123456789") == digits.npos)
            steps.push_back({std::stoll(digits), entry.path()});
    }
    std::sort(steps.rbegin(), steps.rend());
    return steps;
}
NewestCheckpoint newest_checkpoint(const std::string& dir, const std::string& recipe, int64_t seed, const Config& c) {
    NewestCheckpoint found;
    for (auto& [step, path] : steps_in(dir)) try {
            verify_checkpoint(path);
            Json about = state_of(path);
            for (auto& [key, value] : {std::pair("recipe", Json(recipe)), {"seed", Json(seed)}, {"step", Json(step)}})
                if (const Json* v = about.find(key); !v || v->dump() != value.dump())
                    fail("%s: of another run: %s is not %s", path.c_str(), key, value.dump().c_str());
            Config has = read_config(path);
            for (auto& s : sizes)
                if (has.*s.field != c.*s.field)
                    fail("%s: of another run: %s is %d, not %d", path.c_str(), s.key, has.*s.field, c.*s.field);
            return found.dir = path, found.step = step, found;
        } catch (const Error& e) {
            std::string why = e.what();
            found.passed_over += (found.passed_over.empty() ? "" : "; ") + why.substr(0, why.find(". hint:"));
        }
    return found;
}
void prune_checkpoints(const std::string& dir, int64_t step, int keep) {
    std::error_code ec;
    for (auto& [at, path] : steps_in(dir))
        if (at <= step && keep-- <= 0) fs::remove_all(path, ec);
    std::vector<fs::path> left;
    for (auto& entry : fs::directory_iterator(dir, ec)) left.push_back(entry.path());
    for (auto& path : left) {
        std::string name = path.filename();
        if (name.starts_with("step-") && (name.ends_with(".tmp") || name.ends_with(".old"))) fs::remove_all(path, ec);
    }
}

// --- looking at it -----------------------------------------------------------------------------------------------
std::string inspect_checkpoint(const std::string& path, bool json) {
    OpenCheckpoint ckpt(path);
    std::string out = json ? "" : format("%-32s %-6s %-16s %s\n", "tensor", "type", "shape", "bytes");
    for (const TensorInfo& t : ckpt.file.header.tensors) {
        Json row = Json(Json::Object).set("name", t.name).set("dtype", t.dtype).set("shape", t.shape);
        std::string name = quote(t.name), shape = Json(t.shape).dump();
        row.set("bytes", t.end - t.begin);
        out += json ? row.dump() + "\n"
                    : format("%-32s %-6s %-16s %zu\n", name.substr(1, name.size() - 2).c_str(), t.dtype.c_str(),
                             shape.c_str(), t.end - t.begin);
    }
    // Of a run: the delayed scales, and where it stood.
    fs::path dir = fs::path(ckpt.path()).parent_path();
    Json total = Json(Json::Object).set("path", path);
    if (auto state = open_state(path)) {
        std::string header = format("%-32s %-16s %s\n", "operand", "scale", "newest amax");
        for (const TensorInfo& t : state->header.tensors) {
            std::string name = t.name.substr(std::min<size_t>(6, t.name.size()));
            const TensorInfo* history = state->find("amax_history." + name);
            if (!t.name.starts_with("scale.") || !history || !history->count()) continue;
            float scale, amax;
            state->read(&scale, t, 0, 1), state->read(&amax, *history, history->count() - 1, 1);
            Json row = Json(Json::Object).set("operand", name).set("scale", scale).set("amax", amax);
            out += json ? row.dump() + "\n"
                        : std::exchange(header, "") + format("%-32s %-16.9g %.9g\n", name.c_str(), scale, amax);
        }
    }
    if (fs::exists(dir / ABOUT)) {
        Json about = state_of(dir);
        for (const char* key : {"recipe", "seed", "step", "version"})
            if (const Json* v = about.find(key)) total.set(key, *v);
    }
    size_t parameters = 0; // a tied head counts once, and scales are none
    for (auto& [name, t] : ckpt.tensors)
        if ((name != "lm_head.weight" || !ckpt.tensors.contains("wte.weight")) && name.find("_scale") == name.npos)
            parameters += t->count();
    total.set("parameters", parameters).set("bytes", ckpt.file.file.size);
    for (auto& [key, text] : ckpt.file.header.metadata)
        if (key.starts_with("quant_")) total.set(key, text);
    try {
        Config c = config_of(ckpt, 0);
        for (auto& s : sizes) total.set(s.key, c.*s.field);
        verify_model(ckpt.path());
    } catch (const Error& e) { total.set("problem", e.what()); }
    for (size_t k = 0; k < total.keys.size() && !json; k++) out += total.keys[k] + ": " + total.items[k].text + "\n";
    return json ? out + total.dump() + "\n" : out;
}
