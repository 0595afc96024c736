// docs/hardware.md is what ./train says, and that is what ops/hardware.h decides.
#include "ops/hardware.h"
#include "program.h"
#include "run/json.h"

namespace { // test files share one program

TEST_CASE("docs/hardware.md: every command prints what the page shows, and cards of one family print the same") {
    auto page = lines(slurp("docs/hardware.md"));
    int commands = 0;
    for (size_t i = 0; i < page.size(); i++) {
        if (!page[i].starts_with("    $ ./train ")) continue;
        INFO(page[i]);
        Result r = run(TRAIN, page[i].substr(14));
        CHECK_MESSAGE(r.status == 0, r.err);
        std::string shown;
        for (; i + 1 < page.size() && page[i + 1].starts_with("    ") && !page[i + 1].starts_with("    $ "); i++)
            shown += page[i + 1].substr(4) + "\n";
        CHECK(shown == r.out);
        commands++;
    }
    CHECK(commands == 9);
    auto without_name = [](std::string text, const std::string& cc) {
        for (size_t at; (at = text.find("sm_" + cc)) != std::string::npos;) text.erase(at, 3 + cc.size());
        return text;
    };
    for (auto [cc, as] : {std::pair("86", "80"), {"87", "80"}, {"103", "100"}, {"121", "120"}})
        CHECK(without_name(run(TRAIN, std::string("recipes --cc ") + cc).out, cc) ==
              without_name(run(TRAIN, std::string("recipes --cc ") + as).out, as));
}
TEST_CASE("./train recipes --cc: --json has an object per GEMM; a card that nobody knows is an error") {
    Result r = run(TRAIN, "recipes --cc 90 --json mxfp8,hybrid:fast_accum=0");
    auto all = lines(r.out);
    REQUIRE(all.size() == 6);
    Json first = parse_json(all[0], "stdout"), fourth = parse_json(all[3], "stdout"),
         last = parse_json(all[5], "stdout");
    CHECK(first.find("recipe")->text == "mxfp8");
    CHECK(first.find("gemm")->text == "fprop");
    CHECK(first.find("cc")->integer() == 90);
    CHECK(first.find("native")->is_bool(false));
    CHECK(first.find("how")->text == "emulated: sm_90 has no MX tensor cores");
    CHECK(fourth.find("native")->is_bool(true));
    CHECK(fourth.find("how")->text == "native FP8"); // no fast accumulation
    CHECK(last.find("gemm")->text == "wgrad");
    CHECK(last.find("dy")->text == "e5m2");
    CHECK(last.find("x")->text == "e4m3");
    CHECK(run(TRAIN, "recipes --cc 91").status == 2);
}
TEST_CASE("native or emulated: what the chip, the formats and the sizes decide") {
    auto side = [](Elem e, Elem scale = Elem::f32, int block = 0) { return GemmSide{e, scale, block}; };
    using enum Elem;
    GemmSide fp8 = side(e4m3), grad = side(e5m2), mx = side(e4m3, e8m0, 32), fp4 = side(e2m1, e4m3, 16),
             plain = side(Elem::bf16);
    GemmSide narrow = side(e2m1), mx4 = side(e2m1, e8m0, 32), blocks = side(e4m3, Elem::f32, 128);
    struct Row {
        GemmKind kind;
        int native_from;
    };
    for (auto& [kind, from] : {Row{{fp8, fp8}, 89},
                               {{grad, fp8}, 89},
                               {{fp8, grad}, 89},
                               {{narrow, grad}, 89},
                               {{mx, mx}, 100},
                               {{mx4, mx}, 100},
                               {{fp4, fp4}, 100},
                               {{plain, plain}, 0},
                               {{grad, grad}, 999},
                               {{fp8, plain}, 999},
                               {{plain, fp4}, 999},
                               {{mx, fp8}, 999},
                               {{mx4, fp4}, 999},
                               {{blocks, mx}, 999},
                               {{blocks, fp8}, 999}})
        for (int cc : {80, 86, 87, 89, 90, 100, 103, 120, 121}) {
            INFO(how_multiplied(kind, cc), " on sm_", cc);
            CHECK(why_emulated(kind, cc).empty() == (cc >= from));
        }
    CHECK(why_emulated({fp8, fp8}, 90, 100, 64, 100) == "");
    CHECK(why_emulated({fp8, fp8}, 90, 100, 50257, 64) == "N = 50257 is not a multiple of 16; the next that is: 50272");
    CHECK(why_emulated({fp8, fp8}, 100, 64, 64, 100, true) == "K = 100 is not a multiple of 16; the next that is: 112");
    CHECK(why_emulated({fp8, fp8}, 100, 63, 64, 64, true) == "M = 63 is not a multiple of 16; the next that is: 64");
    CHECK(why_emulated({plain, plain}, 80, 1, 50257, 7) == "");
    CHECK(how_multiplied({mx4, mx}, 100, "dy", "x") == "native MXFP8, dy widened to E4M3");
    CHECK(how_multiplied({mx4, mx4}, 121) == "native MXFP8, widened to E4M3");
    CHECK(how_multiplied({fp4, fp4}, 120) == "native NVFP4"); // E2M1 itself
    CHECK(how_multiplied({grad, grad}, 120) == "emulated: E5M2 x E5M2 has no kernel anywhere");
    GemmKind inexact = {blocks, blocks};
    inexact.a.exact = false;
    CHECK(why_emulated(inexact, 80).find("the row function") != std::string::npos);
    CHECK(why_emulated(inexact, 90) == "");
    GemmSide square = blocks, slow = blocks;
    square.rows = 128, slow.exact = false;
    for (int cc : {80, 86, 87, 89, 90, 100, 103, 120, 121}) // Hopper alone
        for (auto& [a, b] : {GemmKind{blocks, blocks}, {blocks, square}, {square, blocks}, {slow, square}}) {
            CHECK(why_emulated({a, b}, cc).empty() == (cc == 90));
            CHECK((why_emulated({a, b}, cc).find("the row function") != std::string::npos) == (cc != 90 && !a.exact));
        }
    CHECK(why_emulated({square, square}, 90) == "blocks of 128 x 128 on both sides have no kernel anywhere");
    CHECK(why_emulated({blocks, square}, 90, 100, 48, 64) == "M = 100 is not a multiple of 8; the next that is: 104");
    CHECK(why_emulated({blocks, square}, 90, 104, 40, 64) == "N = 40 is not a multiple of 16; the next that is: 48");
    CHECK(how_multiplied({blocks, square}, 90) == "native FP8 in blocks of 128");
    CHECK(has_fast_accum(89));
    CHECK(has_fast_accum(90));
    CHECK(!has_fast_accum(80));
    CHECK(!has_fast_accum(100));
}
} // namespace
