#include "check.h"
#include "errors.h"
#include "run/error.h"
#include "run/options.h"
#include <algorithm>
#include <functional>
#include <sstream>

namespace { // test files share one program

using Words = std::vector<std::string>;

static Options parse(const Words& words) {
    std::vector<const char*> argv = {"./train"};
    for (auto& w : words) argv.push_back(w.c_str());
    return parse_options((int)argv.size(), argv.data());
}
static std::string usage_error(const std::function<void()>& f) { return error_of(f, 2); }
static std::string usage_error(const Words& words) {
    return usage_error([&] { parse(words); });
}

// One line per option: a command that takes it, a value that is not the default, and where it has to arrive.
struct Sample {
    const char *command, *name, *value;
    std::function<bool(const Options&)> arrived;
};
static const std::vector<Sample> samples = {
    {"train", "recipe", "mxfp8,bf16", [](auto& o) { return o.arms.size() == 2 && o.arms[0].text == "mxfp8"; }},
    {"train", "skip", "first2", [](auto& o) { return o.skip == "first2"; }},
    {"train", "model", "char", [](auto& o) { return o.model == "char"; }},
    {"train", "layers", "7", [](auto& o) { return o.layers == 7; }},
    {"train", "heads", "8", [](auto& o) { return o.heads == 8; }},
    {"train", "channels", "260", [](auto& o) { return o.channels == 260; }},
    {"train", "seq-len", "65", [](auto& o) { return o.seq_len == 65; }},
    {"eval", "seq-len", "65", [](auto& o) { return o.seq_len == 65; }},
    {"train", "vocab", "317", [](auto& o) { return o.vocab == 317; }},
    {"train", "init", "a/b", [](auto& o) { return o.init == "a/b"; }},
    {"train", "data", "x*.bin", [](auto& o) { return o.data == "x*.bin"; }},
    {"train", "val-data", "y.txt", [](auto& o) { return o.val_data == "y.txt"; }},
    {"train", "order", "sequential", [](auto& o) { return o.order == "sequential"; }},
    {"train", "batch-size", "3", [](auto& o) { return o.batch_size == 3; }},
    {"eval", "batch-size", "3", [](auto& o) { return o.batch_size == 3; }},
    {"train", "grad-accum", "2", [](auto& o) { return o.grad_accum == 2; }},
    {"train", "steps", "31", [](auto& o) { return o.steps == 31; }},
    {"bench", "steps", "31", [](auto& o) { return o.steps == 31; }},
    {"train", "lr", "0.0123456789012345", [](auto& o) { return o.lr == 0.0123456789012345; }},
    {"train", "warmup", "0", [](auto& o) { return o.warmup == 0; }},
    {"train", "schedule", "constant", [](auto& o) { return o.schedule == "constant"; }},
    {"train", "min-lr", "0.5", [](auto& o) { return o.min_lr == 0.5; }},
    {"train", "weight-decay", "0.25", [](auto& o) { return o.weight_decay == 0.25; }},
    {"train", "grad-clip", "2.5", [](auto& o) { return o.grad_clip == 2.5; }},
    {"train", "seed", "4294967295", [](auto& o) { return o.seed == 4294967295; }},
    {"train", "eval-every", "9", [](auto& o) { return o.eval_every == 9; }},
    {"train", "eval-batches", "4", [](auto& o) { return o.eval_batches == 4; }},
    {"train", "sample-every", "6", [](auto& o) { return o.sample_every == 6; }},
    {"train", "stats-every", "7", [](auto& o) { return o.stats_every == 7; }},
    {"train", "dump", "lm_head:x@3", [](auto& o) { return o.dump == "lm_head:x@3"; }},
    {"recipes", "cc", "103", [](auto& o) { return o.cc == "103"; }},
    {"bench", "op", "casts", [](auto& o) { return o.op == "casts"; }},
    {"train", "prompt", "Once upon", [](auto& o) { return o.prompt == "Once upon"; }},
    {"train", "tokenizer", "t.bin", [](auto& o) { return o.tokenizer == "t.bin"; }},
    {"sample", "tokenizer", "vocab.json", [](auto& o) { return o.tokenizer == "vocab.json"; }},
    {"sample", "tokens", "12", [](auto& o) { return o.tokens == 12; }},
    {"sample", "temperature", "0", [](auto& o) { return o.temperature == 0; }},
    {"sample", "top-k", "40", [](auto& o) { return o.top_k == 40; }},
    {"sample", "top-p", "0.9", [](auto& o) { return o.top_p == 0.9; }},
    {"sample", "kv-cache", "e4m3", [](auto& o) { return o.kv_cache == "e4m3"; }},
    {"eval", "kv-cache", "e5m2", [](auto& o) { return o.kv_cache == "e5m2"; }},
    {"sample", "recompute", nullptr, [](auto& o) { return o.recompute; }},
    {"train", "out", "here", [](auto& o) { return o.out == "here"; }},
    {"cast", "round", "sr", [](auto& o) { return o.round == "sr"; }},
    {"cast", "scale", "4.4800000190734863", [](auto& o) { return o.scale == 4.48f; }},
    {"cast", "scale-rule", "even", [](auto& o) { return o.scale_rule == "even"; }},
    {"train", "device", "cpu", [](auto& o) { return o.device == "cpu"; }},
    {"train", "threads", "2", [](auto& o) { return o.threads == 2; }},
    {"train", "kernels", "portable", [](auto& o) { return o.kernels == "portable"; }},
    {"train", "native", nullptr, [](auto& o) { return o.native; }},
    {"train", "resume", "runs/x", [](auto& o) { return o.resume == "runs/x"; }},
    {"eval", "calibrate", "3", [](auto& o) { return o.calibrate == 3; }},
    {"eval", "against", "ckpt", [](auto& o) { return o.against == "ckpt"; }},
    {"export", "format", "nvfp4", [](auto& o) { return o.arms.size() == 1 && o.arms[0].text == "nvfp4"; }},
    {"train", "checkpoint-every", "8", [](auto& o) { return o.checkpoint_every == 8; }},
    {"train", "keep", "3", [](auto& o) { return o.keep == 3; }},
    {"train", "override", nullptr, [](auto& o) { return o.override; }},
    {"train", "drop-scales", nullptr, [](auto& o) { return o.drop_scales; }},
    {"report", "price", "2.5", [](auto& o) { return o.price == 2.5; }},
    {"train", "seeds", "5", [](auto& o) { return o.seeds == 5; }},
    {"train", "noise-floor", nullptr, [](auto& o) { return o.noise_floor; }},
    {"train", "profile", nullptr, [](auto& o) { return o.profile; }},
    {"eval", "json", nullptr, [](auto& o) { return o.json; }},
    {"train", "quiet", nullptr, [](auto& o) { return o.quiet; }},
    {"train", "help", nullptr, [](auto& o) { return o.help; }},
    {"train", "version", nullptr, [](auto& o) { return o.version; }},
};
static Words command_line(const std::string& command) { // with the arguments it demands
    if (command == "train") return {};
    if (command == "cast") return {command, "e4m3"};
    if (command == "export") return {command, "ckpt", "out"};
    return command == "eval" || command == "sample" || command == "inspect" || command == "report" ? Words{command, "ckpt"} : Words{command};
}

TEST_CASE("every option arrives where it belongs, written --name value or --name=value, and in settings()") {
    for (auto& s : samples) {
        CAPTURE(s.command);
        CAPTURE(s.name);
        const Words base = command_line(s.command);
        const std::string dashed = std::string("--") + s.name;
        CHECK_FALSE(s.arrived(parse(base)));
        Words apart = base, joined = base;
        apart.push_back(dashed);
        if (s.value) apart.push_back(s.value);
        joined.push_back(s.value ? dashed + "=" + s.value : dashed);
        for (auto& words : {apart, joined}) {
            Options o = parse(words);
            CHECK(s.arrived(o));
            if (o.help || o.version) continue;
            CHECK(o.given == std::set<std::string>{s.name});
            Words again = base; // what settings() says has changed, typed again
            Json before = settings(parse(base)), after = settings(o);
            for (size_t k = 0; k < after.keys.size(); k++) {
                if (after.items[k].text == before.items[k].text) continue;
                again.push_back("--" + after.keys[k] +
                                (after.items[k].kind == Json::Bool ? "" : "=" + after.items[k].text));
            }
            CHECK(again.size() > base.size());
            CHECK(s.arrived(parse(again)));
            CHECK(settings(parse(again)).dump() == after.dump());
        }
    }
    // No option is left out of the list above.
    for (auto& command : command_names())
        for (auto& name : option_names(command)) {
            CAPTURE(command);
            CAPTURE(name);
            CHECK(std::any_of(samples.begin(), samples.end(), [&](auto& s) { return name == s.name; }));
        }
}

TEST_CASE("--help of a command lists the options that the parser takes there, and no other") {
    CHECK(command_names() ==
          Words{"train", "eval", "sample", "scan", "export", "inspect", "bench", "cast", "formats", "report", "recipes"});
    for (auto& command : command_names()) {
        CAPTURE(command);
        Words listed, all;
        std::istringstream text(help_text(command));
        for (std::string line; std::getline(text, line);) {
            CHECK(line.size() <= 100);
            if (line.starts_with("  --")) listed.push_back(line.substr(4, line.find(' ', 4) - 4));
        }
        CHECK(listed == option_names(command));
        for (auto& c : command_names())
            for (auto& name : option_names(c)) all.push_back(name);
        for (auto& name : all) {
            bool taken = std::count(listed.begin(), listed.end(), name) == 1;
            Words words = command_line(command);
            words.push_back("--" + name + "=?");
            CAPTURE(name);
            if (name != "help" && name != "version") CHECK(has(usage_error(words), "no option of") == !taken);
        }
    }
}

TEST_CASE("--help shows the defaults that the parser applies") {
    int checked = 0;
    for (auto& command : command_names()) {
        Json all = settings(parse(command_line(command)));
        std::istringstream text(help_text(command));
        std::string option;
        for (std::string line; std::getline(text, line);) {
            if (line.starts_with("  --")) option = line.substr(4, line.find(' ', 4) - 4);
            size_t bracket = line.rfind('[');
            if (bracket == std::string::npos || line.back() != ']' || !all.find(option)) continue;
            std::string shown = line.substr(bracket + 1, line.size() - bracket - 2);
            if (has(shown, " ") || has(shown, "<") || shown == "nothing" || shown == "needed") continue;
            CAPTURE(option);
            CHECK(all.find(option)->text == shown);
            checked++;
        }
    }
    Options o = parse({});
    CHECK(checked >= 35);
    CHECK((o.command == "train" && o.arms.size() == 4 && o.arms[0].text == "bf16" && o.arms[3].text == "mxfp4"));
    CHECK((o.layers == 4 && o.heads == 4 && o.channels == 128 && o.seq_len == 64 && o.batch_size == 12 &&
           o.steps == 500));
    CHECK((o.lr == 4e-3 && o.min_lr == 4e-3 / 10 && o.warmup == 25 && o.weight_decay == 0.1 && o.grad_clip == 1));
    CHECK(parse({"sample", "x"}).tokens == 200);
    CHECK(parse({"bench"}).steps == 20);
    CHECK(parse({"bench", "--model", "gpt2"}).steps == 20);
    CHECK(parse({"eval", "x"}).seq_len == 0);
}

TEST_CASE("an option wins over the preset wherever it stands, and the last of two wins") {
    Words options = {"--model=char", "--layers=2", "--lr=0.5", "--batch-size=7"};
    std::sort(options.begin(), options.end());
    do {
        Options o = parse(options);
        CHECK((o.model == "char" && o.layers == 2 && o.lr == 0.5 && o.batch_size == 7));
        CHECK((o.heads == 6 && o.channels == 384 && o.seq_len == 256 && o.steps == 5000 && o.min_lr == 0.05));
    } while (std::next_permutation(options.begin(), options.end()));
    CHECK(parse({"--layers=2", "--layers", "3"}).layers == 3);
    CHECK(parse({"--model", "char", "--model", "tiny"}).channels == 128);
    struct {
        const char* name;
        int layers, heads, channels;
    } published[] = {
        {"gpt2", 12, 12, 768}, {"gpt2-medium", 24, 16, 1024}, {"gpt2-large", 36, 20, 1280}, {"gpt2-xl", 48, 25, 1600}};
    for (auto& p : published) {
        Options o = parse({"--model", p.name});
        CHECK((o.layers == p.layers && o.heads == p.heads && o.channels == p.channels && o.seq_len == 1024 &&
               o.vocab == 50257));
    }
    CHECK(parse({"--steps=1000"}).warmup == 50);
    CHECK(parse({"--steps=1000", "--warmup=3"}).warmup == 3);
}

TEST_CASE("what is unknown is refused with the nearest thing that is known") {
    CHECK(has(usage_error(Words{"--stpes", "5"}), "unknown option --stpes. hint: the nearest is --steps"));
    CHECK(has(usage_error(Words{"--batchsize=5"}), "--batch-size"));
    CHECK(has(usage_error(Words{"--warm=5"}), "--warmup"));
    CHECK(has(usage_error(Words{"-steps", "5"}), "--steps"));
    CHECK(has(usage_error(Words{"--seds", "5"}), "the nearest is --seed"));
    CHECK(has(usage_error(Words{"evl", "x"}), "unknown command evl. hint: the nearest is eval"));
    CHECK(has(usage_error(Words{"5"}), "unknown command 5"));
    CHECK(has(usage_error(Words{"--model", "gtp2"}), "nearest is gpt2;"));
    CHECK(has(usage_error(Words{"--tokens", "5"}), "--tokens is no option of train, only of: sample"));
    CHECK(has(usage_error(Words{"eval", "x", "--lr=1"}), "only of: train"));
    CHECK(has(usage_error(Words{"eval", "x", "--foo"}), "./train eval --help"));
    for (std::string odd : {"--", "-", "-=", "--=", "-=5", "---steps=5", "--=5", "-x", ""}) {
        CAPTURE(odd);
        CHECK(usage_error(Words{odd}) != "no error");
    }
    CHECK(nearest("ab", {}) == "");
    CHECK(nearest("ac", {"xy", "abc"}) == "abc"); // one letter left out, one too many, one wrong
    CHECK(nearest("abc", {"xbz", "ab"}) == "ab");
    CHECK(nearest("abc", {"ab", "abd"}) == "ab");
    CHECK(nearest("kitten", {"sitting", "mittens", "kit"}) == "mittens");
    CHECK(nearest("eval", {"deal", "eval-batches"}) == "eval-batches"); // the beginning of a longer name
    CHECK(nearest("deal", {"eval-batches", "dead", "deal"}) == "deal");
}

TEST_CASE("values out of range, half read or missing are refused, and the message says what is allowed") {
    CHECK(has(usage_error(Words{"--layers=0"}), "--layers 0: it takes a whole number from 1 to 1000"));
    for (std::string bad :
         {"1001", "-1", "4x", "x", "4.5", " 4", "4 ", "nan", "inf", "1e99", "0x", "4,5", "99999999999999999999"}) {
        CAPTURE(bad);
        CHECK(has(usage_error(Words{"--layers", bad}), "from 1 to 1000"));
    }
    CHECK(parse({"--steps", "1e6"}).steps == 1000000);
    for (std::string bad : {"-1e-9", "nan", "inf", "1e-3x", "1001", ".", "1e"}) {
        CAPTURE(bad);
        CHECK(has(usage_error(Words{"--lr", bad}), "it takes a number from 0 to 1000"));
    }
    CHECK(parse({"--lr", "0x1p-3"}).lr == 0.125);
    CHECK(has(usage_error(Words{"--seed", "4294967296"}), "from 0 to 4294967295"));
    CHECK(has(usage_error(Words{"--seed", "-1"}), "from 0 to 4294967295"));
    CHECK(has(usage_error(Words{"cast", "e4m3", "--scale", "0"}), "a number from"));
    CHECK(has(usage_error(Words{"cast", "e4m3", "--scale", "3.5e38"}), "a number from"));
    CHECK(parse({"cast", "e4m3", "--scale", "3.40282347e+38"}).scale == 3.40282346638528859812e+38f);
    CHECK(parse({"cast", "e4m3", "--scale", "1e-45"}).scale > 0);
    // Just above the midpoint of two floats: by way of a double it would be rounded twice, to 1.
    CHECK(parse({"cast", "e4m3", "--scale", "1.0000000596046447753906250000001"}).scale == 1.00000012f);
    CHECK(has(usage_error(Words{"--schedule", "cos"}), "it takes one of cosine|constant"));
    CHECK(has(usage_error(Words{"--schedule", "cosine|constant"}), "it takes one of"));
    CHECK(has(usage_error(Words{"--steps"}), "--steps needs a value: --steps N"));
    CHECK(has(usage_error(Words{"--out", "--quiet"}), "--out needs a value"));
    CHECK(has(usage_error(Words{"--out="}), "--out needs a value"));
    CHECK(parse({"--prompt="}).prompt == "");
    CHECK(parse({"--prompt=--quiet=a"}).prompt == "--quiet=a");
    CHECK(has(usage_error(Words{"--quiet=1"}), "takes no value"));
    CHECK(has(usage_error(Words{"--heads", "3"}), "--channels 128 is not a multiple of --heads 3"));
    CHECK(parse({"--heads", "3", "--init", "x"}).heads == 3); // the checkpoint decides
}

TEST_CASE("what parses as a number is an argument, never an option, and arguments are counted") {
    Options o = parse({"cast", "e4m3", "-1", "--scale", "2", "-inf", "-0x1p-3", "--json", "-.5e-3", "-nan", "7"});
    CHECK(o.args == Words{"e4m3", "-1", "-inf", "-0x1p-3", "-.5e-3", "-nan", "7"});
    CHECK((o.scale == 2 && o.json));
    CHECK(parse({"cast", "e4m3"}).args.size() == 1);
    CHECK(parse({"recipes", "bf16", "hybrid:margin=1"}).args.size() == 2);
    CHECK(has(usage_error(Words{"cast", "e4m3", "-1x"}), "unknown option"));
    CHECK(has(usage_error(Words{"cast"}), "cast FORMAT"));
    CHECK(has(usage_error(Words{"eval"}), "eval CKPT"));
    CHECK(has(usage_error(Words{"eval", "a", "b"}), "unexpected argument b"));
    CHECK(has(usage_error(Words{"--quiet", "eval"}), "unexpected argument eval"));
    CHECK(parse({"eval", "--help"}).help); // nothing is demanded of the rest
    CHECK(parse({"eval", "--help"}).command == "eval");
    CHECK(parse({"-h", "--nonsense"}).help);
    CHECK(parse({"--version"}).version);
}

TEST_CASE("recipes are read as arms of stages of settings") {
    auto arms = parse_arms("bf16,hybrid:amax_history_len=16:margin=1,nvfp4:rht=0:skip=first2/"
                           "last2,hybrid:dy.format=e4m3+bf16:lr=1e-4@800+mxfp8@1200");
    REQUIRE(arms.size() == 4);
    CHECK(arms[1].text == "hybrid:amax_history_len=16:margin=1");
    REQUIRE(arms[1].stages.size() == 1);
    CHECK(arms[1].stages[0].name == "hybrid");
    CHECK(arms[1].stages[0].keys ==
          std::vector<std::pair<std::string, std::string>>{{"amax_history_len", "16"}, {"margin", "1"}});
    CHECK(arms[2].stages[0].keys[1].second == "first2/last2");
    CHECK(arms[3].text == "hybrid:dy.format=e4m3+bf16:lr=1e-4@800+mxfp8@1200");
    REQUIRE(arms[3].stages.size() == 3);
    CHECK((arms[3].stages[0].from_step == 0 && arms[3].stages[1].from_step == 800 &&
           arms[3].stages[2].from_step == 1200));
    CHECK(arms[3].stages[1].keys[0] == std::pair<std::string, std::string>{"lr", "1e-4"});
    CHECK(parse_arms("a:k=x=y")[0].stages[0].keys[0].second == "x=y");
}

TEST_CASE("a malformed recipe is refused at the character that is wrong") {
    struct {
        const char* text;
        int at;
        const char* why;
    } bad[] = {
        {"", 1, "name"},
        {",", 1, "name"},
        {"bf16,", 6, "name"},
        {"a,,b", 3, "name"},
        {":k=1", 1, "name"},
        {"4x", 1, "name"},
        {"a=1", 1, "name"},
        {"a:", 3, "KEY=VALUE"},
        {"a:k", 3, "KEY=VALUE"},
        {"bf16,hybrid:amax", 13, "KEY=VALUE"},
        {"a:k=", 3, "KEY=VALUE"},
        {"a:=1", 3, "KEY=VALUE"},
        {"a::k=1", 3, "KEY=VALUE"},
        {"a:=", 3, "KEY=VALUE"},
        {"a:k=1e+5", 8, "VALUE holds none"},
        {"a@5", 2, "first stage"},
        {"a+b", 4, "@STEP"},
        {"a+b,c", 4, "@STEP"},
        {"a+b+c@5", 4, "@STEP"},
        {"a+b@", 5, "from 2"},
        {"a+b@1", 5, "from 2"},
        {"a+b@0", 5, "from 2"},
        {"a+b@5x", 5, "from 2"},
        {"a+b@-5", 5, "from 2"},
        {"a+b@05", 5, "from 2"},
        {"a+b@1000000001", 5, "from 2"},
        {"a+b@99999999999999999999", 5, "from 2"},
        {"a+b@800+c@800", 11, "from 801"},
        {"a+b@800+c@5", 11, "from 801"},
        {"a+b@5:k=1", 6, "@STEP"},
        {"a+b@5@6", 6, "@STEP"},
        {"a, b", 3, "spaces"},
        {"a\"", 2, "quotes"},
        {"a\n", 2, "control"},
        {"a:k=\xc3\xa9", 5, "control"},
        {"a,b,a", 5, "twice"},
        {"a:k=1,b,a:k=1", 11, "twice"},
        {"a+b@5,a+b@5", 11, "twice"},
    };
    for (auto& b : bad) {
        CAPTURE(b.text);
        std::string message = usage_error([&] { parse_arms(b.text); });
        CAPTURE(message);
        CHECK(has(message, "character " + std::to_string(b.at) + ":"));
        CHECK(has(message, b.why));
    }
    CHECK(has(usage_error(Words{"--recipe", "bf16,hybrid:amax"}), "character 13"));
}

static const Words names = [] {
    Words all;
    for (int i = 0; i < 12; i++)
        for (const char* part : {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"})
            all.push_back(format("h.%d.%s", i, part));
    all.push_back("lm_head");
    return all;
}();
static std::string skipped(const std::string& list) { // "3a" for h.3.attn.c_attn, then p, f, q; "lm"
    std::string s;
    auto skip = match_layers(list, names);
    for (size_t i = 0; i < names.size(); i++)
        if (skip[i]) s += i == 48 ? "lm" : std::to_string(i / 4) + "apfq"[i % 4] + " ";
    return s;
}

TEST_CASE("a skip list names layers by globs and by blocks, starting from lm_head") {
    CHECK(skipped("") == "lm");
    CHECK(skipped("none") == "");
    CHECK(skipped("none,lm_head") == "lm");
    CHECK(skipped("h.3.mlp.c_fc") == "3f lm");
    CHECK(skipped("h.3.*") == "3a 3p 3f 3q lm");
    CHECK(skipped("h.1.*c_proj") == "1p 1q lm");
    CHECK(skipped("none/h.?.attn.c_attn") == "0a 1a 2a 3a 4a 5a 6a 7a 8a 9a ");
    CHECK(skipped("none,h.1?.mlp.c_fc") == "10f 11f ");
    CHECK(skipped("none,first1,last1") == "0a 0p 0f 0q 11a 11p 11f 11q ");
    CHECK(skipped("first1/none/last1") == "11a 11p 11f 11q ");
    CHECK(skipped("first12") == skipped("last12"));
    CHECK(skipped("first12") == skipped("h.*"));
    CHECK(skipped("*") == skipped("h.*,lm_head"));
    CHECK(skipped("none,*t*t*_at*") == skipped("none,h.*.attn.c_attn"));
}

TEST_CASE("a skip pattern that matches nothing is refused, and the names are listed") {
    for (std::string bad :
         {"h.12.*", "h.3", "lmhead", "first0", "last0", "first", "first-1", "first2x", "first 2", "First2",
          "first99999999999", "c_fc", ",", "h.1.*,,h.2.*", "/", "None", "h.?", "*x", "none2"}) {
        CAPTURE(bad);
        std::string message = usage_error([&] { match_layers(bad, names); });
        CHECK(has(message, "matches no layer"));
        CHECK(has(message, "h.0.attn.c_attn h.0.attn.c_proj h.0.mlp.c_fc h.0.mlp.c_proj lm_head, and so on to h.11"));
    }
    std::string stars; // does not take exponential time
    for (int i = 0; i < 40; i++) stars += "*c";
    CHECK(has(usage_error([&] { match_layers(stars, names); }), "matches no layer"));
}

} // namespace
