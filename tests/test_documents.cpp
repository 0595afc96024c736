// docs/experiments: pages whose commands run.sh runs, and figures that figure.awk draws.
#include "program.h"
#include <algorithm>
#include <map>
#include <set>

namespace { // test files share one program

using std::string;
namespace fs = std::filesystem;

const string PAGES = "docs/experiments";
std::map<int, string> pages() { // by number, their paths
    std::map<int, string> all;
    for (auto& entry : fs::directory_iterator(PAGES))
        if (string name = entry.path().filename(); name.ends_with(".md") && name != "README.md")
            CHECK_MESSAGE(all.insert({atoi(name.c_str()), entry.path()}).second, name);
    return all;
}
// The lines of shell on a page, each in one piece, `\` and all; those before the exercise alone, or all.
std::vector<string> commands(const string& page, bool exercise = false) {
    std::vector<string> all;
    bool more = false;
    for (auto& line : lines(page)) {
        if (!exercise && line.starts_with("<details>")) break;
        if (!line.starts_with("    ")) continue;
        string text = line.substr(4);
        if (more) all.back() += text;
        else all.push_back(text);
        more = all.back().ends_with("\\");
        if (more) all.back().pop_back();
    }
    return all;
}
std::vector<string> words(const string& command) {
    std::vector<string> all;
    for (auto& word : split(command, ' '))
        if (!word.empty()) all.push_back(word);
    return all;
}
size_t count(const string& text, const string& part) {
    size_t n = 0;
    for (size_t at = text.find(part); at != string::npos; at = text.find(part, at + 1)) n++;
    return n;
}

TEST_CASE("every experiment is a page with its command, expectation, figure and exercise, and stands in the index") {
    string index = slurp(PAGES + "/README.md");
    std::map<int, string> all = pages();
    CHECK(all.size() == 11);
    std::set<string> shown;
    for (auto& [number, path] : all) {
        INFO(path);
        string page = slurp(path), name = fs::path(path).filename(), stem = name.substr(0, name.size() - 3);
        string title = lines(page)[0], number_text = std::to_string(number);
        REQUIRE(title.starts_with("# " + number_text + ". "));
        CHECK(index.find("| " + number_text + " | [" + title.substr(number_text.size() + 4) + "](" + name + ") | ") !=
              string::npos);
        size_t expect = page.find("\n## What to expect\n"), measured = page.find("\n## What we measured\n");
        size_t exercise = page.find("\n<details><summary>Exercise");
        CHECK(expect < measured);
        CHECK(measured < exercise);
        CHECK(exercise < page.find("\n</details>"));
        string run = "runs/experiments/" + stem.substr(0, 2), text;
        for (auto& command : commands(page)) {
            text += command + "\n";
            if (size_t to = command.find("> " + PAGES + "/");
                to != string::npos) { // a figure: from this run, and shown
                string figure = command.substr(to + 3 + PAGES.size());
                CHECK(command.find(run + "/") < to);
                CHECK(page.find("](" + figure + ")") < exercise);
                CHECK(slurp(PAGES + "/" + figure).starts_with("<svg xmlns='http://www.w3.org/2000/svg' "));
                shown.insert(figure);
            }
        }
        CHECK(text.find("./train ") < text.find("awk "));
        CHECK(text.find(run) != string::npos);
        CHECK(count(page, "](" + stem) == count(text, "> " + PAGES + "/" + stem)); // no figure without its line
    }
    for (auto& entry : fs::directory_iterator(PAGES))
        if (string name = entry.path().filename(); name.ends_with(".svg")) CHECK_MESSAGE(shown.count(name), name);
}

TEST_CASE("options and recipes on the pages of experiments are those of ./train") {
    string help;
    for (auto command : {"", "scan ", "eval "}) help += run(TRAIN, command + string("--help")).out;
    std::set<string> arms;
    for (auto& [number, path] : pages())
        for (auto& command : commands(slurp(path), true)) {
            INFO(path << ": " << command);
            if (command.find("./train") == string::npos) continue;
            auto all = words(command);
            for (size_t i = 0; i < all.size(); i++) {
                if (all[i].starts_with("--")) CHECK(help.find("\n  " + all[i] + " ") != string::npos);
                if (all[i] == "--recipe" && i + 1 < all.size())
                    for (auto& arm : split(all[i + 1], ',')) arms.insert(arm.substr(0, arm.find(';')));
            }
        }
    CHECK(arms.size() > 50);
    string list;
    for (auto& arm : arms) list += " '" + arm + "'";
    Result r = run(TRAIN, "recipes" + list);
    CHECK_MESSAGE(r.status == 0, r.err);
}

TEST_CASE("run.sh runs the lines of a page, what they start from first, and no exercise") {
    Scratch s;
    fs::create_directory(s / "docs");
    fs::copy(PAGES, s / PAGES, fs::copy_options::recursive);
    // In ./train's place: writes down how it was called, and makes the directory that it was to write.
    std::ofstream(s / "train") << "#!/bin/sh\necho \"./train $*\" >>" << s.dir << "/calls\n"
                               << "for word; do [ \"$last\" != --out ] || mkdir -p \"$word\"; last=$word; done\n";
    fs::permissions(s / "train", fs::perms::owner_all);
    // And awk reads pages, no tables.
    std::ofstream(s / "awk") << "#!/bin/sh\ncase $* in *.md) PATH=${PATH#*:} exec awk \"$@\" ;; esac\n";
    fs::permissions(s / "awk", fs::perms::owner_all);
    for (auto& [number, path] : pages()) {
        INFO(path);
        fs::remove(s / "calls");
        Result r = run("PATH=" + s.dir + ":$PATH TRAIN=" + s.dir + "/train " + s.dir + "/docs/experiments/run.sh",
                       std::to_string(number));
        CHECK_MESSAGE(r.status == 0, r.err);
        std::vector<string> called = lines(slurp(s / "calls")), wanted;
        bool from_base = slurp(path).substr(0, slurp(path).find("<details>")).find("experiments/base/") != string::npos;
        REQUIRE(called.size() > (from_base ? 1 : 0));
        if (from_base) CHECK(called[0] == "./train --recipe bf16 --out runs/experiments/base");
        bool loop = false;
        for (auto& command : commands(slurp(path))) {
            loop |= command.starts_with("for ");
            string text; // as echo prints it
            for (auto& word : words(command.substr(0, command.find(" >")))) text += (text.empty() ? "" : " ") + word;
            if (command.starts_with("./train ")) wanted.push_back(text);
        }
        if (!loop) CHECK(std::vector<string>(called.begin() + from_base, called.end()) == wanted);
    }
    CHECK(run(s / "docs/experiments/run.sh", "12").status == 2);
}

TEST_CASE("figure.awk draws every series that there is, and says what is missing") {
    Scratch s;
    std::ofstream(s / "t.csv")
        << "recipe,step,layer,loss\nbf16,1,a,\na<b,1,a,4\na<b,2,a,2\nc,1,a,1\nc,1,a,3\nc,2,b,nan\n";
    auto draw = [&](const string& options) {
        return run("awk", "-f docs/experiments/figure.awk " + options + " " + (s / "t.csv"));
    };
    Result lines_ = draw("-v x=step -v y=loss -v by=recipe -v title='1 & 2'");
    CHECK(lines_.status == 0);
    CHECK(count(lines_.out, "<path class='l ") == 2);             // bf16 has no number
    CHECK(lines_.out.find("<path class='l s1'") != string::npos); // but keeps its colour
    CHECK(lines_.out.find(">a&lt;b</text>") != string::npos);
    CHECK(lines_.out.find(">1 &amp; 2</text>") != string::npos);
    CHECK(lines_.out.find("prefers-color-scheme:dark") != string::npos);
    CHECK(lines_.out.ends_with("</svg>\n"));
    Result bars = draw("-v x=recipe -v y=loss -v bars=1");
    CHECK(count(bars.out, "<rect class='f") == 2);
    CHECK(bars.out.find(">2</text>") != string::npos); // the mean of 1 and 3
    CHECK(draw("-v x=recipe -v y=loss -v bars=1 -v of=max").out.find(">3</text>") != string::npos);
    CHECK(count(draw("-v x=recipe -v y=loss -v bars=1 -v where=step=2").out, "<rect class='f") == 1);
    CHECK(count(draw("-v x=recipe -v y=loss -v bars=1 -v where='recipe~^c'").out, "<rect class='f") == 1);
    CHECK(draw("-v x=step -v y=lost").err.find("has no column lost") != string::npos);
    CHECK(draw("-v x=step -v y=loss -v where=layer=z").err.find("no row") != string::npos);
    CHECK(draw("-v x=step -v y=loss -v where=layer=z").status != 0);
}

} // namespace
