// What a run writes: its directory, the tables in it, the lines on stdout, the live line on stderr.
// - Results and `step` lines are for scripts and go to stdout; the live line, notes and errors are for people and go
//   to stderr. The live line is drawn on terminals only, `step` lines where there is no live line to read.
// - Whatever prints past result() and note() has to call clear_live() first.
// - A table is written in whole lines: a row waits in memory until flush(), and a flush that fails is taken back.
// - Numbers print with %.9g, which brings every FP32 value back; not-a-number is nan, without the sign it may have.
// - The first SIGINT or SIGTERM only asks; the second one kills.
#pragma once
#include "run/error.h"
#include "run/json.h"
#include <cstdint>
#include <string>
#include <vector>

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

std::string number(double v); // %.9g

// A new CSV file: a header line, then rows with as many cells, no quotes.
struct Csv {
    Csv(const std::string& path, const std::string& header); // an error if the file exists or cannot be written
    ~Csv();
    Csv(const Csv&) = delete;
    void row(const std::vector<std::string>& cells);
    void flush(); // the rows so far are in the file; or none of them is (disk full), and an error says so

private:
    std::string path, pending;
    size_t columns;
    int64_t whole = 0; // bytes of whole lines in the file
    int fd;
};

struct Step {           // a row of steps.csv, and the length of the run
    std::string recipe; // the ARM as given
    int64_t seed, step, steps;
    int64_t tokens; // consumed so far, this step included
    double loss;    // nats, before the update, mean over microbatches
    double norm;    // of the gradient, before clipping
    double lr, ms;
};

// The tables of a run, in an existing directory.
struct Log {
    std::string dir;
    Csv steps, evals, tensors;
    explicit Log(const std::string& dir);
    void describe(const Json& run); // run.json, before step 1
    void step(const Step& s);       // a row, and show_progress(s)
    void eval(const std::string& recipe, int64_t seed, int64_t step, int64_t tokens, double loss); // nats
};

// --- the screen --------------------------------------------------------------------------------------------------

void be_quiet();                                   // --quiet: neither progress nor notes
void result(const std::string& line);              // to stdout, whole and at once
PRINTF_LIKE(1, 2) void note(const char* fmt, ...); // to stderr, with a newline
void show_progress(const Step& s);                 // the live line, or now and then a `step` line
void clear_live();

std::string step_line(const Step& s, double tokens_per_second);
std::string eval_line(const std::string& recipe, double loss, int64_t tokens);
std::string done_line(const std::string& recipe, int64_t seed, int64_t step, double loss, const std::string& checkpoint,
                      uint64_t fingerprint);
// At most `width` characters; what matters least is left out first. `ms`: what a step takes at present.
std::string live_line(const Step& s, double smoothed_loss, double ms, int width);
bool is_line_due(int64_t step, int64_t steps); // about fifty in a run, the first and the last step among them

// Exponential moving average without the pull towards its start: the first value counts in full.
struct Average {
    double keep = 0.95, sum = 0, weight = 0;
    double add(double v) {
        sum = keep * sum + (1 - keep) * v, weight = keep * weight + (1 - keep);
        return sum / weight;
    }
};

// --- signals and fingerprints ------------------------------------------------------------------------------------

void catch_signals(); // SIGINT and SIGTERM set a flag; a second one ends the program at once
int stop_signal();    // 0, SIGINT or SIGTERM

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
