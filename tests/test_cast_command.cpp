#include "check.h"
#include "decoded.h"
#include "lab/cast.h"
#include "run/json.h"
#include <algorithm>
#include <charconv>
#include <functional>
#include <random>
#include <sstream>
#include <fcntl.h>
#include <unistd.h>

using Strings = std::vector<std::string>;

static std::string contents(FILE* f) {
    std::string text;
    rewind(f);
    for (int c; (c = fgetc(f)) != EOF;) text += (char)c;
    return text;
}
static Options parse(const Strings& words) {
    std::vector<const char*> argv = {"./train", "cast"};
    for (auto& w : words) argv.push_back(w.c_str());
    return parse_options((int)argv.size(), argv.data());
}
// What `./train cast WORDS` prints when `in` stands on stdin; an error's text is the last line.
static std::string cast_text(const Strings& words, const std::string& in = "", int status = 0) {
    FILE *from = tmpfile(), *to = tmpfile();
    fwrite(in.data(), 1, in.size(), from), rewind(from);
    std::string error;
    int failed = 0;
    try {
        cast_values(fileno(to), fileno(from), parse(words));
    } catch (const Error& e) { error = e.what(), failed = e.status; }
    CHECK_MESSAGE(failed == status, error);
    std::string text = contents(to) + error;
    fclose(from), fclose(to);
    return text;
}
static Strings lines_of(const std::string& text) {
    Strings lines;
    std::istringstream in(text);
    for (std::string line; std::getline(in, line);) lines.push_back(line);
    return lines;
}
// The JSON objects of a cast.
static std::vector<Json> cast_json(Strings words, const std::string& in = "") {
    words.push_back("--json");
    std::vector<Json> all;
    for (auto& line : lines_of(cast_text(words, in))) all.push_back(parse_json(line, "cast"));
    return all;
}
static uint32_t hex(const Json& object, const char* key) {
    const Json* j = object.find(key);
    REQUIRE(j);
    REQUIRE(j->kind == Json::String);
    REQUIRE(j->text.starts_with("0x"));
    return (uint32_t)std::stoul(j->text, nullptr, 16);
}
static float number(const Json& object, const char* key) {
    const Json* j = object.find(key);
    REQUIRE(j);
    if (j->kind == Json::String) CHECK((j->text == "nan" || j->text == "inf" || j->text == "-inf"));
    return strtof(j->text.c_str(), nullptr);
}
// "0x2a 0x7e .." of one cast
static std::string codes(const Strings& words, const std::string& in = "") {
    std::string all;
    for (auto& j : cast_json(words, in)) all += (all.empty() ? "" : " ") + j.find("code")->text;
    return all;
}
static uint32_t scale_byte(const Strings& words) { return hex(cast_json(words).at(0), "scale_code"); }
static std::string text9(double v, int digits = 9) {
    std::string s;
    put_number(s, v, digits);
    return s;
}

TEST_CASE("cast: a line shows the value, its code, its bits, what is read back, the error and what happened") {
    std::string expected =
        "            0.3  0x2a  0|0101|010           0.3125   error 0.0125 (4.17%)\n"
        "            449  0x7e  0|1111|110              448   error 1 (0.223%)             saturated\n"
        "            464  0x7e  0|1111|110              448   error 16 (3.45%)             saturated\n"
        "            inf  0x7e  0|1111|110              448   error inf                    saturated\n"
        "            nan  0x7f  0|1111|111              nan\n"
        "   0.0009765625  0x00  0|0000|000                0   error 0.0009765625 (100%)    underflowed, a tie\n"
        "    0.000976675  0x01  0|0000|001      0.001953125   error 0.00097645 (100%)      subnormal\n"
        "   -0.001953125  0x81  1|0000|001     -0.001953125   exact                        subnormal\n"
        "  -0.0029296875  0x82  1|0000|010      -0.00390625   error 0.0009765625 (33.3%)   subnormal, a tie, to even\n"
        "             17  0x58  0|1011|000               16   error 1 (5.88%)              a tie, to even\n"
        "            448  0x7e  0|1111|110              448   exact\n"
        "             -0  0x80  1|0000|000               -0   exact\n"
        "              0  0x00  0|0000|000                0   exact\n";
    CHECK(cast_text({"e4m3", "0.3", "449", "464", "inf", "nan", "0x1p-10", "0.000976675", "-0x1p-9", "-0.0029296875",
                     "17", "448", "-0", "0"}) == expected);
    CHECK(cast_text({"e2m1", "nan", "5"}) ==
          "            nan  0x07  0|11|1                6                                no NaN in this format: the "
          "largest\n"
          "              5  0x06  0|11|0                4   error 1 (20%)                a tie, to even\n");
    CHECK(cast_text({"e8m0", "-3", "0", "3e38"}) ==
          "             -3  0x81  10000001                4   error 7 (233%)               sign dropped\n"
          "              0  0x00  00000000   5.87747175e-39   error 5.87747175e-39         below the smallest\n"
          "          3e+38  0xff  11111111              nan                                above the largest: NaN\n");
    CHECK(cast_text({"bf16", "3.4e38"}) ==
          "        3.4e+38  0x7f80  0|11111111|0000000              inf   error inf                    overflowed\n");
    CHECK(cast_text({"fp16", "65504", "65519"}).find("overflowed") == std::string::npos);
    CHECK(cast_text({"fp32", "1e-50"}).find("underflowed") != std::string::npos);
}

TEST_CASE("cast --json: one object per value, in order, numbers that JSON lacks as strings") {
    CHECK(cast_text({"e4m3", "0.3", "--json"}) == "{\"value\":0.3,\"code\":\"0x2a\",\"decoded\":0.3125}\n");
    CHECK(cast_text({"--json", "e5m2", "inf", "-inf", "nan"}) ==
          "{\"value\":\"inf\",\"code\":\"0x7b\",\"decoded\":57344}\n"
          "{\"value\":\"-inf\",\"code\":\"0xfb\",\"decoded\":-57344}\n"
          "{\"value\":\"nan\",\"code\":\"0x7f\",\"decoded\":\"nan\"}\n");
    CHECK(cast_text({"mxfp4", "1", "--json"}) ==
          "{\"value\":1,\"code\":\"0x06\",\"decoded\":1,\"scale_code\":\"0x7d\",\"scale\":0.25}\n");
    CHECK(cast_text({"fp32", "1", "-nan", "--json"}) ==
          "{\"value\":1,\"code\":\"0x3f800000\",\"decoded\":1}\n"
          "{\"value\":\"nan\",\"code\":\"0x7fffffff\",\"decoded\":\"nan\"}\n");
}

TEST_CASE("cast: the ties, maxima and specials that the formats are known by") {
    CHECK(codes({"e2m1", ".25", ".75", "1.25", "1.75", "2.5", "3.5", "5"}) == "0x00 0x02 0x02 0x04 0x04 0x06 0x06");
    CHECK(codes({"e4m3", "464", "449", "1000", "inf", "-inf", "nan", "0x1p-10", "0x1.0007p-10"}) ==
          "0x7e 0x7e 0x7e 0x7e 0xfe 0x7f 0x00 0x01");
    CHECK(codes({"e3m2", "29", "nan", "-0.0625", "0.03125"}) == "0x1f 0x1f 0x21 0x00");
    CHECK(codes({"e2m3", "8", "nan", "-0.125"}) == "0x1f 0x1f 0x21");
    CHECK(codes({"e4m3fnuz", "240", "1e9", "nan", "-0", "0x1p-10"}) == "0x7f 0x7f 0x80 0x00 0x01");
    CHECK(codes({"e5m2fnuz", "57344", "-inf", "nan", "-0", "0x1p-17"}) == "0x7f 0xff 0x80 0x00 0x01");
    CHECK(codes({"e8m0", "0", "0x1p-127", "0x1.000004p-127", "1", "-2", "0x1p127", "0x1.000002p127", "nan"}) ==
          "0x00 0x00 0x01 0x7f 0x80 0xfe 0xff 0xff");
    CHECK(codes({"bf16", "1", "0x1.01p0", "0x1.03p0", "inf", "nan"}) == "0x3f80 0x3f80 0x3f82 0x7f80 0x7fff");
    CHECK(codes({"fp16", "1", "65519", "65520", "0x1p-24", "0x1p-25"}) == "0x3c00 0x7bff 0x7c00 0x0001 0x0000");
    CHECK(codes({"e4m3", "--scale", "4.48", "0", "1", "-2", "3", ".1", "-.7", "100", "-.001"}) ==
          "0x00 0x49 0xd1 0x55 0x2e 0xc5 0x7e 0x82");
    CHECK(codes({"e4m3", "--scale=4", "0", "1", "-2", "3", ".1", "-.7", "100", "-.001"}) ==
          "0x00 0x48 0xd0 0x54 0x2d 0xc3 0x7c 0x82");
    CHECK(number(cast_json({"e4m3", "--scale", "4.48", "3"})[0], "decoded") == 13.0f / 4.48f);
}

TEST_CASE("cast: what a line says agrees with encode() and decode(), note by note, against a search of all codes") {
    for (Format f : {E4M3, E5M2, E3M2, E2M3, E2M1, E4M3_FNUZ, E5M2_FNUZ}) {
        std::string in;
        std::vector<float> values;
        std::mt19937 random(1);
        for (int i = 0; i < 200; i++) {
            float x = i % 2 ? ldexpf((float)(int)(random() % 128) - 64, (int)(random() % 12) - 11)
                            : bits_as<float>((uint32_t)random() % 0x7f800000);
            values.push_back(x);
            in += text9(x) + (i % 3 ? "\n" : " \t");
        }
        Strings lines = lines_of(cast_text({f.name}, in));
        REQUIRE(lines.size() == values.size());
        for (size_t i = 0; i < lines.size(); i++) {
            double x = fabs(values[i]), best = INFINITY, second = INFINITY;
            for (uint32_t c = 0; c < 1u << (f.bits() - 1); c++)
                if (double d = fabs(decode(f, c) - x); d == d && decode(f, c) < INFINITY) {
                    if (d < best) second = best, best = d;
                    else if (d < second) second = d;
                }
            std::istringstream words(lines[i]);
            std::string value, code, bits, decoded;
            words >> value >> code >> bits >> decoded;
            bool minus = bits[0] == '1';
            bits.erase(std::remove(bits.begin(), bits.end(), '|'), bits.end());
            CAPTURE(lines[i]);
            CHECK(std::stoul(code, nullptr, 16) == std::stoul(bits, nullptr, 2));
            CHECK(std::stoul(code, nullptr, 16) == encode(f, values[i]));
            CHECK(fabs(fabs(strtod(decoded.c_str(), nullptr)) - x) <= best + 1e-8 * x); // nine digits of at most 2x
            auto says = [&](const char* note) { return lines[i].find(note) != std::string::npos; };
            float q = decode(f, encode(f, values[i]));
            CHECK(says("saturated") == (x > f.max));
            CHECK(says("underflowed") == (x > 0 && q == 0));
            CHECK(says("a tie") == (x <= f.max && best == second));
            CHECK(says("exact") == (best == 0));
            CHECK(says("subnormal") == (q != 0 && fabs(q) < decode(f, 1u << f.mbits)));
            if (q != 0) CHECK(minus == (values[i] < 0));
        }
    }
}

TEST_CASE("cast: the block scales of MX, rule by rule") {
    auto mxfp8 = [](const char* amax, const char* rule) {
        return scale_byte({"mxfp8", "0.1e-40", amax, "--scale-rule", rule});
    };
    struct {
        const char* amax;
        uint32_t byte;
    } vectors[] = {
        {"0", 0},       {"0x1p-149", 0},     {"0x1.cp-119", 0},      {"0x1.cp-118", 1},  {"1e-30", 19}, {"0x1p-9", 110},
        {".5", 118},    {"1", 119},          {"1.75", 119},          {"1.7578125", 120}, {"3.5", 120},  {"6", 121},
        {"7", 121},     {"7.03125", 122},    {"448", 127},           {"450", 128},       {"896", 128},  {"1e4", 132},
        {"65504", 135}, {"0x1.fep127", 247}, {"0x1.fffffep127", 247}};
    for (auto& v : vectors) {
        CAPTURE(v.amax);
        CHECK(scale_byte({"mxfp8", v.amax, "0"}) == v.byte);
        CHECK(scale_byte({"mxfp8", "0", "-0", v.amax}) == v.byte);
    }
    CHECK(mxfp8("0x1.fffffep127", "floor") == 246);
    CHECK(codes({"mxfp8", "0x1.fffffep127", "--scale-rule", "floor"}) == "0x7e");
    CHECK(mxfp8("480", "floor") == 127);
    CHECK(mxfp8("480", "rceil") == 128);
    CHECK(mxfp8("449", "ceil") == 128);
    CHECK(mxfp8("256", "ceil") == 127);
    CHECK(mxfp8("495", "even") == 127); // rounded to E4M3's three bits of mantissa, 495 is 480, 496 is 512
    CHECK(mxfp8("496", "even") == 128);
    CHECK(codes({"mxfp8", "480", "--scale-rule=floor"}) == "0x7e");
    CHECK(codes({"mxfp8", "480"}) == "0x77");
    CHECK(scale_byte({"mxfp6", "7.5"}) == 127);
    CHECK(codes({"mxfp6", "7.5", "-7"}) == "0x1f 0x3e");
    CHECK(scale_byte({"mxfp4", "6"}) == 127);
}

TEST_CASE("cast: MX cuts the row into blocks of 32, the last one ragged; NaN, infinity and zeros stay in their block") {
    Strings words = {"mxfp8"};
    for (int i = 0; i < 96 + 5; i++)
        words.push_back(i == 40 ? "nan" : i == 70 ? "-inf" : i >= 96 ? "0" : std::to_string(i - 10));
    std::vector<Json> rows = cast_json(words);
    REQUIRE(rows.size() == 101);
    for (int i = 0; i < 101; i++) {
        CAPTURE(i);
        bool lost = i / 32 == 1 || i / 32 == 2;
        CHECK(hex(rows[i], "scale_code") == (lost ? 0xff : i < 32 ? 127 - 4 : 0)); // amax 21 / 448 is above 2^-5
        CHECK(std::isnan(number(rows[i], "decoded")) == lost);
        CHECK(std::isnan(number(rows[i], "scale")) == lost);
        if (lost && i != 40) CHECK(hex(rows[i], "code") == encode(E4M3, strtof(words[i + 1].c_str(), nullptr)));
        if (!lost) CHECK(number(rows[i], "decoded") == decode(E4M3, hex(rows[i], "code")) * number(rows[i], "scale"));
    }
    std::string text = cast_text(words);
    CHECK(text.starts_with("block 0: values 0 to 31, amax 21, scale 0x7b = 2^-4\n"));
    CHECK(text.find("\nblock 1: values 32 to 63, amax nan, scale 0xff = NaN: ") != std::string::npos);
    CHECK(text.find("\nblock 3: values 96 to 100, amax 0, scale 0x00 = 2^-127\n              0  0x00  0|0000|000       "
                    "         0   "
                    "exact\n") != std::string::npos);
    CHECK(cast_text({"mxfp8"}, "") == "");
}

TEST_CASE("cast: NVFP4's two scales") {
    std::vector<Json> rows = cast_json({"nvfp4", "1"});
    CHECK(hex(rows[0], "scale_code") == 0x7e);
    CHECK(number(rows[0], "scale") == 448);
    CHECK(hex(rows[0], "code") == 7);
    CHECK(number(rows[0], "decoded") == 6 * (448.0f * 1.0f * (1 / 2688.0f)));
    CHECK(number(cast_json({"nvfp4", "1e-37"})[0], "scale") == 5.5f);
    for (auto& j : cast_json({"nvfp4", "0", "-0", "0"})) {
        CHECK(hex(j, "scale_code") == 0);
        CHECK((hex(j, "code") & 7) == 0);
        CHECK(number(j, "decoded") == 0);
    }
    // 16 ones and a block of 4 with infinity: that block is lost and does not move the tensor's scale.
    Strings words = {"nvfp4"};
    for (int i = 0; i < 20; i++) words.push_back(i == 18 ? "inf" : i < 16 ? "1" : "1000");
    rows = cast_json(words);
    CHECK(hex(rows[0], "scale_code") == 0x7e);
    CHECK(hex(rows[19], "scale_code") == 0x7f);
    CHECK(std::isnan(number(rows[19], "decoded")));
    std::string text = cast_text(words);
    CHECK(text.starts_with("20 values: amax 1, encode scale 2688\n"
                           "block 0: values 0 to 15, amax 1, scale 0x7e = 448, times amax / 2688: 0.166666672\n"
                           "              1  0x07  0|11|1                1   exact\n"));
    CHECK(text.find("\nblock 1: values 16 to 19, amax inf, scale 0x7f = NaN: ") != std::string::npos);
}

TEST_CASE("cast: block formats print what the casts of matrices store") {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    const int K = 77;
    std::vector<float> x(K);
    std::string in;
    for (float& v : x) v = normal(random) * expf(3 * normal(random)), in += text9(v) + "\n";
    struct {
        const char* name;
        Format f;
        ScaleRule rule;
        const char* rule_name;
    } mx[] = {{"mxfp8", E4M3, ScaleRule::rceil, "rceil"},
              {"mxfp6", E2M3, ScaleRule::floor, "floor"},
              {"mxfp4", E2M1, ScaleRule::ceil, "ceil"},
              {"mxfp4", E2M1, ScaleRule::even, "even"}};
    std::vector<uint8_t> q(K), scales(8);
    for (auto& m : mx)
        for (Rounding round : {Rounding::rne, Rounding::sr}) {
            std::string rounding = round == Rounding::sr ? "sr" : "rne";
            Cast c{.elem = m.f, .scaling = Scaling::mx, .block = {1, 32}, .rule = m.rule, .round = round};
            cast_mx(q.data(), scales.data(), x.data(), c, false, 1, K, draw_key(7));
            std::vector<float> y = decoded(q.data(), m.f, 1, K, scales.data(), Elem::e8m0, 32);
            std::vector<Json> rows =
                cast_json({m.name, "--scale-rule", m.rule_name, "--seed=7", "--round", rounding}, in);
            REQUIRE(rows.size() == (size_t)K);
            for (int i = 0; i < K; i++) {
                CHECK(hex(rows[i], "code") == (m.f.bits() == 4 ? q[i / 2] >> i % 2 * 4 & 15 : q[i]));
                CHECK(hex(rows[i], "scale_code") == scales[i / 32]);
                CHECK(number(rows[i], "decoded") == y[i]);
            }
        }
    float amax_row = 0; // NVFP4, operation by operation as published
    for (float v : x) amax_row = std::max(amax_row, fabsf(v));
    float encode_scale = 2688 / amax_row;
    std::vector<Json> rows = cast_json({"nvfp4"}, in);
    REQUIRE(rows.size() == (size_t)K);
    for (int from = 0; from < K; from += 16) {
        float amax = 0;
        for (int i = from; i < K && i < from + 16; i++) amax = std::max(amax, fabsf(x[i]));
        uint32_t s = encode(E4M3, amax * (encode_scale * (1 / 6.0f)));
        float m = std::min(1 / (decode(E4M3, s) * (1 / encode_scale)), FLT_MAX);
        for (int i = from; i < K && i < from + 16; i++) {
            CHECK(hex(rows[i], "scale_code") == s);
            CHECK(hex(rows[i], "code") == encode(E2M1, x[i] * m));
            CHECK(number(rows[i], "decoded") ==
                  decode(E2M1, encode(E2M1, x[i] * m)) * (decode(E4M3, s) * amax_row * (1 / 2688.0f)));
        }
    }
}

TEST_CASE("cast --round sr: only neighbours, in the right proportion, and the same again with the same seed") {
    std::string in;
    for (int i = 0; i < 4096; i++) in += "1.09375 ";
    std::string first = codes({"e4m3", "--round", "sr", "--seed", "3"}, in);
    CHECK(first == codes({"e4m3", "--round", "sr", "--seed", "3"}, in));
    CHECK(first != codes({"e4m3", "--round", "sr", "--seed", "4"}, in));
    int up = 0;
    for (size_t at = 0; at < first.size(); at += 5) {
        std::string code = first.substr(at, 4);
        CHECK((code == "0x38" || code == "0x39"));
        up += code == "0x39";
    }
    CHECK(abs(up - 3072) < 111); // 1.09375 lies at 3/4 of a step: 4096 draws, 4 sigma = 4 * sqrt(4096 * 3/16)
    CHECK(codes({"e4m3", "1", "-448", "0", "1e9", "nan", "--round=sr"}) == "0x38 0xfe 0x00 0x7e 0x7f");
}

TEST_CASE("cast: values are read to the nearest FP32 at once, in decimal and hexadecimal, to both ends of the range") {
    auto read = [](const std::string& word) {
        double typed = -1;
        float x = -1;
        bool ok = read_number(typed, x, word.data(), word.data() + word.size());
        if (!ok) FAIL_CHECK(word << " is not read");
        return x;
    };
    // 1 + 2^-24 is a tie that goes to 1; a little more, too little for a double to see, must go up.
    CHECK(read("1.000000059604644775390625") == 1.0f);
    CHECK(read("1.00000005960464477539062500000000000000001") == 0x1.000002p0f);
    CHECK((float)strtod("1.00000005960464477539062500000000000000001", nullptr) ==
          1.0f); // what reading twice would give
    CHECK(read("-1.00000005960464477539062500000000000000001") == -0x1.000002p0f);
    CHECK(read("0x1.0000010000000000000000001p0") == 0x1.000002p0f);
    CHECK(read("+0X1.8P+1") == 3);
    CHECK(read("-0x.8p1") == -1);
    CHECK(read("1e400") == INFINITY);
    CHECK(read("-1e39") == -INFINITY);
    CHECK(read("3.4028235677973367e38") == INFINITY); // the midpoint above FLT_MAX
    CHECK(read("3.4028235677973366e38") == FLT_MAX);
    CHECK(read("0x1.ffffffp127") == INFINITY);
    CHECK(read("0x1.fffffefp127") == FLT_MAX);
    CHECK(read("1e-46") == 0);
    CHECK(std::signbit(read("-1e-400")));
    CHECK(read("7.1e-46") == 0x1p-149f);
    CHECK(read("0x1p-150") == 0);
    CHECK(read("0x1.8p-150") == 0x1p-149f);
    CHECK(read("0x3p-150") == 0x1p-148f);
    CHECK(read("1e-40") == 1e-40f);
    CHECK(read("Infinity") == INFINITY);
    CHECK(read("-INF") == -INFINITY);
    CHECK(std::isnan(read("NaN")));
    CHECK(read("000.5") == 0.5f);
    CHECK(read("5.") == 5);
    std::mt19937_64 random(2);
    for (int i = 0; i < 10000; i++) {
        float v = bits_as<float>((uint32_t)random() % 0x7f800000u);
        for (const char* as : {"%.5g", "%.9g", "%.30g", "%a"}) {
            std::string word = format(as, (double)v * (1 + 1e-9 * (double)(random() % 100)));
            if (read(word) != strtof(word.c_str(), nullptr)) FAIL_CHECK(word << " is read as " << read(word));
        }
    }
    for (const char* word : {"",     "-",   "+",     "--1", "+-1", "-+1", "1e",   "1e+", "0x", "0xinf", "0xnan",
                             "0x-1", "0xg", "1.2.3", "1,5", "one", "1f",  "0x1p", ".",   "e5", "infx",  "1_000"}) {
        double typed;
        float x;
        std::string text = word;
        CHECK_MESSAGE(!read_number(typed, x, text.data(), text.data() + text.size()), text);
    }
}

TEST_CASE("cast: numbers print as printf's %.9g and %.3g do") {
    std::mt19937_64 random(3);
    auto same = [](double v) {
        if (v != v) return text9(v) == "nan";
        return text9(v) == format("%.9g", v) && text9(v, 3) == format("%.3g", v);
    };
    for (int i = 0; i < 100000; i++) {
        uint64_t r = random();
        double v[] = {bits_as<float>((uint32_t)r),
                      (double)(int64_t)(r % 4000000000) / (double)(1u << (r >> 59)), // ties of nine digits among them
                      ldexp((double)(r % 2000001) - 1e6, (int)(r >> 59) - 24),
                      (double)(r % 100000) / 1e5 * pow(10, (int)(r >> 60) - 5)}; // the short ones that people type
        for (double x : v)
            if (!same(x)) FAIL_CHECK(format("%.17g", x) << " prints as " << text9(x) << " and " << text9(x, 3));
    }
    for (int e = -12; e < 12; e++)
        for (double digits :
             {1.0, 9.99, 9.995, 9.9949999999, 9.999999994, 9.999999995, 9.999999996, 1.000000005, 1.0000000049})
            CHECK_MESSAGE(same(digits * pow(10, e)), digits << " e" << e);
    for (double v : {0.0, -0.0, 1e-4, 9.99999999e-5, 999999999.0, 999999999.4, 999999999.6, 1e9, -1e9, 123.5,
                     (double)INFINITY, -(double)INFINITY, (double)NAN, 5e-324, 1.7e308})
        CHECK_MESSAGE(same(v), v);
}

TEST_CASE(
    "cast: words come from anywhere in a long input, and a bad one is reported with its line, after what preceded it") {
    std::string in; // longer than the buffer, so that words lie across its end
    for (int i = 0; i < 150000; i++)
        in += std::to_string(123456000 + i % 1000) + (i % 7 ? "\n" : i % 3 ? "  " : "\r\n\t");
    Strings lines = lines_of(cast_text({"e5m2", "--json"}, in));
    REQUIRE(lines.size() == 150000);
    for (int i = 0; i < 150000; i++)
        if (!lines[i].starts_with("{\"value\":" + std::to_string(123456000 + i % 1000) + ","))
            FAIL("line " << i << " is " << lines[i]);
    CHECK(cast_text({"e4m3"}, "1") == cast_text({"e4m3", "1"}));
    CHECK(cast_text({"e4m3", "--json"}, "1  2\n\n \tx3 4\n", 1) == "{\"value\":1,\"code\":\"0x38\",\"decoded\":1}\n"
                                                                   "{\"value\":2,\"code\":\"0x40\",\"decoded\":2}\n"
                                                                   "line 3: \"x3\" is not a number");
    CHECK(cast_text({"e4m3"}, "one", 1) == "line 1: \"one\" is not a number");
    CHECK(cast_text({"e4m3"}, std::string(3 << 20, '7') + "x", 1).ends_with("..\" is not a number") == false);
    CHECK(cast_text({"e4m3"}, std::string(3 << 20, 'x'), 1) ==
          "line 1: \"" + std::string(40, 'x') + "\".. is not a number");
    CHECK(cast_text({"e4m3"}, std::string("1\n\x1b[2J\n"), 1).find('\x1b') == std::string::npos);
    std::string block;
    for (int i = 0; i < 33; i++) block += "1\n";
    CHECK(lines_of(cast_text({"mxfp8"}, block + "bad", 1)).size() == 1 + 32 + 1); // the full block, and the error
}

TEST_CASE("cast: what makes no sense is refused, with what would") {
    CHECK(cast_text({"bf61", "1"}, "", 2) ==
          "unknown format \"bf61\". hint: the nearest is bf16; `./train formats` shows them all");
    CHECK(cast_text({"mxfp", "1"}, "", 2).find("mxfp8") != std::string::npos);
    CHECK(cast_text({"e4m3", "1", "--scale-rule", "floor"}, "", 2).find("e4m3 has no MX scales") != std::string::npos);
    CHECK(cast_text({"nvfp4", "1", "--scale-rule", "floor"}, "", 2).find("nvfp4 has no MX scales") !=
          std::string::npos);
    for (const char* name : {"bf16", "fp16", "fp32", "e8m0"})
        CHECK(cast_text({name, "1", "--round", "sr"}, "", 2).find("--round sr") == 0);
    std::string text = cast_text({"e4m3", "1", "x"}, "", 2);
    CHECK(text.ends_with("value 2, \"x\", is not a number"));
    CHECK(text.starts_with("              1  0x38"));
    FILE* in = tmpfile();
    int full = open("/dev/full", 1);
    if (full < 0) SKIP("no /dev/full");
    CHECK_THROWS_WITH(cast_values(full, fileno(in), parse({"e4m3", "1"})),
                      doctest::Contains("cannot write the results"));
    CHECK_THROWS_WITH(cast_values(full, full + 100, parse({"e4m3"})), doctest::Contains("cannot read the values"));
    close(full), fclose(in);
}

TEST_CASE("formats: every number of the table is what a walk over all codes finds") {
    Strings lines = lines_of(formats_text(true));
    REQUIRE(lines.size() == std::size(ALL_FORMATS) + 4);
    for (size_t i = 0; i < std::size(ALL_FORMATS); i++) {
        Format f = ALL_FORMATS[i];
        Json row = parse_json(lines[i], f.name);
        CHECK(row.find("name")->text == f.name);
        CHECK(row.find("bits")->integer() == f.bits());
        if (f.bits() > 16) continue; // 2^32 codes: see the vector below
        std::vector<float> values;
        float normal = INFINITY;
        for (uint32_t c = 0; c < 1u << f.bits(); c++) {
            float v = decode(f, c);
            if (!std::isfinite(v)) continue;
            values.push_back(v == 0 ? 0 : v);
            if (v > 0 && (f == E8M0 || (c >> f.mbits & ((1u << f.ebits) - 1)) != 0)) normal = std::min(normal, v);
        }
        std::sort(values.begin(), values.end());
        values.erase(std::unique(values.begin(), values.end()), values.end());
        float least = *std::upper_bound(values.begin(), values.end(), 0.0f);
        CHECK(row.find("values")->integer() == (int64_t)values.size());
        CHECK(number(row, "max") == values.back());
        CHECK(number(row, "min_normal") == normal);
        if (f == E8M0) CHECK(row.find("min_subnormal")->kind == Json::Null);
        else CHECK(number(row, "min_subnormal") == least);
        CHECK(*row.find("decades")->number() == doctest::Approx(log10((double)values.back()) - log10((double)least)));
    }
    Json fp32 = parse_json(lines[std::size(ALL_FORMATS) - 1], "fp32");
    CHECK(fp32.find("values")->integer() == 2 * 255ll * (1 << 23) - 1);
    CHECK(number(fp32, "min_subnormal") == 0x1p-149f);
    const char* specials[] = {"NaN 7f",        "inf 7c, NaN 7d-7f", "none",     "none",     "none",    "NaN ff, no 0",
                              "NaN 80, no -0", "NaN 80, no -0",     "inf, NaN", "inf, NaN", "inf, NaN"};
    for (size_t i = 0; i < std::size(specials); i++)
        CHECK(parse_json(lines[i], "").find("specials")->text == specials[i]);
    double bits[] = {8.25, 6.25, 4.25, 4.5}, stored[] = {8.25, 8.25, 4.25, 4.5};
    for (int i = 0; i < 4; i++) {
        Json row = parse_json(lines[std::size(ALL_FORMATS) + i], "blocks");
        CHECK(row.find("bits_per_value")->number() == bits[i]);
        CHECK(row.find("stored_bits_per_value")->number() == stored[i]);
    }
    for (auto& line : lines_of(formats_text(false))) CHECK_MESSAGE(line.size() <= 118, line);
}

// --- docs/formats.md ---------------------------------------------------------------------------------------------
static std::string doc() {
    FILE* f = fopen("docs/formats.md", "rb");
    REQUIRE_MESSAGE(f, "run it from the repository's root");
    std::string text = contents(f);
    fclose(f);
    return text;
}
// x . w in BF16, then in E4M3 with a scale per tensor: every step as the page prints it.
static std::string walk() {
    const int K = 4;
    float x[K] = {0.3f, -1.2f, 0.05f, 2.5f}, w[K] = {0.11f, -0.07f, 0.2f, 0.04f};
    float amax_x = 0, amax_w = 0, acc = 0;
    double exact = 0;
    uint32_t qx[K], qw[K];
    std::string s;
    auto row = [&](const char* what, auto cell) {
        s += format("%-22s", what);
        for (int k = 0; k < K; k++) s += format("%15s", cell(k).c_str());
        while (s.back() == ' ') s.pop_back();
        s += "\n";
    };
    row("x as typed", [&](int k) { return text9((double)x[k], 7); });
    for (float* v : {x, w})
        for (int k = 0; k < K; k++) v[k] = bf16(v[k]);
    row("x in BF16", [&](int k) { return text9(x[k]); });
    row("  its code", [&](int k) { return format("0x%04x", encode(BF16, x[k])); });
    row("w in BF16", [&](int k) { return text9(w[k]); });
    for (int k = 0; k < K; k++) {
        amax_x = std::max(amax_x, fabsf(x[k])), amax_w = std::max(amax_w, fabsf(w[k]));
        exact += (double)x[k] * w[k];
    }
    float scale_x = scale_for(E4M3.max, amax_x, 1), scale_w = scale_for(E4M3.max, amax_w, 1);
    float inv_x = 1 / scale_x, inv_w = 1 / scale_w;
    s += format("\namax                   x %.9g   w %.9g\n", amax_x, amax_w);
    s += format("scale = 448 / amax     x %.9g   w %.9g\n", scale_x, scale_w);
    s += format("scale_inv = 1 / scale  x %.9g   w %.9g\n\n", inv_x, inv_w);
    for (int k = 0; k < K; k++) {
        qx[k] = encode(E4M3, x[k] * scale_x), qw[k] = encode(E4M3, w[k] * scale_w);
        acc += decode(E4M3, qx[k]) * decode(E4M3, qw[k]);
    }
    row("x * scale", [&](int k) { return text9(x[k] * scale_x); });
    row("  its E4M3 code", [&](int k) { return format("0x%02x", qx[k]); });
    row("  which stands for", [&](int k) { return text9(decode(E4M3, qx[k])); });
    row("  read back, x is", [&](int k) { return text9(decode(E4M3, qx[k]) * inv_x); });
    row("w * scale", [&](int k) { return text9(w[k] * scale_w); });
    row("  its E4M3 code", [&](int k) { return format("0x%02x", qw[k]); });
    row("  which stands for", [&](int k) { return text9(decode(E4M3, qw[k])); });
    row("product of the two", [&](int k) { return text9(decode(E4M3, qx[k]) * decode(E4M3, qw[k])); });
    float out = acc * inv_x * inv_w;
    s += format("\nsum in FP32                %.9g\ntimes both scale_inv       %.9g\nrounded to BF16            %.9g\n",
                acc, out, (float)bf16(out));
    s += format("x . w of the BF16 values   %.9g, rounded to BF16 %.9g: FP8 is off by %.2f %%\n", exact,
                (float)bf16((float)exact), 100 * fabs((float)bf16(out) - exact) / exact);
    return s;
}

TEST_CASE("docs/formats.md: every command prints what the page shows") {
    Strings lines = lines_of(doc());
    int commands = 0;
    for (size_t i = 0; i < lines.size(); i++) {
        if (!lines[i].starts_with("    $ ")) continue;
        std::string shown, in;
        Strings words;
        std::istringstream text(lines[i].substr(6));
        for (std::string word; text >> word;)
            if (word == "|")
                in.clear(), std::for_each(words.begin() + 1, words.end(), [&](auto& w) { in += w + " "; }),
                    words.clear();
            else words.push_back(word);
        CAPTURE(lines[i]);
        REQUIRE(words.size() >= 2);
        REQUIRE(words[0] == "./train");
        bool cast = words[1] == "cast";
        words.erase(words.begin(), words.begin() + 2);
        for (; i + 1 < lines.size() && (lines[i + 1].starts_with("    ") || (!cast && lines[i + 1].empty())) &&
               !lines[i + 1].starts_with("    $ ");
             i++)
            shown += lines[i + 1].empty() ? "\n" : lines[i + 1].substr(4) + "\n";
        std::string real = cast ? cast_text(words, in) : formats_text(false) + "\n";
        CHECK(shown == real);
        commands++;
    }
    CHECK(commands == 14);
}

TEST_CASE("docs/formats.md: the walk from BF16 to a GEMM's output, and the address of a scale, are computed") {
    std::string indented, text = doc();
    for (auto& line : lines_of(walk())) indented += (line.empty() ? "" : "    ") + line + "\n";
    CHECK_MESSAGE(text.find("\n" + indented + "\n") != std::string::npos, indented);
    CHECK(text.find("row 200, block 9: byte " + std::to_string(tiled_scale(200, 9, 32)) + ".") != std::string::npos);
}
