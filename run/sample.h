// From logits to the next token.
#pragma once
#include <cstdint>
#include <vector>

// How the next token is drawn. Tokens stand in order of their logits, of equal ones the smaller first; their
// probabilities are softmax(logits / temperature). Of the top_k first (0: of all), only as many are left as it takes for
// their share in the sum of these to reach top_p, at least one (1: all of these). Temperature 0 takes the first.
struct Draw {
    double temperature = 1;
    int top_k = 0;
    double top_p = 1;
    uint64_t seed = 1; // of the caller's u
};
// u: uniform in [0, 1); logits of V tokens
int draw_token(const std::vector<double>& logits, const Draw& draw, double u);
