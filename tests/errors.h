// What went wrong, in words.
#pragma once
#include "check.h"
#include "run/error.h"
#include <functional>

// The text of the Error that f throws, whose exit status is as said; "no error" if it throws none.
inline std::string error_of(const std::function<void()>& f, int status = 1) {
    try {
        f();
    } catch (const Error& e) {
        CHECK(e.status == status);
        return e.what();
    }
    return "no error";
}
inline bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
