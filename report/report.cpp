#include "report/report.h"
#include "run/error.h"
#include "run/files.h"
#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>

static const std::string_view page =
#include "build/report_page.inc" // report/report.html as a raw string
    ;
using Texts = std::vector<std::string>;

static Json cell(const std::string& text) { // a number as it is written
    if (text.empty()) return Json();
    try {
        Json v = parse_json(text, "");
        if (v.kind == Json::Number) return v;
    } catch (const Error&) {} // nan, inf
    return text;
}

// NAME.csv of all directories that have one, cut into series of rows that agree in the columns `key`:
// {"stride", "series": [{key.., column: [..], ..}, ..]}, in the order in which they begin. Every stride-th row is kept and
// the last, so that no series has more than 2,000 and all of them about `most`.
static Json series(
    const Texts& dirs, const std::string& name, const Texts& key, const Texts& columns, size_t most,
    const std::function<bool(const Texts& key)>& wanted = [](auto&) { return true; }) {
    std::vector<std::pair<Texts, std::vector<Texts>>> all; // key, rows
    std::map<Texts, size_t> index;
    for (const std::string& dir : dirs) {
        std::string path = dir + "/" + name + ".csv";
        if (!std::filesystem::exists(path)) continue;
        Table t = read_table(path);
        auto picked = [&](const Texts& names, size_t row) {
            Texts cells;
            for (auto& n : names) cells.push_back(t.text(row, n));
            return cells;
        };
        for (size_t r = 0; r < t.rows.size(); r++) {
            Texts k = picked(key, r);
            if (!wanted(k)) continue;
            if (index.try_emplace(k, all.size()).second) all.push_back({k, {}});
            all[index[k]].second.push_back(picked(columns, r));
        }
    }
    size_t longest = 1, room = std::clamp<size_t>(most / (all.size() + 1), 20, 2000);
    for (auto& [k, rows] : all) longest = std::max(longest, rows.size());
    size_t stride = (longest + room - 1) / room;
    Json list(Json::Array);
    for (auto& [k, rows] : all) {
        Json one(Json::Object);
        for (size_t i = 0; i < key.size(); i++) one.set(key[i], key[i] == "seed" ? cell(k[i]) : Json(k[i]));
        for (size_t c = 0; c < columns.size(); c++) {
            Json values(Json::Array);
            for (size_t r = 0; r < rows.size(); r++)
                if (r % stride == 0 || r + 1 == rows.size()) values.add(cell(rows[r][c]));
            one.set(columns[c], std::move(values));
        }
        list.add(std::move(one));
    }
    return Json(Json::Object).set("stride", stride).set("series", std::move(list));
}

void write_report(const Comparison& c, const std::string& path) {
    const Texts& dirs = c.dirs;
    Json data(Json::Object), runs(Json::Array);
    for (auto& dir : dirs) runs.add(parse_json(read_file(dir + "/run.json", 1 << 24), dir + "/run.json"));
    data.set("comparison", comparison_json(c)).set("text", comparison_text(c, 10000)).set("runs", std::move(runs));

    Texts arm = {"recipe", "seed"}, tensor = {"recipe", "seed", "layer", "operand", "format"};
    std::map<std::string, std::string> first; // seed of a recipe
    auto first_seed = [&](const Texts& k) {
        return k[4] != "bf16" && first.try_emplace(k[0], k[1]).first->second == k[1];
    };
    data.set("steps", series(dirs, "steps", arm, {"step", "loss"}, SIZE_MAX));
    data.set("evals", series(dirs, "evals", arm, {"step", "loss"}, SIZE_MAX));
    data.set("gradients", series(dirs, "gradients", arm, {"layer", "rel_error", "cosine", "mean_error"}, SIZE_MAX));
    data.set("tensors", series(dirs, "tensors", tensor, {"step", "amax", "scale", "underflow", "saturation", "sqnr_db"},
                               20000, first_seed));
    std::string json, mark = "{{data}}";
    for (char ch : data.dump()) json += ch == '<' ? "\\u003c" : std::string(1, ch);
    std::string out(page);
    write_file(path, out.replace(out.find(mark), mark.size(), json));
}
