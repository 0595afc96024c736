#include "run/llmc.h"
#include "check.h"
#include "errors.h"
#include "run/checkpoint.h"
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <unistd.h>

namespace {
struct Scratch {
    std::string dir;
    Scratch() {
        char name[] = "/tmp/ulp-llmc-XXXXXX";
        dir = mkdtemp(name);
    }
    ~Scratch() { std::filesystem::remove_all(dir); }
    std::string write(const std::string& name, const std::string& bytes) const {
        std::ofstream(dir + "/" + name, std::ios::binary) << bytes;
        return dir + "/" + name;
    }
};
// A file as llm.c writes it, element by element, from the description of the format and nothing else.
struct Naive {
    int T = 5, V = 7, L = 3, NH = 2, C = 4, Vp = 16, version = 3, magic = 20240326;
    std::string bytes;

    // No two elements alike, and all exact in BF16: the value says which tensor, layer, row and column it is.
    static float element(int tensor, int layer, int row, int col) {
        uint32_t code = 0x3000 + (uint32_t)(((tensor * 3 + layer) * 16 + row) * 16 + col), bits = code << 16;
        float x;
        memcpy(&x, &bits, 4);
        return x;
    }
    void put(float x) {
        uint32_t bits;
        memcpy(&bits, &x, 4);
        for (int k = version == 3 ? 0 : 2; k < 4; k++) bytes += (char)(bits >> 8 * k);
    }
    void put_int(int32_t x) {
        for (int k = 0; k < 4; k++) bytes += (char)((uint32_t)x >> 8 * k);
    }
    const std::string& make() {
        bytes.clear();
        for (int x : {magic, version, T, V, L, NH, C, Vp}) put_int(x);
        for (int k = 8; k < 256; k++) put_int(0);
        for (int r = 0; r < Vp; r++)
            for (int c = 0; c < C; c++) put(r < V ? element(0, 0, r, c) : -99);
        for (int r = 0; r < T; r++)
            for (int c = 0; c < C; c++) put(element(1, 0, r, c));
        const int rows[] = {1, 1, 3 * C, 1, C, 1, 1, 1, 4 * C, 1, C, 1};
        const int cols[] = {C, C, C, 3 * C, C, C, C, C, C, 4 * C, 4 * C, C};
        for (int t = 0; t < 12; t++)
            for (int l = 0; l < L; l++)
                for (int r = 0; r < rows[t]; r++)
                    for (int c = 0; c < cols[t]; c++) put(element(2 + t, l, r, c));
        for (int t = 14; t < 16; t++)
            for (int c = 0; c < C; c++) put(element(t, 0, 0, c));
        return bytes;
    }
};
// The model in memory, and where in the file each of its tensors stands.
struct Model {
    std::map<std::string, std::vector<float>> memory;
    std::map<std::string, std::pair<int, int>> origin; // tensor, layer
    std::vector<NamedTensor> params;
    void add(const std::string& name, std::vector<int64_t> shape, bool matrix, int tensor, int layer) {
        size_t n = 1;
        for (int64_t d : shape) n *= (size_t)d;
        params.push_back({name, shape, (memory[name] = std::vector<float>(n, -1)).data(), matrix});
        origin[name] = {tensor, layer};
    }
    explicit Model(const Config& c) {
        int64_t C = c.channels;
        add("wte.weight", {c.vocab, C}, false, 0, 0), add("wpe.weight", {c.seq_len, C}, false, 1, 0);
        for (int l = 0; l < c.layers; l++) {
            std::string h = "h." + std::to_string(l) + ".";
            add(h + "ln_1.weight", {C}, false, 2, l), add(h + "ln_1.bias", {C}, false, 3, l);
            add(h + "attn.c_attn.weight", {3 * C, C}, true, 4, l), add(h + "attn.c_attn.bias", {3 * C}, false, 5, l);
            add(h + "attn.c_proj.weight", {C, C}, true, 6, l), add(h + "attn.c_proj.bias", {C}, false, 7, l);
            add(h + "ln_2.weight", {C}, false, 8, l), add(h + "ln_2.bias", {C}, false, 9, l);
            add(h + "mlp.c_fc.weight", {4 * C, C}, true, 10, l), add(h + "mlp.c_fc.bias", {4 * C}, false, 11, l);
            add(h + "mlp.c_proj.weight", {C, 4 * C}, true, 12, l), add(h + "mlp.c_proj.bias", {C}, false, 13, l);
        }
        add("ln_f.weight", {C}, false, 14, 0), add("ln_f.bias", {C}, false, 15, 0);
    }
};
} // namespace

TEST_CASE("llm.c: FP32 and BF16 checkpoints give every parameter its own numbers, the square matrices too") {
    Scratch s;
    for (int version : {3, 5})
        for (int Vp : {7, 16}) { // without padding, and with rows that are no tokens
            Naive n;
            n.version = version, n.Vp = Vp;
            std::string path = s.write("model.bin", n.make());
            Config c = read_config(path);
            CHECK(c.layers == 3);
            CHECK(c.heads == 2);
            CHECK(c.channels == 4);
            CHECK(c.seq_len == 5);
            CHECK(c.vocab == 7);
            Model m(c);
            load_checkpoint(path, m.params);
            for (const NamedTensor& p : m.params) {
                auto [tensor, layer] = m.origin[p.name];
                int64_t rows = p.shape.size() == 2 ? p.shape[0] : 1, cols = p.shape.back();
                INFO(p.name);
                for (int r = 0; r < rows; r++)
                    for (int k = 0; k < cols; k++) REQUIRE(p.data[r * cols + k] == Naive::element(tensor, layer, r, k));
            }
        }
}
TEST_CASE("llm.c: every BF16 code is read back as it stands, NaN payloads included") {
    Scratch s;
    Naive n; // wte of 65536 x 1
    n.T = 1, n.V = n.Vp = 65536, n.L = 1, n.NH = 1, n.C = 1, n.version = 5;
    std::string bytes = n.make();
    for (uint32_t code = 0; code < 65536; code++)
        bytes[1024 + code * 2] = (char)code, bytes[1025 + code * 2] = (char)(code >> 8);
    Safetensors f(s.write("all.bin", bytes), read_llmc);
    std::vector<float> wte(65536);
    f.read(wte.data(), *f.find("wte.weight"), 0, wte.size());
    for (uint32_t code = 0; code < 65536; code++) {
        uint32_t bits;
        memcpy(&bits, &wte[code], 4);
        REQUIRE(bits == code << 16);
    }
}
TEST_CASE("llm.c: a model of other sizes than the file's is told by tensor") {
    Scratch s;
    std::string path = s.write("model.bin", Naive().make());
    Config c = read_config(path);
    c.layers = 4;
    std::string e = error_of([&] { load_checkpoint(path, Model(c).params); });
    CHECK(has(e, "tensor \"h.3.ln_1.weight\" [4] is missing"));
    c.layers = 2;
    e = error_of([&] { load_checkpoint(path, Model(c).params); });
    CHECK(has(e, "tensor \"h.2.attn.c_attn.bias\" F32 [12]: this model has no such tensor"));
    c.layers = 3, c.vocab = 8; // the padding is not for taking
    e = error_of([&] { load_checkpoint(path, Model(c).params); });
    CHECK(has(e, "tensor \"wte.weight\" F32 [7,4]: [8,4] is expected"));
}
TEST_CASE("llm.c: inspect lists tensors under their published names, and counts no padding") {
    Scratch s;
    std::string text = inspect_checkpoint(s.write("model.bin", Naive().make()), false);
    CHECK(has(text, "h.2.mlp.c_proj.weight            F32    [4,16]           256\n"));
    CHECK(has(text, "n_head: 2\n"));
    // (7 + 5) 4 + 3 (12 * 16 + 13 * 4) + 2 * 4
    CHECK(has(text, "parameters: 788\n"));
    CHECK(!has(text, "problem"));
}
TEST_CASE("llm.c: whatever a header claims, it is an error that says what, or the sizes of the file") {
    Scratch s;
    auto error = [&](Naive n, size_t cut = 0) {
        std::string bytes = n.make();
        return error_of([&] { read_config(s.write("bad.bin", bytes.substr(0, bytes.size() - cut))); });
    };
    auto claim = [&](int word, int64_t value) { // a good file, one word of its header replaced
        std::string bytes = Naive().make();
        for (int k = 0; k < 4; k++) bytes[word * 4 + k] = (char)((uint32_t)value >> 8 * k);
        return error_of([&] { read_config(s.write("bad.bin", bytes)); });
    };
    CHECK(error(Naive()) == "no error");
    CHECK(has(claim(0, 20240520), "bad.bin: begins with 20240520, and llm.c's GPT-2 checkpoints with 20240326. hint:"));
    for (int version : {0, 1, 2, 4, 6, -3})
        CHECK(has(claim(1, version), "version " + std::to_string(version) + "; 3 (FP32) and 5 (BF16)"));
    const char* names[] = {"max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab_size"};
    for (int k = 0; k < 6; k++)
        for (int64_t value : {(int64_t)0, (int64_t)-1, (int64_t)INT32_MIN, (int64_t)INT32_MAX})
            CHECK(
                has(claim(2 + k, value), std::string(names[k]) + " is " + std::to_string(value) + ", not from 1 to "));
    CHECK(has(claim(5, 3), "channels is 4, which 3 heads do not divide"));
    CHECK(has(claim(7, 6), "padded_vocab_size is 6, below vocab_size, 7"));
    CHECK(has(claim(3, 17), "padded_vocab_size is 16, below vocab_size, 17"));
    for (int k : {2, 4, 6, 7}) CHECK(has(claim(k, 20), "its header announces ")); // positions, layers, channels, rows
    // The largest of everything: far from 2^63.
    Naive n;
    std::string bytes = n.make();
    const int32_t most[] = {10'000'000, 10'000'000, 10'000, 10'000, 100'000, 10'000'000};
    memcpy(bytes.data() + 8, most, sizeof(most));
    std::string e = error_of([&] { read_config(s.write("bad.bin", bytes)); });
    CHECK(has(e, "its header announces 4808052000801024 bytes (10000 layers, 100000 channels, 10000000 positions"));
    // Cut anywhere, or with something behind it.
    size_t size = Naive().make().size();
    CHECK(has(error(Naive(), 1), "announces " + std::to_string(size) + " bytes"));
    CHECK(has(error(Naive(), size - 1024), "but the file has 1024. hint: is it cut short?"));
    CHECK(has(error(Naive(), size - 1023), "1023 bytes do not hold an llm.c header of 1024"));
    CHECK(has(error(Naive(), size), "0 bytes do not hold"));
    e = error_of([&] { read_config(s.write("long.bin", Naive().make() + "x")); });
    CHECK(has(e, "but the file has " + std::to_string(size + 1)));
    n.version = 5; // a BF16 file that says FP32
    bytes = n.make(), bytes[4] = 3;
    CHECK(has(error_of([&] { read_config(s.write("bad.bin", bytes)); }), "its header announces "));
    CHECK(has(error_of([&] { read_config(s.dir + "/none.bin"); }), "cannot open"));
    CHECK(has(error_of([&] { read_config(s.dir + "/"); }), "no model.safetensors in it"));
}
TEST_CASE("llm.c: a file that shrinks after it was opened is an error, not a crash") {
    Scratch s;
    std::string path = s.write("model.bin", Naive().make());
    Safetensors f(path, read_llmc);
    REQUIRE(truncate(path.c_str(), 1100) == 0);
    std::vector<float> wpe(20);
    CHECK(has(error_of([&] { f.read(wpe.data(), *f.find("wpe.weight"), 0, 20); }), "the file ends there"));
}
