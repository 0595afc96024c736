#include "report/compare.h"
#include "run/error.h"
#include "run/files.h"
#include "run/options.h"
#include <algorithm>
#include <filesystem>
#include <sstream>

[[noreturn]] static void bad(const std::string& where, const std::string& what) {
    fail("%s: %s. hint: was it edited, or written by two runs or by another version?", where.c_str(), what.c_str());
}

// --- statistics --------------------------------------------------------------------------------------------------
// The incomplete beta function I_x(a, b) by its continued fraction, from the inside out (Abramowitz & Stegun 26.5.8).
static double incomplete_beta(double x, double a, double b) {
    if (x > (a + 1) / (a + b + 2)) return 1 - incomplete_beta(1 - x, b, a); // 26.5.2: it converges faster there
    double f = 1;
    for (int k = 300; k > 0; k--) {
        double m = k / 2, odd = -(a + m) * (a + b + m) / (a + 2 * m + 1), even = m * (b - m) / (a + 2 * m - 1);
        f = 1 + (k % 2 ? odd : even) / (a + 2 * m) * x / f;
    }
    return exp(a * log(x) + b * log1p(-x) + lgamma(a + b) - lgamma(a) - lgamma(b)) / (a * f);
}
double t_quantile(double p, double df) {
    if (p < 0.5) return -t_quantile(1 - p, df);
    auto above = [&](double t) { return incomplete_beta(df / (df + t * t), df / 2, 0.5) / 2; }; // 26.5.27, 26.7.1
    double low = 0, high = 1;
    while (above(high) > 1 - p) high *= 2;
    for (int i = 0; i < 100; i++) (above((low + high) / 2) > 1 - p ? low : high) = (low + high) / 2;
    return high;
}
Interval t_interval(const std::vector<double>& values, double confidence) {
    Interval i{(int)values.size()};
    double sum = 0, squares = 0;
    for (double v : values) sum += v;
    i.mean = sum / i.n;
    if (i.n < 2) return i;
    for (double v : values) squares += (v - i.mean) * (v - i.mean);
    i.sd = sqrt(squares / (i.n - 1));
    double half = t_quantile((1 + confidence) / 2, i.n - 1) * i.sd / sqrt(i.n);
    return i.low = i.mean - half, i.high = i.mean + half, i;
}
static double mean(const std::vector<double>& values) { return t_interval(values, 0.9).mean; }
double detectable_effect(int n, double power, double alpha) {
    return (t_quantile(1 - alpha / 2, n - 1) + t_quantile(power, n - 1)) / sqrt(n);
}
std::string verdict_of(const Interval& d, double bound) {
    if (d.n < 2) return "one seed: no interval";
    if (d.low >= -bound && d.high <= bound) return "equivalent";
    return d.low > 0 ? "worse" : d.high < 0 ? "better" : "unresolved";
}

// --- reading -----------------------------------------------------------------------------------------------------
template <class V, class M, class K> static auto find_by(V& all, M member, const K& key) -> decltype(&all[0]) {
    auto at = std::find_if(all.begin(), all.end(), [&](auto& x) { return x.*member == key; });
    return at == all.end() ? nullptr : &*at;
}
const RecipeResult* Comparison::find(const std::string& recipe) const {
    return find_by(recipes, &RecipeResult::recipe, recipe);
}
static const Json& member(const Json& json, const char* key, Json::Kind kind, const std::string& path) {
    const Json* m = json.find(key);
    if (!m || m->kind != kind || (kind == Json::Number && m->integer().value_or(-1) < 0))
        bad(path, quote(key) + " is missing or not what it should be");
    return *m;
}
static int64_t whole(const Json& json, const char* key, const std::string& path) {
    return *member(json, key, Json::Number, path).integer();
}
static void must_agree(const Json& a, const Json& b, const std::string& dirs) { // all options of two runs, except
    static const std::string may_differ =
        "recipe seed seeds out noise-floor price threads device kernels profile json "
        "quiet stats-every sample-every prompt dump resume native checkpoint-every keep override drop-scales tokenizer";
    auto show = [](const Json& j, const std::string& key) { return j.find(key) ? j.find(key)->dump() : "absent"; };
    for (auto* keys : {&a.keys, &b.keys})
        for (auto& key : *keys)
            if (!word_in(key, may_differ) && show(a, key) != show(b, key))
                fail("%s are different experiments: %s is %s and %s. hint: only recipes and seeds may differ",
                     dirs.c_str(), key.c_str(), show(a, key).c_str(), show(b, key).c_str());
}
static void keep_worst(Worst& w, const Table& t, size_t r, const char* name) {
    double v = t.text(r, name).empty() ? NAN : t.number(r, name); // empty: the layer is in BF16
    if (v > w.percent || (std::isnan(w.percent) && !std::isnan(v)))
        w = {v, t.text(r, "layer"), t.text(r, "operand"), t.whole(r, "seed"), t.whole(r, "step")};
}
struct Reader {
    Comparison& c;
    std::vector<Json> runs = {};                                                         // run.json of each directory
    std::map<std::string, std::map<std::string, std::vector<double>[3]>> gradients = {}; // by recipe and layer
    double tokens = NAN, utilization = NAN; // in a step; of the device, by one token a second
    bool one_device = true;

    void add_run(size_t dir) {
        const std::string path = c.dirs[dir] + "/run.json";
        if (!std::filesystem::exists(path))
            fail("%s: no such file. hint: a run's directory is its --out, or runs/<time>", path.c_str());
        const Json& run = runs.emplace_back(parse_json(read_file(path, 1 << 26), path));
        const Json &options = member(run, "options", Json::Object, path), *noise = run.find("noise_floor");
        must_agree(*runs[0].find("options"), options, c.dirs[0] + " and " + c.dirs[dir]);
        auto act = [](const Json& run) { return run.find("act") ? run.find("act")->text : ""; };
        if (act(run) != act(runs[0]))
            fail("%s and %s are different experiments: activations are %s and %s", c.dirs[0].c_str(),
                 c.dirs[dir].c_str(), act(runs[0]).c_str(), act(run).c_str());
        one_device &= member(run, "device", Json::String, path).text == runs[0].find("device")->text;
        const std::string& baseline = member(run, "baseline", Json::String, path).text;
        if (!dir) c.baseline = baseline;
        if (noise && noise->kind == Json::String) c.noise_floor = noise->text;
        if (const Json* peak = run.find("peak_flops"), *config = run.find("config"); peak && config)
            utilization = (6.0 * (double)whole(run, "parameters", path) +
                           6.0 * (double)(whole(*config, "layers", path) * whole(*config, "channels", path) *
                                          whole(*config, "seq_len", path))) /
                          peak->number().value_or(NAN);
        if (const Json* changes = run.find("changes"))
            for (auto& change : changes->items)
                for (auto& word : member(change, "words", Json::Array, path).items)
                    c.changes += (c.changes.empty() ? "" : " ") + word.text;
        if (options.find("price")) c.price = options.find("price")->number().value_or(0);
        c.steps = whole(options, "steps", path);
        for (const Json& arm : member(run, "arms", Json::Array, path).items) add_arm(arm, options, dir, path);
        for (const char* name : {"steps", "evals", "arms", "tensors", "gradients"}) add_table(name, dir);
    }
    void add_arm(const Json& arm, const Json& options, size_t dir, const std::string& path) {
        const std::string& name = member(arm, "arm", Json::String, path).text;
        if (!c.find(name)) c.recipes.emplace_back().recipe = name;
        RecipeResult& r = *find_by(c.recipes, &RecipeResult::recipe, name);
        r.emulated |= !member(arm, "emulated", Json::Bool, path).is_bool(false);
        r.why = member(arm, "why", Json::String, path).text;
        for (const Json& stage : member(arm, "stages", Json::Array, path).items)
            for (const char* key : {"x.scaling", "w.scaling", "dy.scaling"})
                if (const Json* row = stage.find("row"), *scaling = row ? row->find(key) : nullptr; scaling)
                    r.casts |= scaling->text != "none";
        const Json& memory = member(arm, "memory_bytes", Json::Object, path);
        for (auto& key : memory.keys) r.memory[key] = whole(memory, key.c_str(), path);
        int64_t from = whole(options, "seed", path), count = std::min<int64_t>(whole(options, "seeds", path), 1 << 14);
        for (int64_t seed = from; seed < from + count; seed++) {
            if (auto* twice = find_by(r.seeds, &SeedResult::seed, seed))
                fail("recipe %s with seed %lld is in %s and in %s. hint: leave one out, or train other seeds",
                     name.c_str(), (long long)seed, c.dirs[twice->dir].c_str(), c.dirs[dir].c_str());
            r.seeds.push_back({seed, 0, "not finished", NAN, NAN, NAN, "", {}, dir});
        }
        c.seeds = std::max(c.seeds, (int64_t)r.seeds.size());
    }
    void add_table(const std::string& name, size_t dir) {
        const std::string path = c.dirs[dir] + "/" + name + ".csv";
        if (name == "gradients" && (!std::filesystem::exists(path) ||                // comes last
                                    runs[dir].find("baseline")->text != c.baseline)) // of other weights
            return;
        const Table t = read_table(path);
        for (size_t i = 0; i < t.rows.size(); i++) {
            auto* r = find_by(c.recipes, &RecipeResult::recipe, t.text(i, "recipe"));
            auto* s = r ? find_by(r->seeds, &SeedResult::seed, t.whole(i, "seed")) : nullptr;
            auto arm = [&] { return "recipe " + t.text(i, "recipe") + " with seed " + t.text(i, "seed"); };
            if (!s || s->dir != dir) t.bad(i + 2, arm() + " is not in run.json");
            bool ok = true;
            if (name == "steps") s->step = t.whole(i, "step");
            else if (name == "evals") {
                int64_t step = t.whole(i, "step");
                if (step) tokens = t.number(i, "tokens") / (double)step;
                ok = s->evals.emplace(step, t.number(i, "loss")).second;
            } else if (name == "arms") {
                const std::string& outcome = t.text(i, "outcome");
                ok = s->outcome == "not finished" && (outcome == "done" || outcome == "diverged");
                bool done = outcome == "done" && std::isfinite(t.number(i, "loss"));
                s->outcome = done ? "done" : "diverged", s->loss = done ? t.number(i, "loss") : NAN;
                s->step = t.whole(i, "step"), s->ms = t.number(i, "ms"), s->fingerprint = t.text(i, "fingerprint");
            } else if (name == "tensors") {
                keep_worst(r->underflow, t, i, "underflow"), keep_worst(r->saturation, t, i, "saturation");
            } else {
                std::vector<double>* v = gradients[r->recipe][t.text(i, "layer")];
                for (const char* column : {"rel_error", "cosine", "mean_error"}) v++->push_back(t.number(i, column));
            }
            if (!ok) t.bad(i + 2, arm() + " has that already, or an outcome besides done and diverged");
        }
    }
};

// --- judging -----------------------------------------------------------------------------------------------------
// The pairs of losses at each check-point, the last of which is the end, and what follows from them.
static void judge(RecipeResult& r, const Comparison& c, double tokens) {
    const RecipeResult* base = c.find(c.baseline);
    const std::vector<SeedResult> nobody, &others = base && base != &r ? base->seeds : nobody;
    auto partner = [&](const SeedResult& s) { return find_by(others, &SeedResult::seed, s.seed); };
    double reached = 0, planned = 0;
    bool worse = false;
    std::vector<double> losses, ms;
    for (SeedResult& s : r.seeds) {
        const SeedResult* b = partner(s);
        if (b) s.difference = s.loss - b->loss;
        if (s.outcome == "done") losses.push_back(s.loss);
        if (s.ms > 0) ms.push_back(s.ms);
        r.diverged += s.outcome == "diverged";
        worse |= s.outcome == "diverged" && b && b->outcome == "done";
        for (const SeedResult* a : {(const SeedResult*)&s, b ? b : &s}) // after its last step an arm still evaluates
            reached += (double)(a->outcome == "not finished" ? std::min(a->step, c.steps - 1) : c.steps);
        planned += 2 * (double)c.steps;
    }
    r.done = (int)losses.size(), r.loss = mean(losses);
    for (int percent : CHECKPOINTS) {
        Checkpoint k{percent, step_at(c.steps, percent), {}, {}};
        std::vector<double> d, bases;
        auto at = [&](const SeedResult& s) { return s.evals.count(k.step) ? s.evals.at(k.step) : NAN; };
        for (const SeedResult& s : r.seeds)
            if (auto* b = partner(s); b && std::isfinite(at(s) - at(*b)))
                d.push_back(at(s) - at(*b)), bases.push_back(at(*b));
        k.nats = t_interval(d, 0.9), k.complete = d.size() == r.seeds.size(), r.baseline_loss = mean(bases);
        for (double& v : d) v *= 100 / r.baseline_loss;
        k.relative = t_interval(d, 0.9), r.horizon.push_back(k);
    }
    r.nats = r.horizon.back().nats, r.relative = r.horizon.back().relative;
    r.verdict = verdict_of(r.relative, 0.25);
    if (!r.nats.n) r.verdict = base == &r ? "baseline" : "no baseline";
    if (reached < planned) r.verdict = format("not finished (%.0f %%)", floor(100 * reached / planned));
    if (worse) r.verdict = "worse";
    r.inside_half = !worse && reached == planned && verdict_of(r.relative, 0.5) == "equivalent";
    if (r.diverged) r.verdict += format(" (%d of %zu diverged)", r.diverged, r.seeds.size());
    if (r.nats.n > 1) r.detectable = detectable_effect(r.nats.n) * r.nats.sd;
    if (r.emulated || ms.empty()) return;
    std::nth_element(ms.begin(), ms.begin() + ms.size() / 2, ms.end());
    r.tokens_per_second = tokens / ms[ms.size() / 2] * 1e3;
    if (base && r.casts) r.speedup = r.tokens_per_second / base->tokens_per_second; // whose turn came first
    if (c.price > 0) r.cost = c.price / 3600 / r.tokens_per_second * 1e6;
}
Comparison compare(const std::vector<std::string>& dirs, double price) {
    Comparison c;
    c.dirs = dirs;
    Reader reader{c};
    for (size_t dir = 0; dir < dirs.size(); dir++) reader.add_run(dir);
    if (price > 0) c.price = price;
    auto rank = [&](const RecipeResult& r) { return (r.recipe == c.noise_floor) - (r.recipe == c.baseline); };
    std::stable_sort(c.recipes.begin(), c.recipes.end(), [&](auto& a, auto& b) { return rank(a) < rank(b); });
    for (RecipeResult& r : c.recipes) {
        judge(r, c, reader.one_device ? reader.tokens : NAN);
        r.mfu = r.tokens_per_second * reader.utilization;
        for (auto& [layer, v] : reader.gradients[r.recipe])
            if (layer == "all") r.gradient_error = mean(v[0]), r.cosine = mean(v[1]), r.mean_error = mean(v[2]);
            else if (!(mean(v[0]) <= r.worst_gradient_error))
                r.worst_gradient_error = mean(v[0]), r.worst_gradient_layer = layer;
        for (auto& s : r.seeds)
            if (r.recipe == c.noise_floor) c.noise = std::fmax(c.noise, std::fabs(s.difference));
    }
    return c;
}

// --- showing -----------------------------------------------------------------------------------------------------
using Rows = std::vector<std::vector<std::string>>;

// rows[0] are titles; < before one puts its column to the left, > to the right. What does not fit beside the names,
// which come first, stands in a table above. Empty columns are left out, and long names have a line of their own.
static std::string table(const Rows& rows, int width) {
    const size_t columns = rows[0].size();
    std::vector<int> widths(columns), below(columns); // below: how many tables follow the one that a column is in
    for (size_t r = 1; r < rows.size(); r++)
        for (size_t i = 0; i < columns; i++)
            if (!rows[r][i].empty())
                widths[i] = std::max({widths[i], (int)rows[r][i].size(), (int)rows[0][i].size() - 1});
    int names = std::min(widths[0], std::max(12, width / 5 - 4)), used = names, tables = 0;
    for (size_t i = columns; i-- > 1; used += widths[i] ? 2 + widths[i] : 0, below[i] = tables)
        if (used > names && widths[i] && used + 2 + widths[i] > width) used = names, tables++;
    std::string out;
    for (; tables >= 0; tables--, out += "\n")
        for (auto& row : rows) {
            const int title = &row == &rows[0];
            std::string line = format("%-*s", names, row[0].c_str() + title);
            if ((int)line.size() > names) line += "\n" + std::string((size_t)names, ' ');
            for (size_t i = 1; i < columns; i++)
                if (int w = rows[0][i][0] == '<' ? -widths[i] : widths[i]; w && below[i] == tables)
                    line += format("  %*s", w, row[i].c_str() + title);
            out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
        }
    return out;
}
static std::string wrapped(const std::string& text, int width) {
    std::string out, word;
    size_t column = 0;
    for (std::istringstream words(text); words >> word; column += word.size() + 1) {
        bool full = column + word.size() > (size_t)width;
        out += (full ? "\n" : column ? " " : "") + word, column = full ? 0 : column;
    }
    return out + "\n";
}
static std::string cell(const char* fmt, double v) { return std::isnan(v) ? "" : format(fmt, v); }
static std::string share(double v, const std::string& of = "") { // in percent
    const char* fmt = v == 0 ? "%.0f %%" : v < 0.01 ? "<0.01 %%" : v < 9.995 ? "%.2f %%" : "%.1f %%";
    return of.empty() || std::isnan(v) ? cell(fmt, v) : format("%7s %s", cell(fmt, v).c_str(), of.c_str());
}
static std::string share(const Worst& w) {
    return share(w.percent, w.percent > 0 ? w.layer + ":" + w.operand + "@" + std::to_string(w.step) : "");
}
static std::string interval(const Interval& i, const char* mean, const char* half) {
    return cell(mean, i.mean) + cell(half, i.high - i.mean);
}

std::string comparison_text(const Comparison& c, int width) {
    Rows losses{{"<recipe", ">loss", ">d", ">d in %", "<verdict"}}, horizon{{"<recipe"}};
    Rows casts{{"<recipe", "<runs", ">MB", ">tokens/s", ">MFU", ">cost/M tokens", ">gradient", "<worst layer",
                "<worst underflow", "<worst saturation"}};
    std::string inside, outside, partly, out;
    const RecipeResult *steady = nullptr, *noisy = nullptr, *floor = c.find(c.noise_floor);
    int enough = 0;
    for (const RecipeResult& r : c.recipes) {
        double bytes = 0;
        for (auto& m : r.memory) bytes += (double)m.second;
        losses.push_back({r.recipe, cell("%.4f", r.loss), interval(r.nats, "%+.4f", " +-%.4f"),
                          interval(r.relative, "%+.2f", " +-%.2f"), r.verdict});
        casts.push_back({r.recipe, r.emulated ? "emulated" : "native", cell("%.0f", bytes / 1e6),
                         cell("%.0f", r.tokens_per_second) + cell(" x%.2f", r.speedup), cell("%.1f %%", 100 * r.mfu),
                         cell("%.4f", r.cost), share(100 * r.gradient_error),
                         share(100 * r.worst_gradient_error, r.worst_gradient_layer), share(r.underflow),
                         share(r.saturation)});
        horizon.push_back({r.recipe});
        for (auto& k : r.horizon) {
            if (&r == &c.recipes[0]) horizon[0].push_back(format(">%d %% ", k.percent));
            horizon.back().push_back(cell(k.complete ? "%+.2f " : "%+.2f*", k.relative.mean));
            if (k.nats.n && !k.complete) partly = " (*: not of all seeds)";
        }
        if (r.recipe == c.baseline) horizon.pop_back();
        if (r.nats.n < 2 || &r == floor) continue;
        (r.inside_half ? inside : outside) += " " + r.recipe;
        if (!steady || r.detectable < steady->detectable) steady = &r;
        if (!noisy || r.detectable > noisy->detectable) noisy = &r;
        for (int n = r.nats.n; r.verdict == "unresolved" && detectable_effect(n) * r.relative.sd > 0.25 && n < 100;)
            enough = std::max(enough, ++n);
    }
    auto say = [&](const std::string& text) { out += wrapped(text, width); };
    auto nats = [](double v, const RecipeResult* r) {
        return format("%.4f nats (%.2f %%) for %s", v, 100 * v / r->baseline_loss, r->recipe.c_str());
    };
    const int n = (int)c.seeds;
    say(format("Validation loss in nats after %lld steps; d: how far above %s", (long long)c.steps,
               c.baseline.c_str()) +
        format(n < 2 ? " with the same seed" : " with the same seed, mean of %d seeds +- 90 %% interval", n));
    out += table(losses, width);
    if (inside.empty()) inside = " none";
    if (!outside.empty()) outside = "; not:" + outside;
    if (steady) say("Inside +-0.5 %, the bound usually quoted:" + inside + outside), out += "\n";
    say("What the casts do. Gradient error: of dW against FP32, same weights and batch. Worst: of all layers and "
        "steps");
    out += table(casts, width);
    if (horizon.size() > 1) say("d in % by how much of the steps is done" + partly), out += table(horizon, width);
    if (floor && c.noise >= 0) say("Noise floor: one bit of a weight moves the loss by up to " + nats(c.noise, floor));
    if (!c.changes.empty()) say("Changed on the way, so that curves before and after are of different runs: " + c.changes);
    if (n < 2)
        say("One seed: no interval: not a comparison. The gradient error is exact for this batch. hint: --seeds 5");
    if (steady)
        say(format("%d seeds tell a true d of %.2f standard deviations from 0 ", n, detectable_effect(n)) +
            "(80 % power, alpha 0.05): " + nats(steady->detectable, steady) +
            (noisy == steady ? "" : ", " + nats(noisy->detectable, noisy)) + ". Smaller ones they may miss.");
    const char* more = enough < 100 ? "" : " or more, or longer runs";
    if (enough) say(format("Unresolved: to tell 0.25 %% there takes --seeds %d%s", enough, more));
    return out;
}

// --- JSON --------------------------------------------------------------------------------------------------------
template <class T, class... Rest> static Json object(Json all, const char* key, const T& v, const Rest&... rest) {
    if constexpr (std::is_same_v<T, double>) all.set(key, std::isnan(v) ? Json() : Json(v));
    else all.set(key, v);
    if constexpr (sizeof...(rest) > 0) return object(std::move(all), rest...);
    return all;
}
static const Json none(Json::Object);
Interval::operator Json() const { return object(none, "n", n, "mean", mean, "sd", sd, "low", low, "high", high); }
Worst::operator Json() const {
    return object(none, "percent", percent, "layer", layer, "operand", operand, "seed", seed, "step", step);
}
Checkpoint::operator Json() const {
    return object(none, "percent", percent, "step", step, "nats", nats, "relative", relative, "complete", complete);
}
SeedResult::operator Json() const {
    return object(none, "seed", seed, "step", step, "outcome", outcome, "loss", loss, "difference", difference, "ms",
                  ms, "fingerprint", fingerprint, "dir", dir);
}
RecipeResult::operator Json() const {
    Json bytes = none;
    for (auto& [what, n] : memory) bytes.set(what, n);
    return object(none, "recipe", recipe, "why", why, "emulated", emulated, "casts", casts, "seeds", seeds, "done",
                  done, "diverged", diverged, "loss", loss, "baseline_loss", baseline_loss, "nats", nats, "relative",
                  relative, "verdict", verdict, "inside_half", inside_half, "detectable", detectable, "horizon",
                  horizon, "gradient_error", gradient_error, "cosine", cosine, "mean_error", mean_error,
                  "worst_gradient_error", worst_gradient_error, "worst_gradient_layer", worst_gradient_layer,
                  "underflow", underflow, "saturation", saturation, "memory", bytes, "tokens_per_second",
                  tokens_per_second, "speedup", speedup, "mfu", mfu, "cost", cost);
}
Json comparison_json(const Comparison& c) {
    return object(none, "dirs", c.dirs, "changes", c.changes, "baseline", c.baseline, "noise_floor", c.noise_floor, "steps", c.steps, "seeds",
                  c.seeds, "noise", c.noise, "price", c.price, "recipes", c.recipes);
}
