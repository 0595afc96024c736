// What every test file includes: doctest, and SKIP, for a check that this machine cannot make. A skipped check is
// counted and shown, never silently green.
#pragma once
#include "doctest/doctest.h"
#include <string>
#include <vector>

void note_skip(const std::string& why);
#define SKIP(why)                                                                                                      \
    do {                                                                                                               \
        note_skip(why);                                                                                                \
        return;                                                                                                        \
    } while (0)
