// From logits to text: which token comes next, and how tokens are read and shown.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

// A draw from softmax(logits / temperature) over the top_k likeliest of V tokens; 0: over all of them. Temperature 0
// takes the likeliest. u: uniform in [0, 1).
int draw_token(const std::vector<double>& logits, double temperature, int top_k, double u);

// Bytes as text, control characters as ? (an untrained model would play with the terminal); larger vocabularies as
// numbers, for want of a tokenizer.
std::string show_tokens(const std::vector<int>& tokens, int V);
// The other way round; an empty prompt is a newline, or the last token of a larger vocabulary. Errors name --prompt.
std::vector<int> prompt_tokens(const std::string& prompt, int V);
