// Where the tokens come from, and which of them make a batch. What is easy to get wrong:
// - A batch is a pure function of (data, order, seed, microbatch): nothing to save, nothing to replay on --resume.
// - Window j covers tokens jT .. jT+T: T inputs and, one further, T targets; neighbours share one token, and n tokens
//   make floor((n-1)/T) windows.
// - Files are read by position, window by window: what is in memory is what the system caches, and a file that shrinks
//   while it is read is an error with its name, where a mapping would be a SIGBUS.
// - Several shards are one stream in the order of their names; a window may begin in one and end in the next.
// - The built-in corpus is endless. Shuffled, every window is a fresh excerpt (data/corpus.h) and there are no epochs.
#pragma once
#include "run/json.h"
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

struct Tokens {
    std::string name;   // for messages: the path, or "builtin"
    int vocab = 256;    // read() refuses a token at or above; set it to the model's
    uint64_t count = 0; // tokens
    virtual ~Tokens() = default;
    void read(int* out, uint64_t first, int n) const; // tokens first .. first+n-1
    // n tokens from a random place, independent for every (seed, i): false where count is finite and read() serves.
    virtual bool draw(int*, int, uint64_t, uint64_t) const { return false; }

protected:
    virtual void load(int* out, uint64_t first, int n) const = 0;
    virtual std::string where(uint64_t at) const = 0; // "file: token 12"
};
struct Data {
    std::unique_ptr<Tokens> train, val;
};
// path: builtin; a text file, whose tokens are its bytes (vocab 256); or llm.c token shards, *.bin, of uint16 (vocab
// 50257) or uint32 (vocab 128256) tokens. Globs are allowed. Errors: no such file, an empty one, a header that is wrong
// or contradicts the file's size, kinds mixed. Without val_path the last tenth, n/10 tokens, is held out.
Data open_data(const std::string& path, const std::string& val_path = "");
std::unique_ptr<Tokens> open_tokens(const std::string& path); // the whole of it; of builtin, the validation text

// What tells two texts apart: {"name", "tokens", "fingerprint"}, the last of up to 64 excerpts spread over the text.
Json identity_of(const Tokens& tokens);

struct Batches {
    const Tokens& tokens;
    const int B, T;
    const bool shuffled;
    const uint64_t seed;

    // Fails where there are fewer than T+1 tokens. Holds scratch memory: one thread at a time.
    Batches(const Tokens& tokens, int B, int T, bool shuffled, uint64_t seed);
    uint64_t windows() const { return (tokens.count - 1) / T; }
    // Microbatch i, from 0: inputs (B, T), targets (B, T).
    // sequential: windows iB .. iB+B-1, modulo windows().
    // shuffled: every epoch visits each of its windows once, in an order and from a first token of its own; it has one
    // window fewer than windows() so that the first token can move.
    void fill(uint64_t i, int* inputs, int* targets) const;
    // Windows first .. first+rows-1, modulo windows(), whatever the order: what evaluation reads.
    void fill_windows(uint64_t first, int rows, int* inputs, int* targets) const;
    // Where each distinct token of inputs (B, T) stands, for the embedding's gradient: token distinct[d], ascending, at
    // positions[first[d]] .. positions[first[d+1] - 1], ascending. Room for BT, BT+1 and BT ints. Returns their number.
    int index(const int* inputs, int* distinct, int* first, int* positions) const;

private:
    mutable std::vector<int> window, seen; // (T + 1), (vocab) zeros between calls
    void split(int* inputs, int* targets) const;
};

// A permutation of 0..n-1, keyed: where i goes. A Feistel network over the next power of four, walked until it lands
// below n (Black and Rogaway 2002), so that an epoch's order needs no memory and any of its places can be asked for.
uint64_t permute(uint64_t i, uint64_t n, uint64_t key);
