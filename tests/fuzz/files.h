// Files of llm.c's, and vocabularies. The first byte chooses: s, token shards; m, a model; t, a tokenizer, whose bytes
// are 8 words, for which a header of 256 is made, and what follows it; S, M, T: the same, byte for byte; j: JSON.
#pragma once
#include "run/data.h"
#include "run/tokenizer.h"
#include "tests/fuzz/fuzz.h"

inline void use_tokenizer(const std::string& path, std::string_view text) {
    errors_only([&] {
        Tokenizer t = read_tokenizer(path);
        HOLDS(!t.tokens.empty() && t.start >= 0 && t.start < t.vocab);
        std::vector<int> all;
        for (int k = -1; k <= t.vocab; k++) all.push_back(k);
        t.decode(all);
        std::string back;
        std::vector<int> ids = t.encode(text);
        for (int id : ids) back += t.tokens.at((size_t)id);
        HOLDS(text.empty() || back == text);
        for (unsigned char c : t.decode(ids)) HOLDS((c >= ' ' && c != 0x7f) || c == '\n' || c == '\t');
    });
}
inline void use_shard(const std::string& path) {
    errors_only([&] {
        Data d = open_data(path);
        HOLDS(d.train->count + d.val->count >= 1);
        for (Tokens* t : {d.train.get(), d.val.get()}) {
            t->vocab = 300; // index() takes as long as the vocabulary
            std::vector<int> tokens((size_t)t->count);
            errors_only([&] { t->read(tokens.data(), 0, (int)t->count); });
            errors_only([&] {
                Batches b(*t, 2, 3, true, 1);
                int in[6], out[6], distinct[6], first[7], at[6];
                for (uint64_t i = 0; i < 4; i++) b.fill(i, in, out), HOLDS(b.index(in, distinct, first, at) <= 6);
            });
        }
    });
}
inline void fuzz_files(std::string_view bytes) {
    if (bytes.empty()) return;
    char kind = bytes[0];
    std::string file(bytes.substr(1));
    if (kind == 's' || kind == 'm' || kind == 't') file.insert(std::min<size_t>(32, file.size()), 1024 - 32, '\0');
    if (kind == 's' || kind == 'S') use_shard(fuzz_file("shard.bin", file));
    if (kind == 'm' || kind == 'M') use_checkpoint(fuzz_file("model.bin", file));
    if (kind == 't' || kind == 'T') use_tokenizer(fuzz_file("tokenizer.bin", file), bytes);
    if (kind == 'j') use_tokenizer(fuzz_file("vocab.json", file), bytes.substr(bytes.size() / 2));
    if (kind == 'b') { // as text; and as the prompt of models of bytes, and of numbers
        static const Tokenizer small[] = {open_tokenizer("", {}, 1), open_tokenizer("", {}, 256),
                                          open_tokenizer("", {}, 300)};
        use_shard(fuzz_file("text.txt", file));
        for (const Tokenizer& t : small) errors_only([&] { t.decode(t.encode(bytes.substr(1))); });
    }
}
