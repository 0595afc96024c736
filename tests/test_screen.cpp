#include "child.h"
#include "run/screen.h"
#include <algorithm>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <sys/ioctl.h>

namespace { // test files share one program

using Strings = std::vector<std::string>;

TEST_CASE("lines for scripts look as documented") {
    Step s = {"hybrid", 1, 10, 500, 7680, 3.1234, 1.23, 0.001, 62};
    CHECK(step_line(s, 12345.4) == "step 10/500 recipe=hybrid seed=1 loss=3.1234 norm=1.23 lr=0.001 tok/s=12345");
    CHECK(eval_line("bf16", 3.21765423, 10240) == "eval recipe=bf16 loss=3.21765423 tokens=10240");
    CHECK(done_line("hybrid", 1, 500, 1.23456789, "runs/x/hybrid-s1/step-000500", 0x0123456789abcdef) ==
          "done recipe=hybrid seed=1 step=500 loss=1.23456789 checkpoint=runs/x/hybrid-s1/step-000500 "
          "fingerprint=0123456789abcdef");
    CHECK(number(-std::nan("")) == "nan");
    CHECK(number(-INFINITY) == "-inf");
    for (float v : {0.1f, 1e-45f, 3.4028235e38f, 16777217.0f, 1.0f / 3}) CHECK(strtof(number(v).c_str(), nullptr) == v);
}

TEST_CASE("the average starts at the first value instead of being pulled towards zero") {
    Average a;
    CHECK(a.add(5) == doctest::Approx(5).epsilon(1e-15));
    double expected = (5 * 0.95 + 7) / (0.95 + 1); // weights 0.95 and 1
    CHECK(a.add(7) == doctest::Approx(expected).epsilon(1e-14));
    for (int i = 0; i < 1000; i++) a.add(2);
    CHECK(a.add(2) == doctest::Approx(2).epsilon(1e-14));
}

static void run_of(int64_t steps) {
    for (int64_t i = 1; i <= steps; i++) show_progress({"bf16", 1, i, steps, i * 100, 2.5, 1, 0.001, 10});
}

TEST_CASE("in a pipe there are about fifty step lines, the first and the last among them, and no live line") {
    Scratch scratch;
    for (int64_t steps : {1, 2, 3, 49, 50, 51, 99, 100, 149, 500, 1234}) {
        Outcome child = in_child([&] { run_of(steps); });
        CAPTURE(steps);
        CHECK(child.err == "");
        int lines = (int)std::count(child.out.begin(), child.out.end(), '\n');
        CHECK(lines <= 101);
        CHECK(lines >= std::min<int64_t>(steps, 50));
        CHECK(child.out.starts_with(
            format("step 1/%d recipe=bf16 seed=1 loss=2.5 norm=1 lr=0.001 tok/s=10000\n", (int)steps)));
        CHECK(has(child.out, format("step %d/%d ", (int)steps, (int)steps)));
    }
    Outcome child = in_child([] { be_quiet(), run_of(500), note("x"), result("y"); });
    CHECK(child.out == "y\n");
    CHECK(child.err == "");
}

TEST_CASE("a result that cannot be written is an error") {
    Scratch scratch;
    if (!fs::exists("/dev/full")) SKIP("no /dev/full here");
    Outcome child = in_child(
        [] { _exit(has(error_of([] { result("x"); }), "cannot write to standard output") ? 5 : 6); }, "/dev/full");
    CHECK(child.status == 5);
}

TEST_CASE("the first signal sets a flag, the second one ends the program") {
    Scratch scratch;
    for (int sig : {SIGINT, SIGTERM}) {
        Outcome once = in_child([&] {
            catch_signals();
            if (stop_signal() != 0) _exit(1);
            raise(sig);
            _exit(stop_signal() == sig ? 3 : 2);
        });
        CHECK(once.status == 3);
        Outcome twice =
            in_child([&] { catch_signals(), raise(sig), raise(sig == SIGINT ? SIGTERM : SIGINT), _exit(4); });
        CHECK(twice.status == (sig == SIGINT ? -SIGTERM : -SIGINT));
    }
}

// --- rows as text ------------------------------------------------------------------------------------------------

// A recipe after `step` steps of a loss that falls from 5.5 to `end`, 768 tokens each.
static Row row(const std::string& name, const std::string& state, int64_t ended, int step, double end, double ms) {
    Row r = {name, state, state.starts_with("step"), 1, ended};
    for (int i = 0; i < step; i++) r.curve.push_back((float)(end + (5.5 - end) * exp(-i / 40.0)));
    r.ms = ms, r.rate = ms > 0 ? 768e3 / ms : 0;
    return r;
}
static std::vector<Row> four_rows() {
    std::vector<Row> rows = {row("bf16", "done, val 1.7301", 2, 500, 1.7, 62),
                             row("hybrid", "step 300/500", 1, 300, 1.75, 64),
                             row("mxfp4:scale_rule=floor:w.round=sr", "diverged at step 190", 1, 190, 3, 66),
                             row("nvfp4", "waiting", 0, 0, 0, 0)};
    rows[2].curve.back() = INFINITY;
    return rows;
}
// Shows them one below the other, as a failed comparison should.
static std::string text(const Strings& lines) {
    std::string all;
    for (auto& line : lines) all += line + "\n";
    return all;
}
static size_t characters(const std::string& s) {
    return (size_t)std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xc0) != 0x80; });
}

TEST_CASE("rows line up, share one scale, and give up what matters least where there is no room") {
    auto rows = four_rows();
    CHECK(
        text(row_lines(rows, 2, 500, 120, 24, true)) ==
        "bf16                      ▇▆▅▄▄▃▃▂▂▂▂▂▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁  1.7000  12387 tok/s             seed 2/2  done, val "
        "1.7301\n"
        "hybrid                    ▇▆▅▄▄▃▃▃▂▂▂▂▂▂▂▂▂▂              1.7521  12000 tok/s  0:13 left  seed 2/2  step "
        "300/500\n"
        "mxfp4:scale_..w.round=sr  ▇▇▆▆▆▅▅▅▅▅▅█                       inf  11636 tok/s             seed 1/2  diverged "
        "at step 190\n"
        "nvfp4                                                                                               waiting\n"
        "4 of 8 runs ended, 1:50 left in all\n");
    CHECK(text(row_lines(rows, 2, 500, 80, 24, true)) ==
          "bf16              ▅▃▂▂▁▁▁▁▁▁▁  1.7000             seed 2/2  done, val 1.7301\n"
          "hybrid            ▅▃▃▂▂▂▂      1.7521  0:13 left  seed 2/2  step 300/500\n"
          "mxfp4:sc..und=sr  ▆▅▅▅█           inf             seed 1/2  diverged at step 190\n"
          "nvfp4                                                       waiting\n"
          "4 of 8 runs ended, 1:50 left in all\n");
    CHECK(text(row_lines(rows, 2, 500, 40, 24, false)) == "bf16      =::.....  done, val 1.7301\n"
                                                          "hybrid    =-:::     step 300/500\n"
                                                          "mxfp..sr  *++@      diverged at step 190\n"
                                                          "nvfp4               waiting\n"
                                                          "4 of 8 runs ended, 1:50 left in all\n");
    auto hybrid = [&](int width) { return row_lines(rows, 2, 500, width, 24, true)[1]; };
    CHECK(hybrid(90) == "hybrid              ▆▅▄▃▃▂▂▂▂▂▂▂         1.7521  0:13 left  seed 2/2  step 300/500");
    CHECK(hybrid(38) == "hybrid    ▄▂▂▂    step 300/500"); // six cells are the least
    CHECK(hybrid(37) == "hybrid    step 300/500");
    CHECK(text(row_lines({rows[1]}, 1, 500, 80, 24, true)) == // no seeds to count, nothing else to wait for
          "hybrid  ▇▅▄▄▃▃▂▂▂▂▁▁▁▁▁▁            1.7521  12000 tok/s  0:13 left  step 300/500\n");
}

TEST_CASE("whatever the terminal's size, rows fit it, and the one that runs is among them") {
    auto rows = four_rows();
    rows[1].running = false, rows[1].state = "done, val 1.8";
    for (int i = 0; i < 8; i++) rows.push_back(row("arm" + std::to_string(i), "waiting", 0, 0, 0, 0));
    rows[9] = row("running", "step 7/500", 0, 7, 2, 1e6);
    for (bool utf8 : {true, false})
        for (int width = -1; width < 130; width++)
            for (int height = -1; height < 20; height++) {
                Strings lines = row_lines(rows, 3, 500, width, height, utf8);
                REQUIRE((int)lines.size() == std::clamp(height, 1, 13));
                for (auto& line : lines) REQUIRE((int)characters(line) <= std::max(width, 0));
                REQUIRE((has(text(lines), "running") || width < 8));
                REQUIRE((has(lines.back(), "runs ended") == (height > 1) || width < 20));
                for (char c : text(lines)) REQUIRE((utf8 || (unsigned char)c < 0x80));
            }
    CHECK(row_lines({}, 1, 500, 80, 24, true).empty());
}

// The cells of each curve, between the name and what follows it.
static Strings curves(const std::vector<Row>& rows, int64_t steps, bool utf8 = false) {
    Strings all;
    for (auto& line : row_lines(rows, 1, steps, 80, 24, utf8)) {
        size_t at = line.find_first_not_of(' ', line.find(' '));
        if (!line.starts_with("0 of")) all.push_back(line.substr(at, line.find("  ", at) - at));
    }
    return all;
}
TEST_CASE("a curve's height is the square root of the way from the lowest loss of any row to the highest start") {
    Row a = {"a", "waiting"}, b = {"b", "waiting"};
    for (int level = 7; level >= 0; level--) a.curve.push_back(1 + 2.0f * level * level / 49);
    CHECK(curves({a}, 8) == Strings{"@#*+=-:."});
    CHECK(curves({a}, 8, true) == Strings{"█▇▆▅▄▃▂▁"});
    b.curve = {2.9f, 2.9f, 9, INFINITY}; // above every start: the top; 2.9: t = 0.95, 7 sqrt(t) = 6.8
    CHECK(curves({a, b}, 8) == Strings{"@#*+=-:.", "@@@@"});
    b.curve = {3 - 2 * (1 - 0.6f)}; // t = 0.6, 7 sqrt(t) = 5.4
    CHECK(curves({a, b}, 8) == Strings{"@#*+=-:.", "*"});
    b.curve = {5}; // a higher start is everybody's scale: a is 2 / 4 of it at its own, 7 sqrt(0.5) = 4.95
    CHECK(curves({a, b}, 8) == Strings{"*++=-::.", "@"});
    a.curve = {NAN, NAN, NAN, 3, 2, 1}; // three steps that nobody knows
    CHECK(row_lines({a}, 1, 6, 80, 24, false)[0] == "a     @*.  1.0000  waiting");
    a.curve.assign(500, 1), a.curve[0] = 3; // of a thousand steps: half the cells, each with the last of its steps
    std::string half = curves({a}, 1000)[0];
    CHECK(half == std::string(half.size(), '.'));
    a.curve.resize(1000, 1);
    CHECK(std::abs((int)curves({a}, 1000)[0].size() - 2 * (int)half.size()) <= 1);
    a.curve = {2, 2};
    CHECK(curves({a}, 5) == Strings{".."}); // one height, no scale
}

TEST_CASE("time left counts the steps of an arm, and those of all arms at what is known of their pace") {
    auto left = [](const std::vector<Row>& rows, int64_t seeds) { return row_lines(rows, seeds, 500, 200, 24, false); };
    for (auto [ms, expected] :
         {std::pair(10e3, "33:20 left"), {64e3, "3:33:20 left"}, {1e6, "2d 07h left"}, {0.0, "0:00 left"}})
        CHECK(has(left({row("a", "step 300/500", 0, 300, 2, ms)}, 1)[0], std::string("  ") + expected + "  step"));
    for (double odd : {(double)NAN, (double)INFINITY, 1e300, -1.0})
        CHECK(left({row("a", "step 300/500", 0, 300, 2, odd)}, 1).size() == 1); // no matter what
    // two ended; 200 steps of 64 ms; 500 of 66 ms, because a diverged seed is over; 2 * 500 of 64 ms, the mean of three
    CHECK(left(four_rows(), 2).back() == "4 of 8 runs ended, 1:50 left in all");
    CHECK(left({row("a", "waiting", 0, 0, 0, 0)}, 5).back() == "0 of 5 runs ended");
    CHECK(left({row("a", "done, val 1", 5, 500, 2, 10)}, 5).size() == 1); // nothing is left to wait for
}

// --- rows on a terminal ------------------------------------------------------------------------------------------

// As much of a terminal as we use. Lines that have left it at the top are in `gone`. Narrowed, it breaks its lines, as
// most terminals do: ESC ] COLUMNS BEL tells it, where a real one would tell the program.
struct Terminal {
    int width, height, x = 0, y = 0, draws = 0;
    bool missing = false; // no pseudo-terminals here
    std::vector<std::u32string> lines = {U""};
    Strings gone = {};
    static std::string utf8(const std::u32string& s) {
        std::string all;
        for (char32_t c : s)
            if (c < 0x80) all += (char)c;
            else all += {(char)(0xe0 | c >> 12), (char)(0x80 | (c >> 6 & 63)), (char)(0x80 | (c & 63))};
        all.erase(all.find_last_not_of(' ') + 1);
        return all;
    }
    void down() {
        if (++y == (int)lines.size()) lines.push_back(U"");
        for (; (int)lines.size() > height; y--) gone.push_back(utf8(lines[0])), lines.erase(lines.begin());
    }
    void put(char32_t c) {
        if (x == width) x = 0, down(); // the last column wraps when the next character comes
        lines[y].resize(std::max(lines[y].size(), (size_t)x + 1), U' ');
        lines[y][x++] = c;
    }
    void narrow(int columns) {
        std::vector<std::u32string> all;
        for (auto& line : lines) {
            REQUIRE((y == (int)(&line - lines.data())) == (&line == &lines.back())); // the cursor is at the end
            for (size_t at = 0; at == 0 || at < line.size(); at += columns) all.push_back(line.substr(at, columns));
        }
        width = columns, lines = all, y = (int)lines.size() - 1, x = (int)lines[y].size();
        for (; (int)lines.size() > height; y--) gone.push_back(utf8(lines[0])), lines.erase(lines.begin());
    }
    void play(const std::string& text) {
        for (size_t i = 0; i < text.size();) {
            unsigned char c = (unsigned char)text[i++];
            if (c == '\r') x = 0;
            else if (c == '\n') down();
            else if (c == 0x1b && text[i] == ']') {
                narrow(atoi(&text[++i]));
                i = text.find('\a', i) + 1;
            } else if (c == 0x1b) {
                REQUIRE(text[i++] == '[');
                int n = atoi(&text[i]);
                while (isdigit((unsigned char)text[i])) i++;
                char what = text[i++];
                REQUIRE((what == 'A' || what == 'J')); // nothing else is known to every terminal's users
                if (what == 'A') y = std::max(0, y - n);
                if (what == 'J') lines.resize(y + 1), lines[y].resize(std::min(lines[y].size(), (size_t)x)), draws++;
            } else if (c < 0x80) put(c);
            else put((c & 15) << 12 | (text[i] & 63) << 6 | (text[i + 1] & 63)), i += 2;
        }
    }
    std::string screen() const {
        std::string all;
        for (auto& line : lines) all += (&line == &lines[0] ? "" : "\n") + utf8(line);
        return all;
    }
    std::string everything() const { return text(gone) + screen(); }
};

// Runs f with stderr, and stdout if asked, on a terminal; returns what was written to it.
static std::string on_terminal(const char* term, bool out_too, const std::function<void()>& f, int width = 80,
                               int height = 24) {
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    if (master < 0 || grantpt(master) != 0 || unlockpt(master) != 0) return "no terminal";
    std::string slave = ptsname(master);
    int keep = open(slave.c_str(), O_RDWR | O_NOCTTY); // so that what the child wrote outlives it
    winsize size = {(unsigned short)height, (unsigned short)width, 0, 0};
    ioctl(keep, TIOCSWINSZ, &size);
    setenv("TERM", term, 1), setenv("LC_ALL", "C.UTF-8", 1);
    fflush(nullptr);
    pid_t reader = fork(); // a terminal that nobody reads takes a few kilobytes
    if (reader == 0) {
        close(keep);
        int to = open("terminal", O_CREAT | O_TRUNC | O_WRONLY, 0666);
        char buffer[4096];
        for (ssize_t n; (n = read(master, buffer, sizeof buffer)) > 0;)
            if (write(to, buffer, (size_t)n) != n) _exit(1);
        _exit(0);
    }
    in_child(f, out_too ? slave.c_str() : "out", slave.c_str());
    close(keep), close(master);
    waitpid(reader, nullptr, 0);
    return contents("terminal");
}
static Terminal played(const std::function<void()>& f, int width = 80, int height = 24) {
    Scratch scratch;
    Terminal t = {width, height};
    std::string text = on_terminal("xterm", true, f, width, height);
    t.missing = text == "no terminal";
    if (!t.missing) t.play(text);
    return t;
}
#define NEEDS(terminal)                                                                                                \
    if (terminal.missing) SKIP("no pseudo-terminals here")

// A comparison with all that it may say in between; the last recipe diverges at step 20. `said`: its notes and results.
static const int STEPS = 40;
static void compare(const Strings& recipes, int seeds, Strings* said, const std::function<void(int)>& at_step = {}) {
    auto say = [&](bool is_result, const std::string& line) {
        if (said) said->push_back(line);
        else is_result ? result(line) : note("%s", line.c_str());
    };
    if (!said) show_rows(recipes, seeds, STEPS);
    for (int seed = 1; seed <= seeds; seed++)
        for (auto& recipe : recipes) {
            bool bad = recipes.size() > 1 && recipe == recipes.back();
            say(false, recipe + " in full:\n" + std::string(200, 'x'));
            for (int i = 1; i <= (bad ? 20 : STEPS); i++) {
                if (!said)
                    show_progress({recipe, seed, i, STEPS, 768 * i, bad && i == 20 ? NAN : 5.0 - i / 20.0, 1, 1, 50});
                if (at_step) at_step(i);
                if (i % 10 == 0) say(false, recipe + format(": validation loss at %d", i));
            }
            if (!said) row_ended(recipe, seed, bad ? "diverged" : "done", bad ? NAN : 1.5, 50);
            if (!bad) say(true, "done recipe=" + recipe);
        }
}
static std::string said_in(const Strings& recipes, int seeds, int width) { // as a terminal shows it
    Strings said;
    compare(recipes, seeds, &said);
    Terminal t = {width, 1 << 20};
    for (char c : text(said)) t.play(c == '\n' ? "\r\n" : std::string(1, c));
    return t.screen();
}
static const Strings FIVE = {"bf16", "hybrid", "mxfp8", "mxfp4:scale_rule=floor", "unit:dy.format=e4m3"};

TEST_CASE("rows are redrawn in place: what else was printed stands above them, whole and once, and then nothing") {
    for (auto [w, h] : {std::pair(80, 24), {100, 200}, {120, 3}, {41, 10}, {30, 1}, {11, 50}}) {
        int width = w, height = h; // a binding is not for CAPTURE
        CAPTURE(width);
        CAPTURE(height);
        Terminal t = played([] { compare(FIVE, 2, nullptr, [](int) { usleep(500); }), clear_live(); }, width, height);
        NEEDS(t);
        CHECK(t.everything() == said_in(FIVE, 2, width));
        CHECK(t.x == 0); // the cursor is where the next line goes
    }
}

TEST_CASE("while it runs, the screen ends in a row for each recipe and one for all; they may be left standing") {
    Terminal t = played([] { compare(FIVE, 2, nullptr), clear_live(true), result("table"); }, 100);
    NEEDS(t);
    std::string curve = "████▇▇▇▇▇▇▇▆▆▆▆▅▅▅▅▄▄▃▃▁", end = curve + "  3.6551  15360 tok/s  seed 2/2  done, val 1.5000\n";
    CHECK(t.everything() == said_in(FIVE, 2, 100) + "bf16                 " + end + "hybrid               " + end +
                                "mxfp8                " + end + "mxfp4:sca..le=floor  " + end +
                                "unit:dy.format=e4m3  ████▇▇▇▇▇▇▇█                 inf  15360 tok/s  seed 2/2  "
                                "diverged at step 20\ntable\n");
    t = played([] {
        show_rows({"a", "b", "c"}, 2, 10);
        row_ended("a", 1, "done", 1.25, 10), row_ended("b", 1, "diverged", NAN, 30); // by the run that is resumed
    });
    CHECK(t.screen() == "a              seed 1/2  done, val 1.2500\n"
                        "b              seed 1/2  diverged\n"
                        "c                        waiting\n"
                        "2 of 6 runs ended, 0:01 left in all"); // 10 * 10 + 10 * 30 + 20 * 20 ms
    t = played([] { // losses are smoothed within an arm, and afresh in the next
        show_rows({"bf16"}, 2, 10), show_progress({"bf16", 1, 1, 10, 1, 5, 1, 1, 1});
        show_progress({"bf16", 1, 2, 10, 2, 7, 1, 1, 1}), note("note"), clear_live(true);
        show_progress({"bf16", 2, 3, 10, 3, 1, 1, 1, 1}), row_ended("bf16", 2, "done", 1, 1);
    });
    CHECK(has(t.screen(), "  6.0256  ")); // (0.95 * 5 + 7) / 1.95
    CHECK(has(t.screen(), "  1.0000  "));
    t = played([] { show_rows({"bf16"}, 1, 10), show_progress({"bf16", 7, 5, 10, 500, 2, 1, 1, 1000}), note("note"); });
    CHECK(t.screen() == "note\nbf16      ▁       2.0000  100 tok/s  0:05 left  step 5/10");
}

TEST_CASE("a terminal that becomes narrower loses nothing that was printed and keeps no rows") {
    auto resize = [](int i) {
        if (i != 15) return;
        static int width = 100;
        width -= 7;
        winsize size = {(unsigned short)(width / 8), (unsigned short)width, 0, 0};
        ioctl(STDERR_FILENO, TIOCSWINSZ, &size);
        fputs(format("\x1b]%d\a", width).c_str(), stderr);
    };
    Terminal t = played([&] { compare(FIVE, 2, nullptr, resize), clear_live(); }, 100, 12);
    NEEDS(t);
    auto unbroken = [](std::string s) { // lines break elsewhere at every width, at spaces too
        s.erase(std::remove_if(s.begin(), s.end(), [](char c) { return c == '\n' || c == ' '; }), s.end());
        return s;
    };
    CHECK(unbroken(t.everything()) == unbroken(said_in(FIVE, 2, 100)));
}

TEST_CASE("rows are drawn at most ten times a second, but for what is printed between them") {
    auto start = std::chrono::steady_clock::now();
    Terminal t = played([] {
        show_rows({"bf16"}, 1, 1000);
        for (int i = 1; i <= 1000; i++) show_progress({"bf16", 1, i, 1000, i * 100, 2.5, 1, 0.001, 10}), usleep(250);
    });
    NEEDS(t);
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    CHECK(t.draws <= 2 + seconds / 0.1); // the first and the last are drawn whenever they come
    CHECK(t.draws >= 4);                 // a quarter of a second at least
    CHECK(t.screen().ends_with("2.5000  10000 tok/s  0:00 left  step 1000/1000"));
}

TEST_CASE("Ctrl-C takes the rows and the ^C away, and none come back; after Ctrl-Z and fg they start afresh") {
    for (int sig : {SIGINT, SIGTERM}) {
        auto stop = [=](int i) {
            static int steps = 0;
            if (i < 40 && ++steps == 55) fputs("^C", stderr), raise(sig);
        };
        Terminal t =
            played([&] { catch_signals(), compare(FIVE, 1, nullptr, stop), clear_live(true), note("end"); }, 60, 12);
        NEEDS(t);
        CHECK(t.everything() == said_in(FIVE, 1, 60) + "end\n");
        t = played([&] { catch_signals(), show_rows(FIVE, 1, 9), raise(sig), raise(sig); }); // nothing half drawn
        CHECK(t.everything() == "");
    }
    Terminal t = played([] {
        catch_signals();
        compare(FIVE, 1, nullptr, [](int i) {
            if (i == 15) fputs("\r\n$ fg\r\n", stderr), raise(SIGCONT);
        });
        clear_live();
    });
    size_t shells = 0;
    for (size_t at = 0; (at = t.everything().find("$ fg", at)) != std::string::npos; at++) shells++;
    CHECK(shells == FIVE.size());
}

TEST_CASE("rows and step lines go where they are of use") {
    Scratch scratch;
    auto run = [] { compare({"bf16"}, 1, nullptr); };
    Strings said;
    std::string text = on_terminal("xterm", false, run); // stdout in a file
    if (text == "no terminal") SKIP("no pseudo-terminals here");
    CHECK(contents("out").starts_with("step 1/40 recipe=bf16"));
    CHECK(has(contents("out"), "step 40/40 recipe=bf16"));
    CHECK(!has(contents("out"), "\x1b"));
    text = on_terminal("dumb", true, run);
    CHECK(has(text, "step 1/40 recipe=bf16"));
    CHECK(!has(text, "\x1b"));
    text = on_terminal("xterm", true, [&] { be_quiet(), run(); });
    CHECK(text == "done recipe=bf16\r\n");
    // `./train | tee` prints each line a moment later, where rows must not stand by then
    text = on_terminal("xterm", false, [&] {
        show_rows({"bf16"}, 1, 100);
        usleep(120000);
        result("line"), show_progress({"bf16", 1, 3, 100, 300, 2, 1, 1, 10}), row_ended("bf16", 1, "done", 1, 10);
        usleep(120000);
        show_progress({"bf16", 2, 5, 100, 500, 2, 1, 1, 10});
    });
    CHECK(has(text, "waiting"));
    CHECK(text.find("waiting") == text.rfind("waiting"));
    CHECK(!has(text, "step 3/100"));
    CHECK(!has(text, "done"));
    CHECK(has(text, "step 5/100"));
}

} // namespace
