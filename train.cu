// ./train: command line -> configuration -> data -> the loop -> evaluation -> log. `./train --help` lists it all.
//
// Reading order: train_arm() below is the loop; model.cuh is what it calls; scaling.cuh is why the program exists.
// Results go to stdout, everything else to stderr. Status: 0 done, 1 failed, 2 usage, 130 or 143 stopped by a signal.
#include "data/corpus.h"
#include "diagnostics.cuh"
#include "ops/cast_bench.cuh"
#include "run/cast.h"
#include "run/checkpoint.h"
#include "run/data.h"
#include "run/json.h"
#include "run/log.h"
#include "run/options.h"
#include "run/version.h"
#include <sstream>
#include <sys/resource.h>
#ifdef _OPENMP
#include <omp.h>
#endif

// --- machine -----------------------------------------------------------------------------------------------------
static std::string set_machine(const Options& o) { // returns its description
    machine.kernels = o.kernels == "reference" ? Kernels::reference
                      : o.kernels == "portable" ? Kernels::portable
                                                : Kernels::fast;
    machine.profile = o.profile;
    std::string why_not, gpu = gpu_name(why_not);
    if (o.device == "cuda" && gpu.empty()) fail("--device cuda: %s", why_not.c_str());
    machine.gpu = o.device != "cpu" && !gpu.empty();
    int threads = 1;
#ifdef _OPENMP
    if (o.threads) omp_set_num_threads(o.threads);
    threads = omp_get_max_threads();
#endif
    if (machine.gpu) return gpu;
    CpuKernel kernel = machine.kernels == Kernels::fast ? CpuKernel::fast : CpuKernel::portable;
    const char* gemm = machine.kernels == Kernels::reference ? "reference" : cpu_kernel_name(kernel);
    std::string where = format("CPU, %d thread%s, %s matmul", threads, threads == 1 ? "" : "s", gemm);
#ifdef ULP_GPU
    if (o.device == "auto") where += " (" + why_not + ")";
#endif
    return where;
}
static void print_profile() {
    std::vector<std::pair<std::string, Machine::Cost>> costs(machine.costs.begin(), machine.costs.end());
    std::sort(costs.begin(), costs.end(), [](auto& a, auto& b) { return a.second.seconds > b.second.seconds; });
    double total = 0;
    for (auto& [name, c] : costs) total += c.seconds;
    fprintf(stderr, "%-26s %8s %10s %6s %8s %9s\n", "operation", "calls", "ms", "%", "GB/s", "GFLOP/s");
    for (auto& [name, c] : costs)
        fprintf(stderr, "%-26s %8ld %10.2f %6.1f %8.1f %9.1f\n", name.c_str(), c.calls, c.seconds * 1e3,
                100 * c.seconds / total, c.bytes / c.seconds / 1e9, c.flops / c.seconds / 1e9);
}

// --- model and batches -------------------------------------------------------------------------------------------
static std::vector<NamedTensor> named_tensors(GPT& g) {
    std::vector<NamedTensor> all;
    for_each_param(g, [&](const std::string& name, Param& p) {
        std::vector<int64_t> shape = p.rows ? std::vector<int64_t>{p.rows, p.cols} : std::vector<int64_t>{p.cols};
        all.push_back({name, shape, p.w, p.conv1d});
    });
    return all;
}
static uint64_t fingerprint_of(GPT& g) {
    synchronize("fingerprint");
    Fingerprint f;
    for_each_param(g, [&](const std::string&, Param& p) { f.add(p.w, p.size() * sizeof(real)); });
    return f.value();
}
// The first thing in the order of computation that is not finite: what a NaN is to be blamed on.
static std::string first_bad(GPT& g, int N) {
    std::string found;
    auto look = [&](const std::string& name, const auto* x, size_t n) {
        for (size_t i = 0; i < n && found.empty(); i++)
            if (!std::isfinite((real)x[i])) found = format("%s[%zu] = %g", name.c_str(), i, (double)(real)x[i]);
    };
    size_t C = g.config.channels;
    for_each_param(g, [&](const std::string& name, Param& p) { look(name, p.w, p.size()); });
    look("embedding", g.x0, N * C);
    for (size_t l = 0; l < g.blocks.size(); l++) { // what a recipe keeps as codes only is seen one operation later
        TransformerBlock& b = g.blocks[l];
        std::string h = "h." + std::to_string(l);
        look(h + ".attn.c_attn", b.qkv, N * 3 * C), look(h + ".attn", b.att, N * C);
        look(h + ".attn.c_proj", b.mid, N * C), look(h + ".mlp.c_fc", b.fc, N * 4 * C);
        look(h + ".mlp.c_proj", b.out, N * C);
    }
    look("ln_f", g.lnf, N * C), look("loss", g.losses, N);
    look("lm_head gradient", g.logits, (size_t)N * g.config.vocab);
    for_each_param(g, [&](const std::string& name, Param& p) { look("gradient of " + name, p.grad, p.size()); });
    return found.empty() ? "the sum of squares overflows" : found;
}
static void load_batch(GPT& g, const Batches& batches, uint64_t i) {
    batches.fill(i, g.tokens, g.targets);
    g.index.count = batches.index(g.tokens, g.index.distinct, g.index.first, g.index.positions);
}
// Mean loss over the first windows, in nats per token. recording: amaxes, as in training.
static double mean_loss(GPT& g, const Batches& batches, uint64_t windows, bool recording = false) {
    double sum = 0;
    g.pass.training = recording, g.pass.micro = 0;
    for (uint64_t w = 0; w < windows; w += g.B, g.pass.micro++) {
        int B = (int)std::min<uint64_t>(g.B, windows - w);
        batches.fill_windows(w, B, g.tokens, g.targets);
        sum += gpt_forward(g, B, g.T) * B;
    }
    return sum / windows;
}

// --- recipes as given, resolved ----------------------------------------------------------------------------------
static std::vector<std::string> linear_names(int L) {
    GPT g;
    g.blocks.resize(L);
    std::vector<std::string> names;
    for_each_linear(g, [&](const std::string& name, Linear&) { names.push_back(name); });
    return names;
}
static Recipe resolve_stage(const Arm& arm, const Stage& stage) try {
    return resolve(stage.name, stage.keys);
} catch (const KeyError& e) {
    std::string hint = e.known.empty() ? "" : "the nearest is " + nearest(e.word, e.known) + "; ";
    fail_usage("--recipe %s: %s. hint: %s`./train recipes` lists recipes and keys", arm.text.c_str(), e.text.c_str(),
               hint.c_str());
}
static std::vector<RecipeStage> stages_of(const Arm& arm, const Options& o, int L) {
    std::vector<RecipeStage> stages;
    for (const Stage& s : arm.stages) {
        Recipe r = resolve_stage(arm, s);
        if (r.accum.mbits && o.kernels != "reference")
            fail_usage("--recipe %s: accum needs --kernels reference, which sums product by product", arm.text.c_str());
        std::string skip = o.skip + (o.skip.empty() || r.skip.empty() ? "" : "/") + r.skip;
        stages.push_back({s.from_step, r, match_layers(skip, linear_names(L))});
    }
    return stages;
}
static Json json_of(const Recipe& r) { // every key that the row has a use for
    Json all = Json(Json::Object).set("recipe", r.name);
    for (auto [name, c] : casts_of(r))
        for (const CastKey& k : cast_keys)
            if (k.used(*c)) all.set(std::string(name) + "." + k.name, k.get(*c));
    for (const RecipeKey& k : recipe_keys)
        if (k.used(r)) all.set(k.name, k.get(r));
    return all;
}
static std::string cast_text(const Cast& c) {
    std::string text;
    for (const CastKey& k : cast_keys)
        if (std::string v = k.get(c); k.used(c) && v != "0")
            text += (text.empty() ? "" : " ") + (v == "1" ? k.name : v);
    return text;
}
static std::vector<std::string> skipped_names(const RecipeStage& s, const std::vector<std::string>& names) {
    std::vector<std::string> skipped;
    for (size_t i = 0; i < names.size(); i++)
        if (s.skip[i]) skipped.push_back(names[i]);
    return skipped;
}
// Which layers run in what.
static std::string stage_text(const RecipeStage& s, const std::vector<std::string>& names) {
    std::string bf16, from = s.from ? format("from step %lld on ", (long long)s.from) : "";
    std::vector<std::string> skipped = skipped_names(s, names);
    for (auto& name : skipped) bf16 += " " + name;
    if (!any_quantized(s.recipe)) return from + s.recipe.name + ": every linear in BF16";
    return from + format("%s: %zu of %zu linears, x %s, w %s, dy %s", s.recipe.name.c_str(),
                         names.size() - skipped.size(), names.size(), cast_text(s.recipe.x).c_str(),
                         cast_text(s.recipe.w).c_str(), cast_text(s.recipe.dy).c_str()) +
           (skipped.empty() ? "" : ". In BF16:" + bf16);
}
static Json stages_json(const std::vector<RecipeStage>& stages, const std::vector<std::string>& names) {
    Json all(Json::Array);
    for (auto& s : stages)
        all.add(Json(Json::Object).set("from", s.from).set("row", json_of(s.recipe))
                    .set("skipped", skipped_names(s, names)));
    return all;
}

// --- sampling ----------------------------------------------------------------------------------------------------
// Continues `text` by `count` tokens: temperature 0 takes the likeliest, top_k 0 draws among all. g.B >= 1.
static std::vector<int> sample_tokens(GPT& g, std::vector<int> text, int count, double temperature, int top_k,
                                      uint64_t seed) {
    int V = g.config.vocab;
    std::vector<std::pair<double, int>> p(V);
    g.pass.training = false;
    for (int i = 0; i < count; i++) {
        g.pass.micro = i;
        int T = (int)std::min<size_t>(text.size(), g.T);
        std::copy(text.end() - T, text.end(), g.tokens);
        std::fill(g.targets, g.targets + T, -1);
        gpt_forward(g, 1, T);
        const act* logits = g.logits + (size_t)(T - 1) * V;
        for (int v = 0; v < V; v++) p[v] = {(real)logits[v], v};
        int keep = temperature == 0 ? 1 : top_k > 0 ? std::min(top_k, V) : V;
        std::partial_sort(p.begin(), p.begin() + keep, p.end(), [](auto& a, auto& b) {
            return a.first != b.first ? a.first > b.first : a.second < b.second;
        });
        double sum = 0, top = p[0].first;
        for (int k = 0; k < keep; k++) sum += p[k].first = temperature ? exp((p[k].first - top) / temperature) : 1;
        double u = random_uniform(seed, i) * sum;
        int k = 0;
        while (k + 1 < keep && (u -= p[k].first) >= 0) k++;
        text.push_back(p[k].second);
    }
    return text;
}
// Bytes as text, control characters as ? (an untrained model would play with the terminal); larger vocabularies as
// numbers, for want of a tokenizer.
static std::string show_tokens(const std::vector<int>& tokens, int V) {
    std::string s;
    for (int t : tokens)
        if (V > 256) s += std::to_string(t) + " ";
        else s += (t < ' ' && t != '\n' && t != '\t') || t == 127 ? '?' : (char)t;
    return s;
}
static std::vector<int> prompt_tokens(const std::string& prompt, int V) {
    std::vector<int> tokens;
    if (V <= 256)
        for (unsigned char c : prompt.empty() ? "\n" : prompt) {
            if (c >= V) fail("--prompt: byte %d is not in the model's vocabulary of %d", c, V);
            tokens.push_back(c);
        }
    else if (prompt.empty()) tokens.push_back(V - 1);
    else {
        std::istringstream in(prompt);
        for (std::string word; in >> word;) {
            char* end;
            long t = strtol(word.c_str(), &end, 10);
            if (*end || t < 0 || t >= V)
                fail("--prompt: \"%s\" is no token from 0 to %d. hint: without a tokenizer, give numbers", word.c_str(),
                     V - 1);
            tokens.push_back((int)t);
        }
    }
    return tokens;
}

struct Stopwatch {
    using clock = std::chrono::steady_clock;
    clock::time_point start = clock::now();
    double ms() const { return std::chrono::duration<double, std::milli>(clock::now() - start).count(); }
};

// --- training ----------------------------------------------------------------------------------------------------
static double learning_rate(const Options& o, const Recipe& r, int64_t step) { // steps count from 1
    double lr = r.lr ? r.lr : o.lr;
    double least = r.lr && o.lr && !o.given.count("min-lr") ? o.min_lr * r.lr / o.lr : o.min_lr;
    if (step <= o.warmup) return lr * (double)step / (double)o.warmup;
    if (o.schedule == "constant" || o.steps <= o.warmup) return lr;
    double done = (double)(step - o.warmup) / (double)(o.steps - o.warmup);
    return least + (lr - least) * 0.5 * (1 + cos(3.14159265358979323846 * done));
}
static bool evaluates_at(const Options& o, int64_t step) {
    for (int percent : {0, 10, 25, 50, 75, 90, 100})
        if (step == (o.steps * percent + 50) / 100) return true;
    return o.eval_every && step % o.eval_every == 0;
}

struct Trainer { // what the arms of a run share
    const Options& o;
    Config config;
    Data data;
    Log log;
    uint64_t eval_windows() const {
        Batches all(*data.val, o.batch_size, T(), false, 0);
        return std::min<uint64_t>(all.windows(), (uint64_t)o.eval_batches * o.batch_size);
    }
    int T() const { return o.given.count("seq-len") || o.init.empty() ? o.seq_len : config.seq_len; }
};
enum class End { done, diverged, stopped };

static void start_weights(GPT& g, const Options& o, uint64_t seed) {
    if (o.init.empty()) return initialise(g, seed);
    load_checkpoint(o.init, named_tensors(g));
    publish(g);
}
static void tell_sample(GPT& g, const Options& o, int64_t seed) {
    std::vector<int> text = prompt_tokens(o.prompt, g.config.vocab);
    size_t length = g.config.vocab <= 256 ? 400 : 100;
    note("%s", ("sample:\n" + show_tokens(sample_tokens(g, text, (int)length, 0.8, 0, seed), g.config.vocab)).c_str());
}
// Where the model stands between the order-0 entropy of the built-in corpus and its floor.
static void tell_progress(const Options& o, double loss) {
    if (o.data != "builtin" || !o.val_data.empty()) return;
    double top = corpus_unigram(), floor = corpus_floor();
    note("built-in corpus: byte frequencies alone reach %.4f nats per byte, a perfect model %.4f; this one is at %.4f, "
         "%.1f %% of the way", top, floor, loss, 100 * (top - loss) / (top - floor));
}

// --- one arm -----------------------------------------------------------------------------------------------------
static End train_arm(Trainer& run, const Arm& arm, const std::vector<RecipeStage>& stages, const Dump& dump,
                     int64_t seed) {
    const Options& o = run.o;
    int B = o.batch_size, T = run.T(), N = B * T;
    GPT g;
    allocate(g, run.config, Use::training, B, T, stages);
    start_weights(g, o, seed);
    Batches batches(*run.data.train, B, T, o.order == "shuffled", seed), val(*run.data.val, B, T, false, seed);
    int64_t tokens_per_step = (int64_t)N * o.grad_accum;
    double val_loss = NAN;
    auto evaluate = [&](int64_t step) {
        val_loss = mean_loss(g, val, run.eval_windows());
        run.log.eval(arm.text, seed, step, step * tokens_per_step, val_loss);
        note("step %lld: validation loss %.4f", (long long)step, val_loss);
    };
    for (auto& s : stages) note("%s", stage_text(s, linear_names(g.config.layers)).c_str());
    evaluate(0);
    int64_t step = 1;
    End end = End::done;
    for (; step <= o.steps && end == End::done; step++) {
        Stopwatch watch;
        if (g.stage + 1 < (int)stages.size() && stages[g.stage + 1].from == step) set_stage(g, g.stage + 1);
        const Recipe& recipe = stages[g.stage].recipe;
        bool measures = o.stats_every && (step - 1) % o.stats_every == 0;
        TensorRows rows;
        if (measures) watch_stats(g, rows);
        if (dump.step == step)
            watch_dump(g, dump, run.log.dir + "/" + safe_name(arm.text) + format("-s%lld-", (long long)seed) +
                       safe_name(dump.layer + "." + dump.operand) + format("-%06lld.safetensors", (long long)step));
        double loss = 0, lr = learning_rate(o, recipe, step);
        for (int micro = 0; micro < o.grad_accum; micro++) {
            g.pass = {true, (uint64_t)seed, (uint64_t)step, (uint64_t)micro};
            load_batch(g, batches, (uint64_t)(step - 1) * o.grad_accum + micro);
            loss += gpt_forward(g, B, T, (float)(recipe.loss_scale / ((double)N * o.grad_accum))) / o.grad_accum;
            gpt_backward(g, B, T, micro > 0);
            if (micro == 0 && measures) write_stats(g, rows, run.log, arm.text, seed, step);
            if (micro == 0) for_each_operand(g, [](auto&, auto, Quantizer& q) { q.watch = nullptr; });
        }
        double norm = gradient_norm(g) / recipe.loss_scale;
        bool finite = std::isfinite(loss) && std::isfinite(norm);
        if (finite) update(g, step, lr, o.weight_decay, o.grad_clip, norm, recipe.loss_scale);
        synchronize("update");
        run.log.step({arm.text, seed, step, o.steps, step * tokens_per_step, loss, norm, lr, watch.ms()});
        if (!finite) {
            note("recipe %s, seed %lld, step %lld: loss %g, gradient norm %g. First bad tensor: %s. hint: lower --lr",
                 arm.text.c_str(), (long long)seed, (long long)step, loss, norm, first_bad(g, N).c_str());
            end = End::diverged;
        } else if (stop_signal()) end = End::stopped;
        else if (evaluates_at(o, step)) evaluate(step);
        if (end == End::done && o.sample_every && step % o.sample_every == 0 && step < o.steps) tell_sample(g, o, seed);
    }
    step--;
    if (end != End::diverged) {
        std::string dir = checkpoint_dir(run.log.dir, arm.text, seed, step);
        save_checkpoint(dir, g.config, named_tensors(g));
        if (end == End::done) {
            tell_progress(o, val_loss);
            tell_sample(g, o, seed);
            result(done_line(arm.text, seed, step, val_loss, dir, fingerprint_of(g)));
        } else note("stopped after step %lld. The weights are in %s: ./train eval %s", (long long)step, dir.c_str(),
                    dir.c_str());
    }
    release(g);
    return end;
}

static Config config_of(const Options& o, int data_vocab) {
    if (o.init.empty()) return {o.layers, o.heads, o.channels, o.seq_len, o.vocab ? o.vocab : data_vocab};
    Config c = read_config(o.init, o.given.count("heads") ? o.heads : 0);
    struct { const char* name; int given, has; } sizes[] = {{"layers", o.layers, c.layers}, {"heads", o.heads, c.heads},
        {"channels", o.channels, c.channels}, {"vocab", o.vocab, c.vocab}};
    for (auto& s : sizes)
        if (o.given.count(s.name) && s.given != s.has)
            fail("--%s %d: %s has %d. hint: leave the option out", s.name, s.given, o.init.c_str(), s.has);
    return c;
}

static int train_command(const Options& o) {
    std::string device = set_machine(o);
    for (const Arm& arm : o.arms)
        for (const Stage& s : arm.stages) resolve_stage(arm, s);
    Data data = open_data(o.data, o.val_data);
    Config config = config_of(o, std::max(data.train->vocab, data.val->vocab));
    std::vector<std::vector<RecipeStage>> stages;
    for (const Arm& arm : o.arms) stages.push_back(stages_of(arm, o, config.layers));
    Dump dump = dump_of(o, linear_names(config.layers));
    if (o.data == "builtin" && config.vocab < 256)
        fail("a vocabulary of %d, and --data builtin has bytes, 256 of them", config.vocab);
    data.train->vocab = data.val->vocab = config.vocab; // a token at or above is an error where it is read
    Trainer run = {o, config, std::move(data), Log(make_run_dir(o.out))};
    if (run.T() > config.seq_len) fail("--seq-len %d: the checkpoint has %d positions", run.T(), config.seq_len);

    Json arms(Json::Array);
    int64_t params = 0;
    size_t largest = 0;
    for (size_t i = 0; i < o.arms.size(); i++) { // planned, not allocated: for what is told before step 1
        GPT shape;
        shape.config = config, shape.use = Use::training, shape.B = o.batch_size, shape.T = run.T();
        shape.stages = stages[i], shape_params(shape), plan(shape);
        params = 0, largest = std::max(largest, shape.arena.used);
        for_each_param(shape, [&](const std::string&, Param& p) { params += p.size(); });
        Json memory(Json::Object);
        for (auto& [category, bytes] : shape.arena.bytes) memory.set(category, bytes);
        arms.add(Json(Json::Object).set("arm", o.arms[i].text).set("emulated", true).set("memory_bytes", memory)
                     .set("stages", stages_json(stages[i], linear_names(config.layers))));
    }
    run.log.describe(Json(Json::Object).set("version", version()).set("device", device)
        .set("act", std::is_same_v<act, bf16> ? "bf16" : "fp32").set("options", settings(o)).set("arms", arms)
        .set("config", Json(Json::Object).set("layers", config.layers).set("heads", config.heads)
            .set("channels", config.channels).set("seq_len", config.seq_len).set("vocab", config.vocab))
        .set("parameters", params));
    note("%s. %d layers, %d heads, %d channels, %d positions, vocabulary %d: %.3f M parameters, %.2f GB. Writing to %s",
         device.c_str(), config.layers, config.heads, config.channels, config.seq_len, config.vocab, params / 1e6,
         largest / 1e9, run.log.dir.c_str());

    catch_signals();
    bool diverged = false;
    for (size_t i = 0; i < o.arms.size(); i++) {
        End end = train_arm(run, o.arms[i], stages[i], dump, o.seed);
        if (end == End::stopped) return 128 + stop_signal();
        diverged |= end == End::diverged;
    }
    if (machine.profile) clear_live(), print_profile();
    return diverged && o.arms.size() == 1 ? 1 : 0;
}

// --- the other commands ------------------------------------------------------------------------------------------
static void load(GPT& g, const std::string& path, int T, int B, std::vector<RecipeStage> stages = bf16_only) {
    Config config = read_config(path);
    if (T > config.seq_len) fail("--seq-len %d: %s has %d positions", T, path.c_str(), config.seq_len);
    allocate(g, config, Use::inference, B, T ? T : config.seq_len, stages); // T 0: the checkpoint's
    load_checkpoint(path, named_tensors(g));
    publish(g);
}
static int eval_command(const Options& o) {
    std::string device = set_machine(o);
    auto tokens = open_tokens(o.data);
    Config config = read_config(o.args[0]);
    std::vector<RecipeStage> stages = bf16_only; // and of each arm the stage that it ends in
    bool delayed = false;
    for (const Arm& arm : o.arms) {
        stages.push_back(stages_of(arm, o, config.layers).back());
        Recipe& r = stages.back().recipe;
        r.amax_history_len = 8, r.amax_compute_algo = Algo::max; // calibration counts all its batches
        delayed |= any_delayed(r);
    }
    tokens->vocab = config.vocab;
    GPT g;
    load(g, o.args[0], o.seq_len, o.batch_size, stages);
    Batches batches(*tokens, g.B, g.T, false, 0);
    uint64_t windows = batches.windows(), seen = std::min<uint64_t>(8 * (uint64_t)g.B, windows);
    note("%s. %s: %llu windows of %d tokens", device.c_str(), tokens->name.c_str(), (unsigned long long)windows, g.T);
    // Weights carry no scales: for recipes with delayed ones the first batches, in BF16, set them.
    if (delayed) mean_loss(g, batches, seen, true);
    for (size_t i = 0; i < o.arms.size(); i++) {
        set_stage(g, (int)i + 1);
        double loss = mean_loss(g, batches, windows);
        int64_t count = (int64_t)windows * g.T;
        Json json = Json(Json::Object).set("recipe", o.arms[i].text).set("loss", loss).set("tokens", count);
        std::string line = eval_line(o.arms[i].text, loss, count);
        if (any_delayed(stages[i + 1].recipe)) {
            int calibrated = (int)((seen + g.B - 1) / g.B);
            json.set("calibrated", calibrated), line += format(" calibrated=%d", calibrated);
        }
        result(o.json ? json.dump() : line);
    }
    release(g);
    return 0;
}
static int sample_command(const Options& o) {
    set_machine(o);
    GPT g;
    load(g, o.args[0], 0, 1);
    std::vector<int> text = prompt_tokens(o.prompt, g.config.vocab);
    result(show_tokens(sample_tokens(g, text, o.tokens, o.temperature, o.top_k, o.seed), g.config.vocab));
    release(g);
    return 0;
}
static int inspect_command(const Options& o) {
    std::string table = inspect_checkpoint(o.args[0], o.json);
    result(table.substr(0, table.find_last_not_of('\n') + 1));
    return 0;
}
static int recipes_command(const Options& o) {
    std::vector<std::pair<std::string, Recipe>> all; // as asked for, or the table
    for (auto& text : o.args)
        for (const Arm& arm : parse_arms(text))
            for (const Stage& s : arm.stages) all.push_back({arm.text, resolve_stage(arm, s)});
    if (all.empty())
        for (const Recipe& r : recipes) all.push_back({r.name, r});
    if (!o.json) result(format("%-10s %-28s %-28s %-32s %s", "recipe", "x", "w", "dy", "other keys"));
    for (auto& [text, r] : all) {
        if (o.json) {
            result(json_of(r).set("about", r.about).dump());
            continue;
        }
        std::string keys;
        for (const RecipeKey& k : recipe_keys)
            if (std::string v = k.get(r); k.used(r) && v != k.get(Recipe{}) && !v.empty())
                keys += std::string(k.name) + "=" + v + " ";
        if (any_delayed(r)) keys = format("amax_history_len=%d amax_compute_algo=%s margin=%d ", r.amax_history_len,
                                          algos[(int)r.amax_compute_algo], r.margin) + keys;
        result(format("%-10s %-28s %-28s %-32s %s", r.name.c_str(), cast_text(r.x).c_str(), cast_text(r.w).c_str(),
                      cast_text(r.dy).c_str(), keys.c_str()));
        result(format("%-10s %s", "", r.about.c_str()));
    }
    return 0;
}
// Whole training steps on random tokens, after a warm-up; the median of --steps. Arms take turns, step by step, so that
// what else the machine does falls on all of them.
static int bench_command(const Options& o) {
    std::string device = set_machine(o);
    if (o.casts) {
        note("%s; GB/s of BF16 input, medians of rounds", device.c_str());
        for (auto [R, C] : {std::pair(3072, 3072), {512, 768}}) {
            result(format("matrices of %d x %d", R, C));
            bench_casts(R, C, (int)o.steps, [](const char* name, double rate) {
                result(format("  %-32s %6.2f GB/s", name, rate));
            });
        }
        return 0;
    }
    Config config = {o.layers, o.heads, o.channels, o.seq_len, o.vocab ? o.vocab : 256};
    std::vector<GPT> models(o.arms.size());
    std::vector<std::vector<double>> ms(o.arms.size());
    for (size_t i = 0; i < models.size(); i++) {
        GPT& g = models[i];
        allocate(g, config, Use::training, o.batch_size, o.seq_len, stages_of(o.arms[i], o, config.layers));
        initialise(g, 1);
        for (int n = 0; n < g.B * g.T; n++) {
            g.tokens[n] = (int)(random_bits(1, n) % config.vocab);
            g.targets[n] = (int)(random_bits(2, n) % config.vocab);
        }
        auto data = open_tokens("builtin"); // only for its index of tokens
        data->vocab = config.vocab;
        TokenIndex& x = g.index;
        x.count = Batches(*data, g.B, g.T, false, 0).index(g.tokens, x.distinct, x.first, x.positions);
    }
    int N = o.batch_size * o.seq_len;
    for (int64_t step = -2; step <= o.steps; step++) {
        if (step == 1) machine.costs.clear();
        for (size_t i = 0; i < models.size(); i++) {
            GPT& g = models[i];
            set_stage(g, g.stage);
            Stopwatch watch;
            for (int micro = 0; micro < o.grad_accum; micro++) {
                g.pass = {true, 1, (uint64_t)(step + 3), (uint64_t)micro};
                gpt_forward(g, g.B, g.T, 1 / ((float)N * o.grad_accum));
                gpt_backward(g, g.B, g.T, micro > 0);
            }
            update(g, step + 3, 1e-4, 0.1, 1, gradient_norm(g));
            synchronize("update");
            if (step >= 1) ms[i].push_back(watch.ms());
        }
    }
    auto median = [](std::vector<double> v) {
        std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
        return v[v.size() / 2];
    };
    for (size_t i = 0; i < models.size(); i++) {
        GPT& g = models[i];
        std::vector<double> ratios;
        for (size_t k = 0; k < ms[i].size(); k++) ratios.push_back(ms[i][k] / ms[0][k]);
        double step_ms = median(ms[i]), rate = (double)N * o.grad_accum / step_ms * 1e3, params = 0;
        for_each_param(g, [&](const std::string&, Param& p) { params += p.size(); });
        double flops = (6 * params + 6.0 * config.layers * config.channels * g.T) * rate; // as llm.c counts
        rusage usage;
        getrusage(RUSAGE_SELF, &usage);
        const std::string& name = o.arms[i].text;
        if (o.json)
            result(Json(Json::Object).set("recipe", name).set("model", o.model).set("device", device)
                .set("ms_per_step", step_ms).set("tokens_per_second", rate).set("tflops", flops / 1e12)
                .set("of_first", median(ratios)).set("arena_mb", g.arena.used / 1e6)
                .set("peak_rss_mb", usage.ru_maxrss / 1024.0).dump());
        else
            result(format("bench recipe=%s model=%s batch=%d seq_len=%d ms/step=%.2f tok/s=%.0f GFLOP/s=%.1f "
                          "of_first=%.3f arena_MB=%.0f peak_MB=%.0f", name.c_str(), o.model.c_str(), g.B, g.T, step_ms,
                          rate, flops / 1e9, median(ratios), g.arena.used / 1e6, usage.ru_maxrss / 1024.0));
        release(g);
    }
    note("%s; median of %lld steps; of_first: of step times against the first recipe's, which took turns",
         device.c_str(), (long long)o.steps);
    if (machine.profile) print_profile();
    return 0;
}

int main(int argc, char** argv) {
    try {
        Options o = parse_options(argc, argv);
        if (o.quiet) be_quiet();
        if (o.version) return printf("ulp %s\n", version()), 0;
        if (o.help) return fputs(help_text(o.command).c_str(), stdout), 0;
        const std::pair<const char*, int (*)(const Options&)> commands[] = {
            {"train", train_command}, {"eval", eval_command}, {"sample", sample_command}, {"inspect", inspect_command},
            {"recipes", recipes_command}, {"bench", bench_command},
            {"cast", cast_command}, {"formats", formats_command},
        };
        for (auto& [name, command] : commands)
            if (o.command == name) return command(o);
        fail_usage("%s: not in this build", o.command.c_str());
    } catch (const Error& e) {
        clear_live();
        fprintf(stderr, "error: %s\n", e.what());
        return e.status;
    } catch (const std::bad_alloc&) {
        fprintf(stderr, "error: out of memory. hint: a smaller --batch-size or --seq-len\n");
        return 1;
    }
}
