// The option table, and the few functions that read it. Nothing else knows the name of an option.
#include "run/options.h"
#include "run/error.h"
#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <sstream>
#include <variant>

enum : unsigned { TRAIN = 1, EVAL = 2, SAMPLE = 4, INSPECT = 8, BENCH = 16, CAST = 32, FORMATS = 64, RECIPES = 128,
                SCAN = 256, REPORT = 512, EXPORT = 1024 };
static constexpr unsigned RUNS = TRAIN | EVAL | SAMPLE | SCAN | BENCH | EXPORT, LEARN = TRAIN | SCAN, ANY = ~0u;

struct Command {
    const char* name;
    unsigned bit;
    size_t least, most; // how many arguments
    const char *usage, *help;
};
struct OptionRow {
    const char* name;       // a row without commands is a heading
    const char* value = ""; // what --help calls the value: empty for a flag; a|b|c in lower case are all it may be
    struct {
        std::variant<bool Options::*, int Options::*, int64_t Options::*, float Options::*, double Options::*,
                     std::string Options::*, std::vector<Arm> Options::*>
            member;
        double least = 0, most = 0; // the range of a number
    } store = {};
    unsigned commands = 0;     // those that take it
    const char* normally = ""; // the value when not given; (in brackets) what it depends on
    const char* help = "";
};
static constexpr char by_model[] = "(by --model)";
static constexpr double MANY = 1e6, MOST = 1e9;

// clang-format off
static const Command commands[] = {
    {"train",   TRAIN,   0, 0,        "[options]", "train; given several recipes, train each from the same start"},
    {"eval",    EVAL,    1, 1,        "eval CKPT [options]", "mean loss of a checkpoint on --data, per recipe"},
    {"sample",  SAMPLE,  1, 1,        "sample CKPT [options]", "generate text"},
    {"scan",    SCAN,    0, 1,        "scan [CKPT] [options]", "which layers are sensitive to a recipe; ends with a skip list. "
        "Without CKPT it first trains one in bf16"},
    {"export",  EXPORT,  2, 2,        "export CKPT OUT --format F", "weights as codes and scales, for eval, sample and others"},
    {"inspect", INSPECT, 1, 1,        "inspect CKPT [options]", "tensors, shapes, types"},
    {"bench",   BENCH,   0, 0,        "bench [options]", "tokens/s and ms/step per recipe"},
    {"cast",    CAST,    1, SIZE_MAX, "cast FORMAT [VALUE..]", "how values are stored; without values, of stdin's"},
    {"formats", FORMATS, 0, 0,        "formats [options]", "the number formats that the kernels use"},
    {"report",  REPORT,  1, SIZE_MAX, "report DIR..", "the table of a run and its report.html once more; or of several runs"},
    {"recipes", RECIPES, 0, SIZE_MAX, "recipes [ARM..]", "the recipes that the kernels use"},
};

static const OptionRow rows[] = {
    {"Recipe"},
    {"recipe", "ARM,ARM,...", {&Options::arms}, EVAL | BENCH, "bf16", "as in training; see ./train --help"},
    {"recipe", "ARM,ARM,...", {&Options::arms}, SCAN, "mxfp4", "as in training, one stage each; see ./train --help"},
    {"recipe", "ARM,ARM,...", {&Options::arms}, TRAIN, "bf16,hybrid,mxfp8,mxfp4",
        "number formats. ARM = STAGE[+STAGE@STEP]..., STAGE = NAME[:KEY=VALUE]...; STAGE@STEP takes over at that step; "
        "a VALUE holds none of , : + @ and the items of a list value are joined by /"},
    {"format", "RECIPE", {&Options::arms}, EXPORT, "(needed)",
        "how weights are stored: bf16, or as w in a recipe, nvfp4:w.block=1x16 for example"},
    {"native", "", {&Options::native}, TRAIN | EVAL | BENCH, "", "emulation is an error"},
    {"skip", "LIST", {&Options::skip}, TRAIN | EVAL | BENCH | EXPORT, "(nothing more)",
        "layers kept in BF16, added to lm_head; none empties the list. Globs on h.I.attn.c_attn, h.I.attn.c_proj, "
        "h.I.mlp.c_fc, h.I.mlp.c_proj, lm_head; firstN and lastN are whole blocks"},
    {"Model"},
    {"model", "NAME", {&Options::model}, LEARN | BENCH, "tiny", "preset for the options that say so; given ones win"},
    {"layers", "N", {&Options::layers, 1, 1000}, LEARN | BENCH, by_model, "transformer blocks"},
    {"heads", "N", {&Options::heads, 1, 1000}, LEARN | BENCH, by_model, "attention heads; they divide the channels"},
    {"channels", "N", {&Options::channels, 1, 65536}, LEARN | BENCH, by_model, "width of the residual stream"},
    {"seq-len", "N", {&Options::seq_len, 1, MANY}, LEARN | BENCH, by_model, "tokens in a window"},
    {"seq-len", "N", {&Options::seq_len, 1, MANY}, EVAL | EXPORT, "(the checkpoint's)", "tokens in a window; no more than that"},
    {"vocab", "N", {&Options::vocab, 1, INT_MAX}, LEARN | BENCH, by_model, "distinct tokens; tiny and char take what the data has"},
    {"init", "CKPT", {&Options::init}, TRAIN, "(random weights)",
        "start from a checkpoint directory or .safetensors with Hugging Face GPT-2 names, or llm.c's .bin; it decides the sizes"},
    {"Data"},
    {"data", "PATH|builtin", {&Options::data}, LEARN | EVAL | EXPORT, "builtin",
        "text file, read as bytes; llm.c token shards (.bin, globs allowed); or the built-in corpus"},
    {"val-data", "PATH", {&Options::val_data}, LEARN, "(the last tenth of --data)", "held-out text or shards"},
    {"calibrate", "N", {&Options::calibrate, 1, MANY}, EVAL, "8",
        "batches that set delayed scales first; given, also where CKPT is an export that has scales of its own"},
    {"calibrate", "N", {&Options::calibrate, 0, MANY}, EXPORT, "0",
        "batches of --data's training part whose largest activations become input scales; 0: none"},
    {"against", "CKPT", {&Options::against}, EVAL, "(what an export was made from)",
        "states the difference to this checkpoint's loss in bf16"},
    {"order", "shuffled|sequential", {&Options::order}, LEARN, "shuffled",
        "sequential: batch i, counting microbatches from 0, covers windows i*B to i*B+B-1 and wraps at the end"},
    {"Optimization"},
    {"batch-size", "N", {&Options::batch_size, 1, MANY}, LEARN | BENCH, by_model, "windows in a microbatch"},
    {"batch-size", "N", {&Options::batch_size, 1, MANY}, EVAL, "4", "windows at a time; changes no more than rounding"},
    {"batch-size", "N", {&Options::batch_size, 1, MANY}, EXPORT, "1", "windows in a batch of --calibrate"},
    {"grad-accum", "N", {&Options::grad_accum, 1, MANY}, LEARN | BENCH, "1", "microbatches in a step"},
    {"steps", "N", {&Options::steps, 1, MOST}, LEARN, by_model, "updates to make"},
    {"steps", "N", {&Options::steps, 1, MOST}, BENCH, "20", "steps to time"},
    {"lr", "X", {&Options::lr, 0, 1000}, LEARN, by_model, "learning rate after the warm-up"},
    {"warmup", "N", {&Options::warmup, 0, MOST}, LEARN, "(a twentieth of --steps)", "steps in which lr rises from 0"},
    {"schedule", "cosine|constant", {&Options::schedule}, LEARN, "cosine", "what lr does after the warm-up"},
    {"min-lr", "X", {&Options::min_lr, 0, 1000}, LEARN, "(a tenth of --lr)", "where the cosine ends"},
    {"weight-decay", "X", {&Options::weight_decay, 0, 1000}, LEARN, "0.1", "AdamW's, on tensors of rank 2"},
    {"grad-clip", "X", {&Options::grad_clip, 0, MOST}, LEARN, "1", "largest global gradient norm; 0: no clipping"},
    {"Evaluation and text"},
    {"eval-every", "N", {&Options::eval_every, 0, MOST}, TRAIN, "0",
        "validate every N steps, besides 0, 10, 25, 50, 75, 90 and 100 % of the run, where it is always done"},
    {"eval-batches", "N", {&Options::eval_batches, 1, MANY}, LEARN, "20", "batches per validation, always the same"},
    {"sample-every", "N", {&Options::sample_every, 0, MOST}, TRAIN, "0", "generate text every N steps; 0: at the end"},
    {"stats-every", "N", {&Options::stats_every, 0, MOST}, TRAIN, "25",
        "tensors.csv every N steps, from step 1: what the casts did to every operand; 0: never"},
    {"dump", "LAYER:OPERAND@STEP", {&Options::dump}, TRAIN, "(nothing)",
        "writes an operand (x, w or dy), its codes and scales in that step, h.0.mlp.c_fc:dy@10 for example, as safetensors"},
    {"prompt", "TEXT", {&Options::prompt}, TRAIN | SAMPLE, "(nothing)", "text to continue"},
    {"tokenizer", "FILE", {&Options::tokenizer}, TRAIN | SAMPLE, "(the one beside the checkpoint or the data, if there is one)",
        "gpt2_tokenizer.bin, vocab.json or tokenizer.json: how text becomes tokens where they are not bytes"},
    {"tokens", "N", {&Options::tokens, 1, MOST}, SAMPLE, "200", "how many to generate"},
    {"temperature", "X", {&Options::temperature, 0, 1000}, SAMPLE, "0.8", "divides the logits; 0: the likeliest token"},
    {"top-k", "N", {&Options::top_k, 0, INT_MAX}, SAMPLE, "0", "draw among the N likeliest tokens; 0: among all"},
    {"top-p", "P", {&Options::top_p, 0, 1}, SAMPLE, "1", "of these, among the likeliest that make up a share P; 1: among all"},
    {"kv-cache", "bf16|e4m3|e5m2", {&Options::kv_cache}, SAMPLE, "(that of activations)",
        "format of the keys and values that attention has of earlier tokens"},
    {"kv-cache", "bf16|e4m3|e5m2", {&Options::kv_cache}, EVAL, "(that of activations)",
        "rounds attention's keys and values to this format, as sampling with such a cache does"},
    {"recompute", "", {&Options::recompute}, SAMPLE, "", "no cache: the whole window for every token; slow, the same text"},
    {"out", "DIR", {&Options::out}, LEARN, "(runs/<time>)", "where the run writes its tables and checkpoints"},
    {"out", "DIR", {&Options::out}, REPORT, "(the run's)", "where report.html goes; of several runs here"},
    {"checkpoint-every", "N", {&Options::checkpoint_every, 0, MOST}, TRAIN, "(a tenth of --steps)",
        "steps between checkpoints, from which a run can go on; 0: one at the end, or when it is stopped"},
    {"keep", "N", {&Options::keep, 1, MANY}, TRAIN, "2", "checkpoints of an arm that is in training; the last one stays"},
    {"resume", "DIR", {&Options::resume}, TRAIN, "(a new run)",
        "goes on with the run in DIR, which needs no other option, from its newest checkpoint that is complete"},
    {"override", "", {&Options::override}, TRAIN, "", "with --resume: options that change the result may differ from the run's"},
    {"drop-scales", "", {&Options::drop_scales}, TRAIN, "",
        "with --resume: delayed scales start at 1 and histories empty, as if they were not in the checkpoint"},
    {"price", "X", {&Options::price, 0, MOST}, TRAIN | REPORT, "0", "of an hour on this machine: the report adds the cost of a million tokens"},
    {"Chance"},
    {"seed", "S", {&Options::seed, 0, UINT_MAX}, LEARN | SAMPLE | CAST, "1", "weights, order and draws follow from it"},
    {"seeds", "N", {&Options::seeds, 1, MANY}, TRAIN, "1", "train every arm with seeds S to S+N-1: what a verdict needs"},
    {"noise-floor", "", {&Options::noise_floor}, TRAIN, "",
        "one more arm, bf16:nudge=1: a weight is moved by one ulp at the start, and how far the loss moves is chance"},
    {"Casting"},
    {"round", "rne|sr", {&Options::round}, CAST, "rne", "to nearest, ties to even; or stochastically, by --seed"},
    {"scale", "S", {&Options::scale, 1e-45, 3.4028235e38}, CAST, "1", "store value*S; what is read back is divided by S"},
    {"scale-rule", "rceil|floor|ceil|even", {&Options::scale_rule}, CAST, "rceil", "how an MX block gets its scale"},
    {"Machine"},
    {"device", "auto|cpu|cuda", {&Options::device}, RUNS, "auto", "auto: the GPU, if this build has one that works"},
    {"threads", "N", {&Options::threads, 1, 4096}, RUNS, "(all cores)", "CPU threads; any number gives the same bits"},
    {"kernels", "reference|portable|fast", {&Options::kernels}, RUNS, "fast",
        "reference: the definitions, slow; portable: no special instructions; fast: whatever this machine has"},
    {"cc", "80|86|87|89|90|100|103|120|121", {&Options::cc}, RECIPES, "(no card)", "what such a card multiplies natively"},
    {"op", "attention|casts", {&Options::op}, BENCH, "(whole steps)", "that alone; casts: GB/s of BF16 matrices, of each"},
    {"profile", "", {&Options::profile}, TRAIN | BENCH | SAMPLE, "", "time and bandwidth of every operation"},
    {"json", "", {&Options::json}, EVAL | EXPORT | SCAN | INSPECT | BENCH | CAST | FORMATS | RECIPES, "", "one JSON object per line"},
    {"quiet", "", {&Options::quiet}, RUNS | REPORT, "", "results only: no progress, no notes"},
    {"help", "", {&Options::help}, ANY, "", "this text; after a command, the options of that command"},
    {"version", "", {&Options::version}, ANY, "", "which source this program was built from"},
};

// What --model stands for; vocab 0: 256 for bytes, and for token shards what they need.
static const char* const preset_columns[]{"layers", "heads", "channels", "seq-len", "vocab", "batch-size", "steps", "lr"};
static const struct { const char *name, *values[std::size(preset_columns)]; } presets[] = {
    {"tiny",        { "4",  "4",  "128",   "64",     "0", "12",  "500", "0.004"}},
    {"char",        { "6",  "6",  "384",  "256",     "0", "64", "5000", "0.001"}},
    {"gpt2",        {"12", "12",  "768", "1024", "50257",  "4", "1000", "0.0006"}},
    {"gpt2-medium", {"24", "16", "1024", "1024", "50257",  "4", "1000", "0.0003"}},
    {"gpt2-large",  {"36", "20", "1280", "1024", "50257",  "4", "1000", "0.00025"}},
    {"gpt2-xl",     {"48", "25", "1600", "1024", "50257",  "4", "1000", "0.0002"}},
};
// clang-format on

// --- looking things up -------------------------------------------------------------------------------------------
static const Command* find_command(const std::string& name) {
    auto c = std::find_if(std::begin(commands), std::end(commands), [&](auto& c) { return name == c.name; });
    return c == std::end(commands) ? nullptr : c;
}
static const OptionRow* find_row(const Command& c, const std::string& name) {
    auto r =
        std::find_if(std::begin(rows), std::end(rows), [&](auto& r) { return r.commands & c.bit && name == r.name; });
    return r == std::end(rows) ? nullptr : r;
}
std::vector<std::string> command_names() {
    std::vector<std::string> names;
    for (auto& c : commands) names.push_back(c.name);
    return names;
}
std::vector<std::string> option_names(const std::string& command) {
    std::vector<std::string> names;
    for (auto& r : rows)
        if (r.commands & find_command(command)->bit) names.push_back(r.name);
    return names;
}

static size_t edit_distance(const std::string& a, const std::string& b) {
    std::vector<size_t> d(b.size() + 1); // one row of the table; d[j]: from a[0..i) to b[0..j)
    for (size_t j = 0; j <= b.size(); j++) d[j] = j;
    for (size_t i = 1; i <= a.size(); i++)
        for (size_t j = 1, diagonal = std::exchange(d[0], i); j <= b.size(); j++)
            diagonal = std::exchange(d[j], std::min({diagonal + (a[i - 1] != b[j - 1]), d[j] + 1, d[j - 1] + 1}));
    return d.back();
}
std::string nearest(const std::string& word, const std::vector<std::string>& candidates) {
    auto distance = [&](auto& c) { return c != word && c.starts_with(word) ? 1 : edit_distance(word, c); };
    auto closer = [&](auto& a, auto& b) { return distance(a) < distance(b); };
    return candidates.empty() ? "" : *std::min_element(candidates.begin(), candidates.end(), closer);
}

// --- one value ---------------------------------------------------------------------------------------------------
bool is_number(const std::string& text) {
    char* end;
    strtod(text.c_str(), &end);
    return !text.empty() && !isspace((unsigned char)text[0]) && end == text.c_str() + text.size();
}

static void read(bool& v, const OptionRow&, const std::string&) { v = true; }
static void read(std::vector<Arm>& v, const OptionRow&, const std::string& text) { v = parse_arms(text); }
static void read(std::string& v, const OptionRow& row, const std::string& text) {
    std::string all = row.value;
    bool open = all.find('|') == std::string::npos || std::any_of(all.begin(), all.end(), isupper);
    if (!open && (text.find('|') < text.size() || ("|" + all + "|").find("|" + text + "|") == std::string::npos))
        fail_usage("--%s %s: it takes one of %s", row.name, text.c_str(), row.value);
    v = text;
}
template <class T> static void read(T& v, const OptionRow& row, const std::string& text) {
    const bool whole = std::is_integral_v<T>;
    double x = strtod(text.c_str(), nullptr);
    if (!is_number(text) || !(x >= row.store.least && x <= row.store.most) || (whole && x != floor(x)))
        fail_usage("--%s %s: it takes a %snumber from %.15g to %.15g", row.name, text.c_str(), whole ? "whole " : "",
                   row.store.least, row.store.most);
    v = std::is_same_v<T, float> ? (T)strtof(text.c_str(), nullptr) : (T)x; // not rounded twice
}
static void set(Options& o, const OptionRow& row, const std::string& text) {
    std::visit([&](auto member) { read(o.*member, row, text); }, row.store.member);
}

static Json show(double v) { // a text that reads back as the same number
    Json number(Json::Number);
    number.text = format("%.*g", std::stod(format("%.9g", v)) == v ? 9 : 17, v);
    return number;
}
static Json show(float v) { return Json((double)v); }
static Json show(const std::vector<Arm>& v) {
    std::string text;
    for (auto& arm : v) text += (text.empty() ? "" : ",") + arm.text;
    return text;
}
template <class T> static Json show(const T& v) { return v; }

Json settings(const Options& o) {
    Json all(Json::Object);
    for (auto& row : rows)
        if (row.commands & find_command(o.command)->bit && row.commands != ANY)
            std::visit([&](auto member) { all.set(row.name, show(o.*member)); }, row.store.member);
    return all;
}

// --- the command line --------------------------------------------------------------------------------------------
static bool has_default(const OptionRow& row) { return *row.normally && row.normally[0] != '('; }

[[noreturn]] static void unknown(const char* what, const std::string& word, const std::vector<std::string>& known,
                                 const Command& command) {
    std::string name = command.bit == TRAIN ? "" : std::string(command.name) + " ";
    fail_usage("unknown %s %s. hint: the nearest is %s; `./train %s--help` shows them all", what, word.c_str(),
               nearest(word, known).c_str(), name.c_str());
}
[[noreturn]] static void unknown_option(const std::string& option, const Command& command) {
    std::string takers;
    std::vector<std::string> known = option_names(command.name);
    for (auto& c : commands)
        if (option.starts_with("--") && find_row(c, option.substr(2))) takers += std::string(" ") + c.name;
    if (!takers.empty()) fail_usage("%s is no option of %s, only of:%s", option.c_str(), command.name, takers.c_str());
    for (auto& name : known) name = "--" + name;
    unknown("option", option, known, command);
}

static void apply_preset(Options& o, const Command& command) {
    std::vector<std::string> names;
    for (auto& preset : presets) names.push_back(preset.name);
    size_t p = std::find(names.begin(), names.end(), o.model) - names.begin();
    if (p == names.size()) unknown("model", o.model, names, command);
    for (size_t i = 0; i < std::size(preset_columns); i++) {
        const OptionRow* row = find_row(command, preset_columns[i]);
        const std::string value = presets[p].values[i];
        if (row && row->normally == std::string(by_model) && value != "0") set(o, *row, value);
    }
}

Options parse_options(int argc, const char* const* argv) {
    Options o;
    std::vector<std::string> words(argv + std::min(argc, 1), argv + argc);
    auto is_option = [](const std::string& w) { return w.size() > 1 && w[0] == '-' && !is_number(w); };
    size_t at = !words.empty() && !is_option(words[0]);
    o.command = at ? words[0] : "train";
    o.words.assign(words.begin() + (at && words[0] == "train"), words.end());
    const Command* command = find_command(o.command);
    if (!command) unknown("command", o.command, command_names(), commands[0]);
    for (auto& w : words) o.help |= w == "--help" || w == "-h", o.version |= w == "--version";
    if (o.help || o.version) return o;

    // Three layers, the later over the earlier: the table's defaults, the preset, what was typed.
    for (bool own : {false, true}) // an option that several commands have takes this one's
        for (auto& row : rows)
            if (has_default(row) && own == !!(row.commands & command->bit)) set(o, row, row.normally);
    std::vector<std::pair<const OptionRow*, std::string>> typed;
    for (; at < words.size(); at++) {
        if (!is_option(words[at])) {
            o.args.push_back(words[at]);
            continue;
        }
        size_t equals = words[at].find('=');
        std::string option = words[at].substr(0, equals), name = option.substr(std::min<size_t>(2, equals)), value;
        const OptionRow* row = option.starts_with("--") ? find_row(*command, name) : nullptr;
        if (!row) unknown_option(option, *command);
        bool flag = !*row->value, joined = equals != std::string::npos;
        if (flag && joined) fail_usage("%s: this option takes no value", words[at].c_str());
        if (joined) value = words[at].substr(equals + 1);
        else if (!flag && at + 1 < words.size() && !words[at + 1].starts_with("--")) value = words[++at], joined = true;
        if (!flag && (!joined || (value.empty() && strcmp(row->value, "TEXT"))))
            fail_usage("%s needs a value: %s %s", option.c_str(), option.c_str(), row->value);
        typed.push_back({row, value});
        o.given.insert(name);
        if (name == "model") set(o, *row, value);
    }
    if (find_row(*command, "model")) apply_preset(o, *command);
    for (auto& [row, value] : typed) set(o, *row, value);

    if (o.args.size() > command->most)
        fail_usage("unexpected argument %s. hint: ./train %s", o.args[command->most].c_str(), command->usage);
    if (o.args.size() < command->least) fail_usage("something is missing. hint: ./train %s", command->usage);
    if (!o.given.count("warmup")) o.warmup = o.steps / 20;
    if (!o.given.count("checkpoint-every")) o.checkpoint_every = std::max<int64_t>(1, o.steps / 10);
    if (!o.given.count("min-lr")) o.min_lr = o.lr / 10;
    if (o.init.empty() && o.heads && o.channels % o.heads)
        fail_usage("--channels %d is not a multiple of --heads %d", o.channels, o.heads);
    return o;
}

// --- help --------------------------------------------------------------------------------------------------------
// `text` in lines of at most 100 columns, indented by 34; `start` stands before the first.
static std::string paragraph(const std::string& start, const std::string& text) {
    const std::string margin = "\n" + std::string(33, ' ');
    std::string out = start + (start.size() > 33 ? margin : std::string(33 - start.size(), ' ')), word;
    size_t column = 33;
    for (std::istringstream words(text); words >> word; column += word.size() + 1) {
        if (column + word.size() + 1 > 100) out += margin, column = 33;
        out += " " + word;
    }
    return out + "\n";
}

std::string help_text(const std::string& name) {
    const Command& command = *find_command(name);
    std::string out = "Usage\n";
    for (auto& c : commands)
        if (command.bit == TRAIN || c.bit == command.bit) out += paragraph(std::string("  ./train ") + c.usage, c.help);
    const OptionRow* heading = nullptr;
    for (auto& row : rows) {
        if (!row.commands) heading = &row;
        if (!(row.commands & command.bit)) continue;
        if (heading) out += format("\n%s\n", std::exchange(heading, nullptr)->name);
        std::string normally = row.normally;
        if (normally[0] == '(') normally = normally.substr(1, normally.size() - 2);
        out += paragraph(format("  --%s %s", row.name, row.value),
                         row.help + (*row.normally ? " [" + normally + "]" : ""));
    }
    if (!find_row(command, "model")) return out;
    auto line = [&](std::string name, auto& cells) {
        out += format("\n%-13s", name.c_str());
        for (size_t i = 0; i < std::size(cells); i++)
            out += format("%*s", std::max((int)strlen(preset_columns[i]) + 3, 9),
                          strcmp(cells[i], "0") ? cells[i] : "by data");
    };
    line("Presets", preset_columns);
    for (auto& preset : presets) line(std::string("  ") + preset.name, preset.values);
    return out + "\n";
}

// --- recipes and skip lists --------------------------------------------------------------------------------------
std::vector<Arm> parse_arms(const std::string& text) {
    auto wrong = [&](size_t at, const std::string& what) {
        fail_usage(
            "recipe %s, character %zu: %s. hint: ARM,ARM,... with ARM = NAME[:KEY=VALUE]..[+NAME[:KEY=VALUE]..@STEP]..",
            text.c_str(), at + 1, what.c_str());
    };
    for (size_t i = 0; i < text.size(); i++)
        if (text[i] <= ' ' || text[i] > '~' || text[i] == '"') wrong(i, "no spaces, quotes or control characters");
    std::vector<Arm> arms;
    char before = ','; // the separator before a word says what the word has to be
    for (size_t at = 0, end;; before = text[end], at = end + 1) {
        end = std::min(text.find_first_of(",:+@", at), text.size());
        std::string word = text.substr(at, end - at);
        size_t equals = word.find('=');
        if (before == ',') arms.push_back({});
        Arm& arm = arms.back();
        if (before == ',' || before == '+') {
            if (!isalpha((unsigned char)word[0]) || equals < word.size())
                wrong(at, "a recipe's name is needed here (and a VALUE holds none of , : + @)");
            arm.stages.push_back({word, {}, 0});
        } else if (arm.stages.back().from_step) {
            wrong(at - 1, "only + or , may follow @STEP");
        } else if (before == ':') {
            if (!equals || equals >= word.size() - 1) wrong(at, "KEY=VALUE is needed here");
            arm.stages.back().keys.push_back({word.substr(0, equals), word.substr(equals + 1)});
        } else {
            if (arm.stages.size() == 1) wrong(at - 1, "the first stage starts the run and takes no @STEP");
            long long past = std::max<long long>(1, arm.stages.end()[-2].from_step), step = atoll(word.c_str());
            if (word != std::to_string(step) || step <= past || step > MOST)
                wrong(at, format("a step from %lld to %.15g is needed here", past + 1, MOST));
            arm.stages.back().from_step = step;
        }
        arm.text += (before == ',' ? "" : std::string(1, before)) + word;
        bool stage_ends = end == text.size() || text[end] == ',' || text[end] == '+';
        if (stage_ends && arm.stages.size() > 1 && !arm.stages.back().from_step)
            wrong(end, "@STEP is missing: a later stage says when it takes over");
        for (size_t i = 0; i + 1 < arms.size(); i++)
            if (stage_ends && text[end] != '+' && arms[i].text == arm.text) wrong(at, "this arm is there twice");
        if (end == text.size()) return arms;
    }
}

static bool glob(const char* pattern, const char* name) { // * and ?; at a mismatch only the last * can give way
    const char *star = nullptr, *retry = nullptr;
    while (*name) {
        if (*pattern == '*') star = pattern++, retry = name;
        else if (*pattern == '?' || *pattern == *name) pattern++, name++;
        else if (star) pattern = star + 1, name = ++retry;
        else return false;
    }
    while (*pattern == '*') pattern++;
    return !*pattern;
}

std::vector<bool> match_layers(const std::string& list, const std::vector<std::string>& names) {
    auto block = [](const std::string& name) { return name.starts_with("h.") ? atoi(name.c_str() + 2) : -1; };
    int blocks = 0;
    for (auto& name : names) blocks = std::max(blocks, block(name) + 1);
    std::vector<bool> skip;
    for (auto& name : names) skip.push_back(name == "lm_head");
    for (size_t at = 0, end; at < list.size(); at = end + 1) {
        end = std::min(list.find_first_of(",/", at), list.size());
        std::string item = list.substr(at, end - at), all;
        auto count = [&](const char* word) {
            std::string digits = item.starts_with(word) ? item.substr(strlen(word)) : "";
            return digits.size() < 10 && digits.find_first_not_of("0123456789") > 9 ? atoi(digits.c_str()) : 0;
        };
        int first = count("first"), last = count("last");
        bool any = item == "none";
        if (any) skip.assign(names.size(), false);
        for (size_t i = 0; i < names.size(); i++) {
            int b = block(names[i]);
            bool hit = (b >= 0 && (b < first || b >= blocks - last)) || glob(item.c_str(), names[i].c_str());
            skip[i] = skip[i] || hit, any |= hit;
            if (b <= 0) all += " " + names[i];
        }
        if (!any)
            fail_usage("--skip %s: \"%s\" matches no layer. hint: firstN, lastN (blocks), none, or globs on%s, and so "
                       "on to h.%d",
                       list.c_str(), item.c_str(), all.c_str(), blocks - 1);
    }
    return skip;
}
