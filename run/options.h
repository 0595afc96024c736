// The command line: ./train [COMMAND] [ARGUMENTS] [--name value | --name=value | --flag]...
// - One table in options.cpp parses the options and writes --help. Adding an option is adding a row and a member.
// - A preset (--model) fills in what was not given: an option wins over it wherever it stands on the line. An option
//   given twice takes its last value.
// - parse_options resolves every member, warm-up and minimum learning rate included. What only data, machine or
//   checkpoint can tell stays 0 or empty: vocab of tiny and char, seq_len of eval, threads, val_data, out.
// - With --init the checkpoint decides the sizes; `given` tells which of them the user named all the same.
// - An argument that parses as a number is a value, never an option: ./train cast e4m3 -1 -inf
#pragma once
#include "run/json.h"
#include <cstdint>
#include <set>
#include <string>
#include <utility>
#include <vector>

// A recipe's name with its settings: whether they exist is for the recipe table to say.
struct Stage {
    std::string name;
    std::vector<std::pair<std::string, std::string>> keys; // as given; later ones win
    int64_t from_step = 0; // the first step, counted from 1, that it trains; ascending; 0 for the first stage
};
// One curve of a comparison. hybrid:margin=1+bf16@800 is two stages.
struct Arm {
    std::string text; // as given; without commas, spaces and quotes, for it stands in CSV files
    std::vector<Stage> stages;
};

struct Options {
    std::string command, skip, model, init, data, val_data, order, schedule, prompt, out, round, scale_rule, device,
        kernels, dump, resume, tokenizer, kv_cache, against, cc, op;
    std::vector<std::string> args; // what follows the command: CKPT, or FORMAT VALUE.., or ARM..
    std::vector<std::string> words; // the command line as given, `train` left out
    std::set<std::string> given;   // the options on it, without --
    std::vector<Arm> arms;         // --recipe
    int layers = 0, heads = 0, channels = 0, seq_len = 0, vocab = 0;
    int batch_size = 0, grad_accum = 0, eval_batches = 0, tokens = 0, top_k = 0, threads = 0, seeds = 0, keep = 0;
    int calibrate = 0;
    int64_t checkpoint_every = 0, steps = 0, warmup = 0, eval_every = 0, sample_every = 0, stats_every = 0, seed = 0;
    double lr = 0, min_lr = 0, weight_decay = 0, grad_clip = 0, temperature = 0, top_p = 0, price = 0;
    float scale = 0;
    bool recompute = false, native = false, noise_floor = false, override = false, drop_scales = false,
         profile = false, json = false, quiet = false, help = false, version = false;
};

// Reads a command line; argv[0] is not looked at. Usage errors (exit status 2) name the option, the value and what is
// allowed. With --help or --version among them the other words are not looked at, the command aside.
Options parse_options(int argc, const char* const* argv);

// What ./train COMMAND --help prints; that of `train`, the default command, lists the others too.
std::string help_text(const std::string& command);

// The table's names, and the resolved value of every option that the command takes, as run.json holds them.
std::vector<std::string> command_names(), option_names(const std::string&command);
Json settings(const Options& o);

// ARM,ARM,... with   ARM = STAGE[+STAGE@STEP]...   STAGE = NAME[:KEY=VALUE]...   A VALUE holds none of , : + @
// Usage errors point at the character, counted from 1.
std::vector<Arm> parse_arms(const std::string& text);

// Which of `names` (h.I.attn.c_attn, h.I.attn.c_proj, h.I.mlp.c_fc, h.I.mlp.c_proj, lm_head) a skip list keeps in
// BF16. The list starts as lm_head; its items, separated by , or / add to it: names, globs (* and ?), firstN and lastN
// (blocks), or none, which empties what came before. A pattern that matches nothing is a usage error.
std::vector<bool> match_layers(const std::string& list, const std::vector<std::string>& names);

// The candidate at the smallest edit distance; one that begins with the word counts as distance 1.
std::string nearest(const std::string& word, const std::vector<std::string>& candidates);

// Is the whole text a number? Decimal, hex float, inf, nan.
bool is_number(const std::string& text);
