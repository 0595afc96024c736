// Arms: from the text of --recipe to the stages a model trains in, and back to text.
#pragma once
#include "lab/keys.cuh"
#include "lab/native.cuh"
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
// --- native or emulated ------------------------------------------------------------------------------------------
inline const char* const gemm_names[] = {"fprop", "dgrad", "wgrad"};
struct GemmCasts { const char *a_name, *b_name; Cast a, b; };
inline GemmCasts gemm_casts(const Recipe& r, int gemm) { // its operands' names and casts, as linear layers have them
    if (gemm == 0) return {"x", "w", r.fprop ? r.x : Cast{}, r.fprop ? r.w : Cast{}};
    if (gemm == 1) return {"dy", "w", r.dgrad ? r.dy : Cast{}, r.dgrad ? r.w : Cast{}};
    return {"dy", "x", r.wgrad ? r.dy : Cast{}, r.wgrad ? r.x : Cast{}};
}
inline GemmKind gemm_kind(const GemmCasts& g) {
    auto side = [](const Cast& c) {
        bool blocks = c.block.cols > 0;
        return GemmSide{elem_of(c.elem), blocks ? kind_of(c).scales : Elem::f32, c.block.cols,
                        !blocks || kind_of(c).scales != Elem::f32 || c.pow2_scales,
                        blocks && kind_of(c).scales == Elem::f32 ? c.block.rows : 1};
    };
    return {side(g.a), side(g.b)};
}
// Those of all stages, for the check at start-up.
inline std::vector<GemmKind> gemm_kinds(const std::vector<RecipeStage>& stages) {
    std::vector<GemmKind> all;
    for (auto& s : stages)
        for (int i = 0; i < 3; i++)
            if (GemmKind k = gemm_kind(gemm_casts(s.recipe, i)); std::find(all.begin(), all.end(), k) == all.end())
                all.push_back(k);
    return all;
}
inline std::string how_on_card(const Recipe& r, int gemm, int cc) {
    GemmCasts g = gemm_casts(r, gemm);
    std::string how = how_multiplied(gemm_kind(g), cc, g.a_name, g.b_name);
    bool fast = gemm == 0 && r.fast_accum && is_per_tensor(r.x) && how.starts_with("native FP8") && has_fast_accum(cc);
    return fast ? how + ", fast accumulation" : how;
}
// Why GEMMs of a recipe are emulated on this machine; "" if none is. Emulated: the very codes and scales are made, and
// their exact values multiplied in BF16.
inline std::string emulation(const Recipe& r) {
    if (!any_quantized(r)) return "";
    if (!machine.gpu || machine.kernels != Kernels::fast)
        return "no GEMM here takes its formats: their exact values are multiplied in BF16";
    std::string why;
    for (int i = 0; i < 3 && why.empty(); i++) {
        std::string how = how_on_card(r, i, machine.cc), failed = native.failed_check(gemm_kind(gemm_casts(r, i)));
        if (!failed.empty()) why = std::string(gemm_names[i]) + ": " + failed;
        else if (how.starts_with("emulated: ")) why = std::string(gemm_names[i]) + ": " + how.substr(10);
    }
    return why;
}
inline std::string emulation(const std::vector<RecipeStage>& stages) { // of the first stage that has any
    for (auto& s : stages)
        if (std::string why = emulation(s.recipe); !why.empty()) return why;
    return "";
}
inline std::vector<RecipeStage> stages_of(const Arm& arm, const Options& o, int L) {
    std::vector<RecipeStage> stages;
    for (const Stage& s : arm.stages) {
        Recipe r = resolve_stage(arm, s);
        if (r.accum.mbits && o.kernels != "reference")
            fail_usage("--recipe %s: accum needs --kernels reference, which sums product by product", arm.text.c_str());
        std::string skip = o.skip + (o.skip.empty() || r.skip.empty() ? "" : "/") + r.skip;
        stages.push_back({s.from_step, r, match_layers(skip, linear_names(L))});
    }
    prove_gemms(gemm_kinds(stages), o.native);
    if (std::string why = emulation(stages); o.native && !why.empty())
        fail("--native: %s would be emulated: %s. hint: leave --native out", arm.text.c_str(), why.c_str());
    return stages;
}
// What `./train recipes --cc N` prints of a recipe: GEMMs that fare alike share a line, or with json each has its own.
inline std::string card_text(const std::string& name, int width, const Recipe& r, int cc, bool json) {
    std::string text, first = name, last;
    for (int i = 0; i < 3; i++) {
        std::string how = how_on_card(r, i, cc), which = gemm_names[i];
        GemmCasts g = gemm_casts(r, i);
        if (json) {
            Json line = Json(Json::Object).set("recipe", name).set("cc", (int64_t)cc).set("gemm", which);
            line.set(g.a_name, g.a.elem.name).set(g.b_name, g.b.elem.name).set("native", !how.starts_with("emulated"));
            text += line.set("how", how).dump() + "\n";
            continue;
        }
        while (i < 2 && how_on_card(r, i + 1, cc) == how) which += std::string(", ") + gemm_names[++i];
        text += format("%-*s  %-20s  %s\n", width, first.c_str(), which.c_str(), how.c_str()), first = "";
    }
    return text.substr(0, text.size() - 1);
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
    text += format("%s: %zu of %zu linears, %s", s.recipe.name.c_str(), names.size() - skipped.size(), names.size(),
                   emulation(s.recipe).empty() ? "native" : "emulated");
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
