// What a run shows: lines on stdout and, on a terminal, rows below them that are redrawn in place, one per recipe.
// - Results and `step` lines are for scripts and go to stdout; rows, notes and errors are for people and go to stderr.
//   Rows are drawn on terminals only, `step` lines where stdout is none.
// - Whatever prints past result() and note() has to call clear_live() first.
// - All curves share one scale, from the lowest loss of any to the highest that one starts at. Heights are square
//   roots, without which they would all soon lie on the floor.
#pragma once
#include "run/error.h"
#include <cstdint>
#include <string>
#include <vector>

struct Step {           // a row of steps.csv, and the length of the run
    std::string recipe; // the ARM as given
    int64_t seed, step, steps;
    int64_t tokens; // consumed so far, this step included
    double loss;    // nats, before the update, mean over microbatches
    double norm;    // of the gradient, before clipping
    double lr, ms;
};
std::string number(double v); // %.9g
std::string step_line(const Step& s, double tokens_per_second);
std::string eval_line(const std::string& recipe, double loss, int64_t tokens);
std::string done_line(const std::string& recipe, int64_t seed, int64_t step, double loss, const std::string& checkpoint,
                      uint64_t fingerprint);
bool is_line_due(int64_t step, int64_t steps); // about fifty in a run, the first and the last step among them

void be_quiet();                                   // --quiet: neither progress nor notes
void result(const std::string& line);              // to stdout, whole and at once
PRINTF_LIKE(1, 2) void note(const char* fmt, ...); // to stderr, with a newline
// What is going to be trained: each recipe, once per seed. A recipe that is not among them adds a row.
void show_rows(const std::vector<std::string>& recipes, int64_t seeds, int64_t steps);
void show_progress(const Step& s); // in its row, and now and then as a `step` line
// The recipe has ended on this seed, now or before the run was resumed. outcome: done or diverged; loss: of the
// validation data; ms: of a step.
void row_ended(const std::string& recipe, int64_t seed, const std::string& outcome, double loss, double ms);
void clear_live(bool keep = false); // off the screen until the next step; keep: left standing above what follows
int screen_width();                 // columns of the terminal that results go to; 100 if they go elsewhere
void catch_signals();               // SIGINT and SIGTERM set a flag; a second one ends the program at once
int stop_signal();                  // 0, SIGINT or SIGTERM

struct Average { // exponential, without the pull towards its start: the first value counts in full
    double keep = 0.95, sum = 0, weight = 0;
    double add(double v) { return (sum = keep * sum + (1 - keep) * v) / (weight = keep * weight + (1 - keep)); }
};
struct Row { // a recipe, on the seed that it trains or trained last
    std::string recipe, state = "waiting";
    bool running = false;
    int64_t seed = 0, ended = 0;   // seeds that have ended
    std::vector<float> curve = {}; // smoothed loss after each step; NaN: not known
    double ms = 0, rate = 0;       // of a step at present; tokens per second
    Average losses = {}, times = {};
};
// Rows as at most `height` lines of at most `width` characters, around the row that runs; unless there is just one
// recipe and seed, the last line is about all of them. What matters least is left out first.
std::vector<std::string> row_lines(const std::vector<Row>& rows, int64_t seeds, int64_t steps, int width, int height,
                                   bool utf8);
