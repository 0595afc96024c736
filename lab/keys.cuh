// Keys: a row of the table of recipes, changed on the command line. Every column is one.
#pragma once
#include "scaling.cuh"

using Keys = std::vector<std::pair<std::string, std::string>>; // "margin", "1"; later ones win

constexpr const char *rules[] = {"rceil", "floor", "ceil", "even"}, *roundings[] = {"rne", "sr"},
                     *algos[] = {"max", "most_recent"}; // as in their enums

inline std::string block_text(Block b) { return format("%dx%d", b.rows, b.cols); }
// Values of keys. Errors say what is allowed; if it is a word that is unknown, they name those it may have meant.
struct KeyError {
    std::string text, word = "";
    std::vector<std::string> known = {};
};
template <size_t N> int choose(const std::string& value, const char* const (&names)[N]) {
    std::string all;
    for (size_t i = 0; i < N; i++) {
        if (value == names[i]) return (int)i;
        all += std::string(i ? ", " : "") + names[i];
    }
    throw KeyError{"must be one of " + all};
}
inline double number_in(const std::string& value, double least, double most) {
    char* end;
    double v = strtod(value.c_str(), &end);
    if (value.empty() || *end || !(v >= least && v <= most))
        throw KeyError{format("must be from %g to %g", least, most)};
    return v;
}
inline int integer_in(const std::string& value, int least, int most) {
    double v = number_in(value, least, most);
    if (v != (int)v) throw KeyError{"must be a whole number"};
    return (int)v;
}
inline int power_of_two_in(const std::string& value) { // its exponent
    int e;
    if (frexp(number_in(value, 0x1p-60, 0x1p60), &e) != 0.5) throw KeyError{"must be a power of two"};
    return e - 1;
}
// A key of one operand: sets it, and tells whether the cast, once all keys are set, has any use for it.
struct CastKey {
    const char* name;
    void (*set)(Cast&, const std::string&);
    std::string (*get)(const Cast&);
    bool (*used)(const Cast&);
};
inline const CastKey cast_keys[] = {
    {"scaling", [](Cast& c, const std::string& v) {
         const char* names[std::size(scaling_kinds)];
         for (size_t i = 0; i < std::size(names); i++) names[i] = scaling_kinds[i].name;
         Scaling s = (Scaling)choose(v, names);
         if (s == c.scaling) return;
         c.scaling = s, c.block = kind_of(c).block, c.pow2_scales = s == Scaling::blockwise;
         c.rht &= s == Scaling::mx || s == Scaling::nvfp4;
         if (!word_in(c.elem.name, kind_of(c).takes))
             c.elem = s == Scaling::nvfp4 ? E2M1 : is_quantized(c) ? E4M3 : BF16;
     }, [](const Cast& c) { return std::string(kind_of(c).name); }, [](const Cast&) { return true; }},
    {"format", [](Cast& c, const std::string& v) {
         const char* names[] = {"e4m3", "e5m2", "e3m2", "e2m3", "e2m1"};
         c.elem = ALL_FORMATS[choose(v, names)];
     }, [](const Cast& c) { return std::string(c.elem.name); }, is_quantized},
    {"block", [](Cast& c, const std::string& v) {
         if (sscanf(v.c_str(), "%dx%d", &c.block.rows, &c.block.cols) != 2 || block_text(c.block) != v)
             throw KeyError{"must be ROWSxCOLS, 1x16 for example"};
     }, [](const Cast& c) { return block_text(c.block); }, [](const Cast& c) { return kind_of(c).block.cols > 0; }},
    {"scale_rule", [](Cast& c, const std::string& v) { c.rule = (ScaleRule)choose(v, rules); },
     [](const Cast& c) { return std::string(rules[(int)c.rule]); },
     [](const Cast& c) { return c.scaling == Scaling::mx; }},
    {"round", [](Cast& c, const std::string& v) { c.round = (Rounding)choose(v, roundings); },
     [](const Cast& c) { return std::string(roundings[(int)c.round]); }, is_quantized},
    {"pow2_scales", [](Cast& c, const std::string& v) { c.pow2_scales = integer_in(v, 0, 1); },
     [](const Cast& c) { return std::to_string(c.pow2_scales); },
     [](const Cast& c) { return c.scaling == Scaling::current || c.scaling == Scaling::blockwise; }},
    {"rht", [](Cast& c, const std::string& v) { c.rht = integer_in(v, 0, 1); },
     [](const Cast& c) { return std::to_string(c.rht); },
     [](const Cast& c) { return c.scaling == Scaling::mx || c.scaling == Scaling::nvfp4; }},
};
struct RecipeKey {
    const char* name;
    void (*set)(Recipe&, const std::string&);
    std::string (*get)(const Recipe&);
    bool (*used)(const Recipe&);
};
inline bool always(const Recipe&) { return true; }
inline const RecipeKey recipe_keys[] = {
    {"amax_history_len", [](Recipe& r, const std::string& v) { r.amax_history_len = integer_in(v, 1, 1 << 20); },
     [](const Recipe& r) { return std::to_string(r.amax_history_len); }, any_delayed},
    {"amax_compute_algo", [](Recipe& r, const std::string& v) { r.amax_compute_algo = (Algo)choose(v, algos); },
     [](const Recipe& r) { return std::string(algos[(int)r.amax_compute_algo]); }, any_delayed},
    {"margin", [](Recipe& r, const std::string& v) { r.margin = integer_in(v, -100, 100); },
     [](const Recipe& r) { return std::to_string(r.margin); }, any_delayed},
    {"fprop", [](Recipe& r, const std::string& v) { r.fprop = integer_in(v, 0, 1); },
     [](const Recipe& r) { return std::to_string(r.fprop); }, any_quantized},
    {"dgrad", [](Recipe& r, const std::string& v) { r.dgrad = integer_in(v, 0, 1); },
     [](const Recipe& r) { return std::to_string(r.dgrad); }, any_quantized},
    {"wgrad", [](Recipe& r, const std::string& v) { r.wgrad = integer_in(v, 0, 1); },
     [](const Recipe& r) { return std::to_string(r.wgrad); }, any_quantized},
    {"fast_accum", [](Recipe& r, const std::string& v) { r.fast_accum = integer_in(v, 0, 1); },
     [](const Recipe& r) { return std::to_string(r.fast_accum); },
     [](const Recipe& r) { return r.fprop && is_per_tensor(r.x) && is_per_tensor(r.w); }},
    {"skip", [](Recipe& r, const std::string& v) { r.skip = v; }, [](const Recipe& r) { return r.skip; },
     any_quantized},
    {"lr", [](Recipe& r, const std::string& v) { r.lr = number_in(v, 1e-30, 1000); },
     [](const Recipe& r) { return format("%.9g", r.lr); }, always},
    {"loss_scale", [](Recipe& r, const std::string& v) { r.loss_scale = number_in(v, 1e-30, 1e30); },
     [](const Recipe& r) { return format("%.9g", r.loss_scale); }, always},
    {"accum", [](Recipe& r, const std::string& v) {
         Accum& a = r.accum;
         if (sscanf(v.c_str(), "%d/%d", &a.mbits, &a.interval) != 2 || v != format("%d/%d", a.mbits, a.interval) ||
             a.mbits < 1 || a.mbits > 23 || a.interval < 1)
             throw KeyError{"must be BITS/INTERVAL, 14/128 for example: 1 to 23 mantissa bits"};
     }, [](const Recipe& r) { return format("%d/%d", r.accum.mbits, r.accum.interval); }, always},
    {"init_scale", [](Recipe& r, const std::string& v) { r.init_scale = number_in(v, 1e-6, 1e6); },
     [](const Recipe& r) { return format("%.9g", r.init_scale); }, always},
    {"nudge", [](Recipe& r, const std::string& v) { r.nudge = integer_in(v, -1000, 1000); },
     [](const Recipe& r) { return std::to_string(r.nudge); }, always},
    {"outlier", [](Recipe& r, const std::string& v) { r.outlier = ldexp(1, power_of_two_in(v)); },
     [](const Recipe& r) { return format("%.9g", r.outlier); }, always},
    {"jump", [](Recipe& r, const std::string& v) {
         size_t a = v.find('/'), b = v.find('/', a + 1);
         if (b > v.size()) throw KeyError{"must be FACTOR/STEP/COUNT, 128/100/1 for example"};
         r.jump = {power_of_two_in(v.substr(0, a)), integer_in(v.substr(a + 1, b - a - 1), 1, 1 << 30),
                   integer_in(v.substr(b + 1), 1, 1 << 30)};
     }, [](const Recipe& r) { return format("%g/%d/%d", ldexp(1, r.jump.log2), r.jump.step, r.jump.count); }, always},
    {"forget", [](Recipe& r, const std::string& v) { r.forget = integer_in(v, 1, 1 << 30); },
     [](const Recipe& r) { return std::to_string(r.forget); }, any_delayed},
};
// Why no hardware and no GEMM here takes such a row; "" if they do.
inline std::string refusal(const Recipe& r) {
    for (auto [name, c] : casts_of(r)) {
        const ScalingKind& kind = kind_of(*c);
        if (!word_in(c->elem.name, kind.takes) && is_quantized(*c))
            return format("%s.format=%s with scaling=%s, which takes %s", name, c->elem.name, kind.name, kind.takes);
        if (!word_in(block_text(c->block), kind.blocks) && is_quantized(*c))
            return format("%s.block=%s with scaling=%s, which takes %s", name, block_text(c->block).c_str(), kind.name,
                          kind.blocks);
    }
    auto both = [](const Cast& a, const Cast& b) {
        return is_quantized(a) && is_quantized(b) && a.elem == E5M2 && b.elem == E5M2;
    };
    if ((r.fprop && both(r.x, r.w)) || (r.dgrad && both(r.dy, r.w)) || (r.wgrad && both(r.dy, r.x)))
        return format("E5M2 on both sides of %s: no tensor core multiplies that",
                      r.fprop && both(r.x, r.w) ? "fprop" : r.dgrad && both(r.dy, r.w) ? "dgrad" : "wgrad");
    if (r.w.rht) return "w.rht=1: the Hadamard transform goes along tokens, which w has none of";
    if (r.wgrad && r.x.rht != r.dy.rht)
        return "rht of x but not of dy, or the other way round: it cancels in wgrad only if both went through it";
    if (any_quantized(r) && !r.fprop && !r.dgrad && !r.wgrad)
        return "fprop=0, dgrad=0 and wgrad=0 leave nothing to quantize";
    return "";
}
inline std::vector<std::string> recipe_names() {
    std::vector<std::string> names;
    for (const Recipe& r : recipes) names.push_back(r.name);
    return names;
}
inline std::vector<std::string> key_names() {
    std::vector<std::string> names;
    for (const RecipeKey& k : recipe_keys) names.push_back(k.name);
    for (const CastKey& k : cast_keys)
        for (const char* operand : {"", "x.", "w.", "dy."}) names.push_back(std::string(operand) + k.name);
    return names;
}
// The row called `name` with `keys` set. Throws KeyError: no such row, no such key, a value that is none, a key that
// the row, as it ends up, has no use for, a row that is refused.
inline Recipe resolve(const std::string& name, const Keys& keys) {
    auto row = std::find_if(recipes.begin(), recipes.end(), [&](const Recipe& r) { return r.name == name; });
    if (row == recipes.end()) throw KeyError{"there is no recipe " + name, name, recipe_names()};
    Recipe r = *row;
    std::vector<std::pair<std::string, std::function<bool()>>> checks;
    for (auto& [key, value] : keys) try {
        bool known = false;
        for (const RecipeKey& k : recipe_keys)
            if (key == k.name) k.set(r, value), known = true, checks.push_back({key, [&r, &k] { return k.used(r); }});
        auto of = [&](Cast& c, const CastKey& k) { return k.name != std::string("rht") || &c != &r.w; };
        for (const CastKey& k : cast_keys)
            for (auto [operand, c] : casts_of(r)) {
                if (key == std::string(operand) + "." + k.name) {
                    k.set(*c, value), known = true;
                    checks.push_back({key, [cast = c, &k] { return k.used(*cast); }});
                } else if (key == k.name && of(*c, k)) {
                    k.set(*c, value);
                    if (!known) checks.push_back({key, [&r, &k] { return any_cast(r, k.used); }});
                    known = true;
                }
            }
        if (!known) throw KeyError{"is no key of a recipe", key, key_names()};
    } catch (KeyError& e) {
        e.text = key + "=" + value + ": " + (e.known.empty() ? key + " " : "") + e.text;
        throw;
    }
    for (auto& [key, used] : checks)
        if (!used()) throw KeyError{"recipe " + name + " has no use for " + key};
    if (std::string why = refusal(r); !why.empty()) throw KeyError{why};
    return r;
}
