#include "run/resume.h"
#include "run/error.h"
#include "run/files.h"
#include "run/screen.h"
#include "run/version.h"
#include <filesystem>

// What no curve depends on; what this call of the program is told, not the run; and what makes another run of it.
static const std::string harmless = "data val-data price sample-every prompt tokenizer checkpoint-every keep",
                         of_the_call = "resume override drop-scales threads quiet profile",
                         another = "recipe skip model layers heads channels seq-len vocab init seed noise-floor out dump";

static Options parse(const std::vector<std::string>& words) {
    std::vector<const char*> argv = {"train", "train"};
    for (auto& word : words) argv.push_back(word.c_str());
    return parse_options((int)argv.size(), argv.data());
}
// The options that a run was begun with, and its command line.
static Options begun_with(std::vector<std::string>& words, const Json& run) try {
    const Json* list = run.find("command");
    if (!list || list->kind != Json::Array) fail("it does not say with which command it was started");
    for (auto& word : list->items) words.push_back(word.text);
    Options o = parse(words);
    return o.command == "train" && !o.help && !o.version ? o : (fail("its command is none of a training run"), o);
} catch (const Error& e) { fail("run.json: %s", e.what()); }

Resumed resume_options(const Options& now) {
    std::string path = now.resume + "/run.json";
    Json run = parse_json(read_file(path, 1 << 26), path);
    Resumed r;
    if (const Json* changes = run.find("changes")) r.changes = *changes;
    std::vector<std::string> begun;
    Options before = begun_with(begun, run);
    std::vector<std::string> all = begun;
    all.insert(all.end(), now.words.begin(), now.words.end());
    Options& o = r.options = parse(all);
    Json was = settings(before), is = settings(o), words(Json::Array);
    for (auto& name : now.given) {
        const Json *a = was.find(name), *b = is.find(name);
        if (word_in(name, of_the_call) || !a || a->dump() == b->dump()) continue;
        if (word_in(name, another))
            fail_usage("--%s with --resume: it was %s, and with another it would be another run. hint: start that one",
                       name.c_str(), a->dump().c_str());
        bool counts = !word_in(name, harmless) && name != "seeds"; // more seeds change no curve
        if (name == "seeds" && o.seeds < before.seeds)
            fail_usage("--seeds %d with --resume: it was %d. hint: more are fine, fewer are not", o.seeds, before.seeds);
        counts |= o.override && word_in(name, "data val-data"); // else they are compared
        if (counts && !o.override)
            fail_usage("--%s %s with --resume: it was %s, so the result would be of neither. hint: --override goes on "
                       "all the same, and run.json will say so", name.c_str(), b->text.c_str(), a->dump().c_str());
        bool is_path = word_in(name, "data val-data") && b->text != "builtin";
        std::string word = "--" + name, value = is_path ? std::string(std::filesystem::absolute(b->text)) : b->text;
        begun.push_back(b->kind == Json::Bool ? word : word + "=" + value);
        if (counts) words.add(begun.back());
        r.rewrites |= counts || name == "seeds";
    }
    r.changed = !words.items.empty();
    if (r.changed) r.changes.add(Json(Json::Object).set("words", words));
    o.out = o.resume = now.resume, o.words = begun;
    const Json* cwd = run.find("directory");
    r.run = run, r.directory = cwd ? cwd->text : std::filesystem::current_path().string();
    for (auto& [name, p] : {std::pair("data", &o.data), {"val-data", &o.val_data}, {"init", &o.init},
                             {"tokenizer", &o.tokenizer}})
        if (cwd && !now.given.count(name) && !p->empty() && *p != "builtin" && std::filesystem::current_path() != cwd->text)
            *p = std::filesystem::path(cwd->text) / *p; // which stays as it is if it begins with /
    return r;
}

void same_conditions(const Resumed& before, const Json& json) {
    const Options& o = before.options;
    auto text = [](const Json& run, const char* key) { return run.find(key) ? run.find(key)->text : "?"; };
    auto without_threads = [](std::string device) { // CPU, 2 threads, AMX matmul
        size_t a = device.find(", "), b = device.find(", ", a + 2);
        return b < device.size() ? device.substr(0, a) + device.substr(b) : device;
    };
    for (const char* part : {"train", "val"})
        for (const char* key : {"tokens", "fingerprint"}) {
            const Json *a = before.run.find("data"), *b = json.find("data");
            if (!a || !a->find(part) || o.override) continue;
            if (text(*a->find(part), key) != text(*b->find(part), key))
                fail("%s is not what it was when the run was begun: its %s is %s, was %s. hint: --override goes on all the "
                     "same", text(*b->find(part), "name").c_str(), key, text(*b->find(part), key).c_str(),
                     text(*a->find(part), key).c_str());
        }
    if (std::string was = text(before.run, "version"); was != version())
        note("%s was begun by version %s, this is %s: the curves may not be those of one program", o.resume.c_str(),
             was.c_str(), version());
    if (std::string was = text(before.run, "device"), is = text(json, "device"); without_threads(was) != without_threads(is))
        note("%s was begun on %s, this is %s: losses may differ in their last digits from those of an undisturbed run",
             o.resume.c_str(), was.c_str(), is.c_str());
}
