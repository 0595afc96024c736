#include "run/safetensors.h"
#include "check.h"
#include "run/error.h"
#include <cmath>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <functional>
#include <random>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fs = std::filesystem;

namespace {
struct Scratch { // a directory of our own, gone at the end
    std::string dir;
    Scratch() {
        char t[] = "/tmp/ulp-test-XXXXXX";
        dir = mkdtemp(t);
    }
    ~Scratch() { fs::remove_all(dir); }
    std::string operator/(const std::string& name) const { return dir + "/" + name; }
};
} // namespace
static std::string error_of(const std::function<void()>& f) {
    try {
        f();
    } catch (const Error& e) { return e.what(); }
    return "";
}
static std::string slurp(const std::string& path) { return read_file(path, 1 << 30); }
// Without the syncs of write_file, which take their time on a busy disk.
static void put(const std::string& path, const std::string& bytes) {
    FILE* f = fopen(path.c_str(), "wb");
    REQUIRE(f);
    REQUIRE(fwrite(bytes.data(), 1, bytes.size(), f) == bytes.size());
    fclose(f);
}
static std::string with_length(const std::string& header, const std::string& data) {
    size_t n = header.size();
    return std::string((const char*)&n, 8) + header + data;
}
static uint32_t bits_of(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

TEST_CASE("safetensors: every dtype, shape and metadata comes back, aligned and in order") {
    Scratch scratch;
    std::mt19937 rng(3);
    std::vector<std::vector<int64_t>> shapes = {{}, {1}, {0}, {7}, {3, 0, 2}, {2, 3, 5}, {17, 31}, {1, 1, 1, 1, 5}};
    std::vector<TensorOut> out;
    std::vector<std::string> data;
    for (auto dtype : {"F32", "U8", "BF16", "I64", "BOOL", "F16", "F8_E4M3", "F8_E5M2", "F8_E8M0", "I8", "I32", "F64"})
        for (auto& shape : shapes) {
            size_t n = 1;
            for (int64_t d : shape) n *= (size_t)d;
            std::string bytes(n * (size_t)dtype_bits(dtype) / 8, '\0');
            for (char& c : bytes) c = (char)rng();
            data.push_back(bytes);
            out.push_back({"t\"\xc3\xa9." + std::to_string(out.size()), dtype, shape, nullptr});
        }
    data.push_back("\x21\x43\x65");
    out.push_back({"codes", "F4", {3, 2}, nullptr});
    for (size_t k = 0; k < out.size(); k++) out[k].data = data[k].data();
    TextMap metadata = {{"format", "pt"}, {"note", "a\nb"}};
    write_safetensors(scratch / "x", out, metadata);
    CHECK(!fs::exists(scratch / "x.tmp"));

    Safetensors in(scratch / "x");
    CHECK(in.header.metadata == metadata);
    CHECK(in.header.data % 8 == 0);
    REQUIRE(in.header.tensors.size() == out.size());
    std::string file = slurp(scratch / "x");
    for (size_t k = 0; k < out.size(); k++) {
        const TensorInfo* t = in.find(out[k].name);
        REQUIRE(t);
        CAPTURE(t->text());
        CHECK(t->dtype == out[k].dtype);
        CHECK(t->shape == out[k].shape);
        CHECK(file.substr(in.header.data + t->begin, t->end - t->begin) == data[k]);
        CHECK(t->begin * 8 % (size_t)dtype_bits(t->dtype) == 0);
        CHECK(t->count() * (size_t)dtype_bits(t->dtype) == data[k].size() * 8);
    }
    CHECK(in.find("nothing") == nullptr);
    write_safetensors(scratch / "empty", {}, {});
    CHECK(slurp(scratch / "empty") == with_length("{}      ", ""));
    CHECK(Safetensors(scratch / "empty").header.tensors.empty());
}

// The value of a code by its definition, in double.
static double half_value(int code, int exponent_bits, int mantissa_bits) {
    int sign = code >> (exponent_bits + mantissa_bits), e = code >> mantissa_bits & ((1 << exponent_bits) - 1);
    int bias = (1 << (exponent_bits - 1)) - 1;
    double m = code & ((1 << mantissa_bits) - 1), one = 1 << mantissa_bits;
    double v = e == 0                          ? std::ldexp(m / one, 1 - bias)
               : e == (1 << exponent_bits) - 1 ? (m ? NAN : INFINITY)
                                               : std::ldexp(1 + m / one, e - bias);
    return sign ? -v : v;
}

TEST_CASE("safetensors: all 65,536 codes of BF16 and F16 read as exactly their values") {
    Scratch scratch;
    std::vector<uint16_t> codes(65536);
    for (size_t i = 0; i < codes.size(); i++) codes[i] = (uint16_t)i;
    write_safetensors(scratch / "x", {{"b", "BF16", {65536}, codes.data()}, {"h", "F16", {65536}, codes.data()}}, {});
    Safetensors in(scratch / "x");
    std::vector<float> b(65536), h(65536);
    in.read(b.data(), *in.find("b"), 0, 65536);
    in.read(h.data(), *in.find("h"), 0, 65536);
    int wrong = 0;
    auto check = [&](float f, int code, int E, int M) {
        double want = half_value(code, E, M);
        bool same = std::isnan(want)
                        ? std::isnan(f) && (bits_of(f) & 0x7fffff) == (uint32_t)(code & ((1 << M) - 1)) << (23 - M)
                        : (double)f == want;
        wrong += !same || std::signbit(f) != (code >= 32768);
    };
    for (int i = 0; i < 65536; i++) check(b[(size_t)i], i, 8, 7), check(h[(size_t)i], i, 5, 10);
    CHECK(wrong == 0);
    float part[3];
    in.read(part, *in.find("b"), 0x3f7f, 3); // a part of it, from its middle
    CHECK(part[1] == 1.0f);
    for (uint16_t i : {0, 1, 0x3ff, 0x400, 0x3c00, 0x7bff, 0x7c00})
        CHECK((double)float_from_f16(i) == half_value(i, 5, 10));
}

TEST_CASE("safetensors: matrices of any shape and type are transposed on the way in, FP32 on the way out") {
    Scratch scratch;
    struct Case {
        size_t R, C;
        std::vector<float> a, want;
        std::vector<uint16_t> codes;
    };
    std::vector<Case> cases;
    std::vector<TensorOut> out;
    for (auto [R, C] : std::vector<std::pair<size_t, size_t>>{{1, 1},
                                                              {1, 37},
                                                              {37, 1},
                                                              {7, 9},
                                                              {16, 16},
                                                              {65, 8},
                                                              {63, 65},
                                                              {300, 129},
                                                              {3, 100000},
                                                              {0, 5},
                                                              {5, 0},
                                                              {40, 20000}}) {
        Case& x = cases.emplace_back(
            Case{R, C, std::vector<float>(R * C), std::vector<float>(R * C), std::vector<uint16_t>(R * C)});
        for (size_t r = 0; r < R; r++)
            for (size_t c = 0; c < C; c++) {
                float f = x.a[r * C + c] = x.want[c * R + r] = (float)((r * C + c) * 7 % 251); // exact in BF16 as well
                x.codes[r * C + c] = (uint16_t)(bits_of(f) >> 16);
            }
        std::vector<int64_t> shape = {(int64_t)R, (int64_t)C}, other = {(int64_t)C, (int64_t)R};
        std::string k = std::to_string(cases.size() - 1);
        out.push_back({"a" + k, "F32", shape, x.a.data()});
        out.push_back({"b" + k, "BF16", shape, x.codes.data()});
        out.push_back({"t" + k, "F32", other, x.a.data(), true});
    }
    write_safetensors(scratch / "x", out, {});
    Safetensors file(scratch / "x");
    for (size_t k = 0; k < cases.size(); k++) {
        Case& x = cases[k];
        CAPTURE(x.R);
        CAPTURE(x.C);
        std::vector<float> got(x.R * x.C, -1.0f);
        for (const char* name : {"a", "b"}) {
            file.read_transposed(got.data(), *file.find(name + std::to_string(k)));
            CHECK(got == x.want);
        }
        const TensorInfo& t = *file.find("t" + std::to_string(k));
        file.read(got.data(), t, 0, t.count());
        CHECK(got == x.want);
    }
    std::vector<float> cube(8);
    write_safetensors(scratch / "x", {{"a", "F32", {2, 2, 2}, cube.data()}, {"i", "I32", {2, 4}, cube.data()}}, {});
    Safetensors in(scratch / "x");
    CHECK(error_of([&] {
              in.read_transposed(cube.data(), *in.find("a"));
          }).find("tensor \"a\" F32 [2,2,2] is no matrix") != std::string::npos);
    CHECK(error_of([&] {
              in.read(cube.data(), *in.find("i"), 0, 8);
          }).find("tensor \"i\" I32 [2,4]: F32, BF16 or F16 is expected") != std::string::npos);
}

TEST_CASE("safetensors: each kind of broken header is its own clear error") {
    auto tensor = [](const char* dtype, const char* shape, const char* offsets) {
        return format("{\"a\":{\"dtype\":%s,\"shape\":%s,\"data_offsets\":%s}}", dtype, shape, offsets);
    };
    std::string data24(24, 'x'), ok = tensor("\"F32\"", "[2,3]", "[0,24]");
    auto two = [](const char* a, const char* b) {
        return format("{\"a\":{\"dtype\":\"U8\",\"shape\":[16],\"data_offsets\":%s},\"b\":{\"dtype\":\"U8\",\"shape\":["
                      "8],\"data_offsets\":%s}}",
                      a, b);
    };
    struct {
        std::string file, says;
    } table[] = {
        {"", "has 0 bytes, the length of the header takes 8"},
        {"1234567", "has 7 bytes"},
        {with_length("", ""), "does not begin with '{'"},
        {"version https://git-lfs.github.com/spec/v1\n",
         "hint: not a safetensors file, one cut short, or a Git LFS pointer"},
        {std::string(8, '\xff') + ok + data24, "claims a header of 18446744073709551615 bytes, the file has"},
        {std::string("\xf8\xff\xff\xff\xff\xff\xff\xff", 8) + ok + data24,
         "claims a header of 18446744073709551608 bytes"},
        {with_length(ok, data24).substr(0, 40), "claims a header of"},
        {with_length(std::string((16 << 20) + 1, ' '), ""), "a header of 16777217 bytes; at most 16777216 are read"},
        {with_length(" " + ok, data24), "does not begin with '{'"},
        {with_length("[1]", ""), "does not begin with '{'"},
        {with_length(ok + "x", data24), "header: byte 57: something follows"},
        {with_length(ok.substr(0, 30), data24), "but the text ends"},
        {with_length("{\"a\":" + std::string(5000, '['), data24), "nested deeper"},
        {with_length(ok.substr(0, ok.size() - 1) + "," + ok.substr(1), data24), "the key \"a\" appears twice"},
        {with_length("{\"a\":3}", ""), "tensor \"a\" \"\" []: \"dtype\" is missing or unknown"},
        {with_length("{\"a\":[]}", ""), "\"dtype\" is missing"},
        {with_length("{\"a\\u001b[2J\":{}}", ""), "tensor \"a\\u001b[2J\" \"\" []: \"dtype\" is missing"},
        {with_length("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", "1234"), "\"data_offsets\" is no pair"},
        {with_length("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", "1234"), "\"shape\" is missing or no list"},
        {with_length(tensor("\"F33\"", "[2,3]", "[0,24]"), data24),
         "tensor \"a\" \"F33\" []: \"dtype\" is missing or unknown"},
        {with_length(tensor("32", "[2,3]", "[0,24]"), data24), "\"dtype\" is missing or unknown"},
        {with_length(tensor("\"F32\"", "6", "[0,24]"), data24), "\"shape\" is missing or no list"},
        {with_length(tensor("\"F32\"", "[-2,-3]", "[0,24]"), data24), "\"shape\" is no list of sizes"},
        {with_length(tensor("\"F32\"", "[2.0,3]", "[0,24]"), data24), "\"shape\" is no list of sizes"},
        {with_length(tensor("\"F32\"", "[\"2\",3]", "[0,24]"), data24), "\"shape\" is no list of sizes"},
        {with_length(tensor("\"F32\"", "[9223372036854775808]", "[0,24]"), data24), "\"shape\" is no list of sizes"},
        {with_length(tensor("\"F32\"", "[9223372036854775807,9223372036854775807]", "[0,24]"), data24),
         "product below 2^64"},
        {with_length(tensor("\"F32\"", "[4294967296,4294967296,6]", "[0,24]"), data24), "product below 2^64"},
        {with_length(tensor("\"U8\"", "[4611686018427387904,4]", "[0,0]"), ""),
         "product below 2^64"}, // 2^64 bytes: 0 if it wrapped
        {with_length(tensor("\"F4\"", "[3]", "[0,2]"), "12"), "product below 2^64"},
        {with_length(tensor("\"F32\"", "[2,2]", "[0,24]"), data24),
         "tensor \"a\" F32 [2,2]: takes 16 bytes, its offsets span 24"},
        {with_length(tensor("\"F16\"", "[2,3]", "[0,24]"), data24), "takes 12 bytes"},
        {with_length(tensor("\"F32\"", "[2,3]", "[0,24,48]"), data24), "\"data_offsets\" is no pair"},
        {with_length(tensor("\"F32\"", "[2,3]", "24"), data24), "\"data_offsets\" is no pair"},
        {with_length(tensor("\"F32\"", "[2,3]", "[24,0]"), data24), "begins at byte 24, after its end at 0"},
        {with_length(tensor("\"F32\"", "[2,3]", "[-24,0]"), data24), "begins at byte"},
        {with_length(tensor("\"F32\"", "[2,3]", "[0,-1]"), data24), "ends at byte"},
        {with_length(tensor("\"F32\"", "[2,3]", "[0,9223372036854775807]"), data24),
         "ends at byte 9223372036854775807, the data at 24"},
        {with_length(tensor("\"F32\"", "[2,3]", "[9223372036854775783,9223372036854775807]"), data24), "ends at byte"},
        {with_length(ok, data24.substr(0, 23)), "ends at byte 24, the data at 23. hint: was the file cut short?"},
        {with_length(ok, data24 + "y"), "1 bytes follow the last tensor"},
        {with_length(tensor("\"F32\"", "[2,3]", "[4,28]"), data24 + "1234"),
         "begins at byte 4, and no tensor holds byte 0"},
        {with_length(two("[0,16]", "[8,16]"), data24),
         "tensor \"b\" U8 [8] begins at byte 8, inside the one before it"},
        {with_length(two("[0,16]", "[17,25]"), data24 + "1"), "begins at byte 17, and no tensor holds byte 16"},
        {with_length("{\"__metadata__\":{\"k\":1}}", ""), "\"__metadata__\" must map texts to texts"},
        {with_length("{\"__metadata__\":[\"k\"]}", ""), "\"__metadata__\" must map texts to texts"},
        {with_length("{\"__metadata__\":\"k\"}", ""), "\"__metadata__\" must map texts to texts"},
    };
    Scratch scratch;
    put(scratch / "ok", with_length(ok + "   ", data24));
    CHECK(Safetensors(scratch / "ok").find("a")->count() == 6);
    put(scratch / "two", with_length(two("[8,24]", "[0,8]"), data24)); // the header's order is free
    CHECK(Safetensors(scratch / "two").header.tensors[0].name == "b");
    for (auto& t : table) {
        put(scratch / "bad", t.file);
        std::string e = error_of([&] { Safetensors in(scratch / "bad"); });
        CAPTURE(t.says);
        CAPTURE(e);
        CHECK(e.starts_with(scratch / "bad: "));
        CHECK(e.find(t.says) != e.npos);
    }
    CHECK(error_of([&] { Safetensors in(scratch / "none"); }).find("none: cannot open: No such file") !=
          std::string::npos);
    CHECK(error_of([&] { Safetensors in(scratch.dir); }).find(": not a regular file") != std::string::npos);
}

TEST_CASE("safetensors: damaged and shortened files are errors or other values, never a crash") {
    Scratch scratch;
    std::vector<float> a(30);
    write_safetensors(scratch / "good",
                      {{"a", "F32", {5, 4}, a.data()}, {"b", "BF16", {8, 1}, a.data()}, {"c", "U8", {3}, a.data()}},
                      {{"format", "pt"}});
    std::string good = slurp(scratch / "good");
    std::mt19937 rng(4);
    int refused = 0;
    for (int i = 0; i < 6000; i++) {
        std::string s = good;
        for (int k = rng() % 3; k >= 0; k--) s[rng() % s.size()] ^= (char)(1 << rng() % 8);
        if (i % 3 == 0) s.resize(rng() % s.size());
        put(scratch / "bad", s);
        std::string e = error_of([&] {
            Safetensors in(scratch / "bad");
            for (const TensorInfo& t : in.header.tensors) {
                std::vector<float> out(t.count());
                if (t.shape.size() == 2) in.read_transposed(out.data(), t);
                else in.read(out.data(), t, 0, t.count());
            }
        });
        REQUIRE((e == "" || e.find("/bad: ") != e.npos));
        refused += e != "";
    }
    CHECK(refused > 3000);
}

TEST_CASE("safetensors: a file that shrinks while it is open is an error") {
    Scratch scratch;
    std::vector<float> a(100000);
    write_safetensors(scratch / "x", {{"a", "F32", {100000}, a.data()}}, {});
    Safetensors in(scratch / "x");
    fs::resize_file(scratch / "x", 5000);
    CHECK(error_of([&] { in.read(a.data(), *in.find("a"), 0, a.size()); }).find("the file ends there") !=
          std::string::npos);
}

TEST_CASE("safetensors: what cannot be written leaves the old file, no temporary one, and says why") {
    Scratch scratch;
    std::vector<float> a(50000, 1.0f);
    std::string path = scratch / "x";
    write_safetensors(path, {{"old", "F32", {3}, a.data()}}, {});
    std::string old = slurp(path);
    auto attempt = [&](const std::string& to) {
        return error_of([&] { write_safetensors(to, {{"a", "F32", {50000}, a.data()}}, {}); });
    };
    auto untouched = [&] { return slurp(path) == old && !fs::exists(path + ".tmp"); };

    SUBCASE("tensors that no reader would take") {
        for (const TensorOut& t : std::vector<TensorOut>{{"a", "F31", {1}, a.data()},
                                                         {"a", "F32", {-1}, a.data()},
                                                         {"a", "BF16", {2, 2}, a.data(), true},
                                                         {"a", "F32", {2, 2, 2}, a.data(), true}})
            CHECK(error_of([&] { write_safetensors(path, {t}, {}); }).find("cannot be written") != std::string::npos);
        CHECK(error_of([&] {
                  write_safetensors(path, {{"a", "F32", {1}, a.data()}, {"a", "U8", {1}, a.data()}}, {});
              }).find("\"a\"") != std::string::npos);
        CHECK(untouched());
    }
    SUBCASE("no such directory") {
        CHECK(attempt(scratch / "no/x").find("no/x.tmp: cannot create: No such file") != std::string::npos);
    }
    SUBCASE("the disk refuses more") { // a limit on the size of files stands in for a full disk
        struct rlimit before, small;
        getrlimit(RLIMIT_FSIZE, &before);
        small = {100000, before.rlim_max};
        auto handler = signal(SIGXFSZ, SIG_IGN);
        setrlimit(RLIMIT_FSIZE, &small);
        std::string e = attempt(path);
        setrlimit(RLIMIT_FSIZE, &before);
        signal(SIGXFSZ, handler);
        CHECK(e.find("x.tmp: cannot write") != e.npos);
        CHECK(e.find("File too large") != e.npos);
        CHECK(untouched());
    }
    SUBCASE("the name is a directory") {
        fs::create_directory(scratch / "d");
        CHECK(attempt(scratch / "d").find("cannot rename") != std::string::npos);
        CHECK(!fs::exists(scratch / "d.tmp"));
    }
    SUBCASE("read-only directory") {
        chmod(scratch.dir.c_str(), 0555);
        bool root = geteuid() == 0;
        if (root && seteuid(65534) != 0) SKIP("read-only directory: root may write anywhere");
        std::string e = attempt(path);
        if (root) REQUIRE(seteuid(0) == 0);
        chmod(scratch.dir.c_str(), 0755);
        CHECK(e.find("x.tmp: cannot create: Permission denied") != e.npos);
        CHECK(untouched());
    }
}
