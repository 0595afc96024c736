// What a user types. The first byte chooses: o, a command line, one word on each line; r, the text of --recipe; k, a
// list for --skip.
#pragma once
#include "lab/arms.cuh"
#include "tests/fuzz/fuzz.h"

inline void use_recipes(const std::string& text) {
    std::vector<Arm> arms = parse_arms(text);
    std::string again;
    for (const Arm& arm : arms) {
        again += (again.empty() ? "" : ",") + arm.text;
        for (const Stage& stage : arm.stages)
            errors_only([&] {
                Recipe r = resolve_stage(arm, stage);
                json_of(r), any_quantized(r);
                RecipeStage s = {stage.from_step, r, match_layers(r.skip, linear_names(2))};
                HOLDS(stage_text(s, linear_names(2)).size() > 0);
            });
    }
    HOLDS(again == text);
}
inline void fuzz_words(std::string_view bytes) {
    if (bytes.empty()) return;
    std::string text(bytes.substr(1)), word;
    if (bytes[0] == 'r') errors_only([&] { use_recipes(text); });
    if (bytes[0] == 'k') errors_only([&] { HOLDS(match_layers(text, linear_names(3)).size() == 13); });
    if (bytes[0] != 'o' || text.find('\0') < text.size()) return;
    std::vector<std::string> words = {"train"};
    for (char c : text + "\n")
        if (c == '\n') words.push_back(std::exchange(word, ""));
        else word += c;
    std::vector<const char*> argv;
    for (auto& w : words) argv.push_back(w.c_str());
    errors_only([&] {
        Options o = parse_options((int)argv.size(), argv.data());
        HOLDS(help_text(o.command).size() > 100);
        if (o.help || o.version) return;
        std::string all = settings(o).dump();
        HOLDS(parse_json(all, "settings").dump() == all);
        for (const Arm& arm : o.arms) errors_only([&] { stages_of(arm, o, 2); });
    });
}
