// Which source this program was built from: what `git describe` said, or "unversioned".
#pragma once
const char* version();
