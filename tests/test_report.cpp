#include "report/report.h"
#include "program.h"
#include "run/error.h"
#include "run/json.h"
#include <algorithm>
#include <functional>
#include <map>
#include <set>

namespace { // test files share one program

static void write(const std::string& path, const std::string& text) { std::ofstream(path, std::ios::binary) << text; }
static size_t count(const std::string& text, const std::string& part) {
    size_t n = 0;
    for (size_t at = 0; (at = text.find(part, at)) != std::string::npos; at += part.size()) n++;
    return n;
}
// A comparison as ./train leaves it behind: losses of nine digits, three operands of each layer.
struct Fake {
    std::vector<std::string> recipes = {"bf16", "mxfp4"};
    int seeds = 1, steps = 40, every = 10, layers = 2, seed = 1;
    std::string prompt = "Once";
    bool finished = true;
    void to(const std::string& dir) const {
        std::filesystem::create_directories(dir);
        std::ostringstream step, eval, tensor, end, gradient;
        step << "recipe,seed,step,tokens,loss,grad_norm,lr,ms\n";
        eval << "recipe,seed,step,tokens,loss\n";
        tensor << "recipe,seed,step,layer,operand,format,amax,scale,underflow,saturation,sqnr_db,bias\n";
        end << "recipe,seed,outcome,step,loss,fingerprint,ms\n";
        gradient << "recipe,seed,layer,rel_error,cosine,mean_error\n";
        uint32_t state = 1;
        auto any = [&] { return format("%.9g", (state = state * 1664525 + 1013904223) * 0x1p-32); };
        Json arms(Json::Array), scaled(Json::Object);
        for (auto& r : recipes) {
            Json row = Json(Json::Object).set("recipe", r).set("x.format", "e2m1");
            Json stage = Json(Json::Object).set("from", 0).set("row", row).set("skipped", std::vector<std::string>{});
            arms.add(Json(Json::Object)
                         .set("arm", r)
                         .set("emulated", true)
                         .set("why", "")
                         .set("memory_bytes", Json(Json::Object).set("codes", 7))
                         .set("stages", Json(Json::Array).add(stage)));
            for (int s = seed; s < seed + seeds; s++) {
                std::string arm = r + "," + std::to_string(s) + ",";
                int reached = finished || (s == seed && r == recipes[0]) ? steps : s == seed ? steps / 2 : 0;
                for (int t = 0; t <= reached; t++) {
                    if (t) step << arm << t << "," << t * 768 << "," << any() << "," << any() << ",0.004,28.5\n";
                    if (t * 4 % steps == 0) eval << arm << t << "," << t * 768 << "," << any() << "\n";
                    for (int k = 0; t && (t - 1) % every == 0 && k < 3 * layers; k++)
                        tensor << arm << t << ",h." << k / 3 << ","
                               << (k % 3 == 0   ? "x"
                                   : k % 3 == 1 ? "w"
                                                : "dy")
                               << (r == "bf16" ? ",bf16,,,,,,"
                                               : ",e2m1," + any() + ",," + any() + ",0," + any() + "," + any())
                               << "\n";
                }
                if (reached == steps) end << arm << "done," << steps << "," << any() << ",00ff,28.5\n";
                if (r != "bf16")
                    for (auto layer : {"all", "h.0", "h.1"})
                        gradient << arm << layer << "," << any() << "," << any() << "," << any() << "\n";
            }
        }
        Json run(Json::Object);
        run.set("version", "x")
            .set("command", std::vector<std::string>{"--prompt", prompt})
            .set("device", "CPU")
            .set("baseline", recipes[0]);
        run.set("options", Json(Json::Object)
                               .set("steps", steps)
                               .set("seed", seed)
                               .set("seeds", seeds)
                               .set("price", 0)
                               .set("prompt", prompt));
        run.set("arms", arms).set("config", Json(Json::Object).set("layers", layers)).set("parameters", 1);
        write(dir + "/run.json", run.dump(2));
        write(dir + "/steps.csv", step.str()), write(dir + "/evals.csv", eval.str()),
            write(dir + "/arms.csv", end.str());
        write(dir + "/tensors.csv", tensor.str());
        if (finished) write(dir + "/gradients.csv", gradient.str());
    }
};
static const Json& at(const Json& json, const std::string& key) {
    const Json* found = json.find(key);
    REQUIRE_MESSAGE(found, key);
    return *found;
}
struct Page {
    std::string html;
    Json data;
    explicit Page(const std::vector<std::string>& dirs, const std::string& path) {
        write_report(compare(dirs), path);
        html = slurp(path);
        std::string open = "id=\"data\">";
        size_t from = html.find(open) + open.size();
        data = parse_json(html.substr(from, html.find("</script>", from) - from), "data");
    }
};
// Every cell of a table in the page's series, keyed by what names it there; cells as they are written.
using Cells = std::map<std::string, std::string>;
static Cells in_page(const Json& table, size_t keys) {
    Cells all;
    for (const Json& s : at(table, "series").items) {
        std::string name;
        for (size_t k = 0; k < keys; k++) name += s.items[k].text + " ";
        for (size_t c = keys; c < s.items.size(); c++)
            for (size_t r = 0; r < s.items[c].items.size(); r++)
                CHECK(all.emplace(name + s.keys[c] + " " + std::to_string(r), s.items[c].items[r].text).second);
    }
    return all;
}
static Cells in_csv(
    const std::vector<std::string>& paths, const std::vector<std::string>& key, const std::vector<std::string>& columns,
    const std::function<bool(const std::vector<std::string>&)>& wanted = [](auto&) { return true; }) {
    Cells all;
    std::map<std::string, int> rows;
    for (auto& path : paths) {
        auto text = lines(slurp(path));
        auto names = split(text[0], ',');
        auto column = [&](const std::string& n) {
            return size_t(std::find(names.begin(), names.end(), n) - names.begin());
        };
        for (size_t r = 1; r < text.size(); r++) {
            auto cells = split(text[r], ',');
            if (!wanted(cells)) continue;
            std::string name;
            for (auto& k : key) name += cells.at(column(k)) + " ";
            for (auto& c : columns) all[name + c + " " + std::to_string(rows[name])] = cells.at(column(c));
            rows[name]++;
        }
    }
    return all;
}
static const std::vector<std::string> ARM = {"recipe", "seed"}, CURVE = {"step", "loss"},
                                      TENSOR = {"recipe", "seed", "layer", "operand", "format"},
                                      TRACE = {"step", "amax", "scale", "underflow", "saturation", "sqnr_db"};

TEST_CASE("the numbers of a report are those of the CSV files, digit for digit, over several directories too") {
    Scratch s;
    Fake fake;
    fake.seeds = 2;
    fake.to(s / "a");
    fake.recipes = {"bf16", "hybrid"}, fake.seed = 3; // other seeds
    fake.to(s / "b");
    std::string odd = slurp(s / "a/steps.csv"); // what a diverging run may write
    odd.replace(odd.rfind("mxfp4,2,39,"), std::string::npos,
                "mxfp4,2,39,29952,1.00e+300,1,0.004,1\nmxfp4,2,40,30720,nan,inf,0.004,1\n");
    write(s / "a/steps.csv", odd);
    Page page({s / "a", s / "b"}, s / "report.html");
    auto both = [&](const char* name) { return std::vector<std::string>{s / "a/" + name, s / "b/" + name}; };
    CHECK(in_page(at(page.data, "steps"), 2) == in_csv(both("steps.csv"), ARM, CURVE));
    CHECK(in_page(at(page.data, "evals"), 2) == in_csv(both("evals.csv"), ARM, CURVE));
    std::vector<std::string> error = {"layer", "rel_error", "cosine", "mean_error"};
    CHECK(in_page(at(page.data, "gradients"), 2) == in_csv(both("gradients.csv"), ARM, error));
    Cells tensors = in_csv(both("tensors.csv"), TENSOR, TRACE,
                           [](auto& c) { return c[5] != "bf16" && (c[0] == "mxfp4" ? c[1] == "1" : c[1] == "3"); });
    CHECK(tensors.size() == 2 * 6 * 4 * TRACE.size()); // recipes, tensors, records, columns: of the first seed of each
    CHECK(in_page(at(page.data, "tensors"), 5) == tensors);
    CHECK(at(at(page.data, "steps"), "series").items.size() == 8);
    const Json& diverged = at(at(at(page.data, "steps"), "series").items[3], "loss").items[39];
    CHECK(diverged.kind == Json::String);
    CHECK(diverged.text == "nan");
    const Json& scale = at(at(at(page.data, "tensors"), "series").items[0], "scale");
    CHECK(scale.items[0].kind == Json::Null);
    CHECK(at(at(page.data, "comparison"), "recipes").items.size() == 3);
    CHECK(at(page.data, "runs").items[1].dump() == parse_json(slurp(s / "b/run.json"), "").dump());
}

TEST_CASE("a report of 5 recipes, 5 seeds and 500 steps stays below 2 MB with every step in it") {
    Scratch s;
    Fake fake{
        .recipes = {"bf16", "hybrid", "mxfp8", "mxfp4", "nvfp4"}, .seeds = 5, .steps = 500, .every = 25, .layers = 17};
    fake.to(s / "run");
    Page page({s / "run"}, s / "report.html");
    CHECK(page.html.size() < 2000000);
    CHECK(at(at(page.data, "steps"), "stride").integer() == 1);
    CHECK(at(at(page.data, "tensors"), "stride").integer() == 1);
    CHECK(in_page(at(page.data, "steps"), 2).size() == 25 * 500 * 2);
}

TEST_CASE("a long run is thinned to every n-th step and the last, and says n") {
    Scratch s;
    Fake fake{.recipes = {"bf16", "mxfp4"}, .steps = 5003, .every = 4, .layers = 20};
    fake.to(s / "run");
    Page page({s / "run"}, s / "report.html");
    Cells csv = in_csv({s / "run/steps.csv"}, ARM, CURVE);
    const Json& steps = at(page.data, "steps");
    CHECK(at(steps, "stride").integer() == 3);
    for (const Json& series : at(steps, "series").items) {
        const auto &step = at(series, "step").items, &loss = at(series, "loss").items;
        REQUIRE(step.size() == 1669); // of rows 0, 3, .. 5001, and 5002
        for (size_t i = 0; i < step.size(); i++) {
            size_t row = std::min<size_t>(3 * i, 5002);
            CHECK(step[i].integer() == row + 1);
            CHECK(loss[i].text == csv.at(at(series, "recipe").text + " 1 loss " + std::to_string(row)));
        }
    }
    CHECK(at(at(page.data, "tensors"), "stride").integer() > 1); // 60 tensors, 1,251 records
    CHECK(in_page(at(page.data, "tensors"), 5).size() < 22000 * TRACE.size());
}

TEST_CASE("texts of users reach the page's script as they are, and none of them ends an element") {
    Scratch s;
    Fake fake;
    fake.to(s / "plain");
    size_t elements = count(Page({s / "plain"}, s / "plain.html").html, "<");
    fake.prompt =
        "</script><script>alert(1)</script><!--<script> & &lt; ]]> \" ' \\ \n \xe2\x80\xa8 {{data}} \xf0\x9f\xa6\xa6";
    fake.recipes[1] = "</ScRiPt><img src=x onerror=alert(1)>&amp;";
    fake.to(s / "hostile");
    Page page({s / "hostile"}, s / "hostile.html");
    CHECK(count(page.html, "<") == elements);
    const Json& run = at(page.data, "runs").items[0];
    CHECK(at(run, "command").items[1].text == fake.prompt);
    CHECK(at(at(run, "options"), "prompt").text == fake.prompt);
    CHECK(at(at(at(page.data, "steps"), "series").items[1], "recipe").text == fake.recipes[1]);
}

TEST_CASE("a run that is still going has a report of what is there") {
    Scratch s;
    Fake fake{.recipes = {"bf16", "hybrid", "mxfp4"}, .seeds = 2, .finished = false};
    fake.to(s / "run");
    Page half({s / "run"}, s / "report.html");
    CHECK(in_page(at(half.data, "steps"), 2) == in_csv({s / "run/steps.csv"}, ARM, CURVE));
    CHECK(at(at(half.data, "gradients"), "series").items.empty());
    for (auto name : {"steps", "evals", "tensors", "arms"}) // before the first step
        write(s / "run/" + name + ".csv", lines(slurp(s / "run/" + name + ".csv"))[0] + "\n");
    Page empty({s / "run"}, s / "report.html");
    CHECK(at(at(empty.data, "steps"), "series").items.empty());
    CHECK(at(at(empty.data, "comparison"), "recipes").items.size() == 3);
}

TEST_CASE("a report that cannot be made leaves the one before in place") {
    Scratch s;
    Fake().to(s / "run");
    write(s / "report.html", "before");
    write(s / "run/evals.csv", "recipe,seed,step,tokens,loss\nbf16,1,0\n");
    CHECK_THROWS_AS(write_report(compare({s / "run"}), s / "report.html"), Error);
    CHECK_THROWS_AS(write_report(compare({s / "nothing"}), s / "report.html"), Error);
    CHECK(slurp(s / "report.html") == "before");
    CHECK(std::distance(std::filesystem::directory_iterator(s.dir), {}) == 2); // nothing beside them
}

// The elements of a page, as pairs of tags; those without an end are void. Not a parser of HTML: of the page we wrote.
static std::string unbalanced(const std::string& html) {
    static const std::set<std::string> empty = {"meta", "input", "!doctype"};
    std::vector<std::string> open;
    for (size_t i = 0; (i = html.find('<', i)) != std::string::npos;) {
        if (html.compare(i, 4, "<!--") == 0) return "a comment";
        size_t end = html.find('>', i);
        if (end == std::string::npos) return "an open <";
        std::string tag = html.substr(i + 1, end - i - 1),
                    name = tag.substr(tag[0] == '/', tag.find_first_of(" \n") - (tag[0] == '/'));
        if (count(tag, "\"") % 2) return tag;
        i = end;
        if (empty.count(name)) continue;
        if (tag[0] != '/') open.push_back(name);
        else if (open.empty() || open.back() != name) return tag;
        else open.pop_back();
        if (tag[0] != '/' && (name == "script" || name == "style"))
            i = std::min(html.find("</" + name, i), html.size());
    }
    return open.empty() ? "" : open.back();
}
TEST_CASE("the page is well formed, holds all it needs and never makes markup of data") {
    Scratch s;
    Fake().to(s / "run");
    std::string html = Page({s / "run"}, s / "report.html").html;
    CHECK(html.starts_with("<!doctype html>\n<html lang=\"en\">\n"));
    CHECK(unbalanced(html) == "");
    CHECK(count(html, "{{data}}") == 0);
    CHECK(count(html, "default-src 'none'") == 1); // what the browser itself then refuses
    CHECK(count(html, "://") == count(html, "http://www.w3.org/2000/svg"));
    for (auto word : {" src=", " href=", "@import", "innerHTML", "outerHTML", "insertAdjacent", "document.write",
                      "eval(", "fetch(", "XMLHttp"})
        CHECK_MESSAGE(count(html, word) == 0, word);
    CHECK(count(html, "url(") == count(html, "url(#"));
    std::set<std::string> ids;
    for (size_t at = 0; (at = html.find(" id=\"", at)) != std::string::npos; at++)
        CHECK(ids.insert(html.substr(at + 5, html.find('"', at + 5) - at - 5)).second);
    for (auto id : {"verdicts", "curves", "horizon", "gradient", "heat", "traces", "formats", "commands", "options"})
        CHECK(ids.count(id));
    CHECK(count(html, "<noscript>") == 1);
}

} // namespace
