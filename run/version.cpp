// The one file that is told -DULP_VERSION, so that a commit does not rebuild the rest.
#include "run/version.h"
#ifndef ULP_VERSION
#define ULP_VERSION "unversioned"
#endif
const char* version() { return ULP_VERSION; }
