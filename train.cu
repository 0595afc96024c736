// ./train: command line -> configuration -> data -> the loop -> evaluation -> log. `./train --help` lists it all.
//
// Reading order: train_arm() below is the loop; model.cuh is what it calls; scaling.cuh is why the program exists.
// Results go to stdout, everything else to stderr. Status: 0 done, 1 failed, 2 usage, 130 or 143 stopped by a signal.
#include "data/corpus.h"
#include "model.cuh"
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
    for (size_t l = 0; l < g.blocks.size(); l++) {
        Block& b = g.blocks[l];
        std::string h = "h." + std::to_string(l);
        look(h + ".ln_1", b.ln1, N * C), look(h + ".attn.c_attn", b.qkv, N * 3 * C), look(h + ".attn", b.att, N * C);
        look(h + ".attn.c_proj", b.mid, N * C), look(h + ".ln_2", b.ln2, N * C), look(h + ".mlp.c_fc", b.fc, N * 4 * C);
        look(h + ".mlp.gelu", b.gelu, N * 4 * C), look(h + ".mlp.c_proj", b.out, N * C);
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
// Mean loss over windows first.., in nats per token.
static double mean_loss(GPT& g, const Batches& batches, uint64_t windows) {
    double sum = 0;
    for (uint64_t w = 0; w < windows; w += g.B) {
        int B = (int)std::min<uint64_t>(g.B, windows - w);
        batches.fill_windows(w, B, g.tokens, g.targets);
        sum += gpt_forward(g, B, g.T) * B;
    }
    return sum / windows;
}

// --- sampling ----------------------------------------------------------------------------------------------------
// Continues `text` by `count` tokens: temperature 0 takes the likeliest, top_k 0 draws among all. g.B >= 1.
static std::vector<int> sample_tokens(GPT& g, std::vector<int> text, int count, double temperature, int top_k,
                                      uint64_t seed) {
    int V = g.config.vocab;
    std::vector<std::pair<double, int>> p(V);
    for (int i = 0; i < count; i++) {
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
static double learning_rate(const Options& o, int64_t step) { // steps count from 1
    if (step <= o.warmup) return o.lr * (double)step / (double)o.warmup;
    if (o.schedule == "constant" || o.steps <= o.warmup) return o.lr;
    double done = (double)(step - o.warmup) / (double)(o.steps - o.warmup);
    return o.min_lr + (o.lr - o.min_lr) * 0.5 * (1 + cos(3.14159265358979323846 * done));
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

static End train_arm(Trainer& run, const Arm& arm, int64_t seed) {
    const Options& o = run.o;
    int B = o.batch_size, T = run.T(), N = B * T;
    GPT g;
    allocate(g, run.config, Use::training, B, T);
    start_weights(g, o, seed);
    Batches batches(*run.data.train, B, T, o.order == "shuffled", seed), val(*run.data.val, B, T, false, seed);
    int64_t tokens_per_step = (int64_t)N * o.grad_accum;
    double val_loss = NAN;
    auto evaluate = [&](int64_t step) {
        val_loss = mean_loss(g, val, run.eval_windows());
        run.log.eval(arm.text, seed, step, step * tokens_per_step, val_loss);
        note("step %lld: validation loss %.4f", (long long)step, val_loss);
    };
    evaluate(0);
    int64_t step = 1;
    End end = End::done;
    for (; step <= o.steps && end == End::done; step++) {
        Stopwatch watch;
        double loss = 0, lr = learning_rate(o, step);
        for (int micro = 0; micro < o.grad_accum; micro++) {
            load_batch(g, batches, (uint64_t)(step - 1) * o.grad_accum + micro);
            loss += gpt_forward(g, B, T, 1 / ((float)N * o.grad_accum)) / o.grad_accum;
            gpt_backward(g, B, T, micro > 0);
        }
        double norm = gradient_norm(g);
        bool finite = std::isfinite(loss) && std::isfinite(norm);
        if (finite) update(g, step, lr, o.weight_decay, o.grad_clip, norm);
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

static Json recipes_of(const Options& o) { // resolved; refuses names and keys that no row has a use for
    Json all(Json::Array);
    std::vector<std::string> names;
    for (const Recipe& r : recipes) names.push_back(r.name);
    for (const Arm& arm : o.arms)
        for (const Stage& stage : arm.stages) {
            if (!find_recipe(stage.name))
                fail_usage("--recipe %s: there is no recipe %s. hint: the nearest is %s; `./train recipes` lists them",
                           arm.text.c_str(), stage.name.c_str(), nearest(stage.name, names).c_str());
            if (!stage.keys.empty())
                fail_usage("--recipe %s: recipe %s has no use for %s", arm.text.c_str(), stage.name.c_str(),
                           stage.keys[0].first.c_str());
            all.add(Json(Json::Object).set("arm", arm.text).set("recipe", stage.name).set("from", stage.from_step));
        }
    return all;
}
static std::vector<std::string> linear_names(int L) {
    std::vector<std::string> names;
    for (int l = 0; l < L; l++)
        for (const char* name : {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"})
            names.push_back(format("h.%d.%s", l, name));
    names.push_back("lm_head");
    return names;
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
    Json stages = recipes_of(o);
    Data data = open_data(o.data, o.val_data);
    Config config = config_of(o, std::max(data.train->vocab, data.val->vocab));
    match_layers(o.skip, linear_names(config.layers));
    if (o.data == "builtin" && config.vocab < 256)
        fail("a vocabulary of %d, and --data builtin has bytes, 256 of them", config.vocab);
    data.train->vocab = data.val->vocab = config.vocab; // a token at or above is an error where it is read
    Trainer run = {o, config, std::move(data), Log(make_run_dir(o.out))};
    if (run.T() > config.seq_len) fail("--seq-len %d: the checkpoint has %d positions", run.T(), config.seq_len);

    GPT shape; // planned, not allocated: for what is told before step 1
    shape.config = config, shape.use = Use::training, shape.B = o.batch_size, shape.T = run.T();
    shape_params(shape), plan(shape);
    int64_t params = 0;
    for_each_param(shape, [&](const std::string&, Param& p) { params += p.size(); });
    Json memory(Json::Object);
    for (auto& [category, bytes] : shape.arena.bytes) memory.set(category, bytes);
    run.log.describe(Json(Json::Object).set("version", version()).set("device", device)
        .set("act", std::is_same_v<act, bf16> ? "bf16" : "fp32").set("options", settings(o)).set("stages", stages)
        .set("config", Json(Json::Object).set("layers", config.layers).set("heads", config.heads)
            .set("channels", config.channels).set("seq_len", config.seq_len).set("vocab", config.vocab))
        .set("parameters", params).set("memory_bytes", memory));
    note("%s. %d layers, %d heads, %d channels, %d positions, vocabulary %d: %.3f M parameters, %.2f GB. Writing to %s",
         device.c_str(), config.layers, config.heads, config.channels, config.seq_len, config.vocab, params / 1e6,
         shape.arena.used / 1e9, run.log.dir.c_str());

    catch_signals();
    bool diverged = false;
    for (const Arm& arm : o.arms) {
        End end = train_arm(run, arm, o.seed);
        if (end == End::stopped) return 128 + stop_signal();
        diverged |= end == End::diverged;
    }
    if (machine.profile) clear_live(), print_profile();
    return diverged && o.arms.size() == 1 ? 1 : 0;
}

// --- the other commands ------------------------------------------------------------------------------------------
static void load(GPT& g, const std::string& path, int T, int B) { // T = 0: the checkpoint's
    Config config = read_config(path);
    if (T > config.seq_len) fail("--seq-len %d: %s has %d positions", T, path.c_str(), config.seq_len);
    allocate(g, config, Use::inference, B, T ? T : config.seq_len);
    load_checkpoint(path, named_tensors(g));
    publish(g);
}
static int eval_command(const Options& o) {
    std::string device = set_machine(o);
    recipes_of(o);
    auto tokens = open_tokens(o.data);
    GPT g;
    load(g, o.args[0], o.seq_len, o.batch_size);
    match_layers(o.skip, linear_names(g.config.layers));
    tokens->vocab = g.config.vocab;
    Batches batches(*tokens, g.B, g.T, false, 0);
    note("%s. %s: %llu windows of %d tokens", device.c_str(), tokens->name.c_str(),
         (unsigned long long)batches.windows(), g.T);
    for (const Arm& arm : o.arms) {
        double loss = mean_loss(g, batches, batches.windows());
        int64_t count = (int64_t)batches.windows() * g.T;
        result(o.json ? Json(Json::Object).set("recipe", arm.text).set("loss", loss).set("tokens", count).dump()
                      : eval_line(arm.text, loss, count));
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
    for (const Recipe& r : recipes)
        result(o.json ? Json(Json::Object).set("recipe", r.name).dump()
                      : format("%s   operands as stored (%s), FP32 accumulation", r.name,
                               std::is_same_v<act, bf16> ? "BF16" : "FP32"));
    return 0;
}
// Whole training steps on random tokens, after a warm-up; the median of --steps.
static int bench_command(const Options& o) {
    std::string device = set_machine(o);
    recipes_of(o);
    Config config = {o.layers, o.heads, o.channels, o.seq_len, o.vocab ? o.vocab : 256};
    for (const Arm& arm : o.arms) {
        GPT g;
        allocate(g, config, Use::training, o.batch_size, o.seq_len);
        initialise(g, 1);
        int N = g.B * g.T;
        for (int n = 0; n < N; n++) {
            g.tokens[n] = (int)(random_bits(1, n) % config.vocab);
            g.targets[n] = (int)(random_bits(2, n) % config.vocab);
        }
        auto data = open_tokens("builtin"); // only for its index of tokens
        data->vocab = config.vocab;
        TokenIndex& x = g.index;
        x.count = Batches(*data, g.B, g.T, false, 0).index(g.tokens, x.distinct, x.first, x.positions);
        std::vector<double> ms;
        for (int64_t step = -2; step <= o.steps; step++) {
            if (step == 1) machine.costs.clear();
            Stopwatch watch;
            for (int micro = 0; micro < o.grad_accum; micro++) {
                gpt_forward(g, g.B, g.T, 1 / ((float)N * o.grad_accum));
                gpt_backward(g, g.B, g.T, micro > 0);
            }
            update(g, step + 3, 1e-4, 0.1, 1, gradient_norm(g));
            synchronize("update");
            if (step >= 1) ms.push_back(watch.ms());
        }
        std::nth_element(ms.begin(), ms.begin() + ms.size() / 2, ms.end());
        double median = ms[ms.size() / 2], rate = (double)N * o.grad_accum / median * 1e3, params = 0;
        for_each_param(g, [&](const std::string&, Param& p) { params += p.size(); });
        double flops = (6 * params + 6.0 * config.layers * config.channels * g.T) * rate; // as llm.c counts
        rusage usage;
        getrusage(RUSAGE_SELF, &usage);
        if (o.json)
            result(Json(Json::Object).set("recipe", arm.text).set("model", o.model).set("device", device)
                .set("ms_per_step", median).set("tokens_per_second", rate).set("tflops", flops / 1e12)
                .set("peak_rss_mb", usage.ru_maxrss / 1024.0).dump());
        else
            result(format("bench recipe=%s model=%s batch=%d seq_len=%d ms/step=%.2f tok/s=%.0f GFLOP/s=%.1f "
                          "peak_MB=%.0f", arm.text.c_str(), o.model.c_str(), g.B, g.T, median, rate, flops / 1e9,
                          usage.ru_maxrss / 1024.0));
        release(g);
    }
    note("%s; median of %lld steps", device.c_str(), (long long)o.steps);
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
