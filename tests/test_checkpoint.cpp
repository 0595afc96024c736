#include "run/checkpoint.h"
#include "check.h"
#include "run/error.h"
#include "run/json.h"
#include "run/safetensors.h"
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <sys/stat.h>
#include <unistd.h>

namespace fs = std::filesystem;

namespace {
struct Scratch { // a directory of our own, gone at the end
    std::string dir;
    Scratch() {
        char t[] = "/tmp/ulp-test-XXXXXX";
        dir = mkdtemp(t);
    }
    ~Scratch() { fs::remove_all(dir); }
    std::string operator/(const std::string& name) const { return dir + "/" + name; }
};
} // namespace
static std::string error_of(const std::function<void()>& f) {
    try {
        f();
    } catch (const Error& e) { return e.what(); }
    return "";
}
static bool says(const std::string& error, const std::string& what) { return error.find(what) != error.npos; }

namespace {
// A model's parameters in our memory, every element different from its neighbours.
struct Model {
    Config c;
    std::vector<NamedTensor> params;
    std::vector<std::unique_ptr<std::vector<float>>> memory;
    void add(const std::string& name, std::vector<int64_t> shape, bool conv1d = false) {
        size_t n = 1;
        for (int64_t d : shape) n *= (size_t)d;
        auto& m = *memory.emplace_back(std::make_unique<std::vector<float>>(n));
        for (size_t i = 0; i < n; i++) m[i] = (float)(memory.size() * 1000 + i) / 7;
        params.push_back({name, shape, m.data(), conv1d});
    }
    explicit Model(Config c) : c(c) {
        int64_t C = c.channels;
        add("wte.weight", {c.vocab, C}), add("wpe.weight", {c.seq_len, C});
        for (int l = 0; l < c.layers; l++) {
            std::string h = "h." + std::to_string(l) + ".";
            add(h + "ln_1.weight", {C}), add(h + "ln_1.bias", {C}), add(h + "ln_2.weight", {C}),
                add(h + "ln_2.bias", {C});
            add(h + "attn.c_attn.weight", {3 * C, C}, true), add(h + "attn.c_attn.bias", {3 * C});
            add(h + "attn.c_proj.weight", {C, C}, true), add(h + "attn.c_proj.bias", {C});
            add(h + "mlp.c_fc.weight", {4 * C, C}, true), add(h + "mlp.c_fc.bias", {4 * C});
            add(h + "mlp.c_proj.weight", {C, 4 * C}, true), add(h + "mlp.c_proj.bias", {C});
        }
        add("ln_f.weight", {C}), add("ln_f.bias", {C});
    }
    std::vector<std::vector<float>> values() const {
        std::vector<std::vector<float>> v;
        for (auto& m : memory) v.push_back(*m);
        return v;
    }
    void clear() {
        for (auto& m : memory) std::fill(m->begin(), m->end(), -1.0f);
    }
};
} // namespace
static const Config tiny = {.layers = 2, .heads = 3, .channels = 6, .seq_len = 5, .vocab = 11};

namespace {
// The tensors of a published file as a test likes them: a list to change before it is written.
struct Published {
    std::vector<TensorOut> tensors;
    std::vector<std::unique_ptr<std::vector<float>>> memory;
    explicit Published(const Model& m) { // the transpose by its definition
        for (const NamedTensor& p : m.params) {
            size_t n = m.memory[tensors.size()]->size(), cols = (size_t)p.shape.back(), rows = n / cols;
            std::vector<float> v(p.data, p.data + n);
            if (p.conv1d)
                for (size_t i = 0; i < n; i++) v[i % cols * rows + i / cols] = p.data[i];
            add(p.name, p.conv1d ? std::vector<int64_t>{p.shape[1], p.shape[0]} : p.shape, v);
        }
    }
    void add(const std::string& name, std::vector<int64_t> shape, const std::vector<float>& v) {
        memory.push_back(std::make_unique<std::vector<float>>(v));
        tensors.push_back({name, "F32", shape, memory.back()->data()});
    }
    TensorOut& operator[](const std::string& name) {
        for (auto& t : tensors)
            if (t.name == name) return t;
        throw std::out_of_range(name);
    }
};
} // namespace

TEST_CASE("checkpoint: what is saved is loaded back bit for bit, with the model's sizes") {
    Scratch scratch;
    for (Config c : {tiny, Config{1, 1, 1, 1, 1}, Config{1, 5, 35, 3, 317}}) {
        Model m(c);
        auto want = m.values();
        save_checkpoint(scratch / "a/b/ckpt/", c, m.params); // parents are made, a slash at the end is no matter
        m.clear();
        for (auto path : {"a/b/ckpt", "a/b/ckpt/model.safetensors"}) {
            load_checkpoint(scratch / path, m.params);
            CHECK(m.values() == want);
            Config r = read_config(scratch / path);
            CHECK(std::tie(r.layers, r.heads, r.channels, r.seq_len, r.vocab) ==
                  std::tie(c.layers, c.heads, c.channels, c.seq_len, c.vocab));
            m.clear();
        }
        std::vector<std::string> names;
        for (auto& e : fs::recursive_directory_iterator(scratch / "a")) names.push_back(e.path().filename());
        std::sort(names.begin(), names.end());
        CHECK(names == std::vector<std::string>{"b", "checksums", "ckpt", "config.json", "model.safetensors"});
    }
}

TEST_CASE("checkpoint: linear weights lie as [in, out] in the file, everything else as in memory") {
    Scratch scratch;
    Model m(tiny);
    save_checkpoint(scratch / "x", tiny, m.params);
    Published want(m);
    Safetensors file(scratch / "x/model.safetensors");
    CHECK(file.header.metadata == TextMap{{"format", "pt"}}); // without which transformers refuses the file
    REQUIRE(file.header.tensors.size() == want.tensors.size());
    for (size_t k = 0; k < want.tensors.size(); k++) {
        const TensorInfo* t = file.find(want.tensors[k].name);
        REQUIRE(t);
        CAPTURE(t->text());
        CHECK(t->shape == want.tensors[k].shape);
        std::vector<float> v(t->count());
        file.read(v.data(), *t, 0, v.size());
        CHECK(v == *want.memory[k]);
    }
    CHECK(file.find("h.1.attn.c_attn.weight")->shape == std::vector<int64_t>{6, 18});
    CHECK(file.find("h.1.mlp.c_proj.weight")->shape == std::vector<int64_t>{24, 6});
}

TEST_CASE("checkpoint: config.json says what transformers needs to build the same model") {
    Scratch scratch;
    for (int V : {256, 50257}) {
        Config c = {1, 1, 1, 2, V};
        save_checkpoint(scratch / "x", c, Model(c).params);
        Json json = parse_json(read_file(scratch / "x/config.json", 10000), "config.json");
        std::map<std::string, std::string> want = {{"architectures", "[\"GPT2LMHeadModel\"]"},
                                                   {"model_type", "\"gpt2\""},
                                                   {"n_layer", "1"},
                                                   {"n_head", "1"},
                                                   {"n_embd", "1"},
                                                   {"n_positions", "2"},
                                                   {"vocab_size", std::to_string(V)},
                                                   {"activation_function", "\"gelu_new\""},
                                                   {"layer_norm_epsilon", "1e-05"},
                                                   {"resid_pdrop", "0"},
                                                   {"embd_pdrop", "0"},
                                                   {"attn_pdrop", "0"},
                                                   {"tie_word_embeddings", "true"},
                                                   {"bos_token_id", V == 256 ? "null" : "50256"},
                                                   {"eos_token_id", V == 256 ? "null" : "50256"},
                                                   {"torch_dtype", "\"float32\""}};
        for (auto& entry : want) {
            CAPTURE(entry.first);
            REQUIRE(json.find(entry.first));
            CHECK(json.find(entry.first)->dump() == entry.second);
        }
    }
}

TEST_CASE("checkpoint: prefixes, masks, a tied head and 16-bit weights of published files are taken") {
    Scratch scratch;
    Model m(tiny);
    auto want = m.values();
    auto load = [&](const Published& p) {
        m.clear();
        write_safetensors(scratch / "x.safetensors", p.tensors, {});
        std::string e = error_of([&] { load_checkpoint(scratch / "x.safetensors", m.params); });
        return e != "" ? e : m.values() == want ? "same" : "different";
    };
    std::string config =
        R"({"n_layer":2,"n_head":3,"n_embd":6,"n_ctx":5,"vocab_size":11,"activation_function":"gelu_pytorch_tanh","n_inner":24})";
    write_file(scratch / "config.json", config);
    Published original(m);
    CHECK(load(original) == "same");
    CHECK(read_config(scratch / "x.safetensors").heads == 3);

    SUBCASE("prefix and masks") {
        Published p(Model{tiny});
        for (auto& t : p.tensors) t.name = "transformer." + t.name;
        p.add("h.0.attn.bias", {1, 1, 5, 5}, std::vector<float>(25));
        p.add("h.1.attn.masked_bias", {}, {-1e4f});
        p.add("transformer.h.1.attn.bias", {1, 1, 5, 5}, std::vector<float>(25));
        p["h.0.attn.bias"].dtype = "BOOL";
        p["h.1.attn.masked_bias"].dtype = "I32";
        CHECK(load(p) == "same");
        CHECK(read_config(scratch / "x.safetensors").layers == 2);
        p.add("ln_f.bias", {6}, std::vector<float>(6));
        CHECK(says(load(p), "tensor \"ln_f.bias\" F32 [6]: is there with and without"));
    }
    SUBCASE("a head equal to wte, and one that is not") {
        Published p(Model{tiny});
        p.add("lm_head.weight", {11, 6}, want[0]);
        CHECK(load(p) == "same");
        float& last = p.memory.back()->back();
        uint32_t bits;
        memcpy(&bits, &last, 4);
        bits ^= 1;
        memcpy(&last, &bits, 4);
        CHECK(says(load(p), "tensor \"lm_head.weight\" F32 [11,6]: row 10 differs from wte.weight"));
        p["lm_head.weight"].shape = {6, 11};
        CHECK(says(load(p), "tensor \"lm_head.weight\" F32 [6,11]: [11,6] is expected"));
    }
    SUBCASE("BF16 and F16") {
        Published p(Model{tiny});
        std::vector<std::vector<uint16_t>> codes(p.tensors.size());
        for (size_t k = 0; k < p.tensors.size(); k++) {
            bool bf16 = k % 2;
            p.tensors[k].dtype = bf16 ? "BF16" : "F16";
            for (float& f : *p.memory[k]) {
                uint32_t u;
                memcpy(&u, &f, 4);
                codes[k].push_back((uint16_t)(bf16 ? u >> 16 : 0x3c00 + codes[k].size() % 1000));
                u = (uint32_t)codes[k].back() << 16;
                if (bf16) memcpy(&f, &u, 4);
                else f = float_from_f16(codes[k].back());
            }
            p.tensors[k].data = codes[k].data();
        }
        write_safetensors(scratch / "16.safetensors", p.tensors, {});
        load_checkpoint(scratch / "16.safetensors", m.params);
        Published back(m); // transposed again, by the definition
        for (size_t k = 0; k < p.tensors.size(); k++) CHECK(*back.memory[k] == *p.memory[k]);
    }
}

TEST_CASE("checkpoint: a wrong tensor is an error that names it, and nothing is loaded") {
    Scratch scratch;
    Model m(tiny);
    Published original(m);
    m.clear();
    auto untouched = m.values();
    struct {
        std::function<void(Published&)> damage;
        const char* says;
    } table[] = {
        {[](Published& p) { p.tensors.pop_back(); }, "tensor \"ln_f.bias\" [6] is missing"},
        {[](Published& p) { p["h.1.mlp.c_fc.bias"].name = "h.1.mlp.c_fx.bias"; },
         "tensor \"h.1.mlp.c_fc.bias\" [24] is missing"},
        {[](Published& p) { p["h.0.attn.c_attn.weight"].name = "h.0.attn.q.weight"; },
         "\"h.0.attn.c_attn.weight\" [6,18] is missing"},
        {[](Published& p) {
             p.add("h.0.attn.rotary", {3}, {1, 2, 3});
         },
         "tensor \"h.0.attn.rotary\" F32 [3]: this model has no such tensor"},
        {[](Published& p) { p.add("h.2.ln_1.weight", {6}, std::vector<float>(6)); },
         "tensor \"h.2.ln_1.weight\" F32 [6]: this model has no such"},
        {[](Published& p) {
             p["h.0.attn.c_attn.weight"].shape = {18, 6};
         },
         "tensor \"h.0.attn.c_attn.weight\" F32 [18,6]: [6,18] is expected"},
        {[](Published& p) {
             p["ln_f.weight"].shape = {6, 1};
         },
         "tensor \"ln_f.weight\" F32 [6,1]: [6] is expected"},
        {[](Published& p) {
             p["wte.weight"].shape = {11, 3, 2};
         },
         "tensor \"wte.weight\" F32 [11,3,2]: [11,6] is expected"},
    };
    for (auto& t : table) {
        Published p(m);
        for (size_t k = 0; k < p.tensors.size(); k++) *p.memory[k] = *original.memory[k];
        t.damage(p);
        write_safetensors(scratch / "x.safetensors", p.tensors, {});
        std::string e = error_of([&] { load_checkpoint(scratch / "x.safetensors", m.params); });
        CAPTURE(e);
        CHECK(says(e, t.says));
        CHECK(says(e, scratch / "x.safetensors: "));
        CHECK(m.values() == untouched);
    }
    Published p(m);
    p["wpe.weight"].dtype = "I32";
    write_safetensors(scratch / "x.safetensors", p.tensors, {});
    CHECK(says(error_of([&] { load_checkpoint(scratch / "x.safetensors", m.params); }),
               "\"wpe.weight\" I32 [5,6]: F32, BF16 or F16 is expected"));
}

TEST_CASE("checkpoint: a config.json that says another model is refused, with what it says") {
    Scratch scratch;
    Model m(tiny);
    save_checkpoint(scratch / "x", tiny, m.params);
    std::string good = read_file(scratch / "x/config.json", 10000);
    auto with = [&](const std::string& key, const std::string& value) {
        Json json = parse_json(good, ""), changed(Json::Object);
        for (size_t k = 0; k < json.keys.size(); k++)
            if (json.keys[k] != key) changed.set(json.keys[k], json.items[k]);
        if (value != "") changed.set(key, parse_json(value, key));
        FILE* f = fopen((scratch / "x/config.json").c_str(), "w");
        fputs(changed.dump().c_str(), f);
        fclose(f);
        return error_of([&] { read_config(scratch / "x"); });
    };
    struct {
        const char *key, *value, *says;
    } table[] = {
        {"activation_function", "\"relu\"", "activation_function is \"relu\", which makes another model"},
        {"activation_function", "\"gelu\"", "another model"},
        {"activation_function", "null", "another model"},
        {"layer_norm_epsilon", "1e-6",
         "layer_norm_epsilon is 1e-6, which makes another model than the one here, where it is 1e-05"},
        {"layer_norm_epsilon", "\"1e-05\"", "another model"},
        {"n_inner", "12", "n_inner is 12, which makes another model than the one here, where it is 24"},
        {"scale_attn_weights", "false", "another model"},
        {"scale_attn_by_inverse_layer_idx", "true", "another model"},
        {"tie_word_embeddings", "false", "another model"},
        {"add_cross_attention", "true", "another model"},
        {"model_type", "\"llama\"", "model_type is \"llama\""},
        {"n_layer", "", "config.json: no \"n_layer\""},
        {"n_head", "", "no \"n_head\""},
        {"vocab_size", "", "no \"vocab_size\""},
        {"n_layer", "3", "n_layer is 3, the tensors have 2"},
        {"n_embd", "7", "n_embd is 7, the tensors have 6"},
        {"n_positions", "6", "n_positions is 6, the tensors have 5"},
        {"vocab_size", "50257", "vocab_size is 50257, the tensors have 11"},
        {"n_head", "4", "6 channels do not divide by 4 heads"},
        {"n_head", "0", "n_head is not from 1 to 10000"},
        {"n_head", "-3", "n_head is not from 1"},
        {"n_head", "1e1", "n_head is not from 1"},
        {"n_head", "\"3\"", "n_head is not from 1"},
        {"n_head", "4294967299", "n_head is not from 1"},
        {"n_embd", "9223372036854775807", "n_embd is not from 1 to 100000"},
        {"vocab_size", "18446744073709551627", "vocab_size is not from 1"},
    };
    for (auto& t : table) {
        std::string e = with(t.key, t.value);
        CAPTURE(e);
        CHECK(says(e, t.says));
        CHECK(says(e, scratch / "x/"));
    }
    for (auto [key, value] : {std::pair("n_inner", "24"),
                              {"n_inner", ""},
                              {"layer_norm_epsilon", "0.00001"},
                              {"model_type", ""},
                              {"resid_pdrop", "0.1"},
                              {"n_positions", ""},
                              {"task_specific_params", "{\"text-generation\":{\"max_length\":50}}"}})
        CHECK(with(key, value) == "");
    for (auto text : {"", "[]", "{\"n_layer\":1,", "{\"n_layer\":2,\"n_layer\":2}"}) {
        FILE* f = fopen((scratch / "x/config.json").c_str(), "w");
        fputs(text, f);
        fclose(f);
        CHECK(says(error_of([&] { read_config(scratch / "x"); }), "config.json: "));
    }
}

TEST_CASE("checkpoint: without a config.json the tensors give the sizes, and heads are asked for") {
    Scratch scratch;
    Model m(tiny);
    save_checkpoint(scratch / "x", tiny, m.params);
    CHECK(read_config(scratch / "x", 3).heads == 3);
    CHECK(says(error_of([&] { read_config(scratch / "x", 2); }), "n_head is 3, --heads 2"));
    fs::remove(scratch / "x/config.json");
    CHECK(says(error_of([&] { read_config(scratch / "x"); }), "hint: give --heads"));
    Config c = read_config(scratch / "x", 2);
    CHECK(std::tie(c.layers, c.heads, c.channels, c.seq_len, c.vocab) == std::make_tuple(2, 2, 6, 5, 11));
    CHECK(says(error_of([&] { read_config(scratch / "x", 4); }), "6 channels do not divide by 4 heads"));

    CHECK(says(error_of([&] { read_config(scratch / "nothing"); }), "nothing: cannot open: No such file"));
    fs::create_directory(scratch / "empty");
    CHECK(says(error_of([&] { read_config(scratch / "empty"); }), "empty: no model.safetensors in it. hint: "));
    float one = 1;
    write_safetensors(scratch / "other.safetensors", {{"x", "F32", {1}, &one}}, {});
    CHECK(says(error_of([&] { read_config(scratch / "other.safetensors", 1); }),
               "not a GPT-2: no tensor \"wte.weight\""));
    write_safetensors(scratch / "other.safetensors", {{"wte.weight", "F32", {1}, &one}}, {});
    CHECK(says(error_of([&] { read_config(scratch / "other.safetensors", 1); }),
               "tensor \"wte.weight\" F32 [1]: a matrix is expected"));
}

TEST_CASE("checkpoint: an older one is replaced whole, and anything else is left alone") {
    Scratch scratch;
    Model m(tiny);
    std::string dir = scratch / "x";
    auto save = [&](const std::string& to) { return error_of([&] { save_checkpoint(to, tiny, m.params); }); };
    CHECK(save(dir) == "");
    fs::create_directory(dir + ".tmp"); // what a kill leaves behind
    write_file(dir + ".tmp/model.safetensors.tmp", "half");
    m.params[0].data[0] = 42;
    auto want = m.values();
    CHECK(save(dir) == "");
    m.clear();
    load_checkpoint(dir, m.params);
    CHECK(m.values() == want);
    CHECK(std::distance(fs::directory_iterator(scratch.dir), {}) == 1);

    SUBCASE("a stranger's file") {
        write_file(dir + "/tokenizer.json", "mine");
        CHECK(says(save(dir), "x: holds \"tokenizer.json\", no part of a checkpoint"));
        CHECK(read_file(dir + "/tokenizer.json", 100) == "mine");
        write_file(scratch / "notes", "mine");
        CHECK(says(save(scratch / "notes"), "notes: not a directory"));
        CHECK(read_file(scratch / "notes", 100) == "mine");
        CHECK(says(save(scratch / "notes/x"), "no checkpoint written"));
        fs::create_directory(dir + ".old");
        write_file(dir + ".old/diary", "mine");
        fs::remove(dir + "/tokenizer.json");
        CHECK(says(save(dir), "x.old: holds \"diary\""));
    }
    SUBCASE("a tensor that cannot be written") {
        m.params[1].name = m.params[0].name;
        CHECK(says(save(dir), "x: no checkpoint written: "));
        fs::rename(dir, dir + ".old"); // a kill just before the new one took its place
        CHECK(says(save(dir), "x: no checkpoint written: "));
        CHECK(fs::exists(dir));
    }
    SUBCASE("a directory that may not be written to") {
        chmod(scratch.dir.c_str(), 0555);
        bool root = geteuid() == 0;
        if (root && seteuid(65534) != 0) SKIP("read-only directory: root may write anywhere");
        std::string e = save(dir), fresh = save(scratch / "y");
        if (root) REQUIRE(seteuid(0) == 0);
        chmod(scratch.dir.c_str(), 0755);
        CHECK(says(e, "Permission denied"));
        CHECK(says(fresh, "y: no checkpoint written: "));
        CHECK(!fs::exists(scratch / "y"));
    }
    CHECK(!fs::exists(dir + ".tmp"));
    load_checkpoint(dir, Model(tiny).params); // the older one is still whole
}

TEST_CASE("checkpoint: inspect lists tensors, sizes and the number of parameters, for people and as JSON") {
    Scratch scratch;
    Model m(tiny);
    save_checkpoint(scratch / "x", tiny, m.params);
    std::string text = inspect_checkpoint(scratch / "x", false), json = inspect_checkpoint(scratch / "x", true);
    size_t count = 0;
    for (auto& v : m.values()) count += v.size();
    CHECK(says(text, "h.1.attn.c_attn.weight           F32    [6,18]           432\n"));
    CHECK(says(text, "parameters: " + std::to_string(count) + "\n"));
    CHECK(says(text, "n_head: 3\n"));
    std::vector<Json> lines;
    for (size_t p = 0, q; (q = json.find('\n', p)) != json.npos; p = q + 1)
        lines.push_back(parse_json(json.substr(p, q - p), "line"));
    REQUIRE(lines.size() == m.params.size() + 1);
    CHECK(lines[0].dump() == "{\"name\":\"wte.weight\",\"dtype\":\"F32\",\"shape\":[11,6],\"bytes\":264}");
    CHECK(lines.back().find("parameters")->integer() == (int64_t)count);
    CHECK(lines.back().find("n_layer")->integer() == 2);
    CHECK(lines.back().find("bytes")->integer() == (int64_t)fs::file_size(scratch / "x/model.safetensors"));

    Published p(m);
    p.add("lm_head.weight", {11, 6}, std::vector<float>(66)); // tied or not, it does not count twice
    p.add("h.0.attn.bias", {1, 1, 5, 5}, std::vector<float>(25));
    write_safetensors(scratch / "y.safetensors", p.tensors, {});
    text = inspect_checkpoint(scratch / "y.safetensors", false);
    CHECK(says(text, "parameters: " + std::to_string(count) + "\n"));
    CHECK(says(text, "h.0.attn.bias "));
    CHECK(says(text, "problem: "));
    CHECK(says(inspect_checkpoint(scratch / "y.safetensors", true), "\"problem\":\""));
}
