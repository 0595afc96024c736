// What a run leaves: its directory and the tables in it. What it shows is in screen.h.
// - Numbers print with %.9g, which brings every FP32 value back; not-a-number is nan, without the sign it may have.
#pragma once
#include "run/files.h"
#include "run/json.h"
#include "run/screen.h"
#include "run/table.h"

// --- the run's directory -----------------------------------------------------------------------------------------

// Creates the directory, parents included, and returns its name; an empty `out` is runs/<UTC time>, with -2, -3, .. if
// that is taken. An error if `out` holds a run already or cannot be created.
std::string make_run_dir(const std::string& out);

// An ARM's text as a file name of [A-Za-z0-9._=-]: - for what is not among them, and a hash at the end unless it was
// only colons. Different arms have different names.
std::string safe_name(const std::string& arm);
// DIR/ARM-sSEED/step-NNNNNN, with ARM as given.
std::string checkpoint_dir(const std::string& dir, const std::string& arm, int64_t seed, int64_t step);

// --- tables ------------------------------------------------------------------------------------------------------

struct ArmEnd { // a row of arms.csv
    std::string recipe;
    int64_t seed;
    std::string outcome; // done or diverged
    int64_t step;        // the last one
    double loss;         // of the validation data at the end; NaN if it diverged
    uint64_t fingerprint;
    double ms; // of a step, the median
};
std::vector<ArmEnd> read_ends(const std::string& path); // without a line that was cut off; no file: none

// Nobody else writes a run while this lives: taken before anything in its directory is read or written.
struct RunLock {
    int fd;
    explicit RunLock(const std::string& dir);
    RunLock(const RunLock&) = delete;
    ~RunLock();
};
// The tables of a run, in an existing directory.
struct Log {
    std::string dir;
    Csv steps, evals, tensors, arms;
    // With `keep` the tables are there. The evaluation of a checkpoint's step, and whether that ends its arm, come after
    // it, and so again.
    explicit Log(const std::string& dir, const Keep& keep = nullptr);
    void step(const Step& s); // a row, and show_progress(s)
    void eval(const std::string& recipe, int64_t seed, int64_t step, int64_t tokens, double loss); // nats
    void sync();               // what was written outlives the machine
    void end(const ArmEnd& e); // a row of arms.csv: all rows of the arm are on the disk by then
};
