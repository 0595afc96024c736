// What the fuzz targets share. A target is a header tests/fuzz/NAME.h with a function fuzz_NAME(bytes) that has to
// survive any bytes: an Error is a normal outcome; another exception, a crash, a leak or a hang is a finding. What made
// one is put into tests/fuzz/corpus/NAME/ when it is mended, and stays there.
// - driver.cpp makes a libFuzzer program of one target; tests/test_fuzz_corpus.cpp runs every target on its corpus.
// - A new target: its header, its line in test_fuzz_corpus.cpp, a corpus, its name in the Makefile.
#pragma once
#include "run/checkpoint.h"
#include "run/error.h"
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fcntl.h>
#include <map>
#include <memory>
#include <string_view>
#include <unistd.h>

// What is to hold of anything that was accepted.
#define HOLDS(what) ((what) ? (void)0 : (fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #what), abort()))

template <class F> void errors_only(F f) {
    try {
        f();
    } catch (const Error& e) { HOLDS(*e.what()); }
}
// A directory for this process's files, gone at its end.
inline const std::string& fuzz_dir() {
    static struct Dir {
        std::string path;
        Dir() {
            const char* tmp = getenv("TMPDIR");
            path = std::string(tmp ? tmp : "/tmp") + "/ulp-fuzz-XXXXXX";
            if (!mkdtemp(path.data())) perror("mkdtemp"), exit(1);
        }
        ~Dir() { std::filesystem::remove_all(path); }
    } dir;
    return dir.path;
}
// The file NAME in it, holding these bytes; the file stays open between calls. Returns its path.
inline std::string fuzz_file(const std::string& name, std::string_view bytes) {
    static std::map<std::string, int> open_files;
    std::string path = fuzz_dir() + "/" + name;
    auto [it, fresh] = open_files.try_emplace(name, -1);
    if (fresh) {
        std::filesystem::create_directories(std::filesystem::path(path).parent_path());
        it->second = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    }
    if (ftruncate(it->second, 0) || pwrite(it->second, bytes.data(), bytes.size(), 0) != (ssize_t)bytes.size())
        perror(path.c_str()), exit(1);
    return path;
}
// The parameters of a model in our memory, as load_checkpoint() wants them; none where that takes too much of it.
struct FuzzModel {
    std::vector<std::unique_ptr<float[]>> memory;
    std::vector<NamedTensor> params;
    void add(const std::string& name, std::vector<int64_t> shape, bool conv1d = false) {
        memory.push_back(std::make_unique<float[]>((size_t)(shape[0] * (shape.size() == 2 ? shape[1] : 1))));
        params.push_back({name, shape, memory.back().get(), conv1d});
    }
    explicit FuzzModel(const Config& c) {
        int64_t C = c.channels;
        if (C * (c.vocab + c.seq_len) + c.layers * (13 * C + 12 * C * C) > 1 << 18) return;
        add("wte.weight", {c.vocab, C}), add("wpe.weight", {c.seq_len, C});
        for (int l = 0; l < c.layers; l++) {
            std::string h = "h." + std::to_string(l) + ".";
            for (auto ln : {"ln_1", "ln_2"}) add(h + ln + ".weight", {C}), add(h + ln + ".bias", {C});
            struct {
                const char* name;
                int64_t out, in;
            } linears[] = {
                {"attn.c_attn", 3 * C, C}, {"attn.c_proj", C, C}, {"mlp.c_fc", 4 * C, C}, {"mlp.c_proj", C, 4 * C}};
            for (auto& l : linears)
                add(h + l.name + ".weight", {l.out, l.in}, true), add(h + l.name + ".bias", {l.out});
        }
        add("ln_f.weight", {C}), add("ln_f.bias", {C});
    }
};
// Everything that is done with the path of a checkpoint.
inline void use_checkpoint(const std::string& path) {
    for (bool json : {false, true}) errors_only([&] { HOLDS(inspect_checkpoint(path, json).ends_with('\n')); });
    errors_only([&] {
        Config c = read_config(path);
        HOLDS(c.layers > 0 && c.heads > 0 && c.channels % c.heads == 0 && c.seq_len > 0 && c.vocab > 0);
        FuzzModel m(c);
        if (!m.params.empty()) load_checkpoint(path, m.params);
    });
}
// A safetensors file: as it is; or, of what begins with {, the header up to the last }, for which the length is written
// that a mutation would hardly ever hit, and the data.
inline std::string as_safetensors(std::string_view bytes) {
    if (!bytes.starts_with('{')) return std::string(bytes);
    size_t n = bytes.rfind('}') < bytes.size() ? bytes.rfind('}') + 1 : bytes.size();
    return std::string((const char*)&n, 8) + std::string(bytes);
}
