// Arms: from the text of --recipe to the stages a model trains in, and back to text.
#pragma once
#include "model.cuh"
#include "run/json.h"
#include "run/options.h"

inline std::vector<std::string> linear_names(int L) {
    GPT g;
    g.blocks.resize(L);
    std::vector<std::string> names;
    for_each_linear(g, [&](const std::string& name, Linear&) { names.push_back(name); });
    return names;
}
inline Recipe resolve_stage(const Arm& arm, const Stage& stage) try {
    return resolve(stage.name, stage.keys);
} catch (const KeyError& e) {
    std::string hint = e.known.empty() ? "" : "the nearest is " + nearest(e.word, e.known) + "; ";
    fail_usage("--recipe %s: %s. hint: %s`./train recipes` lists recipes and keys", arm.text.c_str(), e.text.c_str(),
               hint.c_str());
}
inline std::vector<RecipeStage> stages_of(const Arm& arm, const Options& o, int L) {
    std::vector<RecipeStage> stages;
    for (const Stage& s : arm.stages) {
        Recipe r = resolve_stage(arm, s);
        if (r.accum.mbits && o.kernels != "reference")
            fail_usage("--recipe %s: accum needs --kernels reference, which sums product by product", arm.text.c_str());
        if (o.native && any_quantized(r))
            fail("--native: %s would be emulated: its codes and scales, but a BF16 GEMM of their values. hint: leave "
                 "--native out", arm.text.c_str());
        std::string skip = o.skip + (o.skip.empty() || r.skip.empty() ? "" : "/") + r.skip;
        stages.push_back({s.from_step, r, match_layers(skip, linear_names(L))});
    }
    return stages;
}
// Does some stage cast? Then the very codes and scales are made and their exact values multiplied in BF16.
inline bool is_emulated(const std::vector<RecipeStage>& stages) {
    return std::any_of(stages.begin(), stages.end(), [](auto& s) { return any_quantized(s.recipe); });
}

inline Json json_of(const Recipe& r) { // every key that the row has a use for
    Json all = Json(Json::Object).set("recipe", r.name);
    for (auto [name, c] : casts_of(r))
        for (const CastKey& k : cast_keys)
            if (k.used(*c)) all.set(std::string(name) + "." + k.name, k.get(*c));
    for (const RecipeKey& k : recipe_keys)
        if (k.used(r)) all.set(k.name, k.get(r));
    return all;
}
inline std::string cast_text(const Cast& c) {
    std::string text;
    for (const CastKey& k : cast_keys)
        if (std::string v = k.get(c); k.used(c) && v != "0")
            text += (text.empty() ? "" : " ") + (v == "1" ? k.name : v);
    return text;
}
inline std::vector<std::string> skipped_names(const RecipeStage& s, const std::vector<std::string>& names) {
    std::vector<std::string> skipped;
    for (size_t i = 0; i < names.size(); i++)
        if (s.skip[i]) skipped.push_back(names[i]);
    return skipped;
}
// What is cast how, and which layers are not.
inline std::string stage_text(const RecipeStage& s, const std::vector<std::string>& names) {
    std::string text = s.from ? format("from step %lld on ", (long long)s.from) : "", last;
    if (!any_quantized(s.recipe)) return text + s.recipe.name + ": every linear in BF16";
    std::vector<std::string> skipped = skipped_names(s, names);
    text += format("%s: %zu of %zu linears, emulated", s.recipe.name.c_str(), names.size() - skipped.size(), names.size());
    for (auto [operand, c] : casts_of(s.recipe)) { // x, w e4m3; dy e5m2
        std::string cast = cast_text(*c);
        if (!last.empty() && cast != last) text += " " + last;
        text += (cast == last ? ", " : "; ") + std::string(operand), last = cast;
    }
    text += " " + last + (skipped.empty() ? "" : "; in BF16:");
    for (auto& name : skipped) text += " " + name;
    return text;
}
inline Json stages_json(const std::vector<RecipeStage>& stages, const std::vector<std::string>& names) {
    Json all(Json::Array);
    for (auto& s : stages)
        all.add(Json(Json::Object).set("from", s.from).set("row", json_of(s.recipe))
                    .set("skipped", skipped_names(s, names)));
    return all;
}
