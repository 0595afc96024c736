// Two training steps of a small GPT-2 under every recipe, against fake quantization in PyTorch, which
// tests/golden/make_recipes.py wrote from the specifications into tests/golden/recipes.txt. ACT=float: nothing is
// rounded but the operands that a recipe casts.
//
// Why the bound can be so small: a recipe is exact, but its codes are steps, and an element near the edge of one falls
// to either side by the order in which a sum was taken; after that the computations are different ones. The script has
// chosen weights and tokens for which no element is that close. So every code here is PyTorch's, and what is left are
// FP32 roundings, those of f32_model.cpp, where the same chain is derived: 100 of 2^-24 that all pointed one way would
// make 6e-6. Quantization adds three a product (two scales, a decoded operand); eight products in a row make 24 more.
#include "close.h"
#include "drive.h"
#include "lab/keys.cuh"
#include <fstream>
#include <set>
#include <sstream>

namespace { // test files share one program

static_assert(std::is_same_v<act, float>);
static const double bound = 1e-5;

static uint64_t splitmix(uint64_t key, uint64_t word) { return mix64((key ^ word) + 0x9e3779b97f4a7c15); }

constexpr int PROJECTIONS = 8;
struct Projected { // of a gradient: its norm, and its sums with random signs
    double norm = 0, p[PROJECTIONS] = {};
};
struct Step {
    double loss = 0;
    std::map<std::string, Projected> grads;
};
struct Case {
    std::string recipe;
    uint64_t weights, tokens[2][2]; // seeds: of the weights, of inputs and targets of either step
    int layers, heads, channels, positions, vocab, B;
    Step steps[2];
};
static std::vector<Case> read_cases() {
    std::ifstream file("tests/golden/recipes.txt");
    std::vector<Case> all;
    std::string line, what, name;
    for (int step; std::getline(file, line);) {
        std::istringstream in(line);
        in >> what;
        if (what == "case") {
            Case& c = all.emplace_back();
            in >> c.recipe >> c.weights >> c.tokens[0][0] >> c.tokens[0][1] >> c.tokens[1][0] >> c.tokens[1][1] >>
                c.layers >> c.heads >> c.channels >> c.positions >> c.vocab >> c.B;
        } else if (what == "loss") {
            in >> step >> all.back().steps[step - 1].loss;
        } else {
            in >> step >> name;
            Projected& g = all.back().steps[step - 1].grads[name];
            in >> g.norm;
            for (double& p : g.p) in >> p;
        }
        REQUIRE(in);
    }
    return all;
}
static Recipe recipe_of(const std::string& text) { // NAME or NAME:KEY=VALUE,KEY=VALUE
    std::istringstream in(text);
    std::string name, key, value;
    Keys keys;
    std::getline(in, name, ':');
    while (std::getline(in, key, '=') && std::getline(in, value, ',')) keys.push_back({key, value});
    return resolve(name, keys);
}
static std::string text_of(const Recipe& r) { // all that it does
    std::string text;
    for (const RecipeKey& k : recipe_keys) text += k.used(r) ? std::string(k.name) + "=" + k.get(r) + " " : "";
    for (const CastKey& k : cast_keys)
        for (const Cast* c : {&r.x, &r.w, &r.dy}) text += k.used(*c) ? std::string(k.name) + "=" + k.get(*c) + " " : "";
    return text;
}
static Projected project(const real* g, size_t n) {
    Projected out;
    for (size_t i = 0; i < n; i++) {
        uint64_t signs = splitmix(0, i);
        out.norm += (double)g[i] * g[i];
        for (int j = 0; j < PROJECTIONS; j++) out.p[j] += signs >> j & 1 ? -(double)g[i] : (double)g[i];
    }
    out.norm = sqrt(out.norm);
    return out;
}
// |got - want| / |want| from projections: sums of a vector with random signs have the square of its norm for their mean
// square. Of 8 the mean is chi-square over 8: below a hundredth of the truth in one case of 5e7.
static double distance(const Projected& got, const Projected& want) {
    double squares = 0;
    for (int j = 0; j < PROJECTIONS; j++) squares += pow(got.p[j] - want.p[j], 2);
    return sqrt(squares / PROJECTIONS) / want.norm;
}
static double cosine(const Projected& a, const Projected& b) {
    double d = distance(a, b) * b.norm;
    return (a.norm * a.norm + b.norm * b.norm - d * d) / (2 * a.norm * b.norm);
}

// `count` steps of `recipe` from the weights and tokens of c.
static std::vector<Step> train(const Case& c, const std::string& recipe, int count = 2) {
    GPT g;
    int T = c.positions, N = c.B * T;
    allocate(g, {c.layers, c.heads, c.channels, T, c.vocab}, Use::training, c.B, T, {{0, recipe_of(recipe), {}}});
    uint64_t stream = 0;
    for_each_param(g, [&](const std::string& name, Param& p) {
        bool norm = name.find("ln_") != std::string::npos, bias = name.ends_with(".bias");
        float sigma = norm ? bias ? 0.15f : 0.25f : bias || &p == &g.wpe ? 0.1f : (float)(1 / sqrt((double)p.cols));
        uint64_t key = splitmix(c.weights, stream++);
        for (size_t i = 0; i < p.size(); i++) { // bell-shaped: four uniform numbers added
            uint64_t h = splitmix(key, i);
            int sum = (int)(h & 0xffff) + (int)(h >> 16 & 0xffff) + (int)(h >> 32 & 0xffff) + (int)(h >> 48) - 131070;
            p.w[i] = (float)sum * (float)(sqrt(3.0) / 65536) * sigma + (norm && !bias ? 1.0f : 0.0f);
        }
    });
    publish(g);
    std::vector<Step> steps(count);
    for (int s = 0; s < count; s++) {
        std::vector<int> tokens[2];
        for (int k = 0; k < 2; k++)
            for (int i = 0; i < N; i++)
                tokens[k].push_back((int)(splitmix(splitmix(0, c.tokens[s][k]), i) % (uint64_t)c.vocab));
        g.pass = {true, c.weights, (uint64_t)s + 1, 0};
        set_batch(g, tokens[0], tokens[1]);
        steps[s].loss = gpt_forward(g, c.B, T, 1.0f / (float)N);
        gpt_backward(g, c.B, T);
        for_each_param(g, [&](const std::string& name, Param& p) { steps[s].grads[name] = project(p.grad, p.size()); });
        gradient_norm(g, 1.0), update(g, s + 1, 1e-3, 0.1);
    }
    release(g);
    return steps;
}
struct Worst {
    double loss = 0, norm = 0, distance = 0, cosine = 1;
    std::string where;
};
static Worst compare(const std::vector<Step>& got, const Case& c) {
    Worst w;
    auto raise = [](double& worst, double x) { worst = x <= worst ? worst : std::isnan(x) ? INFINITY : x; };
    for (size_t s = 0; s < got.size(); s++) {
        raise(w.loss, std::fabs(got[s].loss / c.steps[s].loss - 1));
        REQUIRE(got[s].grads.size() == c.steps[s].grads.size());
        for (auto& [name, want] : c.steps[s].grads) {
            const Projected& g = got[s].grads.at(name);
            raise(w.norm, std::fabs(g.norm / want.norm - 1));
            w.cosine = std::min(w.cosine, cosine(g, want));
            double before = w.distance;
            raise(w.distance, distance(g, want));
            if (w.distance != before) w.where = name + " in step " + std::to_string(s + 1);
        }
    }
    return w;
}

TEST_CASE("f32: two steps of every recipe have PyTorch's loss and gradients to 1e-5") {
    Threads one(1);
    std::vector<Case> cases = read_cases();
    for (const Recipe& r : recipes)
        CHECK(std::any_of(cases.begin(), cases.end(), [&](const Case& c) { return c.recipe == r.name; }));
    for (const Case& c : cases)
        for (Kernels kernels : {Kernels::reference, Kernels::fast}) {
            if (kernels == Kernels::reference && (c.layers == 1 || c.recipe.find(':') != std::string::npos)) continue;
            machine.kernels = kernels;
            Worst w = compare(train(c, c.recipe), c);
            INFO(c.recipe, ", kernels ", (int)kernels, ", farthest: ", w.where);
            CHECK(w.loss <= bound);
            CHECK(w.norm <= bound);
            CHECK(w.distance <= bound);
            CHECK(w.cosine >= 1 - bound * bound);
        }
    machine.kernels = Kernels::fast;
}
TEST_CASE("f32: each recipe's golden is 100 bounds away from other recipes and from its own with a key changed") {
    // Scaled by powers of two, E4M3 rounds to the same values in blocks of any size, unless something in them is 2^-15
    // of their maximum; so these are one and have to be. pow2_scales=0 tells blocks of 128 from others. For the same
    // reason the margin that is changed is one that clips.
    const std::set<std::string> same = {"blockwise", "mxfp8", "blockwise:w.block=1x128", "blockwise:x.block=128x128"};
    const char* changes[] = {"fprop=0",          "dgrad=0",          "wgrad=0",       "x.rht=1,dy.rht=1",
                             "x.rht=0,dy.rht=0", "dy.round=sr",      "dy.round=rne",  "margin=-1",
                             "scale_rule=floor", "scale_rule=rceil", "pow2_scales=1", "dy.format=e4m3",
                             "dy.format=e5m2",   "w.block=1x16",     "w.block=1x128", "x.block=128x128"};
    Threads one(1);
    std::vector<Case> cases = read_cases();
    for (const Case& c : cases) {
        std::vector<std::string> others;
        bool keys = c.recipe.find(':') != std::string::npos;
        if (keys && c.recipe != "blockwise:pow2_scales=0") continue;
        for (const Recipe& r : recipes) others.push_back(r.name);
        for (const char* change : changes) others.push_back(c.recipe + (keys ? "," : ":") + change);
        for (const std::string& other : others) try {
                if (other == c.recipe || (same.count(other) && same.count(c.recipe))) continue;
                if (text_of(recipe_of(other)) == text_of(recipe_of(c.recipe))) continue;
                INFO("the golden of ", c.recipe, ", trained in ", other);
                double distance = 0;
                for (int steps = 1; steps <= 2 && distance < 100 * bound;
                     steps++) // delayed scaling tells in the second
                    distance = compare(train(c, other, steps), c).distance;
                CHECK(distance >= 100 * bound);
            } catch (KeyError&) {} // a recipe that has no use for the key
    }
}

} // namespace
