// A safetensors file, as as_safetensors() takes it; and its header as JSON.
#pragma once
#include "run/safetensors.h"
#include "tests/fuzz/fuzz.h"
#include <cstring>

inline void fuzz_safetensors(std::string_view bytes) {
    errors_only([&] { // what is read is written as the same value
        Json v = parse_json(bytes, "text");
        std::string text = v.dump();
        HOLDS(parse_json(text, "again").dump() == text);
        HOLDS(parse_json(v.dump(2), "indented").dump() == text);
        v.integer(), v.number();
    });
    std::string path = fuzz_file("x.safetensors", as_safetensors(bytes));
    errors_only([&] {
        Safetensors f(path);
        size_t covered = 0;
        for (const TensorInfo& t : f.header.tensors) {
            HOLDS(t.begin == covered && t.end >= t.begin && f.find(t.name));
            covered = t.end;
            HOLDS(t.count() <= f.file.size * 2);
            std::vector<float> x(t.count()), y(t.count());
            errors_only([&] { f.read(x.data(), t, 0, t.count()); });
            errors_only([&] {
                f.read_transposed(y.data(), t);
                for (size_t i = 0, C = (size_t)t.shape[1]; i < x.size(); i++)
                    HOLDS(memcmp(&x[i], &y[i % C * (size_t)t.shape[0] + i / C], 4) == 0);
            });
        }
        HOLDS(f.header.data + covered == f.file.size);
    });
    errors_only([&] { HOLDS(inspect_checkpoint(path, false).ends_with('\n')); });
}
