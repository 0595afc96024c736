// ./train: command line -> configuration -> data -> the loop -> evaluation -> log. `./train --help` lists it all.
//
// Reading order: train_arm() below is the loop; model.cuh is what it calls; scaling.cuh is why the program exists.
// Results go to stdout, everything else to stderr. Status: 0 done, 1 failed, 2 usage, 130 or 143 stopped by a signal.
#include "data/corpus.h"
#include "lab/bench.cuh"
#include "lab/diagnostics.cuh"
#include "lab/infer.cuh"
#include "lab/sensitivity.cuh"
#include "lab/cast.h"
#include "report/compare.h"
#include "report/report.h"
#include "run/files.h"
#include "run/resume.h"
#include "run/version.h"
#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <memory>
#include <unistd.h>

// --- training ----------------------------------------------------------------------------------------------------
static double learning_rate(const Options& o, const Recipe& r, int64_t step) { // steps count from 1
    double lr = r.lr ? r.lr : o.lr;
    double least = r.lr && o.lr && !o.given.count("min-lr") ? o.min_lr * r.lr / o.lr : o.min_lr;
    if (step <= o.warmup) return lr * (double)step / (double)o.warmup;
    if (o.schedule == "constant" || o.steps <= o.warmup) return lr;
    double done = (double)(step - o.warmup) / (double)(o.steps - o.warmup);
    return least + (lr - least) * 0.5 * (1 + cos(3.14159265358979323846 * done));
}
static const char noise_arm[] = "bf16:nudge=1";

static bool evaluates_at(const Options& o, int64_t step) {
    if (step == 0) return true;
    for (int percent : CHECKPOINTS)
        if (step == step_at(o.steps, percent)) return true;
    return o.eval_every && step % o.eval_every == 0;
}

struct Trainer { // what the arms of a run share
    const Options& o;
    Config config;
    Data data;
    std::string dir;
    std::vector<Arm> arms; // those of --recipe, then that of --noise-floor
    std::vector<std::vector<RecipeStage>> stages = {};
    Dump dump = {};
    Tokenizer tokenizer = {};
    std::unique_ptr<Log> log = nullptr;
    bool training = false; // an arm has been set up
    uint64_t eval_windows() const {
        Batches all(*data.val, o.batch_size, T(), false, 0);
        return std::min<uint64_t>(all.windows(), (uint64_t)o.eval_batches * o.batch_size);
    }
    int T() const { return o.given.count("seq-len") || o.init.empty() ? o.seq_len : config.seq_len; }
    bool compares() const { return arms.size() * o.seeds > 1; }
};

static void start_weights(GPT& g, const Options& o, const Recipe& r, uint64_t seed) {
    o.init.empty() ? initialise(g, seed) : load_weights(g, o.init);
    disturb(g, r);
}
static void tell_sample(GPT& g, const Trainer& run, int64_t seed) {
    std::vector<int> text = run.tokenizer.encode(run.o.prompt);
    int length = run.tokenizer.vocab <= 256 ? 400 : 100;
    KvCache cache;
    allocate(cache, g.kv, g.config.layers, g.T, g.config.channels);
    text = sample_tokens(g, text, length, {.temperature = 0.8, .seed = (uint64_t)seed}, &cache);
    release(cache);
    note("%s", ("sample:\n" + run.tokenizer.decode(text)).c_str());
}
// Where the model stands between the order-0 entropy of the built-in corpus and its floor.
static void tell_progress(const Options& o, double loss) {
    if (o.data != "builtin" || !o.val_data.empty()) return;
    double top = corpus_unigram(), floor = corpus_floor();
    note("built-in corpus: byte frequencies alone reach %.4f nats per byte, a perfect model %.4f; this one is at %.4f, "
         "%.1f %% of the way", top, floor, loss, 100 * (top - loss) / (top - floor));
}
static void tell_done(const Trainer& run, const ArmEnd& e) {
    if (e.outcome == "done")
        result(done_line(e.recipe, e.seed, e.step, e.loss, checkpoint_dir(run.dir, e.recipe, e.seed, e.step),
                         e.fingerprint));
    else result(format("diverged recipe=%s seed=%lld step=%lld", e.recipe.c_str(), (long long)e.seed, (long long)e.step));
}

// --- check-points ------------------------------------------------------------------------------------------------
static void save(Trainer& run, GPT& g, const std::string& arm, int64_t seed, int64_t step) {
    const Options& o = run.o;
    std::vector<float> values;
    TrainingState state = {moments_of(g), Json(Json::Object)};
    for (NamedTensor& t : scales_of(g, values, false)) state.tensors.push_back(t);
    state.about.set("recipe", arm).set("seed", seed).set("step", step).set("microbatches", step * o.grad_accum)
        .set("stages", stages_json(g.stages, linear_names(g.config.layers))).set("stage", g.stage)
        .set("fingerprint", hex16(fingerprint_of(g))).set("version", version())
        .set("options", settings(o));
    run.log->sync(); // the tables are never behind a checkpoint
    std::string dir = checkpoint_dir(run.dir, arm, seed, step);
    save_checkpoint(dir, g.config, named_tensors(g), &state);
    bool last = step == o.steps && !o.given.count("keep");
    prune_checkpoints(std::filesystem::path(dir).parent_path(), step, last ? 1 : o.keep);
}
static void restore(GPT& g, const Options& o, const std::string& arm, const NewestCheckpoint& from) {
    load_weights(g, from.dir);
    load_state(from.dir, moments_of(g));
    for (int k = 0; k < (int)g.stages.size(); k++)
        if (g.stages[k].from <= from.step) set_stage(g, k);
    std::vector<float> values;
    std::vector<NamedTensor> scales = scales_of(g, values, false);
    if (!o.drop_scales) try {
            load_state(from.dir, scales);
        } catch (const Error& e) {
            fail("%s, and recipe %s cannot go on without its scales. hint: --drop-scales does, to see what happens",
                 e.what(), arm.c_str());
        }
    scales_of(g, values, true);
}

// --- one arm -----------------------------------------------------------------------------------------------------
// Trains arm i with a seed, from the beginning or from a checkpoint; outcome "stopped" if a signal came.
static ArmEnd train_arm(Trainer& run, size_t i, int64_t seed, const NewestCheckpoint& from) {
    const Options& o = run.o;
    const std::string& arm = run.arms[i].text;
    const std::vector<RecipeStage>& stages = run.stages[i];
    int B = o.batch_size, T = run.T(), N = B * T;
    GPT g;
    allocate(g, run.config, Use::training, B, T, stages);
    from.step ? restore(g, o, arm, from) : start_weights(g, o, stages[0].recipe, seed);
    run.training = true;
    Batches batches(*run.data.train, B, T, o.order == "shuffled", seed), val(*run.data.val, B, T, false, seed);
    int64_t tokens_per_step = (int64_t)N * o.grad_accum;
    ArmEnd end = {arm, seed, "done", from.step, NAN, 0, NAN};
    std::vector<double> times;
    Table before = from.step ? read_table(run.dir + "/steps.csv") : Table();
    for (size_t r = 0; r < before.rows.size(); r++)
        if (before.text(r, "recipe") == arm && before.whole(r, "seed") == seed) times.push_back(before.number(r, "ms"));
    if ((int64_t)times.size() != from.step)
        fail("%s/steps.csv: %zu rows of recipe %s, seed %lld, whose checkpoint is of step %lld. hint: was it edited?",
             run.dir.c_str(), times.size(), arm.c_str(), (long long)seed, (long long)from.step);
    auto evaluate = [&](int64_t step) {
        set_jump(g, {}, 0);
        end.loss = mean_loss(g, val, run.eval_windows());
        run.log->eval(arm, seed, step, step * tokens_per_step, end.loss);
        if (!run.compares()) note("step %lld: validation loss %.4f", (long long)step, end.loss);
    };
    if (evaluates_at(o, from.step)) evaluate(from.step);
    auto backward = [&](int64_t step, auto after_first) { // the gradients of a step
        for (int micro = 0; micro < o.grad_accum; micro++) {
            g.pass = {true, (uint64_t)seed, (uint64_t)step, (uint64_t)micro};
            load_batch(g, batches, (uint64_t)(step - 1) * o.grad_accum + micro);
            gpt_loss(g, B, T, (float)(stages[g.stage].recipe.loss_scale / ((double)N * o.grad_accum)));
            gpt_backward(g, B, T);
            if (micro == 0) after_first();
        }
    };
    // What a step found is told while a GPU does the next one, unless something waits for it.
    Later<StepResult> results;
    Graph graph;
    std::pair launched(-1, false); // stage and jump of the last step
    int64_t asked = 0; // the step whose result is on its way
    double lr = 0;     // its
    Stopwatch watch;
    auto tell = [&](int64_t now) { // false: it ends here
        StepResult r = results.get();
        double loss = r.loss / o.grad_accum;
        times.push_back(watch.ms()), watch = {};
        end.step = std::exchange(asked, 0);
        run.log->step({arm, seed, end.step, o.steps, end.step * tokens_per_step, loss, r.norm, lr, times.back()});
        if (!r.bad) return true;
        if (now > end.step) backward(end.step, [] {}); // once more, to look at it: the weights are still the same
        synchronize("looking for what is not finite");
        note("recipe %s, seed %lld, step %lld: loss %g, gradient norm %g. First bad tensor: %s. hint: lower --lr",
             arm.c_str(), (long long)seed, (long long)end.step, loss, r.norm, first_bad(g, N).c_str());
        end.outcome = "diverged", end.loss = NAN;
        return false;
    };
    for (int64_t step = from.step + 1; step <= o.steps && end.outcome == "done"; step++) {
        if (!asked) watch = {};
        if (g.stage + 1 < (int)stages.size() && stages[g.stage + 1].from == step) set_stage(g, g.stage + 1);
        const Recipe& recipe = stages[g.stage].recipe;
        std::pair launches(g.stage, set_jump(g, recipe.jump, step));
        if (recipe.forget == step) forget_scales(g);
        bool measures = o.stats_every && (step - 1) % o.stats_every == 0;
        TensorRows rows;
        if (measures) watch_stats(g, rows);
        if (run.dump.step == step)
            watch_dump(g, run.dump, run.dir + "/" + safe_name(arm) + format("-s%lld-", (long long)seed) +
                       safe_name(run.dump.layer + "." + run.dump.operand) +
                       format("-%06lld.safetensors", (long long)step));
        double now = learning_rate(o, recipe, step);
        bool watched = measures || run.dump.step == step, is_new = std::exchange(launched, launches) != launches;
        graph.run(watched || is_new, [&] {
            backward(step, [&] {
                if (measures) write_stats(g, rows, *run.log, arm, seed, step);
                if (watched) for_each_operand(g, [](auto&, auto, Quantizer& q) { q.watch = nullptr; });
            });
            measure_norm(g, o.grad_clip, recipe.loss_scale);
            update(g, step, now, o.weight_decay);
        });
        results.ask(g.result);
        if (asked && !tell(step)) break;
        asked = step, lr = now;
        bool saves = step == o.steps || (o.checkpoint_every && step % o.checkpoint_every == 0);
        bool samples = o.sample_every && step % o.sample_every == 0 && step < o.steps;
        if (machine.gpu && !stop_signal() && !saves && !samples && !evaluates_at(o, step)) continue;
        if (!tell(step)) break;
        if (stop_signal()) end.outcome = "stopped";
        if (stop_signal() || saves) save(run, g, arm, seed, step);
        if (end.outcome == "done" && evaluates_at(o, step)) evaluate(step);
        if (end.outcome == "done" && samples) tell_sample(g, run, seed);
    }
    end.ms = median(times), end.fingerprint = fingerprint_of(g);
    if (end.outcome == "done" && !run.compares()) tell_progress(o, end.loss), tell_sample(g, run, seed);
    release(g);
    return end;
}

// A full disk, data that shrank: what has been reached is kept, and the message says how to go on.
static ArmEnd train_or_say(Trainer& run, size_t i, int64_t seed, const NewestCheckpoint& from) try {
    return train_arm(run, i, seed, from);
} catch (const Error& e) {
    clear_live();
    std::string dir = std::filesystem::path(checkpoint_dir(run.dir, run.arms[i].text, seed, 0)).parent_path();
    NewestCheckpoint last = newest_checkpoint(dir, run.arms[i].text, seed, run.config);
    if (!last.step || !run.training) throw;
    throw Error(format("%s\n%s is kept; to go on: ./train --resume %s", e.what(), last.dir.c_str(), run.dir.c_str()),
                e.status);
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

// The arm that the others are compared with: bf16 as it is, else the first that starts in a recipe without casts.
static size_t baseline_of(const Trainer& run) {
    for (size_t i = 0; i < run.arms.size(); i++)
        if (run.arms[i].text == recipes[0].name) return i;
    for (size_t i = 0; i < run.arms.size(); i++)
        if (!any_quantized(run.stages[i][0].recipe)) return i;
    return 0;
}
static void describe(Trainer& run, const std::string& device, const Resumed* before) { // run.json, and a note
    const Options& o = run.o;
    const Config& c = run.config;
    Json arms(Json::Array), words(Json::Array);
    for (auto& word : o.words) words.add(word);
    int64_t params = 0;
    size_t largest = 0, state = 0;
    for (size_t i = 0; i < run.arms.size(); i++) { // planned, not allocated: for what is told before step 1
        GPT shape;
        shape.config = c, shape.use = Use::training, shape.B = o.batch_size, shape.T = run.T();
        shape.stages = run.stages[i], shape_params(shape), plan(shape);
        params = 0, largest = std::max(largest, shape.arena.used);
        for_each_param(shape, [&](const std::string&, Param& p) { params += p.size(); });
        state = std::max(state, 12 * (size_t)params + shape.arena.bytes["scales"]);
        Json memory(Json::Object);
        for (auto& [category, bytes] : shape.arena.bytes) memory.set(category, bytes);
        std::string why = emulation(run.stages[i]);
        bool emulated = !why.empty();
        for (auto& s : run.stages[i])
            if (!emulated && any_quantized(s.recipe)) why = "every GEMM of its formats is the card's own";
        if (why.empty()) why = "it casts nothing";
        arms.add(Json(Json::Object).set("arm", run.arms[i].text).set("emulated", emulated).set("why", why)
                     .set("memory_bytes", memory).set("stages", stages_json(run.stages[i], linear_names(c.layers))));
    }
    Json json = Json(Json::Object).set("version", version()).set("command", words).set("device", device)
        .set("act", std::is_same_v<act, bf16> ? "bf16" : "fp32").set("baseline", run.arms[baseline_of(run)].text);
    if (o.noise_floor) json.set("noise_floor", noise_arm);
    if (double peak = peak_flops(device)) json.set("peak_flops", peak);
    json.set("options", settings(o)).set("arms", arms)
        .set("config", Json(Json::Object).set("layers", c.layers).set("heads", c.heads).set("channels", c.channels)
            .set("seq_len", c.seq_len).set("vocab", c.vocab)).set("parameters", params);
    Json data = Json(Json::Object).set("train", identity_of(*run.data.train)).set("val", identity_of(*run.data.val));
    json.set("data", data).set("directory", before ? before->directory : std::filesystem::current_path().string());
    if (before && !before->changes.items.empty()) json.set("changes", before->changes);
    if (before) same_conditions(*before, json);
    parse_json(json.dump(), "run.json"); // texts that nobody could read back fail here
    if (!before || before->rewrites) write_file(run.dir + "/run.json", json.dump(2) + "\n");
    note("%s. %d layers, %d heads, %d channels, %d positions, vocabulary %d: %.3f M parameters, %.2f GB. Writing to %s",
         device.c_str(), c.layers, c.heads, c.channels, c.seq_len, c.vocab, params / 1e6, largest / 1e9,
         run.dir.c_str());
    std::error_code ec; // a checkpoint per curve stays, and an arm in training has --keep of them and one being written
    double takes = (double)state * (double)(run.arms.size() * o.seeds + o.keep);
    double room = (double)std::filesystem::space(run.dir, ec).available;
    if (!ec && room < takes)
        note("the run's checkpoints take up to %.1f MB, and where %s lies %.1f MB are free", takes / 1e6, run.dir.c_str(),
             room / 1e6);
    for (size_t i = 0; i < run.arms.size(); i++)
        for (auto& s : run.stages[i]) {
            note("%s", stage_text(s, linear_names(c.layers)).c_str());
            if (machine.gpu && any_quantized(s.recipe)) note("%s", card_text("", 0, s.recipe, machine.cc, false).c_str());
        }
}
// gradients.csv: every recipe's error at the baseline's final weights, on the first evaluation batch.
static void measure_gradients(Trainer& run, const std::string& checkpoint, int64_t seed) {
    std::vector<Recipe> recipes;
    for (size_t i = 0; i < run.arms.size(); i++) recipes.push_back(run.stages[i].back().recipe);
    std::string text = "recipe,seed,layer,rel_error,cosine,mean_error\n";
    TeacherForced forced(run.config, checkpoint, recipes, *run.data.train, *run.data.val, run.o.batch_size, run.T(),
                         seed);
    forced.outlier = run.stages[baseline_of(run)][0].recipe.outlier; // which its weights have already
    for (size_t i = 0; i < recipes.size() && !stop_signal(); i++) {
        const std::vector<bool>& skip = run.stages[i].back().skip;
        std::vector<GradientError> errors = forced.measure((int)i, skip);
        auto row = [&](const std::string& layer, const GradientError& e) {
            text += format("%s,%lld,%s,%s,%s,%s\n", run.arms[i].text.c_str(), (long long)seed, layer.c_str(),
                           number(e.relative()).c_str(), number(e.cosine()).c_str(), number(e.of_mean()).c_str());
        };
        row("all", total(errors, skip));
        std::vector<std::string> names = linear_names(run.config.layers);
        for (size_t k = 0; k < names.size(); k++)
            if (!skip[k]) row(names[k], errors[k]);
    }
    if (!stop_signal()) write_file(run.dir + "/gradients.csv", text);
}
static void report_on(const std::vector<std::string>& dirs, const std::string& path, double price) {
    Comparison c = compare(dirs, price);
    if (c.recipes.size() * c.seeds > 1) {
        std::string text = comparison_text(c, screen_width());
        result("\n" + text.substr(0, text.find_last_not_of('\n') + 1));
    }
    write_report(c, path);
    note("report: %s", path.c_str());
}

// Of every arm that has not ended: its newest checkpoint, or step 0. Arms that have ended stay as they are, unless the
// run is to be longer now.
static std::map<std::pair<std::string, int64_t>, NewestCheckpoint> where_to_go_on(const Trainer& run,
                                                                                  std::vector<ArmEnd>& ends, bool changed) {
    std::map<std::pair<std::string, int64_t>, NewestCheckpoint> reached;
    std::erase_if(ends, [&](auto& e) { return e.outcome == "done" && e.step < run.o.steps; });
    if (changed && !ends.empty())
        fail("--override: recipe %s, seed %lld has ended, under the options of before; its curve and the others' would be "
             "of different experiments", ends[0].recipe.c_str(), (long long)ends[0].seed);
    for (int64_t seed = run.o.seed; seed < run.o.seed + run.o.seeds; seed++)
        for (const Arm& arm : run.arms) {
            if (std::any_of(ends.begin(), ends.end(), [&](auto& e) { return e.recipe == arm.text && e.seed == seed; })) continue;
            std::string dir = std::filesystem::path(checkpoint_dir(run.dir, arm.text, seed, 0)).parent_path();
            NewestCheckpoint found = newest_checkpoint(dir, arm.text, seed, run.config);
            if (found.step > run.o.steps)
                fail("--steps %lld: recipe %s, seed %lld has made %lld", (long long)run.o.steps, arm.text.c_str(),
                     (long long)seed, (long long)found.step);
            if (!found.passed_over.empty()) note("passed over: %s", found.passed_over.c_str());
            if (found.step)
                note("recipe %s, seed %lld goes on from %s", arm.text.c_str(), (long long)seed, found.dir.c_str());
            else if (std::filesystem::exists(dir))
                note("recipe %s, seed %lld: no checkpoint is complete, so it starts over", arm.text.c_str(), (long long)seed);
            reached[{arm.text, seed}] = found;
        }
    if (ends.empty() && std::all_of(reached.begin(), reached.end(), [](auto& r) { return r.second.step == 0; }))
        note("%s: there is no complete checkpoint yet, so it starts over", run.dir.c_str());
    return reached;
}
// before: of the run that is to go on; nullptr for a new one.
static int train(const Options& o, const Resumed* before = nullptr) {
    catch_signals();
    std::string device = set_machine(o);
    std::vector<Arm> arms = o.arms;
    auto is = [](const std::string& text) { return [text](const Arm& a) { return a.text == text; }; };
    if (o.noise_floor && std::none_of(arms.begin(), arms.end(), is(recipes[0].name)))
        fail_usage("--noise-floor: it disturbs the arm bf16, and --recipe has none");
    if (o.noise_floor && std::none_of(arms.begin(), arms.end(), is(noise_arm))) arms.push_back(parse_arms(noise_arm)[0]);
    for (const Arm& arm : arms)
        for (const Stage& s : arm.stages) resolve_stage(arm, s);
    Data data = open_data(o.data, o.val_data);
    int spoken = std::max(data.train->vocab, data.val->vocab);
    Config config = config_of(o, spoken);
    std::vector<std::vector<RecipeStage>> stages;
    for (const Arm& arm : arms) stages.push_back(stages_of(arm, o, config.layers));
    Dump dump = dump_of(o, linear_names(config.layers));
    if (o.data == "builtin" && config.vocab < 256)
        fail("a vocabulary of %d, and --data builtin has bytes, 256 of them", config.vocab);
    data.train->vocab = data.val->vocab = config.vocab; // a token at or above is an error where it is read
    if (!o.init.empty() && o.given.count("seq-len") && o.seq_len > config.seq_len)
        fail("--seq-len %d: the checkpoint has %d positions", o.seq_len, config.seq_len);
    if (!o.init.empty() || !o.tokenizer.empty() || spoken > config.vocab) spoken = config.vocab; // else the rest is padding
    Tokenizer tokenizer = open_tokenizer(o.tokenizer, {o.init, o.data}, spoken);
    tokenizer.encode(o.prompt); // what is wrong with it is said now
    std::string dir = before ? o.resume : make_run_dir(o.out);
    std::unique_ptr<RunLock> lock(before ? nullptr : new RunLock(dir));
    if (!before && std::filesystem::exists(dir + "/run.json")) fail("--out %s: a run is there already", dir.c_str());
    Trainer run = {o, config, std::move(data), dir, arms, stages, dump, tokenizer};
    std::vector<ArmEnd> ends; // of arms that have ended before
    std::map<std::pair<std::string, int64_t>, NewestCheckpoint> reached; // by the others
    if (before) ends = read_ends(run.dir + "/arms.csv"), reached = where_to_go_on(run, ends, before->changed);
    describe(run, device, before);
    auto keep = [&](const std::string& recipe, int64_t seed, int64_t step) {
        auto at = reached.find({recipe, seed});
        return at == reached.end() || step <= at->second.step;
    };
    run.log = std::make_unique<Log>(run.dir, before ? Keep(keep) : nullptr);

    std::vector<std::string> names;
    for (auto& arm : arms) names.push_back(arm.text);
    show_rows(names, o.seeds, o.steps);
    std::string weights; // the baseline's, of the first seed that came to an end
    int64_t weights_seed = 0;
    bool diverged = false;
    for (int64_t seed = o.seed; seed < o.seed + o.seeds; seed++)
        for (size_t i = 0; i < arms.size(); i++) {
            auto ended = std::find_if(ends.begin(), ends.end(), [&](auto& e) { return e.recipe == names[i] && e.seed == seed; });
            ArmEnd end = ended < ends.end() ? *ended : train_or_say(run, i, seed, reached[{names[i], seed}]);
            if (end.outcome == "stopped") {
                clear_live();
                note("stopped after step %lld of recipe %s, seed %lld, which is in %s. To go on: ./train --resume %s",
                     (long long)end.step, end.recipe.c_str(), (long long)seed,
                     checkpoint_dir(run.dir, end.recipe, seed, end.step).c_str(), run.dir.c_str());
                return 128 + stop_signal();
            }
            if (ended < ends.end()) row_ended(end.recipe, seed, end.outcome, end.loss, end.ms);
            else run.log->end(end);
            tell_done(run, end);
            if (i == baseline_of(run) && weights.empty() && end.outcome == "done")
                weights = checkpoint_dir(run.dir, end.recipe, seed, end.step), weights_seed = seed;
            diverged |= end.outcome == "diverged";
        }
    clear_live(true);
    if (run.compares() && !weights.empty()) measure_gradients(run, weights, weights_seed);
    if (stop_signal()) {
        note("stopped after the last arm, with gradients still to measure: ./train --resume %s", run.dir.c_str());
        return 128 + stop_signal();
    }
    report_on({run.dir}, run.dir + "/report.html", o.price);
    if (machine.profile) clear_live(), print_profile();
    return diverged && !run.compares() ? 1 : 0;
}
static int train_command(const Options& o) {
    if (o.resume.empty() && (o.override || o.drop_scales))
        fail_usage("--%s: it belongs to --resume DIR", o.override ? "override" : "drop-scales");
    if (o.resume.empty()) return train(o);
    if (!std::filesystem::exists(o.resume + "/run.json"))
        fail("--resume %s: no run is there (it has no run.json)", o.resume.c_str());
    RunLock lock(o.resume);
    Resumed run = resume_options(o);
    return train(run.options, &run);
}

// --- the other commands ------------------------------------------------------------------------------------------
// On CKPT, or on what a training run in bf16 arrives at; then recipe by recipe.
static int scan_command(const Options& given) {
    Options o = given;
    for (const Arm& arm : o.arms) {
        Recipe r = resolve_stage(arm, arm.stages[0]);
        if (arm.stages.size() > 1) fail_usage("scan --recipe %s: one stage at a time", arm.text.c_str());
        if (!any_quantized(r)) fail_usage("scan --recipe %s: it quantizes nothing", arm.text.c_str());
        if (!r.skip.empty()) fail_usage("scan --recipe %s: what to skip is for the scan to say", arm.text.c_str());
    }
    if (o.args.empty()) {
        Options bf16 = o;
        bf16.command = "train", bf16.arms = parse_arms(recipes[0].name);
        bf16.out = make_run_dir(o.out);
        if (int status = train(bf16)) return status;
        o.args = {checkpoint_dir(bf16.out, recipes[0].name, o.seed, o.steps)};
    }
    std::string device = set_machine(o);
    Data data = open_data(o.data, o.val_data);
    o.init = o.args[0];
    Config config = config_of(o, 0);
    data.train->vocab = data.val->vocab = config.vocab;
    int T = o.given.count("seq-len") ? o.seq_len : config.seq_len;
    for (const Arm& arm : o.arms) {
        Recipe r = stages_of(arm, o, config.layers)[0].recipe;
        std::vector<Recipe> rows = {r};
        for (auto gemm : {&Recipe::fprop, &Recipe::dgrad, &Recipe::wgrad}) {
            Recipe one = r;
            one.fprop = one.dgrad = one.wgrad = false, one.*gemm = r.*gemm;
            rows.push_back(one);
        }
        TeacherForced forced(config, o.args[0], rows, *data.train, *data.val, o.batch_size, T, o.seed);
        forced.draws = 4;
        note("%s. %s: %d windows of %d tokens", device.c_str(), o.args[0].c_str(), forced.B, T);
        scan(forced, arm.text, o.json);
    }
    return stop_signal() ? 128 + stop_signal() : 0;
}
static int report_command(const Options& o) {
    std::string dir = o.args.size() == 1 ? o.args[0] : ".";
    if (!o.out.empty()) std::filesystem::create_directories(o.out);
    report_on(o.args, (o.out.empty() ? dir : o.out) + "/report.html", o.price);
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
    if (!o.cc.empty()) {
        size_t width = 0;
        for (auto& [text, r] : all) width = std::max(width, text.size());
        for (auto& [text, r] : all) result(card_text(text, (int)width, r, atoi(o.cc.c_str()), o.json));
        return 0;
    }
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
static int bench_command(const Options& o) {
    std::string device = set_machine(o);
    int status = bench(o, device);
    if (machine.profile) print_profile();
    return status;
}

static int out_of_memory() {
    fprintf(stderr, "error: out of memory. hint: a smaller --batch-size or --seq-len, or fewer --threads\n");
    return 1;
}
int main(int argc, char** argv) {
    while (open("/dev/null", O_RDWR) <= STDERR_FILENO) {} // whoever closed one of the three must not get a table as it
    std::set_terminate([] { _exit(out_of_memory()); }); // what a thread of OpenMP's throws reaches no catch
    signal(SIGXFSZ, SIG_IGN); // a file that may not grow is an error like a full disk
    try {
        Options o = parse_options(argc, argv);
        if (o.quiet) be_quiet();
        if (o.version) return printf("ulp %s\n", version()), 0;
        if (o.help) return fputs(help_text(o.command).c_str(), stdout), 0;
        const std::pair<const char*, int (*)(const Options&)> commands[] = {
            {"train", train_command}, {"eval", eval_command}, {"sample", sample_command}, {"inspect", inspect_command},
            {"export", export_command},
            {"recipes", recipes_command}, {"bench", bench_command}, {"scan", scan_command}, {"report", report_command},
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
        return clear_live(), out_of_memory();
    } catch (const std::exception& e) { // of the standard library: a path that no file can have, say
        clear_live();
        fprintf(stderr, "error: %s\n", e.what());
        return 1;
    }
}
