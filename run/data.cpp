#include "run/data.h"
#include "data/corpus.h"
#include "run/error.h"
#include "run/files.h"
#include "run/random.h"
#include <algorithm>
#include <cstring>
#include <glob.h>
#include <unistd.h>

typedef unsigned long long ull;

void Tokens::read(int* out, uint64_t first, int n) const {
    load(out, first, n);
    for (int i = 0; i < n; i++)
        if ((unsigned)out[i] >= (unsigned)vocab)
            fail("%s is %u, and the model's vocabulary ends at %d. hint: --vocab %u or more, or data made with the "
                 "model's tokenizer", where(first + i).c_str(), (unsigned)out[i], vocab - 1, (unsigned)out[i] + 1);
}

// --- files -------------------------------------------------------------------------------------------------------
struct Part {
    InFile file;
    uint64_t first = 0, count; // of the whole stream's tokens
    int width, vocab;          // bytes per token
    size_t header;             // bytes before the first
    explicit Part(const std::string& path) : file(path), count(file.size), width(1), vocab(256), header(0) {
        if (path.size() >= 4 && path.compare(path.size() - 4, 4, ".bin") == 0) read_header();
    }
    void read_header() {
        static const struct { int magic, version, width, vocab; } kinds[] = {{20240520, 1, 2, 50257},
                                                                             {20240801, 7, 4, 128256}};
        const char* path = file.path.c_str();
        int h[256];
        header = sizeof(h);
        if (file.size < header) fail("%s: %zu bytes do not hold a shard's header of %zu", path, file.size, header);
        file.read(h, 0, header);
        auto kind = std::find_if(std::begin(kinds), std::end(kinds), [&](auto& k) { return k.magic == h[0]; });
        if (kind == std::end(kinds))
            fail("%s: begins with %d, and token shards begin with 20240520 (uint16) or 20240801 (uint32). hint: text "
                 "needs a name that does not end in .bin", path, h[0]);
        if (h[1] != kind->version)
            fail("%s: a shard of version %d; of magic %d only version %d is known", path, h[1], h[0], kind->version);
        width = kind->width, vocab = kind->vocab, count = (uint32_t)h[2];
        if (file.size != header + count * width)
            fail("%s: its header announces %llu tokens, %llu bytes in all, but the file has %zu. hint: is it cut short?",
                 path, (ull)count, (ull)(header + count * width), file.size);
    }
};
typedef std::vector<std::unique_ptr<Part>> Parts;

struct Files : Tokens {
    std::shared_ptr<const Parts> parts; // shared by what trains and what is held out
    uint64_t begin;
    Files(std::shared_ptr<const Parts> parts, const std::string& label, uint64_t begin, uint64_t n)
        : parts(parts), begin(begin) {
        name = label, vocab = (*parts)[0]->vocab, count = n;
    }
    const Part& part_of(uint64_t at) const { // the last part that begins at or before `at`: an empty one never
        auto after = [](uint64_t at, const std::unique_ptr<Part>& p) { return at < p->first; };
        return **std::prev(std::upper_bound(parts->begin(), parts->end(), at, after));
    }
    void load(int* out, uint64_t first, int n) const override {
        unsigned char raw[4096];
        for (uint64_t at = begin + first; n > 0;) {
            const Part& p = part_of(at);
            int k = (int)std::min<uint64_t>({(uint64_t)n, p.first + p.count - at, sizeof(raw) / p.width});
            p.file.read(raw, p.header + (at - p.first) * p.width, (size_t)k * p.width);
            for (int i = 0; i < k; i++) {
                uint32_t token = 0;
                memcpy(&token, raw + i * p.width, p.width); // little-endian, as the file
                out[i] = (int)token;
            }
            out += k, at += k, n -= k;
        }
    }
    std::string where(uint64_t at) const override {
        const Part& p = part_of(begin + at);
        return format("%s: token %llu", p.file.path.c_str(), (ull)(begin + at - p.first));
    }
};
static std::vector<std::string> expand(const std::string& path) {
    if (path.find_first_of("*?[") == path.npos || access(path.c_str(), F_OK) == 0) return {path};
    glob_t g = {};
    std::vector<std::string> found;
    if (glob(path.c_str(), 0, nullptr, &g) == 0) found.assign(g.gl_pathv, g.gl_pathv + g.gl_pathc);
    globfree(&g);
    if (found.empty()) fail("%s: no file matches. hint: quote the pattern so that the shell leaves it alone", path.c_str());
    std::sort(found.begin(), found.end());
    return found;
}
static std::unique_ptr<Files> open_files(const std::string& path) {
    auto parts = std::make_shared<Parts>();
    uint64_t n = 0;
    for (const std::string& file : expand(path)) {
        parts->push_back(std::make_unique<Part>(file));
        Part &p = *parts->back(), &p0 = *parts->front();
        if (p.width != p0.width)
            fail("%s holds tokens of %d bytes and %s of %d: they cannot be one text", p.file.path.c_str(), p.width,
                 p0.file.path.c_str(), p0.width);
        p.first = n, n += p.count;
    }
    if (n == 0) fail("%s: is empty", path.c_str());
    return std::make_unique<Files>(parts, path, 0, n);
}

// --- the built-in corpus -----------------------------------------------------------------------------------------
// To be read in sequence the tales are bound in volumes of 2^18 bytes, the last tale of each cut off where it ends.
struct Builtin : Tokens {
    static constexpr uint64_t VOLUME = 1 << 18;
    uint64_t stream;
    mutable uint64_t volume = ~0ull; // the one in memory
    mutable std::string text;
    explicit Builtin(uint64_t stream) : stream(stream) {
        name = "builtin", count = stream == STREAM_TRAIN ? 1ull << 62 : VOLUME;
    }
    void load(int* out, uint64_t first, int n) const override {
        for (uint64_t at = first; n > 0; at++, n--) {
            if (at / VOLUME != volume) {
                volume = at / VOLUME, text.clear();
                for (uint64_t i = volume * VOLUME; text.size() < VOLUME; i++) text += tale(0, stream, i);
            }
            *out++ = (unsigned char)text[at % VOLUME];
        }
    }
    bool draw(int* out, int n, uint64_t seed, uint64_t i) const override {
        if (stream != STREAM_TRAIN) return false;
        if (vocab < 128) fail("builtin: its bytes need a vocabulary of 128, and the model's is %d", vocab);
        text.resize(std::max<size_t>(VOLUME, n)), volume = ~0ull;
        excerpt(text.data(), n, seed, i);
        for (int k = 0; k < n; k++) out[k] = (unsigned char)text[k];
        return true;
    }
    std::string where(uint64_t at) const override { return format("builtin: byte %llu", (ull)at); }
};

std::unique_ptr<Tokens> open_tokens(const std::string& path) {
    if (path == "builtin") return std::make_unique<Builtin>(STREAM_VAL);
    return open_files(path);
}
Data open_data(const std::string& path, const std::string& val_path) {
    Data d;
    if (path == "builtin") {
        d.train = std::make_unique<Builtin>(STREAM_TRAIN), d.val = open_tokens(val_path.empty() ? path : val_path);
    } else if (!val_path.empty()) {
        d.train = open_tokens(path), d.val = open_tokens(val_path);
    } else {
        auto all = open_files(path);
        uint64_t n = all->count, held_out = n / 10;
        d.train = std::make_unique<Files>(all->parts, path + " without its last tenth", 0, n - held_out);
        d.val = std::make_unique<Files>(all->parts, "the last tenth of " + path, n - held_out, held_out);
    }
    if (d.train->vocab != d.val->vocab)
        fail("%s has a vocabulary of %d and %s one of %d: one model cannot read both", d.train->name.c_str(),
             d.train->vocab, d.val->name.c_str(), d.val->vocab);
    return d;
}

Json identity_of(const Tokens& t) {
    Fingerprint f;
    int text[256];
    uint64_t pieces = t.count < 1ull << 50 ? 64 : 1, length = std::min<uint64_t>(t.count, std::size(text));
    for (uint64_t k = 0; k < pieces; k++) {
        t.read(text, pieces > 1 ? (t.count - length) / (pieces - 1) * k : 0, (int)length);
        f.add(text, length * sizeof(int));
    }
    return Json(Json::Object).set("name", t.name).set("tokens", t.count).set("fingerprint", hex16(f.value()));
}

// --- batches -----------------------------------------------------------------------------------------------------
uint64_t permute(uint64_t i, uint64_t n, uint64_t key) {
    int half = 1; // bits
    while (half < 32 && 1ull << 2 * half < n) half++;
    const uint64_t mask = (1ull << half) - 1;
    do {
        uint64_t left = i >> half, right = i & mask;
        for (uint64_t round = 0; round < 6; round++) {
            uint64_t mixed = left ^ (random_bits(key, round << 32 | right) & mask);
            left = right, right = mixed;
        }
        i = left << half | right;
    } while (i >= n);
    return i;
}

Batches::Batches(const Tokens& tokens, int B, int T, bool shuffled, uint64_t seed)
    : tokens(tokens), B(B), T(T), shuffled(shuffled), seed(seed), window((size_t)T + 1) {
    if (tokens.count < (uint64_t)T + 1)
        fail("%s: has %llu tokens, and a window of --seq-len %d needs %d. hint: more data, or a smaller --seq-len",
             tokens.name.c_str(), (ull)tokens.count, T, T + 1);
}
void Batches::split(int* inputs, int* targets) const {
    std::copy_n(window.data(), T, inputs);
    std::copy_n(window.data() + 1, T, targets);
}
void Batches::fill_windows(uint64_t first, int rows, int* inputs, int* targets) const {
    for (int b = 0; b < rows; b++) {
        tokens.read(window.data(), (first + b) % windows() * T, T + 1);
        split(inputs + (size_t)b * T, targets + (size_t)b * T);
    }
}
void Batches::fill(uint64_t i, int* inputs, int* targets) const {
    if (!shuffled) return fill_windows(i * B, B, inputs, targets);
    const uint64_t W = std::max<uint64_t>(1, windows() - 1), spare = std::min<uint64_t>(T, tokens.count - W * T);
    for (int b = 0; b < B; b++) {
        uint64_t n = i * B + b, epoch = random_bits(seed, n / W);
        if (!tokens.draw(window.data(), T + 1, seed, n)) {
            uint64_t begin = random_bits(epoch, ~0ull) % spare;
            tokens.read(window.data(), begin + permute(n % W, W, epoch) * T, T + 1);
        }
        split(inputs + (size_t)b * T, targets + (size_t)b * T);
    }
}
int Batches::index(const int* inputs, int* distinct, int* first, int* positions) const {
    int N = B * T, count = 0, sum = 0;
    seen.resize(tokens.vocab);
    for (int n = 0; n < N; n++) seen[inputs[n]]++;
    for (int v = 0; v < tokens.vocab; v++) {
        if (seen[v] == 0) continue;
        distinct[count] = v, first[count++] = sum;
        sum += seen[v], seen[v] = sum - seen[v]; // from here on: where its next position goes
    }
    for (int n = 0; n < N; n++) positions[seen[inputs[n]]++] = n;
    for (int d = 0; d < count; d++) seen[distinct[d]] = 0;
    first[count] = N;
    return count;
}
