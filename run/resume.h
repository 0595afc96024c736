// --resume: the command line of a run that goes on.
#pragma once
#include "run/options.h"

struct Resumed {
    Options options;                // its words: the run's command line from now on
    Json run;                       // run.json, as it is
    std::string directory;          // where the run was begun
    bool changed = false;           // an option that its curves depend on
    bool rewrites = false;          // run.json: changed, or there are more seeds
    Json changes = Json(Json::Array); // of such options after its start: {"words": [..]}, one item for each time
};
// The options of the run in now.resume, with those of `now` that may differ: what changes no result, and with
// --override what does. Paths that are relative are so to where the run was begun. Errors: no run there, a run.json that
// does not say how it was begun, an option that may not differ.
Resumed resume_options(const Options& now);
// What a curve depends on besides options, as this process would write it into run.json: that the data is another is an
// error without --override, that program or machine are is a note.
void same_conditions(const Resumed& before, const Json& run);
