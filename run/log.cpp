// The other half of log.h: files, lines, the live line, signals, the fingerprint.
#include "run/log.h"
#include "run/files.h"
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <filesystem>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utility>

// --- the run's directory -----------------------------------------------------------------------------------------

std::string make_run_dir(const std::string& out) {
    std::error_code error;
    for (const char* name : {"run.json", "steps.csv", "evals.csv", "tensors.csv"})
        if (!out.empty() && std::filesystem::exists(out + "/" + name, error))
            fail("--out %s: a run is there already (it has a %s). hint: choose another --out DIR", out.c_str(), name);
    std::string dir = out.empty() ? "runs" : out;
    std::filesystem::create_directories(dir, error);
    char stamp[32];
    time_t now = time(nullptr);
    strftime(stamp, sizeof stamp, "runs/%Y%m%d-%H%M%S", gmtime(&now));
    for (int n = 1; out.empty() && !error; n++) { // whoever creates the directory owns it
        dir = stamp + (n > 1 ? "-" + std::to_string(n) : "");
        if (std::filesystem::create_directory(dir, error)) break;
    }
    if (error)
        fail("cannot create %s: %s. hint: choose another place with --out DIR", dir.c_str(), error.message().c_str());
    return dir;
}

std::string safe_name(const std::string& arm) {
    std::string name;
    bool exact = arm.size() <= 100;
    for (char c : arm.substr(0, 100)) {
        bool keep = isalnum((unsigned char)c) || strchr("._=", c);
        exact &= keep || c == ':';
        name += keep ? c : '-';
    }
    Fingerprint f;
    f.add(arm.data(), arm.size());
    return exact ? name : name + format("-%08x", (unsigned)f.value());
}
std::string checkpoint_dir(const std::string& dir, const std::string& arm, int64_t seed, int64_t step) {
    return dir + format("/%s-s%lld/step-%06lld", safe_name(arm).c_str(), (long long)seed, (long long)step);
}

// --- tables ------------------------------------------------------------------------------------------------------

std::string number(double v) { return std::isnan(v) ? "nan" : format("%.9g", v); }

[[noreturn]] static void cannot_write(const std::string& path, int why) {
    fail("cannot write %s: %s. hint: make room, or choose another place with --out DIR", path.c_str(), strerror(why));
}
Csv::Csv(const std::string& path, const std::string& header) : path(path), pending(header + "\n") {
    columns = (size_t)std::count(header.begin(), header.end(), ',') + 1;
    fd = open(path.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) cannot_write(path, errno);
    flush();
}
Csv::~Csv() { close(fd); }
void Csv::row(const std::vector<std::string>& cells) {
    if (cells.size() != columns) fail("%s: %zu cells for %zu columns", path.c_str(), cells.size(), columns);
    for (size_t i = 0; i < columns; i++) {
        if (cells[i].find_first_of(",\"\r\n") < cells[i].size())
            fail("%s: the cell %s would need quotes", path.c_str(), quote(cells[i]).c_str());
        pending += cells[i] + (i + 1 < columns ? "," : "\n");
    }
}
void Csv::flush() {
    for (std::string text = std::exchange(pending, ""); !text.empty();) {
        ssize_t n = write(fd, text.data(), text.size());
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            int why = errno;
            if (ftruncate(fd, whole) != 0) note("%s may end in half a line", path.c_str());
            cannot_write(path, why);
        }
        text.erase(0, (size_t)n);
    }
    whole = lseek(fd, 0, SEEK_END);
}

Log::Log(const std::string& dir)
    : dir(dir), steps(dir + "/steps.csv", "recipe,seed,step,tokens,loss,grad_norm,lr,ms"),
      evals(dir + "/evals.csv", "recipe,seed,step,tokens,loss"),
      tensors(dir + "/tensors.csv",
              "recipe,seed,step,layer,operand,format,amax,scale,underflow,saturation,sqnr_db,bias") {}
void Log::describe(const Json& run) { write_file(dir + "/run.json", run.dump(2) + "\n"); }
void Log::step(const Step& s) {
    auto text = [](int64_t v) { return std::to_string(v); };
    steps.row({s.recipe, text(s.seed), text(s.step), text(s.tokens), number(s.loss), number(s.norm), number(s.lr),
               number(s.ms)});
    steps.flush();
    show_progress(s);
}
void Log::eval(const std::string& recipe, int64_t seed, int64_t step, int64_t tokens, double loss) {
    evals.row({recipe, std::to_string(seed), std::to_string(step), std::to_string(tokens), number(loss)});
    evals.flush();
}

// --- the screen --------------------------------------------------------------------------------------------------

static bool quiet = false;
static volatile sig_atomic_t drawn = 0; // the live line stands on the screen
static const char erase[] = "\r\x1b[K";

static bool can_draw() {
    const char* term = getenv("TERM");
    return isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb") != 0;
}
void be_quiet() { quiet = true; }
void clear_live() {
    if (drawn) fputs(erase, stderr);
    drawn = 0;
}
void result(const std::string& line) {
    clear_live();
    if (fputs((line + "\n").c_str(), stdout) < 0 || fflush(stdout) != 0)
        fail("cannot write to standard output: %s", strerror(errno));
}
void note(const char* fmt, ...) {
    if (quiet) return;
    clear_live();
    va_list ap;
    va_start(ap, fmt);
    fputs((vformat(fmt, ap) + "\n").c_str(), stderr);
    va_end(ap);
}

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

static std::string duration(double seconds) {
    long long s = (long long)std::min(std::max(0.0, seconds) + 0.5, 1e12);
    if (s >= 86400) return format("%lldd %02lldh", s / 86400, s / 3600 % 24);
    return s >= 3600 ? format("%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60)
                     : format("%lld:%02lld", s / 60, s % 60);
}
static double rate(const Step& s, double ms) { return ms > 0 ? (double)s.tokens / (double)s.step / ms * 1e3 : 0; }

std::string live_line(const Step& s, double smoothed_loss, double ms, int width) {
    std::string parts[] = {
        format("%.24s seed %lld", s.recipe.c_str(), (long long)s.seed),
        format("step %lld/%lld", (long long)s.step, (long long)s.steps),
        format("loss %.4f", s.loss),
        format("smooth %.4f", smoothed_loss),
        format("%.0f tok/s", rate(s, ms)),
        duration((double)(s.steps - s.step) * ms / 1e3) + " left",
    };
    auto joined = [&] {
        std::string line;
        for (auto& p : parts) line += (line.empty() || p.empty() ? "" : "  ") + p;
        return line;
    };
    for (int least : {4, 0, 3, 5, 2})
        if ((int)joined().size() > width) parts[least].clear();
    return joined().substr(0, (size_t)std::max(width, 0));
}
bool is_line_due(int64_t step, int64_t steps) {
    return step == 1 || step == steps || step % std::max<int64_t>(1, steps / 50) == 0;
}

void show_progress(const Step& s) {
    static std::string arm;
    static Average loss, ms;
    static std::chrono::steady_clock::time_point last;
    std::string now_arm = s.recipe + " " + std::to_string(s.seed);
    if (arm != now_arm) arm = now_arm, loss = {}, ms = {};
    double smoothed = loss.add(s.loss), recent = ms.add(s.ms);
    if (quiet || stop_signal()) return;
    bool live = can_draw();
    if (!(live && isatty(STDOUT_FILENO)) && is_line_due(s.step, s.steps)) result(step_line(s, rate(s, recent)));
    auto now = std::chrono::steady_clock::now();
    if (!live || (drawn && s.step < s.steps && now - last < std::chrono::milliseconds(100))) return;
    last = now;
    winsize size = {};
    int width = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
    fputs((erase + live_line(s, smoothed, recent, width - 1)).c_str(), stderr); // the last column would wrap
    drawn = 1;
}

// --- signals -----------------------------------------------------------------------------------------------------

static volatile sig_atomic_t signal_seen = 0;
static void on_signal(int sig) { // may only do what is safe at any moment
    signal_seen = sig;
    signal(SIGINT, SIG_DFL), signal(SIGTERM, SIG_DFL);
    if (drawn && write(STDERR_FILENO, erase, sizeof erase - 1) > 0) drawn = 0;
}
void catch_signals() { signal(SIGINT, on_signal), signal(SIGTERM, on_signal); }
int stop_signal() { return signal_seen; }

// --- fingerprint -------------------------------------------------------------------------------------------------

// Odd, so that multiplying by them is a bijection: the fractions of the golden ratio and of the square root of 2.
static constexpr uint64_t K1 = 0x9E3779B97F4A7C15, K2 = 0x6A09E667F3BCC909;

static void absorb(uint64_t* lanes, const unsigned char* block) { // 32 bytes, as four little-endian words
    for (int i = 0; i < 4; i++) {
        uint64_t word;
        memcpy(&word, block + 8 * i, 8);
        word = lanes[i] ^ word * K1;
        lanes[i] = (word << 31 | word >> 33) * K2;
    }
}
void Fingerprint::add(const void* data, size_t bytes) {
    auto p = (const unsigned char*)data, end = p + bytes;
    for (; p < end && count % 32; count++) {
        tail[count % 32] = *p++;
        if (count % 32 == 31) absorb(lanes, tail);
    }
    uint64_t local[4] = {lanes[0], lanes[1], lanes[2], lanes[3]};
    for (; end - p >= 32; p += 32, count += 32) absorb(local, p);
    std::copy(local, local + 4, lanes);
    for (; p < end; count++) tail[count % 32] = *p++;
}
uint64_t Fingerprint::value() const {
    Fingerprint f = *this;
    std::fill(f.tail + count % 32, f.tail + 32, 0);
    absorb(f.lanes, f.tail);
    uint64_t h = count * K2;
    for (uint64_t lane : f.lanes) h = (h ^ lane ^ h >> 32) * K1, h ^= h >> 29;
    return h;
}
