// From logits to the next token.
#pragma once
#include <cstdint>
#include <vector>

// A draw from softmax(logits / temperature) over the top_k likeliest of V tokens; 0: over all of them. Temperature 0
// takes the likeliest. u: uniform in [0, 1).
int draw_token(const std::vector<double>& logits, double temperature, int top_k, double u);
