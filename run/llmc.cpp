#include "run/llmc.h"
#include "run/error.h"

SafetensorsHeader read_llmc(const InFile& file) {
    // With sizes up to these, 12 L C C weights of 4 bytes stay below 2^53. (GPT-2 XL: 1024, 50257, 48, 25, 1600.)
    static const struct {
        const char* name;
        int most;
    } sizes[] = {{"max_seq_len", 10'000'000}, {"vocab_size", 10'000'000}, {"num_layers", 10'000},
                 {"num_heads", 10'000},       {"channels", 100'000},      {"padded_vocab_size", 10'000'000}};
    const char* path = file.path.c_str();
    int32_t h[256];
    if (file.size < sizeof(h)) fail("%s: %zu bytes do not hold an llm.c header of %zu", path, file.size, sizeof(h));
    file.read(h, 0, sizeof(h));
    if (h[0] != 20240326)
        fail("%s: begins with %d, and llm.c's GPT-2 checkpoints with 20240326. hint: a pytorch_model.bin must be saved "
             "again by transformers, save_pretrained(DIR)",
             path, h[0]);
    if (h[1] != 3 && h[1] != 5)
        fail("%s: version %d; 3 (FP32) and 5 (BF16) are known. hint: llm.c's train_gpt2.py writes both", path, h[1]);
    for (int k = 0; k < 6; k++)
        if (h[2 + k] < 1 || h[2 + k] > sizes[k].most)
            fail("%s: %s is %d, not from 1 to %d", path, sizes[k].name, h[2 + k], sizes[k].most);
    const int64_t T = h[2], V = h[3], L = h[4], NH = h[5], C = h[6], padded = h[7];
    const size_t width = h[1] == 3 ? 4 : 2;
    if (C % NH) fail("%s: channels is %d, which %d heads do not divide", path, (int)C, (int)NH);
    if (padded < V) fail("%s: padded_vocab_size is %d, below vocab_size, %d", path, (int)padded, (int)V);
    const size_t bytes = sizeof(h) + width * (size_t)((padded + T) * C + L * (12 * C * C + 13 * C) + 2 * C);
    if (file.size != bytes)
        fail("%s: its header announces %zu bytes (%d layers, %d channels, %d positions, %d rows of wte), but the file "
             "has %zu. hint: is it cut short?",
             path, bytes, (int)L, (int)C, (int)T, (int)padded, file.size);
    SafetensorsHeader all{{}, {}, sizeof(h), (int)NH};
    size_t at = 0;
    auto add = [&](const std::string& name, const std::vector<int64_t>& shape) {
        size_t size = width;
        for (int64_t d : shape) size *= (size_t)d;
        all.tensors.push_back({name, width == 4 ? "F32" : "BF16", shape, at, at + size});
        at += size;
    };
    add("wte.weight", {V, C}), at = width * (size_t)(padded * C);
    add("wpe.weight", {T, C});
    const std::pair<const char*, std::vector<int64_t>> block[] = {{"ln_1.weight", {C}},
                                                                  {"ln_1.bias", {C}},
                                                                  {"attn.c_attn.weight", {3 * C, C}},
                                                                  {"attn.c_attn.bias", {3 * C}},
                                                                  {"attn.c_proj.weight", {C, C}},
                                                                  {"attn.c_proj.bias", {C}},
                                                                  {"ln_2.weight", {C}},
                                                                  {"ln_2.bias", {C}},
                                                                  {"mlp.c_fc.weight", {4 * C, C}},
                                                                  {"mlp.c_fc.bias", {4 * C}},
                                                                  {"mlp.c_proj.weight", {C, 4 * C}},
                                                                  {"mlp.c_proj.bias", {C}}};
    for (auto& [name, shape] : block)
        for (int l = 0; l < L; l++) add(format("h.%d.%s", l, name), shape);
    add("ln_f.weight", {C}), add("ln_f.bias", {C});
    return all;
}
