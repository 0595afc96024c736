// What a comparison found, from the tables in its run directories; the closing table and the report both show it.
// - Arms are paired: d = loss(recipe, seed) - loss(baseline, seed) at the end, over seeds on which both got there.
//   Positive is worse. "nats" is d, "relative" is d in percent of the baseline's mean loss on the same seeds.
// - Intervals are 90 % t intervals of the mean d: wholly inside +-0.25 % is what two one-sided tests at 5 % accept as
//   equivalent. An interval that merely contains 0 is no evidence of equivalence: the verdict is unresolved.
// - A seed that diverged is counted and never dropped: diverging where the baseline did not makes a recipe worse,
//   whatever the other seeds say.
// - NAN (null in JSON) is what is not known: not measured, not trained that far, or no interval from one seed.
// - Tables may belong to a run that is still writing, or was killed: their last line counts if a newline ends it.
#pragma once
#include "run/json.h"
#include "run/table.h"
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

// Where the horizon of a run is looked at, in percent of its steps, and the step that it is.
constexpr int CHECKPOINTS[] = {10, 25, 50, 75, 90, 100};
constexpr int64_t step_at(int64_t steps, int percent) { return (steps * percent + 50) / 100; }

struct Interval {
    int n = 0;
    double mean = NAN, sd = NAN, low = NAN, high = NAN; // all but the mean need n > 1
    operator Json() const;
};
double t_quantile(double p, double df); // of Student's t; 0 < p < 1, df >= 1
Interval t_interval(const std::vector<double>& values, double confidence);
// The true mean of n differences, in their standard deviations, that a two-sided t test finds with this power:
// (t(1 - alpha/2) + t(power)) / sqrt(n). By the noncentral t the power is then 0.77 for n = 3, 0.79 for 5, 0.80 from 8.
double detectable_effect(int n, double power = 0.8, double alpha = 0.05);
// equivalent (wholly inside +-bound), else better or worse (excludes 0), else unresolved; or one seed: no interval.
std::string verdict_of(const Interval& difference, double bound);

struct SeedResult {                      // of one recipe with one seed
    int64_t seed = 0, step = 0;          // step: reached so far
    std::string outcome;                 // done, diverged or not finished
    double loss = NAN, difference = NAN; // nats, if done; and if the baseline is, too
    double ms = NAN;                     // median of its steps
    std::string fingerprint;
    std::map<int64_t, double> evals; // validation loss by step
    size_t dir = 0;                  // which directory it is from
    operator Json() const;
};
struct Checkpoint {
    int percent = 0; // of the steps
    int64_t step = 0;
    Interval nats, relative;
    bool complete = false; // all seeds got there, with the baseline
    operator Json() const;
};
struct Worst { // of all layers, operands, steps and seeds
    double percent = NAN;
    std::string layer, operand;
    int64_t seed = 0, step = 0;
    operator Json() const;
};
struct RecipeResult {
    std::string recipe, why;              // the ARM as given; why it is emulated, or native
    bool emulated = false, casts = false; // casts: some operand, in some stage
    std::vector<SeedResult> seeds;
    int done = 0, diverged = 0;
    double loss = NAN, baseline_loss = NAN; // means: of those done; of the baseline on the seeds of d
    Interval nats, relative;
    std::string verdict;      // verdict_of's, baseline, no baseline or not finished (64 %); "(2 of 5 diverged)" too
    bool inside_half = false; // the interval is inside +-0.5 %, the bound that vendors usually quote
    double detectable = NAN;  // nats: detectable_effect(n) of this recipe's sd
    std::vector<Checkpoint> horizon;                             // 10, 25, 50, 75, 90, 100 %
    double gradient_error = NAN, cosine = NAN, mean_error = NAN; // of dW against FP32, fractions, means over seeds
    double worst_gradient_error = NAN;
    std::string worst_gradient_layer;
    Worst underflow, saturation;
    std::map<std::string, int64_t> memory; // bytes by purpose
    double mfu = NAN; // model FLOPs, 6 N + 6 L C T a token, over the device's BF16 peak, if run.json knows it
    double tokens_per_second = NAN, speedup = NAN, cost = NAN; // if native: over a native baseline; per million tokens
    operator Json() const;
};
struct Comparison {
    std::vector<std::string> dirs;
    std::string changes; // options that were changed on the way, by --resume --override; "" if none
    std::string baseline, noise_floor; // recipes; the baseline of the first directory; the A/A arm, "" without one
    int64_t steps = 0, seeds = 0;      // seeds: the most that any recipe was given
    double noise = NAN, price = 0;     // nats, the largest |d| of the A/A arm; price of a GPU hour, 0: not told
    std::vector<RecipeResult> recipes; // in the order given, but the baseline first and the A/A arm last
    const RecipeResult* find(const std::string& recipe) const;
};

// One directory, or several with other recipes or seeds of the same experiment. What is malformed, or does not belong
// together, is an error that names the file and the line, or the first option that differs.
Comparison compare(const std::vector<std::string>& dirs, double price = 0); // 0: what the runs were told
// The tables and sentences that close a comparison: lines of at most `width` (60 or more), each with its newline.
std::string comparison_text(const Comparison& c, int width);
Json comparison_json(const Comparison& c); // every member above but evals, under its name
