#include "run/report.h"
#include "run/compare.h"
#include "run/error.h"
#include "run/files.h"
#include <algorithm>
#include <filesystem>
#include <map>

static const std::string_view page =
#include "build/report_page.inc" // run/report.html as a raw string
    ;

static Json cell(const std::string& text) { // a number as it is written
    if (text.empty()) return Json();
    try {
        Json v = parse_json(text, "");
        if (v.kind == Json::Number) return v;
    } catch (const Error&) {} // nan, inf
    return text;
}

using Texts = std::vector<std::string>;
struct Series { // the rows of a table that agree in some columns, the key
    Texts key;
    std::vector<Texts> rows;
};
// NAME.csv of all directories that have one, cut into series in the order in which they begin.
static std::vector<Series> read_series(const Texts& dirs, const std::string& name, const Texts& key,
                                       const Texts& columns) {
    std::vector<Series> all;
    std::map<Texts, size_t> index;
    for (const std::string& dir : dirs) {
        std::string path = dir + "/" + name + ".csv";
        if (!std::filesystem::exists(path)) continue;
        Table t = read_table(path);
        auto pick = [&](const std::vector<size_t>& from, size_t row) {
            Texts cells;
            for (size_t c : from) cells.push_back(t.rows[row][c]);
            return cells;
        };
        std::vector<size_t> keys, rest;
        for (auto& c : key) keys.push_back(t.column(c));
        for (auto& c : columns) rest.push_back(t.column(c));
        for (size_t r = 0; r < t.rows.size(); r++) {
            auto [at, fresh] = index.try_emplace(pick(keys, r), all.size());
            if (fresh) all.push_back({at->first, {}});
            all[at->second].rows.push_back(pick(rest, r));
        }
    }
    return all;
}
// {"stride", "series": [{key.., column: [..], ..}, ..]}; a series has at most `most` rows and the last one.
static Json thinned(const std::vector<Series>& all, const Texts& key, const Texts& columns, size_t most) {
    size_t longest = 1, stride;
    for (auto& s : all) longest = std::max(longest, s.rows.size());
    stride = (longest + most - 1) / most;
    Json list(Json::Array);
    for (auto& s : all) {
        Json one(Json::Object);
        for (size_t k = 0; k < key.size(); k++) one.set(key[k], key[k] == "seed" ? cell(s.key[k]) : Json(s.key[k]));
        for (size_t c = 0; c < columns.size(); c++) {
            Json values(Json::Array);
            for (size_t r = 0; r < s.rows.size(); r++)
                if (r % stride == 0 || r + 1 == s.rows.size()) values.add(cell(s.rows[r][c]));
            one.set(columns[c], std::move(values));
        }
        list.add(std::move(one));
    }
    return Json(Json::Object).set("stride", stride).set("series", std::move(list));
}

void write_report(const Texts& dirs, const std::string& path) {
    Comparison c = compare(dirs);
    Json data(Json::Object), runs(Json::Array);
    for (auto& dir : dirs) runs.add(parse_json(read_file(dir + "/run.json", 1 << 24), dir + "/run.json"));
    data.set("comparison", comparison_json(c)).set("text", comparison_text(c, 10000)).set("runs", std::move(runs));

    Texts arm = {"recipe", "seed"}, tensor = {"recipe", "seed", "layer", "operand", "format"};
    Texts curve = {"step", "loss", "grad_norm"}, traces = {"step", "amax", "scale", "underflow", "saturation", "sqnr_db"};
    Texts evals = {"step", "loss"}, gradients = {"layer", "rel_error", "cosine", "mean_error"};
    data.set("steps", thinned(read_series(dirs, "steps", arm, curve), arm, curve, 2000));
    data.set("evals", thinned(read_series(dirs, "evals", arm, evals), arm, evals, 2000));
    data.set("gradients", thinned(read_series(dirs, "gradients", arm, gradients), arm, gradients, 2000));
    auto all = read_series(dirs, "tensors", tensor, traces);
    std::map<std::string, std::string> first;
    std::erase_if(all, [&](auto& s) { return s.key[4] == "bf16" || first.try_emplace(s.key[0], s.key[1]).first->second != s.key[1]; });
    data.set("tensors", thinned(all, tensor, traces, std::max<size_t>(20, 20000 / std::max<size_t>(1, all.size()))));

    std::string json, mark = "{{data}}";
    for (char ch : data.dump()) json += ch == '<' ? "\\u003c" : std::string(1, ch);
    std::string out(page);
    write_file(path, out.replace(out.find(mark), mark.size(), json));
}
