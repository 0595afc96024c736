// A libFuzzer program of one target: built with -include tests/fuzz/NAME.h -DTARGET=fuzz_NAME
#include "run/screen.h"
#include <string_view>

extern "C" int LLVMFuzzerInitialize(int*, char***) { return be_quiet(), 0; }
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    TARGET(std::string_view((const char*)data, size));
    return 0;
}
