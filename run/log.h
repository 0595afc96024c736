// What a run leaves: its directory and the tables in it. What it shows is in screen.h.
// - A table is written in whole lines: a row waits in memory until flush(), and a flush that fails is taken back.
// - Numbers print with %.9g, which brings every FP32 value back; not-a-number is nan, without the sign it may have.
#pragma once
#include "run/json.h"
#include "run/screen.h"
#include <set>

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

// Which rows of an interrupted run's tables stay: (recipe, seed) of the arms that have ended.
using Ended = std::set<std::pair<std::string, int64_t>>;

// A CSV file: a header line, then rows with as many cells, no quotes.
struct Csv {
    // An error if the file cannot be written, or exists; with `ended` it exists, and all other rows are taken out.
    Csv(const std::string& path, const std::string& header, const Ended* ended = nullptr);
    ~Csv();
    Csv(const Csv&) = delete;
    void row(const std::vector<std::string>& cells);
    void sync();  // what has been flushed outlives the machine
    void flush(); // the rows so far are in the file; or none of them is (disk full), and an error says so

private:
    std::string path, pending;
    size_t columns;
    int64_t whole = 0; // bytes of whole lines in the file
    int fd;
};

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

// The tables of a run, in an existing directory.
struct Log {
    std::string dir;
    int lock; // of the directory: nobody else writes this run
    Csv steps, evals, tensors, arms;
    explicit Log(const std::string& dir, const Ended* ended = nullptr);
    ~Log();
    void step(const Step& s); // a row, and show_progress(s)
    void eval(const std::string& recipe, int64_t seed, int64_t step, int64_t tokens, double loss); // nats
    void end(const ArmEnd& e); // a row of arms.csv: all rows of the arm are on the disk by then
};

// --- fingerprints ------------------------------------------------------------------------------------------------

// A 64-bit hash of a stream of bytes, the same however the stream is cut into add()s. Every step of it is a bijection
// of the word it takes in, so that a change within one 8-byte word always changes the value. Not cryptographic.
struct Fingerprint {
    void add(const void* data, size_t bytes);
    uint64_t value() const;

private:
    uint64_t lanes[4] = {1, 2, 3, 4};
    unsigned char tail[32] = {};
    uint64_t count = 0;
};
