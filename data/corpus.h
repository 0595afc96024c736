// The built-in corpus: endless small tales in a language whose entropy is known exactly.
//
// The language is a stochastic grammar; corpus.cpp shows all of it. Wherever it offers a choice the alternatives begin
// with different words, so a text can be read back in one way only: its probability is the product of its choices, and
// entropy, expected length and byte frequencies are plain sums over the grammar. What a reader would get wrong:
// - Probabilities are multiples of 2^-32: the sums use the very numbers that the generator draws with.
// - Bytes are what is counted: letters, the space before a word, commas, full stops, the newline that ends a tale.
// - The floor assumes that all of the text so far is known. A model that sees T bytes stays above it by what the bytes
//   before those would have told; the more so in the first bytes of a window.
// - A tale is a pure function of (seed, stream, i). Streams share no random numbers; a sentence of one can occur in
//   another all the same, with the probability that Facts::same gives for a pair.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

// The grammar, compiled. Symbol 0 is TALE.
struct Corpus {
    struct Symbol {
        std::string name; // as in the grammar, with its arguments: OBJ.tool.she.sg.sea
        int first, last;  // alternatives first .. last-1
    };
    struct Alt {
        double p, nats;  // probability and -log of it
        uint64_t upto;   // taken when a 32-bit draw is below this and not below the alternative before's
        int first, last; // items first .. last-1
    };
    // Sums over everything that a symbol can derive.
    struct Facts {
        double nats = 0, bytes = 0;         // expected
        std::array<double, 256> count = {}; // expected number of each byte
        double same = 0;                    // probability that two derivations are equal
        int min_words = 0, max_words = 0, max_bytes = 0;
    };
    std::vector<Symbol> symbols;
    std::vector<Facts> facts; // of each symbol
    std::vector<Alt> alts;
    std::vector<int> items;         // a symbol, or ~w for word w
    std::vector<std::string> words; // as they stand in the text: " otter", ".", ",", "\n"
};
const Corpus& corpus(); // compiled at the first call, in a few milliseconds

double corpus_floor();   // entropy rate, nats per byte: the loss of a perfect reader who remembers everything
double corpus_unigram(); // order-0 entropy, nats per byte: the loss of knowing the byte frequencies and nothing else

enum : uint64_t { STREAM_TRAIN = 1, STREAM_VAL = 2 };
// Tale i of a stream, a line that ends in '\n'. Adds its -log p to *nats and appends the alternatives taken, in the
// order of the text, to *choices.
std::string tale(uint64_t seed, uint64_t stream, uint64_t i, double* nats = nullptr, std::vector<int>* choices = nullptr);
// n bytes that begin at a uniformly random byte of an endless text of tales: an independent text for every (seed, i).
void excerpt(char* out, size_t n, uint64_t seed, uint64_t i);
