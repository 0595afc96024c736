// The other half of screen.h. Rows are drawn in one write, which goes up to the first of them and erases what follows.
#include "run/screen.h"
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <sys/ioctl.h>
#include <unistd.h>

static bool quiet = false;
static volatile sig_atomic_t drawn = 0, signal_seen = 0; // drawn: rows stand on the screen
static char erase[32];                                   // erasing() for the signal handler
static std::vector<size_t> widths;                       // of the lines drawn
static std::chrono::steady_clock::time_point last;       // when they were, or a line went into a pipe
static std::vector<Row> rows;
static int64_t all_seeds = 1, all_steps = 1;

std::string number(double v) { return std::isnan(v) ? "nan" : format("%.9g", v); }
std::string step_line(const Step& s, double tokens_per_second) {
    return format("step %lld/%lld recipe=%s seed=%lld loss=%s norm=%s lr=%s tok/s=%.0f", (long long)s.step,
                  (long long)s.steps, s.recipe.c_str(), (long long)s.seed, number(s.loss).c_str(),
                  number(s.norm).c_str(), number(s.lr).c_str(), tokens_per_second);
}
std::string eval_line(const std::string& recipe, double loss, int64_t tokens) {
    return format("eval recipe=%s loss=%s tokens=%lld", recipe.c_str(), number(loss).c_str(), (long long)tokens);
}
std::string done_line(const std::string& recipe, int64_t seed, int64_t step, double loss, const std::string& checkpoint,
                      uint64_t fingerprint) {
    return format("done recipe=%s seed=%lld step=%lld loss=%s checkpoint=%s fingerprint=%016llx", recipe.c_str(),
                  (long long)seed, (long long)step, number(loss).c_str(), checkpoint.c_str(),
                  (unsigned long long)fingerprint);
}
bool is_line_due(int64_t step, int64_t steps) {
    return step == 1 || step == steps || step % std::max<int64_t>(1, steps / 50) == 0;
}
static std::string duration(double seconds) {
    long long s = (long long)std::min(std::max(0.0, seconds) + 0.5, 1e12);
    if (s >= 86400) return format("%lldd %02lldh", s / 86400, s / 3600 % 24);
    return s >= 3600 ? format("%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60)
                     : format("%lld:%02lld", s / 60, s % 60);
}
static int columns(const std::string& s) { // on the screen: bytes of UTF-8 that begin a character
    return (int)std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xc0) != 0x80; });
}
std::vector<std::string> row_lines(const std::vector<Row>& rows, int64_t seeds, int64_t steps, int width, int height,
                                   bool utf8) {
    enum { NAME, CURVE, LOSS, RATE, LEFT, SEED, STATE, CELLS };
    std::vector<std::vector<std::string>> cells;
    int n = (int)rows.size(), most = std::max(8, width / 5), wide[CELLS] = {}, active = 0, room = width;
    int64_t runs = n * seeds, ended = 0, timed = 0;
    float low = INFINITY, high = -INFINITY;
    double ms = 0, left = 0; // of a step of each row that tells; until all have ended
    for (const Row& r : rows) ms += r.ms, timed += r.ms > 0;
    for (const Row& r : rows) {
        long long step = (long long)r.curve.size(), seed = r.ended + r.running;
        if (r.running || (seed && !rows[active].running)) active = (int)cells.size();
        std::string name = r.recipe;
        if ((int)name.size() > most) name.replace(most / 2, name.size() - most + 2, ".."); // arms differ at the end
        cells.push_back({name, "", step ? format(r.curve.back() < 1e4f ? "%.4f" : "%.3g", r.curve.back()) : "",
                         r.rate > 0 ? format("%.0f tok/s", r.rate) : "",
                         r.running ? duration((double)(steps - step) * r.ms / 1e3) + " left" : "",
                         seeds > 1 && seed ? format("seed %lld/%lld", seed, (long long)seeds) : "", r.state});
        for (int k = 0; k < CELLS; k++) wide[k] = std::max(wide[k], (int)cells.back()[k].size());
        float start = NAN; // the first that is known
        for (float v : r.curve)
            if (std::isfinite(v)) low = std::min(low, v), start = std::isnan(start) ? v : start;
        high = fmaxf(high, start), ended += r.ended;
        left += (double)((seeds - r.ended) * steps - r.running * step) * (r.ms > 0 || !timed ? r.ms : ms / timed) / 1e3;
    }
    for (int w : wide) room -= w ? w + 2 : 0;
    for (int k : {RATE, SEED, LOSS, LEFT})
        if (room < 10 && wide[k]) room += wide[k] + 2, wide[k] = 0;
    wide[CURVE] = room < 6 ? 0 : (int)std::min<int64_t>({room, steps, 80});
    bool more = runs > 1 && ended < runs && height > 1;
    int shown = std::min(n, std::max(1, height - more)), first = std::clamp(active - shown / 2, 0, n - shown);
    std::vector<std::string> lines;
    for (int i = first; i < first + shown; i++) {
        const std::vector<float>& curve = rows[i].curve;
        for (int64_t k = 0; k < wide[CURVE] && k * steps / wide[CURVE] < (int64_t)curve.size(); k++) {
            size_t end = std::min((size_t)((k + 1) * steps / wide[CURVE]), curve.size()); // of the steps in cell k
            float v = curve[end - 1], t = high > low ? std::clamp((v - low) / (high - low), 0.0f, 1.0f) : 0;
            int level = std::isnan(v) ? 0 : (int)lroundf(7 * sqrtf(t)) + 1;
            cells[i][CURVE] +=
                utf8 && level ? std::string("▁▂▃▄▅▆▇█").substr(3 * level - 3, 3) : std::string(1, " .:-=+*#@"[level]);
        }
        std::string& line = lines.emplace_back();
        for (int k = 0; k < CELLS; k++) {
            const std::string &s = cells[i][k], pad((size_t)std::max(0, wide[k] - columns(s)), ' ');
            if (wide[k]) line += k == LOSS || k == RATE || k == LEFT ? pad + s + "  " : k == STATE ? s : s + pad + "  ";
        }
    }
    if (more)
        lines.push_back(format("%lld of %lld runs ended", (long long)ended, (long long)runs) +
                        (timed ? ", " + duration(left) + " left in all" : ""));
    for (auto& line : lines)
        if (columns(line) > width) line.resize((size_t)std::max(width, 0)); // so narrow that it has no curve
    return lines;
}

// --- the screen --------------------------------------------------------------------------------------------------

static winsize window() { // no columns: nothing to draw on
    winsize size = {};
    const char* term = getenv("TERM");
    if (quiet || !term || !*term || strcmp(term, "dumb") == 0 || ioctl(STDERR_FILENO, TIOCGWINSZ, &size) != 0)
        return {};
    return size.ws_col && size.ws_row ? size : winsize{24, 80, 0, 0};
}
int screen_width() {
    winsize size = {};
    return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 100;
}
static bool has_utf8() {
    const char* v = nullptr;
    for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"}) v = v && *v ? v : getenv(name);
    return v && (strcasestr(v, "utf-8") || strcasestr(v, "utf8"));
}
static std::string erasing() { // what was drawn; a terminal that has become narrower has broken its lines
    size_t up = 0, width = std::max<size_t>(1, window().ws_col);
    for (size_t w : widths) up += std::max<size_t>(1, (w + width - 1) / width);
    return up > 1 ? format("\r\x1b[%zuA\x1b[J", up - 1) : "\r\x1b[J";
}
static void refresh(bool at_once) {
    auto now = std::chrono::steady_clock::now();
    winsize w = window(); // of its columns three are for the ^C that a terminal shows
    if (signal_seen || rows.empty() || !w.ws_col) return;
    if (now - last < std::chrono::milliseconds(100) && !(at_once && isatty(STDOUT_FILENO))) return;
    if (!drawn) widths.clear();
    std::string text = erasing();
    last = now, widths.clear();
    drawn = 0;
    for (auto& line : row_lines(rows, all_seeds, all_steps, w.ws_col - 3, std::max(1, w.ws_row - 1), has_utf8()))
        text += (widths.empty() ? "" : "\n") + line, widths.push_back((size_t)columns(line));
    strcpy(erase, erasing().c_str());
    fputs(text.c_str(), stderr);
    drawn = 1;
    if (signal_seen) clear_live(); // it came while we were drawing
}
void clear_live(bool keep) {
    if (!drawn) return;
    drawn = 0; // from here on a signal leaves it to us
    fputs(keep ? "\n" : erasing().c_str(), stderr);
}
static void print(FILE* to, const std::string& line) {
    bool again = drawn;
    clear_live();
    if ((fputs((line + "\n").c_str(), to) < 0 || fflush(to) != 0) && to == stdout)
        fail("cannot write to standard output: %s", strerror(errno));
    if (!isatty(fileno(to))) last = std::chrono::steady_clock::now(); // `| tee` prints it where rows would stand
    if (again) refresh(true);
}
void be_quiet() { quiet = true; }
void result(const std::string& line) { print(stdout, line); }
void note(const char* fmt, ...) {
    if (quiet) return;
    va_list ap;
    va_start(ap, fmt);
    print(stderr, vformat(fmt, ap));
    va_end(ap);
}

static Row& row_of(const std::string& recipe) {
    auto r = std::find_if(rows.begin(), rows.end(), [&](auto& r) { return r.recipe == recipe; });
    return r < rows.end() ? *r : rows.emplace_back(Row{recipe});
}
void show_rows(const std::vector<std::string>& recipes, int64_t seeds, int64_t steps) {
    rows.clear(), all_seeds = seeds, all_steps = steps;
    for (auto& recipe : recipes) row_of(recipe);
    refresh(true);
}
void show_progress(const Step& s) {
    Row& r = row_of(s.recipe);
    if (!r.running || r.seed != s.seed || s.step <= (int64_t)r.curve.size()) r = {s.recipe, "", true, s.seed, r.ended};
    all_steps = s.steps, r.state = format("step %lld/%lld", (long long)s.step, (long long)s.steps);
    r.curve.resize((size_t)s.step - 1, NAN);
    r.curve.push_back(std::isnan(s.loss) ? INFINITY : (float)r.losses.add(s.loss));
    r.ms = r.times.add(s.ms), r.rate = r.ms > 0 ? (double)s.tokens / (double)s.step / r.ms * 1e3 : 0;
    bool due = is_line_due(s.step, s.steps) && !(window().ws_col && isatty(STDOUT_FILENO));
    if (due && !quiet && !signal_seen) result(step_line(s, r.rate));
    refresh(s.step == s.steps);
}
void row_ended(const std::string& recipe, int64_t seed, const std::string& outcome, double loss, double ms) {
    Row& r = row_of(recipe);
    if (!r.running || r.seed != seed) r = {recipe, "", false, seed, r.ended, {}, ms};
    r.state = outcome != "done" ? outcome : format("done, val %.4f", loss);
    if (outcome != "done" && !r.curve.empty()) r.state += format(" at step %zu", r.curve.size());
    r.running = false, r.ended++;
    refresh(true);
}
static void on_signal(int sig) { // may only do what is safe at any moment
    signal_seen = sig;
    signal(SIGINT, SIG_DFL), signal(SIGTERM, SIG_DFL);
    if (drawn && write(STDERR_FILENO, erase, strlen(erase)) > 0) drawn = 0;
}
static void on_continue(int) { drawn = 0; } // after Ctrl-Z and fg the rows stand somewhere above
void catch_signals() { signal(SIGINT, on_signal), signal(SIGTERM, on_signal), signal(SIGCONT, on_continue); }
int stop_signal() { return signal_seen; }
