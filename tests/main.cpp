// The test runner: doctest, plus one closing line that tests/run.sh adds up over the test programs.
#define DOCTEST_CONFIG_IMPLEMENT
#include "check.h"
#include <cstdio>
#include <vector>

static std::vector<std::string> skips;
void note_skip(const std::string& why) { skips.push_back(why); }

static int passed, failed;
struct Count : doctest::IReporter {
    explicit Count(const doctest::ContextOptions&) {}
    void report_query(const doctest::QueryData&) override {}
    void test_run_start() override {}
    void test_run_end(const doctest::TestRunStats& s) override {
        failed = (int)s.numTestCasesFailed;
        passed = (int)s.numTestCasesPassingFilters - failed;
    }
    void test_case_start(const doctest::TestCaseData&) override {}
    void test_case_reenter(const doctest::TestCaseData&) override {}
    void test_case_end(const doctest::CurrentTestCaseStats&) override {}
    void test_case_exception(const doctest::TestCaseException&) override {}
    void subcase_start(const doctest::SubcaseSignature&) override {}
    void subcase_end() override {}
    void log_assert(const doctest::AssertData&) override {}
    void log_message(const doctest::MessageData&) override {}
    void test_case_skipped(const doctest::TestCaseData&) override {}
};
REGISTER_LISTENER("count", 1, Count);

int main(int argc, char** argv) {
    doctest::Context context(argc, argv);
    int rc = context.run();
    for (auto& why : skips) printf("skipped: %s\n", why.c_str());
    printf("count: %d passed, %d failed, %d skipped\n", passed - (int)skips.size(), failed, (int)skips.size());
    return rc;
}
