// The other half of log.h.
#include "run/log.h"
#include <cerrno>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <filesystem>
#include <sys/file.h>
#include <unistd.h>

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

// --- the tables of a run -------------------------------------------------------------------------------------------
RunLock::RunLock(const std::string& dir) : fd(open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    if (fd < 0) fail("%s: cannot open: %s", dir.c_str(), strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) return;
    close(fd);
    fail("%s: another process is writing this run", dir.c_str());
}
RunLock::~RunLock() { close(fd); }
static Keep before(const Keep& keep) {
    if (!keep) return nullptr;
    return [keep](const std::string& recipe, int64_t seed, int64_t step) { return keep(recipe, seed, step + 1); };
}
Log::Log(const std::string& dir, const Keep& keep)
    : dir(dir), steps(dir + "/steps.csv", "recipe,seed,step,tokens,loss,grad_norm,lr,ms", keep),
      evals(dir + "/evals.csv", "recipe,seed,step,tokens,loss", before(keep)),
      tensors(dir + "/tensors.csv",
              "recipe,seed,step,layer,operand,format,amax,scale,underflow,saturation,sqnr_db,bias", keep),
      arms(dir + "/arms.csv", "recipe,seed,outcome,step,loss,fingerprint,ms", before(keep)) {}
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

void Log::sync() { steps.sync(), evals.sync(), tensors.sync(); }
void Log::end(const ArmEnd& e) {
    sync();
    arms.row({e.recipe, std::to_string(e.seed), e.outcome, std::to_string(e.step), number(e.loss), hex16(e.fingerprint),
              number(e.ms)});
    arms.flush(), arms.sync();
    row_ended(e.recipe, e.seed, e.outcome, e.loss, e.ms);
}
std::vector<ArmEnd> read_ends(const std::string& path) {
    std::vector<ArmEnd> ends;
    if (!std::filesystem::exists(path) || std::filesystem::file_size(path) == 0) return ends;
    Table t = read_table(path);
    for (size_t r = 0; r < t.rows.size(); r++)
        ends.push_back({t.text(r, "recipe"), t.whole(r, "seed"), t.text(r, "outcome"),
                        t.whole(r, "step"), t.number(r, "loss"),
                        strtoull(t.text(r, "fingerprint").c_str(), nullptr, 16), t.number(r, "ms")});
    return ends;
}
