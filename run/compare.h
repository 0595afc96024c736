// What a comparison found, from the tables in its run directories; the closing table and the report both show it.
// - Arms are paired: d = loss(recipe, seed) - loss(baseline, seed), of seeds on which both were trained to the end.
//   Positive is worse. Nats, or percent of the baseline's mean loss on those seeds; losses are final validation losses.
// - An interval here is the 90 % t interval of the mean d: wholly inside +-0.25 % is what two one-sided tests at 5 %
//   would accept as equivalent. "It contains 0" is no evidence of equivalence; then the verdict is unresolved.
// - A seed that diverged is counted and never dropped: diverging where the baseline did not makes a recipe worse,
//   whatever the other seeds say.
// - NAN (null in JSON) is what is not known: not measured, not trained that far, or no interval from one seed.
// - Tables may belong to a run that is still writing, or was killed: their last line counts if a newline ends it.
#pragma once
#include "run/json.h"
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

// A CSV file without quotes. Errors name the file and the line, counted from 1.
struct Table {
    std::string path;
    std::vector<std::string> columns;
    std::vector<std::vector<std::string>> rows;               // rows[r] is line r + 2, with as many cells as columns
    size_t column(const std::string& name) const;             // an error if there is none
    double number(size_t row, const std::string& name) const; // nan and inf are numbers; an empty cell is none
    const std::string& text(size_t row, const std::string& name) const { return rows[row][column(name)]; }
};
Table read_table(const std::string& path);

struct Interval {
    int n = 0;
    double mean = NAN, sd = NAN, low = NAN, high = NAN; // all but the mean need n > 1
};
double t_quantile(double p, double df); // of Student's t, 0 < p < 1
Interval t_interval(const std::vector<double>& values, double confidence);
// The smallest true mean, in standard deviations of a difference, that a two-sided paired t test finds with this power.
double detectable_effect(int n, double power = 0.8, double alpha = 0.05);
// equivalent (wholly inside +-bound), else better or worse (excludes 0), else unresolved; one seed: no interval.
std::string verdict_of(const Interval& difference, double bound);

struct SeedResult { // of one arm, a recipe with one seed
    int64_t seed = 0;
    std::string outcome = "not finished"; // or done, diverged
    int64_t step = 0;                     // reached so far
    double loss = NAN, difference = NAN;  // nats; only if done, and for d the baseline too
    double ms = NAN;                      // median of its steps
    std::string fingerprint;
};
struct Checkpoint {
    int percent = 0; // of the steps
    int64_t step = 0;
    Interval nats, relative; // of d there; relative in percent
    bool complete = false;   // all seeds got there, with the baseline
};
struct Worst { // of all layers, operands, steps and seeds
    double percent = NAN;
    std::string layer, operand;
    int64_t seed = 0, step = 0;
};
struct RecipeResult {
    std::string recipe; // the ARM as given
    bool emulated = true;
    std::string why; // emulated, or native
    std::vector<SeedResult> seeds;
    int done = 0, diverged = 0;
    double loss = NAN;          // mean of those done
    double baseline_loss = NAN; // mean of the baseline on the seeds of d
    Interval nats, relative;    // of d; relative in percent
    std::string verdict; // of verdict_of, "baseline", "no baseline" or "not finished (64 %)"; "(2 of 5 diverged)" too
    bool inside_half = false;        // wholly inside +-0.5 %, the bound that vendors usually quote
    double detectable = NAN;         // nats: detectable_effect(n) of this recipe's sd
    std::vector<Checkpoint> horizon; // 10, 25, 50, 75, 90, 100 %
    double gradient_error = NAN, cosine = NAN, mean_error = NAN; // of dW against FP32, fractions, mean over seeds
    double worst_gradient_error = NAN;                           // of the layer where it is largest
    std::string worst_gradient_layer;
    Worst underflow, saturation;
    std::vector<std::pair<std::string, int64_t>> memory; // what for, bytes
    double tokens_per_second = NAN, speedup = NAN,
           cost = NAN; // only native; over a native baseline; per million tokens
};
struct Comparison {
    std::vector<std::string> dirs;
    std::string baseline, noise_floor; // recipes; noise_floor: the A/A arm, "" without one
    int64_t steps = 0;
    size_t seeds = 0;                  // the most that any recipe was given
    double noise = NAN;                // nats: the largest |d| of the A/A arm's seeds
    double price = 0;                  // of a GPU hour, 0: not told
    std::vector<RecipeResult> recipes; // in the order given, the baseline first and the A/A arm last
    const RecipeResult* find(const std::string& recipe) const;
};

// One directory, or several with other recipes or seeds of the same experiment. What is malformed, or does not belong
// together, is an error that names the file and the line, or the first option that differs.
Comparison compare(const std::vector<std::string>& dirs);
// The tables and sentences that close a comparison: no line longer than `width` (at least 60), newline at the end.
std::string comparison_text(const Comparison& c, int width);
Json comparison_json(const Comparison& c); // every member above, under its name
