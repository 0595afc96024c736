// report.html: a comparison as one page that needs no network. The page itself is report/report.html; the Makefile puts it
// into the program. What is easy to get wrong:
// - Numbers stand in the page with the digits that they have in the CSV files; nan and inf are strings, an empty cell
//   is null. The differences and verdicts are those of report/compare.h: the page's script judges nothing.
// - ARM texts, paths and prompts are whatever a user typed. In the JSON every < is written \u003c, so that no text can
//   end the script element, and the page's script makes text nodes and attributes of texts, never HTML.
// - steps.csv and evals.csv are there with all seeds, tensors.csv with the first seed of each recipe. Long series are
//   thinned: every stride-th row and the last; the page says so.
#pragma once
#include "report/compare.h"

// The report on a comparison's run directories, which may be unfinished, as a file that replaces `path` atomically.
// Errors: of files that cannot be read or written.
void write_report(const Comparison& c, const std::string& path);
