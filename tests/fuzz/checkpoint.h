// A directory as a run leaves it, in parts that a line of --- separates: config.json; the header of model.safetensors,
// which is state.safetensors too; how many bytes of data follow it; the lines of `checksums` that name files, without
// which nothing but the model is looked at; state.json; run.json.
#pragma once
#include "run/files.h"
#include "run/resume.h"
#include "run/screen.h"
#include "tests/fuzz/fuzz.h"

inline void fuzz_checkpoint(std::string_view bytes) {
    std::vector<std::string> parts(6);
    for (size_t k = 0, at = 0; k < parts.size() && at <= bytes.size(); k++) {
        size_t end = std::min(bytes.find("\n---\n", at), bytes.size());
        parts[k] = bytes.substr(at, end - at), at = end + 5;
    }
    std::string zeros((size_t)atoi(parts[2].c_str()) % 4096, '\0'), sums = "ulp checkpoint 1\n" + parts[3] + "\n";
    Fingerprint f;
    f.add(sums.data(), sums.size());
    sums += format("%016llx of the lines above\n", (unsigned long long)f.value()); // which no mutation would hit
    const std::string model = as_safetensors(parts[1] + zeros), dir = fuzz_dir() + "/run/step-000001";
    fuzz_file("alone/config.json", parts[0]), fuzz_file("alone/model.safetensors", model);
    use_checkpoint(fuzz_dir() + "/alone");
    if (parts[3].empty()) return;
    for (auto name : {"model", "state"}) fuzz_file("run/step-000001/" + std::string(name) + ".safetensors", model);
    fuzz_file("run/step-000001/config.json", parts[0]), fuzz_file("run/step-000001/state.json", parts[4]);
    fuzz_file("run/step-000001/checksums", sums), fuzz_file("run/run.json", parts[5]);
    use_checkpoint(dir);
    newest_checkpoint(fuzz_dir() + "/run", "bf16", 1, {});
    errors_only([&] { state_of(dir); });
    errors_only([&] {
        float one;
        load_state(dir, {{"ln_f.bias", {1}, &one, false}});
    });
    errors_only([&] {
        Options now;
        now.command = "train", now.resume = fuzz_dir() + "/run";
        Resumed r = resume_options(now);
        same_conditions(r, r.run);
    });
}
