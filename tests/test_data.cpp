#include "check.h"
#include "errors.h"
#include "run/data.h"
#include "run/error.h"
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <numeric>
#include <set>
#include <unistd.h>

namespace { // test files share one program

// A directory that goes away with the test, and files in it.
struct Scratch {
    std::string dir;
    Scratch() {
        char name[] = "/tmp/ulp-data-XXXXXX";
        dir = mkdtemp(name);
    }
    ~Scratch() { std::filesystem::remove_all(dir); }
    std::string path(const std::string& name) const { return dir + "/" + name; }
    std::string text(const std::string& name, const std::string& bytes) const {
        std::ofstream(path(name), std::ios::binary) << bytes;
        return path(name);
    }
    template <class T>
    std::string shard(const std::string& name, const std::vector<int64_t>& tokens, int magic, int version,
                      int announced = -1) const {
        std::ofstream out(path(name), std::ios::binary);
        int header[256] = {magic, version, announced < 0 ? (int)tokens.size() : announced};
        out.write((char*)header, sizeof(header));
        for (int64_t t : tokens) {
            T x = (T)t;
            out.write((char*)&x, sizeof(x));
        }
        return path(name);
    }
    std::string shard16(const std::string& name, const std::vector<int64_t>& t) const {
        return shard<uint16_t>(name, t, 20240520, 1);
    }
};
static std::vector<int64_t> counting(int64_t from, int n) {
    std::vector<int64_t> v(n);
    std::iota(v.begin(), v.end(), from);
    return v;
}
static std::vector<int> read(const Tokens& t, uint64_t first, int n) {
    std::vector<int> out(n);
    t.read(out.data(), first, n);
    return out;
}
struct Batch {
    std::vector<int> x, y;
};
static Batch batch(const Batches& b, uint64_t i) {
    Batch r{std::vector<int>(b.B * b.T), std::vector<int>(b.B * b.T)};
    b.fill(i, r.x.data(), r.y.data());
    return r;
}

TEST_CASE("a text file is its bytes, all 256 of them") {
    Scratch s;
    std::string bytes;
    for (int i = 0; i < 6000; i++) bytes += (char)(i * 7 % 256);
    auto t = open_tokens(s.text("a.txt", bytes));
    CHECK(t->vocab == 256);
    REQUIRE(t->count == 6000);
    auto all = read(*t, 0, 6000); // more than one gulp of the reader
    for (int i = 0; i < 6000; i++) CHECK(all[i] == i * 7 % 256);
    CHECK(read(*t, 5999, 1)[0] == 5999 * 7 % 256);
}
TEST_CASE("token shards of both kinds hold what llm.c wrote") {
    Scratch s;
    auto a = open_tokens(s.shard16("a.bin", {0, 1, 255, 256, 50256}));
    CHECK(a->vocab == 50257);
    CHECK(a->count == 5);
    CHECK(read(*a, 0, 5) == std::vector<int>{0, 1, 255, 256, 50256});
    auto b = open_tokens(s.shard<uint32_t>("b.bin", {0, 65536, 128255}, 20240801, 7));
    CHECK(b->vocab == 128256);
    CHECK(b->count == 3);
    CHECK(read(*b, 0, 3) == std::vector<int>{0, 65536, 128255});
}
TEST_CASE("several shards are one stream in the order of their names, seams and empty shards included") {
    Scratch s;
    s.shard16("t_2.bin", counting(107, 5));
    s.shard16("t_0.bin", counting(100, 3));
    s.shard16("t_1.bin", {});
    s.shard16("t_10.bin", counting(103, 4));
    s.shard16("u_0.bin", counting(900, 9)); // does not match
    auto t = open_tokens(s.path("t_*.bin"));
    REQUIRE(t->count == 12);
    for (int first = 0; first < 12; first++)
        for (int n = 0; first + n <= 12; n++) {
            auto got = read(*t, first, n);
            for (int i = 0; i < n; i++) CHECK(got[i] == 100 + first + i);
        }
    Data d = open_data(s.path("t_*.bin"));
    CHECK(d.train->count == 11);
    CHECK(read(*d.val, 0, 1)[0] == 111);
}
TEST_CASE("a file whose name looks like a glob is that file") {
    Scratch s;
    CHECK(read(*open_tokens(s.text("a[1].txt", "xy")), 0, 2) == std::vector<int>{'x', 'y'});
}
TEST_CASE("the last tenth is held out, or another file is") {
    Scratch s;
    for (int n : {1, 9, 10, 19, 20, 101}) {
        std::string bytes;
        for (int i = 0; i < n; i++) bytes += (char)i;
        std::string path = s.text("a.txt", bytes);
        Data d = open_data(path);
        CHECK(d.val->count == (uint64_t)(n / 10));
        CHECK(d.train->count == (uint64_t)(n - n / 10));
        CHECK(read(*d.train, d.train->count - 1, 1)[0] == n - n / 10 - 1);
        if (d.val->count) CHECK(read(*d.val, 0, 1)[0] == n - n / 10);
        Data e = open_data(path, s.text("b.txt", "held out"));
        CHECK(e.train->count == (uint64_t)n);
        CHECK(e.val->count == 8);
    }
}
TEST_CASE("offsets past 4 GiB are read where they are") {
    Scratch s;
    std::string path = s.text("big.txt", "");
    const uint64_t size = 5ull << 30;
    if (truncate(path.c_str(), (off_t)size) != 0) SKIP("no sparse files here");
    std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp((std::streamoff)size - 3) << "end";
    auto t = open_tokens(path);
    CHECK(t->count == size);
    CHECK(read(*t, size - 4, 4) == std::vector<int>{0, 'e', 'n', 'd'});
    Batches b(*t, 1, 64, false, 0);
    uint64_t last = b.windows() - 1;
    std::vector<int> x(64), y(64);
    b.fill_windows(last, 1, x.data(), y.data());
    CHECK(y == read(*t, last * 64 + 1, 64));
}
TEST_CASE("what is wrong with a file is said with its name and the numbers") {
    Scratch s;
    auto message = [&](const std::string& path) { return error_of([&] { open_data(path); }); };
    CHECK(has(message(s.path("none.txt")), "none.txt: cannot open: No such file"));
    CHECK(has(message(s.dir), "not a regular file"));
    CHECK(has(message(s.text("empty.txt", "")), "empty.txt: is empty"));
    CHECK(has(message(s.shard16("empty.bin", {})), "empty.bin: is empty"));
    CHECK(has(message(s.path("no*.bin")), "no*.bin: no file matches"));
    CHECK(has(message(s.text("short.bin", "hello")), "5 bytes do not hold a shard's header of 1024"));
    CHECK(has(message(s.text("magic.bin", std::string(2000, '\1'))), "begins with 16843009"));
    CHECK(has(message(s.shard<uint16_t>("v2.bin", {1, 2}, 20240520, 2)), "a shard of version 2; of magic 20240520 only "
                                                                         "version 1"));
    CHECK(has(message(s.shard<uint32_t>("v1.bin", {1, 2}, 20240801, 1)), "only version 7"));
    CHECK(has(message(s.shard<uint16_t>("cut.bin", {1, 2}, 20240520, 1, 9)),
              "announces 9 tokens, 1042 bytes in all, but the file has 1028"));
    CHECK(has(message(s.shard<uint16_t>("long.bin", {1, 2}, 20240520, 1, 1)), "announces 1 tokens"));
    s.shard16("mix_1.bin", {1, 2});
    s.shard<uint32_t>("mix_2.bin", {1, 2}, 20240801, 7);
    CHECK(has(message(s.path("mix_*.bin")), "mix_2.bin holds tokens of 4 bytes and"));
    std::string text = s.text("a.txt", "abc"), bin = s.path("mix_1.bin");
    CHECK(has(error_of([&] { open_data(bin, text); }), "vocabulary of 50257"));
    CHECK(has(error_of([&] { open_data("builtin", bin); }), "builtin has a vocabulary of 256"));
}
TEST_CASE("a token outside the model's vocabulary is refused with its file and place") {
    Scratch s;
    s.shard16("a_1.bin", {1, 2, 3});
    s.shard16("a_2.bin", {4, 5, 317, 6});
    auto t = open_tokens(s.path("a_*.bin"));
    t->vocab = 318;
    CHECK(read(*t, 0, 7)[5] == 317);
    t->vocab = 317;
    CHECK(read(*t, 0, 5)[4] == 5);
    std::string e = error_of([&] { read(*t, 4, 3); });
    CHECK(has(e, "a_2.bin: token 2 is 317"));
    CHECK(has(e, "--vocab 318 or more"));
    auto big = open_tokens(s.shard<uint32_t>("big.bin", {1, 0xffffffff}, 20240801, 7)); // is -1 as an int
    CHECK(has(error_of([&] { read(*big, 0, 2); }), "token 1 is 4294967295"));
    Data d = open_data("builtin");
    d.train->vocab = 100;
    Batches b(*d.train, 1, 8, true, 1);
    CHECK(has(error_of([&] { batch(b, 0); }), "builtin: "));
}
TEST_CASE("a file that shrinks while it is open is an error") {
    Scratch s;
    auto t = open_tokens(s.text("a.txt", std::string(100, 'x')));
    REQUIRE(truncate(s.path("a.txt").c_str(), 50) == 0);
    CHECK(read(*t, 0, 50)[49] == 'x');
    CHECK(has(error_of([&] { read(*t, 40, 20); }), "a.txt"));
}
TEST_CASE("fewer than T + 1 tokens are too few, and it says how many are needed") {
    Scratch s;
    Data d = open_data(s.text("a.txt", std::string(640, 'x')));
    CHECK(has(error_of([&] { Batches(*d.val, 1, 64, false, 1); }),
              "the last tenth of " + s.path("a.txt") + ": has 64 tokens, and a window of --seq-len 64 needs 65"));
    CHECK(Batches(*d.val, 1, 63, false, 1).windows() == 1);
}

TEST_CASE("sequential: microbatch i covers windows iB .. iB+B-1 and wraps at the end") {
    Scratch s;
    for (int n : {7, 50, 51, 100}) {
        auto t = open_tokens(s.shard16("a.bin", counting(1000, n)));
        const int B = 3, T = 5;
        if (n <= T) continue;
        Batches b(*t, B, T, false, 9);
        const uint64_t W = (n - 1) / T;
        CHECK(b.windows() == W);
        for (uint64_t i = 0; i < 20; i++) {
            Batch got = batch(b, i);
            for (int r = 0; r < B; r++)
                for (int k = 0; k < T; k++) {
                    int at = (int)((i * B + r) % W) * T + k;
                    CHECK(got.x[r * T + k] == 1000 + at);
                    CHECK(got.y[r * T + k] == 1001 + at);
                }
        }
    }
}
TEST_CASE("shuffled: every epoch visits each of its windows once, each in another order") {
    Scratch s;
    for (int n : {6, 7, 10, 11, 16, 333, 1001}) { // T is 5: from one window up
        auto t = open_tokens(s.shard16("a.bin", counting(0, n)));
        const int B = 3, T = 5, windows = (n - 1) / T, W = std::max(1, windows - 1);
        Batches b(*t, B, T, true, 42);
        std::vector<int> starts; // of consecutive windows, from consecutive batches
        for (uint64_t i = 0; (int)starts.size() < 6 * W; i++) {
            Batch got = batch(b, i);
            for (int r = 0; r < B; r++) {
                starts.push_back(got.x[r * T]);
                for (int k = 0; k < T; k++) CHECK((got.x[r * T + k] == starts.back() + k && got.y[r * T + k] == starts.back() + k + 1));
            }
        }
        std::set<std::vector<int>> orders;
        std::set<int> phases;
        for (int e = 0; e < 6; e++) {
            std::vector<int> epoch(starts.begin() + e * W, starts.begin() + (e + 1) * W), sorted = epoch;
            std::sort(sorted.begin(), sorted.end());
            for (int w = 0; w < W; w++) CHECK(sorted[w] == sorted[0] + w * T);
            CHECK((sorted[0] >= 0 && sorted[0] < T));
            phases.insert(sorted[0]), orders.insert(epoch);
        }
        if (W > 50) CHECK((orders.size() == 6 && phases.size() > 1));
    }
}
TEST_CASE("a batch depends on the seed and on its index, and on nothing else") {
    Scratch s;
    auto t = open_tokens(s.shard16("a.bin", counting(0, 5000)));
    Data builtin = open_data("builtin"), again = open_data("builtin");
    for (auto [first, second] : {std::pair<Tokens*, Tokens*>{t.get(), t.get()},
                                 {builtin.train.get(), again.train.get()}}) {
        Batches a(*first, 4, 16, true, 7), b(*second, 4, 16, true, 7), c(*second, 4, 16, true, 8);
        batch(b, 5), second->read(std::vector<int>(4).data(), 77, 4); // what was read before must not matter
        for (uint64_t i : {0, 1, 900}) {
            CHECK(batch(a, i).x == batch(b, i).x);
            CHECK(batch(a, i).y == batch(b, i).y);
            CHECK(batch(a, i).x != batch(c, i).x);
            CHECK(batch(a, i).x != batch(a, i + 1).x);
        }
        // The rows of microbatch i are samples iB .. iB+B-1, so that --batch-size regroups them and changes none.
        Batches single(*first, 1, 16, true, 7);
        Batch whole = batch(a, 3);
        for (int r = 0; r < 4; r++) {
            Batch one = batch(single, 12 + r);
            CHECK(std::equal(one.x.begin(), one.x.end(), whole.x.begin() + r * 16));
        }
    }
}
TEST_CASE("permute is a permutation, for every size and key") {
    for (uint64_t n : {1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097})
        for (uint64_t key : {0ull, 1ull, ~0ull}) {
            std::vector<bool> hit(n);
            for (uint64_t i = 0; i < n; i++) {
                uint64_t to = permute(i, n, key);
                REQUIRE(to < n);
                CHECK(!hit[to]);
                hit[to] = true;
            }
        }
    for (uint64_t i = 0; i < 100; i++) CHECK(permute(i, 1ull << 62, 3) < 1ull << 62);
    // Neighbours part: over 1000 places the mean distance between the images of neighbours is near 1000/3 (standard
    // deviation of one distance 236, of the mean of 999 about 8).
    double sum = 0;
    for (int i = 0; i + 1 < 1000; i++) sum += std::abs((double)permute(i, 1000, 5) - (double)permute(i + 1, 1000, 5));
    CHECK(std::abs(sum / 999 - 1000 / 3.) < 50);
}

TEST_CASE("the built-in corpus reads the same at any position, across volumes, and validation is another text") {
    Data d = open_data("builtin"), e = open_data("builtin");
    CHECK(d.train->vocab == 256);
    CHECK(d.train->count > 1ull << 60);
    CHECK(d.val->count >= 1 << 18);
    for (uint64_t at : {0ull, (1ull << 18) - 30, (5ull << 40) - 30}) {
        auto whole = read(*d.train, at, 60);
        for (int i = 59; i >= 0; i--) CHECK(read(*e.train, at + i, 1)[0] == whole[i]);
        for (int c : whole) CHECK((c == '\n' || (c >= ' ' && c < 127)));
    }
    CHECK(read(*d.train, 0, 500) != read(*d.val, 0, 500));
    CHECK(read(*open_tokens("builtin"), 0, 500) == read(*d.val, 0, 500));
    Batches val(*d.val, 2, 64, true, 3); // shuffled validation text is finite, like a file
    CHECK(batch(val, 0).x == batch(val, 0).x);
}

TEST_CASE("the token index lists every distinct token with its positions, as a naive one does") {
    Scratch s;
    std::vector<int64_t> tokens;
    for (int i = 0; i < 3000; i++) tokens.push_back(i * i * 31 % 977 % (i < 1500 ? 5 : 300));
    auto t = open_tokens(s.shard16("a.bin", tokens));
    t->vocab = 300;
    Batches b(*t, 4, 7, true, 1);
    std::vector<int> distinct(28), first(29), positions(28);
    for (uint64_t i = 0; i < 200; i++) {
        Batch got = batch(b, i);
        if (i == 0) std::fill(got.x.begin(), got.x.end(), 299); // one token only, the largest
        std::map<int, std::vector<int>> naive;
        for (int n = 0; n < 28; n++) naive[got.x[n]].push_back(n);
        int count = b.index(got.x.data(), distinct.data(), first.data(), positions.data());
        REQUIRE(count == (int)naive.size());
        int d = 0;
        for (auto& [token, at] : naive) {
            CHECK(distinct[d] == token);
            CHECK(std::vector<int>(positions.begin() + first[d], positions.begin() + first[d + 1]) == at);
            d++;
        }
    }
}

} // namespace
