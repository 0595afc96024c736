// What ml_dtypes and PyTorch make of numbers (tests/golden/formats.txt, whose script says what its lines hold), against
// encode() and decode(). Inputs are clipped as there, NaN inputs are not compared, nor how E8M0 rounds: the libraries
// take the nearest power of two, a scale must be the next one up.
#include "check.h"
#include "fp8.cuh"
#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>

namespace { // test files share one program

Format named(const std::string& name) {
    for (Format f : ALL_FORMATS)
        if (f.name == name) return f;
    FAIL("tests/golden/formats.txt has format ", name, ", which fp8.cuh has not");
    return FP32;
}
float bf16_value(uint32_t bits) { return bits_as<float>(bits << 16); }

std::vector<uint32_t> decode_all(Format f) {
    std::vector<uint32_t> bits;
    for (uint32_t code = 0; code < 1u << f.bits(); code++) {
        float v = decode(f, code);
        bits.push_back(std::isnan(v) ? 0x7fc00000 : bits_as<uint32_t>(v));
    }
    return bits;
}
std::vector<float> around_midpoints(Format f) {
    std::vector<float> values, x;
    for (uint32_t code = 0; code < 1u << (f.bits() - 1); code++)
        if (std::isfinite(decode(f, code))) values.push_back(decode(f, code));
    std::sort(values.begin(), values.end());
    for (float sign : {1.0f, -1.0f})
        for (size_t i = 1; i < values.size(); i++) {
            float mid = (values[i - 1] + values[i]) / 2;
            for (float y : {std::nextafterf(mid, 0), mid, std::nextafterf(mid, INFINITY)}) x.push_back(sign * y);
        }
    return x;
}
uint64_t hash(Format f) {
    uint64_t h = 0xcbf29ce484222325;
    for (uint32_t b = 0; b < 65536; b++) {
        if (std::isnan(bf16_value(b))) continue;
        uint32_t code = encode(f, bf16_value(b) * (f == BF16 ? 1 + 0x1p-8f : 1));
        for (int byte = 0; byte < 4; byte++) h = (h ^ (code >> 8 * byte & 255)) * 0x100000001b3;
    }
    return h;
}

TEST_CASE("encode and decode agree with ml_dtypes and PyTorch on every code, every BF16 and around every midpoint") {
    std::ifstream file("tests/golden/formats.txt");
    std::map<std::string, long> compared, wrong;
    std::string line, version, source, name, what, word;
    std::getline(file, version);
    while (std::getline(file, line)) {
        std::istringstream words(line);
        words >> source >> name >> what;
        Format f = named(name);
        auto same = [&](uint64_t got, uint64_t want, long count = 1) {
            compared[source] += count;
            if (got == want) return;
            wrong[source]++;
            if (wrong[source] <= 10) FAIL_CHECK(line.substr(0, 24), "..: ", got, " where they have ", want);
        };
        auto compare = [&](const std::vector<uint32_t>& got) {
            std::vector<uint64_t> want;
            while (words >> word) want.push_back(std::stoul(word, nullptr, 16));
            REQUIRE(want.size() == got.size());
            for (size_t i = 0; i < got.size(); i++) same(got[i], want[i]);
        };
        if (what == "decode") compare(decode_all(f));
        else if (what == "mid") {
            std::vector<uint32_t> got;
            for (float x : around_midpoints(f)) got.push_back(encode(f, x));
            compare(got);
        } else if (what == "bf16") { // runs start:code; a run ends where the next starts
            uint32_t b = 0, code = 0;
            bool nan = false;
            auto until = [&](uint32_t end) {
                for (; b < end; b++) {
                    if (std::isnan(bf16_value(b)) != nan) FAIL("BF16 ", b, " is in a run of the other kind");
                    if (!nan) same(encode(f, bf16_value(b)), code);
                }
            };
            while (words >> word) {
                size_t colon = word.find(':');
                until((uint32_t)std::stoul(word, nullptr, 16));
                nan = word.compare(colon + 1, 3, "---") == 0;
                if (!nan) code = (uint32_t)std::stoul(word.substr(colon + 1), nullptr, 16);
            }
            until(65536);
        } else if (what == "hash") {
            words >> word;
            same(hash(f), std::stoull(word, nullptr, 16), 65536 - 2 * 127); // as many numbers are hashed
        } else FAIL("tests/golden/formats.txt has a line of kind ", what);
    }
    for (auto& [source, count] : compared)
        MESSAGE("compared with " << source << ": " << count << " codes and values, mismatches: " << wrong[source]);
    CHECK(compared["ml_dtypes"] > 500000);
    CHECK(compared["torch"] > 300000);
}

} // namespace
